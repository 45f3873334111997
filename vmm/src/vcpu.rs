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

#![allow(unsafe_code, reason = "the kvm_run page and a signal handler")]

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::jail::{ThreadRole, confine_thread};
use crate::machine::bus::{Bus, Request};

/// `KVM_SYSTEM_EVENT_*`: Documentation/virt/kvm/api.rst, KVM_EXIT_SYSTEM_EVENT.
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;

/// How long a thread that may run can take until it does.
const ENTRY_DEADLINE: Duration = Duration::from_secs(1);

thread_local! {
    /// This thread's `kvm_run.immediate_exit`, for the signal handler.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the pointer is into the kvm_run page of the VcpuFd that this very
        // thread owns; it is cleared before the VcpuFd is dropped.
        unsafe { flag.write_volatile(1) };
    }
}

/// Makes kicks possible; once for the process, before the first vCPU.
///
/// # Errors
/// When the handler can't be set.
pub fn install_kick_handler() -> io::Result<()> {
    register_signal_handler(SIGRTMIN(), on_kick).map_err(errno_to_io)
}

fn errno_to_io(error: errno::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

/// What a vCPU reports to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The guest asks for something.
    Guest(Request),
    /// The machine can't go on.
    Crashed(String),
}

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
    pub reports: Sender<Report>,
    /// Signalled after each report.
    pub bell: Arc<EventFd>,
    /// Counts exits.
    pub exits: Arc<AtomicU64>,
    /// When the guest was first entered.
    pub entry: Arc<Entry>,
}

/// When the first vCPU first entered the guest. Resets don't change it.
#[derive(Debug, Default)]
pub struct Entry {
    at_ns: Mutex<Option<u64>>,
    noted: Condvar,
}

impl Entry {
    /// By [`unix_ns`]; none before.
    #[must_use]
    pub fn at_ns(&self) -> Option<u64> {
        *self.at_ns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for it, not for ever: a vCPU that can't run is in the reports.
    pub fn wait(&self) {
        let at_ns = self.at_ns.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .noted
            .wait_timeout_while(at_ns, ENTRY_DEADLINE, |at| at.is_none());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn note(&self) {
        let mut at_ns = self.at_ns.lock().unwrap_or_else(PoisonError::into_inner);
        at_ns.get_or_insert_with(unix_ns);
        self.noted.notify_all();
    }
}

/// The host's clock, in nanoseconds since 1970.
#[must_use]
pub fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
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
            let thread = thread::Builder::new()
                .name(format!("vcpu{index}"))
                // The loop below is shallow; the default 2 MiB is address space
                // that a cgroup may charge.
                .stack_size(256 << 10)
                .spawn(move || run(index, fd, &gate, &surroundings))?;
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

/// Tells the machine when a vCPU thread unwinds, instead of leaving it with fewer
/// processors than it has.
struct PanicReport<'a> {
    index: usize,
    surroundings: &'a Surroundings,
}

impl Drop for PanicReport<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
        if thread::panicking() {
            report(
                self.surroundings,
                Report::Crashed(format!("vCPU {}: internal error in the VMM", self.index)),
            );
        }
    }
}

fn report(surroundings: &Surroundings, report: Report) {
    // Both fail only when the machine is already on its way out.
    let _ = surroundings.reports.send(report);
    let _ = surroundings.bell.write(1);
}

fn run(index: usize, mut fd: VcpuFd, gate: &Gate, surroundings: &Surroundings) {
    IMMEDIATE_EXIT.set(&raw mut fd.get_kvm_run().immediate_exit);
    // Declared after `fd`, hence dropped before it.
    let _guard = PanicReport {
        index,
        surroundings,
    };
    if gate.raised.load(Ordering::SeqCst) && !gate.pass() {
        return;
    }
    // The process may become confined between the making of this thread and its
    // first step, not later.
    if let Err(error) = confine_thread(ThreadRole::Vcpu) {
        let detail = format!("vCPU {index}: the thread can't be confined: {error}");
        report(surroundings, Report::Crashed(detail));
        return;
    }
    if index == 0 {
        surroundings.entry.note();
    }
    loop {
        if gate.raised.load(Ordering::SeqCst) && !gate.pass() {
            return;
        }
        match step(index, &mut fd, surroundings) {
            Step::Continue => {}
            Step::Report(message) => report(surroundings, message),
            Step::End(message) => {
                report(surroundings, message);
                return;
            }
        }
    }
}

enum Step {
    Continue,
    Report(Report),
    End(Report),
}

fn step(index: usize, fd: &mut VcpuFd, surroundings: &Surroundings) -> Step {
    let bus = &surroundings.bus;
    let exit = fd.run();
    surroundings.exits.fetch_add(1, Ordering::Relaxed);
    let failure = match exit {
        Ok(VcpuExit::IoIn(port, data)) => {
            bus.port_read(port, data);
            return Step::Continue;
        }
        Ok(VcpuExit::IoOut(port, data)) => {
            return match bus.port_write(port, data) {
                None => Step::Continue,
                Some(request @ Request::Eject(_)) => Step::Report(Report::Guest(request)),
                Some(request) => Step::End(Report::Guest(request)),
            };
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            bus.memory_read(address, data);
            return Step::Continue;
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            bus.memory_write(address, data);
            return Step::Continue;
        }
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => return Step::Continue,
        Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN, _)) => {
            return Step::End(Report::Guest(Request::PowerOff));
        }
        Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_RESET, _)) => {
            return Step::End(Report::Guest(Request::Reset));
        }
        Ok(VcpuExit::Shutdown) => "triple fault".to_owned(),
        Ok(VcpuExit::InternalError) => internal_error(fd),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            format!("KVM could not enter the guest (reason {reason:#x}, host CPU {cpu})")
        }
        Ok(other) => format!("unexpected exit {other:?}"),
        Err(error) => match error.errno() {
            libc::EINTR => {
                fd.set_kvm_immediate_exit(0);
                return Step::Continue;
            }
            libc::EAGAIN => return Step::Continue,
            _ => format!("KVM_RUN failed: {error}"),
        },
    };
    Step::End(Report::Crashed(format!(
        "vCPU {index}: {failure}; {}",
        registers(fd)
    )))
}

/// Says what KVM gave up on: Documentation/virt/kvm/api.rst,
/// KVM_EXIT_INTERNAL_ERROR.
fn internal_error(fd: &mut VcpuFd) -> String {
    // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which KVM fills this
    // member of the union; it is plain data.
    let internal = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal };
    let what = match internal.suberror {
        1 => "emulation failure",
        2 => "simultaneous exceptions",
        3 => "exit while delivering an event",
        4 => "unexpected exit reason",
        _ => "unknown",
    };
    format!("KVM internal error {}: {what}", internal.suberror)
}

/// The registers in one line, as far as KVM still gives them.
fn registers(fd: &VcpuFd) -> String {
    let (Ok(r), Ok(s)) = (fd.get_regs(), fd.get_sregs()) else {
        return "registers unknown".to_owned();
    };
    format!(
        "rip={:#x} rflags={:#x} rax={:#x} rbx={:#x} rcx={:#x} rdx={:#x} rsi={:#x} rdi={:#x} \
         rsp={:#x} rbp={:#x} cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x} cs={:#x}",
        r.rip,
        r.rflags,
        r.rax,
        r.rbx,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        r.rsp,
        r.rbp,
        s.cr0,
        s.cr2,
        s.cr3,
        s.cr4,
        s.efer,
        s.cs.selector
    )
}
