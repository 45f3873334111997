//! What the machine says it is, to those who ask in a stock Debian.

use std::process::Command;

use hearth_tests::Vm;

const UUID: &str = "ec2a1b2c-3d4e-4f50-8182-93a4b5c6d7e8";

#[test]
fn a_stock_debian_takes_it_for_ec2() {
    let smbios = format!("product=t3.micro,uuid={UUID},asset-tag=i-0123456789abcdef0");
    let dir = tempfile::tempdir().expect("a folder");
    let tar = dir.path().join("dmidecode.tar");
    let made = Command::new("sh")
        .args([
            "-c",
            "exec tar -chf $1 -C $(dirname $(command -v dmidecode)) dmidecode",
        ])
        .arg("sh")
        .arg(&tar)
        .status();
    assert!(made.is_ok_and(|status| status.success()), "no dmidecode");
    let mut vm = Vm::of("debian-12")
        .memory_mib(512)
        .args(&["--smbios", &smbios])
        .args(&["--disk", &format!("path={},readonly", tar.display())])
        .boot();
    for (file, wanted) in [
        ("sys_vendor", "Amazon EC2"),
        ("product_name", "t3.micro"),
        ("product_uuid", UUID),
        ("product_serial", UUID),
        ("board_asset_tag", "i-0123456789abcdef0"),
    ] {
        assert_eq!(
            vm.run(&format!("cat /sys/class/dmi/id/{file}")),
            wanted,
            "{file}"
        );
    }
    // A disk with our own dmidecode, which is Debian's as well.
    vm.run("mount -t tmpfs tmp /tmp; tar -C /tmp -xf /dev/vdb");
    let text = vm.run("/tmp/dmidecode");
    for complaint in ["BAD INDEX", "OUT OF SPEC", "TRUNCATED", "nvalid", "rong"] {
        assert!(!text.contains(complaint), "{complaint}: {text}");
    }
    assert!(text.contains("Product Name: t3.micro"), "{text}");

    vm.run("mount -t tmpfs run /run; mkdir -p /run/cloud-init");
    vm.run("/usr/lib/cloud-init/ds-identify --force; true");
    let found = vm.run("cat /run/cloud-init/cloud.cfg");
    assert!(found.contains("Ec2"), "{found}");
}

#[test]
fn the_kernel_finds_the_generation_id() {
    let mut vm = Vm::of("micro").boot();
    // Debian's cloud kernel has no driver for it; one that has, looks for this name.
    assert_eq!(
        vm.run("cat /sys/bus/acpi/devices/HRTH0001:00/modalias"),
        "acpi:HRTH0001:VM_GEN_COUNTER:"
    );
}

#[test]
fn a_kernel_with_the_driver_takes_the_generation_id() {
    // This host's own kernel, with nothing but busybox; Debian's has CONFIG_VMGENID=y.
    let release = nix::sys::utsname::uname().expect("uname");
    let kernel = format!("/boot/vmlinuz-{}", release.release().display());
    let dir = tempfile::tempdir().expect("a folder");
    let initrd = dir.path().join("initrd");
    let made = Command::new("sh")
        .arg("-c")
        .arg(format!(
            "set -e; cd {}; mkdir -p t/bin t/proc t/sys t/dev; cp $(command -v busybox) t/bin/; \
             cd t; for i in sh ls mount stty cat; do ln -s busybox bin/$i; done; \
             find . | busybox cpio -o -H newc > {}",
            dir.path().display(),
            initrd.display()
        ))
        .status();
    assert!(made.is_ok_and(|status| status.success()), "no initrd");
    let mut vm = Vm::of("micro")
        .kernel(kernel.as_ref(), &initrd)
        .append("rdinit=/bin/sh")
        .boot();
    let bound = vm.run("ls /sys/bus/acpi/drivers/vmgenid");
    assert!(bound.contains("HRTH0001:00"), "{bound}");
}
