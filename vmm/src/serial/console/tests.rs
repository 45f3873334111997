use std::io;
use std::net::Shutdown;
use std::path::PathBuf;

use super::*;
use crate::listener::Peers;
use crate::serial::Output;

struct Bench {
    _folder: tempfile::TempDir,
    path: PathBuf,
    serial: Serial,
    console: Console,
}

impl Bench {
    fn new(log: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("console");
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(log).expect("write");
        let serial = Serial::new(Output::log(file).expect("log")).expect("serial");
        let listener = Listener::bind("--console-socket", &path).expect("binds");
        let listener = listener.for_peers(Peers::All);
        let console = Console::new(listener, &serial).expect("a log");
        Self {
            _folder: folder,
            path,
            serial,
            console,
        }
    }

    fn attach(&mut self) -> UnixStream {
        let client = UnixStream::connect(&self.path).expect("connects");
        client.set_nonblocking(true).expect("nonblocking");
        self.console.progress(&self.serial);
        client
    }

    /// The guest prints.
    fn print(&mut self, text: &[u8]) {
        for byte in text {
            self.serial.write(0, &[*byte]);
        }
        self.serial.progress();
        self.console.progress(&self.serial);
    }

    /// The guest reads all its input.
    fn read(&mut self) -> Vec<u8> {
        let mut input = Vec::new();
        loop {
            self.console.progress(&self.serial);
            let mut status = [0];
            // Line status: data ready.
            self.serial.read(5, &mut status);
            if status[0] & 1 == 0 {
                return input;
            }
            let mut byte = [0];
            self.serial.read(0, &mut byte);
            input.push(byte[0]);
        }
    }
}

/// What a client can read now.
fn received(client: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match client.read_to_end(&mut bytes) {
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        Ok(_) => bytes.extend(b"<end>"),
    }
    bytes
}

#[test]
fn a_client_sees_the_log_then_what_comes_and_types() {
    let mut bench = Bench::new(b"booted\n");
    bench.print(b"login: ");
    let mut client = bench.attach();
    assert_eq!(received(&mut client), b"booted\nlogin: ");
    client.write_all(b"root\r").expect("types");
    assert_eq!(bench.read(), b"root\r");
    bench.print(b"root\n");
    assert_eq!(received(&mut client), b"root\n");
}

#[test]
fn all_clients_see_and_type_and_one_too_many_is_told() {
    let mut bench = Bench::new(b"");
    let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| bench.attach()).collect();
    let mut late = bench.attach();
    assert_eq!(received(&mut late), [FULL, b"<end>"].concat());
    bench.print(b"hello");
    for client in &mut clients {
        assert_eq!(received(client), b"hello");
        client.write_all(b"k").expect("types");
    }
    assert_eq!(bench.read(), [b'k'; MAX_CLIENTS]);
    clients.pop();
    bench.console.progress(&bench.serial);
    let mut next = bench.attach();
    assert_eq!(received(&mut next), b"hello");
}

#[test]
fn a_client_that_does_not_read_misses_and_is_told() {
    let mut bench = Bench::new(b"");
    let mut client = bench.attach();
    let line = [&[b'.'; 1023][..], b"\n"].concat();
    let lines = 2000;
    for _ in 0..lines {
        bench.print(&line);
    }
    let waits = |console: &Console| {
        let (_, events) = console.interests(true).nth(1).expect("a client");
        events & libc::POLLOUT != 0
    };
    assert!(waits(&bench.console));
    let mut seen = Vec::new();
    loop {
        let more = received(&mut client);
        if more.is_empty() {
            break;
        }
        seen.extend(more);
        bench.console.progress(&bench.serial);
    }
    assert!(!waits(&bench.console));
    assert!(seen.ends_with(&line));
    let text = String::from_utf8(seen).expect("text");
    let (before, rest) = text.split_once("\r\n[hearth-vmm: ").expect("a notice");
    let (lost, after) = rest
        .split_once(" bytes were missed here]\r\n")
        .expect("notice");
    let lost: usize = lost.parse().expect("a number");
    assert_eq!(before.len() + lost + after.len(), lines * line.len());
}

#[test]
fn a_client_waits_until_the_guest_reads() {
    let mut bench = Bench::new(b"");
    let mut client = bench.attach();
    let text: Vec<u8> = (0..1000u32).map(|i| b'a' + (i % 26) as u8).collect();
    client.write_all(&text).expect("types");
    bench.console.progress(&bench.serial);
    bench.console.progress(&bench.serial);
    assert_eq!(bench.serial.input_capacity(), 0);
    assert_eq!(bench.read(), text);
}

#[test]
fn who_has_gone_is_forgotten_and_who_only_reads_is_not() {
    let mut bench = Bench::new(b"");
    let (mut reader, gone) = (bench.attach(), bench.attach());
    reader.shutdown(Shutdown::Write).expect("shuts");
    // The guest takes no input, so that the end of the stream is not come to.
    bench.serial.input(&[0; 64]);
    (&gone).write_all(b"never read").expect("types");
    drop(gone);
    bench.print(b"still here");
    assert_eq!(bench.console.clients.len(), 1);
    assert_eq!(received(&mut reader), b"still here");
    bench.read();
    assert_eq!(bench.console.clients.len(), 1);
    drop(reader);
    bench.console.progress(&bench.serial);
    assert_eq!(bench.console.clients.len(), 0);
}
