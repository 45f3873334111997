//! A cloud whose disk is full to the last byte.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
};

use crate::hearth::{Answer, Hearth};

/// Gives the command after it a data folder on a small file system of its own.
const SMALL: [&str; 6] = [
    "unshare",
    "--mount",
    "sh",
    "-ec",
    "mount -t tmpfs -o size=96m,mode=711 small \"$DATA\"; exec \"$@\"",
    "sh",
];

/// Tags that take some 12 KiB.
fn create_tags(hearth: &Hearth, id: &str) -> Answer {
    let value = "v".repeat(256);
    let tags: Vec<(String, &str)> = (1..=40)
        .flat_map(|n| {
            [
                (format!("Tag.{n}.Key"), "key"),
                (format!("Tag.{n}.Value"), &*value),
            ]
        })
        .collect();
    let keys: Vec<String> = (1..=40).map(|n| format!("key-{n}")).collect();
    let mut parameters = vec![("ResourceId.1", id)];
    for (n, (name, value)) in tags.iter().enumerate() {
        parameters.push((name, if *value == "key" { &keys[n / 2] } else { value }));
    }
    hearth.ec2("CreateTags", &parameters)
}

#[test]
#[ignore = "mounts a file system: needs root (--include-ignored)"]
fn who_makes_room_is_heard_where_the_disk_is_full() {
    let mut hearth = Hearth::start(&SMALL);
    let first = hearth.run_instances(1, &[]).done();
    let first = first.one("instanceId").to_owned();
    hearth.settled();
    let protect = |value| {
        let protection = [
            ("InstanceId", first.as_str()),
            ("DisableApiTermination.Value", value),
        ];
        hearth.ec2("ModifyInstanceAttribute", &protection).done();
    };
    protect("true");
    let filler = hearth.data().join("filler");
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&filler)
        .expect("there is room yet");
    for size in [1 << 20, 4096, 1] {
        let chunk = vec![0xa5; size];
        while file.write_all(&chunk).is_ok() {}
    }
    drop(file);
    fs::write(hearth.data().join("more"), "more").expect_err("the disk is full");

    // The store has space of its own, of which a part is for who makes room. Nobody
    // else gets at that, whatever they ask for and however often.
    let user_data = "QUFB".repeat(5000);
    let run = || hearth.run_instances(5, &[("UserData", &user_data)]);
    let mut calls = 0;
    let refused = loop {
        let answer = run();
        if answer.status != 200 {
            break answer;
        }
        calls += 1;
        assert!(calls < 1000, "the disk isn't full");
    };
    let full = |answer: &Answer| {
        assert_eq!((answer.status, answer.refused()), (503, "Unavailable"));
        let message = answer.one("Message");
        assert!(
            message.contains("disk") && message.contains("full"),
            "{message}"
        );
    };
    full(&refused);
    let small = [("ResourceId.1", first.as_str()), ("Tag.1.Key", "a")];
    for _ in 0..20 {
        full(&create_tags(&hearth, &first));
        full(&hearth.ec2("CreateTags", &small));
        full(&run());
    }

    // Its record is bigger without the protection.
    protect("false");
    hearth.settled();
    let all = hearth.instances("running");
    assert_eq!(all.len(), 1 + 5 * calls);
    let (one, others) = all.split_first().expect("some");
    let stopped = hearth.ec2("StopInstances", &[("InstanceId.1", one)]).done();
    assert_eq!(stopped.one("instanceId"), one);
    let ended = hearth.terminate(others).done();
    assert_eq!(ended.all("instanceId"), others);
    hearth.settled();
    assert_eq!(hearth.instances("stopped"), [one.as_str()]);
    assert_eq!(hearth.instances("terminated").len(), 5 * calls);
    assert!(hearth.is_alive());

    fs::remove_file(&filler).expect("removed");
    create_tags(&hearth, &first).done();
    let again = hearth.run_instances(1, &[]).done();
    hearth.settled();
    assert_eq!(hearth.instances("running"), again.all("instanceId"));
}
