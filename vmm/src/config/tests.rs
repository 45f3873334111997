//! Command lines, right and wrong, and what they come to.

use hearth_vmm_api::SandboxLayer;

use super::*;
use crate::block::EngineKind;
use crate::memory::{Options, Pages};
use crate::virtio::limit::{Limits, Rate};

fn run(arguments: &[&str]) -> Result<Description, String> {
    let all = ["hearth-vmm", "--kernel", "/k"].iter().chain(arguments);
    parse(all).map_err(|refusal| match refusal {
        Refusal::Mistake(line) | Refusal::Information(line) => line,
    })
}

fn mistake(arguments: &[&str]) -> String {
    let line = run(arguments).expect_err("refused");
    assert!(!line.contains('\n'), "{line}");
    line
}

#[test]
fn memory_may_come_where_there_is_a_most() {
    let place = |text| {
        let description = run(&["--memory", text]).expect("is right");
        let has_device = description.devices.contains(&Device::Memory);
        assert_eq!(has_device, description.pluggable.is_some(), "{text}");
        let place = description.pluggable.map(|place| (place.start, place.size));
        (description.memory_bytes >> 20, place)
    };
    assert_eq!(place("64"), (64, None));
    assert_eq!(place("64,max=1024"), (64, Some((4 << 30, 960 << 20))));
    assert_eq!(
        place("5120,pages=4k,max=5122"),
        (5120, Some((6 << 30, 2 << 20)))
    );
    for (text, why) in [
        ("64,max=64", "--memory: max is 65 to 1048576, not \"64\""),
        ("64,max=65", "max is 64 and a multiple of 2, not 65"),
        ("64,max=many", "max is 65 to"),
        ("64,max=128,shared", "max goes with private memory"),
        ("64,max=128,pages=2m", "max goes with private memory"),
    ] {
        assert!(mistake(&["--memory", text]).contains(why), "{text}");
    }
}

#[test]
fn vcpus_may_come_where_there_is_a_most() {
    let vcpus = |text| {
        let description = run(&["--vcpus", text]).expect("is right");
        (description.vcpus, description.most_vcpus)
    };
    assert_eq!(vcpus("4"), (4, None));
    assert_eq!(vcpus("1,max=32"), (1, Some(32)));
    assert_eq!(vcpus("2,max=2"), (2, Some(2)));
}

#[test]
fn the_whole_command_line() {
    let description = run(&[
        "--id",
        "i-0123456789abcdef0",
        "--vcpus",
        "2",
        "--memory",
        "1024",
        "--disk",
        "path=/x/root.raw,id=root,serial=vol0123456789abcdef0",
        "--disk",
        "path=/x/data.raw,readonly,queues=3",
        "--nic",
        "id=eth0,mac=02:00:00:00:00:07,mtu=9001,tap-fd=5:7",
        "--nic",
        "tap=tap2,queues=4",
        "--tap",
        "tap1",
        "--socket",
        "/run/vmm.sock",
        "--smbios",
        "product=t3.micro,uuid=EC2a1b2c-3d4e-5f60-7182-93a4b5c6d7e8,asset-tag=i-1",
        "--daemonize",
    ])
    .expect("is right");
    assert_eq!(description.memory_bytes, 1 << 30);
    let disks: Vec<_> = description.disks().collect();
    assert_eq!(disks[1].id, "disk1");
    assert!(disks[1].read_only);
    assert_eq!(disks[0].queues, None);
    assert_eq!(disks[1].queues, Some(3));
    let nics: Vec<_> = description.nics().collect();
    assert_eq!(nics[0].tap, Tap::Fds(vec![5, 7]));
    assert_eq!(nics[0].mtu, 9001);
    let queues: Vec<_> = nics.iter().map(|nic| nic.queues).collect();
    assert_eq!(queues, [2, 4, 1]);
    assert_eq!(nics[2].tap, Tap::Name("tap1".into()));
    assert_eq!(nics[2].mac[0], 2);
    assert_eq!(description.identity.manufacturer, "Amazon EC2");
}

#[test]
fn memory_is_private_unless_it_is_said() {
    let memory = |text| run(&["--memory", text]).map(|description| description.memory);
    assert_eq!(memory("512"), Ok(Options::default()));
    for (text, shared, pages) in [
        ("512,shared", true, Pages::Transparent),
        ("512,pages=4k", false, Pages::Small),
        ("512,shared,pages=2m", true, Pages::Huge2M),
        ("2048,pages=1g", false, Pages::Huge1G),
    ] {
        assert_eq!(memory(text), Ok(Options { shared, pages }), "{text}");
    }
}

#[test]
fn a_machine_by_itself_is_not_ec2() {
    let description = run(&[]).expect("is right");
    assert_eq!(description.identity.manufacturer, "Hearth");
    assert!(!description.identity.uuid.to_string().starts_with("ec2"));
}

#[test]
fn every_mistake_is_one_line_with_its_name() {
    for (arguments, names) in [
        (&["--frobnicate"][..], "--frobnicate"),
        (&["--vcpus", "0"], "--vcpus 0"),
        (&["--vcpus", "33"], "--vcpus 33"),
        (&["--vcpus", "many"], "--vcpus"),
        (
            &["--vcpus", "2,max=1"],
            "--vcpus: max is 2 to 32, not \"1\"",
        ),
        (&["--vcpus", "2,max=33"], "max is 2 to 32"),
        (&["--vcpus", "2,most=4"], "--vcpus: \"most\" is not known"),
        (&["--memory", "63"], "--memory 63"),
        (&["--memory", "18446744073709551615"], "--memory"),
        (&["--memory", "much"], "--memory much"),
        (&["--memory", "512,pages=8k"], "8k"),
        (&["--memory", "513,pages=2m"], "2 MiB"),
        (&["--memory", "1536,pages=1g"], "1024 MiB"),
        (&["--memory", "512,shared=on"], "shared"),
        (&["--memory", "512,hot"], "\"hot\""),
        (&["--disk", "id=root"], "path=FILE"),
        (
            &["--disk", "path=/x,serial=123456789012345678901"],
            "serial",
        ),
        (&["--disk", "path=/x,cache=none"], "cache"),
        (&["--disk", "socket=/s"], "--memory MIB,shared"),
        (&["--disk", "socket=/s,path=/x"], "exclude"),
        (&["--disk", "socket=/s,readonly"], "readonly: the back end"),
        (&["--disk", "socket=/s,serial=x"], "serial: the back end"),
        (&["--disk", "socket=/s,engine=auto"], "engine: the back end"),
        (&["--disk", "socket=/s,ops-burst=2"], "limit it there"),
        (&["--disk", "socket=/s,cache=none"], "cache"),
        (&["--disk", "socket=/s,queues=17"], "queues 17"),
        (&["--disk", "path=/x,path=/y"], "twice"),
        (&["--disk", "path=/x,id=a", "--nic", "tap=t,id=a"], "\"a\""),
        (&["--tap", "t", "--nic", "tap=t"], "same tap"),
        (&["--disk", "path=/x,id=balloon"], "\"balloon\""),
        (&["--nic", "id=eth0"], "tap=NAME"),
        (&["--nic", "tap=a,tap-fd=4"], "exclude"),
        (&["--nic", "tap-fd=1"], "tap-fd"),
        (&["--nic", "tap-fd=5", "--nic", "tap-fd=4:5"], "same tap"),
        (&["--nic", "tap-fd=5:5"], "twice"),
        (&["--nic", "tap-fd=5:6,queues=3"], "3 queues"),
        (&["--nic", "tap=t,queues=17"], "queues 17"),
        (&["--nic", "tap=t,queues=many"], "--nic: queues"),
        (&["--disk", "path=/x,queues=many"], "--disk: queues"),
        (&["--disk", "path=/x,queues=0"], "queues 0"),
        (&["--nic", "tap=t,mac=01:00:00:00:00:00"], "mac"),
        (&["--nic", "tap=t,mtu=67"], "mtu"),
        (&["--nic", "tap=t,vhost=yes"], "vhost"),
        (&["--smbios", "uuid=ec2"], "uuid"),
        (&["--smbios", "vendor=me"], "vendor"),
        (&["--daemonize"], "--socket"),
        (
            &["--socket", "/s", "--console-socket", "/s"],
            "--console-socket",
        ),
        (&["--socket", "/s", "--gdb", "/s"], "--gdb"),
        (&["--console-socket", "/s", "--gdb", "/s"], "--gdb"),
        (&["--id", "a/b"], "--id"),
        (&["--nic", "tap=t,id=rng"], "\"rng\""),
        (&["--jail=sometimes"], "sometimes"),
        (&["--jail", "--jail-optional", "moat"], "moat"),
        (&["--jail-optional", "user"], "--jail"),
    ] {
        let line = mistake(arguments);
        assert!(line.contains(names), "{arguments:?}: {line}");
    }
}

#[test]
fn a_jail_requires_every_layer_but_those_named() {
    let jail = |arguments: &[&str]| run(arguments).expect("is right").jail;
    assert_eq!(jail(&[]), None);
    assert_eq!(jail(&["--jail"]), Some(Policy::default()));
    assert_eq!(jail(&["--jail=require"]), Some(Policy::default()));
    assert_eq!(jail(&["--jail=best-effort"]), Some(Policy::best_effort()));
    let optional = jail(&["--jail", "--jail-optional", "landlock,cgroup"]);
    let optional = optional.expect("a jail").optional;
    assert_eq!(optional, [SandboxLayer::Landlock, SandboxLayer::Cgroup]);
}

#[test]
fn a_missing_kernel_is_named() {
    let Err(Refusal::Mistake(line)) = parse(["hearth-vmm"]) else {
        panic!("refused");
    };
    assert!(line.contains("--kernel") && !line.contains('\n'), "{line}");
}

fn devices(arguments: &[&str]) -> Vec<Device> {
    run(arguments).expect("is right").devices
}

fn disk(text: &str) -> Disk {
    match devices(&["--disk", text]).swap_remove(0) {
        Device::Disk(disk) => disk,
        other => panic!("{other:?}"),
    }
}

fn nic(text: &str) -> Nic {
    match devices(&["--nic", text]).swap_remove(0) {
        Device::Nic(nic) => nic,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_disk_has_what_its_flag_says() {
    let full = "path=/x,id=a,serial=vol0123456789abcdef0,readonly,engine=threads,queues=16";
    let expected = Disk {
        id: "a".to_owned(),
        path: "/x".into(),
        serial: "vol0123456789abcdef0".to_owned(),
        read_only: true,
        engine: EngineKind::Threads,
        queues: Some(16),
        limits: Limits::NONE,
    };
    assert_eq!(disk(full), expected);
    let plain = disk("path=/x,id=a-name-of-more-than-twenty");
    assert_eq!(plain.serial, "a-name-of-more-than-");
    assert!(!plain.read_only);
    assert_eq!(plain.engine, EngineKind::Auto);
    assert_eq!(disk("path=/x,engine=auto").engine, EngineKind::Auto);
    assert_eq!(disk("path=/x,engine=io_uring").engine, EngineKind::IoUring);
    for (wrong, named) in [
        ("path=/x,serial=é", "serial"),
        ("path=/x,engine=fast", "engine"),
        ("path=/x,queues=17", "queues 17"),
        ("path=/x,readonly=yes", "readonly"),
        ("path=", "path"),
        ("path", "path"),
        ("path=/x,id=a b", "id"),
    ] {
        let line = mistake(&["--disk", wrong]);
        assert!(line.contains(named), "{wrong}: {line}");
    }
}

#[test]
fn a_nic_has_what_its_flag_says() {
    let full = nic("tap=t,id=a,mac=02:ab:CD:00:00:07,mtu=68,queues=16,vhost=on");
    let expected = Nic {
        id: "a".to_owned(),
        mac: [2, 0xab, 0xcd, 0, 0, 7],
        mtu: 68,
        tap: Tap::Name("t".to_owned()),
        queues: 16,
        vhost: Some(true),
        limits: Limits::NONE,
    };
    assert_eq!(full, expected);
    assert_eq!(nic("tap-fd=3").tap, Tap::Fds(vec![3]));
    assert_eq!(nic("tap=t").mtu, 1500);
    assert_eq!(nic("tap=t,vhost=off").vhost, Some(false));
    assert_eq!(nic("tap=t").vhost, None);
    for (wrong, named) in [
        ("tap-fd=2", "tap-fd"),
        ("tap-fd=x", "tap-fd"),
        ("tap=sixteen-bytes-xx", "interface name"),
        ("tap=a/b", "interface name"),
        ("tap=t,queues=0", "queues 0"),
        ("tap=t,mtu=65536", "mtu"),
        ("tap=t,id=a/b", "id"),
    ] {
        let line = mistake(&["--nic", wrong]);
        assert!(line.contains(named), "{wrong}: {line}");
    }
}

#[test]
fn a_disk_may_be_served_by_another_process() {
    let flags = [
        "--memory",
        "64,shared",
        "--disk",
        "socket=/s,queues=2",
        "--disk",
        "path=/x",
        "--disk",
        "id=third,socket=/t",
    ];
    let mut devices = devices(&flags);
    let ids: Vec<_> = devices[..3].iter().map(Device::id).collect();
    assert_eq!(ids, ["disk0", "disk1", "third"]);
    let expected = UserDisk {
        id: "disk0".to_owned(),
        socket: "/s".into(),
        queues: Some(2),
    };
    assert_eq!(devices[0], Device::UserDisk(expected));
    let (flag, socket) = devices[2].socket().expect("a socket");
    assert_eq!((flag, socket.to_str()), ("--disk", Some("/t")));
}

#[test]
fn a_disk_and_a_nic_may_be_limited() {
    let words = "ops=100,ops-burst=7,bytes=1000";
    let expected = Limits {
        operations: Rate::new(100, 7),
        bytes: Rate::new(1000, 1000),
    };
    assert_eq!(disk(&format!("path=/x,{words}")).limits, expected);
    assert_eq!(nic(&format!("tap=t,vhost=off,{words}")).limits, expected);
    assert_eq!(nic(&format!("tap=t,{words}")).limits, expected);
    for (wrong, named) in [
        ("ops=0", "ops"),
        ("ops=1,ops-burst=0", "ops"),
        ("bytes=-1", "bytes"),
        ("bytes=10M", "bytes"),
        ("bytes=18446744073709551616", "bytes"),
        ("bytes-burst=1", "rate"),
    ] {
        let line = mistake(&["--disk", &format!("path=/x,{wrong}")]);
        assert!(
            line.contains("--disk") && line.contains(named),
            "{wrong}: {line}"
        );
    }
    let line = mistake(&["--nic", "tap=t,vhost=on,ops=1"]);
    assert!(
        line.contains("tc(8)") && line.contains("vhost=off"),
        "{line}"
    );
}

#[test]
fn a_mac_is_six_pairs_of_digits_and_no_multicast() {
    for wrong in [
        "02:00:00:00:00",
        "02:00:00:00:00:00:00",
        "02:00:00:00:00:7",
        "02:00:00:00:00:007",
        "02:00:00:00:00:+7",
        "02:00:00:00:00:gg",
        "03:00:00:00:00:07",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
    ] {
        let line = mistake(&["--nic", &format!("tap=t,mac={wrong}")]);
        assert!(line.contains("mac"), "{wrong}: {line}");
    }
    assert_eq!(nic("tap=t,mac=00:00:00:00:00:01").mac, [0, 0, 0, 0, 0, 1]);
}

/// Guests know a card by its address and a machine by its UUID: neither may change
/// from one start to the next, nor with a new version of this program.
#[test]
fn what_is_derived_from_names_stays() {
    let of = |machine: &str| {
        let arguments = ["--id", machine, "--tap", "a", "--tap", "b"];
        let description = run(&arguments).expect("is right");
        let macs: Vec<_> = description.nics().map(|nic| nic.mac).collect();
        (macs, description.identity.uuid.to_string())
    };
    let (macs, uuid) = of("one");
    assert_eq!(
        macs,
        [
            [2, 0x16, 0xd0, 0x61, 0xc5, 0x3d],
            [2, 0x16, 0xd3, 0xc7, 0xc5, 0x3d],
        ]
    );
    assert_eq!(uuid, "4815b7b4-6adb-8d5d-bd3c-52f24e0e58ae");
    assert_ne!(of("two"), of("one"));
    // Version 8, and the variant of RFC 9562.
    assert_eq!(uuid.as_bytes()[14], b'8');
    assert!(b"89ab".contains(&uuid.as_bytes()[19]), "{uuid}");
}

#[test]
fn the_identity_is_what_its_flag_says() {
    let of = |text: &str| run(&["--id", "i-1", "--smbios", text]).map(|right| right.identity);
    let given = of("product=t3.micro,uuid=ec2a1b2c-3d4e-5f60-7182-93a4b5c6d7e8,asset-tag=t");
    let given = given.expect("is right");
    assert_eq!(given.product, "t3.micro");
    assert_eq!(given.asset_tag, "t");
    assert_eq!(
        given.uuid.to_string(),
        "ec2a1b2c-3d4e-5f60-7182-93a4b5c6d7e8"
    );
    let longest = "x".repeat(64);
    let plain = of(&format!("product={longest}")).expect("is right");
    assert_eq!(plain.product, longest);
    assert_eq!(plain.asset_tag, "i-1");
    for wrong in [format!("{longest}x"), "tab\there".into(), "é".into()] {
        for key in ["product", "asset-tag"] {
            let line = of(&format!("{key}={wrong}")).expect_err("refused");
            assert!(line.contains(key), "{wrong:?}: {line}");
        }
    }
}

#[test]
fn names_have_letters_digits_and_few_signs() {
    let longest = "x".repeat(64);
    let longer = "x".repeat(65);
    for right in ["a", "i-0.A_9", &longest] {
        assert_eq!(run(&["--id", right]).expect("is right").id, right);
        assert_eq!(disk(&format!("path=/x,id={right}")).id, right);
    }
    for wrong in ["", &longer, "a b", "a/b", "é"] {
        let line = mistake(&["--id", wrong]);
        assert!(line.contains("--id"), "{wrong:?}: {line}");
        let line = mistake(&["--disk", &format!("path=/x,id={wrong}")]);
        assert!(line.contains("id"), "{wrong:?}: {line}");
    }
}

#[test]
fn devices_come_in_the_order_of_their_slots() {
    let all = devices(&[
        "--virtio-console",
        "--balloon",
        "--vsock",
        "cid=3,path=/v",
        "--tap",
        "t",
        "--nic",
        "tap=s",
        "--disk",
        "path=/x",
    ]);
    let ids: Vec<&str> = all.iter().map(Device::id).collect();
    let expected = [
        "disk0", "eth0", "eth1", "rng", "balloon", "vsock", "console",
    ];
    assert_eq!(ids, expected);
    let expected = Vsock {
        cid: 3,
        path: "/v".into(),
    };
    assert_eq!(all[5..], [Device::Vsock(expected), Device::Console]);
    for wrong in [
        "cid=2,path=/v",
        "cid=4294967295,path=/v",
        "cid=3",
        "path=/v",
    ] {
        assert!(mistake(&["--vsock", wrong]).contains("--vsock"), "{wrong}");
    }
}

/// Only a vsock makes a socket: the jail has to know of it.
#[test]
fn sockets_of_devices_are_known() {
    let mut all = devices(&[
        "--disk",
        "path=/x",
        "--tap",
        "t",
        "--vsock",
        "cid=3,path=/v",
    ]);
    let sockets: Vec<_> = all.iter_mut().filter_map(Device::socket).collect();
    assert_eq!(sockets, [("--vsock", &mut PathBuf::from("/v"))]);
}

#[test]
fn a_bus_has_thirty_one_slots_for_devices() {
    let mut arguments = vec!["--disk".to_owned(), "path=/x".to_owned()];
    let all = |arguments: &[String]| {
        let all: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run(&all)
    };
    for index in 1..30 {
        arguments.extend(["--tap".to_owned(), format!("t{index}")]);
    }
    assert_eq!(all(&arguments).expect("is right").devices.len(), 31);
    arguments.push("--balloon".to_owned());
    assert!(all(&arguments).expect_err("refused").contains("31 slots"));
}

#[test]
fn free_slots_are_as_many_as_asked_for() {
    let last = |flags: &[&str]| run(flags).map(|description| description.last_slot);
    assert_eq!(last(&[]), Ok(31));
    // The entropy source and a disk.
    assert_eq!(last(&["--hotplug-slots", "0"]), Ok(1));
    let disk = ["--disk", "path=/x", "--hotplug-slots"];
    assert_eq!(last(&[&disk[..], &["4"]].concat()), Ok(6));
    assert_eq!(last(&[&disk[..], &["29"]].concat()), Ok(31));
    assert_eq!(
        last(&[&disk[..], &["30"]].concat()),
        Err("--hotplug-slots 30: beside 2 that are taken there are 29 slots".to_owned())
    );
    let restored = mistake(&["--restore", "x", "--hotplug-slots", "4"]);
    assert!(restored.contains("--hotplug-slots"), "{restored}");
}

#[test]
fn taking_over_goes_without_a_snapshot_and_a_trace() {
    let taking_over = |more: &[&str]| run(&[&["--take-over", "/s"][..], more].concat());
    let description = taking_over(&["--hotplug-slots", "4"]).expect("is right");
    assert_eq!(description.take_over, Some(PathBuf::from("/s")));
    for [flag, value] in [["--restore", "/f"], ["--exit-trace", "path=/t"]] {
        let mistake = taking_over(&[flag, value]).expect_err("refused");
        assert!(mistake.contains(flag), "{mistake}");
    }
}

#[test]
fn who_takes_over_may_leave_the_kernel_as_it_is() {
    let parse = |flags: &[&str]| {
        parse(["hearth-vmm"].iter().chain(flags)).map_err(|refusal| match refusal {
            Refusal::Mistake(line) | Refusal::Information(line) => line,
        })
    };
    let description = parse(&["--take-over", "/s"]).expect("is right");
    assert_eq!(description.kernel, None);
    for flags in [&[][..], &["--take-over", "/s", "--initrd", "/i"]] {
        let mistake = parse(flags).expect_err("refused");
        assert!(mistake.contains("--kernel"), "{mistake}");
    }
}

#[test]
fn an_exit_trace_is_bounded() {
    let trace = |text| run(&["--exit-trace", text]).map(|description| description.exit_trace);
    let of = |exits| {
        let path = PathBuf::from("/t");
        Ok(Some(ExitTrace { path, exits }))
    };
    assert_eq!(trace("path=/t"), of(1 << 20));
    assert_eq!(trace("path=/t,exits=7"), of(7));
    assert_eq!(
        mistake(&["--exit-trace", "exits=7"]),
        "--exit-trace: path=FILE is missing"
    );
    for many in ["0", "16777217", "many"] {
        let text = format!("path=/t,exits={many}");
        let wrong = format!("--exit-trace: exits {many:?}: 1 to 16777216 are allowed");
        assert_eq!(mistake(&["--exit-trace", &text]), wrong);
    }
}

#[test]
fn files_and_limits_are_passed_on() {
    let description = run(&[
        "--initrd",
        "/i",
        "--cmdline",
        "-a b",
        "--vcpus",
        "32",
        "--memory",
        "64",
        "--socket",
        "/s",
        "--serial-log",
        "/l",
        "--console-socket",
        "/c",
        "--gdb",
        "/d",
        "--exit-file",
        "/e",
        "--pid-file",
        "/p",
        "--uid",
        "7",
        "--gid",
        "8",
        "--allow",
        "/f",
        "--allow",
        "/g",
    ])
    .expect("is right");
    let path = |text: &str| Some(PathBuf::from(text));
    assert_eq!(description.kernel, path("/k"));
    assert_eq!(description.initrd, path("/i"));
    assert_eq!(description.cmdline, "-a b");
    assert_eq!(description.vcpus, 32);
    assert_eq!(description.memory_bytes, 64 << 20);
    assert_eq!(description.socket, path("/s"));
    assert_eq!(description.serial_log, path("/l"));
    assert_eq!(description.console_socket, path("/c"));
    assert_eq!(description.gdb, path("/d"));
    assert_eq!(description.exit_file, path("/e"));
    assert_eq!(description.pid_file, path("/p"));
    assert_eq!((description.uid, description.gid), (Some(7), Some(8)));
    assert_eq!(description.allow, ["/f", "/g"].map(PathBuf::from));
    assert!(!description.daemonize);
    let daemon = run(&["--daemonize", "--socket", "/s"]);
    assert!(daemon.expect("is right").daemonize);
    let none = run(&[]).expect("is right");
    assert_eq!((none.socket, none.console_socket), (None, None));
    assert_eq!(none.cmdline, "console=ttyS0");
    assert!(mistake(&["--cmdline", "a\0b"]).contains("--cmdline"));
}

#[test]
fn help_is_no_mistake() {
    for flag in ["--help", "--version"] {
        let Err(Refusal::Information(text)) = parse(["hearth-vmm", flag]) else {
            panic!("{flag} is a mistake");
        };
        assert!(text.contains("hearth-vmm"), "{text}");
    }
}

/// Clap's first paragraph may have several lines, and others that say more follow it.
#[test]
fn a_message_is_its_first_paragraph_on_one_line() {
    let message = "error: the following are missing:\n  --kernel <FILE>\n\nUsage: x\n";
    let line = "the following are missing: --kernel <FILE>";
    assert_eq!(one_line(message), line);
}

#[test]
fn a_template_is_called_what_is_found_nowhere_else() {
    let with = |tag: &str| {
        let smbios = format!("uuid=ec2c0ffe-dead-beef-0bad-f00dfeedface,asset-tag={tag}");
        mistake(&["--template", "2", "--smbios", &smbios])
    };
    assert!(with("short").contains("has 5 bytes"), "{}", with("short"));
    assert!(mistake(&["--template", "2"]).contains("--smbios"));
    let smbios = ["--smbios", "asset-tag=0123456789abcdef"];
    let many = [&["--template", "31"][..], &smbios].concat();
    let wrong = "--template 31: of 31 slots, devices take 1";
    assert_eq!(mistake(&many), wrong);
    let both = [&["--template", "2", "--restore", "x"][..], &smbios].concat();
    assert!(mistake(&both).contains("--restore"));
}
