//! Measures the file systems under the volumes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::statvfs;

use super::absent_is_fine;
use crate::model::VolumeId;
use crate::storage::Space;

/// Size of the blocks that `st_blocks` counts, in bytes: stat(2).
const BLOCK: u64 = 512;

/// The space under `data` and `volumes`; the lesser of the two where they are
/// different file systems. What lies in a pool is written twice, first into the
/// pool's own page cache: with one, what the kernel has yet to write back counts
/// as written.
pub(super) fn measure(data: &Path, volumes: &Path, pooled: bool) -> io::Result<Space> {
    let (outer, inner) = (statvfs(data)?, statvfs(volumes)?);
    Ok(Space {
        total: outer.f_blocks * outer.f_frsize,
        available: outside(data, pooled)?.min(inner.f_bavail * inner.f_frsize),
        allocated: allocated(volumes)?.values().sum(),
    })
}

/// What can still be written to `data` itself, in bytes.
pub(super) fn outside(data: &Path, pooled: bool) -> io::Result<u64> {
    let outer = statvfs(data)?;
    let available = outer.f_bavail * outer.f_frsize;
    Ok(match pooled {
        true => available.saturating_sub(unwritten(&fs::read_to_string("/proc/meminfo")?)),
        false => available,
    })
}

/// What each volume takes, in bytes. Blocks that it shares with its image count:
/// it won't need them again.
pub(super) fn allocated(volumes: &Path) -> io::Result<BTreeMap<VolumeId, u64>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(volumes)? {
        let entry = entry?;
        let name = entry.file_name();
        let id = name
            .to_str()
            .and_then(|n| n.strip_suffix(".raw"))
            .and_then(|n| n.parse::<VolumeId>().ok());
        let Some(id) = id else { continue };
        // It may have been removed meanwhile.
        let mut blocks = 0;
        absent_is_fine(entry.metadata().map(|m| blocks = m.blocks()))?;
        found.insert(id, blocks * BLOCK);
    }
    Ok(found)
}

/// `Dirty` and `Writeback` of /proc/meminfo, in bytes.
fn unwritten(meminfo: &str) -> u64 {
    let field = |name: &str| -> u64 {
        meminfo
            .lines()
            .find_map(|l| l.strip_prefix(name)?.trim().strip_suffix("kB"))
            .and_then(|n| n.trim().parse().ok())
            .unwrap_or(0)
    };
    (field("Dirty:") + field("Writeback:")) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unwritten_is_dirty_and_on_its_way() {
        let meminfo = "MemFree: 9 kB\nDirty:   12 kB\nWriteback:   4 kB\nWritebackTmp: 7 kB\n";
        assert_eq!(unwritten(meminfo), 16 * 1024);
        assert_eq!(unwritten(""), 0);
    }

    #[test]
    fn holes_take_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let id = VolumeId::from_random(1);
        let file = fs::File::create(dir.path().join(format!("{id}.raw"))).unwrap();
        file.set_len(1 << 30).unwrap();
        fs::write(dir.path().join("other"), [1; 8192]).unwrap();
        assert_eq!(allocated(dir.path()).unwrap(), [(id.clone(), 0)].into());
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 65536], 1 << 20).unwrap();
        file.sync_all().unwrap();
        assert!(allocated(dir.path()).unwrap()[&id] >= 65536);
        let space = measure(dir.path(), dir.path(), false).unwrap();
        assert!(space.available <= space.total && space.allocated >= 65536);
    }
}
