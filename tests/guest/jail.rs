//! The jail with a real kernel in it: all that is done to a machine works there,
//! and there is nothing else to reach.

use std::fs::File;

use hearth_tests::{Vm, wait};
use hearth_vmm_api::Exit;
use serde_json::json;

use crate::hotplug::{open, open_tap, until, wait_gone};
use crate::nics::Net;

/// A user that nobody is.
const USER: u32 = 0x7100_ffff;

#[test]
fn a_machine_lives_its_whole_life_in_the_jail() {
    let net = Net::new("jail");
    let mut vm = Vm::of("micro").jailed(USER).boot();
    let layers = vm.api("GET", "/v1/machine", None)["jail"].take();
    assert_eq!(
        layers,
        json!([
            "namespaces",
            "chroot",
            "user",
            "capabilities",
            "landlock",
            "seccomp",
            "io-uring"
        ])
    );
    vm.run("dd if=/dev/vda of=/dev/null bs=1M count=8");

    // A disk comes, open, is written to, and goes.
    let path = vm.dir.path().join("hot.raw");
    let disk = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .expect("a disk");
    disk.set_len(8 << 20).expect("grows");
    let handed = disk.try_clone().expect("a descriptor");
    let body = json!({"id": "hot", "path": path, "serial": "hot"});
    vm.api_with("POST", "/v1/disks", &body, &[handed.into()]);
    until(&mut vm, "[ -e /sys/block/vdb/serial ]");
    vm.run("echo jailed | dd of=/dev/vdb conv=fsync");
    let written = std::fs::read(&path).expect("the disk");
    assert!(written.starts_with(b"jailed\n"));
    disk.set_len(16 << 20).expect("grows");
    vm.api("PATCH", "/v1/disks/hot", None);
    until(&mut vm, "[ $(cat /sys/block/vdb/size) = 32768 ]");
    vm.api("DELETE", "/v1/disks/hot", None);
    until(&mut vm, "[ ! -e /sys/block/vdb ]");
    wait_gone(&vm, "disks", 1);

    // So does an interface, whose tap is in another namespace; its packets are moved by
    // the process, or by the kernel where that is handed in too.
    vm.run("modprobe virtio_net");
    net.tap("hot0", "10.9.2.1/24");
    for by_kernel in [false, true] {
        let mut files = open_tap(&net.name, "hot0", 1);
        files.extend(by_kernel.then(|| open("/dev/vhost-net")));
        let body = json!({"id": "hot", "tap": "hot0", "mac": "02:00:00:00:09:04"});
        let nic = vm.api_with("POST", "/v1/nics", &body, &files);
        drop(files);
        assert_eq!(nic["vhost"], by_kernel, "{nic}");
        until(&mut vm, "[ -e /sys/class/net/eth0 ]");
        vm.run("ip addr add 10.9.2.2/24 dev eth0; ip link set eth0 up; ping -c 1 10.9.2.1");
        vm.api("DELETE", "/v1/nics/hot", None);
        until(&mut vm, "[ ! -e /sys/class/net/eth0 ]");
        wait_gone(&vm, "nics", 0);
    }

    // What isn't handed in can't be had: no file, no tap.
    for (what, body) in [
        ("disks", json!({"id": "no", "path": "/etc/passwd"})),
        (
            "nics",
            json!({"id": "no", "tap": "hot0", "mac": "02:00:00:00:09:05"}),
        ),
    ] {
        let refused = vm.try_api("POST", &format!("/v1/{what}"), Some(&body));
        assert!(refused.is_err(), "{what}: {refused:?}");
    }

    // Reset by the guest and by its host: the kernel is read again.
    vm.type_line("reboot -f");
    vm.wait_for_shell();
    vm.api("PUT", "/v1/reset", None);
    vm.wait_for_shell();
    assert_eq!(vm.api("GET", "/v1/machine", None)["resets"], 2);

    vm.type_line("poweroff -f");
    assert_eq!(vm.wait_exit(60), (0, Some(Exit::GuestPowerOff)));
    wait::until("its socket is gone", 10, || {
        if vm.dir.path().join("vmm.sock").exists() {
            return Err("it is there");
        }
        Ok(())
    });
}

#[test]
fn every_thread_of_it_is_confined() {
    let mut vm = Vm::of("micro").jailed(USER).boot();
    // The disk's thread has been at work by now.
    vm.run("sync");
    let process = format!("/proc/{}", vm.pid());
    for task in std::fs::read_dir(format!("{process}/task")).expect("threads") {
        let status = task.expect("a thread").path().join("status");
        let status = std::fs::read_to_string(status).expect("its status");
        for line in [
            "NoNewPrivs:\t1".to_owned(),
            "Seccomp:\t2".to_owned(),
            "CapEff:\t0000000000000000".to_owned(),
            "CapBnd:\t0000000000000000".to_owned(),
            format!("Uid:\t{USER}\t{USER}\t{USER}"),
        ] {
            assert!(status.contains(&line), "{line} in\n{status}");
        }
    }
    // Down to its folder there is nothing beside it.
    let mut inside = std::path::PathBuf::from(format!("{process}/root"));
    for name in vm.dir.path().components().skip(1) {
        let found: Vec<_> = std::fs::read_dir(&inside)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(found, [name.as_os_str()], "{}", inside.display());
        inside.push(name);
    }
    assert!(inside.join("root.raw").exists());
    for namespace in ["mnt", "net", "ipc", "uts", "cgroup"] {
        let of = |process: &str| std::fs::read_link(format!("{process}/ns/{namespace}"));
        let (its, ours) = (of(&process), of("/proc/self"));
        assert_ne!(its.expect("a link"), ours.expect("a link"), "{namespace}");
    }
    vm.api("PUT", "/v1/stop", None);
    assert_eq!(vm.wait_exit(30), (0, Some(Exit::Stopped)));
}
