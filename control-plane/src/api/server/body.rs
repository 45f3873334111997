//! A request's body, received within bounds; and an answer's, whose end is seen.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, Bytes};
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::{Visit, seats::LargeBody};
use crate::api::wire::MAX_BYTES;

/// Up to so long a body needs no room of its own: more than RunInstances with all
/// the user data that it may have.
const SMALL: usize = 96 << 10;
/// Of a body that is refused, so much is received and thrown away, for callers
/// that read no answer before they have sent all.
const DRAINED: usize = 8 << 20;
/// Nor does this take longer.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// A whole body.
pub(super) struct Received {
    pub bytes: Vec<u8>,
    _room: Option<LargeBody>,
}

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// It is longer than [`MAX_BYTES`].
    TooLarge,
    /// Too many large bodies are being received.
    Busy,
    /// The connection broke, or its framing did.
    Broken,
}

/// Whether the caller sends its body only when it is asked to.
fn waits(headers: &HeaderMap) -> bool {
    let expect = headers.get(header::EXPECT);
    expect.is_some_and(|e| e.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Whether a body is short enough, by what is said of its length.
pub(super) fn fits(body: &Body) -> Result<(), Unread> {
    if body.size_hint().lower() > MAX_BYTES as u64 {
        return Err(Unread::TooLarge);
    }
    Ok(())
}

/// Receives a body.
pub(super) async fn receive(body: &mut Body, visit: &Visit) -> Result<Received, Unread> {
    let mut received = Received {
        bytes: Vec::new(),
        _room: None,
    };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Unread::Broken)?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        let length = received.bytes.len() + data.len();
        if length > MAX_BYTES {
            return Err(Unread::TooLarge);
        }
        if length > SMALL && received._room.is_none() {
            received._room = Some(visit.large_body().ok_or(Unread::Busy)?);
        }
        received.bytes.extend_from_slice(data);
    }
    Ok(received)
}

/// Receives what remains of a body that is refused, within bounds. Without this,
/// closing would reset the connection, and the caller would read a broken pipe in
/// place of the answer.
pub(super) async fn drain(body: &mut Body, headers: &HeaderMap) {
    if waits(headers) {
        return;
    }
    let all = async {
        let mut length = 0;
        while let Some(Ok(frame)) = body.frame().await {
            length += frame.data_ref().map_or(0, Bytes::len);
            if length > DRAINED {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIME, all).await;
}

/// An answer, whose connection learns when the last of it is with the writer.
pub(super) struct Answer {
    body: Body,
    /// The length of all of it.
    bytes: u64,
    visit: Visit,
}

impl Answer {
    pub(super) fn new(body: Body, visit: Visit) -> Self {
        let bytes = body.size_hint().lower();
        Self { body, bytes, visit }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.visit.answered(self.bytes);
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // Answers are whole texts: their bodies have no errors.
        Pin::new(&mut self.body)
            .poll_frame(cx)
            .map(|frame| frame.and_then(Result::ok).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
