//! The serial console from outside: who attaches to its socket.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hearth_tests::Vm;

/// Reads until `text` has come; returns all up to there.
fn read_until(client: &mut UnixStream, text: &str) -> String {
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    while !all.windows(text.len()).any(|part| part == text.as_bytes()) {
        let count = client.read(&mut chunk).unwrap_or_else(|error| {
            panic!("no {text:?}: {error}: {}", String::from_utf8_lossy(&all))
        });
        assert!(count > 0, "the console ended before {text:?}");
        all.extend_from_slice(&chunk[..count]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn a_second_pair_of_hands_at_the_console() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("console");
    let socket = path.display().to_string();
    let mut vm = Vm::of("micro").args(&["--console-socket", &socket]).boot();
    vm.run("echo first");
    let mut client = UnixStream::connect(&path).expect("attaches");
    client
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a deadline");
    let seen = read_until(&mut client, "@end 0@");
    assert!(seen.contains("first"), "{seen}");
    client
        .write_all(b"echo se\"\"cond; echo do\"\"ne\n")
        .expect("types");
    let seen = read_until(&mut client, "done");
    assert!(seen.contains("second"), "{seen}");
    // Both saw it; a client that stops reading holds up nobody.
    vm.wait_for_console("done", 10);
    let idle = UnixStream::connect(&path).expect("attaches");
    vm.run("head -c 100000 /dev/zero | tr '\\0' '.' | fold -w 100");
    drop(idle);
    vm.run("true");
}

#[test]
fn a_shell_on_the_virtio_console() {
    let mut vm = Vm::of("debian-12").args(&["--virtio-console"]).boot();
    // The answer comes by COM1; what is typed from then on goes to hvc0.
    vm.run("modprobe virtio_console && setsid -f sh -c 'exec sh -i <>/dev/hvc0 >&0 2>&1'");
    vm.wait_for_shell();
    assert_eq!(vm.run("tty"), "/dev/hvc0");
    // More than waits anywhere on the way out, and then a line on the way in.
    vm.run("head -c 1000000 /dev/zero | tr '\\0' '.' | fold -w 100");
    assert_eq!(vm.run("echo still there"), "still there");
    let counted = &vm.api("GET", "/v1/metrics", None)["devices"]["console"];
    assert!(
        counted["transmitted_bytes"].as_u64() > Some(1_000_000),
        "{counted}"
    );
    assert!(counted["received_bytes"].as_u64() > Some(100), "{counted}");
}

#[test]
fn long_input_arrives_whole() {
    let mut vm = Vm::of("micro").boot();
    // A driver leaves off after 256 bytes: what comes faster must not be forgotten.
    let words = "0123456789abcde ".repeat(60);
    for round in 0..100 {
        let said = vm.run(&format!("echo {round} {words} | wc -c"));
        assert_eq!(said, format!("{round} {words}").len().to_string());
    }
}
