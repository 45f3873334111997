//! The life of the process: open everything, build the machine, give up what is
//! not needed any more, then one loop over signals, vCPU reports, the control
//! socket and the console, until there is a reason to end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hearth_vmm_api::Exit;
use vmm_sys_util::signal::{block_signal, create_sigset};

use crate::acpi::registers::Request;
use crate::arch::x86_64::boot::Payload;
use crate::config::{self, Description, Refusal};
use crate::control::{Answer, Command, Server};
use crate::jail;
use crate::machine::{self, Extras, Machine, Parts, Taps};
use crate::serial::{Output, RawTerminal, Serial};
use crate::vcpu::Report;
use crate::virtio::vsock;

/// Exit status for a machine that crashed.
const STATUS_CRASHED: u8 = 1;
/// Exit status for a wrong command line, and for what a machine can't be built of.
const STATUS_WRONG: u8 = 2;

/// Runs the program.
pub fn main() -> ExitCode {
    let description = match config::parse(std::env::args_os()) {
        Ok(description) => description,
        Err(Refusal::Information(text)) => {
            print_text(&text);
            return ExitCode::SUCCESS;
        }
        Err(Refusal::Mistake(line)) => return wrong(&line),
    };
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
    let mut process = match Process::prepare(&description, taps) {
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
    if let Some(Err(error)) = parent.map(jail::Parent::ready) {
        process.ending = Some(Exit::Crashed {
            detail: format!("could not become a daemon: {error}"),
        });
    }
    let exit = process.serve();
    process.end(&exit)
}

/// Takes charge of the taps that the caller left open for us.
fn inherited_taps(description: &Description) -> Result<Taps, String> {
    let mut taps = Taps::new();
    for nic in &description.nics {
        if let config::Tap::Fd(fd) = nic.tap {
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

/// Files made on the way, removed again unless kept.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    /// Makes a file, or goes on with one that is there.
    fn open(&mut self, path: &Path, options: &OpenOptions) -> io::Result<File> {
        let is_new = !path.exists();
        let file = options.open(path)?;
        if is_new {
            self.0.push(path.to_owned());
        }
        Ok(file)
    }

    fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            // Best effort: an error is on its way out already.
            let _ = fs::remove_file(path);
        }
    }
}

struct Process {
    machine: Machine,
    server: Option<Server>,
    signals: File,
    console: Option<Console>,
    exit_file: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    ending: Option<Exit>,
}

impl Process {
    /// Opens and builds everything.
    fn prepare(description: &Description, taps: Taps) -> Result<Self, String> {
        let mut made = Made::default();
        let exit_file = resolved("--exit-file", description.exit_file.as_deref())?;
        let pid_file = resolved("--pid-file", description.pid_file.as_deref())?;
        let socket = resolved("--socket", description.socket.as_deref())?;
        let vsock = match &description.vsock {
            Some(options) => resolved("--vsock", Some(&options.path))?.map(|path| vsock::Options {
                cid: options.cid,
                path,
            }),
            None => None,
        };
        let mut folders: Vec<PathBuf> = [&exit_file, &pid_file, &socket]
            .into_iter()
            .flatten()
            .chain(vsock.as_ref().map(|options| &options.path))
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
        let mut machine = Machine::build(Parts {
            id: description.id.clone(),
            vcpus: description.vcpus,
            memory_bytes: description.memory_bytes,
            payload,
            identity: description.identity.clone(),
            serial,
            disks: description.disks.clone(),
            nics: description.nics.clone(),
            extras: Extras {
                balloon: description.balloon,
                vsock: vsock.clone(),
            },
            taps,
        })
        .map_err(|error| error.to_string())?;

        if let Some(path) = &pid_file {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o644);
            made.open(path, &options)
                .and_then(|mut file| {
                    io::Write::write_all(&mut file, format!("{}\n", std::process::id()).as_bytes())
                })
                .map_err(|error| format!("--pid-file {}: {error}", path.display()))?;
        }
        if let Some(server) = &server
            && (description.uid.is_some() || description.gid.is_some())
        {
            server
                .chown(description.uid, description.gid)
                .map_err(|error| format!("--socket: {error}"))?;
        }
        if description.daemonize {
            // A daemon must not keep a file system from being unmounted.
            std::env::set_current_dir("/").map_err(|error| error.to_string())?;
        }
        let mut walls = Vec::new();
        if description.jail {
            walls = jail::enter(&folders, description.uid, description.gid)?;
        } else {
            jail::drop_privileges(description.uid, description.gid)
                .map_err(|error| format!("--uid, --gid: {error}"))?;
        }
        machine.start().map_err(|error| error.to_string())?;
        if description.jail {
            walls.push(jail::confine_process()?);
        } else {
            jail::forbid_system_calls()?;
        }
        machine.set_jail(walls);
        if let Some(path) = &exit_file {
            jail::may_write_beside(path)
                .map_err(|error| format!("--exit-file {}: {error}", path.display()))?;
        }
        made.keep();
        let console =
            (description.serial_log.is_none() && !description.daemonize).then(Console::new);
        Ok(Self {
            machine,
            server,
            signals,
            console,
            exit_file,
            pid_file,
            ending: None,
        })
    }

    /// Serves until there is a reason to end.
    fn serve(&mut self) -> Exit {
        loop {
            if let Some(exit) = self.ending.take() {
                return exit;
            }
            self.wait();
            if signalled(&mut self.signals) {
                self.ending = Some(Exit::Stopped);
            }
            self.take_reports();
            if let Some(console) = &mut self.console
                && console.progress(self.machine.serial())
            {
                self.ending = Some(Exit::Stopped);
            }
            if let Some(server) = &mut self.server {
                let (machine, ending) = (&mut self.machine, &mut self.ending);
                server
                    .progress(|command, descriptor| perform(machine, ending, command, descriptor));
            }
        }
    }

    /// Waits until any of the descriptors has something.
    fn wait(&self) {
        let interest = |fd, events| libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        let mut fds = vec![
            interest(self.signals.as_raw_fd(), libc::POLLIN),
            interest(self.machine.bell().as_raw_fd(), libc::POLLIN),
        ];
        if let Some(console) = &self.console {
            let serial = self.machine.serial();
            if console.wants_input(serial) {
                fds.push(interest(io::stdin().as_raw_fd(), libc::POLLIN));
            } else if console.open {
                fds.push(interest(serial.input_read().as_raw_fd(), libc::POLLIN));
            }
        }
        if let Some(server) = &self.server {
            fds.extend(
                server.interests().into_iter().map(|(fd, write)| {
                    interest(fd, if write { libc::POLLOUT } else { libc::POLLIN })
                }),
            );
        }
        // SAFETY: the pointer and the count are those of a live vector. An error
        // can only be EINTR, and then looking round does no harm.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
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
                            detail: format!("the machine can't be reset: {error}"),
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
    fn end(self, exit: &Exit) -> ExitCode {
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

const NO_BALLOON: &str = "the machine was started without --balloon";

/// Does what a client of the control socket asks for.
fn perform(
    machine: &mut Machine,
    ending: &mut Option<Exit>,
    command: Command,
    descriptor: Option<OwnedFd>,
) -> Answer {
    match command {
        Command::Describe => Answer::value(&machine.describe()),
        Command::Metrics => Answer::value(&machine.metrics()),
        Command::PowerButton => match machine.press_power_button() {
            Ok(()) => Answer::done(),
            Err(error) => Answer::error(500, &error.to_string()),
        },
        Command::Reboot(reboot) => match machine.ask_to_reboot(reboot.resets) {
            Ok(true) => Answer::done(),
            Ok(false) => Answer::error(409, "the machine was reset since"),
            Err(error) => Answer::error(500, &error.to_string()),
        },
        Command::Pause => {
            machine.pause();
            Answer::done()
        }
        Command::Resume => {
            machine.resume();
            Answer::done()
        }
        Command::Reset => match machine.reset() {
            Ok(()) => Answer::done(),
            Err(error) => {
                *ending = Some(Exit::Crashed {
                    detail: format!("the machine can't be reset: {error}"),
                });
                Answer::error(500, &error.to_string())
            }
        },
        Command::AddDisk(new) => {
            let disk = config::Disk::new(new.id, new.path, new.serial, new.read_only);
            added(disk, |disk| machine.add_disk(&disk, descriptor))
        }
        Command::AddNic(new) => {
            let tap = config::Tap::Name(new.tap);
            let nic = config::Nic::new(machine.id(), new.id, tap, new.mac.as_deref(), new.mtu);
            added(nic, |nic| machine.add_nic(&nic, descriptor))
        }
        Command::ResizeDisk(id) => match machine.resize_disk(&id) {
            Ok(Some(disk)) => Answer::value(&disk),
            Ok(None) => Answer::error(404, &format!("there is no device {id:?}")),
            Err(error) => Answer::error(500, &error.to_string()),
        },
        Command::Balloon => match machine.balloon() {
            Some(state) => Answer::value(&state),
            None => Answer::error(404, NO_BALLOON),
        },
        Command::SetBalloon(wanted) => {
            if wanted.target_bytes >= machine.memory_bytes() {
                return Answer::error(400, "target_bytes: the guest has not that much memory");
            }
            match machine.set_balloon(wanted.target_bytes) {
                true => Answer::asked(),
                false => Answer::error(404, NO_BALLOON),
            }
        }
        Command::RemoveDisk(id) => removed(&id, machine.ask_back_disk(&id)),
        Command::RemoveNic(id) => removed(&id, machine.ask_back_nic(&id)),
        Command::Stop => {
            *ending = Some(Exit::Stopped);
            Answer::done()
        }
    }
}

/// Adds a device that was described rightly.
fn added<D, T: serde::Serialize>(
    described: Result<D, String>,
    add: impl FnOnce(D) -> Result<T, machine::Error>,
) -> Answer {
    match described.map(add) {
        Err(mistake) => Answer::error(400, &mistake),
        Ok(Err(error)) => Answer::error(409, &error.to_string()),
        Ok(Ok(device)) => Answer::value(&device),
    }
}

fn removed(id: &str, asked: Result<bool, machine::Error>) -> Answer {
    match asked {
        Ok(true) => Answer::asked(),
        Ok(false) => Answer::error(404, &format!("there is no device {id:?}")),
        Err(error) => Answer::error(500, &error.to_string()),
    }
}

/// A file's path with its folder's links followed, as the jail will know it.
fn resolved(flag: &str, path: Option<&Path>) -> Result<Option<PathBuf>, String> {
    let Some(path) = path else { return Ok(None) };
    let fail = |error: io::Error| format!("{flag} {}: {error}", path.display());
    let absolute = std::path::absolute(path).map_err(fail)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(folder), Some(name)) => Ok(Some(folder.canonicalize().map_err(fail)?.join(name))),
        _ => Err(format!("{flag} {}: is no file", path.display())),
    }
}

fn open_file(flag: &str, path: &Path) -> Result<File, String> {
    let fail = |error: io::Error| format!("{flag} {}: {error}", path.display());
    let file = File::open(path).map_err(fail)?;
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(format!("{flag} {}: not a regular file", path.display()));
    }
    Ok(file)
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

/// Writes the exit file in one step: a reader finds all of it or none.
fn write_exit(path: &Path, exit: &Exit) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let temporary = PathBuf::from(name);
    fs::write(&temporary, serde_json::to_vec(exit)?)?;
    fs::rename(&temporary, path)
}

/// The terminal, as the serial port's other end. Ctrl-A x ends the machine,
/// Ctrl-A Ctrl-A is one Ctrl-A.
struct Console {
    open: bool,
    escaped: bool,
    _terminal: Option<RawTerminal>,
}

const CTRL_A: u8 = 1;

impl Console {
    fn new() -> Self {
        Self {
            open: true,
            escaped: false,
            _terminal: RawTerminal::enter(),
        }
    }

    fn wants_input(&self, serial: &Serial) -> bool {
        self.open && serial.input_capacity() > 0
    }

    /// Moves input to the guest. True: the user wants to end.
    fn progress(&mut self, serial: &Serial) -> bool {
        let _ = serial.input_read().read();
        if !self.wants_input(serial) || !readable(io::stdin().as_raw_fd()) {
            return false;
        }
        let mut buffer = [0; 64];
        let room = serial.input_capacity().min(buffer.len());
        // SAFETY: the pointer and the length are those of a part of a live buffer.
        // Not through io::stdin, whose buffer would hide bytes from poll.
        let count = unsafe { libc::read(0, buffer.as_mut_ptr().cast(), room) };
        let Ok(count) = usize::try_from(count) else {
            self.open = false;
            return false;
        };
        if count == 0 {
            self.open = false;
        }
        let (keys, end) = self.unescape(&buffer[..count]);
        serial.input(&keys);
        end
    }

    fn unescape(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut keys = Vec::with_capacity(input.len());
        for byte in input {
            match (std::mem::take(&mut self.escaped), *byte) {
                (false, CTRL_A) => self.escaped = true,
                (true, b'x') => return (keys, true),
                (_, byte) => keys.push(byte),
            }
        }
        (keys, false)
    }
}

fn readable(fd: i32) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the pointer is to one live pollfd.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_file_is_json_and_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("exit.json");
        let exit = Exit::Crashed {
            detail: "triple fault".into(),
        };
        write_exit(&path, &exit).expect("written");
        let read: Exit = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
        assert_eq!(read, exit);
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1);
    }

    #[test]
    fn ctrl_a_x_ends() {
        let mut console = Console {
            open: true,
            escaped: false,
            _terminal: None,
        };
        assert_eq!(console.unescape(b"ab\x01"), (b"ab".to_vec(), false));
        assert_eq!(console.unescape(b"\x01c"), (b"\x01c".to_vec(), false));
        assert_eq!(console.unescape(b"d\x01x"), (b"d".to_vec(), true));
    }
}
