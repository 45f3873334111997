//! A stand-in for a guest: a namespace whose `eth0` is wired, frame by frame,
//! to the tap that a VMM would have opened.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{Command, Output, Stdio};

use nix::sched::{CloneFlags, setns};

nix::ioctl_write_ptr_bad!(tun_set_iff, 0x4004_54ca, libc::ifreq);

/// The bytes of `virtio_net_hdr` before each frame of a tap that was opened for
/// a VMM, unless the VMM sets another length.
const HEADER: usize = 10;

/// Runs a program and returns what it said, whatever its status.
pub(super) fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// Runs a shell script that must succeed; returns its output.
pub(super) fn sh(script: &str) -> String {
    let out = run("sh", &["-ec", script]);
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{script}\n{error}");
    String::from_utf8_lossy(&out.stdout).trim_end().to_owned()
}

/// A guest without a VMM.
pub(super) struct Guest {
    name: String,
}

impl Guest {
    /// Plugs a guest with this MAC address into an opened tap.
    pub(super) fn new(name: &str, tap: OwnedFd, mac: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = mac;
        sh(&format!("ip netns add {name}"));
        let outer = File::from(tap);
        let inner = inside(name, inner_tap);
        sh(&format!(
            "ip -n {name} link set lo up
             ip -n {name} link set eth0 address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}
             ip -n {name} link set eth0 up"
        ));
        let handle = |file: &File| file.try_clone().expect("a descriptor can be duplicated");
        pump(handle(&outer), handle(&inner), |frame| {
            frame.get(HEADER..).map(<[u8]>::to_vec)
        });
        pump(inner, outer, |frame| Some([&[0; HEADER], frame].concat()));
        Self {
            name: name.to_owned(),
        }
    }

    /// Runs a shell script in the guest.
    pub(super) fn try_sh(&self, script: &str) -> Output {
        run("ip", &["netns", "exec", &self.name, "sh", "-ec", script])
    }

    /// The same; it must succeed.
    pub(super) fn sh(&self, script: &str) -> String {
        let out = self.try_sh(script);
        let error = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{}: {script}\n{error}", self.name);
        String::from_utf8_lossy(&out.stdout).trim_end().to_owned()
    }

    /// Takes an address by DHCP, as a guest's own client does, and returns all
    /// that the server said, as udhcpc names it.
    pub(super) fn dhcp(&self) -> String {
        let script = format!("/run/udhcpc-{}", self.name);
        std::fs::write(
            &script,
            "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\n\
             ip addr replace \"$ip/$mask\" dev eth0\n\
             ip route replace default via \"$router\"\nenv\n",
        )
        .expect("/run can be written");
        sh(&format!("chmod +x {script}"));
        self.sh(&format!(
            "busybox udhcpc -i eth0 -n -q -t 5 -T 1 -s {script}"
        ))
    }

    /// Starts a web server that says `text` on this port.
    pub(super) fn serve(&self, port: u16, text: &str) {
        self.sh(&format!(
            "mkdir -p /run/www-{name}; echo {text} > /run/www-{name}/index.html
             busybox httpd -p {port} -h /run/www-{name}",
            name = self.name
        ));
    }

    /// A socket in the guest, of this port.
    pub(super) fn udp(&self, port: u16) -> UdpSocket {
        inside(&self.name, move || {
            UdpSocket::bind(("0.0.0.0", port)).expect("the port is free")
        })
    }

    /// Connects from the guest; `None` when that takes more than two seconds.
    pub(super) fn connect(&self, to: &str) -> Option<TcpStream> {
        let to = to.parse().expect("an address and a port");
        inside(&self.name, move || {
            TcpStream::connect_timeout(&to, std::time::Duration::from_secs(2)).ok()
        })
    }

    /// Sends this IPv4 packet as it is.
    pub(super) fn raw(&self, to: Ipv4Addr, packet: &[u8]) {
        use nix::sys::socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
        };
        let packet = packet.to_vec();
        inside(&self.name, move || {
            // IPPROTO_RAW brings its own header: raw(7).
            let protocol = SockProtocol::Raw;
            let family = AddressFamily::Inet;
            let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
                .expect("root may send what it likes");
            let [a, b, c, d] = to.octets();
            let to = SockaddrIn::new(a, b, c, d, 0);
            sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty()).expect("it goes out");
        });
    }

    /// Fetches a page; `None` when nothing answers within two seconds.
    pub(super) fn fetch(&self, url: &str) -> Option<String> {
        body(self.try_sh(&format!("curl -s -m 2 {url}")))
    }
}

/// Fetches a page from the host.
pub(super) fn fetch(url: &str) -> Option<String> {
    body(run("curl", &["-s", "-m", "2", url]))
}

fn body(out: Output) -> Option<String> {
    let text = String::from_utf8_lossy(&out.stdout).trim_end().to_owned();
    out.status.success().then_some(text)
}

/// Runs `f` in a namespace, on a thread of its own.
fn inside<T: Send + 'static>(namespace: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    let path = format!("/run/netns/{namespace}");
    std::thread::spawn(move || {
        let namespace = File::open(path).expect("the namespace is there");
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter it");
        f()
    })
    .join()
    .expect("no panic")
}

fn inner_tap() -> File {
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .expect("the tun driver is there");
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            // IFF_TAP | IFF_NO_PI
            ifru_flags: 0x1002,
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(b"eth0") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    // SAFETY: the descriptor is open, the request a whole ifreq.
    unsafe { tun_set_iff(tap.as_raw_fd(), &raw const request) }.expect("a tap can be made");
    tap
}

/// Passes frames on until one end is gone.
fn pump(mut from: File, mut to: File, change: fn(&[u8]) -> Option<Vec<u8>>) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        loop {
            match from.read(&mut buffer) {
                Ok(length) => {
                    if let Some(frame) = change(&buffer[..length]) {
                        // A frame that can't be written is a frame lost.
                        let _ = to.write(&frame);
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    let mut fds = [nix::poll::PollFd::new(
                        std::os::fd::AsFd::as_fd(&from),
                        nix::poll::PollFlags::POLLIN,
                    )];
                    let _ = nix::poll::poll(&mut fds, nix::poll::PollTimeout::NONE);
                }
                Err(_) => return,
            }
        }
    });
}
