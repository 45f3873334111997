//! Hands scripts to nft.

use std::io::{self, Write as _};
use std::process::{Command, Stdio};

/// Applies a script as one transaction in the calling thread's namespace.
pub(super) fn apply(script: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    // nft reads all of its input before it writes a word, so the pipes can't
    // block each other.
    let sent = match child.stdin.take() {
        Some(mut input) => input.write_all(script.as_bytes()),
        None => Ok(()),
    };
    let output = child.wait_with_output()?;
    if output.status.success() {
        return sent;
    }
    let error = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = error.lines().take(4).collect();
    Err(io::Error::other(format!("nft: {}", lines.join(" | "))))
}

/// Deletes a table, there or not.
pub(super) fn delete(table: &str) -> io::Result<()> {
    apply(&format!("table inet {table}\ndelete table inet {table}\n"))
}
