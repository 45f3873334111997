//! As much of HTTP/1.1 (RFC 9112) as the control socket speaks: one request for
//! each connection, bodies with a Content-Length.

use super::Answer;

const MAX_HEADERS: usize = 32;
/// The largest body in bytes.
const MAX_BODY: usize = 32 << 10;

/// One request.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// The method, as sent.
    pub method: String,
    /// The path, as sent.
    pub path: String,
    /// The body.
    pub body: Vec<u8>,
}

/// What the bytes so far are.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a request.
    Partial,
    /// A whole request.
    Request(Request),
    /// No request, and this is why.
    Bad(String),
}

/// Reads a request.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(error) => return Parsed::Bad(format!("not an HTTP request: {error}")),
    };
    let header = |name: &str| {
        request
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    };
    if header("transfer-encoding").is_some() {
        return Parsed::Bad("a body needs a Content-Length".to_owned());
    }
    let length = match header("content-length") {
        None => 0,
        Some(value) => match std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()) {
            Some(length) if length <= MAX_BODY => length,
            _ => return Parsed::Bad(format!("a body may have {MAX_BODY} bytes")),
        },
    };
    let Some(body) = bytes.get(head..head + length) else {
        return Parsed::Partial;
    };
    match (request.method, request.path) {
        (Some(method), Some(path)) => Parsed::Request(Request {
            method: method.to_owned(),
            path: path.to_owned(),
            body: body.to_vec(),
        }),
        _ => Parsed::Bad("not an HTTP request".to_owned()),
    }
}

/// Writes an answer.
pub(super) fn render(answer: &Answer) -> Vec<u8> {
    let reason = match answer.status {
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        413 => "Content Too Large",
        _ => "Internal Server Error",
    };
    let mut text = format!(
        "HTTP/1.1 {} {reason}\r\nConnection: close\r\n",
        answer.status
    );
    if answer.status != 204 {
        text += &format!(
            "Content-Type: {}\r\nContent-Length: {}\r\n",
            answer.kind,
            answer.body.len()
        );
    }
    text += "\r\n";
    text += &answer.body;
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn body_is_waited_for() {
        let text = b"PUT /x HTTP/1.1\r\nContent-Length: 4\r\n\r\nab";
        assert_eq!(parse(text), Parsed::Partial);
        let whole = [&text[..], b"cd"].concat();
        assert!(matches!(parse(&whole), Parsed::Request(r) if r.body == b"abcd"));
    }

    #[test]
    fn lengths_are_bounded() {
        for length in ["99999999999999999999", "-1", "x", "40000"] {
            let text = format!("PUT /x HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
            assert!(matches!(parse(text.as_bytes()), Parsed::Bad(_)), "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = parse(&bytes);
        }
    }
}
