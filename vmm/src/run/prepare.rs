//! All that is done before the first byte is read that a guest, or whoever made its
//! image, wrote: everything is opened and the machine built, and then the process
//! confines itself. Only then is the kernel looked at. The order is drawn in `run`.

#![allow(unsafe_code, reason = "signalfd(2)")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use vmm_sys_util::signal::{block_signal, create_sigset};

use super::files::{Made, PidFile, open_file, open_to_write, resolved};
use super::take_over::TakeOver;
use super::terminal::Terminal;
use super::{Process, Unbuilt};
use crate::arch::boot::Payload;
use crate::config::{self, Description};
use crate::control::Server;
use crate::gdb::Debugger;
use crate::jail;
use crate::machine::{self, Built, Firmware, Origin, Parts, Software, Taps, VcpuCount, profiles};
use crate::serial::{Console, Output, Serial, StandardOutput};
use crate::snapshot::Source;
use crate::vcpu::Trace;

impl Process {
    /// Opens and builds everything.
    pub(super) fn prepare(
        description: &Description,
        taps: Taps,
        began_ns: u64,
        daemon: Option<&jail::Parent>,
    ) -> Result<Self, Unbuilt> {
        let mut made = Made::default();
        let pid = daemon.map_or_else(std::process::id, jail::Parent::pid);
        let places = Places::of(description)?;
        // First: the log, for one, is not written to there once this is answered.
        let mut taking_over = None;
        let mut inherited = None;
        if let Some(control) = &description.take_over {
            let (taking, all) = TakeOver::begin(control)?;
            (taking_over, inherited) = (Some(taking), Some(all));
        }
        let mut adopted = |flag, path: &PathBuf| taking_over.as_mut()?.socket(flag, path);
        let theirs = inherited
            .as_mut()
            .map(|all| std::mem::take(&mut all.software));
        let payload = software(description, theirs.unwrap_or_default())?;
        let origin = match (inherited, &description.restore) {
            (Some(inherited), _) => Origin::Process(inherited),
            (None, Some(folder)) => Source::open(folder)
                .map(Origin::Snapshot)
                .map_err(|refused| machine::Error::Restore(refused.within(folder.display())))?,
            (None, None) => Origin::PowerOn,
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
        let exit_trace = match &description.exit_trace {
            None => None,
            Some(trace) => {
                let mut options = OpenOptions::new();
                options.write(true).create(true).truncate(true).mode(0o600);
                let file = made.open(&trace.path, &options);
                let file = file
                    .map_err(|error| format!("--exit-trace {}: {error}", trace.path.display()))?;
                Some(Trace::new(file, trace.exits))
            }
        };
        // Before the jail, which has no way to it.
        let stdout =
            (description.serial_log.is_none() && !description.daemonize).then(StandardOutput::open);
        let server = match &places.socket {
            Some(path) => Some(match adopted("--socket", path) {
                Some(listener) => Server::new(listener),
                None => Server::bind(path)?,
            }),
            None => None,
        };
        // Before the first thread is made, since threads inherit the mask.
        let signals = signals().map_err(|error| format!("signals: {error}"))?;
        let serial = Serial::new(output).map_err(|error| format!("serial port: {error}"))?;
        let console = match &places.console_socket {
            Some(path) => Some(match adopted("--console-socket", path) {
                Some(listener) => Console::new(listener, &serial)?,
                None => Console::bind(path, &serial)?,
            }),
            None => None,
        };
        let gdb = match &places.gdb {
            Some(path) => Some(match adopted("--gdb", path) {
                Some(listener) => Debugger::new(listener),
                None => Debugger::bind(path)?,
            }),
            None => None,
        };
        let built = Built::new(Parts {
            id: description.id.clone(),
            vcpus: VcpuCount {
                first: description.vcpus,
                most: description.most_vcpus,
            },
            memory_bytes: description.memory_bytes,
            memory: description.memory,
            pluggable: description.pluggable,
            payload,
            identity: description.identity.clone(),
            serial,
            devices: places.devices,
            last_slot: description.last_slot,
            taps,
            template: description.template,
            origin,
            exit_trace,
            began_ns,
            pid,
        })?;

        let pid_file = match &places.pid_file {
            Some(path) => Some(
                PidFile::open(path, pid, &mut made)
                    .map_err(|error| format!("--pid-file {}: {error}", path.display()))?,
            ),
            None => None,
        };
        if description.uid.is_some() || description.gid.is_some() {
            let listeners = [
                ("--socket", server.as_ref().map(Server::listener)),
                ("--console-socket", console.as_ref().map(Console::listener)),
                ("--gdb", gdb.as_ref().map(Debugger::listener)),
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
        let (uid, gid) = (description.uid, description.gid);
        let confinement = match &description.jail {
            Some(policy) => jail::enter(&places.folders, uid, gid, policy, profiles(), daemon)?,
            None => jail::confine_outside(uid, gid)?,
        };
        let machine = built.start(&confinement)?;
        if let Some(path) = &places.exit_file {
            jail::may_write_beside(path)
                .map_err(|error| format!("--exit-file {}: {error}", path.display()))?;
        }
        made.keep();
        let terminal = stdout.map(Terminal::new);
        Ok(Self {
            machine,
            server,
            signals,
            terminal,
            console,
            gdb,
            exit_file: places.exit_file,
            pid_file,
            ending: None,
            saving_for: None,
            waiting: Vec::new(),
            taking_over,
            leaving: None,
            handing_over: None,
        })
    }
}

/// Opens what the machine boots; of one that is taken over, if the command line doesn't say,
/// it is what came along.
fn software(description: &Description, inherited: Vec<File>) -> Result<Software, String> {
    if let Some(firmware) = &description.firmware {
        let code = open_file("--firmware", &firmware.code)?;
        let variables = match &firmware.variables {
            Some(path) => Some((open_to_write("--firmware: vars", path)?, &**path)),
            None => None,
        };
        return Ok(Software::Firmware(Firmware::open(code, variables)?));
    }
    let (kernel, initrd) = match &description.kernel {
        Some(kernel) => {
            let initrd = description.initrd.as_deref();
            let initrd = initrd.map(|path| open_file("--initrd", path)).transpose()?;
            (open_file("--kernel", kernel)?, initrd)
        }
        None => {
            let mut files = inherited.into_iter();
            let kernel = files.next();
            let kernel = kernel.ok_or("--kernel: there is none, and none was handed over")?;
            (kernel, files.next())
        }
    };
    Ok(Software::Kernel(Payload {
        kernel,
        initrd,
        cmdline: description.cmdline.clone(),
    }))
}

/// Every path that is made or written, as the jail will know it.
struct Places {
    exit_file: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    socket: Option<PathBuf>,
    console_socket: Option<PathBuf>,
    gdb: Option<PathBuf>,
    devices: Vec<config::Device>,
    /// The folders that stay in reach; those that lie in another one come after it.
    folders: Vec<PathBuf>,
}

impl Places {
    fn of(description: &Description) -> Result<Self, String> {
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
        let gdb = resolved("--gdb", description.gdb.as_deref())?;
        let sockets = devices.iter_mut().filter_map(config::Device::socket);
        let mut folders: Vec<PathBuf> = [&exit_file, &pid_file, &socket, &console_socket, &gdb]
            .into_iter()
            .flatten()
            .chain(sockets.map(|(_, path)| &*path))
            .filter_map(|file| file.parent().map(Path::to_owned))
            .collect();
        for folder in &description.allow {
            let fail = |error| format!("--allow {}: {error}", folder.display());
            folders.push(folder.canonicalize().map_err(fail)?);
        }
        folders.sort();
        folders.dedup();
        Ok(Self {
            exit_file,
            pid_file,
            socket,
            console_socket,
            gdb,
            devices,
            folders,
        })
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
