//! Against real ext4 file systems, as mke2fs makes them.

use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::compute::MAX_KERNEL;

/// A folder for the root of the file system, and where the disk is made.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir_all(bench.root().join("boot")).unwrap();
        bench
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        std::fs::write(self.root().join(path), bytes).unwrap();
    }

    fn link(&self, target: &str, path: &str) {
        symlink(target, self.root().join(path)).unwrap();
    }

    /// The bare file system, 16 MiB.
    fn file_system(&self) -> PathBuf {
        let path = self.dir.path().join("fs.raw");
        let program = ["/usr/sbin/mke2fs", "/sbin/mke2fs"]
            .into_iter()
            .find(|p| Path::new(p).exists())
            .expect("this test needs mke2fs (apt install e2fsprogs)");
        let done = Command::new(program)
            .args(["-q", "-t", "ext4", "-d"])
            .arg(self.root())
            .arg(&path)
            .arg("16M")
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        path
    }

    /// The file system on partition 1 of a GPT disk.
    fn gpt_disk(&self) -> PathBuf {
        let path = self.dir.path().join("disk.raw");
        let fs = std::fs::read(self.file_system()).unwrap();
        let mut disk = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        let start = 2048;
        disk.set_len(fs.len() as u64 + 4096 * 512).unwrap();
        let mut gpt = gptman::GPT::new_from(&mut disk, 512, [7; 16]).unwrap();
        gpt[1] = gptman::GPTPartitionEntry {
            partition_type_guid: [1; 16],
            unique_partition_guid: [2; 16],
            starting_lba: start,
            ending_lba: start + fs.len() as u64 / 512 - 1,
            attribute_bits: 0,
            partition_name: "root".into(),
        };
        gpt.write_into(&mut disk).unwrap();
        gptman::GPT::write_protective_mbr_into(&mut disk, 512).unwrap();
        disk.write_all_at(&fs, start * 512).unwrap();
        path
    }
}

fn read(disk: &Path, partition: u32, path: &str, limit: u64) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let n = open(File::open(disk).unwrap(), partition)
        .and_then(|fs| extract(&fs, path, limit, &mut out))
        .map_err(|e| e.to_string())?;
    assert_eq!(n, out.len() as u64);
    Ok(out)
}

/// Overwrites part of a disk.
fn scribble(disk: &Path, offset: u64, bytes: &[u8]) {
    File::options()
        .write(true)
        .open(disk)
        .unwrap()
        .write_all_at(bytes, offset)
        .unwrap();
}

/// Something that differs in every block.
fn contents(len: u32) -> Vec<u8> {
    (0..len).flat_map(|n| (n / 3).to_le_bytes()).collect()
}

#[test]
fn follows_links_as_debian_makes_them() {
    let bench = Bench::new();
    bench.write("boot/vmlinuz-6.1", &contents(300_000));
    bench.link("boot/vmlinuz-6.1", "vmlinuz");
    bench.link("/boot/../vmlinuz", "boot/absolute");
    for (disk, partition) in [(bench.file_system(), 0), (bench.gpt_disk(), 1)] {
        for path in ["/vmlinuz", "/boot/absolute", "/boot/vmlinuz-6.1"] {
            let got = read(&disk, partition, path, MAX_KERNEL).unwrap();
            assert!(got == contents(300_000), "{path} on {partition}");
        }
    }
}

#[test]
fn an_mbr_disk() {
    let bench = Bench::new();
    bench.write("vmlinuz", b"kernel");
    let fs = std::fs::read(bench.file_system()).unwrap();
    let disk = bench.dir.path().join("mbr.raw");
    let mut mbr = vec![0; 512];
    mbr[446 + 4] = 0x83;
    mbr[446 + 8..446 + 12].copy_from_slice(&64_u32.to_le_bytes());
    let sectors = u32::try_from(fs.len() / 512).unwrap();
    mbr[446 + 12..446 + 16].copy_from_slice(&sectors.to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(&disk, &mbr).unwrap();
    scribble(&disk, 64 * 512, &fs);
    assert_eq!(read(&disk, 1, "/vmlinuz", 100).unwrap(), b"kernel");
    assert!(
        read(&disk, 2, "/vmlinuz", 100)
            .unwrap_err()
            .contains("no partition 2")
    );
    assert!(
        read(&disk, 5, "/vmlinuz", 100)
            .unwrap_err()
            .contains("logical")
    );

    // A partition that claims more than the disk has.
    scribble(&disk, 446 + 12, &u32::MAX.to_le_bytes());
    assert!(
        read(&disk, 1, "/vmlinuz", 100)
            .unwrap_err()
            .contains("past the disk's end")
    );
}

#[test]
fn what_is_not_a_kernel_is_named() {
    let bench = Bench::new();
    bench.write("empty", b"");
    bench.write("big", &[1; 5000]);
    bench.link("loop-b", "loop-a");
    bench.link("loop-a", "loop-b");
    bench.link("gone", "dangling");
    bench.link("/etc/hostname", "outside");
    let disk = bench.file_system();
    for (path, complaint) in [
        ("/vmlinuz", "/vmlinuz: "),
        ("/boot", "/boot: "),
        ("/empty", "/empty is empty"),
        ("/big", "/big has 5000 bytes, more than the 4999"),
        ("/loop-a", "/loop-a: "),
        ("/dangling", "/dangling: "),
        // A link leads nowhere but into the file system itself.
        ("/outside", "/outside: "),
        ("relative", "relative: "),
    ] {
        let line = read(&disk, 0, path, 4999).unwrap_err();
        assert!(line.contains(complaint), "{path}: {line}");
        assert!(!line.contains('\n'), "{line}");
    }
}

#[test]
fn a_damaged_table_is_read_from_the_other_or_refused() {
    let bench = Bench::new();
    bench.write("vmlinuz", b"kernel");
    let disk = bench.gpt_disk();
    scribble(&disk, 512, &[0xff; 92]);
    assert_eq!(read(&disk, 1, "/vmlinuz", 100).unwrap(), b"kernel");
    assert!(
        read(&disk, 9, "/vmlinuz", 100)
            .unwrap_err()
            .contains("no partition 9")
    );

    // Cut off behind the first header: no entries, and no second table.
    let file = File::options().write(true).open(&disk).unwrap();
    file.set_len(1024).unwrap();
    let line = read(&disk, 1, "/vmlinuz", 100).unwrap_err();
    assert!(line.contains("damaged"), "{line}");
    file.set_len(600).unwrap();
    assert!(read(&disk, 1, "/vmlinuz", 100).is_err());
    file.set_len(0).unwrap();
    assert!(read(&disk, 1, "/vmlinuz", 100).is_err());
    std::fs::write(&disk, [0; 4096]).unwrap();
    let line = read(&disk, 1, "/vmlinuz", 100).unwrap_err();
    assert!(line.contains("no partition table"), "{line}");
}

#[test]
fn a_corrupt_file_system_is_an_error_and_no_panic() {
    let bench = Bench::new();
    bench.write("vmlinuz", &contents(10_000));
    let pristine = std::fs::read(bench.file_system()).unwrap();
    let disk = bench.dir.path().join("corrupt.raw");

    std::fs::write(&disk, &pristine).unwrap();
    scribble(&disk, 1024, &[0xa5; 1024]);
    let line = read(&disk, 0, "/vmlinuz", MAX_KERNEL).unwrap_err();
    assert!(line.contains("no readable ext4"), "{line}");

    // Each of the first blocks in turn: superblock, descriptors, inodes.
    for block in 0..64 {
        std::fs::write(&disk, &pristine).unwrap();
        scribble(&disk, block * 1024 + 100, &[0x5a; 300]);
        let _ = read(&disk, 0, "/vmlinuz", MAX_KERNEL);
    }
    // And cut off in the middle.
    std::fs::write(&disk, &pristine[..100_000]).unwrap();
    let _ = read(&disk, 0, "/vmlinuz", MAX_KERNEL);
}
