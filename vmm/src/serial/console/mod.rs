//! The console socket: whoever connects is at the guest's serial console.
//!
//! A client gets the newest 64 KiB of output, then what comes, byte for byte; what it
//! sends is typed into the guest. Up to [`MAX_CLIENTS`] are attached at once: all see
//! everything, and all may type, as if round one terminal; one more reads that it is
//! full and is let go. A client that shuts down its sending side goes on reading.
//!
//! Nobody waits for a client. One that reads too slowly misses output, and reads how
//! much; one that types faster than the guest reads has to wait, byte by byte, in its
//! own socket.

#![allow(unsafe_code, reason = "poll(2)")]

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::Serial;
use super::feed::{Feed, will_pass};
use crate::listener::Listener;

/// As many clients at once.
const MAX_CLIENTS: usize = 8;
/// The most bytes that are taken from a client at once: the UART's own buffer.
const TYPED: usize = 64;

const FULL: &[u8] = b"hearth-vmm: as many as there may be are at this console already\r\n";

/// The listening socket and who is attached.
pub struct Console {
    listener: Listener,
    clients: Vec<Client>,
}

struct Client {
    stream: UnixStream,
    feed: Feed,
    /// It may still type.
    types: bool,
}

impl Console {
    /// Listens at `path`, for this user only, and has the port remember its newest
    /// output.
    ///
    /// # Errors
    /// One line: the path is taken, or can't be made, or the log can't be read.
    pub fn bind(path: &Path, serial: &Serial) -> Result<Self, String> {
        Self::new(Listener::bind("--console-socket", path)?, serial)
    }

    /// Serves who connects here, as [`Self::bind`] does.
    ///
    /// # Errors
    /// One line: the log can't be read.
    pub fn new(listener: Listener, serial: &Serial) -> Result<Self, String> {
        serial
            .keep_recent()
            .map_err(|error| format!("--serial-log: {error}"))?;
        Ok(Self {
            listener,
            clients: Vec::new(),
        })
    }

    /// The listening socket.
    #[must_use]
    pub fn listener(&self) -> &Listener {
        &self.listener
    }

    /// What to poll: descriptors, and the events that they wait for. `room`: the
    /// guest takes input.
    pub fn interests(&self, room: bool) -> impl Iterator<Item = (RawFd, libc::c_short)> {
        let clients = self.clients.iter().map(move |client| {
            let mut events = 0;
            if room && client.types {
                events |= libc::POLLIN;
            }
            if client.feed.lags() {
                events |= libc::POLLOUT;
            }
            // That it has gone is reported in any case.
            (client.stream.as_raw_fd(), events)
        });
        std::iter::once((self.listener.as_raw_fd(), libc::POLLIN)).chain(clients)
    }

    /// Does what can be done without waiting.
    pub fn progress(&mut self, serial: &Serial) {
        let clients = &mut self.clients;
        while let Some(mut stream) = self.listener.accept(|| clients.pop().is_some()) {
            if clients.len() == MAX_CLIENTS {
                // It fits an empty socket's buffer.
                let _ = stream.write(FULL);
                continue;
            }
            clients.push(Client {
                stream,
                feed: Feed::new(serial.recent_start()),
                types: true,
            });
        }
        self.clients
            .retain_mut(|client| client.receive(serial) && client.send(serial));
    }
}

impl Client {
    /// Takes what it has typed. False: it has gone.
    fn receive(&mut self, serial: &Serial) -> bool {
        let mut typed = [0; TYPED];
        let room = serial.input_capacity().min(TYPED);
        if self.types && room > 0 {
            match self.stream.read(&mut typed[..room]) {
                Ok(0) => self.types = false,
                Ok(count) => serial.input(&typed[..count]),
                Err(error) if will_pass(&error) => {}
                Err(_) => return false,
            }
        }
        !self.has_gone()
    }

    /// Whether both ways are shut, also while nobody reads.
    fn has_gone(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: self.stream.as_raw_fd(),
            events: 0,
            revents: 0,
        };
        // SAFETY: the pointer is to one live pollfd.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }

    /// Hands it output. False: it has gone.
    fn send(&mut self, serial: &Serial) -> bool {
        let stream = &mut self.stream;
        self.feed.send(serial, |bytes| stream.write(bytes))
    }
}

#[cfg(test)]
mod tests;
