//! A tap device, by name or as a file descriptor that someone opened for us.
//!
//! Linux: Documentation/networking/tuntap.rst.

#![allow(unsafe_code, reason = "the ioctls of a tap")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::{Link, Offload};

/// Bytes of `struct virtio_net_hdr_v1`, which every modern device has before each
/// packet (virtio 1.2, section 5.1.6).
const HEADER_SIZE: libc::c_int = 12;

/// What a tap must be: packets with an Ethernet header, no protocol information,
/// a virtio header.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// A tap device.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Attaches to a tap by its interface name, making it if there is none.
    ///
    /// # Errors
    /// When the name is longer than 15 bytes, or the kernel refuses: no
    /// permission, in use, no tun driver.
    pub fn open(name: &str) -> io::Result<Self> {
        Self::attach(name, FLAGS).or_else(|error| match error.raw_os_error() {
            // A tap made for several queues takes only those who say so.
            Some(libc::EINVAL) => Self::attach(name, FLAGS | libc::IFF_MULTI_QUEUE),
            _ => Err(error),
        })
    }

    fn attach(name: &str, flags: libc::c_int) -> io::Result<Self> {
        let mut request = empty_request();
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() >= request.ifr_name.len() || bytes.contains(&0) {
            return wrong("an interface name has 1 to 15 bytes");
        }
        for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
            *to = libc::c_char::from_ne_bytes([*from]);
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        // The kernel's field is 16 bits, and all flags are below.
        request.ifr_ifru.ifru_flags = flags.try_into().unwrap_or(0);
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives it.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        Self::prepare(file)
    }

    /// Attaches to a tap with several queues, one link for each.
    ///
    /// # Errors
    /// As [`Self::open`], and when the tap was made for one queue and `count` is more.
    pub fn open_queues(name: &str, count: usize) -> io::Result<Vec<Self>> {
        if count <= 1 {
            return Self::open(name).map(|tap| vec![tap]);
        }
        (0..count)
            .map(|_| Self::attach(name, FLAGS | libc::IFF_MULTI_QUEUE))
            .collect()
    }

    /// Takes a tap that is open already.
    ///
    /// # Errors
    /// When it is none, or was not opened with `IFF_TAP`, `IFF_NO_PI` and
    /// `IFF_VNET_HDR`.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        if Identity::of(&file)?.flags & FLAGS != FLAGS {
            return wrong("the tap must be opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR");
        }
        // SAFETY: no memory is involved.
        let old = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) })?;
        // SAFETY: as above.
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, old | libc::O_NONBLOCK) })?;
        Self::prepare(file)
    }

    /// Takes several queues of a tap that are open already.
    ///
    /// # Errors
    /// As [`Self::from_fd`], and when they are not queues of one tap.
    pub fn from_fds(fds: Vec<OwnedFd>) -> io::Result<Vec<Self>> {
        let several = fds.len() > 1;
        let taps: Vec<_> = fds
            .into_iter()
            .map(Self::from_fd)
            .collect::<io::Result<_>>()?;
        let identities: Vec<_> = taps
            .iter()
            .map(|tap| Identity::of(&tap.0))
            .collect::<io::Result<_>>()?;
        if several
            && identities
                .iter()
                .any(|one| one.flags & libc::IFF_MULTI_QUEUE == 0)
        {
            return wrong("a tap for several queues must be opened with IFF_MULTI_QUEUE");
        }
        if identities.iter().any(|one| one.name != identities[0].name) {
            return wrong("the descriptors are of different taps");
        }
        Ok(taps)
    }

    /// Another handle on the same queue of the same tap.
    ///
    /// # Errors
    /// When the process has no file descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    fn prepare(file: File) -> io::Result<Self> {
        let size = HEADER_SIZE;
        // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives it.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })?;
        Ok(Self(file))
    }
}

/// Queues of a tap that took no part and do now, until this is dropped: an open file whose
/// queue takes none is no one's tap to the kernel.
#[derive(Debug, Default)]
pub struct Attached(Vec<Tap>);

impl Attached {
    /// Has all of these queues of a tap take part.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn all(queues: &[OwnedFd]) -> io::Result<Self> {
        let mut attached = Self::default();
        for queue in queues {
            let tap = Tap(File::from(queue.try_clone()?));
            match Identity::of(&tap.0) {
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {
                    tap.set_enabled(true)?;
                    attached.0.push(tap);
                }
                known => _ = known?,
            }
        }
        Ok(attached)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        for tap in &self.0 {
            // One that takes no part by now is as it should be.
            let _ = tap.set_enabled(false);
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Link for Tap {
    fn set_offload(&self, offload: Offload) -> io::Result<()> {
        let mut flags = 0;
        for (wanted, flag) in [
            (Offload::CHECKSUM, libc::TUN_F_CSUM),
            (Offload::TSO4, libc::TUN_F_TSO4),
            (Offload::TSO6, libc::TUN_F_TSO6),
        ] {
            if offload.contains(wanted) {
                flags |= flag;
            }
        }
        let flags = libc::c_ulong::from(flags);
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(self.as_raw_fd(), libc::TUNSETOFFLOAD, flags) })?;
        Ok(())
    }

    fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        let mut request = empty_request();
        let flag = if enabled {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        // The kernel's field is 16 bits, and both flags are below.
        request.ifr_ifru.ifru_flags = flag.try_into().unwrap_or(0);
        // SAFETY: TUNSETQUEUE reads one `ifreq`, which outlives it.
        check(unsafe { libc::ioctl(self.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })?;
        Ok(())
    }
}

/// What the kernel says of an open tap.
struct Identity {
    name: [libc::c_char; libc::IFNAMSIZ],
    flags: libc::c_int,
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        let mut request = empty_request();
        // SAFETY: TUNGETIFF writes one `ifreq`, which outlives it.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
        Ok(Self {
            name: request.ifr_name,
            // SAFETY: TUNGETIFF has set the flags of the union.
            flags: libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags }),
        })
    }
}

fn wrong<T>(what: &str) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}

fn empty_request() -> libc::ifreq {
    // SAFETY: an `ifreq` of zeroes is a valid one: no name, no flags.
    unsafe { std::mem::zeroed() }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may start programs")]
mod tests {
    use super::*;

    #[test]
    fn bad_names_and_descriptors_are_refused() {
        for name in ["", "sixteen-bytes-xx", "nul\0"] {
            let error = Tap::open(name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
        let null = File::open("/dev/null").unwrap();
        assert!(Tap::from_fd(null.into()).is_err());
    }

    /// Gives the test's thread a network namespace of its own.
    fn leave_the_network() {
        // SAFETY: takes no pointers; changes this thread alone.
        let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    }

    #[test]
    #[ignore = "makes a tap: needs root (--include-ignored)"]
    fn descriptors_are_queues_of_one_tap() {
        leave_the_network();
        let taps = |name, count| Tap::open_queues(name, count).unwrap();
        let fds = |taps: Vec<Tap>| taps.into_iter().map(|tap| OwnedFd::from(tap.0)).collect();
        assert_eq!(Tap::from_fds(fds(taps("hearth-a", 3))).unwrap().len(), 3);
        assert_eq!(Tap::from_fds(fds(taps("hearth-b", 1))).unwrap().len(), 1);
        let mut mixed = taps("hearth-c", 2);
        mixed.extend(taps("hearth-d", 2));
        assert!(Tap::from_fds(fds(mixed)).is_err());
        let mut single = taps("hearth-e", 1);
        single.extend(taps("hearth-f", 1));
        assert!(Tap::from_fds(fds(single)).is_err());
        // One queue twice is not two.
        let one = Tap::open("hearth-k").unwrap();
        let twice = vec![one.try_clone().unwrap(), one];
        let refused = Tap::from_fds(fds(twice)).unwrap_err().to_string();
        assert!(refused.contains("IFF_MULTI_QUEUE"), "{refused}");
    }

    /// What fcntl(2) says of a descriptor.
    fn flags_of(tap: &Tap, command: libc::c_int) -> libc::c_int {
        // SAFETY: no memory is involved.
        check(unsafe { libc::fcntl(tap.as_raw_fd(), command) }).unwrap()
    }

    fn header_size(tap: &Tap) -> libc::c_int {
        let mut size = 0;
        // SAFETY: TUNGETVNETHDRSZ writes one int, which outlives it.
        check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut size) })
            .unwrap();
        size
    }

    #[test]
    #[ignore = "makes a tap: needs root (--include-ignored)"]
    fn a_tap_never_blocks_and_has_the_header_of_a_modern_device() {
        leave_the_network();
        let made = Tap::open("fifteen-letters").unwrap();
        assert_eq!(flags_of(&made, libc::F_GETFD), libc::FD_CLOEXEC);
        assert_eq!(
            flags_of(&made, libc::F_GETFL) & libc::O_NONBLOCK,
            libc::O_NONBLOCK
        );
        assert_eq!(header_size(&made), HEADER_SIZE);
        assert_eq!(Identity::of(&made.0).unwrap().flags & FLAGS, FLAGS);
        // One that someone else opened, who may block.
        let blocking = libc::O_RDWR;
        // SAFETY: no memory is involved.
        check(unsafe { libc::fcntl(made.as_raw_fd(), libc::F_SETFL, blocking) }).unwrap();
        let size: libc::c_int = 10;
        // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives it.
        check(unsafe { libc::ioctl(made.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })
            .unwrap();
        let taken = Tap::from_fd(made.0.into()).unwrap();
        let flags = flags_of(&taken, libc::F_GETFL);
        assert_eq!(
            flags & (libc::O_NONBLOCK | libc::O_ACCMODE),
            libc::O_NONBLOCK | blocking
        );
        assert_eq!(header_size(&taken), HEADER_SIZE);
        assert_eq!(header_size(&taken.try_clone().unwrap()), HEADER_SIZE);
    }

    #[test]
    #[ignore = "makes a tap: needs root (--include-ignored)"]
    fn a_tap_without_the_header_is_refused() {
        leave_the_network();
        let tap = Tap::attach("hearth-g", FLAGS & !libc::IFF_VNET_HDR).unwrap();
        assert!(Tap::from_fd(tap.0.into()).is_err());
    }

    #[test]
    #[ignore = "makes a tap: needs root (--include-ignored)"]
    fn a_tap_of_several_queues_is_opened_by_its_name_too() {
        leave_the_network();
        let first = Tap::open_queues("hearth-h", 2).unwrap();
        assert_eq!(first.len(), 2);
        let third = Tap::open("hearth-h").unwrap();
        let names = [&first[0], &third].map(|tap| Identity::of(&tap.0).unwrap().name);
        assert_eq!(names[0], names[1]);
        // One of a single queue has no room for others, whoever asks.
        let single = Tap::open("hearth-i").unwrap();
        let busy = Tap::open("hearth-i").unwrap_err();
        assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
        assert!(Tap::open_queues("hearth-i", 2).is_err());
        drop(single);
    }

    #[test]
    #[ignore = "makes a tap: needs root (--include-ignored)"]
    fn offloads_reach_the_kernel() {
        leave_the_network();
        let tap = Tap::open("hearth-j").unwrap();
        for right in [
            Offload::empty(),
            Offload::CHECKSUM,
            Offload::CHECKSUM | Offload::TSO4,
            Offload::all(),
        ] {
            tap.set_offload(right).unwrap();
        }
        // The kernel knows no segments without checksums.
        for wrong in [Offload::TSO4, Offload::TSO6] {
            let error = tap.set_offload(wrong).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
    }

    #[test]
    #[ignore = "makes a tap: needs root (--include-ignored)"]
    fn queues_that_are_left_out_come_back() {
        use std::io::Read;
        use std::time::{Duration, Instant};

        use vmm_sys_util::epoll::EventSet;

        use crate::epoll::{Epoll, Until};

        leave_the_network();
        let taps = Tap::open_queues("hearth-mq", 2).unwrap();
        let epoll = Epoll::new().unwrap();
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        epoll.watch(&taps[1], 1, edge).unwrap();
        let read = |tap: &Tap| (&tap.0).read(&mut [0; 2000]);
        let is_left_out =
            |tap: &Tap| Identity::of(&tap.0).unwrap().flags & libc::IFF_DETACH_QUEUE != 0;
        assert!(!is_left_out(&taps[1]));
        taps[1].set_enabled(false).unwrap();
        assert!(is_left_out(&taps[1]));
        assert!(read(&taps[1]).is_err());
        taps[1].set_enabled(true).unwrap();
        // The watch has outlived that: one that begins meanwhile never wakes.
        taps[0].set_enabled(false).unwrap();
        // Going up, the host asks for neighbours; all of it comes to the one queue.
        let up = std::process::Command::new("ip")
            .args(["link", "set", "hearth-mq", "up"])
            .status()
            .unwrap();
        assert!(up.success());
        let mut events = [Default::default(); 1];
        let deadline = Instant::now() + Duration::from_secs(10);
        while read(&taps[1]).is_err() {
            assert!(Instant::now() < deadline, "no packet came");
            assert_eq!(epoll.wait(&mut events, Until::Event).unwrap(), 1);
        }
    }
}
