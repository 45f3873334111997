//! A stock kernel that goes on in a copy of its machine.

use std::fs::File;
use std::time::{SystemTime, UNIX_EPOCH};

use hearth_tests::Vm;
use serde_json::json;

use crate::hotplug::wait_paused;

fn host_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.expect("after 1970").as_secs()).expect("seconds")
}

/// What the guest's clock is ahead of the host's, in seconds.
fn ahead(vm: &mut Vm) -> i64 {
    let guest: i64 = vm.run("date +%s").parse().expect("seconds");
    guest - host_seconds()
}

#[test]
fn a_guest_goes_on_in_a_copy() {
    let data = tempfile::NamedTempFile::new_in(hearth_tests::vm::scratch()).expect("a disk");
    data.as_file().set_len(8 << 20).expect("its size");
    let flag = format!("path={},id=data", data.path().display());
    let mut vm = Vm::of("micro").args(&["--disk", &flag, "--balloon"]).boot();
    // Of its memory, its processes and its disk, something each.
    vm.run("mount -t tmpfs none /mnt && echo kept > /mnt/word");
    vm.run(
        "(n=0; while :; do n=$((n+1)); echo $n > /mnt/count; sleep 0.1; done) >/dev/null 2>&1 &",
    );
    vm.run("head -c 4194304 /dev/urandom > /mnt/random && dd if=/mnt/random of=/dev/vdb bs=64k conv=fsync 2>/dev/null");
    let sum = vm.run("md5sum < /mnt/random");
    let was_ahead = ahead(&mut vm);

    vm.api("PUT", "/v1/pause", None);
    wait_paused(&vm);
    let snapshot = vm.dir.path().join("snapshot");
    std::fs::create_dir(&snapshot).expect("a folder");
    let body = json!({ "path": snapshot });
    vm.api("PUT", "/v1/snapshot", Some(&body));
    vm.restore(&snapshot);

    assert_eq!(vm.run("cat /mnt/word"), "kept");
    let count: u64 = vm.run("cat /mnt/count").parse().expect("a number");
    vm.run(&format!(
        "n=0; until [ $(cat /mnt/count) -gt {} ]; do n=$((n+1)); [ $n -lt 600 ] || exit 1; sleep 0.1; done",
        count + 5
    ));
    assert!((ahead(&mut vm) - was_ahead).abs() <= 3, "the right time");
    vm.run("echo 3 > /proc/sys/vm/drop_caches");
    let read = vm.run("dd if=/dev/vdb bs=64k count=64 2>/dev/null | md5sum");
    assert_eq!(read, sum);
    vm.run("dd if=/dev/zero of=/dev/vdb bs=64k count=64 conv=fsync 2>/dev/null");
    let complaints = vm.try_run("dmesg | grep -iE 'lockup|stall|i/o error|hung'");
    assert_eq!(complaints.stdout, "", "{}", complaints.stdout);

    // Another disk finds its way in, and the machine its end.
    let hot = vm.dir.path().join("hot.raw");
    File::create(&hot)
        .and_then(|file| file.set_len(8 << 20))
        .expect("a disk");
    vm.api(
        "POST",
        "/v1/disks",
        Some(&json!({"id": "hot", "path": hot})),
    );
    crate::hotplug::until(&mut vm, "[ -e /sys/block/vdc ]");
    vm.api("PUT", "/v1/stop", None);
    assert_eq!(vm.wait_exit(30).0, 0);
}
