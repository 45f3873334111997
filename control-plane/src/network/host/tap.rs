//! Taps: made persistent, so that they outlive the VMM and this process, and
//! opened for a VMM to inherit.
//!
//! <https://docs.kernel.org/networking/tuntap.html>

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;

nix::ioctl_write_ptr_bad!(tun_set_iff, 0x4004_54ca, libc::ifreq);
nix::ioctl_write_int_bad!(tun_set_persist, 0x4004_54cb);

/// Attaches to the tap of this name in the calling thread's namespace, and
/// makes it if it isn't there.
fn attach(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
        },
    };
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::other("the tap's name is too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: the descriptor is open and the request a whole ifreq with a
    // NUL-terminated name, which the kernel only reads and writes within.
    unsafe { tun_set_iff(file.as_raw_fd(), &raw const request) }?;
    Ok(file)
}

/// Makes a persistent tap in the calling thread's namespace.
pub(super) fn create(name: &str) -> io::Result<()> {
    let file = attach(name)?;
    // SAFETY: the descriptor is attached to a tap; the argument is a flag.
    unsafe { tun_set_persist(file.as_raw_fd(), 1) }?;
    Ok(())
}

/// Opens a tap that is there, in the calling thread's namespace; `None` when it
/// isn't. `EBUSY` when another process has it open.
pub(super) fn open(name: &str) -> io::Result<Option<OwnedFd>> {
    if nix::net::if_::if_nametoindex(name).is_err() {
        return Ok(None);
    }
    attach(name).map(|file| Some(file.into()))
}
