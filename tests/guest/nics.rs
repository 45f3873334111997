//! Network interfaces: a guest and the host behind one tap, in a namespace.

use std::os::fd::AsRawFd as _;
use std::process::Command;

use hearth_tests::Vm;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::json;

use crate::hotplug::{open, open_tap, until, wait_gone};

/// A network namespace with a tap, gone when dropped.
pub(crate) struct Net {
    pub(crate) name: String,
}

impl Net {
    pub(crate) fn new(name: &str) -> Self {
        let net = Self {
            name: format!("guest-{name}-{}", std::process::id()),
        };
        sh(&format!(
            "ip netns add {0}; ip -n {0} link set lo up",
            net.name
        ));
        net
    }

    /// Makes a tap with this address on our side.
    pub(crate) fn tap(&self, tap: &str, address: &str) {
        sh(&format!(
            "set -e; ip -n {0} tuntap add {tap} mode tap vnet_hdr; \
             ip -n {0} addr add {address} dev {tap}; ip -n {0} link set {tap} up",
            self.name
        ));
    }

    /// A shell script in it.
    pub(crate) fn sh(&self, script: &str) -> String {
        sh(&format!(
            "exec ip netns exec {} sh -c '{script}'",
            self.name
        ))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

fn sh(script: &str) -> String {
    let done = Command::new("sh")
        .args(["-c", script])
        .output()
        .expect("sh");
    assert!(
        done.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

/// The kernel moves the packets (vhost-net).
const BY_KERNEL: &str = "vhost=on";
/// The VMM does.
const BY_PROCESS: &str = "vhost=off";

#[test]
fn the_process_moves_pings_and_bulk_data_both_ways() {
    pings_and_bulk_data_go_both_ways(BY_PROCESS);
}

#[test]
fn the_kernel_moves_pings_and_bulk_data_both_ways() {
    pings_and_bulk_data_go_both_ways(BY_KERNEL);
}

fn pings_and_bulk_data_go_both_ways(by: &str) {
    let net = Net::new("bulk");
    net.tap("t0", "10.9.0.1/24");
    let mut vm = Vm::of("micro")
        .netns(&net.name)
        .args(&[
            "--nic",
            &format!("id=eth0,mac=02:00:00:00:09:02,tap=t0,{by}"),
        ])
        .boot();
    vm.run("modprobe virtio_net; ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up");
    assert_eq!(
        vm.run("cat /sys/class/net/eth0/address"),
        "02:00:00:00:09:02"
    );
    vm.run("ping -c 3 10.9.0.1");
    net.sh("ping -c 3 10.9.0.2");

    // 32 MiB each way, by checksum. The root disk is smaller than that.
    vm.run("mount -t tmpfs tmp /tmp");
    vm.run("dd if=/dev/urandom of=/tmp/bulk bs=1M count=32");
    let sum = vm.run("md5sum < /tmp/bulk");
    let folder = vm.dir.path().display().to_string();
    // The listener is there before the sender asks: it is waited for. Its standard input
    // is a pipe that does not end, for busybox's nc ends with it.
    let listening = |port: u16| {
        format!(
            "n=0; until netstat -ltn | grep -q :{port}; do n=$((n+1)); [ $n -lt 100 ] || exit 1; sleep 0.1; done"
        )
    };
    let receiver = {
        let name = net.name.clone();
        let folder = folder.clone();
        std::thread::spawn(move || {
            sh(&format!(
                "set -e; mkfifo {folder}/open; \
                 ip netns exec {name} busybox nc -l -p 7000 0<>{folder}/open > {folder}/bulk; \
                 md5sum < {folder}/bulk"
            ))
        })
    };
    net.sh(&listening(7000).replace("netstat", "busybox netstat"));
    vm.run("nc 10.9.0.1 7000 < /tmp/bulk");
    assert_eq!(receiver.join().expect("received"), sum);

    // In the foreground: busybox's shell takes the end of a job for the end of its input.
    vm.run("rm /tmp/bulk; mkfifo /tmp/open");
    vm.type_line("nc -l -p 7001 0<>/tmp/open > /tmp/back; echo re\"\"ceived");
    net.sh(&format!(
        "n=0; until busybox nc 10.9.0.2 7001 < {folder}/bulk; do n=$((n+1)); [ $n -lt 100 ] || exit 1; sleep 0.1; done"
    ));
    vm.wait_for_console("received", 120);
    assert_eq!(vm.run("md5sum < /tmp/back"), sum);

    // A reset takes the queues back, and another driver gets them.
    vm.api("PUT", "/v1/reset", None);
    vm.wait_for_shell();
    vm.run("modprobe virtio_net; ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up");
    vm.run("ping -c 3 10.9.0.1");
}

/// A tap for two queues, with 10.9.0.1 on our side.
fn tap_of_two(net: &Net) {
    sh(&format!(
        "set -e; ip -n {0} tuntap add t0 mode tap multi_queue vnet_hdr; \
         ip -n {0} addr add 10.9.0.1/24 dev t0; ip -n {0} link set t0 up",
        net.name
    ));
}

/// Two queue pairs in a guest with two CPUs: each CPU has its transmit queue.
fn pings_go_through_two_pairs(vm: &mut Vm, net: &Net) {
    vm.run("modprobe virtio_net");
    until(vm, "[ -e /sys/class/net/eth0 ]");
    vm.run("ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up");
    assert_eq!(vm.run("ls -d /sys/class/net/eth0/queues/tx-* | wc -l"), "2");
    net.sh("ping -c 3 10.9.0.2");
    for cpu in ["1", "2"] {
        vm.run(&format!("taskset {cpu} ping -c 3 10.9.0.1"));
    }
}

#[test]
fn several_queues_carry_data_both_ways() {
    let net = Net::new("queues");
    tap_of_two(&net);
    for by in [BY_PROCESS, BY_KERNEL] {
        let mut vm = Vm::of("micro")
            .vcpus(2)
            .netns(&net.name)
            .args(&["--nic", &format!("id=eth0,tap=t0,queues=2,{by}")])
            .boot();
        assert_eq!(vm.run("ls -d /sys/block/vda/mq/* | wc -l"), "2");
        pings_go_through_two_pairs(&mut vm, &net);
        let counted = &vm.api("GET", "/v1/metrics", None)["devices"]["eth0"];
        assert_eq!(counted["failures"], 0, "{counted}");
        if by == BY_KERNEL {
            // What isn't counted isn't shown as none.
            assert_eq!(counted.get("received_packets"), None, "{counted}");
            continue;
        }
        for name in ["received_packets", "transmitted_packets"] {
            assert!(counted[name].as_u64() >= Some(9), "{counted}");
        }
        assert_eq!(counted["transmit_errors"], 0, "{counted}");
    }
}

#[test]
fn several_queues_come_as_open_files() {
    let net = Net::new("files");
    tap_of_two(&net);
    // Handed down open: as they are numbered here.
    let files = open_tap(&net.name, "t0", 2);
    for file in &files {
        fcntl(file, FcntlArg::F_SETFD(FdFlag::empty())).expect("a descriptor");
    }
    let [one, other] = [files[0].as_raw_fd(), files[1].as_raw_fd()];
    let mut vm = Vm::of("micro")
        .vcpus(2)
        .args(&["--nic", &format!("id=eth0,tap-fd={one}:{other}")])
        .boot();
    drop(files);
    pings_go_through_two_pairs(&mut vm, &net);
    vm.api("DELETE", "/v1/nics/eth0", None);
    until(&mut vm, "[ ! -e /sys/class/net/eth0 ]");
    wait_gone(&vm, "nics", 0);

    // Handed over while the guest runs, with the kernel's half of each.
    for by_kernel in [true, false] {
        let mut files = open_tap(&net.name, "t0", 2);
        if by_kernel {
            files.extend([(); 2].map(|()| open("/dev/vhost-net")));
        }
        let body = json!({"id": "hot", "tap": "t0", "queues": 2, "vhost": by_kernel});
        let nic = vm.api_with("POST", "/v1/nics", &body, &files);
        drop(files);
        assert_eq!(nic["vhost"], by_kernel, "{nic}");
        pings_go_through_two_pairs(&mut vm, &net);
        vm.api("DELETE", "/v1/nics/hot", None);
        until(&mut vm, "[ ! -e /sys/class/net/eth0 ]");
        wait_gone(&vm, "nics", 0);
    }
}
