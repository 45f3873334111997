//! Why a saved state is not taken.

use std::fmt::Display;

/// A saved state that this machine can't go on from: the reason, in one line. What is
/// saved comes from a file, which is as hostile as a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// The most characters of a reason.
const LONGEST: usize = 256;

impl Refused {
    /// For this reason: lower case, no period. What is quoted in it may be anything, so
    /// it is cut to a line.
    pub fn because(reason: impl Into<String>) -> Self {
        let line = |c: char| if c.is_control() { ' ' } else { c };
        Self(reason.into().chars().map(line).take(LONGEST).collect())
    }

    /// The same, with the part of the machine that it is about in front.
    #[must_use]
    pub fn within(self, part: impl Display) -> Self {
        Self(format!("{part}: {}", self.0))
    }
}

impl From<serde_json::Error> for Refused {
    fn from(error: serde_json::Error) -> Self {
        Self::because(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line() {
        let reason = Refused::because("a\nb".repeat(1000)).to_string();
        assert_eq!(reason.len(), LONGEST);
        assert!(reason.starts_with("a ba b"));
    }

    #[test]
    fn a_reason_says_what_it_is_about() {
        let refused = Refused::because("it is not there");
        let refused = refused.within("queue 1").within("PCI slot 3");
        assert_eq!(refused.to_string(), "PCI slot 3: queue 1: it is not there");
    }
}
