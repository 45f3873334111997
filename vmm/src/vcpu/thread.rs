//! What a vCPU's thread does from its start to its end.

use std::ptr;
use std::thread;

use kvm_ioctls::VcpuFd;

use super::exits::{Step, step};
use super::kick::IMMEDIATE_EXIT;
use super::mailbox::{Mailbox, Obeyed};
use super::{Ending, Surroundings};
use crate::arch::debug::Trap;
use crate::jail::{ThreadRole, confine_thread};

/// The thread's own: which vCPU it is, and its half of everything.
pub(super) struct Vcpu<'a> {
    index: usize,
    fd: VcpuFd,
    /// The last exit is done with on KVM's side as well.
    is_settled: bool,
    /// Why a debugger may want it to stand still, not reported yet.
    trap: Option<Trap>,
    surroundings: &'a Surroundings,
}

impl<'a> Vcpu<'a> {
    /// A vCPU for the thread that calls this: kicks of that one reach it.
    pub(super) fn new(index: usize, mut fd: VcpuFd, surroundings: &'a Surroundings) -> Self {
        IMMEDIATE_EXIT.set(&raw mut fd.get_kvm_run().immediate_exit);
        Self {
            index,
            fd,
            is_settled: true,
            trap: None,
            surroundings,
        }
    }

    /// Lets the guest run until its next exit, and does what that asks for. The
    /// ending, if that is one.
    pub(super) fn step(&mut self) -> Option<Ending> {
        match step(self.index, &mut self.fd, self.surroundings) {
            Step::Exit => self.is_settled = false,
            Step::Interrupted => self.is_settled = true,
            Step::Trapped(trap) => {
                self.is_settled = true;
                self.trap = Some(trap);
            }
            Step::End(ending) => return Some(ending),
        }
        None
    }

    /// Completes the instruction of the last exit, and runs nothing behind it: what an
    /// `in` read is in no register, and no instruction pointer moved on, before
    /// `KVM_RUN` was called again (Documentation/virt/kvm/api.rst, the note at
    /// KVM_EXIT_IO and KVM_EXIT_MMIO). An access that KVM takes apart, such as one
    /// across two pages, exits for its next part meanwhile. The ending, if one of
    /// these is one.
    pub(super) fn settle(&mut self) -> Option<Ending> {
        while !self.is_settled {
            self.fd.set_kvm_immediate_exit(1);
            if let Some(ending) = self.step() {
                return Some(ending);
            }
        }
        None
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Reports a trap, and stands still from the next look for orders on: until a
    /// debugger has seen to it, whatever orders come before that.
    fn report_trap(&mut self, mailbox: &Mailbox<VcpuFd>) {
        if let Some(trap) = self.trap.take() {
            mailbox.hold();
            self.surroundings.reports.trap(self.index, trap);
        }
    }

    /// Has whoever reads the trace find all exits up to here.
    fn flush_trace(&self) {
        if let Some(stats) = self.surroundings.stats.get(self.index) {
            stats.flush();
        }
    }

    /// Does as ordered until it is to run; false: to end.
    fn obey(&mut self, mailbox: &Mailbox<VcpuFd>) -> bool {
        if let Some(ending) = self.settle() {
            self.surroundings.reports.end(ending);
            return false;
        }
        // A step's, whose instruction has just been completed.
        self.report_trap(mailbox);
        self.flush_trace();
        let ring = || self.surroundings.reports.bell().ring();
        match mailbox.obey(&mut self.fd, ring) {
            Obeyed::End => false,
            Obeyed::Run { was_parked } => {
                if was_parked {
                    // So that the guest's watchdogs know that it was held, and not
                    // stuck. It fails where the guest has no KVM clock, and then
                    // there is nowhere to say so (Documentation/virt/kvm/api.rst,
                    // KVM_KVMCLOCK_CTRL).
                    let _ = self.fd.kvmclock_ctrl();
                }
                true
            }
        }
    }

    fn run(&mut self, mailbox: &Mailbox<VcpuFd>) {
        // First of all: the process is confined before it has vCPUs, and no order is
        // carried out, nor the guest run, with more than this thread needs.
        if let Err(error) = confine_thread(ThreadRole::Vcpu) {
            let index = self.index;
            let detail = format!("vCPU {index}: the thread can't be confined: {error}");
            self.surroundings.reports.end(Ending::Crashed(detail));
            return;
        }
        if !self.obey(mailbox) {
            return;
        }
        if self.index == 0 {
            self.surroundings.entry.note();
        }
        while !mailbox.is_raised() || self.obey(mailbox) {
            if let Some(ending) = self.step() {
                self.surroundings.reports.end(ending);
                return;
            }
            self.report_trap(mailbox);
        }
    }
}

impl Drop for Vcpu<'_> {
    /// Tells the machine when the thread unwinds, instead of leaving it with fewer
    /// processors than it has.
    fn drop(&mut self) {
        // Before the page that it points into goes, with `fd`.
        IMMEDIATE_EXIT.set(ptr::null_mut());
        self.flush_trace();
        if thread::panicking() {
            let detail = format!("vCPU {}: internal error in the VMM", self.index);
            self.surroundings.reports.end(Ending::Crashed(detail));
        }
    }
}

/// Records the thread's end, after its vCPU is gone.
struct End<'a> {
    mailbox: &'a Mailbox<VcpuFd>,
    surroundings: &'a Surroundings,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.mailbox.end(|| self.surroundings.reports.bell().ring());
    }
}

/// The whole thread.
pub(super) fn run(
    index: usize,
    fd: VcpuFd,
    mailbox: &Mailbox<VcpuFd>,
    surroundings: &Surroundings,
) {
    let _end = End {
        mailbox,
        surroundings,
    };
    // Declared after it, hence dropped before it.
    let mut vcpu = Vcpu::new(index, fd, surroundings);
    vcpu.run(mailbox);
}
