//! The generation id: 16 random bytes in guest memory that are others whenever the
//! machine is not the one that the guest remembers. Its kernel stirs them into its
//! random numbers, so that two machines out of one image don't draw the same ones.
//!
//! Microsoft, "Virtual Machine Generation ID", 2012: a reboot keeps the id; a copy, a
//! snapshot or a backup that is started gets a new one. The id lies in memory that is
//! neither for the guest to use nor ACPI's to reclaim.

use std::fs::File;
use std::io::{self, Read};

/// Bytes of the id.
const SIZE: usize = 16;

/// A generation id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation([u8; SIZE]);

impl Generation {
    /// An id that no other machine has.
    ///
    /// # Errors
    /// When the host has no random numbers.
    pub fn fresh() -> io::Result<Self> {
        let mut bytes = [0; SIZE];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The id as it lies in memory.
    #[must_use]
    pub fn bytes(&self) -> &[u8; SIZE] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_are_the_same() {
        let one = Generation::fresh().expect("random");
        let other = Generation::fresh().expect("random");
        assert_ne!(one.bytes(), other.bytes());
        assert_ne!(one.bytes(), &[0; SIZE]);
    }
}
