//! The control socket: HTTP/1.1 and JSON over a Unix socket.
//!
//! One thread, no runtime: the process's main loop polls the descriptors and calls
//! in here. A client that is slow, silent or hostile costs a bounded buffer and
//! nobody's time; past [`MAX_CONNECTIONS`] the oldest one is dropped.

pub mod http;
mod routes;

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use hearth_vmm_api::MAX_PAIRS;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::listener::Listener;

pub use routes::{Answer, Command, route};

/// As many clients at once.
const MAX_CONNECTIONS: usize = 16;
/// The largest request, head and body, in bytes. The bodies are small JSON objects.
const MAX_REQUEST: usize = 64 << 10;
/// As many descriptors are taken with one request, one more than any may have; the
/// kernel drops the rest.
const MAX_DESCRIPTORS: usize = 2 * MAX_PAIRS + 1;

/// The listening socket and who is connected.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    connections: Vec<Connection>,
    /// How many have connected.
    count: u64,
}

/// A request that may be answered later, and no other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

#[derive(Debug)]
struct Connection {
    /// Of its one request.
    ticket: Ticket,
    stream: UnixStream,
    received: Vec<u8>,
    /// What came along with the bytes (SCM_RIGHTS).
    descriptors: Vec<OwnedFd>,
    answer: Reply,
}

/// Where the answer to a connection's one request stands.
#[derive(Debug)]
enum Reply {
    /// The request isn't whole.
    Unasked,
    /// It comes with the end of what was begun.
    Later,
    /// The answer, and how much of it is out.
    Now(Vec<u8>, usize),
}

impl Server {
    /// Listens at `path`.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub fn bind(path: &Path) -> Result<Self, String> {
        Listener::bind("--socket", path).map(Self::new)
    }

    /// Serves who connects here.
    #[must_use]
    pub fn new(listener: Listener) -> Self {
        Self {
            listener,
            connections: Vec::new(),
            count: 0,
        }
    }

    /// The listening socket.
    #[must_use]
    pub fn listener(&self) -> &Listener {
        &self.listener
    }

    /// What to poll: the descriptor, and whether it waits to write.
    #[must_use]
    pub fn interests(&self) -> Vec<(RawFd, bool)> {
        let listener = (self.listener.as_raw_fd(), false);
        let connections = self
            .connections
            .iter()
            .filter(|one| !matches!(one.answer, Reply::Later))
            .map(|one| (one.stream.as_raw_fd(), matches!(one.answer, Reply::Now(..))));
        std::iter::once(listener).chain(connections).collect()
    }

    /// Answers the request of this ticket, which had none yet, if who asked is still there.
    pub fn answer_late(&mut self, ticket: Ticket, answer: &Answer) {
        self.connections.retain_mut(|one| match one.answer {
            Reply::Later if one.ticket == ticket => {
                one.answer = Reply::Now(http::render(answer), 0);
                one.send()
            }
            _ => true,
        });
    }

    /// Does what can be done without waiting. `handle` answers one request, which
    /// may have come with open files; none: [`Self::answer_late`] does, by its ticket.
    pub fn progress(
        &mut self,
        mut handle: impl FnMut(Command, Vec<OwnedFd>, Ticket) -> Option<Answer>,
    ) {
        let connections = &mut self.connections;
        while let Some(stream) = self.listener.accept(|| drop_oldest(connections)) {
            // Those that wait for an answer stay, and may be as many by themselves.
            if connections.len() >= MAX_CONNECTIONS {
                drop_oldest(connections);
            }
            self.count += 1;
            connections.push(Connection {
                ticket: Ticket(self.count),
                stream,
                received: Vec::new(),
                descriptors: Vec::new(),
                answer: Reply::Unasked,
            });
        }
        self.connections
            .retain_mut(|connection| connection.progress(&mut handle));
    }
}

/// Drops who has been there longest and waits for no answer; false: there is nobody.
fn drop_oldest(connections: &mut Vec<Connection>) -> bool {
    let mut all = connections.iter();
    let oldest = all.position(|one| !matches!(one.answer, Reply::Later));
    oldest.map(|place| connections.remove(place)).is_some()
}

impl Connection {
    /// False: done with it.
    fn progress(
        &mut self,
        handle: &mut impl FnMut(Command, Vec<OwnedFd>, Ticket) -> Option<Answer>,
    ) -> bool {
        if let Reply::Unasked = self.answer {
            match self.receive() {
                Receive::Wait => return true,
                Receive::Gone => return false,
                Receive::Answer(answer) => self.answer = Reply::Now(answer, 0),
                Receive::Request(request) => {
                    let answer = match route(&request) {
                        Ok(command) => match command.takes_descriptors() {
                            most if self.descriptors.len() <= most => {
                                let descriptors = std::mem::take(&mut self.descriptors);
                                handle(command, descriptors, self.ticket)
                            }
                            0 => Some(Answer::error(400, "this request takes no descriptor")),
                            most => {
                                let wrong = format!("at most {most} descriptors, please");
                                Some(Answer::error(400, &wrong))
                            }
                        },
                        Err(answer) => Some(answer),
                    };
                    self.answer =
                        answer.map_or(Reply::Later, |answer| Reply::Now(http::render(&answer), 0));
                }
            }
        }
        self.send()
    }

    fn receive(&mut self) -> Receive {
        let mut chunk = [0; 4096];
        loop {
            match self.receive_some(&mut chunk) {
                Ok(0) => return Receive::Gone,
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return Receive::Gone,
            }
            if self.received.len() > MAX_REQUEST {
                return Receive::Answer(http::render(&Answer::error(
                    413,
                    "the request is too large",
                )));
            }
            match http::parse(&self.received) {
                http::Parsed::Partial => {}
                http::Parsed::Request(request) => return Receive::Request(request),
                http::Parsed::Bad(why) => {
                    return Receive::Answer(http::render(&Answer::error(400, &why)));
                }
            }
        }
        Receive::Wait
    }

    /// Receives bytes, and the descriptors that came along.
    fn receive_some(&mut self, chunk: &mut [u8]) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let message = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(chunk)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for one in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = one {
                self.descriptors.extend(descriptors);
                // What is too much is closed, and so many are an error anyway.
                self.descriptors.truncate(MAX_DESCRIPTORS);
            }
        }
        Ok(message.bytes)
    }

    fn send(&mut self) -> bool {
        let Reply::Now(bytes, sent) = &mut self.answer else {
            return true;
        };
        while *sent < bytes.len() {
            match self.stream.write(&bytes[*sent..]) {
                Ok(0) => return false,
                Ok(count) => *sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        false
    }
}

enum Receive {
    Wait,
    Gone,
    Request(http::Request),
    Answer(Vec<u8>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::Peers;
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    /// One that these tests may connect to.
    fn bind(path: &Path) -> Server {
        let listener = Listener::bind("--socket", path).expect("binds");
        Server::new(listener.for_peers(Peers::All))
    }

    fn ask(server: &mut Server, path: &Path, request: &str) -> String {
        let mut client = UnixStream::connect(path).expect("connects");
        client.write_all(request.as_bytes()).expect("sends");
        server.progress(|_, _, _| Some(Answer::done()));
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("answers");
        answer
    }

    #[test]
    fn answers_and_hangs_up() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        let mut server = bind(&path);
        assert!(
            ask(
                &mut server,
                &path,
                "PUT /v1/pause HTTP/1.1\r\nHost: x\r\n\r\n"
            )
            .starts_with("HTTP/1.1 204 ")
        );
        assert!(ask(&mut server, &path, "GET /nothing HTTP/1.1\r\n\r\n").contains(" 404 "));
        assert!(ask(&mut server, &path, "GET /v1/pause HTTP/1.1\r\n\r\n").contains(" 405 "));
        assert!(ask(&mut server, &path, "\0\0\0\r\n\r\n").contains(" 400 "));
        assert_eq!(server.interests().len(), 1);
    }

    #[test]
    fn half_a_request_waits() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        let mut server = bind(&path);
        let mut client = UnixStream::connect(&path).expect("connects");
        client.write_all(b"PUT /v1/pause HT").expect("sends");
        server.progress(|_, _, _| unreachable!("half a request"));
        client.write_all(b"TP/1.1\r\n\r\n").expect("sends");
        server.progress(|_, _, _| Some(Answer::done()));
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("answers");
        assert!(answer.contains(" 204 "));
    }

    #[test]
    fn each_late_answer_goes_to_who_asked() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        let mut server = bind(&path);
        let mut tickets = Vec::new();
        let mut clients: Vec<_> = (0..2)
            .map(|_| {
                let mut client = UnixStream::connect(&path).expect("connects");
                let request = b"PUT /v1/pause HTTP/1.1\r\n\r\n";
                client.write_all(request).expect("sends");
                server.progress(|_, _, ticket| {
                    tickets.push(ticket);
                    None
                });
                client
            })
            .collect();
        assert_eq!(server.interests().len(), 1, "nobody is awaited");
        for (client, ticket) in clients.iter_mut().zip(&tickets).rev() {
            let name = format!("of {ticket:?}");
            server.answer_late(*ticket, &Answer::error(409, &name));
            // Once.
            server.answer_late(*ticket, &Answer::done());
            let mut answer = String::new();
            client.read_to_string(&mut answer).expect("answers");
            assert!(
                answer.contains(" 409 ") && answer.contains(&name),
                "{answer}"
            );
        }
    }

    #[test]
    fn many_clients_do_not_pile_up() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        let mut server = bind(&path);
        let _clients: Vec<_> = (0..3 * MAX_CONNECTIONS)
            .map(|_| {
                let client = UnixStream::connect(&path).expect("connects");
                server.progress(|_, _, _| Some(Answer::done()));
                client
            })
            .collect();
        assert_eq!(server.interests().len(), 1 + MAX_CONNECTIONS);
    }

    #[test]
    fn who_waits_for_an_answer_is_kept_and_makes_no_room_for_more() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        let mut server = bind(&path);
        let mut connect = |request: &[u8]| {
            let mut client = UnixStream::connect(&path).expect("connects");
            client.write_all(request).expect("sends");
            server.progress(|_, _, _| None);
            (client, server.connections.len())
        };
        let waiting = [(); 2 * MAX_CONNECTIONS];
        let waiting = waiting.map(|()| connect(b"PUT /v1/pause HTTP/1.1\r\n\r\n"));
        let [.., (_, all)] = &waiting;
        assert_eq!(*all, waiting.len());
        let silent = [(); MAX_CONNECTIONS].map(|()| connect(b""));
        let [.., (_, all)] = &silent;
        assert_eq!(*all, waiting.len() + 1);
    }

    #[test]
    fn a_taken_socket_is_refused_and_a_leftover_replaced() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        let first = Server::bind(&path).expect("binds");
        assert!(
            Server::bind(&path)
                .expect_err("taken")
                .contains("another process")
        );
        drop(first);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).expect("a leftover"));
        Server::bind(&path).expect("replaced");
        std::fs::write(&path, "no socket").expect("write");
        assert!(
            Server::bind(&path)
                .expect_err("a file")
                .contains("another file")
        );
    }

    #[test]
    fn a_descriptor_comes_along() {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        use std::io::IoSlice;
        use std::os::fd::AsFd;

        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        let mut server = bind(&path);
        for (count, target, status) in [
            (1, "POST /v1/disks", "204"),
            (2, "POST /v1/disks", "400"),
            (2, "POST /v1/nics", "204"),
            (1, "PUT /v1/pause", "400"),
        ] {
            let mut client = UnixStream::connect(&path).expect("connects");
            let file = tempfile::tempfile().expect("file");
            let body = if target.starts_with("PUT") {
                ""
            } else {
                match target.ends_with("disks") {
                    true => r#"{"id":"a","path":"b"}"#,
                    false => r#"{"id":"a","tap":"b","queues":2}"#,
                }
            };
            let request = format!(
                "{target} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let descriptors = vec![file.as_fd(); count];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
            let bytes = [IoSlice::new(request.as_bytes())];
            sendmsg(&client, &bytes, &mut ancillary, SendFlags::empty()).expect("sends");
            server.progress(|_, descriptors, _| {
                assert_eq!(descriptors.len(), count);
                Some(Answer::done())
            });
            let mut answer = String::new();
            client.read_to_string(&mut answer).expect("answers");
            assert!(answer.contains(&format!(" {status} ")), "{answer}");
        }
    }
}
