//! A template, and machines that go on from it, each as one of its own.

use super::driver::in32;
use super::*;

const UUID: &str = "ec2c0ffe-dead-beef-0bad-f00dfeedface";
const TAG: &str = "i-fefefefefefefefef";

/// How much of the SMBIOS tables is printed, in bytes.
const TABLES: usize = 0x200;

/// Says a dot, asks for events until slots have changed (`mov dx, 0x610; in al, dx; test
/// al, 2; je`), and says what it is called and which slots were filled: `mov esi, 0xf0000;
/// mov ecx, 0x200; mov dx, 0x3f8; lodsb; out dx, al; loop` to the `lodsb`, and `out dx, al`.
fn held() -> Vec<u8> {
    let wait = [0x66, 0xba, 0x10, 0x06, 0xec, 0xa8, 0x02, 0x74, 0xf7];
    let print = [
        0xbe, 0x00, 0x00, 0x0f, 0x00, 0xb9, 0x00, 0x02, 0x00, 0x00, 0x66, 0xba, 0xf8, 0x03, 0xac,
        0xee, 0xe2, 0xfc,
    ];
    let say = [0x66, 0xba, 0xf8, 0x03, 0xee];
    let code = [out(0x3f8, b'.'), wait.to_vec(), print.to_vec(), in32(0x614)];
    [
        code.concat(),
        say.to_vec(),
        AWAIT_BUTTON.to_vec(),
        power_off(),
    ]
    .concat()
}

fn smbios(uuid: &str, tag: &str) -> [String; 2] {
    let text = format!("product=t3.micro,uuid={uuid},asset-tag={tag}");
    ["--smbios".to_owned(), text]
}

fn count(log: &[u8], what: &[u8]) -> usize {
    log.windows(what.len()).filter(|part| *part == what).count()
}

#[test]
fn each_copy_of_a_template_is_a_machine_of_its_own() {
    let Some(bench) = Bench::new(&held()) else {
        return;
    };
    let template = ["--template", "2"];
    let child = bench
        .command()
        .args(template)
        .args(smbios(UUID, TAG))
        .start();
    until("held", || bench.log() == b".");
    bench.listens("socket");
    // Who takes it over has a template, too, that is called the same.
    let other = [
        &template.map(str::to_owned)[..],
        &smbios(UUID, "i-0000000000000000"),
    ]
    .concat();
    for (flags, why) in [
        (smbios(UUID, TAG).to_vec(), "no --template"),
        (other, "another --smbios"),
    ] {
        let mut command = bench.command();
        command.args(flags).arg("--take-over");
        let output = command.arg(bench.path("socket")).output();
        let output = output.expect("hearth-vmm runs");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let line = String::from_utf8(output.stderr).expect("text");
        assert!(line.contains(why), "{line}");
        let runs = || bench.machine().state == MachineState::Running;
        until("it goes on", runs);
    }
    bench.snapshot("snapshot");
    bench.stop(child);
    for copy in 1..=3u8 {
        std::fs::remove_file(bench.path("serial")).expect("a log");
        let disk = bench.path(&format!("disk{copy}"));
        let file = std::fs::File::create_new(&disk).expect("a disk");
        file.set_len(1 << 20).expect("grows");
        let uuid = format!("ec2{copy}0000-dead-beef-0bad-f00dfeedface");
        let tag = format!("i-{copy}0123456789abcdef");
        let child = bench
            .restored("snapshot")
            .args(smbios(&uuid, &tag))
            .arg("--disk")
            .arg(format!("path={},id=root", disk.display()))
            .start();
        until("says what it is", || bench.log().len() > TABLES);
        let log = bench.log();
        assert_eq!(log.len(), TABLES + 1, "{log:?}");
        // The slot that the template has left free.
        assert_eq!(log[TABLES], 1 << 1);
        assert_eq!(bench.machine().disks[0].slot, 1);
        // The serial number; the asset tags of board and chassis.
        assert_eq!(count(&log, uuid.as_bytes()), 1);
        assert_eq!(count(&log, tag.as_bytes()), 2);
        let raw = [0x00, 0x00, 0x20 | copy, 0xec];
        assert_eq!(count(&log, &raw), 1, "the UUID's first field, backwards");
        for of_template in [UUID, TAG] {
            assert_eq!(count(&log, of_template.as_bytes()), 0);
        }
        bench.listens("socket");
        bench.stop(child);
    }
    let other = bench
        .restored("snapshot")
        .args(smbios(UUID, "i-0"))
        .output()
        .expect("hearth-vmm runs");
    let line = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(ExitStatus::Unrestorable.is(other.status.code()), "{line}");
    assert!(
        line.contains("its asset tag") || line.contains("asset tag has"),
        "{line}"
    );
}
