//! Network interfaces: a guest and the host behind one tap, in a namespace.

use std::process::Command;

use hearth_tests::Vm;

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

#[test]
fn pings_and_bulk_data_go_both_ways() {
    let net = Net::new("bulk");
    net.tap("t0", "10.9.0.1/24");
    let mut vm = Vm::of("micro")
        .netns(&net.name)
        .args(&["--nic", "id=eth0,mac=02:00:00:00:09:02,tap=t0"])
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
}

#[test]
fn several_queues_carry_data_both_ways() {
    let net = Net::new("queues");
    sh(&format!(
        "set -e; ip -n {0} tuntap add t0 mode tap multi_queue vnet_hdr; \
         ip -n {0} addr add 10.9.0.1/24 dev t0; ip -n {0} link set t0 up",
        net.name
    ));
    let mut vm = Vm::of("micro")
        .vcpus(2)
        .netns(&net.name)
        .args(&["--nic", "id=eth0,tap=t0,queues=2"])
        .boot();
    vm.run("modprobe virtio_net; ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up");
    assert_eq!(vm.run("ls -d /sys/class/net/eth0/queues/tx-* | wc -l"), "2");
    assert_eq!(vm.run("ls -d /sys/block/vda/mq/* | wc -l"), "2");
    net.sh("ping -c 3 10.9.0.2");
    // Each CPU has its transmit queue.
    for cpu in ["1", "2"] {
        vm.run(&format!("taskset {cpu} ping -c 3 10.9.0.1"));
    }
    let counted = &vm.api("GET", "/v1/metrics", None)["devices"]["eth0"];
    for name in ["received_packets", "transmitted_packets"] {
        assert!(counted[name].as_u64() >= Some(9), "{counted}");
    }
    assert_eq!(counted["transmit_errors"], 0, "{counted}");
    assert_eq!(counted["failures"], 0, "{counted}");
}
