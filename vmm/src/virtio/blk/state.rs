//! The saved state of a disk: by what to know that it is the one that its guest knows. Its
//! bytes are the file's.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::{Block, SECTOR_SIZE};
use crate::snapshot::Refused;

/// [`Block`], saved. Virtio 1.2, sections 5.2.4 and 5.2.6.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BlockV1 {
    /// What a request for its id answers, without the zeroes behind it.
    pub serial: String,
    /// Whether the guest can't write.
    pub read_only: bool,
    /// The size that the guest knows, in sectors of 512 bytes.
    pub sectors: u64,
}

impl Block {
    pub(super) fn state(&self) -> BlockV1 {
        let serial = String::from_utf8_lossy(&self.shared.id);
        BlockV1 {
            serial: serial.trim_end_matches('\0').to_owned(),
            read_only: self.shared.backend.read_only(),
            sectors: self.shared.sectors.load(Ordering::SeqCst),
        }
    }

    /// Whether it is the disk that its driver knows, which read all this once.
    pub(super) fn check(&self, saved: &BlockV1) -> Result<(), Refused> {
        let here = self.state();
        let refuse = |wrong: String| Err(Refused::because(wrong));
        if here.serial != saved.serial {
            let (here, there) = (here.serial, &saved.serial);
            return refuse(format!("its serial is {here:?} here and {there:?} there"));
        }
        if here.read_only != saved.read_only {
            let is = |read_only| if read_only { "read-only" } else { "writable" };
            let (here, there) = (is(here.read_only), is(saved.read_only));
            return refuse(format!("it is {here} here and {there} there"));
        }
        if here.sectors != saved.sectors {
            let size = |sectors: u64| u128::from(sectors) * u128::from(SECTOR_SIZE);
            let (has, had) = (size(here.sectors), size(saved.sectors));
            let hint = match has > had {
                true => ": grow it after the restore",
                false => "",
            };
            return refuse(format!("it has {has} bytes here and {had} there{hint}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Options;
    use crate::block::Backend;
    use crate::virtio::VirtioDevice;
    use crate::virtio::blk::Block;

    fn disk(serial: &str, bytes: u64, read_only: bool) -> Block {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(bytes).expect("grows");
        let options = Options {
            serial: serial.into(),
            ..Options::default()
        };
        let backend = Backend::from_file(file, read_only).expect("a disk");
        Block::new(backend, &options).expect("a device")
    }

    #[test]
    fn another_disk_is_refused() {
        let saved = disk("vol1", 8192, false).save();
        let state = json!({"serial": "vol1", "read_only": false, "sectors": 16});
        assert_eq!(saved, state);
        assert_eq!(disk("vol1", 8192, false).restore(&saved), Ok(()));
        for (mut other, why) in [
            (
                disk("vol2", 8192, false),
                r#"its serial is "vol2" here and "vol1" there"#,
            ),
            (
                disk("vol1", 8192, true),
                "it is read-only here and writable there",
            ),
            (
                disk("vol1", 4096, false),
                "it has 4096 bytes here and 8192 there",
            ),
            (
                disk("vol1", 16384, false),
                "it has 16384 bytes here and 8192 there: grow it after the restore",
            ),
        ] {
            let refused = other.restore(&saved).expect_err("another disk");
            assert_eq!(refused.to_string(), why);
        }
    }

    #[test]
    fn the_size_that_is_saved_is_the_one_that_the_guest_knows() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(8192).expect("grows");
        let backend = file
            .try_clone()
            .and_then(|file| Backend::from_file(file, false));
        let disk = Block::new(backend.expect("a disk"), &Options::default());
        let disk = disk.expect("a device");
        file.set_len(16384).expect("grows");
        assert_eq!(disk.save()["sectors"], 16);
        let handle = disk.handle();
        handle.resized(handle.size().expect("a size"));
        assert_eq!(disk.save()["sectors"], 32);
    }
}
