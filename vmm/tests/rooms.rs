//! Which room of the VMM may name which: a room is a module of the crate's root. Those
//! that a room names stand above it, so there are no circles.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each room, and those that it may name.
const ROOMS: [(&str, &[&str]); 24] = [
    // Locks and atomics, or the models of them.
    ("sync", &[]),
    ("memory", &["sync"]),
    // Why a saved state is refused, which every machine that has one says.
    ("snapshot", &[]),
    ("arch", &["memory", "snapshot"]),
    ("epoll", &[]),
    ("error", &[]),
    // Whose system calls its filters are for.
    ("jail", &["arch"]),
    ("listener", &[]),
    // Who had the machine is hung up on.
    ("handover", &["listener"]),
    ("acpi", &["arch", "snapshot"]),
    // `irq/kvm.rs` has its addresses from there.
    ("irq", &["arch"]),
    ("smbios", &["arch"]),
    // What firmware finds: registers, and a file.
    ("board", &["arch"]),
    ("pci", &["irq", "snapshot", "sync"]),
    // What is behind devices on the host knows nothing of virtio.
    ("block", &["epoll", "memory"]),
    // Queues that are served elsewhere: what the kernel and other processes are told alike.
    ("vhost", &["epoll", "memory"]),
    ("net", &["memory", "vhost"]),
    ("serial", &["listener", "snapshot"]),
    // Devices never know KVM, and only their transport knows PCI.
    (
        "virtio",
        &[
            "block", "epoll", "irq", "jail", "memory", "net", "pci", "serial", "snapshot", "vhost",
        ],
    ),
    (
        "config",
        &["arch", "block", "jail", "memory", "smbios", "virtio"],
    ),
    // What a request is, and not how it is done.
    ("control", &["listener"]),
    (
        "machine",
        &[
            "acpi", "arch", "block", "board", "config", "handover", "irq", "jail", "memory", "net",
            "pci", "serial", "smbios", "snapshot", "sync", "virtio",
        ],
    ),
    // A client of the machine, and of no more of it than its processors and memory.
    ("gdb", &["arch", "error", "listener", "machine", "memory"]),
    (
        "run",
        &[
            "arch", "config", "control", "error", "gdb", "handover", "jail", "listener", "machine",
            "net", "serial", "snapshot", "virtio",
        ],
    ),
];

/// The machine's processors, a folder of their own: they run on its bus.
const IN_MACHINE: &str = "vcpu";

/// Who may know KVM.
const KNOW_KVM: [&str; 4] = ["arch/", "irq/kvm.rs", "machine/", "vcpu/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file: its path within `src`, and its text.
fn files() -> Vec<(String, String)> {
    let root = root();
    let mut found = Vec::new();
    let mut left = vec![root.clone()];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a folder of sources");
            left.extend(entries.map(|entry| entry.expect("an entry").path()));
            continue;
        }
        let name = path.strip_prefix(&root).expect("within").to_string_lossy();
        if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).expect("a source");
            found.push((name.into_owned(), text));
        }
    }
    found
}

/// Those but the files of tests and models, each as far as its tests.
fn sources() -> Vec<(String, String)> {
    let mut sources = files();
    sources.retain(|(name, _)| !name.contains("test") && !name.ends_with("models.rs"));
    for (_, text) in &mut sources {
        if let Some(end) = text.find("\nmod tests") {
            text.truncate(end);
        }
    }
    sources
}

/// The room that a file, or a module of the root, is in.
fn room(name: &str) -> &str {
    let first = name.split('/').next().unwrap_or_default();
    match first.trim_end_matches(".rs") {
        IN_MACHINE => "machine",
        room => room,
    }
}

/// What is named right behind `crate::` in a line.
fn named(line: &str) -> impl Iterator<Item = &str> {
    let code = line.split("//").next().unwrap_or_default();
    code.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        &rest[..end.unwrap_or(rest.len())]
    })
}

/// Lines that `is_bad` says are so, of files that are in a room.
fn bad_lines(is_bad: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let mut bad = Vec::new();
    for (file, text) in sources() {
        if ["lib.rs", "main.rs"].contains(&file.as_str()) {
            continue;
        }
        for (number, line) in (1..).zip(text.lines()) {
            if is_bad(&file, line) {
                bad.push(format!("{file}:{number}: {}", line.trim()));
            }
        }
    }
    bad
}

fn none(rule: &str, bad: &[String]) {
    assert!(bad.is_empty(), "{rule}:\n{}", bad.join("\n"));
}

#[test]
fn the_list_of_rooms_is_whole_and_has_no_circle() {
    let mut above = BTreeSet::new();
    for (room, others) in ROOMS {
        for other in others {
            assert!(above.contains(other), "{other} doesn't stand above {room}");
        }
        assert!(above.insert(room), "{room} stands there twice");
    }
    let files = sources();
    let there: BTreeSet<_> = files
        .iter()
        .map(|(file, _)| room(file))
        .filter(|room| !["lib", "main"].contains(room))
        .collect();
    assert_eq!(above, there);
}

#[test]
fn rooms_name_only_those_above_them() {
    let allowed = |own: &str, other: &str| {
        own == other
            || ROOMS
                .iter()
                .any(|(room, others)| *room == own && others.contains(&other))
    };
    let bad = bad_lines(|file, line| named(line).any(|other| !allowed(room(file), room(other))));
    none("a room names another that it may not", &bad);
}

#[test]
fn only_the_machine_knows_kvm() {
    let bad = bad_lines(|file, line| {
        let code = line.split("//").next().unwrap_or_default();
        let knows = code.contains("kvm_ioctls") || code.contains("kvm_bindings");
        knows && !KNOW_KVM.iter().any(|place| file.starts_with(place))
    });
    none("devices know no KVM", &bad);
}

#[test]
fn only_arch_names_a_processor() {
    let bad: Vec<_> = files()
        .into_iter()
        .filter(|(file, text)| !file.starts_with("arch/") && text.contains("x86_64"))
        .map(|(file, _)| file)
        .collect();
    none("what names a processor is in `arch/`", &bad);
}
