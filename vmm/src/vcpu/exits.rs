//! One `KVM_RUN` and what its exit asks for.

#![allow(unsafe_code, reason = "the kvm_run page")]

use std::ptr;
use std::sync::atomic::Ordering;

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::{Ending, Surroundings, kick};
use crate::machine::bus::Request;

/// `KVM_SYSTEM_EVENT_*`: Documentation/virt/kvm/api.rst, KVM_EXIT_SYSTEM_EVENT.
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;

/// What came of entering the guest.
pub(super) enum Step {
    /// An exit, which was done. KVM may have a rest of it to do.
    Exit,
    /// The guest was not entered, or left for a signal. Nothing is left to do.
    Interrupted,
    /// The vCPU can't run any more.
    End(Ending),
}

/// Enters the guest until its next exit, and does what that asks for.
pub(super) fn step(index: usize, fd: &mut VcpuFd, surroundings: &Surroundings) -> Step {
    let bus = &surroundings.bus;
    let exit = fd.run();
    surroundings.exits.fetch_add(1, Ordering::Relaxed);
    let failure = match exit {
        Ok(VcpuExit::IoIn(port, data)) => {
            let data = ptr::from_mut(data);
            let width = io_width(fd);
            // SAFETY: the bytes are in the kvm_run page, which stays as it is until the
            // next KVM_RUN of this thread, and nothing else refers to them.
            bus.ports_read(port, width, unsafe { &mut *data });
            return Step::Exit;
        }
        Ok(VcpuExit::IoOut(port, data)) => {
            let data = ptr::from_ref(data);
            let width = io_width(fd);
            // SAFETY: as above.
            match bus.ports_write(port, width, unsafe { &*data }) {
                None => {}
                Some(Request::Eject(slots)) => surroundings.reports.eject(slots),
                Some(Request::PowerOff) => return Step::End(Ending::PowerOff),
                Some(Request::Reset) => return Step::End(Ending::Reset),
            }
            return Step::Exit;
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            bus.memory_read(address, data);
            return Step::Exit;
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            bus.memory_write(address, data);
            return Step::Exit;
        }
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => return Step::Exit,
        Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN, _)) => {
            return Step::End(Ending::PowerOff);
        }
        Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_RESET, _)) => {
            return Step::End(Ending::Reset);
        }
        Ok(VcpuExit::Shutdown) => "triple fault".to_owned(),
        Ok(VcpuExit::InternalError) => internal_error(fd),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            format!("KVM could not enter the guest (reason {reason:#x}, host CPU {cpu})")
        }
        Ok(other) => format!("unexpected exit {other:?}"),
        Err(error) => match error.errno() {
            libc::EINTR => {
                kick::rearm(fd);
                return Step::Interrupted;
            }
            // A processor that waits for its SIPI.
            libc::EAGAIN => return Step::Interrupted,
            _ => format!("KVM_RUN failed: {error}"),
        },
    };
    Step::End(Ending::Crashed(format!(
        "vCPU {index}: {failure}; {}",
        registers(fd)
    )))
}

/// Bytes of each access of a KVM_EXIT_IO, of which there may be several.
fn io_width(fd: &mut VcpuFd) -> usize {
    // SAFETY: the exit reason is KVM_EXIT_IO, for which KVM fills this member of the
    // union; it is plain data.
    unsafe { fd.get_kvm_run().__bindgen_anon_1.io }.size.into()
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
