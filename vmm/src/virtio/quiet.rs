//! How a device lets go of guest memory: asked, never waited for.
//!
//! ```text
//!  transport ─ quiesce(why, Quiet) ─► device ─ a clone for each thread that has a part
//!      ▲                                           │ drains, reports its queues
//!      └──── done(queues), when the last clone is dropped ◄─┘
//! ```
//!
//! A disk that never answers keeps its clone: then the device isn't quiet, everybody can
//! see that, and nobody stands still for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// Why a device is to be quiet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The driver is gone: all that the device knows of it is forgotten, and what is in
    /// flight is dropped or finished, as it comes.
    Reset,
    /// The machine is held. What is in flight is finished and returned to the driver,
    /// and the device goes on from there at its next activation, of which the driver
    /// learns nothing.
    Hold,
}

/// Where a queue stands: virtio 1.2, sections 2.7.6 and 2.7.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// Which of the device's queues.
    pub index: u16,
    /// The place in the available ring of the next chain to take, not yet taken modulo
    /// the queue's size.
    pub next_available: u16,
    /// The place in the used ring of the next chain to return.
    pub next_used: u16,
}

/// [`QueueState`], saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueStateV1 {
    /// Which of the device's queues.
    pub index: u16,
    /// The next place in the available ring.
    pub next_available: u16,
    /// The next place in the used ring.
    pub next_used: u16,
}

impl From<QueueState> for QueueStateV1 {
    fn from(state: QueueState) -> Self {
        Self {
            index: state.index,
            next_available: state.next_available,
            next_used: state.next_used,
        }
    }
}

impl From<QueueStateV1> for QueueState {
    fn from(state: QueueStateV1) -> Self {
        Self {
            index: state.index,
            next_available: state.next_available,
            next_used: state.next_used,
        }
    }
}

/// Held by whoever still touches guest memory. When the last clone is dropped, the
/// device is quiet: also when its thread unwinds.
#[derive(Clone)]
pub struct Quiet(Arc<Inner>);

type Done = Box<dyn FnOnce(Vec<QueueState>) + Send>;

struct Inner {
    queues: Mutex<Vec<QueueState>>,
    /// Whether no report counts.
    is_broken: AtomicBool,
    done: Mutex<Option<Done>>,
}

impl Quiet {
    /// Calls `done` with what was reported, on the thread that drops the last clone.
    pub fn new(done: impl FnOnce(Vec<QueueState>) + Send + 'static) -> Self {
        Self(Arc::new(Inner {
            queues: Mutex::default(),
            is_broken: AtomicBool::new(false),
            done: Mutex::new(Some(Box::new(done))),
        }))
    }

    /// Reports where a queue stands, of which nothing is in flight any more.
    pub fn report(&self, queue: QueueState) {
        let mut queues = self.0.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.push(queue);
    }

    /// The device was broken, and is left alone until its driver resets it: nobody goes on
    /// from where its queues stand, whatever is reported.
    pub fn is_of_broken(&self) {
        self.0.is_broken.store(true, Ordering::SeqCst);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let done = self.done.get_mut().unwrap_or_else(PoisonError::into_inner);
        let queues = self
            .queues
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if *self.is_broken.get_mut() {
            queues.clear();
        }
        if let Some(done) = done.take() {
            done(std::mem::take(queues));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{TryRecvError, channel};

    use super::*;

    #[test]
    fn the_last_to_let_go_says_so_with_what_all_reported() {
        let (said, heard) = channel();
        let quiet = Quiet::new(move |queues| said.send(queues).unwrap());
        let queue = |index| QueueState {
            index,
            next_available: 7,
            next_used: 5,
        };
        let other = quiet.clone();
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            other.report(queue(1));
            panic!("on purpose");
        }));
        assert!(unwound.is_err());
        assert_eq!(heard.try_recv(), Err(TryRecvError::Empty));
        quiet.report(queue(0));
        drop(quiet);
        assert_eq!(heard.try_recv(), Ok(vec![queue(1), queue(0)]));
    }

    #[test]
    fn of_a_broken_device_nothing_is_known() {
        let (said, heard) = channel();
        let quiet = Quiet::new(move |queues| said.send(queues).unwrap());
        let other = quiet.clone();
        other.is_of_broken();
        quiet.report(QueueState {
            index: 0,
            next_available: 7,
            next_used: 5,
        });
        drop((quiet, other));
        assert_eq!(heard.try_recv(), Ok(Vec::new()));
    }
}
