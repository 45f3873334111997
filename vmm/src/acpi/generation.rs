//! The generation id: 16 random bytes in guest memory that are others whenever the
//! machine is not the one that the guest remembers. A kernel that has the driver (`CONFIG_VMGENID`)
//! stirs them into its random numbers, so that two machines out of one image don't draw the same ones.
//!
//! Microsoft, "Virtual Machine Generation ID", 2012: a reboot keeps the id; a copy, a
//! snapshot or a backup that is started gets a new one. The id lies in memory that is
//! neither for the guest to use nor ACPI's to reclaim.

use std::fs::File;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use crate::snapshot::Refused;

/// Bytes of the id.
const SIZE: usize = 16;

/// A generation id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation([u8; SIZE]);

/// A generation id, saved: for a machine that moves, which is the one that the guest
/// remembers. What goes on from a copy takes a [`Generation::fresh`] one instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationV1 {
    /// The id as it lies in memory.
    pub id: [u8; SIZE],
}

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

    /// The id, to be kept.
    #[must_use]
    pub fn save(&self) -> GenerationV1 {
        GenerationV1 { id: self.0 }
    }

    /// Takes over what was saved.
    ///
    /// # Errors
    /// When it is what memory holds before there is an id.
    pub fn restore(&mut self, state: &GenerationV1) -> Result<(), Refused> {
        if state.id == [0; SIZE] {
            return Err(Refused::because("a generation id is never zero"));
        }
        self.0 = state.id;
        Ok(())
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

    #[test]
    fn one_that_is_kept_is_the_same() {
        let one = Generation::fresh().expect("random");
        let json = serde_json::to_string(&one.save()).expect("JSON");
        let mut other = Generation::fresh().expect("random");
        let state = serde_json::from_str(&json).expect("a state");
        other.restore(&state).expect("taken");
        assert_eq!(other, one);
        let none = GenerationV1 { id: [0; SIZE] };
        assert!(other.restore(&none).is_err());
        assert_eq!(other, one);
    }
}
