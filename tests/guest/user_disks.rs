//! Disks that qemu-storage-daemon serves (vhost-user-blk), with a stock kernel's driver.

use std::fs::File;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use hearth_tests::{Vm, wait};
use serde_json::{Value, json};

use crate::hotplug::{until, wait_paused};

/// The daemon over one raw file, ended when dropped.
struct Daemon {
    child: Child,
    folder: PathBuf,
}

impl Daemon {
    /// Over `disk.raw` in this folder, of 64 MiB if it isn't there, at `disk.sock`.
    fn start(folder: &Path) -> Self {
        let disk = folder.join("disk.raw");
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
