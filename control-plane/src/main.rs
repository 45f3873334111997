//! `hearth`: the cloud's control plane.

mod serve;

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use hearth::{
    compute::bootfiles,
    config::{Config, ServeArgs},
    doctor,
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
        // It reads its flag itself.
        Command::Doctor { brief: _ } => return doctor::main(),
    };
    let hostname = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let config = match Config::new(args, &hostname, std::env::current_exe().ok()) {
        Ok(config) => config,
        Err(error) => return refuse(&error.into(), 2),
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("HEARTH_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
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

/// One line that says why.
fn refuse(error: &anyhow::Error, status: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "hearth: {error:#}");
    ExitCode::from(status)
}
