//! `--memory`.

use super::options::Options;
use crate::arch::layout::{MAX_MEMORY_MIB, MIB, MIN_MEMORY_MIB};
use crate::memory::{Options as Memory, Pages};

/// The size in bytes, and what the memory is made of.
pub(super) fn parse(text: &str) -> Result<(u64, Memory), String> {
    let (size, options) = match text.split_once(',') {
        Some((size, options)) => (size, Some(options)),
        None => (text, None),
    };
    let range = MIN_MEMORY_MIB..=MAX_MEMORY_MIB;
    let mib = size.parse().ok().filter(|mib| range.contains(mib));
    let mib: u64 = mib.ok_or_else(|| {
        format!("--memory {size}: {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB are allowed")
    })?;
    let mut options = match options {
        Some(options) => Options::new("--memory", options)?,
        None => Options::none("--memory"),
    };
    let shared = options.switch("shared")?;
    let (pages, step) = match options.value("pages")?.unwrap_or("transparent") {
        "transparent" => (Pages::Transparent, 1),
        "4k" => (Pages::Small, 1),
        "2m" => (Pages::Huge2M, 2),
        "1g" => (Pages::Huge1G, 1024),
        other => {
            return Err(format!(
                "--memory: pages is transparent, 4k, 2m or 1g, not {other:?}"
            ));
        }
    };
    options.finish()?;
    if !mib.is_multiple_of(step) {
        return Err(format!(
            "--memory {mib}: these pages are of {step} MiB each"
        ));
    }
    Ok((mib * MIB, Memory { shared, pages }))
}
