//! The engine of threads, for hosts without io_uring: a few of them for each queue,
//! as many requests at once.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::epoll::{EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Backend, Completion, Op, Wake, Wakes, execute};
use crate::epoll::{DOORBELL, Epoll, STOP, Until};
use crate::memory::Memory;

/// Threads of one queue. More only help disks that serve more at once, and those
/// hosts have io_uring.
const THREADS: usize = 4;

/// Token of the threads' event.
const DONE: u64 = DOORBELL + 1;

#[derive(Default)]
struct State {
    waiting: VecDeque<(u16, Op)>,
    done: Vec<Completion>,
    /// How many threads carry out a request.
    busy: usize,
    stopping: bool,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    idle: Condvar,
    event: EventFd,
    backend: Arc<Backend>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Queues are never left half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some((token, op)) = state.waiting.pop_front() {
                state.busy += 1;
                drop(state);
                let result = execute(self.backend.as_raw_fd(), &op);
                state = self.lock();
                state.busy -= 1;
                if state.busy == 0 {
                    self.idle.notify_all();
                }
                state.done.push(Completion { token, result, op });
                // Fails only when the counter is full, and then it is written.
                let _ = self.event.write(1);
            } else if state.stopping {
                return;
            } else {
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// One queue's threads.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    epoll: Epoll,
    _wakes: Wakes,
    /// Requests point into it.
    memory: Option<Memory>,
}

/// The descriptors of a pool without threads.
pub(super) struct Prepared {
    event: EventFd,
    epoll: Epoll,
}

impl Prepared {
    pub(super) fn new(wakes: &Wakes) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let epoll = Epoll::new()?;
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        epoll.watch(wakes.stop.as_ref(), STOP, EventSet::IN)?;
        epoll.watch(wakes.doorbell.as_ref(), DOORBELL, edge)?;
        epoll.watch(&event, DONE, edge)?;
        Ok(Self { event, epoll })
    }

    /// Makes the threads.
    pub(super) fn start(self, backend: Arc<Backend>, wakes: Wakes) -> io::Result<Pool> {
        let Self { event, epoll } = self;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            idle: Condvar::new(),
            event,
            backend,
        });
        // From here on, dropping stops the threads there are.
        let mut pool = Pool {
            shared,
            threads: Vec::new(),
            epoll,
            _wakes: wakes,
            memory: None,
        };
        for _ in 0..THREADS {
            let shared = Arc::clone(&pool.shared);
            let builder = Builder::new().name("blk-io".into());
            pool.threads.push(builder.spawn(move || shared.serve())?);
        }
        Ok(pool)
    }
}

impl Pool {
    pub(super) fn submit(&mut self, token: u16, op: Op) -> io::Result<()> {
        self.shared.lock().waiting.push_back((token, op));
        self.shared.work.notify_one();
        Ok(())
    }

    pub(super) fn wait(&mut self, until: Until, done: &mut Vec<Completion>) -> io::Result<Wake> {
        let mut events = [EpollEvent::default(); 3];
        let count = self.epoll.wait(&mut events, until)?;
        done.append(&mut self.shared.lock().done);
        let has = |token| events[..count].iter().any(|event| event.data() == token);
        Ok(Wake {
            stop: has(STOP),
            rung: has(DOORBELL),
        })
    }
}

impl Pool {
    pub(super) fn begin(&mut self, memory: Memory) {
        self.memory = Some(memory);
    }

    /// What waits is dropped, what runs is finished.
    pub(super) fn drain(&mut self) {
        let mut state = self.shared.lock();
        state.waiting.clear();
        while state.busy > 0 {
            state = self
                .shared
                .idle
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.done.clear();
        drop(state);
        self.memory = None;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.drain();
        self.shared.lock().stopping = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic of the thread was its own.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Host, Ram, Segments};

    /// What is left when a pool was drained with a request at work and others waiting.
    #[test]
    fn a_drain_waits_for_what_runs_and_forgets_what_waits() {
        let file = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = std::fs::File::from(file);
        file.set_len(1 << 30).unwrap();
        let backend = Arc::new(Backend::from_file(file, false).unwrap());
        let event = || Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap());
        let wakes = Wakes {
            doorbell: event(),
            stop: event(),
        };
        let prepared = Prepared::new(&wakes).unwrap();
        let mut pool = prepared.start(backend, wakes).unwrap();
        let ranges = [(0, 8 << 20)];
        let memory: Memory = Arc::new(Ram::private(&ranges).unwrap());
        let host = Host::new(Arc::clone(&memory));
        for requests in [1, 2 * THREADS] {
            pool.begin(Arc::clone(&memory));
            for token in (0..).take(requests) {
                // Long enough to be seen at work.
                let mut into = Segments::default();
                for _ in 0..64 {
                    into.push(&host, 0, 8 << 20).unwrap();
                }
                pool.submit(token, Op::Read { offset: 0, into }).unwrap();
            }
            loop {
                let state = pool.shared.lock();
                if state.busy == requests.min(THREADS) || !state.done.is_empty() {
                    break;
                }
                drop(state);
                std::thread::yield_now();
            }
            pool.drain();
            let state = pool.shared.lock();
            assert_eq!(state.busy, 0);
            assert!(state.waiting.is_empty() && state.done.is_empty());
            assert!(pool.memory.is_none());
        }
    }
}
