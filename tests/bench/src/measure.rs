//! Runs each subject through each case and prints what it cost, a line
//! `R SUBJECT METRIC VALUE` for each figure and `D SUBJECT CASE` at the end of
//! each case that went well, so that a run that was cut off can go on.

use crate::run::Run;
use crate::subject::{MEMORY, Machine, Subject};
use crate::{Arguments, memory, peer};
use anyhow::{Context, Result, bail};
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
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
/// [skip=SUBJECT/CASE...]`, with cases bare, boot-elf, boot-bzimage, block, net, log.
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
            if case.starts_with("boot") && !subject.measures_boot()
                || case == "boot-bzimage" && !subject.boots_bzimage()
                || case == "block" && !subject.measures_block()
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
                // A bzImage stays in some VMMs' memory: not the same figure.
                if case == "boot-elf" {
                    figures.push(("memory_rss".into(), boot.overhead.rss.to_string()));
                    figures.push((
                        "memory_private_dirty".into(),
                        boot.overhead.private_dirty.to_string(),
                    ));
                }
            }
            if case == "boot-elf" {
                let size = std::fs::metadata(&subject.binary)
                    .context("the binary")?
                    .len();
                figures.push(("binary".into(), (size / 1024).to_string()));
            }
        }
        "block" | "net" => io(setup, subject, case, &mut figures)?,
        "log" => log(setup, subject)?,
        _ => bail!("no case is called `{case}`"),
    }
    Ok(figures)
}

fn machine(setup: &Setup, kernel: &str, case: &str) -> Machine {
    let io = matches!(case, "block" | "net");
    Machine {
        kernel: setup.files.join(kernel),
        initrd: setup.files.join(if io { "io.cpio" } else { "boot.cpio" }),
        cmdline: format!(
            "console=ttyS0 quiet panic=-1 {} bench={case} passes={} scale={}",
            setup.append, setup.passes, setup.scale
        ),
        disk: (case == "block").then(|| setup.scratch.join("disk")),
        nic: case == "net",
    }
}

/// Seconds.
struct Boot {
    /// From exec to the first line of the guest's init.
    total: f64,
    /// The part that the guest's kernel's own clock saw.
    kernel: f64,
    overhead: memory::Overhead,
}

fn boot(setup: &Setup, subject: &Subject, kernel: &str) -> Result<Boot> {
    let mut run = Run::start(subject.command(&machine(setup, kernel, "boot"), &setup.scratch)?)?;
    let line = run.next(STALL)?;
    let Some(clock) = line.text.strip_prefix("init ") else {
        bail!("`{}` came first", line.text);
    };
    let clock: f64 = clock.parse()?;
    while run.next(STALL)?.text != "done" {}
    let overhead = memory::overhead(run.pid(), MEMORY * 1024)?;
    Ok(Boot {
        total: line.at.as_secs_f64(),
        kernel: clock / 1e9,
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
