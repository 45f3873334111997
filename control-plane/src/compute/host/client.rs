//! The client of a VMM's control socket: HTTP/1.1 and JSON over a Unix socket,
//! one request for each connection.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use hearth_vmm_api::{ApiError, Machine, NewSnapshot, Reboot};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;

use super::passing::Passing;

/// How long a VMM may take to answer. It answers at once, but the host may be
/// busy.
const DEADLINE: Duration = Duration::from_secs(10);
/// The longest answer, a machine with 32 devices, has some 10 KiB.
const MAX_ANSWER: usize = 1 << 20;

/// What the machine says of itself.
pub(super) async fn machine(socket: &Path) -> io::Result<Machine> {
    let body = request(socket, Method::GET, "/v1/machine", Bytes::new()).await?;
    Ok(serde_json::from_slice(&body)?)
}

/// `PUT /v1/<what>`: `power-button`, `nmi`, `reset`, `pause`, `resume`.
pub(super) async fn put(socket: &Path, what: &str) -> io::Result<()> {
    let path = format!("/v1/{what}");
    request(socket, Method::PUT, &path, Bytes::new())
        .await
        .map(drop)
}

/// `PUT /v1/reboot`.
pub(super) async fn reboot(socket: &Path, resets: u64) -> io::Result<()> {
    let body = serde_json::to_vec(&Reboot { resets })?;
    request(socket, Method::PUT, "/v1/reboot", body.into())
        .await
        .map(drop)
}

/// `PUT /v1/snapshot` into files, memory's and the state's. It takes as long as memory
/// takes to be written: the caller has a deadline.
///
/// # Errors
/// `ResourceBusy` when the guest is not as it can be saved.
pub(super) async fn snapshot(socket: &Path, [memory, state]: [File; 2]) -> io::Result<()> {
    let new = NewSnapshot {
        path: "memory".into(),
        base: None,
        follow: false,
    };
    let body = serde_json::to_vec(&new)?.into();
    let files = vec![memory.into(), state.into()];
    let stream = Passing::connect(socket, files).await?;
    talk(stream, Method::PUT, "/v1/snapshot", body)
        .await
        .map(drop)
}

/// `DELETE /v1/snapshot`: the one that is being written fails soon.
pub(super) async fn cancel_snapshot(socket: &Path) -> io::Result<()> {
    request(socket, Method::DELETE, "/v1/snapshot", Bytes::new())
        .await
        .map(drop)
}

async fn request(socket: &Path, method: Method, path: &str, body: Bytes) -> io::Result<Bytes> {
    let talk = async {
        let stream = Passing::connect(socket, Vec::new()).await?;
        talk(stream, method, path, body).await
    };
    tokio::time::timeout(DEADLINE, talk)
        .await
        .unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the VMM doesn't answer",
            ))
        })
}

async fn talk(stream: Passing, method: Method, path: &str, body: Bytes) -> io::Result<Bytes> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "localhost")
        .body(Full::new(body))
        .map_err(io::Error::other)?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(io::Error::other)?
            .to_bytes();
        Ok::<_, io::Error>((status, body))
    };
    // The connection makes the exchange progress, and ends with it.
    let (status, body) = tokio::select! {
        outcome = exchange => outcome?,
        outcome = async {
            // The answer may still be read when the connection is through.
            if let Err(e) = connection.await { return Err::<(StatusCode, Bytes), _>(io::Error::other(e)); }
            std::future::pending().await
        } => outcome?,
    };
    if status.is_success() {
        return Ok(body);
    }
    let said =
        serde_json::from_slice::<ApiError>(&body).map_or_else(|_| status.to_string(), |e| e.error);
    let kind = match status {
        StatusCode::CONFLICT => io::ErrorKind::ResourceBusy,
        _ => io::ErrorKind::Other,
    };
    Err(io::Error::new(kind, format!("the VMM refuses: {said}")))
}
