//! What the machine says it is, to those who ask in a stock Debian.

use hearth_tests::Vm;

const UUID: &str = "ec2a1b2c-3d4e-4f50-8182-93a4b5c6d7e8";

#[test]
fn a_stock_debian_takes_it_for_ec2() {
    let smbios = format!("product=t3.micro,uuid={UUID},asset-tag=i-0123456789abcdef0");
    let mut vm = Vm::of("debian-12")
        .memory_mib(512)
        .args(&["--smbios", &smbios])
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
