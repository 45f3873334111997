//! DHCP, DNS and IMDS of one VPC. Their sockets are made in the namespace and
//! then served by the process's ordinary tasks; where the resolver asks on, it
//! asks from the host's namespace.

use std::collections::BTreeMap;
use std::io;
use std::net::{
    IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket,
};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use ipnet::Ipv4Net;
use nix::sys::socket::{self, sockopt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::MTU;
use super::netns::Namespace;
use crate::descriptors::{Guests, PerGuest};
use crate::metadata::Facts;
use crate::metadata::Keys;
use crate::metadata::server::{WhoIs, serve};
use crate::model::{Eni, EniId, VpcId};
use crate::network::dns::{self, Verdict, Zone};
use crate::network::plan::rules::{DNS_ADDRESS, IMDS_ADDRESS};
use crate::network::{VpcNet, dhcp};
use crate::store::View;

/// How many descriptors the questions of one instance that wait for an answer
/// from outside may take: one each by UDP, two by TCP.
const QUESTIONS: u32 = 64;
/// How many connections an instance may have with the metadata service.
const IMDS_CONNECTIONS: u32 = 32;
/// How long one of the host's resolvers has to answer.
const RESOLVER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a client may keep a TCP connection for its questions.
const DNS_TCP_LIFE: Duration = Duration::from_secs(10);

/// What the services of every VPC share.
#[derive(Clone)]
pub(super) struct Shared {
    /// The region's name.
    pub(super) region: String,
    /// The pool of public addresses.
    pub(super) pool: Ipv4Net,
    /// The descriptors that guests may hold.
    pub(super) guests: Guests,
    /// What IMDS signs with.
    pub(super) keys: Keys,
    /// The newest view.
    pub(super) views: watch::Receiver<Arc<View>>,
}

struct Dhcp {
    ifindex: u32,
    lease: dhcp::Lease,
    task: AbortHandle,
}

/// The running services of a VPC; they end when this is dropped.
pub(super) struct Services {
    tasks: JoinSet<()>,
    dhcp: BTreeMap<EniId, Dhcp>,
}

impl Services {
    /// Starts DNS and IMDS; their addresses must be there.
    pub(super) async fn start(
        namespace: &Namespace,
        vpc: &VpcNet,
        shared: &Shared,
    ) -> io::Result<Self> {
        let resolver = vpc.resolver();
        let (udp, tcp, imds) = namespace
            .run_async(move || async move {
                let second: Ipv4Addr = DNS_ADDRESS.parse().map_err(io::Error::other)?;
                let mut udp = Vec::new();
                let mut tcp = Vec::new();
                for address in [resolver, second] {
                    udp.push(StdUdpSocket::bind((address, 53))?);
                    tcp.push(StdTcpListener::bind((address, 53))?);
                }
                Ok((udp, tcp, StdTcpListener::bind((IMDS_ADDRESS, 80))?))
            })
            .await?;
        let mut tasks = JoinSet::new();
        let zone = Arc::new(Resolver {
            zone: Zone {
                cidr: vpc.cidr,
                pool: shared.pool,
                region: shared.region.clone(),
            },
            vpc: vpc.id.clone(),
            views: shared.views.clone(),
            limits: shared.guests.each(QUESTIONS),
        });
        for socket in udp {
            socket.set_nonblocking(true)?;
            tasks.spawn(dns_udp(
                Arc::new(UdpSocket::from_std(socket)?),
                Arc::clone(&zone),
            ));
        }
        for listener in tcp {
            listener.set_nonblocking(true)?;
            tasks.spawn(dns_tcp(TcpListener::from_std(listener)?, Arc::clone(&zone)));
        }
        imds.set_nonblocking(true)?;
        let who_is = who_is(vpc.id.clone(), shared);
        let imds = TcpListener::from_std(imds)?;
        let limits = shared.guests.each(IMDS_CONNECTIONS);
        tasks.spawn(serve(imds, shared.keys.clone(), who_is, limits));
        let dhcp = BTreeMap::new();
        Ok(Self { tasks, dhcp })
    }

    /// Brings the DHCP servers, one for each tap, to what the VPC needs;
    /// `indexes` are those of the taps. Returns what failed, by interface: it
    /// is no matter of the others.
    pub(super) async fn update(
        &mut self,
        namespace: &Namespace,
        vpc: &VpcNet,
        indexes: &BTreeMap<EniId, u32>,
        shared: &Shared,
    ) -> BTreeMap<EniId, io::Error> {
        let mut old = std::mem::take(&mut self.dhcp);
        let mut failed = BTreeMap::new();
        for (id, interface) in &vpc.interfaces {
            let Some(ifindex) = indexes.get(id).copied() else {
                continue;
            };
            let lease = dhcp::Lease::of(vpc, interface, &shared.region, MTU);
            if let Some(there) = old.remove(id) {
                if there.ifindex == ifindex && there.lease == lease && !there.task.is_finished() {
                    self.dhcp.insert(id.clone(), there);
                    continue;
                }
                there.task.abort();
            }
            let name = interface.tap();
            let socket = namespace
                .run_async(move || async move { dhcp_socket(&name) })
                .await
                .and_then(|socket| UdpSocket::from_std(socket.into()));
            match socket {
                Ok(socket) => {
                    let task = self.tasks.spawn(serve_dhcp(socket, lease.clone()));
                    let dhcp = Dhcp {
                        ifindex,
                        lease,
                        task,
                    };
                    self.dhcp.insert(id.clone(), dhcp);
                }
                Err(e) => {
                    failed.insert(id.clone(), e);
                }
            }
        }
        for gone in old.into_values() {
            gone.task.abort();
        }
        while self.tasks.try_join_next().is_some() {}
        failed
    }
}

/// A socket that hears one tap only: who speaks to it needs no name.
fn dhcp_socket(tap: &str) -> io::Result<OwnedFd> {
    use socket::{AddressFamily, SockFlag, SockType, SockaddrIn};
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    socket::setsockopt(&socket, sockopt::BindToDevice, &tap.into())?;
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    socket::setsockopt(&socket, sockopt::Broadcast, &true)?;
    let any = SockaddrIn::new(0, 0, 0, 0, 67);
    socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &any)?;
    Ok(socket)
}

async fn serve_dhcp(socket: UdpSocket, lease: dhcp::Lease) {
    let mut buffer = [0; 1500];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, _)) => {
                let Some(reply) = dhcp::reply(&buffer[..length], &lease) else {
                    continue;
                };
                if let Err(error) = socket.send_to(&reply.bytes, (reply.to, 68)).await {
                    tracing::debug!(%error, address = %lease.address, "sending a DHCP answer");
                }
            }
            // The tap is gone (the reconciler will see) or its other end is closed.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
            Err(error) => {
                tracing::debug!(%error, address = %lease.address, "receiving from a DHCP client");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn who_is(vpc: VpcId, shared: &Shared) -> WhoIs {
    let views = shared.views.clone();
    let region = shared.region.clone();
    Arc::new(move |address| {
        let view = Arc::clone(&views.borrow());
        let eni = view
            .by(Eni::BY_ADDRESS, &Eni::at_address(&vpc, address))
            .find(|eni| eni.instance.is_some())?;
        Facts::read(&view, eni.instance.as_ref()?, &region)
    })
}

struct Resolver {
    zone: Zone,
    vpc: VpcId,
    views: watch::Receiver<Arc<View>>,
    limits: PerGuest,
}

impl Resolver {
    fn decide(&self, question: &[u8]) -> Verdict {
        let view = Arc::clone(&self.views.borrow());
        dns::decide(question, &self.zone, |public| {
            view.by(Eni::BY_PUBLIC_ADDRESS, &public.to_string())
                .find(|eni| eni.vpc == self.vpc)
                .map(|eni| eni.private_ip)
        })
    }
}

/// A failure as bytes; `None` when there is not even that to say.
fn servfail(question: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_vec(question).ok()?;
    dns::failure(&message, ResponseCode::ServFail).to_vec().ok()
}

async fn dns_udp(socket: Arc<UdpSocket>, resolver: Arc<Resolver>) {
    let mut buffer = [0; 4096];
    let mut waiting = JoinSet::new();
    loop {
        while waiting.try_join_next().is_some() {}
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "receiving a question");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let question = &buffer[..length];
        match resolver.decide(question) {
            Verdict::Drop => {}
            Verdict::Answer(answer) => {
                // Our own answers have one record: they fit any datagram.
                if let Ok(bytes) = answer.to_vec()
                    && bytes.len() <= dns::PLAIN_UDP
                {
                    let _ = socket.send_to(&bytes, from).await;
                }
            }
            Verdict::Forward => {
                let SocketAddr::V4(v4) = from else { continue };
                // Too many at a time: as good as lost on the way.
                let Some(place) = resolver.limits.take(*v4.ip(), 1) else {
                    continue;
                };
                let (socket, question) = (Arc::clone(&socket), question.to_vec());
                waiting.spawn(async move {
                    let _place = place;
                    let answer = forward(&question, Transport::Udp).await;
                    if let Some(answer) = answer.or_else(|| servfail(&question)) {
                        let _ = socket.send_to(&answer, from).await;
                    }
                });
            }
        }
    }
}

async fn dns_tcp(listener: TcpListener, resolver: Arc<Resolver>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "accepting a question");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let SocketAddr::V4(v4) = from else { continue };
        let Some(place) = resolver.limits.take(*v4.ip(), 2) else {
            continue;
        };
        let resolver = Arc::clone(&resolver);
        connections.spawn(async move {
            let _place = place;
            let questions = dns_connection(stream, &resolver);
            let _ = tokio::time::timeout(DNS_TCP_LIFE, questions).await;
        });
    }
}

/// Questions and answers over TCP, each after its length (RFC 1035, 4.2.2).
async fn dns_connection(mut stream: TcpStream, resolver: &Resolver) -> io::Result<()> {
    loop {
        let question = read_framed(&mut stream).await?;
        let answer = match resolver.decide(&question) {
            Verdict::Drop => return Ok(()),
            Verdict::Answer(answer) => answer.to_vec().ok(),
            Verdict::Forward => forward(&question, Transport::Tcp).await,
        };
        let Some(answer) = answer.or_else(|| servfail(&question)) else {
            return Ok(());
        };
        write_framed(&mut stream, &answer).await?;
    }
}

async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

#[derive(Clone, Copy)]
enum Transport {
    Udp,
    Tcp,
}

/// Asks the host's resolvers, one after the other, and passes the answer on as
/// it is. `None` when none answered; at once when the host has no way to any.
async fn forward(question: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let conf = tokio::fs::read_to_string("/etc/resolv.conf").await.ok()?;
    for server in dns::nameservers(&conf) {
        let asked = async {
            match transport {
                Transport::Udp => ask_udp(question, server).await,
                Transport::Tcp => ask_tcp(question, server).await,
            }
        };
        match tokio::time::timeout(RESOLVER_TIMEOUT, asked).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(%error, %server, "asking the host's resolver"),
            Err(_) => tracing::debug!(%server, "the host's resolver doesn't answer"),
        }
    }
    None
}

async fn ask_udp(question: &[u8], server: IpAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    // A port of its own and an id of our own: the guest chooses neither.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect((server, 53)).await?;
    let id: [u8; 2] = rand::random();
    let [a, b, ..] = *question else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut sent = question.to_vec();
    sent[..2].copy_from_slice(&id);
    socket.send(&sent).await?;
    let mut buffer = vec![0; 65535];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if length >= 12 && buffer[..2] == id {
            buffer.truncate(length);
            buffer[..2].copy_from_slice(&[a, b]);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(question: &[u8], server: IpAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((server, 53)).await?;
    write_framed(&mut stream, question).await?;
    read_framed(&mut stream).await
}
