//! One `KVM_RUN` and what its exit asks for.

#![allow(unsafe_code, reason = "the kvm_run page")]

use std::ptr;

use hearth_vmm_api::ExitReason;
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::trace::Access;
use super::{Ending, ExitStats, Surroundings, kick};
use crate::arch;
use crate::arch::debug::Trap;
use crate::machine::bus::{Request, Target};

/// `KVM_SYSTEM_EVENT_*`: Documentation/virt/kvm/api.rst, KVM_EXIT_SYSTEM_EVENT.
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;

/// What came of entering the guest.
pub(super) enum Step {
    /// An exit, which was done. KVM may have a rest of it to do.
    Exit,
    /// The guest was not entered, or left for a signal. Nothing is left to do.
    Interrupted,
    /// It was left where a debugger may have wanted it. Nothing is left to do.
    Trapped(Trap),
    /// The vCPU can't run any more.
    End(Ending),
}

/// Enters the guest until its next exit, and does what that asks for.
pub(super) fn step(index: usize, fd: &mut VcpuFd, surroundings: &Surroundings) -> Step {
    use ExitReason::{Halt, Interrupted, MemoryRead, MemoryWrite, Other, PortRead, PortWrite};
    let bus = &surroundings.bus;
    let stats = surroundings.stats.get(index);
    let exit = fd.run();
    let start = arch::ticks();
    if let Some(stats) = stats {
        stats.begin();
    }
    let is_traced = stats.is_some_and(ExitStats::is_traced);
    let mut access = Access::default();
    let mut trace = |address, width, data: &[u8]| {
        if is_traced {
            access = Access::new(address, width, data);
        }
    };
    let (reason, target, done) = match exit {
        Ok(VcpuExit::IoIn(port, data)) => {
            let data = ptr::from_mut(data);
            let width = io_width(fd);
            // SAFETY: the bytes are in the kvm_run page, which stays as it is until the
            // next KVM_RUN of this thread, and nothing else refers to them.
            let data = unsafe { &mut *data };
            let target = bus.ports_read(port, width, data);
            trace(port.into(), width, data);
            (PortRead, target, Ok(Step::Exit))
        }
        Ok(VcpuExit::IoOut(port, data)) => {
            let data = ptr::from_ref(data);
            let width = io_width(fd);
            // SAFETY: as above.
            let data = unsafe { &*data };
            trace(port.into(), width, data);
            let (target, request) = bus.ports_write(port, width, data);
            let step = match request {
                None => Step::Exit,
                Some(Request::Eject(slots)) => {
                    surroundings.reports.eject(slots);
                    Step::Exit
                }
                Some(Request::EjectProcessors(vcpus)) => {
                    surroundings.reports.unplug(vcpus);
                    Step::Exit
                }
                Some(Request::PowerOff) => Step::End(Ending::PowerOff),
                Some(Request::Reset) => Step::End(Ending::Reset),
            };
            (PortWrite, target, Ok(step))
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            let target = bus.memory_read(address, data);
            trace(address, data.len(), data);
            (MemoryRead, target, Ok(Step::Exit))
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            trace(address, data.len(), data);
            (MemoryWrite, bus.memory_write(address, data), Ok(Step::Exit))
        }
        Ok(VcpuExit::Hlt) => (Halt, Target::None, Ok(Step::Exit)),
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => (Interrupted, Target::None, Ok(Step::Exit)),
        Err(error) if error.errno() == libc::EINTR => {
            kick::rearm(fd);
            (Interrupted, Target::None, Ok(Step::Interrupted))
        }
        // A processor that waits for its SIPI.
        Err(error) if error.errno() == libc::EAGAIN => {
            (Interrupted, Target::None, Ok(Step::Interrupted))
        }
        Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN, _)) => {
            (Other, Target::None, Ok(Step::End(Ending::PowerOff)))
        }
        Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_RESET, _)) => {
            (Other, Target::None, Ok(Step::End(Ending::Reset)))
        }
        Ok(VcpuExit::Debug(exit)) => (Other, Target::None, Ok(Step::Trapped(exit.into()))),
        Ok(VcpuExit::Shutdown) => (Other, Target::None, Err("triple fault".to_owned())),
        Ok(VcpuExit::InternalError) => (Other, Target::None, Err(internal_error(fd))),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            let failure =
                format!("KVM could not enter the guest (reason {reason:#x}, host CPU {cpu})");
            (Other, Target::None, Err(failure))
        }
        Ok(other) => (
            Other,
            Target::None,
            Err(format!("unexpected exit {other:?}")),
        ),
        Err(error) => (Other, Target::None, Err(format!("KVM_RUN failed: {error}"))),
    };
    if let Some(stats) = stats {
        let ticks = arch::ticks().saturating_sub(start);
        stats.end(reason, target, ticks);
        stats.note(start, ticks, reason, target, access);
    }
    done.unwrap_or_else(|failure| {
        let registers = registers(fd);
        Step::End(Ending::Crashed(format!(
            "vCPU {index}: {failure}; {registers}"
        )))
    })
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
