//! `--exit-trace`.

use std::path::PathBuf;

use super::options::Options;

/// Exits of each vCPU that are noted, unless it is said.
const EXITS: u32 = 1 << 20;
/// The most: 512 MiB for each vCPU.
const MOST: u32 = 1 << 24;

/// A trace of exits asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitTrace {
    /// The file.
    pub path: PathBuf,
    /// How many are noted of each vCPU at most.
    pub exits: u32,
}

/// Reads the flag's text.
pub(super) fn parse(text: &str) -> Result<ExitTrace, String> {
    let mut options = Options::new("--exit-trace", text)?;
    let path = options
        .value("path")?
        .ok_or("--exit-trace: path=FILE is missing")?;
    let exits = match options.value("exits")? {
        None => EXITS,
        Some(text) => text
            .parse()
            .ok()
            .filter(|exits| (1..=MOST).contains(exits))
            .ok_or(format!(
                "--exit-trace: exits {text:?}: 1 to {MOST} are allowed"
            ))?,
    };
    options.finish()?;
    Ok(ExitTrace {
        path: path.into(),
        exits,
    })
}
