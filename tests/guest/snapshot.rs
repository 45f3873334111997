//! A stock kernel that goes on in a copy of its machine.

use std::fs::File;
use std::time::{SystemTime, UNIX_EPOCH};

use hearth_tests::Vm;
use serde_json::json;

use crate::hotplug::wait_paused;
use crate::nics::Net;

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
    vm.run("touch /mnt/count; (while :; do echo >> /mnt/count; sleep 0.1; done) >/dev/null 2>&1 &");
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
    let count: u64 = vm.run("wc -l < /mnt/count").parse().expect("a number");
    vm.run(&format!(
        "n=0; until [ $(wc -l < /mnt/count) -gt {} ]; do n=$((n+1)); [ $n -lt 600 ] || exit 1; sleep 0.1; done",
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

/// Of an interface whose packets the kernel moves: also what it writes is followed.
#[test]
fn packets_that_the_kernel_moves_go_on_in_a_copy() {
    let net = Net::new("copy");
    net.tap("t0", "10.9.2.1/24");
    let mut vm = Vm::of("micro")
        .netns(&net.name)
        .args(&["--nic", "id=eth0,tap=t0,vhost=on"])
        .boot();
    vm.run("modprobe virtio_net; ip addr add 10.9.2.2/24 dev eth0; ip link set eth0 up");
    vm.run("mount -t tmpfs tmp /mnt; head -c 1048576 /dev/urandom > /mnt/data");
    // Large packets into the guest and out of it, for as long as it lives, and for as long
    // as it does not.
    let flood = |seconds: u32| {
        let ping = format!("exec ping -q -f -s 8000 -w {seconds} 10.9.2.2 >/dev/null");
        let mut command = std::process::Command::new("ip");
        command.args(["netns", "exec", &net.name, "sh", "-c", &ping]);
        command.spawn().expect("ping")
    };
    vm.run("(while :; do ping -q -c 50 -s 4000 -A 10.9.2.1 || ping -q -c 5 -s 4000 10.9.2.1; done) >/dev/null 2>&1 &");
    let goes_on = |vm: &mut Vm| {
        let seen = vm.run("cat /sys/class/net/eth0/statistics/rx_packets");
        let more = "[ $(cat /sys/class/net/eth0/statistics/rx_packets) -gt";
        crate::hotplug::until(vm, &format!("{more} $(({seen} + 100)) ]"));
        let answered = net.sh("ping -c 3 -W 10 10.9.2.2");
        assert!(answered.contains(" 0% packet loss"), "{answered}");
        let nic = vm.api("GET", "/v1/machine", None)["nics"][0].take();
        assert_eq!(nic["vhost"], true, "{nic}");
        let devices = vm.api("GET", "/v1/metrics", None)["devices"].take();
        assert_eq!(devices["eth0"]["failures"], 0, "{devices}");
    };
    let mut flooding = flood(600);
    goes_on(&mut vm);
    for _ in 0..3 {
        vm.api("PUT", "/v1/pause", None);
        wait_paused(&vm);
        vm.api("PUT", "/v1/resume", None);
        goes_on(&mut vm);
    }
    let sum = vm.run("md5sum < /mnt/data");
    let [whole, since] = ["whole", "since"].map(|name| vm.dir.path().join(name));
    for (path, body) in [
        (&whole, json!({"path": whole, "follow": true})),
        (&since, json!({"path": since, "base": whole})),
    ] {
        std::fs::create_dir(path).expect("a folder");
        vm.api("PUT", "/v1/pause", None);
        wait_paused(&vm);
        vm.api("PUT", "/v1/snapshot", Some(&body));
        if path == &whole {
            vm.api("PUT", "/v1/resume", None);
            goes_on(&mut vm);
        }
    }
    // The same tap in another process; and a new one of its name.
    for new_tap in [false, true] {
        if new_tap {
            vm.kill();
            net.sh("ip link del t0");
            net.tap("t0", "10.9.2.1/24");
        }
        vm.restore(&since);
        goes_on(&mut vm);
        assert_eq!(vm.run("md5sum < /mnt/data"), sum);
        let complaints = vm.try_run("dmesg | grep -iE 'lockup|stall|hung|not a head|timed out'");
        assert_eq!(complaints.stdout, "", "{}", complaints.stdout);
    }
    let _ = flooding.kill();
    let _ = flooding.wait();
}
