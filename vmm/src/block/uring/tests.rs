//! What a ring takes, and when it is done without.

use std::fs::File;
use std::io::Write;

use io_uring::types::Fd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::*;

/// None where the kernel has no io_uring for us.
fn started() -> Option<Uring> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; 4096]).unwrap();
    let backend = Backend::from_file(file, false).unwrap();
    let event = || Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap());
    let wakes = Wakes {
        doorbell: event(),
        stop: event(),
    };
    let Ok(prepared) = Prepared::new(&backend, &wakes) else {
        eprintln!("SKIPPED: no io_uring");
        return None;
    };
    Some(prepared.start(Arc::new(backend), wakes, 8).unwrap())
}

fn result(uring: &mut Uring, entry: &squeue::Entry) -> i32 {
    uring.push(entry).unwrap();
    uring.enter(1, Until::Event).unwrap();
    uring.ring.completion().next().unwrap().result()
}

#[test]
fn a_ring_takes_the_requests_of_its_disk_and_no_others() {
    let Some(mut uring) = started() else { return };
    let mut buffer = [0; 16];
    let (at, length) = (buffer.as_mut_ptr(), 16);
    let read = opcode::Read::new(DISK, at, length).build();
    assert_eq!(result(&mut uring, &read), 16);
    assert_eq!(buffer, [7; 16]);

    let other = File::open("/etc/passwd").unwrap();
    let (name, link) = (c"/etc/passwd".as_ptr(), c"/tmp/hearth-no-link".as_ptr());
    let none = Fd(libc::AT_FDCWD);
    for (what, entry) in [
        ("openat", opcode::OpenAt::new(none, name).build()),
        ("close", opcode::Close::new(Fd(0)).build()),
        ("socket", opcode::Socket::new(libc::AF_INET, 1, 0).build()),
        (
            "symlinkat",
            opcode::SymlinkAt::new(none, name, link).build(),
        ),
        ("unlinkat", opcode::UnlinkAt::new(none, name).build()),
        ("connect", opcode::Connect::new(none, at.cast(), 16).build()),
        ("sendmsg", opcode::SendMsg::new(DISK, at.cast()).build()),
        ("nop", opcode::Nop::new().build()),
        (
            "a file that is not registered",
            opcode::Read::new(Fd(other.as_raw_fd()), at, length).build(),
        ),
    ] {
        assert_eq!(result(&mut uring, &entry), -libc::EACCES, "{what}");
    }
    let submitter = uring.ring.submitter();
    for refused in [
        submitter
            .register_files_update(0, &[other.as_raw_fd()])
            .map(|_| ()),
        submitter.unregister_files(),
        submitter.register_personality().map(|_| ()),
    ] {
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
}

/// A hit costs nothing, each miss in a row doubles the transfers that aren't tried,
/// and all that aren't transfers go to the ring.
#[test]
fn a_disk_that_keeps_missing_is_tried_less_and_less() {
    use crate::memory::Host;
    use crate::memory::Ram;

    let ranges = [(0, 1 << 20)];
    let memory = Arc::new(Ram::private(&ranges).unwrap());
    let host = Host::new(Arc::clone(&memory));
    let segments = || {
        let mut segments = Segments::default();
        segments.push(&host, 0, 512).unwrap();
        segments
    };
    // This program is in the page cache, and can't be written.
    let program = File::open(std::env::current_exe().unwrap()).unwrap();
    let backend = Backend::from_file(program, true).unwrap();
    let miss = Op::Write {
        offset: 0,
        from: segments(),
        durable: false,
    };
    let hit = Op::Read {
        offset: 0,
        into: segments(),
    };
    let mut short_cut = ShortCut::default();
    // How many go untried after the next miss.
    let missed = |short_cut: &mut ShortCut| {
        assert_eq!(short_cut.take(&backend, &miss), None);
        let skipped = short_cut.skip;
        for left in (0..skipped).rev() {
            assert_eq!(short_cut.take(&backend, &miss), None);
            assert_eq!(short_cut.skip, left);
        }
        skipped
    };
    let steps: Vec<u32> = (0..8).map(|_| missed(&mut short_cut)).collect();
    assert_eq!(steps, [1, 3, 7, 15, 31, 63, 64, 64]);
    for no_transfer in [
        Op::Flush,
        Op::Write {
            offset: 0,
            from: segments(),
            durable: true,
        },
        Op::Zero {
            offset: 0,
            length: 512,
        },
    ] {
        assert_eq!(short_cut.take(&backend, &no_transfer), None);
        assert_eq!(short_cut.skip, 0);
    }
    if try_now(backend.as_raw_fd(), &hit) == Some(-libc::EOPNOTSUPP) {
        eprintln!("SKIPPED: the file system can't tell whether it would wait");
        return;
    }
    assert_eq!(short_cut.take(&backend, &hit), Some(512));
    assert_eq!(missed(&mut short_cut), 1);
}
