//! The network's other end: the services that the guest measures against.
//!
//! | port | what |
//! |---|---|
//! | 7001/udp | echo |
//! | 7002/tcp | echo |
//! | 7003/tcp | reads to the end, then answers one byte |
//! | 7004/tcp | reads a little-endian u64, then sends that many bytes |
//!
//! And who asks the guest, which answers at 7005/udp.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::thread;
use std::time::Instant;

/// The guest's address.
pub(crate) const MAC: &str = "02:00:00:00:00:02";

/// The guest's NIC has this tap behind it.
pub(crate) const TAP: &str = "bench0";

const ADDRESS: &str = "10.77.0.1/24";

/// The host's address at the tap: a guest that goes on in a copy knows it still.
const HOST_MAC: &str = "02:00:00:00:00:01";

/// What the guest takes (`guest.c`).
const GUEST: &str = "10.77.0.2";
const ANSWERS: &str = "10.77.0.2:7005";

/// How often it is asked, in nanoseconds.
const INTERVAL: libc::c_long = 250_000;

/// Enough for the guest's figures to be the host's too; more is a fault.
const MAX_SOURCE: u64 = 1 << 34;

/// Starts the services. Their threads live as long as the process.
pub(crate) fn serve() -> Result<()> {
    ip(&["link", "set", "lo", "up"])?;
    let udp = UdpSocket::bind("0.0.0.0:7001").context("UDP port 7001")?;
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&buffer[..n], from);
        }
    });
    listen(7002, echo)?;
    listen(7003, sink)?;
    listen(7004, source)
}

fn listen(port: u16, serve: fn(TcpStream) -> std::io::Result<()>) -> Result<()> {
    let listener =
        TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("TCP port {port}"))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A guest that is killed breaks its connections: no error of ours.
            thread::spawn(move || serve(stream));
        }
    });
    Ok(())
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 2048];
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..n])?;
    }
}

fn sink(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 18];
    while stream.read(&mut buffer)? > 0 {}
    stream.write_all(&[1])
}

fn source(mut stream: TcpStream) -> std::io::Result<()> {
    let mut size = [0; 8];
    stream.read_exact(&mut size)?;
    let mut left = u64::from_le_bytes(size).min(MAX_SOURCE);
    let buffer = vec![0; 1 << 18];
    while left > 0 {
        let n = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        stream.write_all(&buffer[..n])?;
        left -= n as u64;
    }
    Ok(())
}

/// Asks the guest until it answers, or `until` has passed: when that was.
pub(crate) fn first_answer(until: Instant) -> Result<Option<Instant>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_nonblocking(true)?;
    let interval = libc::timespec {
        tv_sec: 0,
        tv_nsec: INTERVAL,
    };
    while Instant::now() < until {
        // Lost while nobody is behind the tap.
        let _ = socket.send_to(b"there?", ANSWERS);
        let mut poll = libc::pollfd {
            fd: socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: both pointers are to live structures, the first to one as is said.
        unsafe { libc::ppoll(&raw mut poll, 1, &raw const interval, std::ptr::null()) };
        let now = Instant::now();
        if socket.recv_from(&mut [0; 64]).is_ok() {
            return Ok(Some(now));
        }
    }
    Ok(None)
}

/// A fresh tap, so that no VMM finds another's settings. Where the guest is, need not be
/// asked: the first question to one that goes on in a copy would be lost, and come again
/// after a second.
pub(crate) fn make_tap() -> Result<()> {
    let _ = ip(&["link", "del", TAP]);
    ip(&["tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"])?;
    ip(&["link", "set", TAP, "address", HOST_MAC])?;
    ip(&["addr", "add", ADDRESS, "dev", TAP])?;
    ip(&["link", "set", TAP, "up"])?;
    ip(&[
        "neigh",
        "replace",
        GUEST,
        "lladdr",
        MAC,
        "dev",
        TAP,
        "nud",
        "permanent",
    ])
}

fn ip(arguments: &[&str]) -> Result<()> {
    let out = Command::new("ip").args(arguments).output().context("ip")?;
    if !out.status.success() {
        bail!(
            "ip {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(())
}
