//! A cloud whose disk is full to the last byte.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::PathBuf,
};

use crate::{
    accounts::{account, key, known, said, unknown},
    hearth::{Answer, Hearth},
};

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

/// Leaves no byte on the file system of its data; the file that takes it.
fn fill(hearth: &Hearth) -> PathBuf {
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
    filler
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
    let filler = fill(&hearth);

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
    // There is a little room for less.
    let group = |n| {
        let name = format!("group-{n}");
        let group = [("GroupName", name.as_str()), ("GroupDescription", "small")];
        hearth.ec2("CreateSecurityGroup", &group)
    };
    let refused = (0..400).map(group).find(|answer| answer.status != 200);
    full(&refused.expect("the disk is full"));
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

#[test]
#[ignore = "mounts a file system: needs root (--include-ignored)"]
fn a_launch_that_has_no_room_as_a_whole_launches_nothing() {
    let hearth = Hearth::start(&SMALL);
    hearth.run_instances(1, &[]).done();
    hearth.settled();
    let filler = fill(&hearth);
    // A hundred of them would have.
    let value = "v".repeat(256);
    let mut tags = vec![(
        "TagSpecification.1.ResourceType".to_owned(),
        "instance".to_owned(),
    )];
    for n in 1..=20 {
        let tag = format!("TagSpecification.1.Tag.{n}");
        tags.push((format!("{tag}.Key"), n.to_string()));
        tags.push((format!("{tag}.Value"), value.clone()));
    }
    let tags: Vec<_> = tags.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let refused = hearth.run_instances(1000, &tags);
    assert_eq!((refused.status, refused.refused()), (503, "Unavailable"));
    fs::remove_file(&filler).expect("removed");
    // Whatever else were begun would come before this one.
    hearth.run_instances(1, &[]).done();
    hearth.settled();
    assert_eq!(hearth.instances("running").len(), 2);
    for state in ["pending", "shutting-down", "terminated"] {
        assert!(hearth.instances(state).is_empty(), "{state}");
    }
}

#[test]
#[ignore = "mounts a file system: needs root (--include-ignored)"]
fn a_key_can_be_ended_where_the_disk_is_full() {
    const OTHER: &str = "111122223333";
    let hearth = Hearth::start(&SMALL);
    let first = key(&account(&hearth, &["create", "--id", OTHER]));
    let filler = fill(&hearth);
    let second = key(&account(&hearth, &["rotate", OTHER, "--keep"]));
    known(&hearth, &first, OTHER);
    let third = key(&account(&hearth, &["rotate", OTHER]));
    unknown(&hearth, &first);
    unknown(&hearth, &second);
    known(&hearth, &third, OTHER);

    // Who makes accounts as long as that goes leaves space to replace a key.
    let made = (0..1000).map(|_| account(&hearth, &["create"]));
    let made = made.take_while(|made| made.status.success()).count();
    assert!(made < 1000);
    unknown(&hearth, &first);
    let fourth = key(&account(&hearth, &["rotate", OTHER]));
    unknown(&hearth, &third);
    let list = account(&hearth, &["list"]);
    let list = said(&list).to_owned();
    let others = list
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next());
    for id in others.filter(|id| *id != OTHER && *id != "000000000000") {
        said(&account(&hearth, &["delete", id]));
    }
    let third = fourth;

    // What needs more than is kept says so, and takes nothing of that.
    let refused = account(&hearth, &["create", "--name", &"n".repeat(1 << 14)]);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{error}");
    assert!(error.contains("the disk is full"), "{error}");
    let list = account(&hearth, &["list"]);
    assert_eq!(said(&list).lines().count(), 2);
    said(&account(&hearth, &["delete", OTHER]));
    unknown(&hearth, &third);

    fs::remove_file(&filler).expect("removed");
    said(&account(
        &hearth,
        &["create", "--name", &"n".repeat(1 << 14)],
    ));
    known(&hearth, &hearth.key, "000000000000");
}
