//! Debugging a vCPU from outside: its registers, its page tables, breakpoints and
//! single steps (Documentation/virt/kvm/api.rst, KVM_SET_GUEST_DEBUG; Intel SDM 3B, 18.2,
//! "Debug Registers").

mod registers;

use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB,
    KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP, kvm_debug_exit_arch,
    kvm_guest_debug,
};
use kvm_ioctls::{Error, VcpuFd};

pub use self::registers::{Processor, Registers, get as get_registers, set as set_registers};

/// `int3`, in place of an instruction's first byte.
pub const BREAKPOINT: u8 = 0xcc;

/// The vectors of #DB and #BP.
const DEBUG_VECTOR: u32 = 1;
const BREAKPOINT_VECTOR: u32 = 3;

/// DR6.BS: it was a single step.
const DR6_SINGLE_STEP: u64 = 1 << 14;
/// DR7's bit 10, which is always set, and LE and GE, which are set for older processors.
const DR7_FIXED: u64 = 1 << 10 | 1 << 9 | 1 << 8;

/// How many addresses the processor watches.
const SLOTS: usize = 4;

/// What the processor looks out for at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// That an instruction there is about to be executed.
    Execute,
    /// That something was written.
    Write,
    /// That something was read or written.
    Access,
}

impl Watch {
    /// R/W in DR7.
    fn bits(self) -> u64 {
        match self {
            Self::Execute => 0b00,
            Self::Write => 0b01,
            Self::Access => 0b11,
        }
    }
}

/// An address that the processor watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The linear address.
    pub address: u64,
    /// Bytes: 1 where it is [`Watch::Execute`], else 1, 2, 4 or 8.
    pub length: u64,
    /// What for.
    pub watch: Watch,
}

impl Place {
    /// LEN in DR7; none: the processor has no such length, or wants it aligned.
    fn length_bits(&self) -> Option<u64> {
        let bits = match self.length {
            1 => 0b00,
            2 => 0b01,
            4 => 0b11,
            8 => 0b10,
            _ => return None,
        };
        self.address.is_multiple_of(self.length).then_some(bits)
    }
}

/// The addresses that the processor watches, the same on each vCPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Places([Option<Place>; SLOTS]);

impl Places {
    /// Watches one more. False: the processor can't, or not so many.
    pub fn add(&mut self, place: Place) -> bool {
        let free = self.0.iter_mut().find(|slot| slot.is_none());
        match free {
            Some(slot) if place.length_bits().is_some() => {
                *slot = Some(place);
                true
            }
            _ => false,
        }
    }

    /// Watches one no more. False: it isn't watched.
    pub fn remove(&mut self, place: Place) -> bool {
        let slot = self.0.iter_mut().find(|slot| **slot == Some(place));
        slot.is_some_and(|slot| slot.take().is_some())
    }

    /// DR0 to DR7.
    fn registers(&self) -> [u64; 8] {
        let mut all = [0; 8];
        for (index, place) in self.0.iter().enumerate() {
            let Some((place, length)) = place.and_then(|one| Some((one, one.length_bits()?)))
            else {
                continue;
            };
            all[index] = place.address;
            // Its global enable, R/W and LEN.
            all[7] |= DR7_FIXED | 1 << (2 * index + 1);
            all[7] |= (place.watch.bits() | length << 2) << (16 + 4 * index);
        }
        all
    }
}

/// What a debugger wants of one vCPU.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Addresses to watch.
    pub places: Places,
    /// There are [`BREAKPOINT`]s in the guest's memory.
    pub software: bool,
    /// Stop after the next instruction.
    pub step: bool,
    /// Deliver this one first, which is the guest's own.
    pub deliver: Option<Trap>,
}

impl Wanted {
    /// Has KVM do as wanted, from the next entry on.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn apply(&self, fd: &VcpuFd) -> Result<(), Error> {
        let registers = self.places.registers();
        let mut control = 0;
        if registers[7] != 0 {
            control |= KVM_GUESTDBG_USE_HW_BP;
        }
        if self.software {
            control |= KVM_GUESTDBG_USE_SW_BP;
        }
        if self.step {
            control |= KVM_GUESTDBG_SINGLESTEP;
        }
        control |= match self.deliver.map(|trap| trap.vector) {
            Some(BREAKPOINT_VECTOR) => KVM_GUESTDBG_INJECT_BP,
            Some(_) => KVM_GUESTDBG_INJECT_DB,
            None => 0,
        };
        if control != 0 {
            control |= KVM_GUESTDBG_ENABLE;
        }
        let mut debug = kvm_guest_debug {
            control,
            ..Default::default()
        };
        debug.arch.debugreg = registers;
        if !self.step {
            return fd.set_guest_debug(&debug);
        }
        // So that a step is not one into the handler of the timer's interrupt, which is
        // always due after a stop. Linux before 5.16 lacks it.
        let quiet = kvm_guest_debug {
            control: control | KVM_GUESTDBG_BLOCKIRQ,
            ..debug
        };
        match fd.set_guest_debug(&quiet) {
            Err(error) if error.errno() == libc::EINVAL => fd.set_guest_debug(&debug),
            result => result,
        }
    }
}

/// An exception of the guest that KVM handed over instead of delivering it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trap {
    vector: u32,
    /// The linear address of the instruction: the next one, where it is a fault or a step.
    pub address: u64,
    status: u64,
}

impl From<kvm_debug_exit_arch> for Trap {
    fn from(exit: kvm_debug_exit_arch) -> Self {
        Self {
            vector: exit.exception,
            address: exit.pc,
            status: exit.dr6,
        }
    }
}

/// What a [`Trap`] comes of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A [`BREAKPOINT`], whoever put it there.
    Instruction,
    /// A place that was watched.
    Place(Place),
    /// A single step, whoever wanted it.
    Step,
    /// Something of the guest's own.
    Other,
}

impl Trap {
    /// What it comes of, where these places were watched.
    #[must_use]
    pub fn cause(&self, places: &Places) -> Cause {
        if self.vector == BREAKPOINT_VECTOR {
            return Cause::Instruction;
        }
        // Only with those that are enabled do these bits mean anything.
        let hit = (0..SLOTS)
            .filter(|index| self.vector == DEBUG_VECTOR && self.status & 1 << index != 0)
            .find_map(|index| places.0[index]);
        match hit {
            Some(place) => Cause::Place(place),
            None if self.status & DR6_SINGLE_STEP != 0 => Cause::Step,
            None => Cause::Other,
        }
    }
}

/// The guest-physical address behind a linear one, by the vCPU's own page tables, of
/// whatever mode and size; none: there is nothing.
#[must_use]
pub fn translate(fd: &VcpuFd, address: u64) -> Option<u64> {
    let translation = fd.translate_gva(address).ok()?;
    (translation.valid != 0).then_some(translation.physical_address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(address: u64, length: u64, watch: Watch) -> Place {
        Place {
            address,
            length,
            watch,
        }
    }

    fn trap(vector: u32, status: u64) -> Trap {
        Trap {
            vector,
            address: 0x1000,
            status,
        }
    }

    #[test]
    fn places_are_debug_registers() {
        let mut places = Places::default();
        assert_eq!(places.registers(), [0; 8]);
        assert!(places.add(place(0x1001, 1, Watch::Execute)));
        assert!(places.add(place(0x2000, 8, Watch::Write)));
        assert!(places.add(place(0x3004, 4, Watch::Access)));
        let registers = places.registers();
        assert_eq!(registers[..4], [0x1001, 0x2000, 0x3004, 0]);
        assert_eq!(registers[7], 0x0f90_0000 | 0x700 | 0b10_10_10);
        assert!(places.add(place(0x4002, 2, Watch::Write)));
        assert!(!places.add(place(0x5000, 1, Watch::Execute)), "it has four");
        assert!(places.remove(place(0x2000, 8, Watch::Write)));
        assert!(!places.remove(place(0x2000, 8, Watch::Write)));
        assert_eq!(places.registers()[1], 0);
        assert!(places.add(place(0x5000, 1, Watch::Execute)));
        assert_eq!(places.registers()[1], 0x5000);
    }

    #[test]
    fn a_place_that_the_processor_cannot_watch_is_refused() {
        let mut places = Places::default();
        for (address, length) in [(0x1001, 2), (0x1004, 8), (0x1000, 3), (0x1000, 16), (0, 0)] {
            assert!(!places.add(place(address, length, Watch::Write)));
        }
        assert_eq!(places, Places::default());
    }

    #[test]
    fn a_trap_has_a_cause() {
        let mut places = Places::default();
        let second = place(0x2000, 4, Watch::Write);
        assert!(places.add(place(0x1000, 1, Watch::Execute)) && places.add(second));
        let cause = |vector, status| trap(vector, status).cause(&places);
        assert_eq!(cause(3, 0), Cause::Instruction);
        assert_eq!(cause(1, 0b10), Cause::Place(second));
        assert_eq!(cause(1, 0b1000), Cause::Other, "nothing is watched there");
        assert_eq!(cause(1, 1 << 14), Cause::Step);
        assert_eq!(cause(1, 1 << 14 | 0b10), Cause::Place(second));
        assert_eq!(cause(1, 1 << 13), Cause::Other);
    }
}
