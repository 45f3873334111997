//! Runs each subject through each case and prints what it cost, a line
//! `R SUBJECT METRIC VALUE` for each figure and `D SUBJECT CASE` at the end of
//! each case that went well, so that a run that was cut off can go on.

use crate::host::{FirstEntry, HugePages, drop_caches};
use crate::run::Run;
use crate::subject::{MEMORY, Machine, Subject};
use crate::{Arguments, memory, peer, restore};
use anyhow::{Context, Result, bail};
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The guest may say nothing for so long, of the host's clock. In the
/// instruction-counting lab about one heavy run in four hangs with the guest
/// spinning; there a second is 1000 million instructions.
const STALL: Duration = Duration::from_secs(8);

/// A case is tried so often before the rest goes on without it.
const TRIES: u32 = 3;

/// Bytes of the disk; `guest.c` uses the first 64 MiB.
const DISK: usize = 64 << 20;

struct Setup {
    /// Holds vmlinux, bzImage, boot.cpio and io.cpio.
    files: PathBuf,
    /// On the file system that is measured; takes the disk.
    scratch: PathBuf,
    /// Boots of each kind.
    boots: u32,
    /// Passes of the block and network figures in one guest.
    passes: u32,
    /// Makes each pass longer, for fast machines.
    scale: u32,
    /// Extra words on the guest's command line.
    append: String,
}

/// `measure files= scratch= boots= passes= scale= append= case=... subject=NAME:BINARY...
/// [skip=SUBJECT/CASE...]`, with cases boot-elf, boot-bzimage, memory, memory-block, memory-net, block,
/// net, restore, log, exits.
pub(crate) fn measure(arguments: &Arguments) -> Result<()> {
    let setup = Setup {
        files: arguments.one("files")?.into(),
        scratch: arguments.one("scratch")?.into(),
        boots: arguments.one("boots")?.parse().context("boots")?,
        passes: arguments.one("passes")?.parse().context("passes")?,
        scale: arguments.one("scale")?.parse().context("scale")?,
        append: arguments.one("append").unwrap_or("").to_owned(),
    };
    let subjects = arguments
        .all("subject")
        .iter()
        .map(|text| Subject::parse(text))
        .collect::<Result<Vec<_>>>()?;
    peer::serve()?;
    std::fs::write(setup.scratch.join("disk"), vec![0; DISK]).context("the disk")?;

    for case in arguments.all("case") {
        for subject in &subjects {
            let done = format!("{}/{case}", subject.name);
            if arguments.all("skip").contains(&done) {
                continue;
            }
            if case == "exits" && !subject.traces_exits()
                || case.starts_with("boot") && !subject.measures_boot()
                || case == "boot-bzimage" && !subject.boots_bzimage()
                || case.ends_with("block") && !subject.measures_block()
                || case == "restore" && !subject.restores()
            {
                continue;
            }
            for attempt in 1..=TRIES {
                eprintln!("bench: {} {case}", subject.name);
                print("# try", &subject.name, case);
                match one_case(&setup, subject, case) {
                    Ok(figures) => {
                        for (metric, value) in figures {
                            print(&format!("R {}", subject.name), &metric, value);
                        }
                        print("D", &subject.name, case);
                        break;
                    }
                    Err(error) if attempt < TRIES => {
                        eprintln!("bench: {} {case}: try {attempt}: {error:#}", subject.name);
                        print("# again", &subject.name, case);
                    }
                    Err(error) => {
                        eprintln!("bench: {} {case}: given up: {error:#}", subject.name);
                        print("# given up", &subject.name, case);
                        print("D", &subject.name, case);
                    }
                }
            }
        }
    }
    println!("E");
    Ok(())
}

fn print(kind: &str, name: &str, value: impl Display) {
    println!("{kind} {name} {value}");
    let _ = std::io::stdout().flush();
}

type Figures = Vec<(String, String)>;

fn one_case(setup: &Setup, subject: &Subject, case: &str) -> Result<Figures> {
    let mut figures = Figures::new();
    match case {
        "boot-elf" | "boot-bzimage" => {
            let name = case.replace('-', "_");
            let kernel = if case == "boot-elf" {
                "vmlinux"
            } else {
                "bzImage"
            };
            for _ in 0..setup.boots {
                let boot = boot(setup, subject, kernel)?;
                figures.push((name.clone(), format!("{:.3}", boot.total * 1e3)));
                figures.push((
                    format!("{name}_kernel"),
                    format!("{:.3}", boot.kernel * 1e3),
                ));
                let host = boot.total - boot.kernel;
                figures.push((format!("{name}_host"), format!("{:.3}", host * 1e3)));
                if let Some(entry) = boot.entry {
                    figures.push((format!("{name}_entry"), format!("{:.3}", entry * 1e3)));
                }
            }
            if case == "boot-elf" {
                let size = std::fs::metadata(&subject.binary)
                    .context("the binary")?
                    .len();
                figures.push(("binary".into(), (size / 1024).to_string()));
            }
        }
        // A bzImage stays in some VMMs' memory: not the same figure.
        "memory" => {
            // Where huge pages come unasked, what a VMM has of them is chance.
            let _huge_pages = HugePages::only_where_asked_for()?;
            for _ in 0..setup.boots {
                let overhead = boot(setup, subject, "vmlinux")?.overhead;
                figures.push(("memory_rss".into(), overhead.rss.to_string()));
                let dirty = overhead.private_dirty.to_string();
                figures.push(("memory_private_dirty".into(), dirty));
            }
        }
        "memory-block" | "memory-net" => {
            let _huge_pages = HugePages::only_where_asked_for()?;
            let case = case.trim_start_matches("memory-");
            io(setup, subject, case, &mut figures)?;
            figures.retain(|(metric, _)| metric.starts_with("memory"));
        }
        "block" | "net" => {
            io(setup, subject, case, &mut figures)?;
            figures.retain(|(metric, _)| !metric.starts_with("memory"));
        }
        "restore" => {
            let machine = machine(setup, "vmlinux", "answer");
            figures = restore::restore(subject, machine, &setup.scratch, setup.boots, STALL)?;
        }
        "log" => log(setup, subject)?,
        "exits" => exits(setup, subject)?,
        _ => bail!("no case is called `{case}`"),
    }
    Ok(figures)
}

fn machine(setup: &Setup, kernel: &str, case: &str) -> Machine {
    let io = matches!(case, "block" | "net" | "answer" | "exits");
    Machine {
        kernel: setup.files.join(kernel),
        initrd: setup.files.join(if io { "io.cpio" } else { "boot.cpio" }),
        cmdline: format!(
            "console=ttyS0 quiet panic=-1 {} bench={case} passes={} scale={}",
            setup.append, setup.passes, setup.scale
        ),
        disk: matches!(case, "block" | "exits").then(|| setup.scratch.join("disk")),
        nic: matches!(case, "net" | "answer" | "exits"),
        socket: None,
    }
}

/// Seconds.
struct Boot {
    /// From exec to the first line of the guest's init.
    total: f64,
    /// The part that the guest's kernel's own clock saw.
    kernel: f64,
    /// From exec to the guest's first instruction, where the host's kernel tells.
    entry: Option<f64>,
    overhead: memory::Overhead,
}

fn boot(setup: &Setup, subject: &Subject, kernel: &str) -> Result<Boot> {
    let first = FirstEntry::watch();
    let mut run = Run::start(subject.command(&machine(setup, kernel, "boot"), &setup.scratch)?)?;
    let line = run.next(STALL)?;
    let Some(clock) = line.text.strip_prefix("init ") else {
        bail!("`{}` came first", line.text);
    };
    let clock: f64 = clock.parse()?;
    let entry = first.and_then(|first| first.since(run.began()));
    while run.next(STALL)?.text != "done" {}
    let overhead = memory::overhead(run.pid(), MEMORY * 1024)?;
    Ok(Boot {
        total: line.at.as_secs_f64(),
        kernel: clock / 1e9,
        entry,
        overhead,
    })
}

fn io(setup: &Setup, subject: &Subject, case: &str, figures: &mut Figures) -> Result<()> {
    peer::make_tap()?;
    let mut run = Run::start(subject.command(&machine(setup, "vmlinux", case), &setup.scratch)?)?;
    loop {
        let line = run.next(STALL)?;
        if line.text == "done" {
            break;
        }
        if line.text == "cold" {
            drop_caches()?;
        }
        if let Some(figure) = line.text.strip_prefix("r ") {
            let (metric, value) = figure.split_once(' ').context("a figure")?;
            // A sign of life for whoever waits outside the lab.
            print("# figure", metric, value);
            figures.push((metric.to_owned(), value.to_owned()));
        }
    }
    let overhead = memory::overhead(run.pid(), MEMORY * 1024)?;
    figures.push((format!("memory_rss_after_{case}"), overhead.rss.to_string()));
    figures.push((
        format!("memory_private_dirty_after_{case}"),
        overhead.private_dirty.to_string(),
    ));
    Ok(())
}

/// A boot with a disk and an interface, every exit noted: the trace is printed, a line
/// `X` and base64 for each part of it.
fn exits(setup: &Setup, subject: &Subject) -> Result<()> {
    peer::make_tap()?;
    let file = setup.scratch.join("trace");
    let mut command = subject.command(&machine(setup, "vmlinux", "exits"), &setup.scratch)?;
    command
        .arg("--exit-trace")
        .arg(format!("path={},exits=65536", file.display()));
    let mut run = Run::start(command)?;
    while run.next(STALL)?.text != "done" {}
    // At its end it writes the rest.
    run.end()?;
    let output = Command::new("base64")
        .arg("-w")
        .arg("4096")
        .arg(&file)
        .output()?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        println!("X {line}");
    }
    Ok(())
}

/// The guest's kernel log, to see where a boot's time goes.
fn log(setup: &Setup, subject: &Subject) -> Result<()> {
    let mut command =
        subject.command(&machine(setup, "vmlinux", "log"), Path::new(&setup.scratch))?;
    command.stderr(std::process::Stdio::inherit());
    let mut run = Run::start(command)?;
    loop {
        let line = run.next_any(STALL)?;
        println!(
            "L {} {:.6} {}",
            subject.name,
            line.at.as_secs_f64(),
            line.text
        );
        if line.text.ends_with("HEARTH-BENCH done") {
            return Ok(());
        }
    }
}
