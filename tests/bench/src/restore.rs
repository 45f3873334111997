//! What it costs to go on from a saved machine: from exec to the guest's first
//! instruction, and to the first question that it answers on the network.

use crate::host::{FirstEntry, HugePages};
use crate::run::Run;
use crate::socket::Awaited;
use crate::subject::{MEMORY, Machine, Subject};
use crate::{memory, peer};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// The guest has so long until it has nothing to do any more, and its VMM.
const SETTLE: Duration = Duration::from_secs(2);

/// A machine that was saved.
pub(crate) struct Saved {
    folder: PathBuf,
    machine: Machine,
}

impl Saved {
    /// Boots `machine`, saves it once its guest says `word`, and ends it.
    pub(crate) fn new(
        subject: &Subject,
        mut machine: Machine,
        scratch: &Path,
        word: &str,
        stall: Duration,
    ) -> Result<Self> {
        let folder = scratch.join("saved");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).context("a folder for what is saved")?;
        let sockets = scratch.join("sockets");
        fs::create_dir_all(&sockets)?;
        let socket = sockets.join("api");
        let _ = fs::remove_file(&socket);
        machine.socket = Some(socket.clone());
        let mut run = Run::start(subject.command(&machine, scratch)?)?;
        while run.next(stall)?.text != word {}
        if machine.nic && peer::first_answer(Instant::now() + stall)?.is_none() {
            bail!("it doesn't answer before it is saved");
        }
        thread::sleep(SETTLE);
        subject.save(&socket, &folder, stall)?;
        Ok(Self { folder, machine })
    }
}

/// A machine that goes on. Times are seconds since exec.
struct Restored {
    /// None where the kernel doesn't say it.
    entry: Option<f64>,
    answer: f64,
    overhead: memory::Overhead,
}

fn once(subject: &Subject, saved: &Saved, scratch: &Path, stall: Duration) -> Result<Restored> {
    peer::make_tap()?;
    let socket = saved.machine.socket.as_deref().context("a socket")?;
    let _ = fs::remove_file(socket);
    let awaited = Awaited::new(socket)?;
    let command = subject.restoring(&saved.machine, &saved.folder, scratch)?;
    let first = FirstEntry::watch();
    let mut run = Run::start(command)?;
    let until = run.began() + stall;
    let asked = if subject.is_asked_to_load() {
        Some(subject.load(awaited.connect(until)?, &saved.folder)?)
    } else {
        None
    };
    let answer = peer::first_answer(until)?;
    let entry = first.and_then(|first| first.since(run.began()));
    if let Some(asked) = asked {
        asked.answer()?;
    }
    let Some(answer) = answer else {
        // Its last lines may say why.
        run.next(Duration::ZERO)?;
        bail!("it doesn't answer");
    };
    thread::sleep(SETTLE);
    Ok(Restored {
        entry,
        answer: answer.duration_since(run.began()).as_secs_f64(),
        overhead: memory::overhead(run.pid(), MEMORY * 1024)?,
    })
}

/// Saves `machine` once and goes on from that so often, after once that warms up.
pub(crate) fn restore(
    subject: &Subject,
    machine: Machine,
    scratch: &Path,
    times: u32,
    stall: Duration,
) -> Result<Vec<(String, String)>> {
    let _huge_pages = HugePages::only_where_asked_for()?;
    peer::make_tap()?;
    let saved = Saved::new(subject, machine, scratch, "ready", stall)?;
    let mut figures = Vec::new();
    for n in 0..=times {
        let restored = once(subject, &saved, scratch, stall)?;
        if n == 0 {
            continue;
        }
        let mut push = |metric: &str, value: String| figures.push((metric.to_owned(), value));
        if let Some(entry) = restored.entry {
            push("restore_entry", format!("{:.3}", entry * 1e3));
        }
        push("restore_answer", format!("{:.3}", restored.answer * 1e3));
        push("memory_rss_restored", restored.overhead.rss.to_string());
        let dirty = restored.overhead.private_dirty.to_string();
        push("memory_private_dirty_restored", dirty);
    }
    Ok(figures)
}
