//! Copies that keep the holes, where nothing can be cloned.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, fstatfs};
use rustix::io::Errno;

/// XFS, of `linux/magic.h`. Before Linux 6.8 it takes data for a hole in a clone that was
/// written to (`xfs_seek_iomap_begin`, "fix SEEK_HOLE/DATA for regions with active COW
/// extents"), and so it is not asked.
const XFS_SUPER_MAGIC: i64 = 0x5846_5342;

/// Copies all but the holes. The target is empty.
pub(super) fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let knows_its_holes = fstatfs(from)?.f_type != XFS_SUPER_MAGIC;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let mut end = size;
        if knows_its_holes {
            at = match rustix::fs::seek(from, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(e) => return Err(e.into()),
            };
            end = rustix::fs::seek(from, SeekFrom::Hole(at))?;
        }
        while at < end {
            let want = usize::try_from(end - at).map_or(buffer.len(), |n| n.min(buffer.len()));
            let n = from.read_at(&mut buffer[..want], at)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // A file system that doesn't know its holes shows them as zeroes.
            if buffer[..n].iter().any(|b| *b != 0) {
                to.write_all_at(&buffer[..n], at)?;
            }
            at += n as u64;
        }
    }
    Ok(())
}
