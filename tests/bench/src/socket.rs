//! A client of a VMM's control socket: HTTP/1.1 over a Unix socket, one request a
//! connection.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A request whose answer is yet to be read.
pub(crate) struct Asked {
    stream: UnixStream,
    what: String,
}

/// Sends a request; `body` is JSON or nothing.
pub(crate) fn ask(stream: UnixStream, method: &str, path: &str, body: &str) -> Result<Asked> {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: vmm\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    (&stream).write_all(request.as_bytes())?;
    Ok(Asked {
        stream,
        what: format!("{method} {path}"),
    })
}

impl Asked {
    /// The answer's body.
    pub(crate) fn answer(self) -> Result<String> {
        let mut reader = BufReader::new(self.stream);
        let mut status = String::new();
        reader.read_line(&mut status)?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                bail!("{}: cut short", self.what);
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        // One that says no length with an empty answer says so.
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        if status
            .split(' ')
            .nth(1)
            .is_none_or(|code| !code.starts_with('2'))
        {
            bail!("{}: {} {body}", self.what, status.trim_end());
        }
        Ok(body)
    }
}

/// A request and its answer.
pub(crate) fn call(socket: &Path, method: &str, path: &str, body: &str) -> Result<String> {
    let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    ask(stream, method, path, body)?.answer()
}

/// Waits for a socket that a process is about to make, without looking again and again:
/// on the lab's one processor that would cost the process time.
pub(crate) struct Awaited {
    socket: PathBuf,
    notes: File,
}

impl Awaited {
    /// Nothing may be there yet.
    pub(crate) fn new(socket: &Path) -> Result<Self> {
        let folder = socket.parent().context("a socket in a folder")?;
        let mut name = folder.as_os_str().as_bytes().to_vec();
        name.push(0);
        // SAFETY: takes a plain number.
        let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error()).context("inotify");
        }
        // SAFETY: it was just opened, and nobody else has it.
        let notes = unsafe { File::from_raw_fd(fd) };
        let path = name.as_ptr().cast();
        // SAFETY: the path ends with a NUL and lives through the call.
        if unsafe { libc::inotify_add_watch(notes.as_raw_fd(), path, libc::IN_CREATE) } < 0 {
            return Err(std::io::Error::last_os_error()).context("inotify");
        }
        Ok(Self {
            socket: socket.to_owned(),
            notes,
        })
    }

    /// Connects as soon as it is served, or fails after `until`.
    pub(crate) fn connect(mut self, until: Instant) -> Result<UnixStream> {
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => return Ok(stream),
                Err(_) if Instant::now() > until => bail!("{} never came", self.socket.display()),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let mut poll = libc::pollfd {
                        fd: self.notes.as_raw_fd(),
                        events: libc::POLLIN,
                        revents: 0,
                    };
                    // SAFETY: the pointer is to one live structure.
                    if unsafe { libc::poll(&raw mut poll, 1, 1000) } > 0 {
                        let _ = self.notes.read(&mut [0; 4096])?;
                    }
                }
                // It is there, and not listened at yet.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    std::thread::yield_now();
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;
    use std::time::Duration;

    fn serve(listener: &UnixListener, answer: &str) -> String {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(&stream);
        let mut first = String::new();
        reader.read_line(&mut first).unwrap();
        (&stream).write_all(answer.as_bytes()).unwrap();
        first
    }

    #[test]
    fn an_answer_ends_where_its_length_says() {
        let folder = std::env::temp_dir().join(format!("bench-socket-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("api.sock");
        let _ = std::fs::remove_file(&socket);
        let awaited = Awaited::new(&socket).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        let waits = thread::spawn(move || awaited.connect(until));
        let listener = UnixListener::bind(&socket).unwrap();
        let stream = waits.join().unwrap().unwrap();
        let asked = ask(stream, "GET", "/v1/machine", "").unwrap();
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}more";
        assert_eq!(serve(&listener, answer), "GET /v1/machine HTTP/1.1\r\n");
        assert_eq!(asked.answer().unwrap(), "{}");

        let stream = UnixStream::connect(&socket).unwrap();
        let asked = ask(stream, "PUT", "/v1/pause", "").unwrap();
        serve(&listener, "HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(asked.answer().unwrap(), "");

        let stream = UnixStream::connect(&socket).unwrap();
        let asked = ask(stream, "PUT", "/v1/pause", "").unwrap();
        serve(
            &listener,
            "HTTP/1.1 409 Conflict\r\nContent-Length: 3\r\n\r\nwhy",
        );
        let error = asked.answer().unwrap_err().to_string();
        assert!(error.ends_with("409 Conflict why"), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
