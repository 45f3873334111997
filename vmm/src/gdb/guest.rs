//! The guest as gdb sees it: each vCPU a thread, whose number is one more than the
//! vCPU's; memory by the page tables of the thread that gdb looks at.

use std::collections::{BTreeMap, BTreeSet};

use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::breakpoints::WatchKind;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::arch::debug::{BREAKPOINT, Cause, Places, Trap, Wanted, Watch, translate};
use crate::memory::{Memory, PAGE};
use crate::vcpu::{Access, CallError};

/// Why a vCPU can't be let go.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Its thread didn't answer.
    #[error("vCPU {0}")]
    Call(usize, #[source] CallError),
    /// KVM refused.
    #[error("vCPU {0}: KVM_SET_GUEST_DEBUG: error {1}")]
    Kvm(usize, i32),
}

/// A byte of the guest's that [`BREAKPOINT`] stands in for.
struct Replaced {
    physical: GuestAddress,
    byte: u8,
}

/// A guest whose vCPUs stand still, but between a resume and the stop that follows.
pub(super) struct Guest {
    pub(super) access: Access,
    memory: Memory,
    pub(super) places: Places,
    /// By linear address.
    replaced: BTreeMap<u64, Replaced>,
    /// Which vCPUs are to run: those that step, those that are named, and the others if
    /// not only these.
    pub(super) steps: BTreeSet<usize>,
    pub(super) continues: BTreeSet<usize>,
    pub(super) is_alone: bool,
    /// Traps of the guest's own, to be delivered as it goes on.
    deliver: BTreeMap<usize, Trap>,
    /// The vCPU that stopped last.
    current: usize,
    /// Nothing of the guest may change for now: it is being saved.
    pub(super) is_locked: bool,
}

pub(super) fn index(tid: Tid) -> usize {
    tid.get() - 1
}

pub(super) fn tid(index: usize) -> Tid {
    Tid::MIN.saturating_add(index)
}

impl Guest {
    pub(super) fn new(access: Access, memory: Memory) -> Self {
        Self {
            access,
            memory,
            places: Places::default(),
            replaced: BTreeMap::new(),
            steps: BTreeSet::new(),
            continues: BTreeSet::new(),
            is_alone: false,
            deliver: BTreeMap::new(),
            current: 0,
            is_locked: false,
        }
    }

    /// Goes on with the vCPUs of a machine that was reset: what was written into its
    /// memory is gone.
    pub(super) fn renew(&mut self, access: Access) {
        self.access = access;
        self.replaced.clear();
        self.deliver.clear();
        self.current = 0;
    }

    /// What to say to gdb of a trap; none: it is the guest's own, and delivered as it goes
    /// on.
    pub(super) fn examine(
        &mut self,
        index: usize,
        trap: Trap,
    ) -> Option<MultiThreadStopReason<u64>> {
        let tid = tid(index);
        let reason = match trap.cause(&self.places) {
            Cause::Instruction if self.replaced.contains_key(&trap.address) => {
                MultiThreadStopReason::SwBreak(tid)
            }
            Cause::Place(place) => match place.watch {
                Watch::Execute => MultiThreadStopReason::HwBreak(tid),
                Watch::Write | Watch::Access => MultiThreadStopReason::Watch {
                    tid,
                    kind: match place.watch {
                        Watch::Write => WatchKind::Write,
                        Watch::Execute | Watch::Access => WatchKind::ReadWrite,
                    },
                    addr: place.address,
                },
            },
            Cause::Step if self.steps.contains(&index) => MultiThreadStopReason::SignalWithThread {
                tid,
                signal: Signal::SIGTRAP,
            },
            Cause::Instruction | Cause::Step | Cause::Other => {
                self.deliver.insert(index, trap);
                return None;
            }
        };
        self.current = index;
        Some(reason)
    }

    /// A stop that is nobody's trap.
    pub(super) fn signal(&self, signal: Signal) -> MultiThreadStopReason<u64> {
        MultiThreadStopReason::SignalWithThread {
            tid: tid(self.current),
            signal,
        }
    }

    /// Lets the vCPUs go that are to run, as they are to.
    pub(super) fn go_on(&mut self) -> Result<(), Failure> {
        let all = 0..self.access.count();
        let runs: Vec<usize> = all
            .filter(|index| {
                !self.is_alone || self.steps.contains(index) || self.continues.contains(index)
            })
            .collect();
        for &index in &runs {
            let wanted = Wanted {
                places: self.places,
                software: !self.replaced.is_empty(),
                step: self.steps.contains(&index),
                deliver: self.deliver.remove(&index),
            };
            self.apply(index, wanted)?;
        }
        for index in runs {
            self.access.release(index);
        }
        Ok(())
    }

    fn apply(&self, index: usize, wanted: Wanted) -> Result<(), Failure> {
        let applied = self.access.call(index, move |fd| wanted.apply(fd));
        match applied {
            // The machine ends or is reset, and there is nothing more to debug in it.
            Err(CallError::Ended) => Ok(()),
            Err(error) => Err(Failure::Call(index, error)),
            Ok(result) => result.map_err(|error| Failure::Kvm(index, error.errno())),
        }
    }

    /// Takes back all that was done to the guest, and lets it go.
    pub(super) fn leave(mut self) -> Result<(), Failure> {
        for address in self.replaced.keys().copied().collect::<Vec<_>>() {
            self.restore(address);
        }
        (self.places, self.is_alone) = (Places::default(), false);
        self.steps.clear();
        self.go_on()
    }

    /// Puts a [`BREAKPOINT`] there. False: there is no memory.
    pub(super) fn replace(&mut self, address: u64) -> bool {
        if self.replaced.contains_key(&address) {
            return true;
        }
        // gdb doesn't say by whose page tables: of those of a kernel's vCPUs, all that have
        // the page have it at the same place.
        let all = std::iter::once(self.current).chain(0..self.access.count());
        let mut found = all.filter_map(|index| self.translate(index, address));
        let Some(physical) = found.next() else {
            return false;
        };
        let Ok(byte) = self.memory.read_obj(physical) else {
            return false;
        };
        drop(found);
        let is_written = self.memory.write_obj(BREAKPOINT, physical).is_ok();
        if is_written {
            self.replaced.insert(address, Replaced { physical, byte });
        }
        is_written
    }

    /// Puts the guest's byte back, if it has not changed it itself: it may have unloaded
    /// what was there.
    pub(super) fn restore(&mut self, address: u64) {
        let Some(Replaced { physical, byte }) = self.replaced.remove(&address) else {
            return;
        };
        if let Ok(BREAKPOINT) = self.memory.read_obj::<u8>(physical) {
            // It was written before, so it is memory.
            let _ = self.memory.write_obj(byte, physical);
        }
    }

    /// Reads linear memory as far as there is any; returns how many bytes.
    pub(super) fn read(&self, index: usize, address: u64, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for (at, piece) in pieces(address, bytes.len()) {
            let Some(physical) = self.translate(index, at) else {
                break;
            };
            let piece = done..done + piece;
            if self
                .memory
                .read_slice(&mut bytes[piece.clone()], physical)
                .is_err()
            {
                break;
            }
            done = piece.end;
        }
        done
    }

    /// Writes linear memory, all of it or nothing. False: there is not so much.
    pub(super) fn write(&self, index: usize, address: u64, bytes: &[u8]) -> bool {
        let mut places = Vec::new();
        for (at, piece) in pieces(address, bytes.len()) {
            match self.translate(index, at) {
                Some(physical) if self.memory.check_range(physical, piece) => {
                    places.push((physical, piece));
                }
                _ => return false,
            }
        }
        let mut left = bytes;
        places.into_iter().all(|(physical, piece)| {
            let (now, later) = left.split_at(piece);
            left = later;
            self.memory.write_slice(now, physical).is_ok()
        })
    }

    fn translate(&self, index: usize, address: u64) -> Option<GuestAddress> {
        let called = self.access.call(index, move |fd| translate(fd, address));
        called.ok().flatten().map(GuestAddress)
    }
}

/// The pieces of a linear range that lie in one page each: where, and how many bytes.
fn pieces(mut address: u64, mut length: usize) -> impl Iterator<Item = (u64, usize)> {
    std::iter::from_fn(move || {
        let in_page = usize::try_from(PAGE - address % PAGE).unwrap_or(usize::MAX);
        let piece = (address, in_page.min(length));
        // Behind the last page is the first one, as for the processor.
        address = address.wrapping_add(piece.1 as u64);
        length -= piece.1;
        (piece.1 != 0).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_taken_apart_at_pages() {
        let all = |address, length| pieces(address, length).collect::<Vec<_>>();
        assert_eq!(all(0x1000, 0), []);
        assert_eq!(all(0x1ff0, 16), [(0x1ff0, 16)]);
        assert_eq!(
            all(0x1ff0, 0x1020),
            [(0x1ff0, 16), (0x2000, 0x1000), (0x3000, 16)]
        );
        assert_eq!(all(u64::MAX, 2), [(u64::MAX, 1), (0, 1)]);
    }
}
