//! The configuration of one `hearth`: flags, environment and the configuration
//! file into one validated description.

mod args;
mod file;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use hearth_vmm_api::SandboxLayer;
use ipnet::Ipv4Net;

use crate::{
    auth::credentials::Account,
    conditions::Conditions,
    model::{HostId, PublicPool, Scope},
    network::{HostPort, names::HostNames},
    tls,
};

pub use args::{AccountsArgs, HostsArg, ServeArgs};
pub use file::{ConfigFile, Region};

/// The account that there is where none is named.
const DEFAULT_ACCOUNT: &str = "000000000000";
/// The region that there is where none is named.
const DEFAULT_REGION: &str = "us-east-1";
/// What a simulation's data folder says that it belongs to. No host is called so.
pub const SIMULATED_HOST: &str = "simulated:";
/// The longest delay of a simulated change, in milliseconds: what takes half a minute
/// counts as failed.
const LONGEST_DELAY_MS: u64 = 20_000;

/// The folder of the certificate authority.
pub fn authority_in(data_dir: &Path) -> PathBuf {
    data_dir.join("tls")
}

fn credentials_in(data_dir: &Path) -> PathBuf {
    data_dir.join("credentials.json")
}

/// What is simulated, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Simulated {
    /// How many hosts.
    pub hosts: u32,
    /// How it is on them.
    pub conditions: Conditions,
}

/// A configuration that makes no sense, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// A valid configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// What this hearth names its own things on the host by.
    pub names: HostNames,
    /// What outlives a reboot of the host.
    pub data_dir: PathBuf,
    /// Sockets and process ids.
    pub run_dir: PathBuf,
    /// Where the API listens.
    pub listen: SocketAddr,
    /// What it serves TLS with; nothing is for plain HTTP.
    pub tls: Option<tls::Source>,
    /// This host's region.
    pub region: String,
    /// This host's availability zone.
    pub zone: String,
    /// Every region that requests may be for, this host's among them.
    pub regions: Vec<Region>,
    /// The default account's number: it owns the images.
    pub account_id: String,
    /// The accounts that the configuration file names. `hearth account` makes
    /// others; the credential store knows all.
    pub accounts: Vec<Account>,
    /// The pool of public addresses.
    pub public_pool: Ipv4Net,
    /// Ports of the host that instances may reach.
    pub guest_host_ports: Vec<HostPort>,
    /// vCPUs handed out for each CPU.
    pub cpu_overcommit: f64,
    /// Memory handed out for each byte there is.
    pub memory_overcommit: f64,
    /// Memory kept for the host itself, in MiB; none to let it follow from what
    /// there is.
    pub memory_reserve_mib: Option<u64>,
    /// Disk promised to volumes for each byte that is free.
    pub disk_overcommit: f64,
    /// What guests must leave free of the data folder's file system, in MiB; none
    /// to let it follow from its size.
    pub disk_reserve_mib: Option<u64>,
    /// This host's name.
    pub host_id: HostId,
    /// The VMM's program.
    pub vmm_binary: PathBuf,
    /// Sandbox layers that instances may run without.
    pub jail_layers_optional: Vec<SandboxLayer>,
    /// How many templates of warm launches are kept.
    pub warm_templates: usize,
    /// Where the images lie.
    pub images_dir: PathBuf,
    /// What is simulated in place of this machine.
    pub simulated: Option<Simulated>,
    /// How long a guest has to power down at StopInstances before it is forced.
    /// EC2 waits "a few minutes".
    /// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/how-ec2-instance-stop-start-works.html>
    pub stop_grace: Duration,
    /// The same at TerminateInstances; nothing of the disk will be left anyway.
    pub terminate_grace: Duration,
    /// Whether an instance that ran when this host went down is started again
    /// when the host is back, with its addresses. Otherwise it is stopped then.
    pub restart_lost: bool,
}

impl Config {
    /// Checks what was given and fills in the defaults that depend on the
    /// machine: `hostname` and `program`, the path of this very program.
    ///
    /// # Errors
    /// One line that names the flag and what would be right.
    pub fn new(
        args: ServeArgs,
        file: ConfigFile,
        hostname: &str,
        program: Option<PathBuf>,
    ) -> Result<Self, ConfigError> {
        let refuse = |message: String| Err(ConfigError(message));
        let account_id = args.accounts.default_account(&file)?;
        let tls = tls(&args, hostname)?;
        let simulated = simulated(&args)?;
        let (regions, region, zone) = place(file.regions, args.region, args.zone)?;
        let pool = args.public_pool.trunc();
        // A simulation has more instances than this machine could.
        let widest = if simulated.is_some() { 12 } else { 16 };
        if pool != args.public_pool || !(widest..=29).contains(&pool.prefix_len()) {
            return refuse(format!(
                "--public-pool {}: must be a network of /{widest} to /29, without host bits",
                args.public_pool
            ));
        }
        for (flag, ratio) in [
            ("--cpu-overcommit", args.cpu_overcommit),
            ("--memory-overcommit", args.memory_overcommit),
            ("--disk-overcommit", args.disk_overcommit),
        ] {
            if !(0.01..=100.0).contains(&ratio) {
                return refuse(format!("{flag} {ratio}: must be from 0.01 to 100"));
            }
        }
        if simulated.is_some() && args.host_id.is_some() {
            return refuse("--host-id: simulated hosts have names of their own".into());
        }
        if simulated.is_some() && args.warm_templates > 0 {
            return refuse(format!(
                "--warm-templates {}: simulated hosts have none, leave it out",
                args.warm_templates
            ));
        }
        let host_id = args.host_id.unwrap_or_else(|| hostname.to_owned());
        if host_id.is_empty() || host_id.contains(['/', ':']) || host_id.len() > 253 {
            return refuse(format!("--host-id {host_id:?}: must be a host name"));
        }
        // The data folder remembers whose it is: a simulation's is no machine's.
        let host_id = simulated.map_or(host_id, |_| SIMULATED_HOST.to_owned());
        if let Some(name) = args.name.as_deref()
            && !HostNames::may_be(name)
        {
            return refuse(format!(
                "--name {name:?}: 1 to 24 lower-case letters, digits and -, the first no -"
            ));
        }
        // It makes nothing on this machine that a real one could take for its own.
        let own = simulated.map(|_| "simulated");
        let names = HostNames::new(args.name.as_deref().or(own));
        let data_dir = args.accounts.data_dir;
        let run_dir = args.run_dir;
        let run_dir = run_dir.unwrap_or_else(|| PathBuf::from("/run").join(names.label()));
        for (flag, path) in [("--data-dir", &data_dir), ("--run-dir", &run_dir)] {
            if !path.is_absolute() {
                return refuse(format!(
                    "{flag} {}: must be an absolute path",
                    path.display()
                ));
            }
        }
        let Some(vmm_binary) = args
            .vmm_binary
            .or_else(|| Some(program?.parent()?.join("hearth-vmm")))
        else {
            return refuse(
                "--vmm-binary: must be given, this program's own path is unknown".into(),
            );
        };
        Ok(Self {
            images_dir: args.images_dir.unwrap_or_else(|| data_dir.join("images")),
            names,
            data_dir,
            run_dir,
            listen: args.listen,
            tls,
            region,
            zone,
            regions,
            account_id,
            accounts: file.accounts,
            public_pool: pool,
            guest_host_ports: args.guest_host_ports,
            cpu_overcommit: args.cpu_overcommit,
            memory_overcommit: args.memory_overcommit,
            memory_reserve_mib: args.memory_reserve_mib,
            disk_overcommit: args.disk_overcommit,
            disk_reserve_mib: args.disk_reserve_mib,
            host_id: HostId(host_id),
            vmm_binary,
            jail_layers_optional: args.jail_layers_optional,
            warm_templates: args.warm_templates,
            simulated,
            stop_grace: Duration::from_secs(args.stop_grace),
            terminate_grace: Duration::from_secs(args.terminate_grace),
            restart_lost: args.restart_lost,
        })
    }

    /// A configuration for tests that touch no host: all defaults.
    ///
    /// # Panics
    /// Never: the defaults are valid.
    #[allow(clippy::expect_used)]
    pub fn for_tests() -> Self {
        use clap::{Args as _, FromArgMatches as _};
        let command = ServeArgs::augment_args(clap::Command::new("hearth"));
        let matches = command.get_matches_from(["hearth"]);
        let args = ServeArgs::from_arg_matches(&matches).expect("the defaults parse");
        let file = ConfigFile::default();
        Self::new(args, file, "test-host", Some("/usr/bin/hearth".into())).expect("and are valid")
    }

    /// Where images are: with the default account, in every region.
    pub fn image_scopes(&self) -> Vec<Scope> {
        let regions = self.regions.iter();
        regions
            .map(|region| Scope::new(self.account_id.clone(), region.name.clone()))
            .collect()
    }

    /// The names of a region's zones.
    pub fn zones_of(&self, region: &str) -> &[String] {
        let region = self.regions.iter().find(|r| r.name == region);
        region.map_or(&[], |region| &region.zones)
    }

    /// The names of all regions.
    pub fn region_names(&self) -> Vec<&str> {
        self.regions.iter().map(|r| r.name.as_str()).collect()
    }

    /// Where the access keys are kept.
    pub fn credentials(&self) -> PathBuf {
        credentials_in(&self.data_dir)
    }

    /// The host's own address in the public pool: the first after the network's.
    pub fn host_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.public_pool.network()) + 1)
    }

    /// The addresses that instances may have: all but the network's, the
    /// host's and the broadcast address.
    pub fn public_addresses(&self) -> PublicPool {
        let first = u32::from(self.public_pool.network()) + 2;
        PublicPool::new(first.into(), self.public_pool.broadcast())
    }
}

/// What is simulated, checked.
fn simulated(args: &ServeArgs) -> Result<Option<Simulated>, ConfigError> {
    let failures = args.simulated_failures;
    if !(0.0..=1.0).contains(&failures) {
        return Err(ConfigError(format!(
            "--simulated-failures {failures}: must be from 0 to 1"
        )));
    }
    if args.simulated_delay_ms > LONGEST_DELAY_MS {
        return Err(ConfigError(format!(
            "--simulated-delay-ms {}: must be at most {LONGEST_DELAY_MS}",
            args.simulated_delay_ms
        )));
    }
    match args.hosts {
        HostsArg::Simulated(hosts) => Ok(Some(Simulated {
            hosts,
            conditions: Conditions {
                delay: Duration::from_millis(args.simulated_delay_ms),
                failures,
            },
        })),
        HostsArg::This if failures > 0.0 || args.simulated_delay_ms > 0 => Err(ConfigError(
            "--simulated-delay-ms, --simulated-failures: only with --hosts simulated:N".into(),
        )),
        HostsArg::This => Ok(None),
    }
}

/// What TLS is served with. Beyond this machine none is refused: whoever reads a
/// signed request along sees what it holds, and each answer, private keys too.
fn tls(args: &ServeArgs, hostname: &str) -> Result<Option<tls::Source>, ConfigError> {
    if let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) {
        return Ok(Some(tls::Source::Given {
            certificate: certificate.clone(),
            key: key.clone(),
        }));
    }
    let address = args.listen.ip();
    if args.tls {
        let mut names = vec!["localhost".into(), "127.0.0.1".into(), "::1".into()];
        names.push(hostname.to_owned());
        if !address.is_unspecified() {
            names.push(address.to_string());
        }
        names.extend(args.tls_names.iter().cloned());
        names.sort();
        names.dedup();
        return Ok(Some(tls::Source::Own {
            folder: authority_in(&args.accounts.data_dir),
            names,
        }));
    }
    if !address.to_canonical().is_loopback() && !args.insecure_listen {
        return Err(ConfigError(format!(
            "--listen {}: beyond this machine the API speaks TLS; give --tls, or --tls-cert and \
             --tls-key, or --insecure-listen",
            args.listen
        )));
    }
    Ok(None)
}

/// All regions, and where in them this host is.
fn place(
    mut regions: Vec<Region>,
    region: Option<String>,
    zone: Option<String>,
) -> Result<(Vec<Region>, String, String), ConfigError> {
    let refuse = |message: String| Err(ConfigError(message));
    if regions.is_empty() {
        let name = region.clone().unwrap_or_else(|| DEFAULT_REGION.to_owned());
        let zone = zone.clone().unwrap_or_else(|| format!("{name}a"));
        let only = Region {
            name,
            zones: vec![zone],
        };
        if let Err(why) = only.check_name() {
            return refuse(format!("--region {why}"));
        }
        if let Err(why) = only.check_zones() {
            return refuse(format!("--zone {why}"));
        }
        regions.push(only);
    }
    let name = region.unwrap_or_else(|| regions[0].name.clone());
    let Some(here) = regions.iter().find(|r| r.name == name) else {
        return refuse(format!(
            "--region {name:?}: the configuration file has no such region"
        ));
    };
    let zone = zone.unwrap_or_else(|| here.zones[0].clone());
    if !here.zones.contains(&zone) {
        return refuse(format!(
            "--zone {zone:?}: the region {name} has {}",
            here.zones.join(", ")
        ));
    }
    Ok((regions, name, zone))
}

#[cfg(test)]
mod tests;
