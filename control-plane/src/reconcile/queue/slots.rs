//! How much of each kind of work is done at once, and how long one piece of it
//! may take. What waits for a slot waits in the order that it came, and the
//! deadline begins when it has one.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::waits;

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Reading what there is of a resource on the host.
    Look,
    /// A word with a VMM's control socket, or its end.
    Control,
    /// Starting a VMM: it reads boot files, and keeps a CPU busy.
    Launch,
    /// Making and removing volumes.
    Disk,
    /// Saving a guest's memory, which is held meanwhile.
    Memory,
    /// Bringing a VPC to what it should be.
    Network,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Look => "looking at the host",
            Self::Control => "speaking to the VMM",
            Self::Launch => "starting the VMM",
            Self::Disk => "working on a volume",
            Self::Memory => "saving the memory",
            Self::Network => "working on a network",
        })
    }
}

/// The limits of one kind.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How much of it is done at once.
    pub at_once: usize,
    /// How long one piece may take.
    pub deadline: Duration,
}

impl Kind {
    /// The limits of a host with so many CPUs.
    fn limits(self, cpus: usize) -> Limits {
        let (at_once, seconds) = match self {
            Self::Look => (32, 30),
            Self::Control => (64, 30),
            // More of them at once would only all be late. Never one alone: a
            // single one that hangs must not be all that is done.
            Self::Launch => (cpus.max(2), 300),
            // An image may be copied for the first volume.
            Self::Disk => (4, 1800),
            // More of them at once would be held for longer each.
            Self::Memory => (2, 1800),
            Self::Network => (8, 120),
        };
        Limits {
            at_once,
            deadline: Duration::from_secs(seconds),
        }
    }
}

/// A piece of work took longer than its kind may; it was cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{kind} took longer than {deadline:?}")]
pub struct Late {
    /// The kind.
    pub kind: Kind,
    /// How long it had.
    pub deadline: Duration,
}

/// How many pieces of work of a kind wait for their slots where the rest looks again later.
const WAITING: usize = 64;

struct Slot {
    free: Semaphore,
    /// Places for those that have a slot or wait for one, if they took one.
    places: Arc<Semaphore>,
    deadline: Duration,
}

/// A place among those that have a slot or wait for one.
#[derive(Debug)]
pub struct Place {
    _held: OwnedSemaphorePermit,
}

impl Slot {
    fn new(limits: Limits) -> Self {
        Self {
            free: Semaphore::new(limits.at_once),
            places: Arc::new(Semaphore::new(limits.at_once + WAITING)),
            deadline: limits.deadline,
        }
    }
}

struct All {
    look: Slot,
    control: Slot,
    launch: Slot,
    disk: Slot,
    memory: Slot,
    network: Slot,
}

impl All {
    fn of(&self, kind: Kind) -> &Slot {
        match kind {
            Kind::Look => &self.look,
            Kind::Control => &self.control,
            Kind::Launch => &self.launch,
            Kind::Disk => &self.disk,
            Kind::Memory => &self.memory,
            Kind::Network => &self.network,
        }
    }
}

/// The slots of one host, shared by its controllers. Clones are the same.
#[derive(Clone)]
pub struct Slots(Arc<All>);

impl Slots {
    /// Those of this machine.
    pub fn of_this_machine() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new(|kind| kind.limits(cpus))
    }

    /// Those of hosts that are not this machine: `at_once` of each kind.
    pub fn wide(at_once: usize) -> Self {
        Self::new(|kind| Limits {
            at_once,
            ..kind.limits(1)
        })
    }

    fn new(limits: impl Fn(Kind) -> Limits) -> Self {
        let slot = |kind| Slot::new(limits(kind));
        Self(Arc::new(All {
            look: slot(Kind::Look),
            control: slot(Kind::Control),
            launch: slot(Kind::Launch),
            disk: slot(Kind::Disk),
            memory: slot(Kind::Memory),
            network: slot(Kind::Network),
        }))
    }

    /// A place for work that takes so long, and of which there may be so much, that not all
    /// of it may wait in steps: those are bounded too, and others need them. None: look
    /// again later.
    pub fn place(&self, kind: Kind) -> Option<Place> {
        let places = Arc::clone(&self.0.of(kind).places);
        let held = places.try_acquire_owned().ok()?;
        Some(Place { _held: held })
    }

    /// Does a piece of work as soon as there is a slot for it.
    ///
    /// # Errors
    /// [`Late`] when it took too long.
    pub async fn run<T>(&self, kind: Kind, work: impl Future<Output = T>) -> Result<T, Late> {
        let slot = self.0.of(kind);
        // They are never closed.
        let _held = waits::during(slot.free.acquire()).await;
        timeout(slot.deadline, work).await.map_err(|_| Late {
            kind,
            deadline: slot.deadline,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_kind_has_its_own_limits() {
        let slots = Slots::new(|kind| kind.limits(3));
        for kind in [
            Kind::Look,
            Kind::Control,
            Kind::Launch,
            Kind::Disk,
            Kind::Memory,
            Kind::Network,
        ] {
            let Limits { at_once, deadline } = kind.limits(3);
            assert_eq!(slots.0.of(kind).free.available_permits(), at_once);
            let late = slots.run(kind, pending::<()>()).await;
            assert_eq!(late, Err(Late { kind, deadline }));
        }
    }
}
