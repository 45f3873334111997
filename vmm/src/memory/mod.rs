//! The guest's memory: mapped and owned here ([`Ram`]), as the host reaches it for
//! devices and for what is behind them, which of its pages were written, and how it is
//! saved and restored.

mod blocks;
mod dirty;
mod host;
mod mapping;
#[cfg(all(test, loom))]
mod models;
mod ram;
mod region;
mod save;
mod search;
mod segments;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use self::blocks::{BlockState, Blocks, Pluggable};
pub use self::dirty::{Dirty, Log, PAGE};
pub(crate) use self::host::{Area, Host, WritableArea};
pub use self::ram::{Follower, Ram};
pub use self::region::{Region, Writes};
pub use self::save::Cancel;
pub use self::segments::{HostByte, Segments};

/// The guest's memory, as devices share it.
pub type Memory = Arc<Ram>;

/// What guest memory is made of.
///
/// Private memory is the default because it costs less: pages of a memory file are
/// small unless `/sys/kernel/mm/transparent_hugepage/shmem_enabled` says otherwise, so
/// each 4 KiB of them is a fault of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether others can map it too, through a memory file: back ends in processes of
    /// their own.
    pub shared: bool,
    /// Its pages on the host.
    pub pages: Pages,
}

/// The host's pages that guest memory is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pages {
    /// Of 2 MiB where the host has them at hand, of 4 KiB elsewhere.
    #[default]
    Transparent,
    /// Of 4 KiB.
    Small,
    /// Of 2 MiB, set aside in `/proc/sys/vm/nr_hugepages`.
    Huge2M,
    /// Of 1 GiB, set aside at the host's boot.
    Huge1G,
}

/// The most host ranges of one [`Segments`]: what one `readv` takes (UIO_MAXIOV).
pub const MAX_SEGMENTS: usize = 1024;

/// Why a range of guest memory can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadRange {
    /// Some of it is not guest memory, or is in several pieces on the host where it
    /// may not be.
    Outside,
    /// It would be more than [`MAX_SEGMENTS`].
    TooMany,
}
