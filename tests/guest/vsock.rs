//! The socket device: programs in the guest and on the host, without a network.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use hearth_tests::{Vm, wait};

/// What goes each way, in bytes: more than any buffer on the way.
const BULK: usize = 4 << 20;

fn bulk() -> Vec<u8> {
    (0..BULK)
        .map(|n| u8::try_from(n * 7 % 251).expect("below 251"))
        .collect()
}

#[test]
fn streams_go_both_ways() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vsock");
    let flag = format!("cid=3,path={}", path.display());
    let mut vm = Vm::of("debian-12")
        .memory_mib(512)
        .args(&["--vsock", &flag])
        .boot();
    vm.run("modprobe vmw_vsock_virtio_transport");

    // From the guest to a program here: what it sends comes back.
    let listener = UnixListener::bind(folder.path().join("vsock_52")).expect("listens");
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a guest calls");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("reads");
        stream.write_all(&all).expect("writes");
        all
    });
    vm.run(&format!(
        "python3 -c '
import socket, threading
data = bytes(n * 7 % 251 for n in range({BULK}))
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
s.connect((2, 52))
s.sendall(data)
s.shutdown(socket.SHUT_WR)
back = b\"\"
while part := s.recv(65536):
    back += part
assert back == data, len(back)
'"
    ));
    assert!(echo.join().expect("no panic") == bulk());

    // From here to a program in the guest.
    vm.type_line(
        "python3 -c '
import socket
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
s.bind((socket.VMADDR_CID_ANY, 53))
s.listen(1)
c, peer = s.accept()
total = 0
while part := c.recv(65536):
    total += len(part)
c.sendall(b\"%d from %d\" % (total, peer[0]))
c.close()
'; echo se\"\"rved",
    );
    let mut stream = wait::until("somebody listens in the guest", 60, || {
        let mut stream = UnixStream::connect(&path).map_err(|e| e.to_string())?;
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .map_err(|e| e.to_string())?;
        stream
            .write_all(b"CONNECT 53\n")
            .map_err(|e| e.to_string())?;
        let mut reader = BufReader::new(stream.try_clone().map_err(|e| e.to_string())?);
        let mut answer = String::new();
        reader.read_line(&mut answer).map_err(|e| e.to_string())?;
        if answer.starts_with("OK ") {
            Ok(stream)
        } else {
            Err(format!("{answer:?}"))
        }
    });
    stream.write_all(&bulk()).expect("writes");
    stream
        .shutdown(std::net::Shutdown::Write)
        .expect("shuts down");
    let mut said = String::new();
    stream.read_to_string(&mut said).expect("reads");
    assert_eq!(said, format!("{BULK} from 2"));
    vm.wait_for_console("served", 60);

    // A port where nobody listens ends without a word.
    let mut stream = UnixStream::connect(&path).expect("connects");
    stream.write_all(b"CONNECT 54\n").expect("writes");
    let mut said = String::new();
    stream.read_to_string(&mut said).expect("ends");
    assert_eq!(said, "");
    let counted = &vm.api("GET", "/v1/metrics", None)["devices"]["vsock"];
    assert_eq!(counted["failures"], 0, "{counted}");
}
