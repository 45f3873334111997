//! Stock kernels that were held in their initramfs, and go on in copies of that machine,
//! each as one of its own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_tests::Vm;
use serde_json::json;

use crate::hotplug::wait_paused;

/// What a template is called: made up, and found nowhere else.
const UUID: &str = "ec2c0ffe-1dea-4bad-8ace-0ddba11f00d5";
const TAG: &str = "i-0ddba11c0ffee0bad";
/// What an image's initramfs says when it holds.
const HELD: &str = "hearth.hold: held";

fn smbios(uuid: &str, tag: &str) -> String {
    format!("product=t3.micro,uuid={uuid},asset-tag={tag}")
}

/// A template of an image, whose snapshot is in a folder.
fn template(image: &str, memory_mib: u64) -> (Vm, PathBuf) {
    let mut vm = Vm::of(image)
        .memory_mib(memory_mib)
        .without_disk()
        .append("hearth.hold")
        .args(&["--template", "2", "--smbios", &smbios(UUID, TAG)])
        .start();
    vm.wait_for_console(HELD, 180);
    // Whatever it does besides has an end.
    std::thread::sleep(Duration::from_secs(1));
    vm.api("PUT", "/v1/pause", None);
    wait_paused(&vm);
    let snapshot = vm.dir.path().join("snapshot");
    std::fs::create_dir(&snapshot).expect("a folder");
    let body = json!({ "path": snapshot });
    vm.api("PUT", "/v1/snapshot", Some(&body));
    vm.kill();
    (vm, snapshot)
}

fn copy_of(image: &str, memory_mib: u64, snapshot: &Path, number: u32) -> (Vm, String, String) {
    let uuid = format!("ec2{number:05x}-1111-4222-8333-444455556666");
    let tag = format!("i-{number:017x}");
    let snapshot = snapshot.to_str().expect("text");
    let vm = Vm::of(image)
        .memory_mib(memory_mib)
        .args(&["--restore", snapshot, "--smbios", &smbios(&uuid, &tag)])
        .boot();
    (vm, uuid, tag)
}

/// Has copies say what must be theirs alone.
fn each_is_its_own(image: &str, memory_mib: u64, copies: u32) {
    let (_template, snapshot) = template(image, memory_mib);
    let mut drawn = BTreeSet::new();
    for number in 1..=copies {
        let (mut vm, uuid, tag) = copy_of(image, memory_mib, &snapshot, number);
        // Before anything else: the first that it draws.
        let random = vm.run("head -c 16 /dev/urandom | od -An -tx1");
        assert!(drawn.insert(random.clone()), "drawn before: {random}");
        let boot = vm.run("cat /proc/sys/kernel/random/boot_id");
        assert!(drawn.insert(boot.clone()), "drawn before: {boot}");
        for (file, wanted) in [
            ("product_name", "t3.micro"),
            ("product_uuid", &uuid),
            ("product_serial", &uuid),
            ("board_asset_tag", &tag),
            ("chassis_asset_tag", &tag),
        ] {
            let text = vm.run(&format!("cat /sys/class/dmi/id/{file}"));
            assert_eq!(text, wanted, "{file}");
        }
        let table = vm.run("tr '\\000' '\\n' < /sys/firmware/dmi/tables/DMI");
        assert!(table.contains(&uuid) && !table.contains(UUID), "{table}");
        assert_eq!(
            vm.run("basename $(readlink -f /sys/class/block/vda/../../..)"),
            "0000:00:01.0",
            "as in a cold boot"
        );
        let complaints = vm.try_run("dmesg | grep -iE 'lockup|stall|i/o error|hung'");
        assert_eq!(complaints.stdout, "", "{}", complaints.stdout);
        if number == 1 {
            vm.api("PUT", "/v1/reset", None);
            vm.wait_for_shell();
            let cold = vm.run("cat /sys/class/dmi/id/product_uuid /proc/cmdline");
            assert!(cold.starts_with(&uuid), "{cold}");
            assert!(!cold.contains("hearth.hold"), "{cold}");
        }
    }
}

#[test]
fn copies_of_a_held_micro_are_machines_of_their_own() {
    each_is_its_own("micro", 256, 3);
}
