//! What a VMM holds beyond its guest's memory, from `/proc/PID/smaps`.

use anyhow::{Context, Result, bail};

/// kB, summed over every mapping but the guest's memory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Overhead {
    pub(crate) rss: u64,
    pub(crate) private_dirty: u64,
}

/// One mapping, or several neighbours that differ only in where they end.
#[derive(Debug, Default, Clone)]
struct Mapping {
    start: u64,
    end: u64,
    /// Permissions and backing file.
    kind: String,
    rss: u64,
    private_dirty: u64,
}

impl Mapping {
    fn size_kb(&self) -> u64 {
        (self.end - self.start) / 1024
    }
}

/// The overhead of the process `pid`, whose guest has `guest_kb` of memory.
pub(crate) fn overhead(pid: u32, guest_kb: u64) -> Result<Overhead> {
    let path = format!("/proc/{pid}/smaps");
    parse(&std::fs::read_to_string(&path).context(path)?, guest_kb)
}

fn mappings(smaps: &str) -> Result<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some(field) = first.strip_suffix(':') {
            let Some(mapping) = mappings.last_mut() else {
                continue;
            };
            let mut kb = || -> u64 { words.next().and_then(|w| w.parse().ok()).unwrap_or(0) };
            match field {
                "Rss" => mapping.rss = kb(),
                "Private_Dirty" => mapping.private_dirty = kb(),
                _ => {}
            }
        } else if let Some((start, end)) = first.split_once('-') {
            let permissions = words.next().unwrap_or("");
            let file = words.nth(3).unwrap_or("");
            mappings.push(Mapping {
                start: u64::from_str_radix(start, 16)?,
                end: u64::from_str_radix(end, 16)?,
                kind: format!("{permissions} {file}"),
                ..Mapping::default()
            });
        }
    }
    Ok(mappings)
}

/// Joins neighbours of one kind.
fn joined(mappings: &[Mapping]) -> Vec<Mapping> {
    let mut joined: Vec<Mapping> = Vec::new();
    for mapping in mappings {
        match joined.last_mut() {
            Some(last) if last.end == mapping.start && last.kind == mapping.kind => {
                last.end = mapping.end;
                last.rss += mapping.rss;
                last.private_dirty += mapping.private_dirty;
            }
            _ => joined.push(mapping.clone()),
        }
    }
    joined
}

/// Guest memory is the writable mapping of its size, or writable neighbours
/// that have it together: a VMM may map it around the hole below 1 MiB, so
/// that up to 2 MiB are missing (what is left out counts against the VMM), and
/// the kernel may have joined it with the VMM's own beside it (which then
/// doesn't count; at most 16 MiB).
fn parse(smaps: &str, guest_kb: u64) -> Result<Overhead> {
    let single = mappings(smaps)?;
    let several = joined(&single);
    let find = |mappings: &[Mapping], more: u64| {
        let fits = guest_kb - 2048..=guest_kb + more;
        mappings
            .iter()
            .find(|m| m.kind.starts_with("rw") && fits.contains(&m.size_kb()))
            .cloned()
    };
    let guest = find(&single, 0)
        .or_else(|| find(&several, 0))
        .or_else(|| find(&several, 16_384));
    let Some(guest) = guest else {
        bail!("no mapping of {guest_kb} kB: where is the guest's memory?");
    };
    let own = || {
        single
            .iter()
            .filter(|m| m.end <= guest.start || m.start >= guest.end)
    };
    Ok(Overhead {
        rss: own().map(|m| m.rss).sum(),
        private_dirty: own().map(|m| m.private_dirty).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0c0000000-55d0c0100000 r-xp 00000000 08:01 12 /usr/bin/vmm
Size:               1024 kB
Rss:                 600 kB
Private_Dirty:         0 kB
7f0000000000-7f0004000000 rw-p 00000000 00:00 0
Size:              65536 kB
Rss:               30000 kB
Private_Dirty:     30000 kB
7f0004000000-7f0008000000 rw-p 00000000 00:00 0
Size:              65536 kB
Rss:               10000 kB
Private_Dirty:     10000 kB
7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0 [stack]
Size:                132 kB
Rss:                  40 kB
Private_Dirty:        36 kB
";

    #[test]
    fn the_guests_memory_is_left_out_even_in_two_parts() {
        let overhead = parse(SMAPS, 131_072).unwrap();
        assert_eq!(
            overhead,
            Overhead {
                rss: 640,
                private_dirty: 36
            }
        );
    }

    #[test]
    fn a_process_without_a_guest_is_an_error() {
        assert!(parse(SMAPS, 1 << 20).is_err());
    }
}
