//! The orders of one vCPU's thread, and how it stands.
//!
//! ```text
//!              ┌──── park ────┐
//!              │              ▼
//!   start ─► running        parked ◄─┐
//!              │ ▲            │ │ │  │ call
//!              │ └─── run ────┘ │ └──┘
//!              └─── end ──► ended ◄┘
//! ```
//!
//! There is one order, the last one, and room for one call: no queue. Beside it a
//! debugger may hold the thread: it is then parked, whatever else it would do, until it
//! is released or ordered to end. An order is given and later obeyed; who gave it looks
//! whether it was, waits for it, or is woken by the thread. It is the giver's to get the
//! thread's attention: a thread in `KVM_RUN` doesn't look into its mailbox.

use std::mem;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use crate::sync::{AtomicBool, Condvar, Mutex, MutexGuard};

/// What a thread is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Run,
    Park,
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stance {
    Running,
    Parked,
    Ended,
}

/// What [`Mailbox::obey`] leaves a thread to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Obeyed {
    /// To run.
    Run {
        /// It stood still until now.
        was_parked: bool,
    },
    /// To end.
    End,
}

/// Why a call has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There is no vCPU of this number.
    #[error("there is no such vCPU")]
    Missing,
    /// Nobody asked the vCPU to pause.
    #[error("the vCPU runs")]
    Running,
    /// Its thread has ended.
    #[error("the vCPU's thread has ended")]
    Ended,
    /// It didn't park in time. The call was withdrawn and will not be made.
    #[error("the vCPU didn't pause in time")]
    Withdrawn,
    /// The call, or one before it, was begun and didn't return in time.
    #[error("a call on the vCPU's thread didn't return in time")]
    Underway,
}

type Call<P> = Box<dyn FnOnce(&mut P) + Send>;

enum Slot<P> {
    Free,
    Waiting(Call<P>),
    Underway,
}

struct State<P> {
    order: Order,
    is_held: bool,
    stance: Stance,
    call: Slot<P>,
}

impl<P> State<P> {
    /// The order, as far as a debugger lets it be obeyed.
    fn order(&self) -> Order {
        match self.order {
            Order::Run if self.is_held => Order::Park,
            order => order,
        }
    }
}

/// The mailbox of a thread that owns a `P`, its processor.
pub(super) struct Mailbox<P> {
    /// Whether the state is worth a look: the order isn't to run.
    raised: AtomicBool,
    state: Mutex<State<P>>,
    /// Notified of each change of the state, by both sides.
    changed: Condvar,
}

/// What its owner calls.
impl<P> Mailbox<P> {
    /// For a thread that is to park before all else.
    pub(super) fn new() -> Self {
        Self {
            raised: AtomicBool::new(true),
            state: Mutex::new(State {
                order: Order::Park,
                is_held: false,
                stance: Stance::Running,
                call: Slot::Free,
            }),
            changed: Condvar::new(),
        }
    }

    /// Gives an order, in place of the one before. The first order to end stays.
    pub(super) fn order(&self, order: Order) {
        let mut state = self.lock();
        if state.order != Order::End {
            state.order = order;
            self.raise(&state);
        }
    }

    /// Holds the thread, besides its order: both sides may. It is parked as if that were
    /// the order.
    pub(super) fn hold(&self) {
        let mut state = self.lock();
        state.is_held = true;
        self.raise(&state);
    }

    /// Leaves the thread to its order.
    pub(super) fn release(&self) {
        let mut state = self.lock();
        state.is_held = false;
        self.raise(&state);
    }

    /// Whether the thread stands still and stays so, or has ended.
    pub(super) fn is_parked(&self) -> bool {
        is_parked(&self.lock())
    }

    /// Whether the thread has ended, and its processor is gone.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().stance == Stance::Ended
    }

    /// Waits until [`is_parked`](Self::is_parked); false: it isn't by the deadline.
    pub(super) fn wait_parked(&self, deadline: Instant) -> bool {
        is_parked(&self.wait(self.lock(), deadline, is_parked))
    }

    /// Has the thread make a call while it is parked, and waits for the result. One
    /// caller at a time.
    ///
    /// # Errors
    /// See [`CallError`].
    pub(super) fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut P) -> T + Send + 'static,
        deadline: Instant,
    ) -> Result<T, CallError> {
        let result = Arc::new(Mutex::new(None));
        let promised = Arc::clone(&result);
        let call = Box::new(move |processor: &mut P| {
            let value = call(processor);
            *promised.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        });
        let is_free =
            |state: &State<P>| state.stance == Stance::Ended || matches!(state.call, Slot::Free);
        // One that its caller no longer waited for may still be underway.
        let mut state = self.wait(self.lock(), deadline, is_free);
        if state.stance == Stance::Ended {
            return Err(CallError::Ended);
        }
        if state.order() != Order::Park {
            return Err(CallError::Running);
        }
        if !is_free(&state) {
            return Err(CallError::Underway);
        }
        state.call = Slot::Waiting(call);
        self.changed.notify_all();
        state = self.wait(state, deadline, is_free);
        if let Slot::Waiting(_) = state.call {
            state.call = Slot::Free;
            return Err(CallError::Withdrawn);
        }
        let value = result.lock().unwrap_or_else(PoisonError::into_inner).take();
        value.ok_or(match state.stance {
            Stance::Ended => CallError::Ended,
            Stance::Running | Stance::Parked => CallError::Underway,
        })
    }
}

/// What its thread calls.
impl<P> Mailbox<P> {
    /// Whether there is anything to [`obey`](Self::obey).
    pub(super) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// Obeys: parks and makes calls until there is another order. Rings as it parks: who
    /// sees that it did, was rung for.
    pub(super) fn obey(&self, processor: &mut P, ring: impl Fn()) -> Obeyed {
        let mut state = self.lock();
        loop {
            match state.order() {
                Order::End => return Obeyed::End,
                Order::Run => {
                    let was_parked = state.stance == Stance::Parked;
                    state.stance = Stance::Running;
                    return Obeyed::Run { was_parked };
                }
                Order::Park if state.stance != Stance::Parked => {
                    state.stance = Stance::Parked;
                    self.changed.notify_all();
                    ring();
                }
                Order::Park => {}
            }
            if matches!(state.call, Slot::Waiting(_))
                && let Slot::Waiting(call) = mem::replace(&mut state.call, Slot::Underway)
            {
                drop(state);
                call(processor);
                state = self.lock();
                state.call = Slot::Free;
                self.changed.notify_all();
            } else {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Records that the thread has ended, for whatever reason, as its last act,
    /// and rings.
    pub(super) fn end(&self, ring: impl Fn()) {
        let mut state = self.lock();
        state.stance = Stance::Ended;
        state.call = Slot::Free;
        self.changed.notify_all();
        ring();
    }
}

impl<P> Mailbox<P> {
    /// Has everyone look at a state whose order or hold is another one.
    fn raise(&self, state: &State<P>) {
        self.raised
            .store(state.order() != Order::Run, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the state is as wanted, or the deadline.
    fn wait<'a>(
        &self,
        mut state: MutexGuard<'a, State<P>>,
        deadline: Instant,
        is_wanted: impl Fn(&State<P>) -> bool,
    ) -> MutexGuard<'a, State<P>> {
        while !is_wanted(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            (state, _) = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state
    }
}

fn is_parked<P>(state: &State<P>) -> bool {
    match state.stance {
        Stance::Running => false,
        // One that was let go and hasn't noticed yet, may run any moment.
        Stance::Parked => state.order() != Order::Run,
        Stance::Ended => true,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// A thread whose processor counts how often it ran.
    fn counter(mailbox: &Mailbox<u64>) {
        let mut count = 0;
        while !mailbox.is_raised() || mailbox.obey(&mut count, || ()) != Obeyed::End {
            count += 1;
        }
        mailbox.end(|| ());
    }

    #[test]
    fn orders_and_calls_meet_their_thread() {
        let mailbox = Mailbox::new();
        thread::scope(|scope| {
            scope.spawn(|| counter(&mailbox));
            let mut least = 0;
            for round in 0..2000 {
                let count = mailbox.call(|count| *count, soon()).expect("parked");
                assert!(count >= least, "{count}, {least}");
                let again = mailbox.call(|count| *count, soon());
                assert_eq!(again, Ok(count), "it stands still");
                mailbox.order(Order::Run);
                if round % 2 == 0 {
                    assert_eq!(mailbox.call(|_| (), soon()), Err(CallError::Running));
                }
                mailbox.order(Order::Park);
                if round % 3 == 0 {
                    assert!(mailbox.wait_parked(soon()));
                    assert!(mailbox.is_parked());
                    least = count;
                }
            }
            mailbox.order(Order::End);
            assert!(mailbox.wait_parked(soon()));
        });
        assert!(mailbox.has_ended());
        assert_eq!(mailbox.call(|_| (), soon()), Err(CallError::Ended));
    }

    #[test]
    fn a_call_too_late_is_not_made() {
        let mailbox = Mailbox::new();
        let call = |count: &mut u64| *count = 99;
        let passed = Instant::now();
        assert_eq!(mailbox.call(call, passed), Err(CallError::Withdrawn));
        assert!(!mailbox.wait_parked(passed));
        thread::scope(|scope| {
            scope.spawn(|| counter(&mailbox));
            assert_eq!(mailbox.call(|count| *count, soon()), Ok(0));
            mailbox.order(Order::End);
        });
    }

    #[test]
    fn a_call_that_takes_too_long_is_waited_for_by_the_next() {
        let mailbox = Mailbox::new();
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        thread::scope(|scope| {
            scope.spawn(|| counter(&mailbox));
            let late = loop {
                let released = Arc::clone(&released);
                let slow = move |_: &mut u64| {
                    let released = released.lock().unwrap_or_else(PoisonError::into_inner);
                    // Until the other end is dropped.
                    let _ = released.recv();
                };
                // It is begun before its deadline, or else withdrawn.
                match mailbox.call(slow, Instant::now() + Duration::from_millis(20)) {
                    Err(CallError::Withdrawn) => {}
                    other => break other,
                }
            };
            assert_eq!(late, Err(CallError::Underway));
            let behind = mailbox.call(|_| (), Instant::now());
            assert_eq!(behind, Err(CallError::Underway));
            drop(release);
            assert_eq!(mailbox.call(|count| *count, soon()), Ok(0));
            mailbox.order(Order::End);
        });
    }

    #[test]
    fn a_held_thread_is_parked_until_it_is_released_and_ordered_to_run() {
        let mailbox = Mailbox::new();
        thread::scope(|scope| {
            scope.spawn(|| counter(&mailbox));
            for _ in 0..200 {
                mailbox.hold();
                mailbox.order(Order::Run);
                let count = mailbox.call(|count| *count, soon()).expect("held");
                mailbox.order(Order::Park);
                mailbox.release();
                assert_eq!(mailbox.call(|count| *count, soon()), Ok(count), "parked");
                mailbox.order(Order::Run);
                assert_eq!(mailbox.call(|_| (), soon()), Err(CallError::Running));
            }
            mailbox.hold();
            mailbox.order(Order::End);
        });
        assert!(mailbox.has_ended(), "nobody holds it from that");
    }

    #[test]
    fn each_park_and_the_end_ring_once() {
        let mailbox = Mailbox::<()>::new();
        let rings = std::cell::Cell::new(0);
        let ring = || rings.set(rings.get() + 1);
        mailbox.order(Order::Run);
        let run = |was_parked| Obeyed::Run { was_parked };
        assert_eq!(mailbox.obey(&mut (), ring), run(false), "it never parked");
        assert!(!mailbox.is_raised());
        thread::scope(|scope| {
            mailbox.order(Order::Park);
            assert!(mailbox.is_raised() && !mailbox.is_parked());
            scope.spawn(|| {
                assert!(mailbox.wait_parked(soon()));
                mailbox.order(Order::Run);
                assert!(!mailbox.is_parked());
            });
            assert_eq!(mailbox.obey(&mut (), ring), run(true));
        });
        mailbox.order(Order::End);
        mailbox.order(Order::Park);
        assert_eq!(mailbox.obey(&mut (), ring), Obeyed::End, "for good");
        mailbox.end(ring);
        assert_eq!(rings.get(), 2);
    }
}
