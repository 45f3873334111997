//! The life of the process: open everything, build the machine, give up what is
//! not needed any more, then one loop over signals, vCPU reports, the control
//! socket and the console, until there is a reason to end.

#![allow(unsafe_code, reason = "inherited descriptors, poll(2), signalfd(2)")]

mod commands;
mod files;
mod terminal;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hearth_vmm_api::Exit;
use rustix::process::{Resource, getrlimit, setrlimit};
use vmm_sys_util::signal::{block_signal, create_sigset};

use self::commands::perform;
use self::files::{Made, open_file, resolved, write_exit};
use self::terminal::Terminal;
use crate::acpi::registers::Request;
use crate::arch::boot::Payload;
use crate::config::{self, Description, Refusal};
use crate::control::Server;
use crate::error::chain;
use crate::jail;
use crate::machine::{Machine, Parts, Taps};
use crate::serial::{Console, Output, Serial, TICK};
use crate::vcpu::{Report, unix_ns};
use crate::virtio::profiles;

/// Exit status for a machine that crashed.
const STATUS_CRASHED: u8 = 1;
/// Exit status for a wrong command line, and for what a machine can't be built of.
const STATUS_WRONG: u8 = 2;

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
        match jail::daemonize() {
            Ok(parent) => Some(parent),
            Err(error) => return wrong(&format!("--daemonize: {error}")),
        }
    } else {
        None
    };
    let mut process = match Process::prepare(&description, taps, began_ns) {
        Ok(process) => process,
        Err(line) => match parent {
            Some(parent) => {
                parent.fail(&line);
                return ExitCode::from(STATUS_WRONG);
            }
            None => return wrong(&line),
        },
    };
    process.machine.resume();
    if parent.is_some() {
        // So that what is said to the parent is true, also where there are fewer
        // processors than threads that want to run.
        process.machine.wait_for_entry();
    }
    if let Some(Err(error)) = parent.map(jail::Parent::ready) {
        process.ending = Some(Exit::Crashed {
            detail: format!("could not become a daemon: {error}"),
        });
    }
    let exit = process.serve();
    process.end(&exit)
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

fn wrong(line: &str) -> ExitCode {
    eprintln!("hearth-vmm: {line}");
    ExitCode::from(STATUS_WRONG)
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
    exit_file: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    ending: Option<Exit>,
}

impl Process {
    /// Opens and builds everything.
    fn prepare(description: &Description, taps: Taps, began_ns: u64) -> Result<Self, String> {
        let mut made = Made::default();
        let exit_file = resolved("--exit-file", description.exit_file.as_deref())?;
        let pid_file = resolved("--pid-file", description.pid_file.as_deref())?;
        let socket = resolved("--socket", description.socket.as_deref())?;
        let mut devices = description.devices.clone();
        for (flag, socket) in devices.iter_mut().filter_map(config::Device::socket) {
            if let Some(path) = resolved(flag, Some(socket))? {
                *socket = path;
            }
        }
        let console_socket = resolved("--console-socket", description.console_socket.as_deref())?;
        let sockets = devices.iter_mut().filter_map(config::Device::socket);
        let mut folders: Vec<PathBuf> = [&exit_file, &pid_file, &socket, &console_socket]
            .into_iter()
            .flatten()
            .chain(sockets.map(|(_, path)| &*path))
            .filter_map(|file| file.parent().map(Path::to_owned))
            .collect();
        for folder in &description.allow {
            let fail = |error| format!("--allow {}: {error}", folder.display());
            folders.push(folder.canonicalize().map_err(fail)?);
        }
        // Those that lie in another one come after it.
        folders.sort();
        folders.dedup();

        let payload = Payload {
            kernel: open_file("--kernel", &description.kernel)?,
            initrd: match &description.initrd {
                Some(path) => Some(open_file("--initrd", path)?),
                None => None,
            },
            cmdline: description.cmdline.clone(),
        };
        let mut log_options = OpenOptions::new();
        log_options.read(true).write(true).create(true).mode(0o600);
        let output = match &description.serial_log {
            None => Output::Stdout,
            Some(path) => made
                .open(path, &log_options)
                .and_then(Output::log)
                .map_err(|error| format!("--serial-log {}: {error}", path.display()))?,
        };
        let server = match &socket {
            Some(path) => Some(Server::bind(path)?),
            None => None,
        };
        // Before the first thread is made, since threads inherit the mask.
        let signals = signals().map_err(|error| format!("signals: {error}"))?;
        let serial = Serial::new(output).map_err(|error| format!("serial port: {error}"))?;
        let console = match &console_socket {
            Some(path) => Some(Console::bind(path, &serial)?),
            None => None,
        };
        let mut machine = Machine::build(Parts {
            id: description.id.clone(),
            vcpus: description.vcpus,
            memory_bytes: description.memory_bytes,
            payload,
            identity: description.identity.clone(),
            serial,
            devices,
            taps,
            began_ns,
        })
        .map_err(|error| chain(&error))?;

        if let Some(path) = &pid_file {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o644);
            made.open(path, &options)
                .and_then(|mut file| {
                    io::Write::write_all(&mut file, format!("{}\n", std::process::id()).as_bytes())
                })
                .map_err(|error| format!("--pid-file {}: {error}", path.display()))?;
        }
        if description.uid.is_some() || description.gid.is_some() {
            let listeners = [
                ("--socket", server.as_ref().map(Server::listener)),
                ("--console-socket", console.as_ref().map(Console::listener)),
            ];
            for (flag, listener) in listeners {
                listener
                    .map_or(Ok(()), |one| one.chown(description.uid, description.gid))
                    .map_err(|error| format!("{flag}: {error}"))?;
            }
        }
        if description.daemonize {
            // A daemon must not keep a file system from being unmounted.
            std::env::set_current_dir("/").map_err(|error| error.to_string())?;
        }
        let mut layers = Vec::new();
        if let Some(policy) = &description.jail {
            layers = jail::enter(&folders, description.uid, description.gid, policy)?;
        } else {
            jail::drop_privileges(description.uid, description.gid)
                .map_err(|error| format!("--uid, --gid: {error}"))?;
        }
        machine.start().map_err(|error| chain(&error))?;
        if description.jail.is_some() {
            layers.extend(jail::confine_process(profiles())?);
        } else {
            jail::forbid_system_calls()?;
        }
        machine.set_jail(layers);
        if let Some(path) = &exit_file {
            jail::may_write_beside(path)
                .map_err(|error| format!("--exit-file {}: {error}", path.display()))?;
        }
        made.keep();
        let terminal =
            (description.serial_log.is_none() && !description.daemonize).then(Terminal::new);
        Ok(Self {
            machine,
            server,
            signals,
            terminal,
            console,
            exit_file,
            pid_file,
            ending: None,
        })
    }

    /// Serves until there is a reason to end.
    fn serve(&mut self) -> Exit {
        let mut more_output = false;
        loop {
            if let Some(exit) = self.ending.take() {
                return exit;
            }
            self.wait(more_output);
            if signalled(&mut self.signals) {
                self.ending = Some(Exit::Stopped);
            }
            self.take_reports();
            more_output = self.serve_console();
            if let Some(server) = &mut self.server {
                let (machine, ending) = (&mut self.machine, &mut self.ending);
                server.progress(|command, descriptors| {
                    perform(machine, ending, command, descriptors)
                });
            }
        }
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

    /// Waits until any of the descriptors has something, or for more output.
    fn wait(&self, more_output: bool) {
        let interest = |fd, events| libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        let mut fds = vec![
            interest(self.signals.as_raw_fd(), libc::POLLIN),
            interest(self.machine.bell().as_raw_fd(), libc::POLLIN),
        ];
        let serial = self.machine.serial();
        fds.push(interest(serial.output_waits().as_raw_fd(), libc::POLLIN));
        let room = serial.input_capacity() > 0;
        if !room {
            fds.push(interest(serial.input_read().as_raw_fd(), libc::POLLIN));
        }
        if let Some(terminal) = &self.terminal
            && terminal.open
            && room
        {
            fds.push(interest(io::stdin().as_raw_fd(), libc::POLLIN));
        }
        if let Some(console) = &self.console {
            let interests = console.interests(room);
            fds.extend(interests.map(|(fd, events)| interest(fd, events)));
        }
        if let Some(server) = &self.server {
            fds.extend(
                server.interests().into_iter().map(|(fd, write)| {
                    interest(fd, if write { libc::POLLOUT } else { libc::POLLIN })
                }),
            );
        }
        let timeout = match more_output {
            true => i32::try_from(TICK.as_millis()).unwrap_or(0),
            false => -1,
        };
        // SAFETY: the pointer and the count are those of a live vector. An error
        // can only be EINTR, and then looking round does no harm.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
    }

    fn take_reports(&mut self) {
        // Nonblocking: an error says that the bell has not rung.
        let _ = self.machine.bell().read();
        while let Some(report) = self.machine.report() {
            match report {
                Report::Guest(Request::PowerOff) if !self.machine.is_rebooting() => {
                    self.ending = Some(Exit::GuestPowerOff);
                }
                Report::Guest(Request::PowerOff | Request::Reset) => {
                    if let Err(error) = self.machine.reset() {
                        self.ending = Some(Exit::Crashed {
                            detail: format!("the machine can't be reset: {}", chain(&error)),
                        });
                    }
                }
                Report::Guest(Request::Eject(slots)) => self.machine.eject(slots),
                Report::Crashed(detail) => self.ending = Some(Exit::Crashed { detail }),
            }
            if self.ending.is_some() {
                return;
            }
        }
    }

    /// Takes the machine down and says why, as the last act.
    fn end(mut self, exit: &Exit) -> ExitCode {
        // The guest's last words.
        self.serve_console();
        drop(self.terminal);
        drop(self.console);
        drop(self.machine);
        drop(self.server);
        if let Some(path) = &self.pid_file {
            // Best effort: in a jail the folder may be out of reach.
            let _ = fs::remove_file(path);
        }
        let mut code = match exit {
            Exit::GuestPowerOff | Exit::Stopped => ExitCode::SUCCESS,
            Exit::Crashed { detail } => {
                eprintln!("hearth-vmm: the machine crashed: {detail}");
                ExitCode::from(STATUS_CRASHED)
            }
        };
        if let Some(path) = &self.exit_file
            && let Err(error) = write_exit(path, exit)
        {
            eprintln!("hearth-vmm: --exit-file {}: {error}", path.display());
            code = ExitCode::from(STATUS_CRASHED);
        }
        code
    }
}

/// A descriptor that becomes readable on SIGTERM and SIGINT.
fn signals() -> io::Result<File> {
    let wanted = [libc::SIGTERM, libc::SIGINT];
    for signal in wanted {
        block_signal(signal).map_err(|error| io::Error::other(error.to_string()))?;
    }
    let set = create_sigset(&wanted).map_err(|error| io::Error::other(error.to_string()))?;
    // SAFETY: the pointer is to a live signal set.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd has just made the descriptor, and nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn signalled(signals: &mut File) -> bool {
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    signals.read_exact(&mut info).is_ok()
}
