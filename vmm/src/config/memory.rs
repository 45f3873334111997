//! `--memory`.

use super::options::Options;
use crate::arch;
use crate::arch::layout::{MAX_MEMORY_MIB, MIB, MIN_MEMORY_MIB};
use crate::memory::{Options as Memory, Pages, Pluggable};

/// The size in bytes, what the memory is made of, and where more of it may be plugged.
pub(super) fn parse(text: &str) -> Result<(u64, Memory, Option<Pluggable>), String> {
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
    let most = options.value("max")?;
    options.finish()?;
    if !mib.is_multiple_of(step) {
        return Err(format!(
            "--memory {mib}: these pages are of {step} MiB each"
        ));
    }
    let memory = Memory { shared, pages };
    let place = most.map(|most| place(mib, most, memory)).transpose()?;
    Ok((mib * MIB, memory, place))
}

/// The place for what may be plugged of a memory of `most` MiB that begins with fewer.
fn place(mib: u64, most: &str, memory: Memory) -> Result<Pluggable, String> {
    if memory.shared || !matches!(memory.pages, Pages::Transparent | Pages::Small) {
        return Err("--memory: max goes with private memory of transparent or 4k pages".to_owned());
    }
    let allowed = mib + 1..=MAX_MEMORY_MIB;
    let more = most.parse().ok().filter(|most| allowed.contains(most));
    let more: u64 = more.ok_or_else(|| {
        format!(
            "--memory: max is {} to {MAX_MEMORY_MIB}, not {most:?}",
            mib + 1
        )
    })? - mib;
    let place = arch::memory::pluggable(mib * MIB, more * MIB);
    if !place.size.is_multiple_of(place.block) {
        let step = place.block / MIB;
        return Err(format!(
            "--memory: max is {mib} and a multiple of {step}, not {most}"
        ));
    }
    Ok(place)
}
