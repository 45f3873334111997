//! A vCPU's registers as gdb knows them: those of its own features (`target.xml`, after
//! gdb's `features/i386/64bit-*.xml`), and behind them what a kernel is debugged with.

use gdbstub::arch::{Arch, Registers as Serialize};
use gdbstub_arch::x86::reg::X86_64CoreRegs;
use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_sregs};
use kvm_ioctls::{Error, VcpuFd};

/// The processor, as gdb is told of it.
#[derive(Debug)]
pub enum Processor {}

impl Arch for Processor {
    type Usize = u64;
    type Registers = Registers;
    type BreakpointKind = usize;
    type RegId = ();

    fn target_description_xml() -> Option<&'static str> {
        Some(include_str!("target.xml"))
    }
}

/// MSR_KERNEL_GS_BASE: AMD APM 2, "SWAPGS Instruction".
const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// Bytes of [`X86_64CoreRegs`], as gdb has them.
const CORE: usize = 0x218;

/// All registers of one vCPU.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Registers {
    core: X86_64CoreRegs,
    /// In the order of `target.xml`: fs_base, gs_base, k_gs_base, cr0, cr2, cr3, cr4, cr8,
    /// efer.
    system: [u64; 9],
}

impl Serialize for Registers {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.core.rip
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.core.gdb_serialize(&mut write_byte);
        for byte in self.system.iter().flat_map(|value| value.to_le_bytes()) {
            write_byte(Some(byte));
        }
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let (core, system) = bytes.split_at_checked(CORE).ok_or(())?;
        let (system, []) = system.as_chunks() else {
            return Err(());
        };
        if system.len() != self.system.len() {
            return Err(());
        }
        self.core.gdb_deserialize(core)?;
        for (value, bytes) in self.system.iter_mut().zip(system) {
            *value = u64::from_le_bytes(*bytes);
        }
        Ok(())
    }
}

/// The same, as KVM has them.
#[derive(Clone, PartialEq)]
struct State {
    plain: kvm_regs,
    special: kvm_sregs,
    fpu: kvm_fpu,
    kernel_gs_base: u64,
}

impl State {
    fn get(fd: &VcpuFd) -> Result<Self, Error> {
        let mut msrs = kernel_gs_base(0)?;
        // A processor without it has nothing there.
        let count = fd.get_msrs(&mut msrs)?;
        let kernel_gs_base = msrs.as_slice().iter().take(count).map(|msr| msr.data);
        Ok(Self {
            plain: fd.get_regs()?,
            special: fd.get_sregs()?,
            fpu: fd.get_fpu()?,
            kernel_gs_base: kernel_gs_base.sum(),
        })
    }

    /// The registers in gdb's order: rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8 to r15.
    fn general(&mut self) -> [&mut u64; 16] {
        let r = &mut self.plain;
        [
            &mut r.rax, &mut r.rbx, &mut r.rcx, &mut r.rdx, &mut r.rsi, &mut r.rdi, &mut r.rbp,
            &mut r.rsp, &mut r.r8, &mut r.r9, &mut r.r10, &mut r.r11, &mut r.r12, &mut r.r13,
            &mut r.r14, &mut r.r15,
        ]
    }

    /// See [`Registers::system`].
    fn system(&mut self) -> [&mut u64; 9] {
        let s = &mut self.special;
        [
            &mut s.fs.base,
            &mut s.gs.base,
            &mut self.kernel_gs_base,
            &mut s.cr0,
            &mut s.cr2,
            &mut s.cr3,
            &mut s.cr4,
            &mut s.cr8,
            &mut s.efer,
        ]
    }

    /// Each selector, and where gdb has it.
    fn selectors<'a>(
        &'a mut self,
        core: &'a mut X86_64CoreRegs,
    ) -> [(&'a mut u16, &'a mut u32); 6] {
        let (s, g) = (&mut self.special, &mut core.segments);
        [
            (&mut s.cs.selector, &mut g.cs),
            (&mut s.ss.selector, &mut g.ss),
            (&mut s.ds.selector, &mut g.ds),
            (&mut s.es.selector, &mut g.es),
            (&mut s.fs.selector, &mut g.fs),
            (&mut s.gs.selector, &mut g.gs),
        ]
    }
}

fn kernel_gs_base(data: u64) -> Result<Msrs, Error> {
    let entry = kvm_msr_entry {
        index: KERNEL_GS_BASE,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[entry]).map_err(|_| Error::new(libc::ENOMEM))
}

/// Reads a vCPU's registers.
///
/// # Errors
/// When KVM refuses.
pub fn get(fd: &VcpuFd) -> Result<Registers, Error> {
    let mut state = State::get(fd)?;
    let mut registers = Registers {
        core: core_of(&state),
        system: state.system().map(|value| *value),
    };
    registers.core.regs = state.general().map(|value| *value);
    for (selector, shown) in state.selectors(&mut registers.core) {
        *shown = (*selector).into();
    }
    Ok(registers)
}

/// The instruction pointer, flags, and what is behind them.
#[expect(
    clippy::cast_possible_truncation,
    reason = "gdb has the halves of x87's pointers, and flags of 32 bits"
)]
fn core_of(state: &State) -> X86_64CoreRegs {
    let (plain, fpu) = (&state.plain, &state.fpu);
    let mut core = X86_64CoreRegs {
        rip: plain.rip,
        eflags: plain.rflags as u32,
        mxcsr: fpu.mxcsr,
        xmm: fpu.xmm.map(u128::from_le_bytes),
        ..Default::default()
    };
    for (shown, value) in core.st.iter_mut().zip(&fpu.fpr) {
        shown.copy_from_slice(&value[..10]);
    }
    core.fpu.fctrl = fpu.fcw.into();
    core.fpu.fstat = fpu.fsw.into();
    core.fpu.ftag = tags(fpu.ftwx);
    core.fpu.fiseg = (fpu.last_ip >> 32) as u32;
    core.fpu.fioff = fpu.last_ip as u32;
    core.fpu.foseg = (fpu.last_dp >> 32) as u32;
    core.fpu.fooff = fpu.last_dp as u32;
    core.fpu.fop = fpu.last_opcode.into();
    core
}

/// x87's tag word, two bits for each register, from FXSAVE's, one bit for each that isn't
/// empty (Intel SDM 1, 10.5.1.1).
fn tags(full: u8) -> u32 {
    let empty = (0..8).filter(|index| full & 1 << index == 0);
    empty.fold(0, |tags, index| tags | 0b11 << (2 * index))
}

/// Writes a vCPU's registers. What is as it was isn't touched: setting it can have
/// effects of its own, such as on an exception that is about to be delivered.
///
/// # Errors
/// When KVM refuses.
#[expect(
    clippy::cast_possible_truncation,
    reason = "gdb has registers of 16 bits and fewer in 32"
)]
pub fn set(fd: &VcpuFd, registers: &Registers) -> Result<(), Error> {
    let before = State::get(fd)?;
    let mut state = before.clone();
    let mut core = registers.core.clone();
    for (value, wanted) in state.general().into_iter().zip(core.regs) {
        *value = wanted;
    }
    for (value, wanted) in state.system().into_iter().zip(registers.system) {
        *value = wanted;
    }
    for (selector, wanted) in state.selectors(&mut core) {
        *selector = *wanted as u16;
    }
    state.plain.rip = core.rip;
    let high_flags = state.plain.rflags & !u64::from(u32::MAX);
    state.plain.rflags = high_flags | u64::from(core.eflags);
    let fpu = &mut state.fpu;
    fpu.mxcsr = core.mxcsr;
    fpu.xmm = core.xmm.map(u128::to_le_bytes);
    for (value, wanted) in fpu.fpr.iter_mut().zip(&core.st) {
        value[..10].copy_from_slice(wanted);
    }
    fpu.fcw = core.fpu.fctrl as u16;
    fpu.fsw = core.fpu.fstat as u16;
    fpu.ftwx = (0..8)
        .filter(|index| core.fpu.ftag >> (2 * index) & 0b11 != 0b11)
        .fold(0, |full, index| full | 1 << index);
    fpu.last_ip = u64::from(core.fpu.fiseg) << 32 | u64::from(core.fpu.fioff);
    fpu.last_dp = u64::from(core.fpu.foseg) << 32 | u64::from(core.fpu.fooff);
    fpu.last_opcode = core.fpu.fop as u16;

    if state.special != before.special {
        fd.set_sregs(&state.special)?;
    }
    if state.kernel_gs_base != before.kernel_gs_base {
        fd.set_msrs(&kernel_gs_base(state.kernel_gs_base)?)?;
    }
    if state.fpu != before.fpu {
        fd.set_fpu(&state.fpu)?;
    }
    if state.plain != before.plain {
        fd.set_regs(&state.plain)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gdb_reads_it_can_write_back() {
        let mut registers = Registers::default();
        registers.core.rip = 0xffff_ffff_8100_0000;
        registers.system = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        let mut bytes = Vec::new();
        registers.gdb_serialize(|byte| bytes.extend(byte));
        let mut again = Registers::default();
        assert_eq!(again.gdb_deserialize(&bytes), Ok(()));
        assert_eq!(again, registers);
        assert_eq!(again.gdb_deserialize(&bytes[1..]), Err(()));
        assert_eq!(again.gdb_deserialize(&[]), Err(()));
    }

    #[test]
    fn the_description_has_as_many_bits_as_there_are() {
        let text = Processor::target_description_xml().expect("one");
        let bits = text.split("bitsize=\"").skip(1).map(|rest| {
            let number = rest.split('"').next().expect("a quote");
            number.parse::<usize>().expect("a number")
        });
        let mut bytes = 0;
        Registers::default().gdb_serialize(|_| bytes += 1);
        assert_eq!(bits.sum::<usize>(), 8 * bytes);
    }

    #[test]
    fn tags_say_which_registers_are_empty() {
        assert_eq!(tags(0), 0xffff);
        assert_eq!(tags(0xff), 0);
        assert_eq!(tags(0b101), 0b11_11_11_11_11_00_11_00);
    }
}
