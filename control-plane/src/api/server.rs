//! HTTP around the dispatch.

mod answers;
mod body;
mod seats;
#[cfg(test)]
mod tests;
mod watched;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Extension, State},
    http::{HeaderName, HeaderValue, Request, Response, StatusCode, header},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use super::{
    ApiError, Cloud,
    dispatch::{Connection, Dispatch, Received, query_of, unreadable},
};
use crate::{auth::credentials::CredentialStore, tls::Tls};
use answers::{Answers, Bytes};
use body::{Answer, Unread};
use seats::{LargeBody, Limits, Peer, Seat, Seats};
use watched::{Deadlines, Watch, Watched};

/// How many connections there may be, and of one peer: four peers at their limit
/// leave half to others. Programs on this machine are one peer together.
const LIMITS: Limits = Limits {
    total: 1024,
    peer: 128,
    loopback: 768,
    bodies: 32,
};
/// Of answers that wait to be read. The largest that there is, a list of 10,000, has
/// some 35 MiB; a page of 1,000 a tenth of that.
const BYTES: Bytes = Bytes {
    small: 64 << 10,
    account: 128 << 20,
    total: 256 << 20,
};
/// How long each step of a connection may take. Clients wait a minute for an answer
/// by default. The least rate is what half a megabit a second carries.
const DEADLINES: Deadlines = Deadlines {
    first: Duration::from_secs(10),
    idle: Duration::from_secs(60),
    receive: Duration::from_secs(30),
    request: Duration::from_secs(90),
    write: Duration::from_secs(15),
    least_rate: 64 << 10,
    tick: Duration::from_secs(1),
};
const ALL: Bounds = Bounds {
    limits: LIMITS,
    bytes: BYTES,
    deadlines: DEADLINES,
};
/// The longest head: a GET's parameters are in it, and a URI has at most 64 KiB.
/// Also what is buffered for a caller that doesn't read.
const BUFFER: usize = 96 << 10;
/// What the kernel buffers of an answer, in bytes: half of what it says it does. By
/// itself it would take some megabytes of each, and those of many callers who read
/// nothing are memory that all connections of this machine share. At a tenth of a
/// second's round trip this still carries 5 MB a second.
const SEND_BUFFER: usize = 256 << 10;
/// More headers than any client sends.
const HEADERS: usize = 100;
/// So long, and for so many bytes, a closed connection is read from, so that what
/// the caller still sends doesn't destroy the answer on its way.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
/// In every answer of a simulated cloud: how many hosts it has.
const SIMULATED: HeaderName = HeaderName::from_static("x-hearth-simulated-hosts");

/// The API as a router: every path and method leads to the one dispatch.
pub fn router(cloud: Cloud, credentials: CredentialStore) -> Router {
    let dispatch = Arc::new(Dispatch::new(cloud, credentials));
    Router::new().fallback(answer).with_state(dispatch)
}

/// Serves the API until `shutdown` is true, and then the requests that are under
/// way. HTTP/1.1, one task for each connection.
///
/// Whoever connects gets a place: see [`seats`] for whose, and [`watched`] for how
/// long one may be held. What waits to be read is bounded by [`answers`].
pub async fn serve(listener: TcpListener, router: Router, shutdown: watch::Receiver<bool>) {
    limited(listener, None, router, shutdown, ALL).await;
}

/// [`serve`], in TLS.
pub async fn serve_tls(
    listener: TcpListener,
    tls: &Tls,
    router: Router,
    shutdown: watch::Receiver<bool>,
) {
    let acceptor = Some(tls.acceptor());
    tokio::select! {
        () = limited(listener, acceptor, router, shutdown, ALL) => {}
        () = tls.look_after() => {}
    }
}

/// What callers are kept within.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    limits: Limits,
    bytes: Bytes,
    deadlines: Deadlines,
}

async fn limited(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    shutdown: watch::Receiver<bool>,
    bounds: Bounds,
) {
    let seats = Seats::new(bounds.limits);
    let answers = Answers::new(bounds.bytes);
    let mut stop = shutdown.clone();
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, peer) = tokio::select! {
            accepted = accept(&listener) => accepted,
            // Its sender being gone is an end, too.
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let Some(seat) = seats.take(Peer::from(peer.ip())) else {
            tracing::warn!(%peer, "no place for a connection: all are busy");
            continue;
        };
        if let Err(error) = buffer_less(&stream) {
            tracing::debug!(%peer, %error, "a connection keeps the kernel's send buffer");
        }
        let visit = Visit(Arc::new(Visitor {
            seat,
            answers: answers.clone(),
            watch: Watch::new(bounds.deadlines),
            verified: AtomicBool::new(false),
        }));
        let (tls, router, shutdown) = (tls.clone(), router.clone(), shutdown.clone());
        connections.spawn(async move {
            let served = async {
                let Some(tls) = tls else {
                    return connection(stream, router, visit.clone(), shutdown).await;
                };
                // It has as long as the first request has to come.
                match tls.accept(stream).await {
                    Ok(stream) => connection(stream, router, visit.clone(), shutdown).await,
                    Err(error) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
                }
            };
            tokio::select! {
                () = served => {}
                () = visit.0.seat.evicted() => tracing::debug!(%peer, "a connection made room"),
                late = visit.0.watch.late() => {
                    tracing::debug!(%peer, ?late, "a connection was late");
                }
            }
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

fn buffer_less(stream: &TcpStream) -> io::Result<()> {
    Ok(sockopt::set_socket_send_buffer_size(stream, SEND_BUFFER)?)
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                // Out of descriptors, most likely: give others time to close some.
                tracing::warn!(%error, "the API can't accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A connection, as the requests on it know it. Clones are the same.
#[derive(Clone)]
struct Visit(Arc<Visitor>);

struct Visitor {
    seat: Seat,
    answers: Answers,
    watch: Watch,
    /// Whether the request that is under way bears a good signature.
    verified: AtomicBool,
}

impl Visit {
    fn begin(&self) {
        self.0.verified.store(false, Ordering::Relaxed);
        self.0.watch.begin();
    }

    fn is_verified(&self) -> bool {
        self.0.verified.load(Ordering::Relaxed)
    }

    fn answered(&self, bytes: u64) {
        self.0.seat.idle();
        self.0.watch.answered(bytes);
    }

    fn large_body(&self) -> Option<LargeBody> {
        self.0.seat.large_body()
    }
}

fn too_much(what: &str) -> ApiError {
    let message = format!("{what}. Try again.");
    ApiError::new("RequestLimitExceeded", message).with_status(503)
}

impl Connection for Visit {
    fn verified(&self) -> Result<(), ApiError> {
        self.0.verified.store(true, Ordering::Relaxed);
        if !self.0.seat.busy() {
            return Err(too_much("Too many requests are under way"));
        }
        self.0.watch.verified();
        Ok(())
    }

    fn make_room(&self, account: &str, bytes: usize, again: bool) -> Result<(), ApiError> {
        let Visitor {
            answers,
            seat,
            watch,
            ..
        } = &*self.0;
        if answers.is_large(bytes) {
            let room = answers.take(account, bytes, seat.eviction(), again);
            let room = room.ok_or_else(|| too_much("Too many large answers wait to be read"))?;
            watch.keep(room);
        }
        Ok(())
    }
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    router: Router,
    visit: Visit,
    mut shutdown: watch::Receiver<bool>,
) {
    let stream = Watched::new(stream, visit.0.watch.clone());
    let service = service_fn(|mut request: Request<Incoming>| {
        let (router, visit) = (router.clone(), visit.clone());
        // For who pipelines, too, the answer before has been written by now.
        visit.begin();
        request.extensions_mut().insert(visit.clone());
        let answer: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(async move {
            let response = match router.oneshot(request.map(Body::new)).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            // Whoever pipelines waits for its next turn as others do.
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(response.map(|body| Answer::new(body, visit)))
        });
        answer
    });
    let mut served = http1::Builder::new()
        .max_buf_size(BUFFER)
        .max_headers(HEADERS)
        .header_read_timeout(None)
        // A caller may close its side once it has sent all. And whatever a caller
        // does, a request that is being carried out is carried out to its end.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut stopping = pin!(shutdown.wait_for(|stop| *stop));
    let mut stopped = false;
    let ended = std::future::poll_fn(|cx| {
        if !stopped && stopping.as_mut().poll(cx).is_ready() {
            stopped = true;
            Pin::new(&mut served).graceful_shutdown();
        }
        served.poll_without_shutdown(cx)
    })
    .await;
    match ended {
        Ok(()) => linger(served.into_parts().io.into_inner()).await,
        Err(error) => tracing::debug!(%error, "a connection ended"),
    }
}

/// Closes this side, and reads on for a moment: a close with bytes unread would be
/// a reset, which takes the answer from a caller that hasn't read it yet.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let rest = async {
        stream.shutdown().await?;
        let mut rest = tokio::io::sink();
        let mut stream = stream.take(LINGER_BYTES as u64);
        tokio::io::copy(&mut stream, &mut rest).await
    };
    let _ = tokio::time::timeout(LINGER, rest).await;
}

async fn answer(
    State(dispatch): State<Arc<Dispatch>>,
    Extension(visit): Extension<Visit>,
    request: Request<Body>,
) -> Response<Body> {
    let request_id = request_id();
    let (parts, mut body) = request.into_parts();
    let request = Request::from_parts(parts, ());
    let mut received = Received {
        method: request.method(),
        path: request.uri().path(),
        query: query_of(&request),
        headers: request.headers(),
        body: &[],
        connection: &visit,
    };
    // Whoever names no key of ours has nothing received.
    let refused = match body::fits(&body) {
        Err(why) => Some(unread(why, &request_id)),
        Ok(()) => dispatch.claim(&received, &request_id).err().map(|r| *r),
    };
    let mut response = match refused {
        Some(refusal) => {
            body::drain(&mut body, request.headers()).await;
            refusal
        }
        None => match body::receive(&mut body, &visit).await {
            Ok(whole) => {
                received.body = &whole.bytes;
                dispatch.answer(&received, &request_id).await
            }
            Err(why) => {
                body::drain(&mut body, request.headers()).await;
                unread(why, &request_id)
            }
        },
    };
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    if let Some(hosts) = dispatch.simulated_hosts() {
        response.headers_mut().insert(SIMULATED, hosts.into());
    }
    if !visit.is_verified() {
        // One try for each connection.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

fn unread(why: Unread, request_id: &str) -> Response<Body> {
    let (status, code, message) = match why {
        Unread::TooLarge => (
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            "The body of a request is at most 1 MiB long",
        ),
        Unread::Busy => (
            StatusCode::SERVICE_UNAVAILABLE,
            "RequestLimitExceeded",
            "Too many large requests are under way. Try again.",
        ),
        Unread::Broken => (
            StatusCode::BAD_REQUEST,
            "InvalidRequest",
            "The body could not be read",
        ),
    };
    unreadable(status, code, message, request_id)
}

/// A random UUID, version 4.
fn request_id() -> String {
    let bits: u128 = rand::random();
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}
