//! One run of one VMM.

use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// What each of the guest's lines begins with.
const MARK: &str = "HEARTH-BENCH ";

/// A line of the guest and when it was complete, since the VMM's exec.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) at: Duration,
    pub(crate) text: String,
}

/// A running VMM. Dropping it kills the VMM.
pub(crate) struct Run {
    child: Child,
    began: Instant,
    lines: Receiver<Line>,
    /// For the message when it goes wrong.
    last: VecDeque<String>,
}

impl Run {
    /// Starts the VMM. Its serial console is its standard output.
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        // An open pipe as standard input: some VMMs take an end of file there
        // for a wish, and some can't poll /dev/null.
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let start = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("{:?}", command.get_program()))?;
        let mut output = child.stdout.take().context("no standard output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut line = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                let at = start.elapsed();
                for &byte in &buffer[..n] {
                    if byte != b'\n' {
                        line.push(byte);
                        continue;
                    }
                    let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                    line.clear();
                    if sender.send(Line { at, text }).is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Self {
            child,
            began: start,
            lines,
            last: VecDeque::new(),
        })
    }

    /// When the VMM was started.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The guest's next line, without its mark. A guest that says nothing for
    /// `stall` (of the host's clock) has hung.
    pub(crate) fn next(&mut self, stall: Duration) -> Result<Line> {
        let deadline = Instant::now() + stall;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(at) = line.text.find(MARK) {
                        let text = line.text[at + MARK.len()..].to_owned();
                        if let Some(why) = text.strip_prefix("fail ") {
                            bail!("the guest: {why}");
                        }
                        return Ok(Line { at: line.at, text });
                    }
                    if std::env::var_os("HEARTH_BENCH_VERBOSE").is_some() {
                        eprintln!("   | {}", line.text);
                    }
                    if self.last.len() == 12 {
                        self.last.pop_front();
                    }
                    self.last.push_back(line.text);
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("nothing for {} s; {}", stall.as_secs(), self.last_lines());
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    bail!("ended with {status}; {}", self.last_lines());
                }
            }
        }
    }

    /// The next line of whatever kind.
    pub(crate) fn next_any(&mut self, stall: Duration) -> Result<Line> {
        self.lines
            .recv_timeout(stall)
            .context("the end came before the guest was done")
    }

    /// Asks the VMM to end, and waits until it has.
    pub(crate) fn end(mut self) -> Result<()> {
        let pid = libc::pid_t::try_from(self.child.id())?;
        // SAFETY: takes plain numbers; the child was not waited for, so it is its own.
        if unsafe { libc::kill(pid, libc::SIGTERM) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        self.child.wait()?;
        Ok(())
    }

    fn last_lines(&self) -> String {
        let mut text = "its last lines:".to_owned();
        for line in &self.last {
            text.push_str("\n   | ");
            text.push_str(line);
        }
        text
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
