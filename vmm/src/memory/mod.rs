//! The guest's memory as the host reaches it: for devices, and for what is behind them
//! on the host.

mod host;
mod segments;

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

pub(crate) use self::host::{Area, Host};
pub use self::segments::{HostByte, Segments};

/// The guest's memory, as devices share it.
pub type Memory = Arc<GuestMemoryMmap<()>>;

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
