//! The part of `--disk` and `--nic` that says how much they may do.

use hearth_vmm_api as api;

use super::options::Options;
use crate::virtio::limit::Limits;

/// Takes `ops`, `ops-burst`, `bytes` and `bytes-burst`, whichever are there.
pub(super) fn take(options: &mut Options<'_>) -> Result<Limits, String> {
    let flag = options.flag();
    let mut number = |key| match options.value(key)? {
        None => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| format!("{flag}: {key} {text:?} is no number")),
    };
    let limits = api::Limits {
        ops: number("ops")?,
        ops_burst: number("ops-burst")?,
        bytes: number("bytes")?,
        bytes_burst: number("bytes-burst")?,
    };
    Limits::try_from(limits).map_err(|mistake| format!("{flag}: {mistake}"))
}
