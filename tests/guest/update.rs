//! A stock kernel whose machine another process takes over, again and again.

use std::process::{Command, Stdio};

use hearth_tests::Vm;

use crate::hotplug::until;
use crate::nics::Net;

#[test]
fn a_guest_lives_on_with_its_connections() {
    lives_on("update-kernel", "vhost=on", &[]);
}

#[test]
fn a_guest_lives_on_whose_packets_the_process_moves() {
    lives_on("update-process", "vhost=off", &["--balloon"]);
}

fn lives_on(name: &str, by: &str, more: &[&str]) {
    let net = Net::new(name);
    net.tap("t0", "10.9.0.1/24");
    let data = tempfile::NamedTempFile::new_in(hearth_tests::vm::scratch()).expect("a disk");
    data.as_file().set_len(8 << 20).expect("its size");
    let disk = format!("path={},id=data", data.path().display());
    let nic = format!("id=eth0,mac=02:00:00:00:09:02,tap=t0,{by}");
    let mut vm = Vm::of("micro")
        .netns(&net.name)
        .args(&["--disk", &disk, "--nic", &nic])
        .args(more)
        .boot();
    vm.run("modprobe virtio_net; ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up");
    vm.run("ping -c 1 10.9.0.1");
    let boot = vm.run("cat /proc/sys/kernel/random/boot_id");

    // One connection for all of the test, a process that counts, and its disk's work.
    // It counts by lines: a file that is written anew is empty for a moment.
    let heard = vm.dir.path().join("heard");
    let mut listener = Command::new("ip")
        .args([
            "netns", "exec", &net.name, "busybox", "nc", "-l", "-p", "7000",
        ])
        .stdin(Stdio::piped())
        .stdout(std::fs::File::create(&heard).expect("a file"))
        .spawn()
        .expect("busybox runs");
    net.sh("n=0; until netstat -ltn | grep -q :7000; do n=$((n+1)); [ $n -lt 100 ] || exit 1; sleep 0.1; done");
    vm.run("mount -t tmpfs none /mnt; touch /mnt/count /mnt/written");
    vm.run("(n=0; while :; do n=$((n+1)); echo $n; echo >> /mnt/count; sleep 0.1; done | nc 10.9.0.1 7000) >/dev/null 2>&1 &");
    vm.run("(while :; do dd if=/dev/urandom of=/mnt/random bs=64k count=32; dd if=/mnt/random of=/dev/vdb bs=64k conv=fsync; echo 1 >> /mnt/written; done) >/dev/null 2>&1 &");
    for _ in 0..3 {
        until(&mut vm, "[ $(wc -l < /mnt/count) -gt 5 ]");
        vm.update();
        let count: u64 = vm.run("wc -l < /mnt/count").parse().expect("a number");
        let written = vm.run("wc -l < /mnt/written");
        until(
            &mut vm,
            &format!("[ $(wc -l < /mnt/count) -gt {} ]", count + 5),
        );
        until(
            &mut vm,
            &format!("[ $(wc -l < /mnt/written) -gt {written} ]"),
        );
    }
    assert_eq!(vm.run("cat /proc/sys/kernel/random/boot_id"), boot);
    let count: u64 = vm.run("wc -l < /mnt/count").parse().expect("a number");
    vm.run("ping -c 1 10.9.0.1");
    until(
        &mut vm,
        &format!("[ $(wc -l < /mnt/count) -gt {} ]", count + 10),
    );
    let said = std::fs::read_to_string(&heard).expect("text");
    // Whole lines: of the last one, more may be on its way.
    let (lines, _) = said.rsplit_once('\n').expect("a line");
    let numbers: Vec<u64> = lines.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(
        numbers.last() >= Some(&count),
        "{:?} of {count}",
        numbers.last()
    );
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
    let complaints = vm.try_run("dmesg | grep -iE 'lockup|stall|i/o error|hung|generation'");
    assert_eq!(complaints.stdout, "", "{}", complaints.stdout);
    let _ = (listener.kill(), listener.wait());
    vm.api("PUT", "/v1/stop", None);
    assert_eq!(vm.wait_exit(30).0, 0);
}
