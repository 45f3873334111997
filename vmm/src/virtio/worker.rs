//! A device's thread and the way to end it.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::epoll::{EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::counters::Counter;
use super::{Declaration, Interrupt};
use crate::epoll::{DOORBELL, Epoll, STOP};
use crate::jail::{ThreadRole, confine_thread};

/// Bytes of a device thread's stack: nothing of the guest's size lies on it.
const STACK_SIZE: usize = 256 << 10;

/// A thread that ends when its stop event is written. Dropping it stops and joins.
pub struct Worker {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// Sets DEVICE_NEEDS_RESET when its thread unwinds: a driver must learn that nobody
/// serves its queue any more.
pub(super) struct PanicGuard(pub(super) Arc<dyn Interrupt>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.needs_reset();
        }
    }
}

impl Worker {
    /// Starts `body` on a thread of a device, confined to what the device declares. It
    /// gets the stop event and must return soon after that becomes readable; when it
    /// fails, or the thread can't be confined, the driver learns that the device needs
    /// a reset. `suffix` comes behind the device's name in what `ps -L` shows, 15 bytes
    /// at most.
    ///
    /// # Errors
    /// When no thread or file descriptor can be had.
    pub fn start<F>(
        declaration: &'static Declaration,
        suffix: &str,
        interrupt: Arc<dyn Interrupt>,
        body: F,
    ) -> io::Result<Self>
    where
        F: FnOnce(Arc<EventFd>) -> io::Result<()> + Send + 'static,
    {
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let stop_event = Arc::clone(&stop);
        let thread = spawn(declaration, suffix, move |confined| {
            let guard = PanicGuard(interrupt);
            if confined.and_then(|()| body(stop_event)).is_err() {
                guard.0.needs_reset();
            }
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

/// Starts a device's thread, which learns whether it is confined: it must not serve the
/// guest if it isn't.
pub(super) fn spawn(
    declaration: &'static Declaration,
    suffix: &str,
    body: impl FnOnce(io::Result<()>) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let role = ThreadRole::Device(&declaration.profile);
    Builder::new()
        .name(format!("{}{suffix}", declaration.name))
        .stack_size(STACK_SIZE)
        .spawn(move || body(confine_thread(role).map_err(io::Error::other)))
}

impl Worker {
    /// Asks the thread to end, without waiting for it.
    pub fn request_stop(&self) {
        // Fails only when the counter is full, and then it is written already.
        let _ = self.stop.write(1);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.request_stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was its own; its device is being reset.
            let _ = thread.join();
        }
    }
}

/// Runs `work` whenever `doorbell` rings, until `stop` is written. `work` returns
/// whether it should be called again at once; it is always called once at the
/// start, as what was rung before is not signalled again.
///
/// The doorbell is watched edge-triggered and never read: each ring wakes, and no
/// system call is spent on clearing it. `rung` counts.
///
/// # Errors
/// What `work` returns, or when the events can't be watched.
pub fn serve(
    stop: &EventFd,
    doorbell: &Arc<EventFd>,
    rung: &Counter,
    mut work: impl FnMut() -> io::Result<bool>,
) -> io::Result<()> {
    serve_all(stop, std::slice::from_ref(doorbell), rung, |_| work())
}

/// The same for several doorbells, 62 at most; `work` gets the place of the one
/// that rang.
///
/// # Errors
/// As [`serve`].
pub fn serve_all(
    stop: &EventFd,
    doorbells: &[Arc<EventFd>],
    rung: &Counter,
    mut work: impl FnMut(usize) -> io::Result<bool>,
) -> io::Result<()> {
    let epoll = Epoll::new()?;
    epoll.watch(stop, STOP, EventSet::IN)?;
    let mut due = vec![true; doorbells.len()];
    for (token, doorbell) in (DOORBELL..).zip(doorbells) {
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        epoll.watch(doorbell.as_ref(), token, edge)?;
    }
    let mut events = [EpollEvent::default(); 8];
    loop {
        for (place, due) in due.iter_mut().enumerate() {
            if *due {
                *due = work(place)?;
            }
        }
        let count = epoll.wait(&mut events, due.contains(&true))?;
        for event in &events[..count] {
            match event.data() {
                STOP => return Ok(()),
                token => {
                    rung.add(1);
                    let place = usize::try_from(token - DOORBELL).ok();
                    if let Some(due) = place.and_then(|place| due.get_mut(place)) {
                        *due = true;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::virtio::rng::DECLARATION;
    use crate::virtio::testing::FakeInterrupt;

    fn started(
        body: impl FnOnce(Arc<EventFd>) -> io::Result<()> + Send + 'static,
    ) -> (Worker, Arc<FakeInterrupt>) {
        let said = Arc::new(FakeInterrupt::default());
        let interrupt = Arc::clone(&said) as Arc<dyn Interrupt>;
        let worker = Worker::start(&DECLARATION, "-test", interrupt, body).unwrap();
        (worker, said)
    }

    fn event() -> Arc<EventFd> {
        Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap())
    }

    #[test]
    fn a_thread_that_fails_or_panics_is_told_and_one_that_ends_is_not() {
        let (failed, said) = started(|_| Err(io::ErrorKind::Other.into()));
        said.wait(|said| said.needs_reset == 1);
        drop(failed);
        let (panicked, said) = started(|_| panic!("on purpose"));
        said.wait(|said| said.needs_reset == 1);
        drop(panicked);
        let (ended, said) = started(|_| Ok(()));
        drop(ended);
        assert_eq!(said.wait(|_| true).needs_reset, 0);
    }

    #[test]
    fn a_dropped_worker_is_asked_to_end_and_has_ended() {
        let held = Arc::new(());
        let copy = Arc::clone(&held);
        let (worker, _) = started(move |stop| {
            let epoll = Epoll::new()?;
            epoll.watch(stop.as_ref(), STOP, EventSet::IN)?;
            epoll.wait(&mut [EpollEvent::default()], false)?;
            drop(copy);
            Ok(())
        });
        drop(worker);
        assert_eq!(Arc::strong_count(&held), 1);
    }

    /// All are worked on once unasked, then whichever rang, and again at once where
    /// there is more; the stop ends it.
    #[test]
    fn the_doorbell_that_rang_is_worked_on() {
        let (stop, bells) = (event(), [event(), event(), event()]);
        let worked = Mutex::new(Vec::new());
        let rung = Counter::default();
        serve_all(&stop, &bells, &rung, |place| {
            let mut worked = worked.lock().unwrap();
            worked.push(place);
            match worked.len() {
                3 => bells[1].write(1)?,
                // Not done yet: comes again without a ring.
                4 => return Ok(true),
                5 => bells[2].write(1)?,
                6 => bells[0].write(1)?,
                7 => stop.write(1)?,
                _ => {}
            }
            Ok(false)
        })
        .unwrap();
        assert_eq!(*worked.lock().unwrap(), [0, 1, 2, 1, 1, 2, 0]);
        assert_eq!(rung.value(), 3);
    }
}
