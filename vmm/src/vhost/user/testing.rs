//! A back end that does what a test wants, and remembers what it was told.

#![allow(clippy::disallowed_methods, reason = "a test may start threads")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use ::vhost::vhost_user::message::{
    BackendReq, FrontendReq, VhostUserProtocolFeatures as Protocol,
};

use super::wire::{HEADER, Header, Wire};
use super::{CONFIG_SIZE, Cancel, F_PROTOCOL_FEATURES};
use crate::epoll::Until;

/// How it behaves.
#[derive(Debug, Clone)]
pub(crate) struct Manners {
    pub(crate) features: u64,
    pub(crate) protocol: Protocol,
    pub(crate) queues: u64,
    pub(crate) config: [u8; CONFIG_SIZE],
    /// What it never answers.
    pub(crate) hangs_at: Option<FrontendReq>,
    /// What it refuses.
    pub(crate) refuses: Option<FrontendReq>,
    /// What it answers with nonsense.
    pub(crate) garbles: Option<FrontendReq>,
}

impl Default for Manners {
    fn default() -> Self {
        let mut config = [0; CONFIG_SIZE];
        config[0] = 8;
        Self {
            features: 1 << 32 | F_PROTOCOL_FEATURES | 1 << 9 | 1 << 12,
            protocol: Protocol::all(),
            queues: 2,
            config,
            hangs_at: None,
            refuses: None,
            garbles: None,
        }
    }
}

/// A message that it got.
pub(crate) struct Told {
    pub(crate) request: u32,
    pub(crate) body: Vec<u8>,
    pub(crate) files: Vec<OwnedFd>,
}

#[derive(Default)]
struct Memory {
    manners: Manners,
    told: Vec<Told>,
    connections: usize,
    /// Where it asks for something.
    channel: Option<OwnedFd>,
    current: Option<UnixStream>,
    ends: bool,
}

/// It.
pub(crate) struct FakeBackEnd {
    memory: Arc<(Mutex<Memory>, Condvar)>,
    path: PathBuf,
    folder: tempfile::TempDir,
    server: Option<JoinHandle<()>>,
}

impl FakeBackEnd {
    pub(crate) fn new(manners: Manners) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let memory = Memory {
            manners,
            ..Memory::default()
        };
        let mut fake = Self {
            memory: Arc::new((Mutex::new(memory), Condvar::new())),
            path,
            folder,
            server: None,
        };
        fake.listen();
        fake
    }

    fn listen(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let listener = UnixListener::bind(&self.path).unwrap();
        let memory = Arc::clone(&self.memory);
        self.server = Some(std::thread::spawn(move || serve(&listener, &memory)));
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.0.lock().unwrap()
    }

    /// Behaves differently from now on.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Manners)) {
        change(&mut self.lock().manners);
    }

    /// Ends the connection, and listens on.
    pub(crate) fn drop_connection(&self) {
        if let Some(current) = self.lock().current.take() {
            let _ = current.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Waits for so many messages of a kind, all told; returns what the last one said.
    pub(crate) fn wait(&self, request: FrontendReq, count: usize) -> Vec<u8> {
        let is_it = |told: &&Told| told.request == request as u32;
        let few = |memory: &mut Memory| memory.told.iter().filter(is_it).count() < count;
        let waiting = self.lock();
        let long = Duration::from_secs(30);
        let (memory, late) = self
            .memory
            .1
            .wait_timeout_while(waiting, long, few)
            .unwrap();
        assert!(!late.timed_out(), "no {count} of {request:?}");
        let mut told = memory.told.iter().rev();
        told.find(is_it).unwrap().body.clone()
    }

    /// How many messages of a kind there were.
    pub(crate) fn count(&self, request: FrontendReq) -> usize {
        let memory = self.lock();
        let told = memory.told.iter();
        told.filter(|told| told.request == request as u32).count()
    }

    /// The last descriptor that came with a kind of message.
    pub(crate) fn file(&self, request: FrontendReq) -> OwnedFd {
        let memory = self.lock();
        let mut told = memory.told.iter().rev();
        let told = told.find(|told| told.request == request as u32).unwrap();
        told.files[0].try_clone().unwrap()
    }

    /// Says that the configuration is another one.
    pub(crate) fn configure(&self, config: [u8; CONFIG_SIZE]) {
        let mut memory = self.lock();
        memory.manners.config = config;
        let header = Header::request(BackendReq::CONFIG_CHANGE_MSG as u32, false, 0);
        let channel = memory.channel.as_ref().expect("it has a channel");
        rustix::io::write(channel, &header.to_bytes()).unwrap();
    }
}

impl Drop for FakeBackEnd {
    fn drop(&mut self) {
        self.lock().ends = true;
        self.drop_connection();
        let _ = UnixStream::connect(&self.path);
        let _ = self.server.take().map(JoinHandle::join);
        let _ = &self.folder;
    }
}

fn serve(listener: &UnixListener, memory: &Arc<(Mutex<Memory>, Condvar)>) {
    loop {
        let (stream, _) = listener.accept().unwrap();
        {
            let mut memory = memory.0.lock().unwrap();
            if memory.ends {
                return;
            }
            memory.connections += 1;
            memory.current = Some(stream.try_clone().unwrap());
        }
        let wire = Wire::new(stream, Cancel::new().unwrap()).unwrap();
        while answer(&wire, memory).is_ok() {}
        // With the last of its descriptors, its side is closed.
        memory.0.lock().unwrap().current = None;
    }
}

fn answer(wire: &Wire, memory: &Arc<(Mutex<Memory>, Condvar)>) -> io::Result<()> {
    let (mut header, mut files) = ([0; HEADER], Vec::new());
    wire.receive_all(&mut header, &mut files, Until::Event)?;
    let header = Header::parse(header)?;
    let mut body = vec![0; header.size];
    wire.receive_all(&mut body, &mut files, Until::Event)?;
    let mut state = memory.0.lock().unwrap();
    if header.request == FrontendReq::SET_BACKEND_REQ_FD as u32 {
        state.channel = files.pop();
    }
    let manners = state.manners.clone();
    let told = Told {
        request: header.request,
        body: body.clone(),
        files,
    };
    state.told.push(told);
    drop(state);
    memory.1.notify_all();
    let is = |request: FrontendReq| header.request == request as u32;
    if manners.hangs_at.is_some_and(is) {
        return Ok(());
    }
    let number = |value: u64| value.to_ne_bytes().to_vec();
    let file = tempfile::tempfile()?;
    let mut sent = Vec::new();
    let mut answer = if is(FrontendReq::GET_FEATURES) {
        number(manners.features)
    } else if is(FrontendReq::GET_PROTOCOL_FEATURES) {
        number(manners.protocol.bits())
    } else if is(FrontendReq::GET_QUEUE_NUM) {
        number(manners.queues)
    } else if is(FrontendReq::GET_CONFIG) {
        [&body[..12], &manners.config[..]].concat()
    } else if is(FrontendReq::GET_VRING_BASE) || is(FrontendReq::SET_LOG_BASE) {
        body[..8].to_vec()
    } else if is(FrontendReq::GET_INFLIGHT_FD) {
        sent.push(file.as_fd());
        body[..8].copy_from_slice(&4096u64.to_ne_bytes());
        body
    } else if header.wants_reply() {
        number(manners.refuses.is_some_and(is).into())
    } else {
        return Ok(());
    };
    if manners.garbles.is_some_and(is) {
        answer.truncate(3);
    }
    let header = Header::reply(header.request, answer.len());
    wire.send(header, &answer, &sent, Until::Event)
}
