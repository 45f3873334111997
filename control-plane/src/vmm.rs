//! `hearth vmm`: the VMMs of this host's instances, on the command line.

use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use hearth::{
    compute::host::{UpdateOutcome, Vmm, ask_for_update, update_of, vmms},
    model::InstanceId,
};

/// How often is looked whether an update is through.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// After so long without news, it is said what is waited for.
const SILENCE: Duration = Duration::from_secs(30);

/// What `hearth vmm` may be told.
#[derive(Args)]
pub(crate) struct VmmCommand {
    /// The data folder of the hearth that runs the instances
    #[arg(
        long,
        env = "HEARTH_DATA_DIR",
        default_value = "/var/lib/hearth",
        global = true
    )]
    data_dir: PathBuf,
    /// The VMM's program as that hearth has it [default: hearth-vmm beside this program]
    #[arg(long, env = "HEARTH_VMM", global = true)]
    vmm_binary: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Lists them: the instance, the process, its version, the first digits of its program's
    /// SHA-256, and whether that is the installed one
    List,
    /// Has the installed program take over running machines, without a reboot: their guests
    /// notice a pause. A hearth that is running does it, and so does the next one that starts
    Update {
        /// The instances, as i-0123456789abcdef0
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        instances: Vec<InstanceId>,
        /// All whose VMM is not the installed program
        #[arg(long)]
        all: bool,
        /// Don't wait for what comes of it
        #[arg(long)]
        no_wait: bool,
    },
}

/// Does what is asked; the exit status is 2 when it makes no sense.
pub(crate) fn main(command: VmmCommand) -> ExitCode {
    match run(command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => super::refuse(&error, 2),
    }
}

/// False: an update was refused.
fn run(command: VmmCommand) -> anyhow::Result<bool> {
    let data = &command.data_dir;
    let program = match command.vmm_binary {
        Some(program) => program,
        None => std::env::current_exe()?.with_file_name("hearth-vmm"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let running = runtime.block_on(vmms(data, &program));
    let running = running.with_context(|| format!("the VMMs of {}", data.display()))?;
    match command.what {
        What::List => list(&running).map(|()| true),
        What::Update {
            instances,
            all,
            no_wait,
        } => {
            let wanted: BTreeSet<InstanceId> = match all {
                true => {
                    let old = running.into_iter().filter(|vmm| !vmm.is_installed);
                    old.map(|vmm| vmm.instance).collect()
                }
                false => {
                    let runs = |id: &InstanceId| running.iter().any(|vmm| vmm.instance == *id);
                    if let Some(other) = instances.iter().find(|id| !runs(id)) {
                        anyhow::bail!("{other}: it has no VMM here");
                    }
                    instances.into_iter().collect()
                }
            };
            for id in &wanted {
                ask_for_update(data, id).with_context(|| format!("marking {id}"))?;
            }
            if no_wait {
                return Ok(true);
            }
            wait(data, wanted)
        }
    }
}

fn list(running: &[Vmm]) -> anyhow::Result<()> {
    let mut out = io::stdout();
    for vmm in running {
        let (instance, pid, build) = (&vmm.instance, vmm.pid, &vmm.build);
        let version = vmm.version.as_deref().unwrap_or("-");
        let which = if vmm.is_installed {
            "installed"
        } else {
            "other"
        };
        writeln!(out, "{instance}\t{pid}\t{version}\t{build}\t{which}")?;
    }
    Ok(())
}

/// Says what comes of each update as it comes.
fn wait(data: &Path, mut left: BTreeSet<InstanceId>) -> anyhow::Result<bool> {
    let mut out = io::stdout();
    let mut all_well = true;
    let mut news = Instant::now();
    while !left.is_empty() {
        for id in left.clone() {
            let Some(outcome) = update_of(data, &id).with_context(|| format!("looking at {id}"))?
            else {
                continue;
            };
            let line = match outcome {
                None => "it ended before".to_owned(),
                Some(UpdateOutcome {
                    refused: Some(why), ..
                }) => {
                    all_well = false;
                    format!("refused: {why}")
                }
                Some(UpdateOutcome { was, pid, .. }) if was == pid => {
                    format!("{pid} is the installed program")
                }
                Some(UpdateOutcome { was, pid, .. }) => format!("{was} gave way to {pid}"),
            };
            writeln!(out, "{id}\t{line}")?;
            left.remove(&id);
            news = Instant::now();
        }
        if news.elapsed() > SILENCE {
            eprintln!(
                "hearth: waiting for {} more; a hearth serve must run here, and its log says what holds it up",
                left.len()
            );
            news = Instant::now();
        }
        thread::sleep(LOOK_AGAIN);
    }
    Ok(all_well)
}
