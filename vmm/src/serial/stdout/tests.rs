use std::io::{PipeReader, Read, Write};
use std::os::unix::net::UnixStream;

use super::*;
use crate::serial::Output;

fn serial() -> Serial {
    Serial::new(Output::Stdout).expect("serial")
}

fn print(serial: &Serial, text: &[u8]) {
    for byte in text {
        serial.write(0, &[*byte]);
    }
    serial.progress();
}

fn is_nonblocking(fd: RawFd) -> bool {
    // SAFETY: no memory is involved.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    flags & libc::O_NONBLOCK != 0
}

/// Reads as long as there is more.
fn drain(output: &mut StandardOutput, serial: &Serial, reader: &mut PipeReader) -> String {
    make_nonblocking(reader.as_raw_fd());
    let (mut all, mut some) = (Vec::new(), [0; 4096]);
    while let Ok(count) = reader.read(&mut some) {
        all.extend_from_slice(&some[..count]);
        output.progress(serial);
    }
    String::from_utf8(all).expect("text")
}

#[test]
fn a_full_pipe_misses_output_and_is_told() {
    let (mut reader, writer) = io::pipe().expect("a pipe");
    let mut output = StandardOutput::on(writer.as_raw_fd());
    assert!(
        !is_nonblocking(writer.as_raw_fd()),
        "others write there too"
    );
    let serial = serial();
    let line = [&[b'.'; 1023][..], b"\n"].concat();
    let lines = 300;
    for _ in 0..lines {
        print(&serial, &line);
        output.progress(&serial);
    }
    assert!(output.awaited().is_some());
    let text = drain(&mut output, &serial, &mut reader);
    assert_eq!(output.awaited(), None);
    let (before, rest) = text.split_once("\r\n[hearth-vmm: ").expect("a notice");
    let (lost, after) = rest
        .split_once(" bytes were missed here]\r\n")
        .expect("all of it");
    let lost: usize = lost.parse().expect("a number");
    assert_eq!(before.len() + lost + after.len(), lines * line.len());
    assert!(after.ends_with(".\n"));
}

#[test]
fn the_end_does_not_wait_for_who_does_not_read() {
    let (mut reader, writer) = io::pipe().expect("a pipe");
    let mut output = StandardOutput::on(writer.as_raw_fd());
    let serial = serial();
    for _ in 0..3 {
        print(&serial, &[b'x'; 50_000]);
        output.progress(&serial);
    }
    output.finish(&serial);
    assert!(output.awaited().is_some());
    // Who reads gets all of it, more than fits the pipe.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).expect("reads");
            all
        });
        output.finish(&serial);
        assert_eq!(output.awaited(), None);
        drop((output, writer));
        assert!(thread.join().expect("ends").len() > 100_000);
    });
}

#[test]
fn a_reader_who_has_gone_is_not_waited_for() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let mut output = StandardOutput::on(writer.as_raw_fd());
    drop(reader);
    let serial = serial();
    for _ in 0..2 {
        print(&serial, b"nobody hears\n");
        output.progress(&serial);
        assert_eq!(output.awaited(), None);
    }
}

#[test]
fn a_socket_and_a_file_are_written_as_they_are() {
    let (mut client, socket) = UnixStream::pair().expect("a pair");
    let mut output = StandardOutput::on(socket.as_raw_fd());
    let on_socket = serial();
    print(&on_socket, b"hello\n");
    output.progress(&on_socket);
    let mut text = [0; 6];
    client.read_exact(&mut text).expect("text");
    assert_eq!(&text, b"hello\n");
    for _ in 0..20 {
        print(&on_socket, &[b'x'; 50_000]);
        output.progress(&on_socket);
    }
    assert!(output.awaited().is_some(), "it is full");
    assert!(!is_nonblocking(socket.as_raw_fd()));
    // Behind what another has written to the same open file.
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().write_all(b"before ").expect("writes");
    let mut output = StandardOutput::on(file.as_file().as_raw_fd());
    let on_file = serial();
    print(&on_file, b"hello\n");
    output.finish(&on_file);
    let text = std::fs::read(file.path()).expect("reads");
    assert_eq!(text, b"before hello\n");
}

#[test]
fn an_open_file_that_must_be_shared_is_left_as_it_was() {
    let (_reader, writer) = io::pipe().expect("a pipe");
    let fd = writer.as_raw_fd();
    let way = Way::Shared(fd, make_nonblocking(fd));
    assert!(is_nonblocking(way.fd()));
    drop(way);
    assert!(!is_nonblocking(fd));
}
