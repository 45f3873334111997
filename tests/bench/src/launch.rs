//! What a launch by the control plane costs: from the call of RunInstances to the
//! guest's first instruction, step by step, and beyond what the bare VMM costs.
//!
//! One instance runs all the while, so that the host is warm: its image's boot files
//! are kept, its VPC is there. Each launch that is measured ends before the next.
//!
//! And from there to user data that runs, from cold or, with `warm=yes`, from a template
//! that is waited for: the time at which the console's log was last written, which user
//! data does and then sleeps. The kernel's clock for files ticks every 4 ms.

use anyhow::{Context, Result, bail};
use hearth_vmm_api::Start;
use jiff::Timestamp;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::Arguments;
use crate::api::{Answer, Client};
use crate::bare;

/// How often something is looked for, a second apart.
const TRIES: u32 = 120;
/// How long a guest has until it has nothing to do any more.
const SETTLE: Duration = Duration::from_secs(10);

/// What user data says when it runs.
const RUNS: &str = "user data runs";

/// Steps that have less in common follow each other, in million instructions.
const TOUCH: f64 = 0.2;

/// What `hearth trace --json` prints.
#[derive(Debug, Deserialize)]
struct Record {
    asked: Timestamp,
    steps: Vec<Step>,
    vmm: Option<Start>,
    error: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Step {
    step: String,
    from: Timestamp,
    to: Timestamp,
}

/// A launch, in nanoseconds since its call was sent.
struct Launch {
    /// Its steps: name, begin, end.
    steps: Vec<(String, i128, i128)>,
    entered: i128,
    /// When user data ran.
    ready: i128,
    shown: String,
    /// What its guest said until then.
    console: String,
}

struct Bench {
    client: Client,
    hearth: String,
    data: String,
    image: String,
}

fn every_second<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    for _ in 0..TRIES {
        if let Some(found) = look()? {
            return Ok(found);
        }
        thread::sleep(Duration::from_secs(1));
    }
    bail!("never: {what}")
}

impl Bench {
    fn run_instance(&self, kind: &str) -> Result<(String, Answer)> {
        let answer = self.client.call(
            "RunInstances",
            &[
                ("ImageId", &self.image),
                ("InstanceType", kind),
                ("MinCount", "1"),
                ("MaxCount", "1"),
                // "#!/bin/sh\necho user data runs\nexec sleep 10000\n"
                (
                    "UserData",
                    "IyEvYmluL3NoCmVjaG8gdXNlciBkYXRhIHJ1bnMKZXhlYyBzbGVlcCAxMDAwMAo%3D",
                ),
            ],
        )?;
        let id = answer.element("instanceId").context("no instance")?;
        Ok((id.to_owned(), answer))
    }

    fn trace(&self, id: &str, flags: &[&str]) -> Result<Option<String>> {
        let output = Command::new(&self.hearth)
            .args(["trace", "--data-dir", &self.data, id])
            .args(flags)
            .output()?;
        Ok(output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// Waits until its trace is there.
    fn launched(&self, id: &str) -> Result<Record> {
        let text = every_second("launched", || self.trace(id, &["--json"]))?;
        let record: Record = serde_json::from_str(&text)?;
        if let Some(error) = record.error {
            bail!("{id}: {error}");
        }
        Ok(record)
    }

    fn in_state(&self, id: &str, state: &str) -> Result<()> {
        every_second(state, || {
            let answer = self
                .client
                .call("DescribeInstances", &[("InstanceId.1", id)])?;
            Ok(answer
                .body
                .contains(&format!("<name>{state}</name>"))
                .then_some(()))
        })
    }

    /// Waits until its user data runs. Returns when that was, in nanoseconds, and its
    /// console.
    fn ready(&self, id: &str) -> Result<(i128, String)> {
        let console = Path::new(&self.data).join(format!("instances/{id}/vmm/console.log"));
        let text = every_second("user data runs", || {
            let text = std::fs::read(&console).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            Ok(text.contains(RUNS).then_some(text))
        })?;
        let written = std::fs::metadata(&console)?.modified()?;
        Ok((Timestamp::try_from(written)?.as_nanosecond(), text))
    }

    fn templates(&self) -> usize {
        let entries = std::fs::read_dir(Path::new(&self.data).join("templates"));
        let names = entries.into_iter().flatten().flatten();
        names
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
            .count()
    }

    fn measure(&self, kind: &str) -> Result<Launch> {
        let (id, answer) = self.run_instance(kind)?;
        // Who asks meanwhile would be measured too.
        thread::sleep(Duration::from_secs(2));
        let record = self.launched(&id)?;
        let since = |at: Timestamp| at.duration_since(answer.sent).as_nanos();
        let at = |ns: u64| i128::from(ns) - answer.sent.as_nanosecond();
        let vmm = record.vmm.context("the VMM says nothing")?;
        let entered = at(vmm.entered_ns.context("the guest never ran")?);
        let mut steps = vec![
            (
                "call sent, until it is taken".to_owned(),
                0,
                since(record.asked),
            ),
            (
                "call taken, until it is answered".to_owned(),
                since(record.asked),
                since(answer.answered),
            ),
        ];
        for step in record.steps {
            steps.push((step.step, since(step.from), since(step.to)));
        }
        steps.push((
            "the VMM, up to the guest's first instruction".to_owned(),
            at(vmm.began_ns),
            entered,
        ));
        let (ready, console) = self.ready(&id)?;
        let ready = ready - answer.sent.as_nanosecond();
        let shown = self.trace(&id, &[])?.unwrap_or_default();
        self.in_state(&id, "running")?;
        self.client
            .call("TerminateInstances", &[("InstanceId.1", &id)])?;
        self.in_state(&id, "terminated")?;
        thread::sleep(Duration::from_secs(1));
        Ok(Launch {
            steps,
            entered,
            ready,
            shown,
            console,
        })
    }
}

/// Least, median, most.
fn spread(mut of: Vec<i128>) -> [f64; 3] {
    of.sort_unstable();
    #[allow(clippy::cast_precision_loss)]
    [of[0], of[of.len() / 2], of[of.len() - 1]].map(|ns| ns as f64 / 1e6)
}

fn table(kind: &str, launches: &[Launch], bare: &[i128]) {
    println!("\n### {kind}, {} launches\n", launches.len());
    println!("| step | begins at | takes: least | median | most |");
    println!("|---|---|---|---|---|");
    let mut steps: BTreeMap<(i128, String), ([f64; 3], [f64; 3])> = BTreeMap::new();
    for (name, _, _) in &launches[0].steps {
        let all = || {
            let of = |launch: &Launch| launch.steps.iter().find(|s| s.0 == *name).cloned();
            launches.iter().filter_map(of)
        };
        let from = spread(all().map(|s| s.1).collect());
        let took = spread(all().map(|s| s.2 - s.1).collect());
        #[allow(clippy::cast_possible_truncation)]
        steps.insert(((from[1] * 1e6) as i128, name.clone()), (from, took));
    }
    let spans: Vec<(f64, f64)> = steps.values().map(|(f, t)| (f[1], f[1] + t[1])).collect();
    for (n, ((_, name), (from, took))) in steps.iter().enumerate() {
        let (begin, end) = spans[n];
        // Medians are not of one launch: what touches may overlap by a hair.
        let beside = |(m, other): (usize, &(f64, f64))| {
            m != n && end.min(other.1) - begin.max(other.0) > TOUCH
        };
        let side = if spans.iter().enumerate().any(beside) {
            "∥ "
        } else {
            ""
        };
        println!(
            "| {side}{name} | {:.1} | {:.1} | {:.1} | {:.1} |",
            from[1], took[0], took[1], took[2]
        );
    }
    let row = |name: &str, [least, median, most]: [f64; 3]| {
        println!("| {name} | | {least:.1} | {median:.1} | {most:.1} |");
    };
    let all = launches.iter().map(|launch| launch.entered);
    row(
        "**call sent, until the guest's first instruction**",
        spread(all.clone().collect()),
    );
    let mut sorted = bare.to_vec();
    sorted.sort_unstable();
    if let Some(own) = sorted.get(sorted.len() / 2) {
        row(
            "bare VMM, exec until the guest's first instruction",
            spread(bare.to_vec()),
        );
        row(
            "**overhead beyond the bare VMM**",
            spread(all.map(|ns| ns - own).collect()),
        );
    }
    row(
        "**call sent, until user data runs**",
        spread(launches.iter().map(|launch| launch.ready).collect()),
    );
}

/// Measures, and prints tables in million instructions or milliseconds.
pub(crate) fn launch(arguments: &Arguments) -> Result<()> {
    let client = Client {
        address: arguments.one("address")?.to_owned(),
        access_key: arguments.one("access-key")?.to_owned(),
        secret_key: arguments.one("secret-key")?.to_owned(),
    };
    let image = every_second("an image", || {
        let Ok(answer) = client.call("DescribeImages", &[]) else {
            return Ok(None);
        };
        Ok(answer.element("imageId").map(str::to_owned))
    })?;
    let bench = Bench {
        client,
        hearth: arguments.one("hearth")?.to_owned(),
        data: arguments.one("data")?.to_owned(),
        image,
    };
    let launches: usize = arguments.one("launches")?.parse()?;
    let is_warm = arguments.one("warm")? == "yes";
    eprintln!("bench: the first launch");
    let (first, _) = bench.run_instance("t2.nano")?;
    bench.launched(&first)?;
    thread::sleep(SETTLE);
    for kind in arguments.all("type") {
        eprintln!("bench: {kind}{}", if is_warm { ", warm" } else { "" });
        if is_warm {
            let before = bench.templates();
            // None that it begins with has one of this type but the first.
            if *kind != "t2.nano" {
                let (id, _) = bench.run_instance(kind)?;
                bench.launched(&id)?;
                every_second("a template", || {
                    Ok((bench.templates() > before).then_some(()))
                })?;
                bench
                    .client
                    .call("TerminateInstances", &[("InstanceId.1", &id)])?;
                bench.in_state(&id, "terminated")?;
            } else {
                every_second("a template", || Ok((bench.templates() > 0).then_some(())))?;
            }
            thread::sleep(SETTLE);
        }
        let mut measured = Vec::new();
        for _ in 0..launches {
            measured.push(bench.measure(kind)?);
            eprintln!("bench: {kind}: {}", measured.len());
        }
        if is_warm {
            table(&format!("{kind}, from a template"), &measured, &[]);
            show(&measured);
            continue;
        }
        // One more, for its command line.
        let (id, _) = bench.run_instance(kind)?;
        bench.launched(&id)?;
        thread::sleep(SETTLE);
        let folder = Path::new(&bench.data).join("instances").join(&id);
        let pid = std::fs::read_to_string(folder.join("vmm/vmm.pid"))?;
        let line = bare::command_line(pid.trim().parse()?)?;
        let group = Path::new("/sys/fs/cgroup/hearth").join(&id);
        let scratch = Path::new(&bench.data).join("bare");
        let mut alone = Vec::new();
        // The first warms up.
        for n in 0..=launches {
            let took = bare::run(&line, &group, &scratch)?;
            eprintln!("bench: bare VMM: {took:?}");
            if n > 0 {
                alone.push(i128::try_from(took.as_nanos())?);
            }
        }
        bench
            .client
            .call("TerminateInstances", &[("InstanceId.1", &id)])?;
        bench.in_state(&id, "terminated")?;
        table(kind, &measured, &alone);
        show(&measured);
    }
    Ok(())
}

fn show(measured: &[Launch]) {
    if let Some(last) = measured.last() {
        println!(
            "\nThe last of them, as `hearth trace` and its console show it:\n\n```\n{}```\n\n```\n{}\n```",
            last.shown,
            last.console.trim().replace('\r', "")
        );
    }
}
