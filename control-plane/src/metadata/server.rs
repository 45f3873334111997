//! The service on its socket: HTTP/1.1, one task and one descriptor for each
//! connection, so many connections for each instance and no more, and no body is
//! ever read.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use nix::sys::socket::{self, Shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use super::answer::{Answer, answer};
use super::{Facts, Keys};
use crate::descriptors::PerGuest;

/// How many bytes the head of a request may have.
const MAX_HEAD: usize = 16 * 1024;
/// How long a connection may live, and how long its request's head may take.
const MAX_LIFE: Duration = Duration::from_secs(60);
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Who has an address: the facts of the instance behind it.
pub type WhoIs = Arc<dyn Fn(Ipv4Addr) -> Option<Facts> + Send + Sync>;

/// Serves until the task is dropped, within the limits of each guest.
pub async fn serve(listener: TcpListener, keys: Keys, who_is: WhoIs, limits: PerGuest) {
    // The tasks end with the set, and thus with this one.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: give others time to close some.
                tracing::warn!(%error, "the metadata service can't accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let SocketAddr::V4(peer) = peer else { continue };
        let Some(place) = limits.take(*peer.ip(), 1) else {
            continue;
        };
        let (keys, who_is) = (keys.clone(), Arc::clone(&who_is));
        connections.spawn(async move {
            let _place = place;
            let served = connection(stream, *peer.ip(), keys, who_is);
            if let Ok(Err(error)) = tokio::time::timeout(MAX_LIFE, served).await {
                tracing::debug!(%error, peer = %peer.ip(), "a metadata connection ended");
            }
        });
    }
}

async fn connection(
    stream: TcpStream,
    peer: Ipv4Addr,
    keys: Keys,
    who_is: WhoIs,
) -> io::Result<()> {
    // Held here too, to set its TTL before an answer leaves.
    let socket = Arc::new(stream);
    let stream = SharedStream(Arc::clone(&socket));
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = respond(&request, peer, &keys, &who_is);
        if let Some(hops) = answer.hop_limit
            && let Err(error) = socket.set_ttl(hops.into())
        {
            // An answer that may travel farther than it should is not sent.
            tracing::warn!(%error, "setting the hop limit");
            return std::future::ready(Ok(into_response(Answer::refusal(
                StatusCode::INTERNAL_SERVER_ERROR,
            ))));
        }
        std::future::ready(Ok::<_, Infallible>(into_response(answer)))
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        // Who has asked all that it will may say so before the answer is there: nc does.
        .half_close(true)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

/// A stream that is served while another looks at it, over one descriptor.
struct SharedStream(Arc<TcpStream>);

impl AsyncRead for SharedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(length) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl AsyncWrite for SharedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket keeps nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = socket::shutdown(self.0.as_raw_fd(), Shutdown::Write);
        Poll::Ready(match done {
            // The peer was faster.
            Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
            Err(e) => Err(e.into()),
        })
    }
}

fn respond(request: &Request<Incoming>, peer: Ipv4Addr, keys: &Keys, who_is: &WhoIs) -> Answer {
    let Some(facts) = who_is(peer) else {
        return Answer::refusal(StatusCode::NOT_FOUND);
    };
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs());
    let (method, path) = (request.method(), request.uri().path());
    answer(
        &facts,
        keys,
        now,
        rand::random(),
        method,
        path,
        request.headers(),
    )
}

fn into_response(answer: Answer) -> Response<Full<Bytes>> {
    let text = !answer.status.is_success();
    let close = answer.hop_limit.is_some() || text;
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    let kind = if text { "text/html" } else { "text/plain" };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::SERVER, HeaderValue::from_static("EC2ws"));
    if let Some(ttl) = answer.token_ttl {
        let name = "x-aws-ec2-metadata-token-ttl-seconds";
        headers.insert(name, HeaderValue::from(ttl));
    }
    if close {
        // The hop limit is the socket's: the next request takes a new one.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
