//! Reads the kernel and the initrd out of an instance's root disk.
//!
//! The disk is the guest's: everything on it may be hostile. So it is never
//! mounted. `hearth read-boot-files` is a process of its own ([`main`]) that
//! has the disk, open and read-only, for its standard input, and a file for its
//! standard output; it gives up every right ([`sandbox`]) before it reads the
//! first byte, and copies the one or two files that it was asked for. It is run
//! at every cold boot but the first, so that a kernel upgrade by the guest takes
//! effect; what the guest's journal has not yet written back is honoured. At the
//! first boot the disk is still its image, whose files are read once for all.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ext4_view::{Ext4, Ext4Error, Ext4Read};

pub mod partition;
pub mod sandbox;

use partition::Slice;

/// Why a file can't be had from a disk. Each is one line for the instance's
/// state reason.
#[derive(Debug, thiserror::Error)]
pub enum BootFileError {
    /// The disk can't be read at all.
    #[error("the disk can't be read: {0}")]
    Disk(io::Error),
    /// The partition table has no such partition.
    #[error("{0}")]
    Partition(String),
    /// The partition holds no ext4 that can be read.
    #[error("no readable ext4 file system on partition {partition}: {what}")]
    FileSystem {
        /// The partition's number; 0 is the whole disk.
        partition: u32,
        /// What the reader says.
        what: Ext4Error,
    },
    /// The file is not there or can't be read.
    #[error("{path}: {what}")]
    File {
        /// Its path.
        path: String,
        /// What the reader says.
        what: Ext4Error,
    },
    /// The file is empty.
    #[error("{0} is empty")]
    Empty(String),
    /// The file is too big.
    #[error("{path} has {size} bytes, more than the {limit} that are read")]
    TooBig {
        /// Its path.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// The most that is read.
        limit: u64,
    },
    /// The copy can't be written.
    #[error("the copy can't be written: {0}")]
    Output(io::Error),
}

/// The ext4 file system on `disk`; `partition` 0 is the whole disk.
///
/// # Errors
/// In one line, what is wrong with the disk.
pub fn open(disk: File, partition: u32) -> Result<Ext4, BootFileError> {
    let slice = partition::find(disk, partition)?;
    Ext4::load(Box::new(slice)).map_err(|what| BootFileError::FileSystem { partition, what })
}

/// Copies one file of a file system to `out`; symbolic links are followed, inside
/// that file system.
///
/// # Errors
/// In one line, what is wrong with the file.
pub fn extract(
    fs: &Ext4,
    path: &str,
    limit: u64,
    out: &mut impl Write,
) -> Result<u64, BootFileError> {
    let failed = |what| BootFileError::File {
        path: path.to_owned(),
        what,
    };
    let mut file = fs.open(path).map_err(failed)?;
    let size = file.metadata().len();
    if size == 0 {
        return Err(BootFileError::Empty(path.to_owned()));
    }
    if size > limit {
        return Err(BootFileError::TooBig {
            path: path.to_owned(),
            size,
            limit,
        });
    }
    // The size is from the inode; the loop ends by its own count all the same.
    let mut buffer = vec![0; 64 << 10];
    let mut copied = 0;
    while copied < size {
        let n = file.read_bytes(&mut buffer).map_err(failed)?;
        if n == 0 {
            break;
        }
        out.write_all(&buffer[..n]).map_err(BootFileError::Output)?;
        copied += n as u64;
    }
    Ok(copied)
}

impl Ext4Read for Slice {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.read_exact_at(dst, start_byte).map_err(Into::into)
    }
}

/// Copies one or two files from the root disk on standard input
#[derive(Debug, Parser)]
#[command(name = "hearth read-boot-files", disable_version_flag = true)]
struct Args {
    /// The partition, 1 the first; 0 when the disk is the file system
    #[arg(long)]
    partition: u32,
    /// The path in it of the file that goes to standard output
    #[arg(long)]
    path: String,
    /// The most bytes of it that are copied
    #[arg(long)]
    limit: u64,
    /// The path in it of another file
    #[arg(long, requires_all = ["second_limit", "second_to"])]
    second_path: Option<String>,
    /// The most bytes of that which are copied
    #[arg(long)]
    second_limit: Option<u64>,
    /// The file outside that it is copied to; it must be there
    #[arg(long)]
    second_to: Option<PathBuf>,
    /// The user to drop to, when run as root
    #[arg(long, default_value_t = 65534)]
    uid: u32,
    /// The group to drop to, when run as root
    #[arg(long, default_value_t = 65534)]
    gid: u32,
}

/// The subcommand. `args` are those behind `hearth read-boot-files`. Must be
/// called before the process has a second thread.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let name = OsString::from("hearth read-boot-files");
    let args = match Args::try_parse_from(std::iter::once(name).chain(args)) {
        Ok(args) => args,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            let _ = writeln!(io::stderr(), "{line}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let dup = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
    let disk = dup(io::stdin().as_fd()).map_err(|e| format!("standard input: {e}"))?;
    let mut out = dup(io::stdout().as_fd()).map_err(|e| format!("standard output: {e}"))?;
    let second = match (&args.second_path, args.second_limit, &args.second_to) {
        (Some(path), Some(limit), Some(to)) => {
            let out = OpenOptions::new().write(true).open(to);
            let out = out.map_err(|e| format!("{}: {e}", to.display()))?;
            Some((path, limit, out))
        }
        _ => None,
    };
    // What started it may be the last that the kernel ends.
    let _ = crate::compute::host::offer_to_oom_killer();
    let most = second.as_ref().map_or(0, |(_, limit, _)| *limit);
    sandbox::enter(args.uid, args.gid, args.limit.max(most))
        .map_err(|e| format!("no sandbox: {e}"))?;
    let copy = || -> Result<(), BootFileError> {
        let fs = open(disk, args.partition)?;
        extract(&fs, &args.path, args.limit, &mut out)?;
        if let Some((path, limit, mut out)) = second {
            extract(&fs, path, limit, &mut out)?;
        }
        Ok(())
    };
    copy().map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests;
