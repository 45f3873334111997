//! vCPU threads: they run the guest as ordered, hand its exits to the bus, and report
//! what ends a machine.
//!
//! ```text
//!   main loop ── order, call ──► Mailbox (one for each) ──► thread ── exits ──► Bus
//!       ▲  └──── kick (signal) ────────────────────────────►  │
//!       └─────── bell ◄── Reports (one for all) ◄─────────────┘
//! ```
//!
//! A kick is a signal. Its handler sets `immediate_exit` in the thread's own
//! `kvm_run`, so a kick that comes just before `KVM_RUN` is not lost: the call
//! returns at once (Documentation/virt/kvm/api.rst, "immediate_exit").

mod access;
mod bell;
mod entry;
mod exits;
mod kick;
mod mailbox;
#[cfg(all(test, loom))]
mod models;
mod reports;
mod stats;
#[cfg(all(test, not(loom)))]
#[allow(unsafe_code, reason = "KVM is handed an address of guest memory")]
mod tests;
mod thread;
mod trace;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN};

pub use self::access::Access;
pub use self::bell::Bell;
pub use self::entry::{Entry, unix_ns};
pub use self::kick::install as install_kick_handler;
pub use self::mailbox::CallError;
use self::mailbox::{Mailbox, Order};
pub use self::reports::{Ending, Reports, Taken};
pub use self::stats::{ExitStats, TickRate, summary};
pub use self::trace::Trace;
use crate::machine::bus::Bus;

/// What the threads share with the machine.
#[derive(Clone)]
pub struct Surroundings {
    /// Where exits go.
    pub bus: Arc<Bus>,
    /// Where reports go.
    pub reports: Arc<Reports>,
    /// What their exits are: one for each vCPU.
    pub stats: Arc<[ExitStats]>,
    /// When the guest was first entered.
    pub entry: Arc<Entry>,
}

/// The vCPUs of one machine, each on a thread of its own.
pub struct Vcpus(Vec<Vcpu>);

struct Vcpu {
    /// The guest may use it; else it stands still.
    is_plugged: bool,
    mailbox: Arc<Mailbox<VcpuFd>>,
    thread: JoinHandle<()>,
}

/// A vCPU without a thread, which none could be had for.
#[derive(Debug, thiserror::Error)]
#[error("a vCPU's thread")]
pub struct Threadless {
    /// The vCPU: KVM has it for as long as the VM, and makes none of its number again.
    pub fd: VcpuFd,
    /// Why.
    #[source]
    pub why: io::Error,
}

impl Vcpus {
    /// Starts one thread for each vCPU, all paused.
    ///
    /// # Errors
    /// When a thread can't be made; those already made are ended.
    pub fn start(fds: Vec<VcpuFd>, surroundings: &Surroundings) -> io::Result<Self> {
        let mut vcpus = Self(Vec::with_capacity(fds.len()));
        for fd in fds {
            let added = vcpus.add(fd, surroundings);
            added.map_err(|threadless| threadless.why)?;
        }
        Ok(vcpus)
    }

    /// Starts the thread of the next vCPU, paused.
    ///
    /// # Errors
    /// When it can't be made. The vCPU is given back, to be tried again.
    pub fn add(&mut self, fd: VcpuFd, surroundings: &Surroundings) -> Result<(), Threadless> {
        let index = self.0.len();
        let mailbox = Arc::new(Mailbox::new());
        let surroundings = surroundings.clone();
        // What a thread is to begin with is gone where there is none: this stays.
        let fd = Arc::new(Mutex::new(Some(fd)));
        let take = |fd: &Mutex<Option<VcpuFd>>| {
            let mut fd = fd.lock().unwrap_or_else(PoisonError::into_inner);
            fd.take()
        };
        let spawned = {
            let (mailbox, fd) = (Arc::clone(&mailbox), Arc::clone(&fd));
            std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                // Its loop is shallow; the default 2 MiB is address space that a
                // cgroup may charge.
                .stack_size(256 << 10)
                .spawn(move || {
                    if let Some(fd) = take(&fd) {
                        thread::run(index, fd, &mailbox, &surroundings);
                    }
                })
        };
        match spawned {
            Ok(thread) => {
                self.0.push(Vcpu {
                    is_plugged: true,
                    mailbox,
                    thread,
                });
                Ok(())
            }
            Err(why) => match take(&fd) {
                Some(fd) => Err(Threadless { fd, why }),
                // Nobody else has taken it.
                None => Ok(()),
            },
        }
    }

    /// How many there are, plugged or not.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Has one stand still, whatever all are ordered, until it is plugged again.
    pub fn unplug(&mut self, index: usize) {
        if let Some(vcpu) = self.0.get_mut(index) {
            vcpu.is_plugged = false;
            vcpu.order(Order::Park);
        }
    }

    /// Has one that was unplugged do again as all are ordered, from the next order on.
    pub fn plug(&mut self, index: usize) {
        if let Some(vcpu) = self.0.get_mut(index) {
            vcpu.is_plugged = true;
        }
    }

    /// Lets those run that are plugged.
    pub fn resume(&self) {
        let plugged = self.0.iter().filter(|vcpu| vcpu.is_plugged);
        plugged.for_each(|vcpu| vcpu.order(Order::Run));
    }

    /// Asks them to park. They may have before this returns, if they stood still; else
    /// each rings the bell of its reports as it does.
    pub fn begin_pause(&self) {
        self.order(Order::Park);
    }

    /// Whether all stand still or have ended.
    #[must_use]
    pub fn are_parked(&self) -> bool {
        self.0.iter().all(|vcpu| vcpu.mailbox.is_parked())
    }

    /// Asks them to park and waits for it; false: not all have by the deadline, and the
    /// order stands.
    #[must_use]
    pub fn pause(&self, deadline: Instant) -> bool {
        self.begin_pause();
        self.0.iter().all(|vcpu| vcpu.mailbox.wait_parked(deadline))
    }

    /// Holds them for a debugger, beside whatever they are ordered, until its [`Access`]
    /// releases them. Each rings the bell of its reports as it parks.
    pub fn hold(&self) {
        for vcpu in &self.0 {
            vcpu.mailbox.hold();
            vcpu.kick();
        }
    }

    /// A debugger's way to them.
    #[must_use]
    pub fn access(&self) -> Access {
        Access::new(self.0.iter().map(|vcpu| Arc::clone(&vcpu.mailbox)))
    }

    /// Asks them to end, for good. Each rings the bell of its reports as it does.
    pub fn begin_end(&self) {
        self.order(Order::End);
    }

    /// Whether all have ended, and what they had of KVM is closed.
    #[must_use]
    pub fn have_ended(&self) -> bool {
        self.0.iter().all(|vcpu| vcpu.mailbox.has_ended())
    }

    /// Makes a call on a paused vCPU's own thread, to get or set its state, and waits
    /// for the result: until it parks, if it is only about to.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call<T: Send + 'static>(
        &mut self,
        index: usize,
        call: impl FnOnce(&mut VcpuFd) -> T + Send + 'static,
        deadline: Instant,
    ) -> Result<T, CallError> {
        let vcpu = self.0.get(index).ok_or(CallError::Missing)?;
        vcpu.mailbox.call(call, deadline)
    }

    fn order(&self, order: Order) {
        self.0.iter().for_each(|vcpu| vcpu.order(order));
    }
}

impl Vcpu {
    fn order(&self, order: Order) {
        self.mailbox.order(order);
        if order != Order::Run {
            self.kick();
        }
    }

    fn kick(&self) {
        // It fails for a thread that has ended, which needs no kick.
        let _ = self.thread.kill(SIGRTMIN());
    }
}

impl Drop for Vcpus {
    /// Ends and joins all threads.
    fn drop(&mut self) {
        self.begin_end();
        for vcpu in self.0.drain(..) {
            // A panic was printed by its own hook, and the crash is in the report.
            let _ = vcpu.thread.join();
        }
    }
}
