//! The life of the process: open everything, build the machine, give up what is
//! not needed any more, then one loop over signals, the control socket, the
//! console, vCPU reports and a debugger, until there is a reason to end.
//!
//! Security is in the order, so the order is in the types: [`Built::start`] takes the
//! [`Confinement`](crate::jail::Confinement) that only the jail gives out, and gives out last.
//!
//! [`Built::start`]: crate::machine::Built::start
//!
//! ```text
//!  command line      read, inherited taps taken over           ┐ everything that we were
//!  Process::prepare  files, sockets, taps, disks opened,       │ given, and not a byte that
//!                    rings and KVM's VM made, memory mapped    ┘ a stranger wrote
//!  ══ jail::enter: cgroup ─ namespaces ─ chroot ─ user ─ capabilities ─ Landlock ─ seccomp
//!  Built::start      devices' threads made: confined further  ┐
//!                    kernel parsed, initrd read, tables made,  │ whoever takes over any of
//!                    vCPU threads made: confined further       │ it finds all layers up
//!  Machine::resume   the guest runs                            │
//!  Machine::reset    kernel parsed again                       ┘
//! ```

#![allow(unsafe_code, reason = "inherited descriptors, poll(2)")]

mod commands;
mod files;
mod give_back;
mod hand_over;
mod prepare;
mod prometheus;
mod take_over;
mod terminal;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::ExitCode;

use hearth_vmm_api::{Exit, ExitStatus};
use rustix::process::{Resource, getrlimit, setrlimit};

use self::commands::{Reply, cannot_reset, perform};
use self::files::{PidFile, write_exit};
use self::give_back::Code;
use self::hand_over::HandOver;
use self::take_over::{Leaving, TakeOver};
use self::terminal::Terminal;
use crate::config::{self, Description, Refusal};
use crate::control::{Answer, Server, Ticket};
use crate::error::chain;
use crate::gdb::Debugger;
use crate::jail;
use crate::machine::{self, Errand, Machine, Taps};
use crate::serial::{Console, StandardOutput, TICK};
use crate::vcpu::{Ending, unix_ns};

/// What is said to those who still wait for an answer.
const ENDED: &str = "the machine has ended";

/// Runs the program.
pub fn main() -> ExitCode {
    let began_ns = unix_ns();
    // One heap for all threads: hardly any allocates at work, and each heap of its own
    // would be dirty pages and system calls at a thread's start.
    #[cfg(target_env = "gnu")]
    // SAFETY: takes plain numbers, and no other thread is there yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
    let description = match config::parse(std::env::args_os()) {
        Ok(description) => description,
        Err(Refusal::Information(text)) => {
            print_text(&text);
            return ExitCode::SUCCESS;
        }
        Err(Refusal::Mistake(line)) => return wrong(&line),
    };
    raise_descriptor_limit();
    // Before anything else is opened, so that a number that the caller did not
    // hand down is not taken for a file of our own.
    let taps = match inherited_taps(&description) {
        Ok(taps) => taps,
        Err(line) => return wrong(&line),
    };
    let parent = if description.daemonize {
        match jail::daemonize(description.jail.as_ref()) {
            Ok(parent) => Some(parent),
            Err(error) => return wrong(&format!("--daemonize: {error}")),
        }
    } else {
        None
    };
    let mut process = match Process::prepare(&description, taps, began_ns, parent.as_ref()) {
        Ok(process) => process,
        Err(unbuilt) => return refuse(parent, &unbuilt),
    };
    give_back::heap();
    let runs = match process.take() {
        Ok(runs) => runs,
        Err(line) => return refuse(parent, &line.into()),
    };
    if runs {
        // It is paused, and no snapshot is under way.
        let _ = process.machine.resume();
    }
    if let Some(taken) = process.taking_over.take() {
        process.leaving = Some(taken.taken());
    }
    if runs && parent.is_some() {
        // So that what is said to the parent is true, also where there are fewer
        // processors than threads that want to run.
        process.machine.wait_for_entry();
    }
    if let Some(Err(error)) = parent.map(jail::Parent::ready) {
        process.ending = Some(Exit::Crashed {
            detail: format!("could not become a daemon: {error}"),
        });
    }
    match process.serve() {
        Ended::Here(exit) => process.end(&exit),
        Ended::HandedOver => process.leave(),
    }
}

/// How the machine's time in this process ended.
enum Ended {
    /// With the machine.
    Here(Exit),
    /// Another process has it.
    HandedOver,
}

/// Lets the process have as many descriptors as it may: each queue of a device needs
/// some, and the usual limit of 1,024 is one for programs that use select(2).
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // With the limit as it was, fewer devices can be plugged.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Takes charge of the taps that the caller left open for us.
fn inherited_taps(description: &Description) -> Result<Taps, String> {
    let mut taps = Taps::new();
    if description.take_over.is_some() {
        // Those of the other process, in which they have these numbers.
        return Ok(taps);
    }
    for nic in description.nics() {
        let config::Tap::Fds(fds) = &nic.tap else {
            continue;
        };
        for &fd in fds {
            // SAFETY: takes plain numbers, and fails for what is not open.
            if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
                return Err(format!("--nic: tap-fd {fd} was not handed down open"));
            }
            // SAFETY: the descriptor is open, above the standard streams and given
            // once, and this process has opened nothing yet: it is the caller's,
            // who left it to us.
            taps.insert(fd, unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Ok(taps)
}

/// A machine that can't run here.
struct Unbuilt {
    status: ExitStatus,
    /// Why, for people.
    line: String,
}

impl From<String> for Unbuilt {
    fn from(line: String) -> Self {
        Self {
            status: ExitStatus::Refused,
            line,
        }
    }
}

impl From<machine::Error> for Unbuilt {
    fn from(error: machine::Error) -> Self {
        let status = match error.blames_snapshot() {
            true => ExitStatus::Unrestorable,
            false => ExitStatus::Refused,
        };
        Self {
            status,
            line: chain(&error),
        }
    }
}

/// The machine can't run here: whoever waits learns why.
fn refuse(parent: Option<jail::Parent>, unbuilt: &Unbuilt) -> ExitCode {
    let Unbuilt { status, line } = unbuilt;
    match parent {
        Some(parent) => parent.fail(*status, line),
        None => eprintln!("hearth-vmm: {line}"),
    }
    ExitCode::from(*status as u8)
}

fn wrong(line: &str) -> ExitCode {
    refuse(None, &line.to_owned().into())
}

#[expect(clippy::print_stdout, reason = "the answer to --help and --version")]
fn print_text(text: &str) {
    print!("{text}");
}

struct Process {
    machine: Machine,
    server: Option<Server>,
    signals: File,
    terminal: Option<Terminal>,
    console: Option<Console>,
    gdb: Option<Debugger>,
    exit_file: Option<PathBuf>,
    pid_file: Option<PidFile>,
    ending: Option<Exit>,
    /// Who asked for the snapshot that is being written.
    saving_for: Option<Ticket>,
    /// Who asked for what else is not done yet.
    waiting: Vec<(Errand, Ticket)>,
    /// The process that has the machine until it is taken.
    taking_over: Option<TakeOver>,
    /// The process that had it before.
    leaving: Option<Leaving>,
    /// The process that will have it.
    handing_over: Option<HandOver>,
}

impl Process {
    /// Takes the machine from the process that has it, if one does. Returns whether it is
    /// to be resumed.
    fn take(&mut self) -> Result<bool, String> {
        let runs = match &self.taking_over {
            Some(taking) => taking.take()?,
            None => true,
        };
        // Before the guest runs: where no id is, it never did.
        if let Some(pid_file) = &mut self.pid_file
            && let Err(error) = pid_file.write()
        {
            let path = pid_file.path.display();
            match self.taking_over {
                // There is no way back.
                Some(_) => eprintln!("hearth-vmm: --pid-file {path}: {error}"),
                None => return Err(format!("--pid-file {path}: {error}")),
            }
        }
        Ok(runs)
    }

    /// Serves until there is a reason to end.
    fn serve(&mut self) -> Ended {
        let mut more_output = false;
        let mut code = Code::of_start();
        loop {
            if let Some(exit) = self.ending.take() {
                return Ended::Here(exit);
            }
            self.wait(more_output, &code);
            code.progress();
            // Before those who connected are let in.
            self.leaving.take_if(|one| !one.is_there());
            if signalled(&mut self.signals) {
                self.ending = Some(Exit::Stopped);
            }
            if let Some(server) = &mut self.server {
                let (machine, ending) = (&mut self.machine, &mut self.ending);
                let (handing_over, saving_for) = (&mut self.handing_over, &mut self.saving_for);
                let waiting = &mut self.waiting;
                server.progress(|command, descriptors, ticket| {
                    match perform(machine, ending, handing_over, command, descriptors) {
                        Reply::Now(answer) => return Some(answer),
                        Reply::Saved => *saving_for = Some(ticket),
                        Reply::Done(errand) => waiting.push((errand, ticket)),
                    }
                    None
                });
            }
            if self.ending.is_none()
                && let Some(ended) = self.hand_over()
            {
                return ended;
            }
            if self.is_holding() {
                // The next process reads what was typed. Nonblocking: the bell may not
                // have rung.
                let _ = self.machine.quieted().read();
                more_output = false;
                continue;
            }
            more_output = self.serve_console();
            // After those who may ask the machine to end: no guest keeps it from that.
            if self.ending.is_none() {
                self.take_reports();
            }
            if self.ending.is_none()
                && let Err(error) = self.machine.progress()
            {
                self.ending = Some(cannot_reset(&error));
            }
            while let Some((errand, outcome)) = self.machine.finished() {
                self.answer_errand(errand, &commands::finished(outcome));
            }
            if let Some(outcome) = self.machine.saved() {
                self.answer_saving(&commands::saved(outcome));
            }
            // After all that may hold, reset or resume the machine.
            if let Some(gdb) = &mut self.gdb {
                gdb.progress(&mut self.machine);
            }
        }
    }

    /// Answers who asked for the snapshot that is being written, if one is.
    fn answer_saving(&mut self, answer: &Answer) {
        if let (Some(ticket), Some(server)) = (self.saving_for.take(), &mut self.server) {
            server.answer_late(ticket, answer);
        }
    }

    /// Answers who asked for this.
    fn answer_errand(&mut self, errand: Errand, answer: &Answer) {
        let is_it = |waiting: &(Errand, Ticket)| waiting.0 == errand;
        let place = self.waiting.iter().position(is_it);
        let ticket = place.map(|place| self.waiting.swap_remove(place).1);
        if let (Some(ticket), Some(server)) = (ticket, &mut self.server) {
            server.answer_late(ticket, answer);
        }
    }

    fn is_holding(&self) -> bool {
        self.handing_over.as_ref().is_some_and(HandOver::holds)
    }

    /// Moves the guest's output and input. Returns whether more output is likely to
    /// come soon.
    fn serve_console(&mut self) -> bool {
        let serial = self.machine.serial();
        // Nonblocking: errors say that they have not rung.
        let _ = (serial.input_read().read(), serial.output_waits().read());
        let more_output = serial.progress();
        if let Some(terminal) = &mut self.terminal
            && terminal.progress(serial)
        {
            self.ending = Some(Exit::Stopped);
        }
        if let Some(console) = &mut self.console {
            console.progress(serial);
        }
        more_output
    }

    /// Waits until any of the descriptors has something, for more output, or to let go of
    /// code.
    fn wait(&self, more_output: bool, code: &Code) {
        let mut fds = vec![
            interest(self.signals.as_raw_fd(), libc::POLLIN),
            interest(self.machine.bell().as_raw_fd(), libc::POLLIN),
            interest(self.machine.quieted().as_raw_fd(), libc::POLLIN),
        ];
        if let Some(over) = &self.handing_over {
            fds.push(interest(over.stream().as_raw_fd(), libc::POLLIN));
        }
        if let Some(leaving) = &self.leaving {
            fds.push(interest(leaving.stream().as_raw_fd(), libc::POLLIN));
        }
        let serial = self.machine.serial();
        let is_holding = self.is_holding();
        let room = serial.input_capacity() > 0 && !is_holding;
        if !is_holding {
            self.wait_for_clients(&mut fds, room);
        }
        if let Some(server) = &self.server {
            fds.extend(
                server.interests().into_iter().map(|(fd, write)| {
                    interest(fd, if write { libc::POLLOUT } else { libc::POLLIN })
                }),
            );
        }
        let timeout = match (more_output, is_holding) {
            (true, _) => i32::try_from(TICK.as_millis()).unwrap_or(0),
            // Its deadline.
            (false, true) => 1000,
            (false, false) => -1,
        };
        let timeout = code.sooner(timeout);
        // SAFETY: the pointer and the count are those of a live vector. An error
        // can only be EINTR, and then looking round does no harm.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
    }

    /// What the console's clients and a debugger ring for; with room for the guest's
    /// input.
    fn wait_for_clients(&self, fds: &mut Vec<libc::pollfd>, room: bool) {
        let serial = self.machine.serial();
        fds.push(interest(serial.output_waits().as_raw_fd(), libc::POLLIN));
        if !room {
            fds.push(interest(serial.input_read().as_raw_fd(), libc::POLLIN));
        }
        if let Some(terminal) = &self.terminal
            && terminal.open
            && room
        {
            fds.push(interest(io::stdin().as_raw_fd(), libc::POLLIN));
        }
        let output = self.terminal.as_ref().map(|terminal| &terminal.output);
        if let Some(fd) = output.and_then(StandardOutput::awaited) {
            fds.push(interest(fd, libc::POLLOUT));
        }
        if let Some(console) = &self.console {
            let interests = console.interests(room);
            fds.extend(interests.map(|(fd, events)| interest(fd, events)));
        }
        if let Some(gdb) = &self.gdb {
            let interests = gdb.interests();
            fds.extend(interests.map(|(fd, events)| interest(fd, events)));
        }
    }

    fn take_reports(&mut self) {
        let reports = self.machine.take_reports();
        if reports.ejected != 0 {
            self.machine.eject(reports.ejected);
        }
        if reports.unplugged != 0 {
            self.machine.unplug_vcpus(reports.unplugged);
        }
        match reports.ending {
            None => {}
            Some(Ending::PowerOff) if !self.machine.is_rebooting() => {
                self.ending = Some(Exit::GuestPowerOff);
            }
            Some(Ending::PowerOff | Ending::Reset) => {
                if let Err(error) = self.machine.reset_by_guest() {
                    self.ending = Some(cannot_reset(&error));
                }
            }
            Some(Ending::Crashed(detail)) => self.ending = Some(Exit::Crashed { detail }),
        }
    }

    /// Ends without a trace: the machine, its files and the paths of its sockets are
    /// another process's.
    fn leave(mut self) -> ExitCode {
        drop(self.terminal.take());
        // Devices are held, and to take them down would change a tap that they share; so
        // would removing a path. All that is this process's goes with it.
        std::mem::forget(self);
        ExitCode::SUCCESS
    }

    /// Takes the machine down and says why, as the last act.
    fn end(mut self, exit: &Exit) -> ExitCode {
        if let Some(over) = self.handing_over.take() {
            over.cancel(&mut self.machine);
        }
        self.answer_saving(&Answer::error(409, ENDED));
        for (errand, _) in self.waiting.clone() {
            self.answer_errand(errand, &Answer::error(409, ENDED));
        }
        // The guest's last words.
        self.serve_console();
        if let Some(terminal) = &mut self.terminal {
            terminal.output.finish(self.machine.serial());
        }
        drop(self.terminal);
        drop(self.console);
        if let Some(gdb) = self.gdb {
            gdb.end(match exit {
                Exit::GuestPowerOff | Exit::Stopped => 0,
                Exit::Crashed { .. } => ExitStatus::Crashed as u8,
            });
        }
        let unfinished = self.machine.end();
        for device in &unfinished {
            eprintln!("hearth-vmm: {device}: the host has not done its last requests");
        }
        drop(self.server);
        if let Some(PidFile { path, .. }) = &self.pid_file {
            // Best effort: in a jail the folder may be out of reach.
            let _ = fs::remove_file(path);
        }
        let mut code = match exit {
            Exit::GuestPowerOff | Exit::Stopped => ExitCode::SUCCESS,
            Exit::Crashed { detail } => {
                eprintln!("hearth-vmm: the machine crashed: {detail}");
                ExitCode::from(ExitStatus::Crashed as u8)
            }
        };
        if let Some(path) = &self.exit_file
            && let Err(error) = write_exit(path, exit, unfinished)
        {
            eprintln!("hearth-vmm: --exit-file {}: {error}", path.display());
            code = ExitCode::from(ExitStatus::Crashed as u8);
        }
        code
    }
}

fn interest(fd: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}

fn signalled(signals: &mut File) -> bool {
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    signals.read_exact(&mut info).is_ok()
}
