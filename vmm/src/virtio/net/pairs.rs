//! The links of all pairs of queues, and who moves their packets.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use super::budget::Budget;
use super::kernel::KernelPair;
use crate::net::{Link, Offload};
use crate::virtio::Interrupt;
use crate::virtio::quiet::Quiet;
use crate::virtio::thread::Events;

/// What wakes a pump of the first thread when there are packets on its link: only while
/// the link is enabled, as a tap's queue that was not when it came to be watched wakes
/// nobody later either.
pub(super) struct Watch {
    pub(super) link: RawFd,
    pub(super) events: Events,
    pub(super) token: u64,
}

/// Who moves a pair's packets, while its link is enabled.
pub(super) enum Server {
    /// The kernel, which gives up a tap's queue that isn't enabled.
    Kernel(KernelPair),
    /// A pump of the first thread.
    Pump(Watch),
    /// A pump on a thread of its own, which watches its link for good.
    Thread,
}

impl Server {
    /// From here on, and for what waits already. The link must be enabled.
    fn start(&self) -> io::Result<()> {
        match self {
            Self::Kernel(pair) => pair.start(),
            Self::Pump(Watch {
                link,
                events,
                token,
            }) => events.watch(link, *token, EventSet::IN),
            Self::Thread => Ok(()),
        }
    }

    /// No more, if it did.
    fn stop(&self) {
        match self {
            Self::Kernel(pair) => pair.stop(),
            Self::Pump(watch) => watch.events.unwatch(&watch.link),
            Self::Thread => {}
        }
    }
}

/// The links of all pairs, of which the first few are in use: a packet must not go
/// to one whose queue nobody serves.
///
/// Whatever changes a link takes a lock of the whole host ([`Budget`]), so nothing is
/// done that changes nothing, and a reset leaves all as it is for the next driver.
pub(super) struct Pairs {
    links: Vec<Arc<dyn Link>>,
    /// How many links are enabled.
    enabled: usize,
    /// What the links leave to the guest, once it was set.
    offload: Option<Offload>,
    /// Of the driver's pairs, in order.
    servers: Vec<Server>,
    budget: Budget,
}

impl Pairs {
    /// Links that are all enabled, as they are when opened.
    pub(super) fn new(links: Vec<Arc<dyn Link>>) -> Self {
        Self {
            enabled: links.len(),
            links,
            offload: None,
            servers: Vec::new(),
            budget: Budget::default(),
        }
    }

    pub(super) fn links(&self) -> &[Arc<dyn Link>] {
        &self.links
    }

    /// How many links are enabled.
    pub(super) fn enabled(&self) -> usize {
        self.enabled
    }

    /// Pays for [`Self::enable`]. Those who only enable the first pair need not.
    ///
    /// # Errors
    /// How long to wait before asking again.
    pub(super) fn pay(&mut self, wanted: usize, now: Instant) -> Result<(), Duration> {
        let more = wanted.saturating_sub(self.enabled);
        // Both are at most `MAX_PAIRS`.
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        self.budget.spend(more, now)
    }

    /// Enables the first `wanted` links and no others.
    pub(super) fn enable(&mut self, wanted: usize) -> io::Result<()> {
        while self.enabled < wanted {
            let Some(link) = self.links.get(self.enabled) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            link.set_enabled(true)?;
            if let Some(server) = self.servers.get(self.enabled)
                && let Err(error) = server.start()
            {
                // A packet must not go where nobody serves.
                server.stop();
                let _ = link.set_enabled(false);
                return Err(error);
            }
            self.enabled += 1;
        }
        while self.enabled > wanted {
            let last = self.enabled - 1;
            let Some(link) = self.links.get(last) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            if let Some(server) = self.servers.get(last) {
                server.stop();
            }
            link.set_enabled(false)?;
            self.enabled = last;
        }
        Ok(())
    }

    /// Has the links leave to the guest what its driver takes, or less: a driver that
    /// has spent its budget gets what it had before of that, which is as right, if
    /// slower.
    pub(super) fn set_offload(&mut self, wanted: Offload, now: Instant) -> io::Result<()> {
        // They are queues of one tap, and the first is always enabled.
        let Some(link) = self.links.first() else {
            return Ok(());
        };
        let next = match self.offload {
            None => wanted,
            Some(before) if before.contains(wanted) => wanted,
            Some(before) => match self.budget.spend(1, now) {
                Ok(()) => wanted,
                Err(_) => before & wanted,
            },
        };
        if self.offload != Some(next) {
            link.set_offload(next)?;
            self.offload = Some(next);
        }
        Ok(())
    }

    /// Has packets moved from here on.
    ///
    /// # Errors
    /// When some can't be: what has begun is stopped by [`Self::take_back`].
    pub(super) fn hand_over(&mut self, servers: Vec<Server>) -> io::Result<()> {
        self.servers = servers;
        let mut in_use = self.servers.iter().take(self.enabled);
        in_use.try_for_each(Server::start)
    }

    /// Has the kernel interrupt the driver by the events that are its queues' now. A
    /// pump asks each time.
    pub(super) fn vectors_changed(&self, interrupt: &dyn Interrupt) -> io::Result<()> {
        self.servers.iter().try_for_each(|server| match server {
            Server::Kernel(pair) => pair.set_calls(interrupt),
            Server::Pump(_) | Server::Thread => Ok(()),
        })
    }

    /// Takes the queues back, and reports where the kernel has left them.
    pub(super) fn take_back(&mut self, quiet: &Quiet) {
        for server in self.servers.drain(..) {
            server.stop();
            if let Server::Kernel(pair) = server {
                pair.end(quiet);
            }
        }
    }
}
