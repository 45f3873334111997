//! HTTP around the dispatch.

mod body;
mod seats;
mod watched;

use std::{
    convert::Infallible,
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
    dispatch::{Dispatch, Received, query_of, unreadable},
};
use crate::{auth::credentials::CredentialStore, tls::Tls};
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
/// How long each step of a connection may take. Clients wait a minute for an answer
/// by default.
const DEADLINES: Deadlines = Deadlines {
    first: Duration::from_secs(10),
    idle: Duration::from_secs(60),
    receive: Duration::from_secs(30),
    request: Duration::from_secs(90),
    write: Duration::from_secs(15),
    tick: Duration::from_secs(1),
};
/// The longest head: a GET's parameters are in it, and a URI has at most 64 KiB.
/// Also what is buffered for a caller that doesn't read.
const BUFFER: usize = 96 << 10;
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
/// long one may be held.
pub async fn serve(listener: TcpListener, router: Router, shutdown: watch::Receiver<bool>) {
    limited(listener, None, router, shutdown, LIMITS, DEADLINES).await;
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
        () = limited(listener, acceptor, router, shutdown, LIMITS, DEADLINES) => {}
        () = tls.look_after() => {}
    }
}

async fn limited(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    shutdown: watch::Receiver<bool>,
    limits: Limits,
    deadlines: Deadlines,
) {
    let seats = Seats::new(limits);
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
        let visit = Visit(Arc::new(Visitor {
            seat,
            watch: Watch::new(deadlines),
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
    watch: Watch,
    /// Whether the request that is under way bears a good signature.
    verified: AtomicBool,
}

impl Visit {
    fn begin(&self) {
        self.0.verified.store(false, Ordering::Relaxed);
        self.0.watch.begin();
    }

    /// The request bears a good signature and may be carried out.
    fn verified(&self) -> Result<(), ApiError> {
        self.0.verified.store(true, Ordering::Relaxed);
        if !self.0.seat.busy() {
            let message = "Too many requests are under way. Try again.";
            return Err(ApiError::new("RequestLimitExceeded", message).with_status(503));
        }
        self.0.watch.verified();
        Ok(())
    }

    fn is_verified(&self) -> bool {
        self.0.verified.load(Ordering::Relaxed)
    }

    fn answered(&self) {
        self.0.seat.idle();
        self.0.watch.answered();
    }

    fn large_body(&self) -> Option<LargeBody> {
        self.0.seat.large_body()
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
    let verified = || visit.verified();
    let mut received = Received {
        method: request.method(),
        path: request.uri().path(),
        query: query_of(&request),
        headers: request.headers(),
        body: &[],
        verified: &verified,
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const QUICK: Deadlines = Deadlines {
        first: Duration::from_millis(200),
        idle: Duration::from_millis(200),
        receive: Duration::from_millis(200),
        request: Duration::from_millis(200),
        write: Duration::from_millis(200),
        tick: Duration::from_millis(20),
    };

    struct Served {
        address: SocketAddr,
        end: watch::Sender<bool>,
        server: tokio::task::JoinHandle<()>,
    }

    async fn served(router: Router, limits: Limits, deadlines: Deadlines) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, shutdown) = watch::channel(false);
        let server = tokio::spawn(limited(listener, None, router, shutdown, limits, deadlines));
        Served {
            address,
            end,
            server,
        }
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";

    async fn get(address: SocketAddr) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(REQUEST).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }

    #[tokio::test]
    async fn who_says_nothing_is_put_out_and_takes_no_ones_place() {
        let limits = Limits {
            loopback: 2,
            ..LIMITS
        };
        let router = Router::new().fallback(async || "here");
        let served = served(router, limits, QUICK).await;
        let mut silent = Vec::new();
        for _ in 0..5 {
            silent.push(TcpStream::connect(served.address).await.unwrap());
        }
        let _ = silent[4].write_all(b"GET / HTTP/1.1\r\nHo").await;
        get(served.address).await;
        for mut stream in silent {
            let mut rest = Vec::new();
            // However it is put out: nothing of use comes.
            let _ = stream.read_to_end(&mut rest).await;
            assert!(!rest.starts_with(b"HTTP/1.1 200"));
        }
        // A connection that is only kept open doesn't keep the server from ending.
        served.end.send_replace(true);
        served.server.await.unwrap();
    }

    #[tokio::test]
    async fn who_reads_nothing_is_put_out() {
        let router = Router::new().fallback(async || vec![b'x'; 1 << 16]);
        let served = served(router, LIMITS, QUICK).await;
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        // More requests than all buffers on the way hold answers to.
        let writing = async {
            loop {
                if stream.write_all(REQUEST).await.is_err() {
                    break;
                }
            }
        };
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, writing).await.unwrap();
        get(served.address).await;
    }

    #[test]
    fn request_ids_are_version_4_uuids() {
        let id = request_id();
        assert_eq!(id.len(), 36);
        assert_eq!(&id[14..15], "4");
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"));
    }
}
