//! The README's invariants that a look at the sources can check: which room may
//! name what. A line that breaks one is named with the rule that it breaks.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The rooms that are crates of their own: what they may know at all is in their
/// manifests, and the compiler's.
const CRATES: [&str; 3] = ["model", "store", "wire"];

/// Each room of `src`, a folder or a file of its own, and the others that it uses; a
/// room uses only what stands above it here. Beside them are the programs.
const ROOMS: &[(&str, &[&str])] = &[
    ("account", &[]),
    ("auth", &[]),
    ("conditions", &[]),
    ("descriptors", &[]),
    ("images", &[]),
    ("kept", &[]),
    ("records", &[]),
    ("scheduler", &[]),
    ("tls", &["kept"]),
    ("vmm", &[]),
    ("storage", &["conditions"]),
    ("doctor", &["storage"]),
    ("metadata", &["descriptors", "kept"]),
    ("network", &["conditions", "descriptors", "metadata"]),
    ("config", &["auth", "conditions", "network", "tls"]),
    ("bootstrap", &["config", "records"]),
    ("compute", &["conditions", "network"]),
    (
        "api",
        &["auth", "bootstrap", "config", "records", "scheduler", "tls"],
    ),
    ("console", &["api", "compute"]),
    (
        "reconcile",
        &[
            "compute",
            "config",
            "images",
            "network",
            "records",
            "scheduler",
            "storage",
        ],
    ),
    (
        "simulation",
        &[
            "bootstrap",
            "compute",
            "conditions",
            "config",
            "network",
            "reconcile",
            "storage",
        ],
    ),
];

/// What wires the rooms together.
const PROGRAMS: [&str; 3] = ["lib", "main", "serve"];

/// Source files of a crate of [`CRATES`], under a folder of `src`, or that file
/// alone, with their text as far as their tests.
fn sources(room: &str) -> Vec<(PathBuf, String)> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = match CRATES.contains(&room) {
        true => own.join(room).join("src"),
        false => own.join("src").join(room),
    };
    let mut found = Vec::new();
    // A room may be a folder, a file, or both.
    let file = root.with_extension("rs");
    let mut left: Vec<_> = [root, file].into_iter().filter(|p| p.exists()).collect();
    while let Some(path) = left.pop() {
        let name = path.file_name().expect("a name").to_string_lossy();
        if name.contains("test") || name.starts_with("samples") {
            continue;
        }
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a folder of sources");
            left.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("a source");
            // Tests that stand in the file itself, at its end; not those in one of their own.
            let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
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

/// The paths of a tree of imports, as in `compute::{Observed, host::HostCompute}`.
fn expand(prefix: &str, tree: &str, found: &mut Vec<String>) {
    let Some((head, body)) = tree.split_once('{') else {
        found.push(format!("{prefix}{tree}"));
        return;
    };
    let prefix = format!("{prefix}{head}");
    let (mut depth, mut begin) = (0, 0);
    for (at, c) in body.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                expand(&prefix, &body[begin..at], found);
                begin = at + 1;
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
}

/// What a source names of its own crate, from behind `crate::`.
fn named(text: &str) -> Vec<String> {
    let code = text.lines().map(|line| line.split("//").next());
    let code: String = code.map(|line| line.unwrap_or_default()).collect();
    let mut found = Vec::new();
    for tree in code.split("crate::").skip(1) {
        let mut depth = 0;
        let whole = tree.find(|c: char| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            depth < 0 || (depth == 0 && !(c.is_alphanumeric() || "_:}".contains(c)))
        });
        let tree: String = tree[..whole.unwrap_or(tree.len())]
            .split_whitespace()
            .collect();
        expand("", &tree, &mut found);
    }
    found.retain(|path| !path.is_empty());
    found
}

#[test]
fn groups_of_imports_are_seen_through() {
    let text = "use crate::{\n    api, // as it is\n    compute::{Observed, host::{a, b}},\n};\n\
                fn f(x: crate::tls::Tls, y: Vec<crate::auth::Key>) {}";
    let all = [
        "api",
        "compute::Observed",
        "compute::host::a",
        "compute::host::b",
        "tls::Tls",
        "auth::Key",
    ];
    assert_eq!(named(text), all);
}

/// What decides and computes has no clock, no runtime, no host and no chance of its own.
#[test]
fn pure_rooms_are_pure() {
    let pure = [
        "model",
        "records",
        "scheduler",
        "wire",
        "auth/sigv4",
        "network/plan",
        "reconcile/instance/plan",
        "reconcile/instance/record",
    ];
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
        &lines_with(&pure, &words, &[]),
    );
    none(
        "the ids of what a launch and a default VPC make are all that is drawn by chance",
        &lines_with(
            &pure,
            &["rand::"],
            &["records/launch.rs", "records/default_vpc.rs"],
        ),
    );
}

/// Who touches the host is called `host`. `doctor` asks what it has, and is no part of
/// what serves.
#[test]
fn only_host_modules_touch_the_host() {
    let words = [
        "process::Command",
        " Command::new",
        "rtnetlink",
        "TUNSET",
        "ioctl",
    ];
    let rooms = ROOMS.iter().map(|(room, _)| *room);
    let rooms: Vec<_> = rooms.chain(PROGRAMS).chain(CRATES).collect();
    none(
        "Command, netlink, nft and ioctl appear in host modules and in doctor only",
        &lines_with(&rooms, &words, &["/host/", "/doctor/"]),
    );
}

/// The directions of the arrows.
#[test]
fn rooms_use_only_those_above_them() {
    let names: Vec<_> = ROOMS.iter().map(|(room, _)| *room).collect();
    let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    for entry in entries.expect("the sources") {
        let path = entry.expect("an entry").path();
        let room = path.file_stem().expect("a name").to_string_lossy();
        assert!(
            names.contains(&&*room) || PROGRAMS.contains(&&*room),
            "the room {room} has no place in ROOMS"
        );
    }
    let mut bad = Vec::new();
    for (place, (room, uses)) in ROOMS.iter().enumerate() {
        for used in *uses {
            let above = names[..place].contains(used);
            assert!(above, "{room} may not use {used}: it stands below");
        }
        for (path, text) in sources(room) {
            for named in named(&text) {
                let mut parts = named.split("::");
                let other = parts.next().unwrap_or_default();
                if other == *room || !names.contains(&other) {
                    continue;
                }
                let in_host = path.components().any(|part| part.as_os_str() == "host");
                if !uses.contains(&other) || (parts.next() == Some("host") && !in_host) {
                    bad.push(format!("{}: {named}", path.display()));
                }
            }
        }
    }
    none(
        "a room uses what ROOMS says, and nobody's host module",
        &bad,
    );
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

/// What refers to a resource is asked in one way.
#[test]
fn every_deletion_asks_what_refers_to_it() {
    let mut seen = 0;
    for (path, text) in sources("api") {
        let name = path.file_name().expect("a file").to_string_lossy();
        // What has no id of its own, nothing refers to.
        let parts = ["delete_tags.rs", "delete_launch_template_versions.rs"];
        if name.starts_with("delete_") && !parts.contains(&name.as_ref()) {
            seen += 1;
            let asks = text.contains("unreferred(");
            assert!(asks, "{} doesn't ask `unreferred`", path.display());
        }
    }
    assert!(seen > 2, "the search finds the deletions no more: {seen}");
}

/// What a handler changes is what it has read, or new.
#[test]
fn handlers_create_and_update() {
    none(
        "a handler creates a record or updates the one that it read; what is measured is overwritten",
        &lines_with(&["api", "records"], &[".overwrite("], &[]),
    );
}
