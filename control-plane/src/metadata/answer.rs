//! The answer to one request: pure.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>

use http::{HeaderMap, Method, StatusCode};

use super::Facts;
use super::token::{MAX_TTL_SECONDS, TokenKey};
use super::tree::{self, VERSIONS};

const TOKEN: &str = "x-aws-ec2-metadata-token";
const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// What goes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The body.
    pub body: Vec<u8>,
    /// A token's time to live in seconds, which goes into its header.
    pub token_ttl: Option<u64>,
    /// The IP TTL that the answer is sent with, where it matters.
    pub hop_limit: Option<u8>,
}

impl Answer {
    fn of(status: StatusCode, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            body: body.into(),
            token_ttl: None,
            hop_limit: None,
        }
    }

    /// A refusal, as a small page like EC2's.
    pub fn refusal(status: StatusCode) -> Self {
        let reason = status.canonical_reason().unwrap_or_default();
        let code = status.as_u16();
        Self::of(
            status,
            format!(
                "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n<html>\n <head>\n  \
                 <title>{code} - {reason}</title>\n </head>\n <body>\n  \
                 <h1>{code} - {reason}</h1>\n </body>\n</html>\n"
            ),
        )
    }
}

/// Answers a request of the instance that `facts` are about. `now` is in
/// seconds since 1970; `nonce` is random.
pub fn answer(
    facts: &Facts,
    key: &TokenKey,
    now: u64,
    nonce: [u8; 8],
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Answer {
    if !facts.instance.metadata.enabled {
        return Answer::refusal(StatusCode::FORBIDDEN);
    }
    match *method {
        Method::PUT => put(facts, key, now, nonce, path, headers),
        Method::GET | Method::HEAD => get(facts, key, now, path, headers),
        _ => Answer::refusal(StatusCode::METHOD_NOT_ALLOWED),
    }
}

/// `PUT /latest/api/token`.
fn put(
    facts: &Facts,
    key: &TokenKey,
    now: u64,
    nonce: [u8; 8],
    path: &str,
    headers: &HeaderMap,
) -> Answer {
    // A request that a proxy in the guest passed on is not the guest's own.
    if headers.contains_key("x-forwarded-for") {
        return Answer::refusal(StatusCode::FORBIDDEN);
    }
    if path != "/latest/api/token" {
        return Answer::refusal(StatusCode::METHOD_NOT_ALLOWED);
    }
    let ttl = headers.get(TTL).and_then(|v| v.to_str().ok());
    let ttl = ttl.and_then(|v| v.trim().parse::<u64>().ok());
    let Some(ttl) = ttl.filter(|ttl| (1..=MAX_TTL_SECONDS).contains(ttl)) else {
        return Answer::refusal(StatusCode::BAD_REQUEST);
    };
    let token = key.issue(&facts.instance.id, now.saturating_add(ttl), nonce);
    Answer {
        token_ttl: Some(ttl),
        hop_limit: Some(facts.instance.metadata.hop_limit),
        ..Answer::of(StatusCode::OK, token)
    }
}

fn get(facts: &Facts, key: &TokenKey, now: u64, path: &str, headers: &HeaderMap) -> Answer {
    let token_ttl = match headers.get(TOKEN) {
        Some(token) => {
            let token = token.to_str().ok();
            let left = token.and_then(|t| key.remaining(&facts.instance.id, t, now));
            if left.is_none() {
                return Answer::refusal(StatusCode::UNAUTHORIZED);
            }
            left
        }
        None if facts.instance.metadata.tokens_required => {
            return Answer::refusal(StatusCode::UNAUTHORIZED);
        }
        None => None,
    };
    match document(facts, path) {
        Some(body) => Answer {
            token_ttl,
            ..Answer::of(StatusCode::OK, body)
        },
        None => Answer::refusal(StatusCode::NOT_FOUND),
    }
}

fn document(facts: &Facts, path: &str) -> Option<Vec<u8>> {
    let path = path.strip_prefix('/')?;
    if path.is_empty() {
        return Some(VERSIONS.join("\n").into_bytes());
    }
    let (version, rest) = path.split_once('/').unwrap_or((path, ""));
    if !VERSIONS.contains(&version) {
        return None;
    }
    // A tag's key may have signs that a path must escape.
    let rest = percent_encoding::percent_decode_str(rest)
        .decode_utf8()
        .ok()?;
    tree::lookup(&tree::tree(facts), &rest)
}
