//! Disks and network interfaces that come and go while the guest runs, with no
//! command in the guest.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use hearth_tests::{Vm, wait};
use serde_json::json;

use crate::nics::Net;

const ROUNDS: usize = 50;

/// Waits in the guest until a shell condition holds.
pub(crate) fn until(vm: &mut Vm, condition: &str) {
    vm.run(&format!(
        "n=0; until {condition}; do n=$((n+1)); [ $n -lt 600 ] || exit 1; sleep 0.05; done"
    ));
}

/// Open descriptors and threads of the VMM: a leak shows in one of them.
fn held(vm: &Vm) -> (usize, usize) {
    let count = |what| {
        std::fs::read_dir(format!("/proc/{}/{what}", vm.pid()))
            .expect("a process")
            .count()
    };
    (count("fd"), count("task"))
}

#[test]
fn a_disk_comes_and_goes_fifty_times() {
    // In the same slot each time, as there is no other.
    let mut vm = Vm::of("micro").args(&["--hotplug-slots", "1"]).boot();
    let path = vm.dir.path().join("hot.raw");
    File::create(&path)
        .and_then(|file| file.set_len(8 << 20))
        .expect("a disk");
    let other = path.with_extension("other");
    std::fs::copy(&path, &other).expect("a disk");
    let before = held(&vm);
    for round in 0..ROUNDS {
        let body = json!({"id": "hot", "path": path, "serial": format!("round{round}")});
        if round % 2 == 0 {
            vm.api("POST", "/v1/disks", Some(&body));
        } else {
            // As the control plane does it: the file comes along, open.
            let file = File::options()
                .read(true)
                .write(true)
                .open(&path)
                .expect("opens");
            vm.api_with("POST", "/v1/disks", &body, &[file.into()]);
        }
        until(&mut vm, "[ -e /sys/block/vdb/serial ]");
        assert_eq!(vm.run("cat /sys/block/vdb/serial"), format!("round{round}"));
        let other = json!({"id": "other", "path": other});
        let refused = vm.try_api("POST", "/v1/disks", Some(&other));
        let refused = refused.expect_err("there is no slot");
        assert!(refused.contains("device slots"), "{refused}");
        vm.run(&format!(
            "echo {round} | dd of=/dev/vdb conv=fsync 2>/dev/null"
        ));
        vm.api("DELETE", "/v1/disks/hot", None);
        until(&mut vm, "[ ! -e /sys/block/vdb ]");
        wait_gone(&vm, "disks", 1);
    }
    wait_held(&vm, before);
}

#[test]
fn a_guest_that_does_not_answer_is_asked_again() {
    let mut vm = Vm::of("micro").boot();
    let path = vm.dir.path().join("hot.raw");
    File::create(&path)
        .and_then(|file| file.set_len(8 << 20))
        .expect("a disk");
    let body = json!({"id": "hot", "path": path});
    for answers in [true, false] {
        vm.api("POST", "/v1/disks", Some(&body));
        until(&mut vm, "[ -e /sys/block/vdb/serial ]");
        vm.api("PUT", "/v1/pause", None);
        wait_paused(&vm);
        for _ in 0..2 {
            vm.api("DELETE", "/v1/disks/hot", None);
        }
        let disks = vm.api("GET", "/v1/machine", None)["disks"].take();
        assert_eq!(disks[0]["unplug_requested"], false, "{disks}");
        assert_eq!(disks[1]["unplug_requested"], true, "{disks}");
        if answers {
            vm.api("PUT", "/v1/resume", None);
            until(&mut vm, "[ ! -e /sys/block/vdb ]");
        } else {
            // The next kernel never sees it.
            vm.api("PUT", "/v1/reset", None);
            vm.wait_for_shell();
            assert_eq!(vm.run("ls /sys/block | grep vd"), "vda");
        }
        wait_gone(&vm, "disks", 1);
    }
}

#[test]
fn an_interface_comes_and_goes_fifty_times() {
    let net = Net::new("hot");
    let mut vm = Vm::of("micro").boot();
    vm.run("modprobe virtio_net");
    let before = held(&vm);
    net.tap("hot0", "10.9.1.1/24");
    for round in 0..ROUNDS {
        let tap = open_tap(&net.name, "hot0", 1);
        let body = json!({"id": "hot", "tap": "hot0", "mac": "02:00:00:00:09:03"});
        vm.api_with("POST", "/v1/nics", &body, &tap);
        drop(tap);
        until(&mut vm, "[ -e /sys/class/net/eth0 ]");
        vm.run("ip addr add 10.9.1.2/24 dev eth0; ip link set eth0 up; ping -c 1 10.9.1.1");
        vm.api("DELETE", "/v1/nics/hot", None);
        until(&mut vm, "[ ! -e /sys/class/net/eth0 ]");
        wait_gone(&vm, "nics", 0);
        println!("round {round}");
    }
    wait_held(&vm, before);
}

pub(crate) fn wait_gone(vm: &Vm, what: &str, left: usize) {
    wait::until(&format!("{what} are {left}"), 30, || {
        let there = vm.api("GET", "/v1/machine", None)[what].take();
        match there.as_array().map(Vec::len) {
            Some(count) if count == left => Ok(()),
            _ => Err(there),
        }
    });
}

/// A pause is answered before it is complete where that takes long.
pub(crate) fn wait_paused(vm: &Vm) {
    wait::until("it is paused", 30, || {
        match vm.api("GET", "/v1/machine", None)["state"].take() {
            state if state == "paused" => Ok(()),
            state => Err(state),
        }
    });
}

fn wait_held(vm: &Vm, before: (usize, usize)) {
    wait::until("nothing is left behind", 30, || match held(vm) {
        now if now == before => Ok(()),
        now => Err(format!("{now:?}, before {before:?}")),
    });
}

/// Opens a tap of another namespace, once for each queue, in a thread that moves there.
pub(crate) fn open_tap(netns: &str, name: &str, queues: usize) -> Vec<OwnedFd> {
    let (netns, name) = (format!("/run/netns/{netns}"), name.to_owned());
    std::thread::spawn(move || {
        let namespace = File::open(netns).expect("a namespace");
        nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
        let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        (0..queues)
            .map(|_| {
                let tun = open("/dev/net/tun");
                attach(tun.as_fd(), &name, several);
                tun
            })
            .collect()
    })
    .join()
    .expect("a tap")
}

/// Opens a device.
pub(crate) fn open(path: &str) -> OwnedFd {
    let file = File::options().read(true).write(true).open(path);
    file.unwrap_or_else(|error| panic!("{path}: {error}"))
        .into()
}

fn attach(tun: BorrowedFd<'_>, name: &str, several: libc::c_int) {
    // SAFETY: an ifreq of zeroes is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).expect("16 bits");
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives it.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(result, 0, "{name}: {}", std::io::Error::last_os_error());
}
