//! The configuration of one `hearth`: flags, environment and the configuration
//! file into one validated description.

mod file;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::Args;
use hearth_vmm_api::SandboxLayer;
use ipnet::Ipv4Net;

use crate::{
    auth::credentials::{Account, is_account_id},
    conditions::Conditions,
    model::{HostId, PublicPool, Scope},
    network::{HostPort, names::HostNames},
    tls,
};

pub use file::{ConfigFile, Region};

/// The account that there is where none is named.
const DEFAULT_ACCOUNT: &str = "000000000000";
/// The region that there is where none is named.
const DEFAULT_REGION: &str = "us-east-1";

/// Where the accounts are kept and named: what every command needs that deals
/// with them.
#[derive(Debug, Clone, Args)]
pub struct AccountsArgs {
    /// Where everything is kept that outlives a reboot of this machine
    #[arg(long, env = "HEARTH_DATA_DIR", default_value = "/var/lib/hearth")]
    pub data_dir: PathBuf,
    /// A file in TOML that names accounts and regions
    #[arg(long, env = "HEARTH_CONFIG")]
    pub config: Option<PathBuf>,
    /// The default account's number, 12 digits; it owns the images [default: the
    /// configuration file's first, or 000000000000]
    #[arg(long, env = "HEARTH_ACCOUNT_ID")]
    pub account_id: Option<String>,
}

impl AccountsArgs {
    /// Reads the configuration file, if one is named.
    ///
    /// # Errors
    /// One line that names the file and what is wrong with it.
    pub fn read_file(&self) -> Result<ConfigFile, ConfigError> {
        let Some(path) = &self.config else {
            return Ok(ConfigFile::default());
        };
        let place = |why: String| ConfigError(format!("--config {}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| place(e.to_string()))?;
        ConfigFile::parse(&text).map_err(place)
    }

    /// The default account, checked.
    ///
    /// # Errors
    /// When it isn't 12 digits.
    pub fn default_account(&self, file: &ConfigFile) -> Result<String, ConfigError> {
        let first = file.accounts.first().map(|account| account.id.as_str());
        let id = self.account_id.as_deref().or(first);
        let id = id.unwrap_or(DEFAULT_ACCOUNT);
        if !is_account_id(id) {
            return Err(ConfigError(format!(
                "--account-id {id:?}: must be 12 digits"
            )));
        }
        Ok(id.to_owned())
    }

    /// Where the access keys are kept.
    pub fn credentials(&self) -> PathBuf {
        credentials_in(&self.data_dir)
    }
}

/// The folder of the certificate authority.
pub fn authority_in(data_dir: &Path) -> PathBuf {
    data_dir.join("tls")
}

fn credentials_in(data_dir: &Path) -> PathBuf {
    data_dir.join("credentials.json")
}

/// What `hearth serve` may be told.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub accounts: AccountsArgs,
    /// Which of this machine's hearths this is; what it makes on the host is
    /// named after it (hearth-NAME), so that several live side by side, each with
    /// a data folder, a pool and a port of its own [default: none, and just hearth]
    #[arg(long, env = "HEARTH_NAME")]
    pub name: Option<String>,
    /// Where sockets and process ids are kept [default: /run/hearth, or
    /// /run/hearth-NAME]
    #[arg(long, env = "HEARTH_RUN_DIR")]
    pub run_dir: Option<PathBuf>,
    /// Where the API listens
    #[arg(long, env = "HEARTH_LISTEN", default_value = "127.0.0.1:8773")]
    pub listen: SocketAddr,
    /// Serve TLS with a certificate of Hearth's own authority, which `hearth ca` prints
    #[arg(long, env = "HEARTH_TLS", conflicts_with = "tls_cert")]
    pub tls: bool,
    /// Serve TLS with this certificate: a file in PEM, with those between it and its root
    #[arg(long, env = "HEARTH_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// That certificate's private key: a file in PEM
    #[arg(long, env = "HEARTH_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// A further host name or address that --tls's certificate is for; may be repeated
    #[arg(long = "tls-name", requires = "tls")]
    pub tls_names: Vec<String>,
    /// Listen beyond this machine without TLS, where anybody on the way reads along
    #[arg(long, env = "HEARTH_INSECURE_LISTEN")]
    pub insecure_listen: bool,
    /// This host's region [default: the configuration file's first, or us-east-1]
    #[arg(long, env = "HEARTH_REGION")]
    pub region: Option<String>,
    /// This host's availability zone: the region's name and a letter [default: the
    /// region's first]
    #[arg(long, env = "HEARTH_ZONE")]
    pub zone: Option<String>,
    /// The pool of public addresses, /16 to /29; its first is this host's
    #[arg(long, env = "HEARTH_PUBLIC_POOL", default_value = "203.0.113.0/24")]
    pub public_pool: Ipv4Net,
    /// Ports of this host that instances may reach, as tcp/3128,udp/123 [default: none]
    #[arg(long, env = "HEARTH_GUEST_HOST_PORTS", value_delimiter = ',')]
    pub guest_host_ports: Vec<HostPort>,
    /// How many vCPUs are handed out for each CPU of this host
    #[arg(long, env = "HEARTH_CPU_OVERCOMMIT", default_value_t = 4.0)]
    pub cpu_overcommit: f64,
    /// How much memory is handed out for each byte of this host's
    #[arg(long, env = "HEARTH_MEMORY_OVERCOMMIT", default_value_t = 1.0)]
    pub memory_overcommit: f64,
    /// How much memory is kept for this host itself, in MiB [default: a sixteenth, 256 to 2048]
    #[arg(long, env = "HEARTH_MEMORY_RESERVE_MIB")]
    pub memory_reserve_mib: Option<u64>,
    /// How much disk is promised to volumes for each byte that is free; volumes take
    /// space only as they are written
    #[arg(long, env = "HEARTH_DISK_OVERCOMMIT", default_value_t = 4.0)]
    pub disk_overcommit: f64,
    /// How much of the data folder's file system guests must leave free, in MiB;
    /// those that write are paused at it [default: a twentieth, 256 to 2048]
    #[arg(long, env = "HEARTH_DISK_RESERVE_MIB")]
    pub disk_reserve_mib: Option<u64>,
    /// This host's name [default: its host name]
    #[arg(long, env = "HEARTH_HOST_ID")]
    pub host_id: Option<String>,
    /// The VMM's program [default: hearth-vmm beside this program]
    #[arg(long, env = "HEARTH_VMM")]
    pub vmm_binary: Option<PathBuf>,
    /// Sandbox layers that instances may run without where this host lacks them:
    /// `hearth doctor` lists them [default: none]
    #[arg(
        long,
        env = "HEARTH_JAIL_LAYERS_OPTIONAL",
        value_name = "LAYER",
        value_delimiter = ','
    )]
    pub jail_layers_optional: Vec<SandboxLayer>,
    /// Where the images lie [default: images in the data folder]
    #[arg(long, env = "HEARTH_IMAGES_DIR")]
    pub images_dir: Option<PathBuf>,
    /// The hosts: this machine, or so many in memory, on which nothing is real and
    /// everything else is: a simulation, for scale, tests and teaching
    #[arg(
        long,
        env = "HEARTH_HOSTS",
        default_value = "this",
        value_name = "this|simulated:N"
    )]
    pub hosts: HostsArg,
    /// How long a change on a simulated host takes, in milliseconds
    #[arg(long, env = "HEARTH_SIMULATED_DELAY_MS", default_value_t = 0)]
    pub simulated_delay_ms: u64,
    /// What part of the changes on simulated hosts fails, 0 to 1
    #[arg(long, env = "HEARTH_SIMULATED_FAILURES", default_value_t = 0.0)]
    pub simulated_failures: f64,
    /// How many seconds a guest has to power down when it is stopped
    #[arg(long, env = "HEARTH_STOP_GRACE", default_value_t = 120)]
    pub stop_grace: u64,
    /// How many seconds a guest has to power down when it is terminated
    #[arg(long, env = "HEARTH_TERMINATE_GRACE", default_value_t = 30)]
    pub terminate_grace: u64,
    /// Whether instances that ran when this host went down are started again with it
    #[arg(
        long,
        env = "HEARTH_RESTART_LOST",
        default_value_t = true,
        action = clap::ArgAction::Set,
        value_name = "true|false"
    )]
    pub restart_lost: bool,
}

/// Which hosts there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostsArg {
    /// This machine.
    This,
    /// So many in memory.
    Simulated(u32),
}

/// What a simulation's data folder says that it belongs to. No host is called so.
pub const SIMULATED_HOST: &str = "simulated:";
/// The longest delay of a simulated change, in milliseconds: what takes half a minute
/// counts as failed.
const LONGEST_DELAY_MS: u64 = 20_000;
/// As many hosts may be simulated.
const MOST_SIMULATED: u32 = 10_000;

impl FromStr for HostsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = text.strip_prefix("simulated:").map(str::parse);
        match count {
            None if text == "this" => Ok(Self::This),
            Some(Ok(count @ 1..=MOST_SIMULATED)) => Ok(Self::Simulated(count)),
            _ => Err(format!(
                "must be `this`, or `simulated:` and a number from 1 to {MOST_SIMULATED}"
            )),
        }
    }
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
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn config(flags: &[&str]) -> Result<Config, String> {
        let args = Cli::try_parse_from([&["hearth"], flags].concat()).map_err(|e| e.to_string())?;
        with_file(args.serve, "")
    }

    fn with_file(args: ServeArgs, text: &str) -> Result<Config, String> {
        let file = ConfigFile::parse(text)?;
        Config::new(args, file, "box", Some("/opt/bin/hearth".into())).map_err(|e| e.to_string())
    }

    #[test]
    fn a_file_names_accounts_and_regions() {
        let text = "
            [[region]]
            name = 'eu-test-1'
            zones = ['eu-test-1b', 'eu-test-1c']
            [[region]]
            name = 'us-test-1'
            zones = ['us-test-1a']
            [[account]]
            id = '111122223333'
            [[account.key]]
            access_key_id = 'AKIAONE'
            secret_access_key = 'one'
        ";
        let args = |flags: &[&str]| Cli::parse_from([&["hearth"], flags].concat()).serve;
        let c = with_file(args(&[]), text).unwrap();
        assert_eq!(
            (c.region.as_str(), c.zone.as_str()),
            ("eu-test-1", "eu-test-1b")
        );
        assert_eq!(c.region_names(), ["eu-test-1", "us-test-1"]);
        assert_eq!(c.account_id, "111122223333");
        assert_eq!(c.accounts[0].keys[0].access_key_id, "AKIAONE");
        let c = with_file(
            args(&["--region", "us-test-1", "--account-id", "444455556666"]),
            text,
        );
        let c = c.unwrap();
        assert_eq!(
            (c.zone.as_str(), c.account_id.as_str()),
            ("us-test-1a", "444455556666")
        );
        for (flags, name) in [
            (["--region", "mars-1"], "--region"),
            (["--zone", "eu-test-1a"], "--zone"),
            (["--zone", "us-test-1a"], "--zone"),
        ] {
            let refused = with_file(args(&flags), text).unwrap_err();
            assert!(refused.contains(name), "{refused}");
        }
    }

    #[test]
    fn defaults_come_from_the_machine() {
        let c = config(&[]).unwrap();
        assert_eq!(c.zone, "us-east-1a");
        assert_eq!(c.host_id.0, "box");
        assert_eq!(c.vmm_binary, PathBuf::from("/opt/bin/hearth-vmm"));
        assert_eq!(c.images_dir, PathBuf::from("/var/lib/hearth/images"));
        assert_eq!(c.run_dir, PathBuf::from("/run/hearth"));
        let named = config(&["--name", "test"]).unwrap();
        assert_eq!(named.run_dir, PathBuf::from("/run/hearth-test"));
        assert!(c.restart_lost);
        assert!(!config(&["--restart-lost", "false"]).unwrap().restart_lost);
        assert_eq!(c.host_address(), Ipv4Addr::new(203, 0, 113, 1));
        let all = c.public_addresses();
        assert_eq!(all.count(), 253);
        assert_eq!(all.at(0), Ipv4Addr::new(203, 0, 113, 2));
        assert_eq!(all.at(252), Ipv4Addr::new(203, 0, 113, 254));
    }

    #[test]
    fn a_simulation_is_no_machine() {
        let c = config(&["--hosts", "simulated:3"]).unwrap();
        assert_eq!(c.host_id.0, SIMULATED_HOST);
        assert_eq!(c.names, HostNames::new(Some("simulated")));
        assert_eq!(c.simulated.unwrap().hosts, 3);
        for flags in [
            &["--host-id", SIMULATED_HOST][..],
            &["--host-id", "box", "--hosts", "simulated:3"],
            &["--hosts", "simulated:0"],
            &["--hosts", "simulated:100000"],
            &["--hosts", "that"],
            &["--simulated-delay-ms", "5"],
            &["--hosts", "simulated:3", "--simulated-delay-ms", "30000"],
            &["--hosts", "simulated:3", "--simulated-failures", "2"],
        ] {
            config(flags).unwrap_err();
        }
    }

    #[test]
    fn beyond_this_machine_tls_is_asked_for() {
        assert_eq!(config(&["--listen", "[::1]:1"]).unwrap().tls, None);
        for address in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
            let refused = config(&["--listen", address]).unwrap_err();
            assert!(refused.contains("--insecure-listen"), "{refused}");
            let plain = config(&["--listen", address, "--insecure-listen"]).unwrap();
            assert_eq!(plain.tls, None);
        }
        let own = config(&[
            "--listen",
            "192.0.2.1:1",
            "--tls",
            "--tls-name",
            "x.example",
        ]);
        let Some(tls::Source::Own { folder, names }) = own.unwrap().tls else {
            panic!("no authority of its own");
        };
        assert_eq!(folder, PathBuf::from("/var/lib/hearth/tls"));
        let wanted = [
            "127.0.0.1",
            "192.0.2.1",
            "::1",
            "box",
            "localhost",
            "x.example",
        ];
        assert_eq!(names, wanted);
        let given = config(&[
            "--tls-cert",
            "/c",
            "--tls-key",
            "/k",
            "--listen",
            "0.0.0.0:1",
        ]);
        assert!(matches!(
            given.unwrap().tls,
            Some(tls::Source::Given { .. })
        ));
        assert!(config(&["--tls-cert", "/c"]).is_err());
        assert!(config(&["--tls", "--tls-cert", "/c", "--tls-key", "/k"]).is_err());
    }

    #[test]
    fn nonsense_is_refused_by_the_flags_name() {
        for (flags, name) in [
            (["--zone", "eu-west-1a"], "--zone"),
            (["--zone", "us-east-1"], "--zone"),
            (["--region", "US"], "--region"),
            (["--account-id", "12"], "--account-id"),
            (["--public-pool", "10.0.0.1/24"], "--public-pool"),
            (["--public-pool", "10.0.0.0/30"], "--public-pool"),
            (["--cpu-overcommit", "0"], "--cpu-overcommit"),
            (["--memory-overcommit", "NaN"], "--memory-overcommit"),
            (["--disk-overcommit", "0"], "--disk-overcommit"),
            (["--data-dir", "here"], "--data-dir"),
            (["--host-id", "a/b"], "--host-id"),
            (["--name", ""], "--name"),
            (["--name", "../x"], "--name"),
            (["--name", "Test"], "--name"),
            (["--listen", "nowhere"], "--listen"),
        ] {
            let refused = config(&flags).unwrap_err();
            assert!(refused.contains(name), "{refused}");
        }
    }
}
