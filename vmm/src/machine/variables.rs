//! The file of the firmware's variables, written by a thread of its own. A vCPU that
//! programs them waits for it, as its firmware reads there whether that went well. The main
//! thread, which has them saved at a reset and at the end, doesn't: the file may be on
//! storage that doesn't answer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::Builder;
use std::time::Duration;

use crate::board::Kept;
use crate::jail::{Allow, Profile, ThreadRole, confine_thread};

/// What the thread asks of the kernel.
pub(super) static PROFILE: Profile = Profile {
    thread: &[Allow::any(libc::SYS_pwrite64)],
    plug: &[],
};

/// As many writes wait at most, each of a block of flash or less: a guest that resets again
/// and again has no more of them.
const MAX_WAITING: usize = 4;
/// How long a machine that ends waits for the last ones.
const LAST: Duration = Duration::from_secs(1);
/// Bytes of the thread's stack, which does hardly anything.
const STACK_SIZE: usize = 64 << 10;

struct Write {
    bytes: Vec<u8>,
    offset: u64,
    /// Who waits for it.
    done: Option<SyncSender<io::Result<()>>>,
}

/// The file, as the board has it.
pub(super) struct VariablesFile {
    /// Until it is dropped.
    writes: Option<SyncSender<Write>>,
    /// Disconnected when the thread has written all, and closed it.
    end: Receiver<()>,
}

impl VariablesFile {
    /// Gives the file to a thread.
    ///
    /// # Errors
    /// When none can be had.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let (writes, inbox) = sync_channel::<Write>(MAX_WAITING);
        let (ended, end) = sync_channel(1);
        let run = move || {
            let confined = confine_thread(ThreadRole::Device(&PROFILE));
            // Of a write that nobody has waited for.
            let mut failed = Ok(());
            for Write {
                bytes,
                offset,
                done,
            } in inbox
            {
                let written = match &confined {
                    Ok(()) => file.write_all_at(&bytes, offset),
                    Err(error) => Err(io::Error::other(error.to_string())),
                };
                let all = std::mem::replace(&mut failed, Ok(())).and(written);
                match done {
                    // Whoever asked may be gone.
                    Some(done) => drop(done.send(all)),
                    None => failed = all,
                }
            }
            drop(file);
            drop(ended);
        };
        let thread = Builder::new().name("flash".to_owned());
        thread.stack_size(STACK_SIZE).spawn(run)?;
        Ok(Self {
            writes: Some(writes),
            end,
        })
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread that writes variables is gone")
}

impl Kept for VariablesFile {
    fn write(&self, bytes: Vec<u8>, offset: u64) -> io::Result<()> {
        let writes = self.writes.as_ref().ok_or_else(gone)?;
        let (done, outcome) = sync_channel(1);
        let write = Write {
            bytes,
            offset,
            done: Some(done),
        };
        writes.send(write).map_err(|_| gone())?;
        outcome.recv().map_err(|_| gone())?
    }

    fn write_later(&self, bytes: Vec<u8>, offset: u64) -> bool {
        let write = Write {
            bytes,
            offset,
            done: None,
        };
        let sent = self.writes.as_ref().map(|writes| writes.try_send(write));
        matches!(sent, Some(Ok(())))
    }
}

impl Drop for VariablesFile {
    fn drop(&mut self) {
        self.writes = None;
        if self.end.recv_timeout(LAST) == Err(RecvTimeoutError::Timeout) {
            // The process's end is its thread's.
            eprintln!("hearth-vmm: --firmware: the host has not written the last variables");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_waits_for_is_written_in_its_turn_and_its_failure_told_later() {
        let file = tempfile::tempfile().expect("a file");
        let kept = VariablesFile::new(file.try_clone().expect("open")).expect("a thread");
        assert!(kept.write_later(b"late".to_vec(), 2));
        kept.write(b"now".to_vec(), 0).expect("written");
        let read = |expected: &[u8]| {
            let mut bytes = vec![0; expected.len()];
            file.read_exact_at(&mut bytes, 0).expect("read");
            assert_eq!(bytes, expected);
        };
        read(b"nowate");
        assert!(kept.write_later(b"last".to_vec(), 6));
        drop(kept);
        read(b"nowatelast");

        let null = File::open("/dev/null").expect("read only");
        let kept = VariablesFile::new(null).expect("a thread");
        kept.write(vec![1], 0).expect_err("read only");
        let full = File::options().write(true).open("/dev/full").expect("full");
        let kept = VariablesFile::new(full).expect("a thread");
        assert!(kept.write_later(vec![1], 0));
        kept.write(Vec::new(), 0).expect_err("of the one before");
        kept.write(Vec::new(), 0).expect("told once");
    }
}
