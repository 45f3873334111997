//! How the VMM's process says that it has ended, and why.

use serde::{Deserialize, Serialize};

/// The status that the process ends with where it isn't 0, and the parent's of one that
/// becomes a daemon. The line on standard error is for people; this is for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// The machine crashed, or its process died while it started.
    Crashed = 1,
    /// A wrong command line, or something that a machine can't be built of here, now.
    Refused = 2,
    /// What `--restore` names is no snapshot, is damaged, or is another machine's: it is of
    /// no more use another time. What the host lacked for a moment is
    /// [`Refused`](Self::Refused).
    Unrestorable = 3,
}

impl ExitStatus {
    /// Whether it is what a process ended with, of which `code` is
    /// [`std::process::ExitStatus::code`].
    #[must_use]
    pub fn is(self, code: Option<i32>) -> bool {
        code == Some(i32::from(self as u8))
    }
}

/// Why the VMM's process ended: the last thing it writes, as JSON ([`ExitRecord`]), to the
/// file named by `--exit-file`. A process that is gone without it was killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Exit {
    /// The guest powered itself off (ACPI S5), asked by the power button or not.
    GuestPowerOff,
    /// The control socket, SIGTERM or SIGINT asked for it.
    Stopped,
    /// The machine can't go on.
    Crashed {
        /// What happened, in one line.
        detail: String,
    },
}

/// What the file named by `--exit-file` holds: why the process ended, and what it left
/// unfinished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Why.
    #[serde(flatten)]
    pub exit: Exit,
    /// Devices with requests that the host had not done when the process ended. They are
    /// done or lost, as when the power fails.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfinished: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who reads the file only to learn why, reads it as that.
    #[test]
    fn a_record_of_an_exit_reads_as_the_exit() {
        for exit in [
            Exit::Stopped,
            Exit::Crashed {
                detail: "why".to_owned(),
            },
        ] {
            let record = ExitRecord {
                exit: exit.clone(),
                unfinished: vec!["root".to_owned()],
            };
            let json = serde_json::to_string(&record).expect("JSON");
            assert_eq!(serde_json::from_str::<Exit>(&json).expect("an exit"), exit);
            assert_eq!(
                serde_json::from_str::<ExitRecord>(&json).expect("all of it"),
                record
            );
        }
    }
}
