//! Disks: what is written comes back, what is given up is free, what was flushed
//! stays.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Command;

use hearth_tests::Vm;
use hearth_tests::vm::scratch;

const MIB: u64 = 1 << 20;

/// A disk with nothing on it, gone with its folder.
struct Blank {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Blank {
    fn new(mib: u64) -> Self {
        let folder = tempfile::tempdir_in(scratch()).expect("a folder");
        let path = folder.path().join("blank.raw");
        File::create(&path)
            .and_then(|file| file.set_len(mib * MIB))
            .expect("a disk");
        Self {
            _folder: folder,
            path,
        }
    }

    /// Boots with it as the second disk.
    fn boot(&self, more: &str) -> Vm {
        let flag = format!("path={},id=data{more}", self.path.display());
        Vm::of("micro").args(&["--disk", &flag]).boot()
    }

    fn checksum(&self) -> String {
        let done = Command::new("md5sum").arg(&self.path).output();
        let text = String::from_utf8(done.expect("md5sum").stdout).expect("text");
        text.split(' ').next().expect("a sum").to_owned()
    }

    fn allocated(&self) -> u64 {
        std::fs::metadata(&self.path).expect("there").blocks() * 512
    }
}

/// Writes `mib` MiB, each with its number at its head, and says their checksum as
/// the guest reads them.
fn write_and_read(vm: &mut Vm, mib: u64) -> String {
    vm.run("dd if=/dev/urandom of=/tmp/chunk bs=1M count=1");
    // In parts, since a command has its deadline.
    for part in (0..mib).step_by(128) {
        let end = (part + 128).min(mib);
        vm.run(&format!(
            "i={part}; while [ $i -lt {end} ]; do \
             {{ printf '%08d' $i; tail -c +9 /tmp/chunk; }} | \
             dd of=/dev/vdb bs=1M seek=$i iflag=fullblock conv=notrunc 2>/dev/null || exit 1; \
             i=$((i+1)); done"
        ));
    }
    vm.run("sync; echo 3 > /proc/sys/vm/drop_caches");
    vm.run("md5sum /dev/vdb | cut -d ' ' -f 1")
}

#[test]
fn a_gibibyte_comes_back_as_written_by_both_engines() {
    for engine in ["io_uring", "threads"] {
        let disk = Blank::new(1024);
        let mut vm = disk.boot(&format!(",engine={engine}"));
        let read = write_and_read(&mut vm, 1024);
        assert_eq!(read, disk.checksum(), "{engine}");
        assert_eq!(disk.allocated() / MIB, 1024, "{engine}");
    }
}

#[test]
fn a_request_is_no_exit() {
    let disk = Blank::new(16);
    let mut vm = disk.boot("");
    vm.run("echo 0 > /sys/block/vdb/queue/read_ahead_kb");
    let count = |vm: &Vm| {
        let metrics = vm.api("GET", "/v1/metrics", None);
        let notifications = &metrics["devices"]["data"]["notifications"];
        [&metrics["vcpu_exits"], notifications].map(|count| count.as_u64().expect("a number"))
    };
    let [exits, notifications] = count(&vm);
    vm.run("dd if=/dev/vdb of=/dev/null bs=4k");
    let after = count(&vm);
    let [exits, notifications] = [after[0] - exits, after[1] - notifications];
    // 4096 requests, each with its doorbell, and some words to the console.
    assert!(notifications > 2048, "{notifications}");
    assert!(exits < 2048, "{exits}");
    // The driver has chosen the port of each of its devices.
    let claimed = vm.run("grep -c virtio-pci-modern /proc/ioports");
    assert_eq!(
        claimed,
        vm.run("ls -d /sys/bus/pci/drivers/virtio-pci/0* | wc -l")
    );
}

#[test]
fn discard_frees_blocks() {
    let disk = Blank::new(128);
    let mut vm = disk.boot("");
    vm.run("dd if=/dev/urandom of=/dev/vdb bs=1M count=64 conv=fsync");
    assert!(disk.allocated() >= 64 * MIB);
    vm.run("blkdiscard -o 0 -l 67108864 /dev/vdb");
    assert!(disk.allocated() < MIB, "{} are left", disk.allocated());
    assert_eq!(
        vm.run("head -c 1048576 /dev/vdb | tr -d '\\0' | wc -c"),
        "0"
    );
}

/// A loop device over a blank disk, let go of when dropped.
struct Loop(String);

impl Loop {
    fn over(disk: &Blank) -> Self {
        let made = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=off"])
            .arg(&disk.path)
            .output()
            .expect("losetup");
        let name = String::from_utf8_lossy(&made.stdout).trim().to_owned();
        assert!(name.starts_with("/dev/loop"), "{made:?}");
        Self(name)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn a_block_device_serves_as_a_disk() {
    let disk = Blank::new(64);
    let device = Loop::over(&disk);
    let flag = format!("path={},id=data", device.0);
    let mut vm = Vm::of("micro").args(&["--disk", &flag]).boot();
    assert_eq!(vm.run("cat /sys/block/vdb/size"), "131072");
    vm.run("dd if=/dev/urandom of=/dev/vdb bs=1M count=32 conv=fsync");
    let sum = vm.run("md5sum < /dev/vdb | cut -d ' ' -f 1");
    assert_eq!(disk.checksum(), sum);
    assert!(disk.allocated() >= 32 * MIB);
    vm.run("blkdiscard -o 0 -l 33554432 /dev/vdb");
    assert!(disk.allocated() < MIB, "{} are left", disk.allocated());
}

#[test]
fn what_was_flushed_survives_the_end_of_the_process() {
    let disk = Blank::new(16);
    let mut vm = disk.boot("");
    vm.run("dd if=/dev/urandom of=/tmp/a bs=1M count=8; dd if=/tmp/a of=/dev/vdb bs=1M conv=fsync");
    let written = vm.run("md5sum < /tmp/a | cut -d ' ' -f 1");
    vm.kill();
    let mut again = disk.boot("");
    assert_eq!(
        again.run("head -c 8388608 /dev/vdb | md5sum | cut -d ' ' -f 1"),
        written
    );
}

#[test]
fn a_read_only_disk_refuses_and_a_grown_one_is_seen() {
    let disk = Blank::new(16);
    let mut vm = disk.boot(",readonly");
    assert_eq!(vm.run("cat /sys/block/vdb/ro"), "1");
    assert_ne!(vm.try_run("dd if=/dev/zero of=/dev/vdb count=1").status, 0);
    File::options()
        .write(true)
        .open(&disk.path)
        .and_then(|file| file.set_len(32 * MIB))
        .expect("grows");
    vm.api("PATCH", "/v1/disks/data", None);
    vm.run("n=0; until [ $(cat /sys/block/vdb/size) = 65536 ]; do n=$((n+1)); [ $n -lt 300 ] || exit 1; sleep 0.1; done");
}
