//! The README's invariants that a look at the sources can check: which room may
//! name what. A line that breaks one is named with the rule that it breaks.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The rooms that are crates of their own: what they may know at all is in their
/// manifests, and the compiler's.
const CRATES: [&str; 3] = ["model", "store", "wire"];

/// Source files of a crate of [`CRATES`], under a folder of `src`, or that file
/// alone, with their text as far as their tests.
fn sources(room: &str) -> Vec<(PathBuf, String)> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = match CRATES.contains(&room) {
        true => own.join(room).join("src"),
        false => own.join("src").join(room),
    };
    let mut found = Vec::new();
    let mut left = vec![root];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a folder of sources");
            left.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name = path
                .file_name()
                .expect("a file")
                .to_string_lossy()
                .into_owned();
            if name.contains("test") || name == "samples.rs" {
                continue;
            }
            let text = fs::read_to_string(&path).expect("a source");
            let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
            found.push((path, text[..end].to_owned()));
        }
    }
    assert!(!found.is_empty(), "there is no room {room}");
    found
}

/// The lines of the rooms that have one of these words, comments left out.
fn lines_with(rooms: &[&str], words: &[&str], but: &[&str]) -> Vec<String> {
    let mut bad = Vec::new();
    for (path, text) in rooms.iter().flat_map(|room| sources(room)) {
        let shown = path.display().to_string();
        if but.iter().any(|part| shown.contains(part)) {
            continue;
        }
        for (number, line) in (1..).zip(text.lines()) {
            let code = line.split("//").next().unwrap_or_default();
            if words.iter().any(|word| code.contains(word)) {
                bad.push(format!("{shown}:{number}: {}", line.trim()));
            }
        }
    }
    bad
}

fn none(rule: &str, bad: &[String]) {
    assert!(bad.is_empty(), "{rule}:\n{}", bad.join("\n"));
}

/// What decides and computes has no clock, no runtime and no host of its own.
#[test]
fn pure_rooms_are_pure() {
    let words = [
        "tokio",
        "std::fs",
        "std::process",
        "std::time::Instant",
        "Timestamp::now",
        "SystemTime",
        "rustix",
        "nix::",
        "libc::",
    ];
    none(
        "model, records, scheduler, wire formats, SigV4 and network plans are pure",
        &lines_with(
            &[
                "model",
                "records",
                "scheduler",
                "wire",
                "auth/sigv4.rs",
                "network/plan",
                "reconcile/instance/plan.rs",
                "reconcile/instance/record.rs",
            ],
            &words,
            &[],
        ),
    );
}

/// Who touches the host is called `host`.
#[test]
fn only_host_modules_touch_the_host() {
    let words = ["Command::new", "rtnetlink::", "TUNSETIFF", "nix::ioctl"];
    none(
        "Command, netlink, nft and ioctl appear in host modules only",
        &lines_with(
            &[
                "api",
                "auth",
                "model",
                "records",
                "reconcile",
                "scheduler",
                "store",
                "metadata",
            ],
            &words,
            &[],
        ),
    );
}

/// The directions of the arrows.
#[test]
fn rooms_know_only_those_below_them() {
    for (room, others) in [
        (
            "records",
            &["crate::api", "crate::reconcile", "crate::config"][..],
        ),
        ("scheduler", &["crate::api", "crate::reconcile"]),
        (
            "api",
            &[
                "crate::reconcile",
                "crate::compute::host",
                "crate::storage::host",
            ],
        ),
        ("network", &["crate::api", "crate::reconcile"]),
        ("compute", &["crate::api", "crate::reconcile"]),
        ("storage", &["crate::api", "crate::reconcile"]),
        ("reconcile", &["crate::api"]),
    ] {
        none(
            &format!("{room} knows nothing of {others:?}"),
            &lines_with(&[room], others, &[]),
        );
    }
}

/// A handler leaves its scope through declared doors, of which the widest has
/// few users.
#[test]
fn the_whole_cloud_is_seen_for_capacity_and_addresses_alone() {
    none(
        "only RunInstances and StartInstances look at the whole cloud",
        &lines_with(
            &["api"],
            &[".whole()"],
            &["run_instances", "start_instances"],
        ),
    );
    none(
        "a handler's view comes from its context",
        &lines_with(&["api/ec2", "api/sts"], &["db.view()", "Db::"], &[]),
    );
}
