//! The flags and the environment, as they are given.

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use clap::Args;
use hearth_vmm_api::SandboxLayer;
use ipnet::Ipv4Net;

use super::{ConfigError, ConfigFile, DEFAULT_ACCOUNT, credentials_in};
use crate::{auth::credentials::is_account_id, network::HostPort};

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
    /// How many templates are kept, each of an image and a type, for launches to go on
    /// from instead of booting; those used longest ago go, and with 0 every launch boots
    #[arg(
        long,
        env = "HEARTH_WARM_TEMPLATES",
        default_value_t = 0,
        value_name = "N"
    )]
    pub warm_templates: usize,
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
