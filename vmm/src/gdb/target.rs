//! The guest in the terms of the crate that speaks gdb's protocol.

use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};

use super::guest::{Failure, Guest, index, tid};
use crate::arch::debug::{Place, Processor, Registers, Watch, get_registers, set_registers};

/// How gdb hears of memory that isn't there: EFAULT.
const NOT_THERE: TargetError<Failure> = TargetError::Errno(14);
/// How it hears that a snapshot is being written, of which what it would change is a part:
/// EBUSY.
const SAVING: TargetError<Failure> = TargetError::Errno(16);

impl Guest {
    fn may_write(&self) -> TargetResult<(), Self> {
        match self.is_locked {
            true => Err(SAVING),
            false => Ok(()),
        }
    }
}

impl Target for Guest {
    type Arch = Processor;
    type Error = Failure;

    fn base_ops(&mut self) -> BaseOps<'_, Processor, Failure> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Guest {
    fn read_registers(&mut self, registers: &mut Registers, tid: Tid) -> TargetResult<(), Self> {
        match self.access.call(index(tid), |fd| get_registers(fd)) {
            Ok(Ok(read)) => *registers = read,
            Ok(Err(_)) | Err(_) => return Err(TargetError::NonFatal),
        }
        Ok(())
    }

    fn write_registers(&mut self, registers: &Registers, tid: Tid) -> TargetResult<(), Self> {
        self.may_write()?;
        let registers = registers.clone();
        let set = move |fd: &mut _| set_registers(fd, &registers);
        match self.access.call(index(tid), set) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(TargetError::NonFatal),
        }
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        match self.read(index(tid), start, data) {
            0 if !data.is_empty() => Err(NOT_THERE),
            count => Ok(count),
        }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        self.may_write()?;
        match self.write(index(tid), start, data) {
            true => Ok(()),
            false => Err(NOT_THERE),
        }
    }

    fn list_active_threads(&mut self, is_active: &mut dyn FnMut(Tid)) -> Result<(), Failure> {
        (0..self.access.count()).map(tid).for_each(is_active);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Guest {
    fn thread_extra_info(&self, tid: Tid, buffer: &mut [u8]) -> Result<usize, Failure> {
        let text = format!("vCPU {}", index(tid));
        let count = text.len().min(buffer.len());
        buffer[..count].copy_from_slice(&text.as_bytes()[..count]);
        Ok(count)
    }
}

/// Signals that gdb has a thread go on with have no meaning for a processor, and are
/// dropped.
impl MultiThreadResume for Guest {
    fn resume(&mut self) -> Result<(), Failure> {
        self.go_on()
    }

    fn clear_resume_actions(&mut self) -> Result<(), Failure> {
        self.steps.clear();
        self.continues.clear();
        self.is_alone = false;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Failure> {
        self.continues.insert(index(tid));
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Guest {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Failure> {
        self.steps.insert(index(tid));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Guest {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Failure> {
        self.is_alone = true;
        Ok(())
    }
}

impl Breakpoints for Guest {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Guest {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.may_write()?;
        Ok(self.replace(address))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.may_write()?;
        // One that is gone with the memory that it was in is gone.
        self.restore(address);
        Ok(true)
    }
}

impl HwBreakpoint for Guest {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.places.add(instruction(address)))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.places.remove(instruction(address)))
    }
}

fn instruction(address: u64) -> Place {
    Place {
        address,
        length: 1,
        watch: Watch::Execute,
    }
}

impl HwWatchpoint for Guest {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(data(address, length, kind).is_some_and(|place| self.places.add(place)))
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(data(address, length, kind).is_some_and(|place| self.places.remove(place)))
    }
}

/// None: the processor can't watch for reads alone.
fn data(address: u64, length: u64, kind: WatchKind) -> Option<Place> {
    let watch = match kind {
        WatchKind::Write => Watch::Write,
        WatchKind::ReadWrite => Watch::Access,
        WatchKind::Read => return None,
    };
    Some(Place {
        address,
        length,
        watch,
    })
}
