//! Disks that qemu-storage-daemon serves (vhost-user-blk), with a stock kernel's driver.

use std::fs::File;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use hearth_tests::{Vm, wait};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::hotplug::{until, wait_paused};

fn disk_of(folder: &Path) -> PathBuf {
    folder.join("disk.raw")
}

/// The daemon over one raw file, ended when dropped.
struct Daemon {
    child: Child,
    folder: PathBuf,
}

impl Daemon {
    /// Over `disk.raw` in this folder, of 64 MiB if it isn't there, at `disk.sock`.
    fn start(folder: &Path) -> Self {
        let disk = disk_of(folder);
        if !disk.exists() {
            let file = File::create(&disk).expect("a disk");
            file.set_len(64 << 20).expect("its size");
        }
        let _ = std::fs::remove_file(folder.join("disk.sock"));
        let node = format!(
            "driver=file,node-name=disk,filename={},discard=unmap",
            disk.display()
        );
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=2,\
             addr.type=unix,addr.path={}",
            folder.join("disk.sock").display()
        );
        let arguments = ["--blockdev", &node, "--export", &export];
        let child = Command::new("qemu-storage-daemon").args(arguments).spawn();
        let daemon = Self {
            child: child.expect("qemu-system-common has it"),
            folder: folder.to_owned(),
        };
        wait::until("the daemon listens", 60, || {
            match daemon.path("disk.sock").exists() {
                true => Ok(()),
                false => Err("it doesn't"),
            }
        });
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        nix::sys::signal::kill(Pid::from_raw(pid), signal).expect("it is there");
    }

    fn flag(&self) -> String {
        format!("socket={},id=user", self.path("disk.sock").display())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(hearth_tests::vm::scratch()).expect("a folder")
}

fn disk(vm: &Vm, id: &str) -> Value {
    let disks = vm.api("GET", "/v1/machine", None)["disks"].take();
    let mut disks = disks.as_array().expect("a list").iter();
    let disk = disks.find(|disk| disk["id"] == id);
    disk.unwrap_or(&Value::Null).clone()
}

fn wait_connected(vm: &Vm, id: &str, is: bool) {
    wait::until("its back end", 60, || {
        let back_end = disk(vm, id)["back_end"].take();
        match back_end["connected"] == is {
            true => Ok(()),
            false => Err(back_end),
        }
    });
}

/// A user that nobody is.
const USER: u32 = 0x7100_ffff;

#[test]
fn a_back_end_is_found_again_from_the_jail() {
    let folder = folder();
    let owned = |daemon: &Daemon| {
        let socket = daemon.path("disk.sock");
        for path in [folder.path(), &socket] {
            chown(path, Some(USER), Some(USER)).expect("root");
        }
    };
    let mut daemon = Daemon::start(folder.path());
    owned(&daemon);
    let mut vm = Vm::of("micro")
        .shared()
        .jailed(USER)
        .args(&["--disk", &daemon.flag()])
        .boot();
    vm.run("echo jailed | dd of=/dev/vdb conv=fsync 2>/dev/null");
    vm.api("PUT", "/v1/pause", None);
    wait_paused(&vm);
    drop(daemon);
    wait_connected(&vm, "user", false);
    daemon = Daemon::start(folder.path());
    owned(&daemon);
    wait_connected(&vm, "user", true);
    vm.api("PUT", "/v1/resume", None);
    vm.run("echo 3 > /proc/sys/vm/drop_caches");
    assert_eq!(vm.run("head -c 6 /dev/vdb"), "jailed");
    // Another one comes while the guest runs.
    let second = self::folder();
    let other = Daemon::start(second.path());
    let body = json!({"id": "other", "socket": other.path("disk.sock")});
    let socket = UnixStream::connect(other.path("disk.sock")).expect("connects");
    vm.api_with("POST", "/v1/disks", &body, &[socket.into()]);
    until(&mut vm, "[ -e /sys/block/vdc/size ]");
    vm.run("echo second | dd of=/dev/vdc conv=fsync 2>/dev/null");
    let written = std::fs::read(other.path("disk.raw")).expect("the disk");
    assert!(written.starts_with(b"second"));
    vm.api("DELETE", "/v1/disks/other", None);
    until(&mut vm, "[ ! -e /sys/block/vdc ]");
}

/// Bytes of the file system's disk.
const SIZE: u64 = 64 << 20;

/// Has the guest write, read and compare on the disk, until it is to stop.
const LOAD: &str = "(n=0; until [ -e /tmp/stop ]; do n=$((n+1)); \
    cp /tmp/random /mnt/$((n % 4)) && echo 3 > /proc/sys/vm/drop_caches && \
    cmp /tmp/random /mnt/$((n % 4)) || break; rm -f /mnt/$(((n + 2) % 4)); \
    echo >> /tmp/count; done; touch /tmp/stopped) >/dev/null 2>&1 &";

fn works_on(vm: &mut Vm) {
    let count: u64 = vm.run("wc -l < /tmp/count").parse().expect("it counts");
    until(vm, &format!("[ $(wc -l < /tmp/count) -gt {} ]", count + 2));
}

/// The daemon over a file system, and a guest at work on it.
fn at_work(folder: &Path) -> (Daemon, Vm) {
    let disk = disk_of(folder);
    let file = File::create(&disk).expect("a disk");
    file.set_len(SIZE).expect("its size");
    let mut make = Command::new("mkfs.ext4");
    let made = make.args(["-q", "-F"]).arg(&disk).status();
    assert!(made.expect("e2fsprogs has it").success());
    let daemon = Daemon::start(folder);
    let mut vm = Vm::of("micro")
        .shared()
        .args(&["--disk", &daemon.flag()])
        .boot();
    vm.run("mount /dev/vdb /mnt; mount -t tmpfs tmp /tmp; head -c 3000000 /dev/urandom > /tmp/random; touch /tmp/count");
    vm.type_line(LOAD);
    (daemon, vm)
}

fn no_complaints(vm: &mut Vm) {
    let complaints =
        vm.try_run("dmesg | grep -iE 'lockup|stall|hung|i/o error|ext4-fs error|oops|bug:'");
    assert_eq!(complaints.stdout, "", "{}", complaints.stdout);
}

#[test]
fn a_file_system_outlives_what_serves_its_disk() {
    let folder = folder();
    let (mut daemon, mut vm) = at_work(folder.path());
    for round in 1..3 {
        // Held: all that was begun is done. Of what was not, it keeps no note.
        vm.api("PUT", "/v1/pause", None);
        wait_paused(&vm);
        drop(daemon);
        wait_connected(&vm, "user", false);
        vm.api("PUT", "/v1/resume", None);
        assert_eq!(vm.run("echo here"), "here", "nothing but the disk waits");
        // It has grown meanwhile: this daemon notices so only when it is started.
        let size = SIZE + round * (8 << 20);
        let file = File::options().write(true).open(disk_of(folder.path()));
        let grown = file.and_then(|file| file.set_len(size));
        grown.expect("room");
        daemon = Daemon::start(folder.path());
        wait_connected(&vm, "user", true);
        let sees = format!("[ $(cat /sys/block/vdb/size) = {} ]", size / 512);
        until(&mut vm, &sees);
        works_on(&mut vm);
        vm.run("resize2fs /dev/vdb");
        // It hangs.
        daemon.signal(Signal::SIGSTOP);
        assert_eq!(vm.run("echo here"), "here", "nothing but the disk waits");
        vm.run("sleep 1");
        daemon.signal(Signal::SIGCONT);
        works_on(&mut vm);
    }
    no_complaints(&mut vm);
    vm.run("touch /tmp/stop");
    until(&mut vm, "[ -e /tmp/stopped ]");
    vm.run("umount /mnt");
    drop(daemon);
    let mut check = Command::new("e2fsck");
    let sound = check
        .args(["-f", "-n"])
        .arg(disk_of(folder.path()))
        .status();
    assert!(sound.expect("e2fsprogs has it").success());
}

#[test]
fn a_disk_of_another_process_goes_on_in_a_copy() {
    let folder = folder();
    let (_daemon, mut vm) = at_work(folder.path());
    let sum = vm.run("md5sum < /tmp/random");
    let save = |vm: &Vm, name: &str, base: Option<&Path>| {
        let path = vm.dir.path().join(name);
        std::fs::create_dir(&path).expect("a folder");
        vm.api("PUT", "/v1/pause", None);
        wait_paused(vm);
        let mut body = json!({"path": path, "follow": true});
        if let Some(base) = base {
            body["base"] = json!(base);
        }
        vm.api("PUT", "/v1/snapshot", Some(&body));
        path
    };
    works_on(&mut vm);
    let mut last = save(&vm, "whole", None);
    // A chain, whose last link a copy goes on from.
    for name in ["since", "and-since"] {
        vm.api("PUT", "/v1/resume", None);
        works_on(&mut vm);
        last = save(&vm, name, Some(&last));
    }
    vm.restore(&last);
    works_on(&mut vm);
    assert_eq!(vm.run("md5sum < /tmp/random"), sum);
    no_complaints(&mut vm);
}
