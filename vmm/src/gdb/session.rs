//! One gdb, from its connection to its end. Nothing here waits: what takes until vCPUs
//! stand still is gone on with when they ring.
//!
//! ```text
//!              all stand still             resume
//!   attaching ────────────────► stopped ───────────► running
//!       │                         │  ▲                  │ trap, Ctrl-C, reset
//!       │                         │  └── halting ◄──────┘
//!       └──── gdb is gone, or ────┴─────────┘
//!             has detached: leaving ── all stand still ──► the guest runs on
//! ```

use std::collections::VecDeque;
use std::convert::Infallible;
use std::error::Error;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine as Machinery;
use gdbstub::stub::{GdbStub, MultiThreadStopReason};

use super::guest::Guest;
use crate::arch::debug::Trap;
use crate::error::chain;
use crate::machine::Machine;

/// What gdb is sent next. A packet is answered only once the answer to the one before is
/// out, so it is one answer at most.
#[derive(Default)]
struct Outbox(VecDeque<u8>);

impl Connection for Outbox {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        self.0.push_back(byte);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

type Stub = Machinery<'static, Guest, Outbox>;

enum Phase {
    /// The vCPUs are to stand still first.
    Attaching,
    /// Stopped, running or halting: the stub knows.
    Attached(Box<Attached>),
    /// What was done to the guest is to be undone, if anything was.
    Leaving(Option<Box<Guest>>),
}

struct Attached {
    /// None only while it is given something.
    stub: Option<Stub>,
    guest: Guest,
    /// The vCPUs run no longer, or soon won't, and gdb is to hear why.
    is_halting: bool,
    /// gdb has not taken all that it was sent.
    is_sending: bool,
}

/// What to do behind a step.
enum Next {
    /// Another one.
    Again,
    /// To wait: for gdb or for vCPUs.
    Wait,
    /// Nothing: it is over.
    Over,
}

pub(super) struct Session {
    stream: UnixStream,
    /// Bytes that gdb has sent and the stub has not seen: one read at most.
    received: VecDeque<u8>,
    phase: Phase,
    traps: Vec<(usize, Trap)>,
    /// The machine's, as far as gdb knows.
    resets: u64,
}

impl Session {
    pub(super) fn new(stream: UnixStream, machine: &mut Machine) -> Self {
        machine.hold_vcpus();
        Self {
            stream,
            received: VecDeque::new(),
            phase: Phase::Attaching,
            traps: Vec::new(),
            resets: machine.resets(),
        }
    }

    /// What to poll: the descriptor, and events as of poll(2); none while it waits for
    /// vCPUs, which ring the machine's bell.
    pub(super) fn interest(&self) -> Option<(RawFd, libc::c_short)> {
        let Phase::Attached(attached) = &self.phase else {
            return None;
        };
        let events = match attached.is_sending {
            true => libc::POLLOUT,
            false if attached.is_halting => return None,
            false => libc::POLLIN,
        };
        Some((self.stream.as_raw_fd(), events))
    }

    /// Whether gdb is gone or has detached, and the guest isn't let go yet.
    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Leaving(_))
    }

    /// Does what can be done without waiting. False: it is over, and the guest runs on.
    pub(super) fn progress(&mut self, machine: &mut Machine) -> bool {
        loop {
            self.traps.extend(machine.take_traps());
            match self.step(machine) {
                Ok(Next::Again) => {}
                Ok(Next::Wait) => return true,
                Ok(Next::Over) => return false,
                Err(error) => {
                    eprintln!("hearth-vmm: --gdb: {}", chain(&*error));
                    self.leave(machine);
                }
            }
        }
    }

    fn step(&mut self, machine: &mut Machine) -> Result<Next, Box<dyn Error>> {
        let is_locked = machine.refuses_writes().is_some();
        match &mut self.phase {
            Phase::Attached(attached) => attached.guest.is_locked = is_locked,
            // What is to be undone is part of a snapshot that is being written.
            Phase::Leaving(Some(_)) if is_locked => return Ok(Next::Wait),
            Phase::Attaching | Phase::Leaving(_) => {}
        }
        match &mut self.phase {
            Phase::Attaching => self.attach(machine),
            Phase::Leaving(_) => self.go(machine),
            Phase::Attached(attached) => {
                if !attached.send(&mut self.stream) {
                    self.leave(machine);
                    return Ok(Next::Again);
                }
                let is_reset = machine.resets() != self.resets;
                if attached.is_running() && (is_reset || !self.traps.is_empty()) {
                    machine.hold_vcpus();
                    attached.is_halting = true;
                }
                if attached.is_sending {
                    return Ok(Next::Wait);
                }
                match &attached.stub {
                    None | Some(Machinery::Disconnected(_)) => {
                        self.leave(machine);
                        Ok(Next::Again)
                    }
                    Some(Machinery::CtrlCInterrupt(_)) if !attached.is_halting => {
                        machine.hold_vcpus();
                        attached.is_halting = true;
                        Ok(Next::Again)
                    }
                    _ if is_reset || attached.is_halting => self.halted(machine),
                    _ => self.receive(machine),
                }
            }
        }
    }

    fn attach(&mut self, machine: &Machine) -> Result<Next, Box<dyn Error>> {
        let Some(access) = machine.held() else {
            return Ok(Next::Wait);
        };
        let mut guest = Guest::new(access, machine.memory().clone());
        let stub = GdbStub::new(Outbox::default()).run_state_machine(&mut guest)?;
        self.resets = machine.resets();
        self.phase = Phase::Attached(Box::new(Attached {
            stub: Some(stub),
            guest,
            is_halting: false,
            is_sending: false,
        }));
        Ok(Next::Again)
    }

    /// Says why the vCPUs stand still, once they do; or has them go on, where it was for
    /// something of the guest's own.
    fn halted(&mut self, machine: &mut Machine) -> Result<Next, Box<dyn Error>> {
        let (Phase::Attached(attached), Some(access)) = (&mut self.phase, machine.held()) else {
            return Ok(Next::Wait);
        };
        // Those of vCPUs that stood still last.
        self.traps.extend(machine.take_traps());
        attached.is_halting = false;
        let mut reason = None;
        if machine.resets() != self.resets {
            self.resets = machine.resets();
            self.traps.clear();
            attached.guest.renew(access);
            reason = Some(attached.guest.signal(Signal::SIGTRAP));
        }
        // gdb takes one, the first. Breakpoints that others have hit meanwhile are hit again
        // as these go on.
        for (index, trap) in self.traps.drain(..).rev() {
            reason = attached.guest.examine(index, trap).or(reason);
        }
        attached.report(reason)?;
        Ok(Next::Again)
    }

    /// Gives the stub what gdb has sent.
    fn receive(&mut self, machine: &mut Machine) -> Result<Next, Box<dyn Error>> {
        if let Some(byte) = self.received.pop_front() {
            if let Phase::Attached(attached) = &mut self.phase {
                attached.feed(byte)?;
            }
            return Ok(Next::Again);
        }
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.leave(machine),
            Ok(count) => self.received.extend(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Next::Wait),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.leave(machine),
        }
        Ok(Next::Again)
    }

    /// Begins to leave.
    fn leave(&mut self, machine: &mut Machine) {
        machine.hold_vcpus();
        let guest = match std::mem::replace(&mut self.phase, Phase::Leaving(None)) {
            Phase::Attached(attached) => Some(Box::new(attached.guest)),
            Phase::Leaving(guest) => guest,
            Phase::Attaching => None,
        };
        self.phase = Phase::Leaving(guest);
    }

    /// Leaves, once all stand still.
    fn go(&mut self, machine: &mut Machine) -> Result<Next, Box<dyn Error>> {
        let (Phase::Leaving(guest), Some(access)) = (&mut self.phase, machine.held()) else {
            return Ok(Next::Wait);
        };
        self.traps.extend(machine.take_traps());
        machine.end_debugging();
        let all = 0..access.count();
        if let Some(mut guest) = guest.take() {
            if machine.resets() != self.resets {
                self.traps.clear();
                guest.renew(access.clone());
            }
            for (index, trap) in self.traps.drain(..) {
                // Those of the guest's own are delivered.
                let _ = guest.examine(index, trap);
            }
            if let Err(error) = guest.leave() {
                eprintln!("hearth-vmm: --gdb: {}", chain(&error));
            }
        }
        // Where there was no guest yet, or a vCPU didn't take it back.
        all.for_each(|index| access.release(index));
        Ok(Next::Over)
    }

    /// Says that the machine has ended, to a gdb that waits for its next stop.
    pub(super) fn end(mut self, status: u8) {
        if let Phase::Attached(attached) = &mut self.phase {
            attached.is_halting = false;
            // It isn't waited for.
            let _ = attached.report(Some(MultiThreadStopReason::Exited(status)));
            attached.send(&mut self.stream);
        }
    }
}

impl Attached {
    fn is_running(&self) -> bool {
        matches!(self.stub, Some(Machinery::Running(_)))
    }

    /// Reports a stop to a gdb that waits for one; without a reason, the vCPUs go on.
    fn report(&mut self, reason: Option<MultiThreadStopReason<u64>>) -> Result<(), Box<dyn Error>> {
        let guest = &mut self.guest;
        self.stub = match (self.stub.take(), reason) {
            (Some(Machinery::Running(stub)), Some(reason)) => {
                Some(stub.report_stop(guest, reason)?)
            }
            (Some(Machinery::Running(stub)), None) => {
                guest.go_on()?;
                Some(stub.into())
            }
            (Some(Machinery::CtrlCInterrupt(stub)), reason) => {
                let reason = reason.unwrap_or(guest.signal(Signal::SIGINT));
                Some(stub.interrupt_handled(guest, Some(reason))?)
            }
            (stub, _) => stub,
        };
        Ok(())
    }

    fn feed(&mut self, byte: u8) -> Result<(), Box<dyn Error>> {
        let guest = &mut self.guest;
        self.stub = match self.stub.take() {
            Some(Machinery::Idle(stub)) => Some(stub.incoming_data(guest, byte)?),
            Some(Machinery::Running(stub)) => Some(stub.incoming_data(guest, byte)?),
            other => other,
        };
        Ok(())
    }

    fn outbox(&mut self) -> Option<&mut VecDeque<u8>> {
        let connection = match self.stub.as_mut()? {
            Machinery::Idle(stub) => stub.borrow_conn(),
            Machinery::Running(stub) => stub.borrow_conn(),
            Machinery::CtrlCInterrupt(stub) => stub.borrow_conn(),
            Machinery::Disconnected(stub) => stub.borrow_conn(),
        };
        Some(&mut connection.0)
    }

    /// Sends as much as gdb takes. False: it is gone.
    fn send(&mut self, stream: &mut UnixStream) -> bool {
        self.is_sending = false;
        let Some(outbox) = self.outbox() else {
            return true;
        };
        while !outbox.is_empty() {
            match Write::write(stream, outbox.make_contiguous()) {
                Ok(0) => return false,
                Ok(count) => drop(outbox.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_sending = true;
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}
