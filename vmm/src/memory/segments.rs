//! Ranges of guest memory, in order, as a system call takes them.

#![allow(
    unsafe_code,
    reason = "ranges of guest memory, which the guest changes meanwhile"
)]

use super::host::{self, Host};
use super::{BadRange, MAX_SEGMENTS};

/// Ranges of guest memory as the host sees them, in order. They stay valid as long
/// as the [`Memory`](super::Memory) they came from is held.
#[derive(Default)]
pub struct Segments {
    list: Vec<libc::iovec>,
    length: usize,
}

// SAFETY: the pointers are into guest memory, which is shared with vCPU threads
// anyway and is only ever accessed by the kernel or by volatile copies; whoever
// sends segments to another thread sends the `Memory` that keeps them valid too.
unsafe impl Send for Segments {}

impl Segments {
    /// Bytes in all.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// For `readv` and its kin.
    #[must_use]
    pub fn as_slice(&self) -> &[libc::iovec] {
        &self.list
    }

    /// Moves all of `other` to the end.
    pub fn append(&mut self, other: &mut Self) {
        self.list.append(&mut other.list);
        self.length += other.length;
        other.length = 0;
    }

    /// Forgets all, and keeps the allocation.
    pub fn clear(&mut self) {
        self.list.clear();
        self.length = 0;
    }

    /// Appends the host ranges behind guest memory.
    pub(crate) fn push(
        &mut self,
        host: &Host,
        address: u64,
        length: usize,
    ) -> Result<(), BadRange> {
        host.pieces(address, length, |base, length| {
            if self.list.len() == MAX_SEGMENTS {
                return Err(BadRange::TooMany);
            }
            self.list.push(libc::iovec {
                iov_base: base.cast(),
                iov_len: length,
            });
            // A chain is at most 2^32 bytes, which usize holds.
            self.length += length;
            Ok(())
        })
    }

    /// Copies out bytes from `offset`. Returns how many there were.
    pub fn copy_out(&self, offset: usize, data: &mut [u8]) -> usize {
        let mut done = 0;
        self.walk(offset, data.len(), |host, length| {
            // SAFETY: `walk` yields ranges inside segments, which are valid guest
            // memory, and at most `data.len()` bytes in all. The guest may write
            // at the same time: the copy may be torn, and is checked as hostile.
            unsafe { host::copy_from(host, &mut data[done..done + length]) };
            done += length;
        });
        done
    }

    /// Copies in bytes from `offset` on. Returns how many had room.
    pub fn copy_in(&self, offset: usize, data: &[u8]) -> usize {
        let mut done = 0;
        self.walk(offset, data.len(), |host, length| {
            // SAFETY: as in `copy_out`, the other way round.
            unsafe { host::copy_to(&data[done..done + length], host) };
            done += length;
        });
        done
    }

    /// Visits the host ranges of `length` bytes from `offset` on.
    fn walk(&self, mut offset: usize, mut length: usize, mut visit: impl FnMut(*mut u8, usize)) {
        for segment in &self.list {
            if length == 0 {
                break;
            }
            if offset >= segment.iov_len {
                offset -= segment.iov_len;
                continue;
            }
            let count = length.min(segment.iov_len - offset);
            // SAFETY: `offset` is below the segment's length.
            visit(unsafe { segment.iov_base.cast::<u8>().add(offset) }, count);
            length -= count;
            offset = 0;
        }
    }

    /// Drops `count` bytes at the front.
    pub fn trim_front(&mut self, mut count: usize) {
        count = count.min(self.length);
        self.length -= count;
        let whole = self
            .list
            .iter()
            .take_while(|segment| {
                let fits = segment.iov_len <= count;
                if fits {
                    count -= segment.iov_len;
                }
                fits
            })
            .count();
        self.list.drain(..whole);
        if let Some(first) = self.list.first_mut() {
            // SAFETY: `count` is below the segment's length now.
            first.iov_base = unsafe { first.iov_base.cast::<u8>().add(count) }.cast();
            first.iov_len -= count;
        }
    }

    /// Moves the first `count` bytes into `front`, which is cleared first.
    pub fn split_front(&mut self, count: usize, front: &mut Self) {
        front.clear();
        front.list.extend_from_slice(&self.list);
        front.length = self.length;
        front.truncate(count);
        self.trim_front(count);
    }

    /// Cuts off the last byte.
    pub fn split_last(&mut self) -> Option<HostByte> {
        let last = self.list.last()?;
        // SAFETY: no segment is empty, so its last byte is inside.
        let byte = unsafe { last.iov_base.cast::<u8>().add(last.iov_len - 1) };
        self.truncate(self.length - 1);
        Some(HostByte(byte))
    }

    /// Keeps `length` bytes and drops the rest.
    pub fn truncate(&mut self, length: usize) {
        while self.length > length {
            let surplus = self.length - length;
            let Some(last) = self.list.last_mut() else {
                break;
            };
            let cut = surplus.min(last.iov_len);
            last.iov_len -= cut;
            self.length -= cut;
            if last.iov_len == 0 {
                self.list.pop();
            }
        }
    }
}

/// One byte of guest memory, valid as long as the memory it came from.
pub struct HostByte(*mut u8);

// SAFETY: as for `Segments`.
unsafe impl Send for HostByte {}

impl HostByte {
    /// Writes it.
    pub fn write(&self, value: u8) {
        // SAFETY: the pointer is into guest memory, which whoever holds this holds.
        unsafe { self.0.write_volatile(value) };
    }
}
