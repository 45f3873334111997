//! The machine handed over to another process: this side of what `take_over` draws.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use hearth_vmm_api::{Exit, MachineState};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::RecvFlags;

use super::{Ended, Process, signalled};
use crate::control::{Answer, Server};
use crate::error::chain;
use crate::gdb::Debugger;
use crate::handover::{Message, Word, say, send_state};
use crate::jail::{ThreadRole, confine_thread};
use crate::machine::{HAND_OVER, Handover, Machine};
use crate::net::Attached;
use crate::serial::Console;

/// How long the other process has once it was sent everything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine that is being handed over.
pub(super) struct HandOver {
    stream: UnixStream,
    /// Whether it was paused for this alone.
    runs: bool,
    phase: Phase,
}

enum Phase {
    /// The machine is being paused.
    Pausing,
    /// It is held, and the other process gets ready.
    Sending {
        thread: JoinHandle<io::Result<()>>,
        /// Whether the thread has done all it can, before it rings.
        is_sent: Arc<AtomicBool>,
        /// Whether the other process has said that it has everything.
        is_ready: bool,
        deadline: Instant,
        /// Queues that take part for this alone.
        _queues: Vec<Attached>,
    },
}

impl HandOver {
    /// Begins it, on this socket.
    pub(super) fn begin(machine: &mut Machine, socket: Option<OwnedFd>) -> Result<Self, Answer> {
        let Some(socket) = socket else {
            let wrong = "a stream socket must come along: see hearth-vmm --take-over";
            return Err(Answer::error(400, wrong));
        };
        let runs = match machine.state() {
            MachineState::Running => true,
            MachineState::Paused => false,
            _ => {
                let wrong = "only a machine that runs, or is paused, is handed over";
                return Err(Answer::error(409, wrong));
            }
        };
        if let Some(why) = machine.refuses_hand_over() {
            return Err(Answer::error(409, why));
        }
        machine.pause().map_err(|why| Answer::error(409, why))?;
        Ok(Self {
            stream: socket.into(),
            runs,
            phase: Phase::Pausing,
        })
    }

    /// What to poll for what the other process says.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether what a client types, or a debugger wants, has to wait.
    pub(super) fn holds(&self) -> bool {
        matches!(self.phase, Phase::Sending { .. })
    }

    /// It isn't handed over, whatever the other process has by now.
    pub(super) fn cancel(self, machine: &mut Machine) {
        // The thread, too, finds nobody to send to.
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Phase::Sending { thread, .. } = self.phase
            && let Ok(Err(error)) = thread.join()
        {
            eprintln!("hearth-vmm: handing over: {error}");
        }
        machine.take_back();
        if self.runs {
            // It is paused, and nothing else holds it.
            let _ = machine.resume();
        }
    }
}

impl Process {
    /// Goes on with a machine's handing over, if one is. None: the process does, too.
    pub(super) fn hand_over(&mut self) -> Option<Ended> {
        let mut over = self.handing_over.take()?;
        match self.advance(&mut over) {
            Ok(false) => self.handing_over = Some(over),
            Ok(true) => {
                let ended = give_up(&over.stream, &mut self.signals);
                // By its end, the other process knows that this one has no thread any more.
                std::mem::forget(over);
                return Some(ended);
            }
            Err(error) => {
                eprintln!("hearth-vmm: the machine is not handed over: {error}");
                over.cancel(&mut self.machine);
            }
        }
        None
    }

    /// True: the other process has heard that the machine is its own.
    fn advance(&mut self, over: &mut HandOver) -> io::Result<bool> {
        let says_ready = Word::Ready.is_said(&over.stream, RecvFlags::DONTWAIT)?;
        match &mut over.phase {
            Phase::Pausing if says_ready => Err(io::Error::other("it is ready for nothing")),
            Phase::Pausing => {
                match self.machine.state() {
                    MachineState::Paused => over.phase = self.send(over)?,
                    MachineState::Pausing => {}
                    _ => return Err(io::Error::other("somebody let it go on")),
                }
                Ok(false)
            }
            Phase::Sending {
                is_sent,
                is_ready,
                deadline,
                ..
            } => {
                // It may have the last byte before the thread knows that it is sent.
                *is_ready |= says_ready;
                if !is_sent.load(Ordering::Acquire) {
                    return Ok(false);
                }
                if *is_ready {
                    // Fails if the thread did: it has shut the socket down.
                    Word::Yours.say(&over.stream)?;
                    return Ok(true);
                }
                if Instant::now() > *deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Ok(false)
            }
        }
    }

    /// Has a thread send everything.
    fn send(&mut self, over: &HandOver) -> io::Result<Phase> {
        // The guest's last words here.
        self.serve_console();
        let handover = self
            .machine
            .hand_over()
            .map_err(|unsaved| io::Error::other(chain(&unsaved)))?;
        let is_queue = |id: &str| self.machine.describe().nics.iter().any(|nic| nic.id == id);
        let all = handover.devices.iter();
        let queues = all
            .filter(|(id, _)| is_queue(id))
            .map(|(_, files)| Attached::all(files))
            .collect::<io::Result<_>>()?;
        let listeners = [
            ("--socket", self.server.as_ref().map(Server::listener)),
            (
                "--console-socket",
                self.console.as_ref().map(Console::listener),
            ),
            ("--gdb", self.gdb.as_ref().map(Debugger::listener)),
        ];
        let mut sockets = Vec::new();
        for (flag, listener) in listeners {
            if let Some(listener) = listener {
                sockets.push((flag, listener.as_fd().try_clone_to_owned()?));
            }
        }
        let (stream, runs) = (over.stream.try_clone()?, over.runs);
        let bell = self.machine.quieted().try_clone()?;
        let broken = over.stream.try_clone()?;
        let is_sent = Arc::new(AtomicBool::new(false));
        let has_sent = Arc::clone(&is_sent);
        let thread = Builder::new().name("hand-over".to_owned()).spawn(move || {
            let sent = confine_thread(ThreadRole::Device(&HAND_OVER))
                .map_err(io::Error::other)
                .and_then(|()| send(stream, &sockets, &handover, runs));
            if sent.is_err() {
                // Neither side waits any more.
                let _ = broken.shutdown(Shutdown::Both);
            }
            has_sent.store(true, Ordering::Release);
            // Fails only when the counter is full, and then it is rung already.
            let _ = bell.write(1);
            sent
        })?;
        Ok(Phase::Sending {
            thread,
            is_sent,
            is_ready: false,
            deadline: Instant::now() + PATIENCE,
            _queues: queues,
        })
    }
}

fn send(
    mut stream: UnixStream,
    sockets: &[(&str, OwnedFd)],
    handover: &Handover,
    runs: bool,
) -> io::Result<()> {
    let stream = &mut stream;
    for (flag, socket) in sockets {
        let socket = [socket.try_clone()?];
        say(stream, &Message::Socket((*flag).to_owned()), &socket)?;
    }
    for (id, files) in &handover.devices {
        say(stream, &Message::Device(id.clone()), files)?;
    }
    say(stream, &Message::Software, &handover.software)?;
    if !handover.regions.is_empty() {
        say(stream, &Message::Memory, &handover.regions)?;
    }
    say(stream, &Message::Prepared { runs }, &[])?;
    if handover.regions.is_empty() {
        handover.memory.send(stream)?;
    }
    send_state(stream, &handover.state)
}

/// The machine isn't this process's any more: waits until the other one has it.
fn give_up(stream: &UnixStream, signals: &mut std::fs::File) -> Ended {
    loop {
        match Word::Taken.is_said(stream, RecvFlags::DONTWAIT) {
            Ok(true) => return Ended::HandedOver,
            Ok(false) => {}
            Err(_) => {
                let detail = "the process that took the machine over ended as it took it";
                return Ended::Here(Exit::Crashed {
                    detail: detail.to_owned(),
                });
            }
        }
        // There is no machine here that could be stopped.
        if signalled(signals) {
            return Ended::HandedOver;
        }
        let mut fds = [
            PollFd::new(stream, PollFlags::IN),
            PollFd::new(&*signals, PollFlags::IN),
        ];
        // An error can only be EINTR.
        let _ = poll(&mut fds, None);
    }
}
