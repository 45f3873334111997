//! An epoll(7) set, as the threads of devices and of what is behind them wait on one.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

/// Token of the stop event.
pub(crate) const STOP: u64 = 0;
/// Token of a device's first doorbell.
pub(crate) const DOORBELL: u64 = 1;

/// How long to wait for what may happen: the earlier, the less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Until {
    /// Not at all: only what is there already.
    Now,
    /// To this time at most.
    At(Instant),
    /// For as long as nothing happens.
    Event,
}

impl Until {
    /// [`Self::Now`] where there is more to do.
    #[must_use]
    pub fn more(more: bool) -> Self {
        if more { Self::Now } else { Self::Event }
    }

    /// Whether the wait is over though nothing happened.
    #[must_use]
    pub fn is_over(self) -> bool {
        match self {
            Self::Now => true,
            // Nobody else asks for the time.
            Self::At(time) => time <= Instant::now(),
            Self::Event => false,
        }
    }

    /// The time that is left, if it has an end.
    #[must_use]
    pub fn left(self) -> Option<Duration> {
        match self {
            Self::Now => Some(Duration::ZERO),
            Self::At(time) => Some(time.saturating_duration_since(Instant::now())),
            Self::Event => None,
        }
    }

    /// As epoll_wait(2) takes it. Not a moment too short, and 24 days at most.
    fn milliseconds(self) -> i32 {
        let round_up = |left: Duration| left.as_nanos().div_ceil(1_000_000);
        self.left()
            .map_or(-1, |left| i32::try_from(round_up(left)).unwrap_or(i32::MAX))
    }
}

/// An epoll set.
pub(crate) struct Epoll(vmm_sys_util::epoll::Epoll);

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        vmm_sys_util::epoll::Epoll::new().map(Self)
    }

    pub(crate) fn watch(&self, fd: &impl AsRawFd, token: u64, events: EventSet) -> io::Result<()> {
        let event = EpollEvent::new(events, token);
        self.0.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
    }

    pub(crate) fn unwatch(&self, fd: &impl AsRawFd) -> io::Result<()> {
        let event = EpollEvent::default();
        self.0.ctl(ControlOperation::Delete, fd.as_raw_fd(), event)
    }

    /// Waits for events. Returns how many there are.
    pub(crate) fn wait(&self, events: &mut [EpollEvent], until: Until) -> io::Result<usize> {
        loop {
            match self.0.wait(until.milliseconds(), events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

    use super::*;

    #[test]
    fn a_wait_ends_at_its_time_or_with_an_event() {
        let epoll = Epoll::new().unwrap();
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        epoll.watch(&event, 7, EventSet::IN).unwrap();
        let mut events = [EpollEvent::default()];
        let start = Instant::now();
        assert_eq!(epoll.wait(&mut events, Until::At(start)).unwrap(), 0);
        let time = start + Duration::from_micros(2500);
        assert!(!Until::At(time + Duration::from_secs(60)).is_over());
        assert_eq!(epoll.wait(&mut events, Until::At(time)).unwrap(), 0);
        assert!(Until::At(time).is_over());
        event.write(1).unwrap();
        let late = start + Duration::from_secs(60);
        for until in [Until::Now, Until::At(late), Until::Event] {
            assert_eq!(epoll.wait(&mut events, until).unwrap(), 1);
        }
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn the_earliest_wait_is_the_least() {
        let now = Instant::now();
        let far = now + Duration::from_secs(1 << 40);
        let sorted = [Until::Now, Until::At(now), Until::At(far), Until::Event];
        assert!(sorted.is_sorted());
        assert_eq!(Until::At(far).milliseconds(), i32::MAX);
        assert_eq!(Until::Event.milliseconds(), -1);
        assert_eq!(Until::Now.milliseconds(), 0);
    }
}
