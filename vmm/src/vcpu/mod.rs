//! vCPU threads: they run the guest until stopped, hand its exits to the
//! bus, and report what ends a machine.
//!
//! ```text
//!            ┌──────── kick ────────┐
//!   running ─┤ bus exits            ├─► parked ── resume ─► running
//!            └─ power off, reset,   │      │
//!               crash ─► ended      │      └── stop ─► ended
//!                                   └─ stop ─► ended
//! ```
//!
//! A kick is a signal. Its handler sets `immediate_exit` in the thread's own
//! `kvm_run`, so a kick that comes just before `KVM_RUN` is not lost: the call
//! returns at once (Documentation/virt/kvm/api.rst, "immediate_exit").

mod bell;
mod entry;
mod exits;
mod kick;
mod reports;
mod thread;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN};

pub use self::bell::Bell;
pub use self::entry::{Entry, unix_ns};
pub use self::kick::install as install_kick_handler;
pub use self::reports::{Ending, Reports, Taken};
use crate::machine::bus::Bus;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Run,
    Pause,
    Stop,
}

/// What all vCPUs of one machine heed.
struct Gate {
    phase: Mutex<Phase>,
    changed: Condvar,
    /// Whether the phase is worth a look: not "run".
    raised: AtomicBool,
    /// How many vCPUs stand still.
    parked: Mutex<usize>,
    parked_changed: Condvar,
}

impl Gate {
    fn set(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        self.raised.store(phase != Phase::Run, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn park(&self, delta: isize) {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        *parked = parked.saturating_add_signed(delta);
        self.parked_changed.notify_all();
    }

    /// Waits while paused. False: stop.
    fn pass(&self) -> bool {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if *phase == Phase::Pause {
            self.park(1);
            while *phase == Phase::Pause {
                phase = self
                    .changed
                    .wait(phase)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            self.park(-1);
        }
        *phase == Phase::Run
    }
}

/// The running vCPUs of one machine.
pub struct Vcpus {
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads share with the machine.
#[derive(Clone)]
pub struct Surroundings {
    /// Where exits go.
    pub bus: Arc<Bus>,
    /// Where reports go.
    pub reports: Arc<Reports>,
    /// Counts exits.
    pub exits: Arc<AtomicU64>,
    /// When the guest was first entered.
    pub entry: Arc<Entry>,
}

impl Vcpus {
    /// Starts one thread for each vCPU, all paused.
    ///
    /// # Errors
    /// When a thread can't be made; those already made are ended.
    pub fn start(fds: Vec<VcpuFd>, surroundings: &Surroundings) -> io::Result<Self> {
        let mut vcpus = Self {
            gate: Arc::new(Gate {
                phase: Mutex::new(Phase::Pause),
                changed: Condvar::new(),
                raised: AtomicBool::new(true),
                parked: Mutex::new(0),
                parked_changed: Condvar::new(),
            }),
            threads: Vec::with_capacity(fds.len()),
        };
        for (index, fd) in fds.into_iter().enumerate() {
            let gate = Arc::clone(&vcpus.gate);
            let surroundings = surroundings.clone();
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                // The loop below is shallow; the default 2 MiB is address space
                // that a cgroup may charge.
                .stack_size(256 << 10)
                .spawn(move || thread::run(index, fd, &gate, &surroundings))?;
            vcpus.threads.push(thread);
        }
        Ok(vcpus)
    }

    /// Lets them run.
    pub fn resume(&self) {
        self.gate.set(Phase::Run);
    }

    /// Holds them, and returns when all stand still or have ended.
    pub fn pause(&self) {
        self.gate.set(Phase::Pause);
        self.kick();
        let mut parked = self
            .gate
            .parked
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while *parked < self.threads.iter().filter(|t| !t.is_finished()).count() {
            let (guard, _) = self
                .gate
                .parked_changed
                .wait_timeout(parked, Duration::from_millis(20))
                .unwrap_or_else(PoisonError::into_inner);
            parked = guard;
        }
    }

    fn kick(&self) {
        for thread in &self.threads {
            // It fails for a thread that has ended, which needs no kick.
            let _ = thread.kill(SIGRTMIN());
        }
    }
}

impl Drop for Vcpus {
    /// Ends and joins all threads.
    fn drop(&mut self) {
        self.gate.set(Phase::Stop);
        self.kick();
        for thread in self.threads.drain(..) {
            // A panic was printed by its own hook, and the crash is in the report.
            let _ = thread.join();
        }
    }
}
