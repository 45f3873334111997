//! `hearth`: the cloud's control plane.

mod account;
mod serve;
mod vmm;

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

use clap::{Parser, Subcommand};
use hearth::{
    compute::{self, bootfiles},
    config::{Config, ServeArgs, authority_in},
    descriptors, doctor, images,
    metadata::Identity,
    model::{InstanceId, Scope},
    tls::Authority,
};

/// EC2 on this machine.
#[derive(Parser)]
#[command(name = "hearth", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves the API and runs the instances of this host; ends by SIGTERM or
    /// SIGINT and leaves the instances running
    Serve(ServeArgs),
    /// Ends every instance and removes all that Hearth has made on this host but
    /// its images and credentials; takes the flags of serve
    Purge(ServeArgs),
    /// Verifies the images of a folder and lists them; what it verified is
    /// remembered beside them, and `serve` needn't do it again
    Images {
        /// The folder of manifests and disks
        folder: PathBuf,
    },
    /// Shows how long the steps of an instance's last launch took
    Trace {
        /// The instance, as i-0123456789abcdef0
        instance: String,
        /// The data folder of the hearth that runs it
        #[arg(long, env = "HEARTH_DATA_DIR", default_value = "/var/lib/hearth")]
        data_dir: PathBuf,
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Makes, lists and ends accounts and their access keys; a hearth that is
    /// running follows
    Account(account::AccountCommand),
    /// Lists the VMMs of the instances on this host, and replaces them by the installed
    /// program while they run
    Vmm(vmm::VmmCommand),
    /// Prints the certificate of the authority that `serve --tls` uses, for clients to
    /// trust (`AWS_CA_BUNDLE`); makes the authority if there is none
    Ca {
        /// Where everything is kept that outlives a reboot of this machine
        #[arg(long, env = "HEARTH_DATA_DIR", default_value = "/var/lib/hearth")]
        data_dir: PathBuf,
    },
    /// Prints the certificate that instance identity documents are verified with
    /// (`dynamic/instance-identity` of the metadata service); makes its key if there is none
    IdentityCertificate {
        /// Where everything is kept that outlives a reboot of this machine
        #[arg(long, env = "HEARTH_DATA_DIR", default_value = "/var/lib/hearth")]
        data_dir: PathBuf,
    },
    /// Tells whether instances can run on this machine, and what to do if not
    Doctor {
        /// Only one line for each reason why none can
        #[arg(long)]
        brief: bool,
    },
}

fn main() -> ExitCode {
    // The reader enters a sandbox: it must be the process's only thread.
    let mut arguments = std::env::args_os().skip(1);
    if arguments
        .next()
        .is_some_and(|first| first == "read-boot-files")
    {
        return bootfiles::main(arguments);
    }
    let (args, purge) = match Cli::parse().command {
        Command::Serve(args) => (args, false),
        Command::Purge(args) => (args, true),
        Command::Trace {
            instance,
            data_dir,
            json,
        } => return trace(&instance, &data_dir, json),
        Command::Account(command) => return account::main(command),
        Command::Vmm(command) => return vmm::main(command),
        Command::Ca { data_dir } => {
            let made = Authority::load_or_create(&authority_in(&data_dir), SystemTime::now());
            return print(made.map(|authority| authority.certificate));
        }
        Command::IdentityCertificate { data_dir } => {
            let folder = Identity::folder(&data_dir);
            let made = Identity::load_or_create(&folder, SystemTime::now());
            return print(made.map(|identity| identity.certificate));
        }
        // It reads its flag itself.
        Command::Images { folder } => return list_images(&folder),
        Command::Doctor { brief: _ } => return doctor::main(),
    };
    let hostname = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let config = args
        .accounts
        .read_file()
        .and_then(|file| Config::new(args, file, &hostname, std::env::current_exe().ok()));
    let config = match config {
        Ok(config) => config,
        Err(error) => return refuse(&error.into(), 2),
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("HEARTH_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();
    // A connection each for callers, and some for each instance.
    if let Err(error) = descriptors::raise_limit() {
        tracing::warn!(%error, "the limit of file descriptors can't be raised");
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&anyhow::Error::from(error), 1),
    };
    let result = runtime.block_on(async {
        if purge {
            serve::purge(config).await
        } else {
            serve::serve(config).await
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(serve::Failure::Setup(error)) => refuse(&error, 2),
        Err(serve::Failure::Running(error)) => refuse(&error, 1),
    }
}

fn print(certificate: anyhow::Result<String>) -> ExitCode {
    match certificate {
        Ok(pem) => {
            let _ = io::stdout().write_all(pem.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => refuse(&error, 1),
    }
}

/// Prints each image as it is verified; a manifest without a good disk makes the
/// exit status 1.
fn list_images(folder: &Path) -> ExitCode {
    let mut known = images::Known::default();
    let mut listed = Vec::new();
    let mut out = io::stdout();
    loop {
        let scan = match images::scan(folder, &Scope::new("", ""), &mut known) {
            Ok(scan) => scan,
            Err(error) => {
                let error = anyhow::Error::from(error).context(folder.display().to_string());
                return refuse(&error, 2);
            }
        };
        for image in &scan.images {
            if !listed.contains(&image.id) {
                let _ = writeln!(out, "{}  {}", image.id, image.manifest.name);
                listed.push(image.id.clone());
            }
        }
        if scan.more {
            continue;
        }
        for problem in &scan.problems {
            let _ = writeln!(io::stderr(), "hearth: {problem}");
        }
        return ExitCode::from(u8::from(!scan.problems.is_empty()));
    }
}

fn trace(instance: &str, data: &Path, json: bool) -> ExitCode {
    let traced = instance
        .parse::<InstanceId>()
        .map_err(anyhow::Error::new)
        .and_then(|id| Ok(compute::host::trace_of(data, &id)?))
        .and_then(|found| {
            found.ok_or_else(|| anyhow::anyhow!("there is no launch of it in {}", data.display()))
        });
    let text = traced.and_then(|record| match json {
        true => Ok(serde_json::to_string(&record)? + "\n"),
        false => Ok(record.to_string()),
    });
    match text {
        Ok(text) => {
            let _ = write!(io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => refuse(&error.context(instance.to_owned()), 1),
    }
}

/// One line that says why.
fn refuse(error: &anyhow::Error, status: u8) -> ExitCode {
    let _ = writeln!(io::stderr(), "hearth: {error:#}");
    ExitCode::from(status)
}
