//! What can go wrong with a machine.

use std::io;

use crate::acpi;
use crate::arch::boot::BootError;
use crate::smbios;
use crate::snapshot::Refused;

/// Why a machine can't be built or made anew.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/kvm` can't be used.
    #[error("KVM: {what}")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: kvm_ioctls::Error,
    },
    /// KVM is too old or lacks something.
    #[error("this host's KVM lacks {0}")]
    Capability(&'static str),
    /// More vCPUs than KVM takes.
    #[error("{asked} vCPUs asked for, this host's KVM takes at most {most}")]
    TooManyVcpus {
        /// What was asked for.
        asked: u8,
        /// What KVM takes.
        most: usize,
    },
    /// No guest memory.
    #[error("{mib} MiB of guest memory can't be had")]
    Memory {
        /// What was asked for, in MiB.
        mib: u64,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel can't be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A device can't be had. The message names its flag.
    #[error("{0}")]
    Device(String),
    /// Tables don't fit.
    #[error(transparent)]
    Acpi(#[from] acpi::TablesTooLarge),
    /// Tables don't fit.
    #[error(transparent)]
    Smbios(#[from] smbios::TablesTooLarge),
    /// The machine can't go on from this snapshot.
    #[error("--restore: {0}")]
    Restore(Refused),
    /// The machine of another process can't go on here.
    #[error("--take-over: {0}")]
    TakeOver(Refused),
    /// Anything else of the host.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// Whether the snapshot that the machine was to go on from is of no use for it, now or
    /// another time.
    #[must_use]
    pub fn blames_snapshot(&self) -> bool {
        matches!(self, Self::Restore(refused) if !refused.is_passing())
    }
}

pub(crate) fn kvm_error(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |source| Error::Kvm { what, source }
}

pub(crate) fn host_error(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Host { what, source }
}
