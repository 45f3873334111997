use std::sync::mpsc::{RecvTimeoutError, channel};

use ::vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures as Protocol};

use super::*;
use crate::vhost::user::testing::{FakeBackEnd, Manners};
use crate::virtio::quiet::{QueueState, Quiet, Why};
use crate::virtio::testing::{FakeInterrupt, Guest, quiesce, reset};

/// No note of what is in flight.
fn forgetful() -> Manners {
    let protocol = Protocol::all() - Protocol::INFLIGHT_SHMFD;
    Manners {
        protocol,
        ..Manners::default()
    }
}

struct Bench {
    fake: FakeBackEnd,
    /// Ended before the guest's memory is gone.
    device: UserBlock,
    guest: Guest,
    interrupt: Arc<FakeInterrupt>,
}

fn open(fake: &FakeBackEnd) -> io::Result<BackEnd> {
    let target = Target {
        path: fake.path(),
        socket: None,
    };
    target.open()
}

impl Bench {
    fn new(manners: Manners) -> Self {
        let fake = FakeBackEnd::new(manners);
        let guest = Guest::shared(2);
        let memory = Arc::clone(&guest.memory);
        let device = UserBlock::new(open(&fake).unwrap(), memory, None, 4).unwrap();
        Self {
            fake,
            device,
            guest,
            interrupt: Arc::default(),
        }
    }

    /// Has both queues served.
    fn started(manners: Manners) -> Self {
        let mut bench = Self::new(manners);
        let device = &mut bench.device;
        bench.guest.start(device, F_VERSION_1, &bench.interrupt);
        bench.fake.wait(FrontendReq::SET_VRING_ENABLE, 2);
        bench
    }

    /// Waits for the next back end that serves both queues.
    fn serves_again(&self, starts: usize) {
        self.fake.wait(FrontendReq::SET_VRING_ENABLE, 2 * starts);
    }

    fn base(&self) -> u32 {
        let base = self.fake.wait(FrontendReq::SET_VRING_BASE, 1);
        u32::from_ne_bytes(base[4..].try_into().unwrap())
    }

    fn until(&self, what: &str, check: impl Fn(&State) -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while !check(&self.device.handle().state()) {
            assert!(std::time::Instant::now() < deadline, "never: {what}");
            std::thread::yield_now();
        }
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.device.counters().list();
        let found = counters.iter().find(|(known, _)| *known == name);
        found.unwrap().1
    }
}

fn queue(index: u16, at: u16) -> QueueState {
    QueueState {
        index,
        next_available: at,
        next_used: at,
    }
}

#[test]
fn a_driver_sees_what_the_back_end_has() {
    let mut manners = Manners::default();
    // Log, protocol features, and what nobody knows.
    manners.features |= 1 << 26 | 1 << 40 | F_EVENT_IDX;
    let bench = Bench::new(manners);
    let device = &bench.device;
    assert_eq!(device.features(), 1 << 9 | F_MQ | F_EVENT_IDX);
    assert_eq!(device.queue_sizes(), [QUEUE_SIZE; 2]);
    let mut config = [0; CONFIG_SIZE];
    device.config_read(0, &mut config);
    assert_eq!((capacity(&config), config[34]), (8, 2));
    assert_eq!(device.handle().size(), 4096);
    assert!(!device.read_only());
    assert!(device.handle().state().connected);
    let memory = || Arc::clone(&bench.guest.memory);
    let fake = FakeBackEnd::new(Manners::default());
    let one = UserBlock::new(open(&fake).unwrap(), memory(), Some(1), 4).unwrap();
    assert_eq!(one.features(), 1 << 9);
    drop(one);
    let many = UserBlock::new(open(&fake).unwrap(), memory(), Some(3), 4);
    let error = many.map(drop).unwrap_err();
    assert_eq!(error.to_string(), "the back end has 2 queues, not 3");
    let memory = Arc::clone(&Guest::new(1).memory);
    let private = UserBlock::new(open(&fake).unwrap(), memory, None, 1);
    assert_eq!(private.map(drop).unwrap_err().to_string(), UNSHARED);
}

#[test]
fn only_the_same_disk_is_restored() {
    let saved = Bench::new(Manners::default()).device.save();
    let mut same = Bench::new(Manners::default());
    assert_eq!(same.device.restore(&saved), Ok(()));
    for (at, value, why) in [
        (0, 16, "it has 8192 bytes here and 4096 there"),
        (20, 1, "its back end offers another disk"),
    ] {
        let mut manners = Manners::default();
        manners.config[at] = value;
        let refused = Bench::new(manners).device.restore(&saved).unwrap_err();
        assert_eq!(refused.to_string(), why);
    }
    for bad in [json!({"config": "00"}), json!(null), json!({"config": "x"})] {
        assert!(same.device.restore(&bad).is_err());
    }
}

#[test]
fn a_back_end_that_was_idle_is_followed_by_another() {
    let bench = Bench::started(forgetful());
    bench.guest.set_available(0, 5);
    bench.guest.set_used(0, 5);
    bench.guest.set_available(1, 5);
    bench.guest.set_used(1, 5);
    for starts in 2..4 {
        bench.fake.drop_connection();
        bench.serves_again(starts);
        assert_eq!(bench.base(), 5);
    }
    bench.until("it is there", |state| state.connected);
    assert_eq!(bench.counter("connections"), 3);
    assert_eq!(bench.counter("disconnections"), 2);
    assert_eq!(bench.counter("given_up"), 0);
}

#[test]
fn requests_that_nobody_has_noted_are_lost() {
    let mut bench = Bench::started(forgetful());
    bench.guest.set_available(1, 3);
    bench.fake.drop_connection();
    bench.interrupt.wait(|said| said.needs_reset == 1);
    bench.until("another one", |state| state.connected);
    assert_eq!(bench.counter("given_up"), 1);
    assert_eq!(bench.fake.count(FrontendReq::SET_VRING_ENABLE), 2);
    // A broken device has no queue that stands anywhere, and begins anew.
    assert_eq!(quiesce(&mut bench.device, Why::Hold), []);
    reset(&mut bench.device);
    bench.guest.start_over();
    let activation = bench.guest.activation(F_VERSION_1, &bench.interrupt);
    bench.device.activate(activation);
    bench.serves_again(2);
    assert_eq!(bench.base(), 0);
}

#[test]
fn requests_that_were_noted_are_done_by_the_next_one() {
    let mut bench = Bench::started(Manners::default());
    bench.guest.set_available(1, 3);
    bench.guest.set_used(1, 1);
    // Nobody is there for now.
    bench.fake.change(|manners| manners.queues = 0);
    bench.fake.drop_connection();
    bench.until("none fits", |state| {
        state.error.is_some() && !state.connected
    });
    let (said, heard) = channel();
    let quiet = Quiet::new(move |queues| said.send(queues).unwrap());
    bench.device.quiesce(Why::Hold, quiet);
    let soon = Duration::from_millis(150);
    assert_eq!(heard.recv_timeout(soon), Err(RecvTimeoutError::Timeout));
    bench.fake.change(|manners| manners.queues = 2);
    bench.serves_again(2);
    bench.fake.wait(FrontendReq::SET_INFLIGHT_FD, 2);
    assert_eq!(bench.fake.count(FrontendReq::GET_INFLIGHT_FD), 1);
    assert_eq!(bench.base(), 1);
    assert_eq!(heard.recv_timeout(soon), Err(RecvTimeoutError::Timeout));
    bench.guest.set_used(1, 3);
    let held = heard.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(held, [queue(0, 0), queue(1, 3)]);
}

#[test]
fn a_device_is_held_once_all_is_done_and_goes_on() {
    let mut bench = Bench::started(Manners::default());
    bench.guest.set_available(0, 2);
    let (said, heard) = channel();
    let quiet = Quiet::new(move |queues| said.send(queues).unwrap());
    bench.device.quiesce(Why::Hold, quiet);
    let soon = Duration::from_millis(50);
    assert_eq!(heard.recv_timeout(soon), Err(RecvTimeoutError::Timeout));
    assert_eq!(bench.fake.count(FrontendReq::GET_VRING_BASE), 0);
    bench.guest.set_used(0, 2);
    let held = heard.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(held, [queue(0, 2), queue(1, 0)]);
    assert_eq!(bench.fake.count(FrontendReq::GET_VRING_BASE), 2);
    // Marks are made from here on.
    bench.guest.memory.begin_tracking().unwrap();
    let activation = bench.guest.resumption(F_VERSION_1, &bench.interrupt, &held);
    bench.device.activate(activation);
    bench.serves_again(2);
    bench.fake.wait(FrontendReq::SET_LOG_BASE, 1);
    // Not while it serves.
    assert!(bench.guest.memory.add(64 << 20, 1 << 20).is_err());
    // One that nobody serves is where it was.
    bench.guest.memory.end_tracking();
    bench.fake.change(|manners| manners.queues = 0);
    bench.fake.drop_connection();
    bench.until("none fits", |state| {
        state.error.is_some() && !state.connected
    });
    assert_eq!(quiesce(&mut bench.device, Why::Hold), held);
}

#[test]
fn what_is_written_can_not_be_followed_by_every_back_end() {
    let bench = Bench::new(Manners {
        protocol: Protocol::CONFIG,
        ..Manners::default()
    });
    let error = bench.guest.memory.begin_tracking().unwrap_err();
    assert_eq!(error.to_string(), NO_LOG);
    assert!(!bench.guest.memory.is_tracking());
}

#[test]
fn a_reset_waits_for_a_back_end_that_hangs_and_nobody_else_does() {
    let mut bench = Bench::started(forgetful());
    bench.guest.set_available(0, 1);
    bench
        .fake
        .change(|manners| manners.hangs_at = Some(FrontendReq::GET_VRING_BASE));
    let (said, heard) = channel();
    let quiet = Quiet::new(move |queues| said.send(queues).unwrap());
    bench.device.quiesce(Why::Reset, quiet);
    // What was in flight has a second, whatever becomes of it.
    bench.fake.wait(FrontendReq::GET_VRING_BASE, 1);
    let soon = Duration::from_millis(50);
    assert_eq!(heard.recv_timeout(soon), Err(RecvTimeoutError::Timeout));
    bench.fake.drop_connection();
    assert_eq!(heard.recv_timeout(Duration::from_secs(30)), Ok(Vec::new()));
    assert_eq!(bench.interrupt.wait(|_| true).needs_reset, 0);
    // One that hangs as its device goes is let go.
    bench.guest.start_over();
    let activation = bench.guest.activation(F_VERSION_1, &bench.interrupt);
    bench.device.activate(activation);
    bench.serves_again(2);
    bench.device.quiesce(Why::Reset, Quiet::new(|_| ()));
    bench.fake.wait(FrontendReq::GET_VRING_BASE, 2);
    drop(bench.device);
}

#[test]
fn one_that_breaks_the_protocol_is_left_and_looked_for_again() {
    let bench = Bench::new(Manners {
        refuses: Some(FrontendReq::SET_VRING_ENABLE),
        ..forgetful()
    });
    let mut device = bench.device;
    bench
        .guest
        .start(&mut device, F_VERSION_1, &bench.interrupt);
    // It closes its side, and the next one is no better.
    bench.fake.wait(FrontendReq::SET_VRING_ENABLE, 2);
    bench.fake.change(|manners| manners.refuses = None);
    let starts = bench.fake.count(FrontendReq::SET_VRING_ENABLE);
    bench.fake.wait(FrontendReq::SET_VRING_ENABLE, starts + 2);
    assert_eq!(bench.interrupt.wait(|_| true).needs_reset, 0);
    reset(&mut device);
}

#[test]
fn a_configuration_that_changes_is_the_drivers_to_know() {
    let bench = Bench::started(Manners::default());
    let mut config = Manners::default().config;
    config[0] = 16;
    bench.fake.configure(config);
    bench.interrupt.wait(|said| said.config == 1);
    assert_eq!(bench.device.handle().size(), 8192);
    config[0] = 24;
    bench.fake.change(|manners| manners.config = config);
    bench.device.handle().refresh();
    bench.interrupt.wait(|said| said.config == 2);
    // And by the next one.
    config[0] = 32;
    bench.fake.change(|manners| manners.config = config);
    bench.fake.drop_connection();
    bench.interrupt.wait(|said| said.config == 3);
    assert_eq!(bench.device.handle().size(), 16384);
    // A smaller disk is another one.
    config[0] = 8;
    bench.fake.change(|manners| manners.config = config);
    bench.fake.drop_connection();
    bench.until("it is seen", |state| {
        let error = state.error.as_deref();
        error == Some("the back end offers another disk")
    });
}

#[test]
fn queues_get_other_vectors_and_break_rules() {
    let mut bench = Bench::started(Manners::default());
    bench.fake.wait(FrontendReq::SET_VRING_CALL, 2);
    bench.device.vectors_changed();
    bench.fake.wait(FrontendReq::SET_VRING_CALL, 4);
    // More is available than there can be, and the back end says so.
    bench.guest.set_available(0, 100);
    let broken = bench.fake.file(FrontendReq::SET_VRING_ERR);
    rustix::io::write(&broken, &1u64.to_ne_bytes()).unwrap();
    bench.interrupt.wait(|said| said.needs_reset == 1);
    assert_eq!(quiesce(&mut bench.device, Why::Hold), []);
}

/// A back end has the very files that this process has, and with them their flags.
fn make_blocking(file: &std::os::fd::OwnedFd) {
    rustix::fs::fcntl_setfl(file, rustix::fs::OFlags::empty()).unwrap();
}

#[test]
fn a_doorbell_that_a_back_end_has_filled_and_made_blocking_holds_up_nobody() {
    let mut bench = Bench::started(forgetful());
    let kick = bench.fake.file(FrontendReq::SET_VRING_KICK);
    let full = (u64::MAX - 1).to_ne_bytes();
    while rustix::io::write(&kick, &full).is_err() {
        let _ = rustix::io::read(&kick, &mut [0; 8]);
    }
    make_blocking(&kick);
    let (said, heard) = channel();
    let quiet = Quiet::new(move |queues| said.send(queues).unwrap());
    bench.device.quiesce(Why::Hold, quiet);
    // And then it is gone.
    bench.fake.drop_connection();
    let held = heard.recv_timeout(Duration::from_secs(10));
    if held.is_err() {
        // Its thread would be waited for, for ever.
        std::mem::forget(bench.device);
        panic!("the device is busy for as long as the machine lives");
    }
}

#[test]
fn a_guest_that_lies_about_what_is_done_is_held_all_the_same() {
    let mut bench = Bench::started(Manners::default());
    // Nothing was available, and of it three are done: there is no back end that looks.
    bench.guest.set_used(0, 3);
    let (said, heard) = channel();
    let quiet = Quiet::new(move |queues| said.send(queues).unwrap());
    bench.device.quiesce(Why::Hold, quiet);
    let held = heard.recv_timeout(Duration::from_secs(10));
    assert!(held.is_ok(), "a guest keeps its machine from being held");
}

#[test]
fn a_configuration_that_changes_while_the_machine_is_held_is_told_later() {
    let mut bench = Bench::started(Manners::default());
    let held = quiesce(&mut bench.device, Why::Hold);
    let mut config = Manners::default().config;
    config[0] = 16;
    bench.fake.configure(config);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while bench.device.handle().size() != 8192 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    let activation = bench.guest.resumption(F_VERSION_1, &bench.interrupt, &held);
    bench.device.activate(activation);
    bench.serves_again(2);
    bench.interrupt.wait(|said| said.config == 1);
}
