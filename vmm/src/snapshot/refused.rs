//! Why a saved state is not taken.

use std::fmt::Display;
use std::io;

/// A saved state that this machine can't go on from: the reason, in one line. What is
/// saved comes from a file, which is as hostile as a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    reason: String,
    is_passing: bool,
}

/// The most characters of a reason.
const LONGEST: usize = 256;

impl Refused {
    /// For this reason: lower case, no period. What is quoted in it may be anything, so
    /// it is cut to a line.
    pub fn because(reason: impl Into<String>) -> Self {
        let line = |c: char| if c.is_control() { ' ' } else { c };
        Self {
            reason: reason.into().chars().map(line).take(LONGEST).collect(),
            is_passing: false,
        }
    }

    /// The host failed in `what`: with what it may have another time, or for good.
    pub fn by_host(what: impl Display, error: &io::Error) -> Self {
        Self {
            is_passing: is_passing(error),
            ..Self::because(format!("{what}: {error}"))
        }
    }

    /// Whether the host only lacked something for a moment: the same state may be taken
    /// another time.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        self.is_passing
    }

    /// The same, with the part of the machine that it is about in front.
    #[must_use]
    pub fn within(self, part: impl Display) -> Self {
        Self {
            reason: format!("{part}: {}", self.reason),
            ..self
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let kinds = [
        Kind::Interrupted,
        Kind::WouldBlock,
        Kind::OutOfMemory,
        Kind::ResourceBusy,
        Kind::StorageFull,
        Kind::TimedOut,
    ];
    // They have no kind.
    let descriptors = [libc::EMFILE, libc::ENFILE];
    kinds.contains(&error.kind())
        || descriptors
            .iter()
            .any(|errno| error.raw_os_error() == Some(*errno))
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
    fn what_a_host_lacks_passes_and_what_is_wrong_does_not() {
        let by_host = |errno| {
            let error = io::Error::from_raw_os_error(errno);
            Refused::by_host("memory", &error)
                .within("vCPU 1")
                .is_passing()
        };
        for errno in [
            libc::EINTR,
            libc::EAGAIN,
            libc::ENOMEM,
            libc::EBUSY,
            libc::ENFILE,
            libc::EMFILE,
            libc::ENOSPC,
            libc::ETIMEDOUT,
        ] {
            assert!(by_host(errno), "{errno}");
        }
        for errno in [libc::ENOENT, libc::EINVAL, libc::EIO] {
            assert!(!by_host(errno), "{errno}");
        }
        assert!(!Refused::because("KVM: (os error 12)").is_passing());
    }

    #[test]
    fn a_reason_says_what_it_is_about() {
        let refused = Refused::because("it is not there");
        let refused = refused.within("queue 1").within("PCI slot 3");
        assert_eq!(refused.to_string(), "PCI slot 3: queue 1: it is not there");
    }
}
