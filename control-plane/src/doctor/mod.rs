//! `hearth doctor`: what this machine has and lacks for running instances, and
//! what to do about it.
//!
//! [`probe`] tries things out and gathers [`Facts`]; [`checks`] judges them and
//! is pure; [`kvm`] runs a tiny guest, since a `/dev/kvm` by itself says little.

use std::process::ExitCode;

pub mod checks;
pub mod kvm;
pub mod probe;
mod sandbox;

pub use checks::{Facts, Level, Row};

/// Prints the table, or with `--brief` only one line for each reason why no
/// instance can run here. The exit status is 0 if instances can run here.
#[allow(clippy::print_stdout)] // the table is this program's result
#[must_use]
pub fn main() -> ExitCode {
    let brief = std::env::args().any(|argument| argument == "--brief");
    let rows = checks::judge(&probe::gather());
    let able = checks::able(&rows);
    if brief {
        for row in rows.iter().filter(|row| row.level == Level::Missing) {
            println!("{}: {}", row.name, row.found);
        }
    } else {
        print!("{}", checks::table(&rows));
        println!(
            "\n{}",
            if able {
                "Instances can run on this machine."
            } else {
                "Instances can't run on this machine itself; scripts/up runs the cloud in the lab instead."
            }
        );
    }
    if able {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
