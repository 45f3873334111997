//! The sandboxed reader of boot files, as the process that it is: needs root
//! and mke2fs, and a release build of `hearth`.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn read(disk: &Path, path: &str, limit: &str, out: &Path) -> Output {
    Command::new(hearth_tests::vm::binary("hearth", "HEARTH_BIN"))
        .args(["read-boot-files", "--partition", "0", "--limit", limit])
        .args(["--path", path])
        .stdin(File::open(disk).expect("disk"))
        .stdout(File::create(out).expect("output"))
        .stderr(Stdio::piped())
        .output()
        .expect("hearth runs")
}

#[test]
fn reads_from_inside_its_sandbox() {
    let dir = tempfile::tempdir().expect("folder");
    let (root, disk) = (dir.path().join("root"), dir.path().join("disk"));
    fs::create_dir(&root).expect("root");
    let kernel: Vec<u8> = (0..400_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(root.join("kernel-1"), &kernel).expect("kernel");
    std::os::unix::fs::symlink("kernel-1", root.join("vmlinuz")).expect("link");
    let made = Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .args([&root, &disk])
        .arg("16M")
        .status()
        .expect("mke2fs");
    assert!(made.success());

    let out = dir.path().join("out");
    let done = read(&disk, "/vmlinuz", "4000000", &out);
    assert!(done.status.success(), "{done:?}");
    assert!(fs::read(&out).expect("output") == kernel);

    for (path, limit, complaint) in [
        ("/none", "4000000", "/none: "),
        ("/vmlinuz", "1000", "more than the 1000"),
    ] {
        let done = read(&disk, path, limit, &out);
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{done:?}");
        assert!(
            said.contains(complaint) && said.lines().count() == 1,
            "{said}"
        );
    }
    // Nothing on the disk makes it end in another way than by its own word.
    fs::write(&disk, vec![0xff; 1 << 20]).expect("scribbled");
    let done = read(&disk, "/vmlinuz", "1000", &out);
    assert_eq!(done.status.code(), Some(1), "{done:?}");
}
