//! What a vCPU's thread does from its start to its end.

use std::ptr;
use std::sync::atomic::Ordering;
use std::thread;

use kvm_ioctls::VcpuFd;

use super::exits::{Step, step};
use super::kick::IMMEDIATE_EXIT;
use super::{Ending, Gate, Surroundings};
use crate::jail::{ThreadRole, confine_thread};

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
            let detail = format!("vCPU {}: internal error in the VMM", self.index);
            self.surroundings.reports.end(Ending::Crashed(detail));
        }
    }
}

pub(super) fn run(index: usize, mut fd: VcpuFd, gate: &Gate, surroundings: &Surroundings) {
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
        surroundings.reports.end(Ending::Crashed(detail));
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
            Step::End(ending) => {
                surroundings.reports.end(ending);
                return;
            }
        }
    }
}
