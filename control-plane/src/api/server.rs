//! HTTP around the dispatch.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::State,
    http::{HeaderName, HeaderValue, Request, Response, StatusCode},
};

use super::{
    Cloud,
    dispatch::{Dispatch, Received, query_of, unreadable},
    wire::MAX_BYTES,
};
use crate::auth::credentials::CredentialStore;

/// How long a caller may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// The API as a router: every path and method leads to the one dispatch.
pub fn router(cloud: Cloud, credentials: CredentialStore) -> Router {
    let dispatch = Arc::new(Dispatch::new(cloud, credentials));
    Router::new().fallback(answer).with_state(dispatch)
}

/// Serves the API until the task is dropped.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(listener: tokio::net::TcpListener, router: Router) -> std::io::Result<()> {
    axum::serve(listener, router).await
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
    #[test]
    fn request_ids_are_version_4_uuids() {
        let id = super::request_id();
        assert_eq!(id.len(), 36);
        assert_eq!(&id[14..15], "4");
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"));
    }
}
