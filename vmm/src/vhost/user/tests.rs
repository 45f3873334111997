use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

use super::testing::{FakeBackEnd, Manners};
use super::*;
use crate::memory::{Options, Ram};

const VERSION_1: u64 = 1 << 32;

fn open(fake: &FakeBackEnd, patience: Duration) -> io::Result<Session> {
    let socket = connect(&fake.path())?;
    Session::open(socket, VERSION_1, Cancel::new()?, patience)
}

fn opened(fake: &FakeBackEnd) -> Session {
    open(fake, Duration::from_secs(30)).unwrap()
}

fn why(manners: Manners) -> String {
    let fake = FakeBackEnd::new(manners);
    let Err(error) = open(&fake, Duration::from_secs(30)) else {
        panic!("it fits");
    };
    error.to_string()
}

#[test]
fn a_back_end_says_what_it_has() {
    let manners = Manners::default();
    let fake = FakeBackEnd::new(manners.clone());
    let session = opened(&fake);
    let offer = session.offer();
    assert_eq!((offer.queues, offer.config), (2, manners.config));
    assert_eq!(offer.features, manners.features);
    assert!(session.can_log() && session.channel().is_some() && !session.has_memory());
    let asked = fake.wait(FrontendReq::SET_PROTOCOL_FEATURES, 1);
    let asked = u64::from_ne_bytes(asked.try_into().unwrap());
    assert_eq!(asked, (NEEDED | USED).bits(), "no more than is used");
    // One that has less.
    let fake = FakeBackEnd::new(Manners {
        protocol: Protocol::CONFIG,
        ..manners
    });
    let session = opened(&fake);
    assert_eq!(session.offer().queues, 1);
    assert!(!session.can_log() && session.channel().is_none());
}

#[test]
fn what_is_no_back_end_of_a_disk_is_refused() {
    let manners = Manners::default;
    let old = why(Manners {
        features: F_PROTOCOL_FEATURES,
        ..manners()
    });
    assert_eq!(old, "the back end lacks features of virtio: 0x100000000");
    let bare = why(Manners {
        features: VERSION_1,
        ..manners()
    });
    assert!(bare.contains("no protocol features"), "{bare}");
    let silent = why(Manners {
        protocol: Protocol::MQ,
        ..manners()
    });
    assert!(silent.contains("PROTOCOL_F_CONFIG"), "{silent}");
    let none = why(Manners {
        queues: 0,
        ..manners()
    });
    assert!(none.contains("no queues"), "{none}");
    for garbles in [
        FrontendReq::GET_FEATURES,
        FrontendReq::GET_PROTOCOL_FEATURES,
        FrontendReq::GET_QUEUE_NUM,
        FrontendReq::GET_CONFIG,
    ] {
        let short = why(Manners {
            garbles: Some(garbles),
            ..manners()
        });
        assert!(short.contains("the back end sent"), "{short}");
    }
}

#[test]
fn one_that_says_nothing_is_waited_for_no_longer_than_that() {
    let fake = FakeBackEnd::new(Manners {
        hangs_at: Some(FrontendReq::GET_CONFIG),
        ..Manners::default()
    });
    let waited = open(&fake, Duration::from_millis(50));
    let error = waited.map(drop).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

fn memory() -> Memory {
    let options = Options {
        shared: true,
        ..Options::default()
    };
    let ranges = [(0, 1 << 20), (1 << 32, 1 << 20)];
    Arc::new(Ram::new(&ranges, options).unwrap())
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap()
}

fn queue() -> virtio_queue::Queue {
    let mut queue = virtio_queue::Queue::new(16).unwrap();
    queue.set_desc_table_address(Some(0x1000), None);
    queue.set_avail_ring_address(Some(0x2000), None);
    queue.set_used_ring_address(Some(0x3000), None);
    queue
}

fn start(
    session: &mut Session,
    memory: &Memory,
    inflight: &mut Option<Inflight>,
) -> io::Result<()> {
    let (queue, [kick, call, error]) = (queue(), [(); 3].map(|()| event()));
    let vring = Vring {
        queue: &queue,
        kick: &kick,
        call: &call,
        error: &error,
    };
    let served = [Served {
        index: 1,
        vring,
        base: 7,
    }];
    session.start(memory, VERSION_1, &served, inflight)
}

fn two(body: &[u8]) -> [u32; 2] {
    let word = |at: usize| u32::from_ne_bytes(body[at..at + 4].try_into().unwrap());
    [word(0), word(4)]
}

#[test]
fn a_back_end_is_told_where_all_is() {
    let fake = FakeBackEnd::new(Manners::default());
    let (mut session, memory) = (opened(&fake), memory());
    let mut inflight = None;
    start(&mut session, &memory, &mut inflight).unwrap();
    assert!(session.has_memory() && session.serves() && inflight.is_some());
    let table = fake.wait(FrontendReq::SET_MEM_TABLE, 1);
    assert_eq!(two(&table), [2, 0]);
    let number = |at: usize| u64::from_ne_bytes(table[at..at + 8].try_into().unwrap());
    // Guest address, size, address here, offset in the file.
    let first = [8, 16, 24, 32].map(number);
    assert_eq!(first, [0, 1 << 20, 0, 0]);
    let second = [40, 48, 56, 64].map(number);
    assert_eq!(second, [1 << 32, 1 << 20, 1 << 32, 0]);
    // It is that memory.
    memory.write_slice(b"word", GuestAddress(0x500)).unwrap();
    let file = File::from(fake.file(FrontendReq::SET_MEM_TABLE));
    let mut word = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut word, 0x500).unwrap();
    assert_eq!(&word, b"word");
    for (request, value) in [
        (FrontendReq::SET_VRING_NUM, 16),
        (FrontendReq::SET_VRING_BASE, 7),
        (FrontendReq::SET_VRING_ENABLE, 1),
    ] {
        assert_eq!(two(&fake.wait(request, 1)), [1, value], "{request:?}");
    }
    let rings = fake.wait(FrontendReq::SET_VRING_ADDR, 1);
    let number = |at: usize| u64::from_ne_bytes(rings[at..at + 8].try_into().unwrap());
    assert_eq!(two(&rings), [1, 0]);
    assert_eq!([8, 16, 24].map(number), [0x1000, 0x3000, 0x2000]);
    let features = fake.wait(FrontendReq::SET_FEATURES, 1);
    let features = u64::from_ne_bytes(features.try_into().unwrap());
    assert_eq!(features, VERSION_1 | F_PROTOCOL_FEATURES);
    let counted = fake.wait(FrontendReq::GET_INFLIGHT_FD, 1);
    assert_eq!(counted[16..20], [2, 0, 16, 0], "queues up to the last one");
    session.set_call(1, &event()).unwrap();
    fake.wait(FrontendReq::SET_VRING_CALL, 2);
    session.stop(1).unwrap();
    // What it notes is the next one's too.
    drop(session);
    let mut next = opened(&fake);
    start(&mut next, &memory, &mut inflight).unwrap();
    assert_eq!(fake.count(FrontendReq::GET_INFLIGHT_FD), 1);
    fake.wait(FrontendReq::SET_INFLIGHT_FD, 2);
}

#[test]
fn a_back_end_marks_what_it_writes() {
    let fake = FakeBackEnd::new(Manners::default());
    let (mut session, memory) = (opened(&fake), memory());
    memory.begin_tracking().unwrap();
    start(&mut session, &memory, &mut None).unwrap();
    let features = fake.wait(FrontendReq::SET_FEATURES, 1);
    let features = u64::from_ne_bytes(features.try_into().unwrap());
    assert_eq!(features, VERSION_1 | F_PROTOCOL_FEATURES | 1 << 26);
    let rings = fake.wait(FrontendReq::SET_VRING_ADDR, 1);
    assert_eq!(two(&rings), [1, 1], "its used ring, too");
    assert_eq!(rings[32..40], 0x3000u64.to_ne_bytes());
    // It sets the bit of the third page.
    let log = File::from(fake.file(FrontendReq::SET_LOG_BASE));
    std::os::unix::fs::FileExt::write_all_at(&log, &[0b100], 0).unwrap();
    let dirty = memory.take_dirty();
    assert!(dirty.contains(0x2000) && dirty.count() == 1);
    let fake = FakeBackEnd::new(Manners {
        protocol: Protocol::CONFIG,
        ..Manners::default()
    });
    let error = start(&mut opened(&fake), &memory, &mut None).unwrap_err();
    assert_eq!(error.to_string(), NO_LOG);
}

#[test]
fn private_memory_can_not_be_given_away() {
    let fake = FakeBackEnd::new(Manners::default());
    let memory = Arc::new(Ram::private(&[(0, 1 << 20)]).unwrap());
    let error = start(&mut opened(&fake), &memory, &mut None).unwrap_err();
    assert_eq!(error.to_string(), "guest memory isn't shared");
}

#[test]
fn what_it_refuses_is_an_error() {
    for refuses in [
        FrontendReq::SET_FEATURES,
        FrontendReq::SET_MEM_TABLE,
        FrontendReq::SET_INFLIGHT_FD,
        FrontendReq::SET_VRING_NUM,
        FrontendReq::SET_VRING_KICK,
        FrontendReq::SET_VRING_ENABLE,
    ] {
        let fake = FakeBackEnd::new(Manners {
            refuses: Some(refuses),
            ..Manners::default()
        });
        let error = start(&mut opened(&fake), &memory(), &mut None).unwrap_err();
        let wanted = format!("the back end refused request {}", refuses as u32);
        assert_eq!(error.to_string(), wanted);
    }
    for garbles in [FrontendReq::GET_INFLIGHT_FD, FrontendReq::GET_VRING_BASE] {
        let fake = FakeBackEnd::new(Manners {
            garbles: Some(garbles),
            ..Manners::default()
        });
        let mut session = opened(&fake);
        let all = start(&mut session, &memory(), &mut None).and_then(|()| session.stop(1));
        assert!(all.is_err(), "{garbles:?}");
    }
}
