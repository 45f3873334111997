//! The stopwatch of `scripts/bench`: runs hearth-vmm and its peers, one after
//! another, with the same kernel and the same guest, and writes down what each
//! cost.
//!
//! | piece | what it is |
//! |---|---|
//! | [`subject`] | the VMMs, each with its command line |
//! | [`run`] | one run of one VMM: exec, the guest's lines with the time of each, the end |
//! | [`snapshot`] | how each saves a machine and goes on, over its [`socket`] |
//! | [`restore`] | what going on costs |
//! | [`memory`] | what a process holds beyond its guest's memory |
//! | [`host`] | what the host's kernel is told, and asked: huge pages, the first entry |
//! | [`peer`] | the network's other end |
//! | [`report`] | medians and ratios, as a table |
//! | [`launch`] | what a launch by the control plane costs, and [`bare`], its VMM alone |
//!
//! `hearth-bench launch` is apart from these: it calls a `hearth` that serves.
//!
//! `hearth-bench measure` runs inside the KVM host, as root, in a network
//! namespace of its own; `hearth-bench report` reads what it wrote.
//!
//! Its clock is the host's monotonic one. In the instruction-counting lab the
//! TSC behind that clock advances by one nanosecond with each instruction, of
//! host and guest together, so that the same code counts instructions there.
#![expect(clippy::print_stdout, reason = "figures are what it is for")]

mod api;
mod bare;
mod host;
mod launch;
mod measure;
mod memory;
mod peer;
mod report;
mod restore;
mod run;
mod snapshot;
mod socket;
mod subject;

use anyhow::{Result, bail};
use std::collections::BTreeMap;

/// `name=value` arguments; a name may come more than once.
pub(crate) struct Arguments(BTreeMap<String, Vec<String>>);

impl Arguments {
    fn parse(words: impl Iterator<Item = String>) -> Result<Self> {
        let mut map: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for word in words {
            let Some((name, value)) = word.split_once('=') else {
                bail!("`{word}` is not NAME=VALUE");
            };
            map.entry(name.to_owned())
                .or_default()
                .push(value.to_owned());
        }
        Ok(Self(map))
    }

    pub(crate) fn all(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn one(&self, name: &str) -> Result<&str> {
        match self.all(name) {
            [value] => Ok(value),
            _ => bail!("`{name}=` is needed once"),
        }
    }
}

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let arguments = Arguments::parse(words)?;
    match command.as_str() {
        "measure" => measure::measure(&arguments),
        "launch" => launch::launch(&arguments),
        "report" => report::report(&arguments),
        _ => bail!("usage: hearth-bench measure|launch|report NAME=VALUE..."),
    }
}
