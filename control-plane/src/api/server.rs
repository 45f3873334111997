//! HTTP around the dispatch.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::State,
    http::{HeaderName, HeaderValue, Request, Response, StatusCode},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};

use super::{
    Cloud,
    dispatch::{Dispatch, Received, query_of, unreadable},
    wire::MAX_BYTES,
};
use crate::auth::credentials::CredentialStore;

/// How long a caller may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to send a request's head; so long, too, may a connection
/// be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How many connections there may be at a time. Further callers wait.
const CONNECTIONS: usize = 512;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// The API as a router: every path and method leads to the one dispatch.
pub fn router(cloud: Cloud, credentials: CredentialStore) -> Router {
    let dispatch = Arc::new(Dispatch::new(cloud, credentials));
    Router::new().fallback(answer).with_state(dispatch)
}

/// Serves the API until `shutdown` is true, and then the requests that are under
/// way. HTTP/1.1, one task for each connection, and so many of them.
pub async fn serve(listener: TcpListener, router: Router, shutdown: watch::Receiver<bool>) {
    limited(listener, router, shutdown, CONNECTIONS, HEAD_TIMEOUT).await;
}

async fn limited(
    listener: TcpListener,
    router: Router,
    shutdown: watch::Receiver<bool>,
    most: usize,
    head_timeout: Duration,
) {
    let places = Arc::new(Semaphore::new(most));
    let mut stop = shutdown.clone();
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, accept(&listener).await)
        };
        let (place, (stream, peer)) = tokio::select! {
            next = next => next,
            // Its sender being gone is an end, too.
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let (router, shutdown) = (router.clone(), shutdown.clone());
        connections.spawn(async move {
            let _place = place;
            if let Err(error) = connection(stream, router, shutdown, head_timeout).await {
                tracing::debug!(%error, %peer, "a connection ended");
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

async fn connection(
    stream: TcpStream,
    router: Router,
    mut shutdown: watch::Receiver<bool>,
    head_timeout: Duration,
) -> hyper::Result<()> {
    let mut served = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head_timeout)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
    );
    tokio::select! {
        done = served.as_mut() => return done,
        _ = shutdown.wait_for(|stop| *stop) => served.as_mut().graceful_shutdown(),
    }
    served.await
}

async fn answer(State(dispatch): State<Arc<Dispatch>>, request: Request<Body>) -> Response<Body> {
    let request_id = request_id();
    let (parts, body) = request.into_parts();
    let read = tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, MAX_BYTES)).await;
    let mut response = match read {
        Ok(Ok(body)) => {
            let request = Request::from_parts(parts, ());
            let received = Received {
                method: request.method(),
                path: request.uri().path(),
                query: query_of(&request),
                headers: request.headers(),
                body: &body,
            };
            dispatch.answer(&received, &request_id).await
        }
        Ok(Err(_)) => unreadable(
            StatusCode::PAYLOAD_TOO_LARGE,
            "The body could not be read or is longer than 1 MiB",
            &request_id,
        ),
        Err(_) => unreadable(
            StatusCode::REQUEST_TIMEOUT,
            "The body took too long to come",
            &request_id,
        ),
    };
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
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

    #[tokio::test]
    async fn who_says_nothing_is_put_out_and_makes_room() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(async || "here");
        let (end, shutdown) = watch::channel(false);
        let limit = Duration::from_millis(200);
        let server = tokio::spawn(limited(listener, router, shutdown, 2, limit));
        let mut silent = Vec::new();
        for _ in 0..2 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        silent[1].write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
        // Behind those two, and heard when they are gone.
        let mut third = TcpStream::connect(address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        third.write_all(request).await.unwrap();
        let mut answer = [0; 12];
        third.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        for mut stream in silent {
            let mut rest = Vec::new();
            // However it is put out: nothing of use comes.
            let _ = stream.read_to_end(&mut rest).await;
            assert!(!rest.starts_with(b"HTTP/1.1 200"));
        }
        // A connection that is only kept open doesn't keep the server from ending.
        end.send_replace(true);
        server.await.unwrap();
    }

    #[test]
    fn request_ids_are_version_4_uuids() {
        let id = request_id();
        assert_eq!(id.len(), 36);
        assert_eq!(&id[14..15], "4");
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"));
    }
}
