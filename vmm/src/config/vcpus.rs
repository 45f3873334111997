//! `--vcpus`.

use super::options::Options;
use crate::arch::layout::MAX_VCPUS;

/// How many at the start, and how many at most, where others may come.
pub(super) fn parse(text: &str) -> Result<(u8, Option<u8>), String> {
    let (count, options) = match text.split_once(',') {
        Some((count, options)) => (count, Options::new("--vcpus", options)?),
        None => (text, Options::none("--vcpus")),
    };
    let mut options = options;
    let number = |text: &str, least: u8| {
        let number = text.parse().ok();
        number.filter(|number| (least..=MAX_VCPUS).contains(number))
    };
    let count =
        number(count, 1).ok_or_else(|| format!("--vcpus {count}: 1 to {MAX_VCPUS} are allowed"))?;
    let most = match options.value("max")? {
        None => None,
        Some(text) => Some(
            number(text, count)
                .ok_or_else(|| format!("--vcpus: max is {count} to {MAX_VCPUS}, not {text:?}"))?,
        ),
    };
    options.finish()?;
    Ok((count, most))
}
