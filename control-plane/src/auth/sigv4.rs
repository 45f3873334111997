//! AWS Signature Version 4, verified: in the `Authorization` header and in the
//! query of a presigned URL.
//!
//! Pure: the time comes in as an argument, the body as its hash.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>

use std::fmt::Write as _;

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, Method};
use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// The one algorithm there is.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// How far a request's time may lie from ours, either way: EC2's own limit.
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html> (`RequestExpired`)
const SKEW: SignedDuration = SignedDuration::from_mins(15);

/// The longest life of a presigned URL, in seconds: seven days.
const MAX_EXPIRES: i64 = 604_800;

/// More signed headers than any client sends.
const MAX_SIGNED_HEADERS: usize = 64;

/// RFC 3986's unreserved characters stay, all else is encoded.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Why a request is not taken for its signer's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// There is no signature.
    #[error("Request is missing Authentication Token")]
    Missing,
    /// There is a signature, but not one that can be read.
    #[error("{0}")]
    Incomplete(String),
    /// The access key doesn't exist.
    #[error("AWS was not able to validate the provided access credentials")]
    UnknownKey,
    /// Hearth hands out no session tokens.
    #[error("Session tokens are not supported by Hearth: sign with the account's access key alone")]
    SessionToken,
    /// The signature is another one than ours.
    #[error(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method."
    )]
    Mismatch,
    /// The credential's scope is not ours.
    #[error("{0}")]
    Scope(String),
    /// It was signed too long ago, or in the future.
    #[error("Request has expired or is not yet valid: signed {signed}, the time here is {now}")]
    Expired {
        /// When it says it was signed.
        signed: Timestamp,
        /// When it came in.
        now: Timestamp,
    },
    /// The hash in `X-Amz-Content-SHA256` is not the body's.
    #[error("The provided 'x-amz-content-sha256' header does not match what was computed.")]
    Payload,
}

/// What the signature is about.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path as it came, percent-encoded.
    pub path: &'a str,
    /// The query as it came, without its `?`.
    pub query: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The body.
    pub body: &'a [u8],
}

/// What a request says about its signature; nothing of it is verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The key that is said to have signed.
    pub access_key_id: String,
    /// The service in the credential's scope.
    pub service: String,
    /// Whether a session token came along.
    pub has_session_token: bool,
    scope: [String; 2],
    signed_headers: Vec<String>,
    signature: String,
    time: Timestamp,
    time_text: String,
    /// Seconds, in a presigned URL only.
    expires: Option<i64>,
}

/// The parameters that a presigned URL has beside the request's own.
pub const PRESIGNED: [&str; 7] = [
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-Security-Token",
    "X-Amz-Signature",
    "X-Amz-SignedHeaders",
];

impl Claim {
    /// Whether the signature is in the query.
    pub fn is_presigned(&self) -> bool {
        self.expires.is_some()
    }

    /// The region in the credential's scope.
    pub fn region(&self) -> &str {
        &self.scope[1]
    }
}

/// Reads the signature of a request.
///
/// # Errors
/// When there is none, or it is not complete.
pub fn parse(request: &Incoming<'_>) -> Result<Claim, AuthError> {
    let mut headers = request.headers.get_all(http::header::AUTHORIZATION).iter();
    match (headers.next(), headers.next()) {
        (None, _) => parse_presigned(request),
        (Some(_), Some(_)) => Err(incomplete("there is more than one Authorization header")),
        (Some(value), None) => {
            let value = value
                .to_str()
                .map_err(|_| incomplete("the Authorization header is not ASCII"))?;
            parse_header(value, request.headers)
        }
    }
}

fn incomplete(why: impl Into<String>) -> AuthError {
    AuthError::Incomplete(why.into())
}

fn parse_header(value: &str, headers: &HeaderMap) -> Result<Claim, AuthError> {
    let Some(rest) = value.strip_prefix(ALGORITHM) else {
        return Err(incomplete(format!(
            "the Authorization header must start with {ALGORITHM}"
        )));
    };
    let (mut credential, mut signed, mut signature) = (None, None, None);
    for part in rest.split(',') {
        let Some((name, value)) = part.trim().split_once('=') else {
            return Err(incomplete(
                "the Authorization header is not of the form a=b, c=d",
            ));
        };
        let slot = match name {
            "Credential" => &mut credential,
            "SignedHeaders" => &mut signed,
            "Signature" => &mut signature,
            _ => return Err(incomplete("the Authorization header has an unknown part")),
        };
        if slot.replace(value).is_some() {
            return Err(incomplete("the Authorization header has a part twice"));
        }
    }
    let need = |part: Option<&str>, name| {
        part.map(str::to_owned)
            .ok_or_else(|| incomplete(format!("Authorization header requires '{name}' parameter.")))
    };
    let date = single(headers, "x-amz-date")?.ok_or_else(|| {
        incomplete("Authorization header requires existence of a 'X-Amz-Date' header.")
    })?;
    claim(
        &need(credential, "Credential")?,
        &need(signed, "SignedHeaders")?,
        need(signature, "Signature")?,
        date,
        None,
        headers.contains_key("x-amz-security-token"),
    )
}

fn single<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, AuthError> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(incomplete(format!("there is more than one {name} header")));
    }
    first
        .map(|v| v.to_str())
        .transpose()
        .map_err(|_| incomplete(format!("the {name} header is not ASCII")))
}

fn parse_presigned(request: &Incoming<'_>) -> Result<Claim, AuthError> {
    let find = |wanted: &str| -> Result<Option<String>, AuthError> {
        let mut found = None;
        for (name, value) in pairs(request.query) {
            if name == wanted.as_bytes() {
                let value = String::from_utf8(value)
                    .map_err(|_| incomplete(format!("{wanted} is not UTF-8")))?;
                if found.replace(value).is_some() {
                    return Err(incomplete(format!("{wanted} is given twice")));
                }
            }
        }
        Ok(found)
    };
    let need = |name: &str| {
        find(name)?.ok_or_else(|| {
            incomplete(format!(
                "AWS query-string parameters must include '{name}'."
            ))
        })
    };
    match find("X-Amz-Algorithm")? {
        None => return Err(AuthError::Missing),
        Some(algorithm) if algorithm != ALGORITHM => {
            return Err(incomplete(format!("X-Amz-Algorithm must be {ALGORITHM}")));
        }
        Some(_) => {}
    }
    let expires = need("X-Amz-Expires")?
        .parse()
        .ok()
        .filter(|e| (1..=MAX_EXPIRES).contains(e))
        .ok_or_else(|| {
            incomplete(format!(
                "X-Amz-Expires must be from 1 to {MAX_EXPIRES} seconds"
            ))
        })?;
    claim(
        &need("X-Amz-Credential")?,
        &need("X-Amz-SignedHeaders")?,
        need("X-Amz-Signature")?,
        &need("X-Amz-Date")?,
        Some(expires),
        find("X-Amz-Security-Token")?.is_some(),
    )
}

fn claim(
    credential: &str,
    signed_headers: &str,
    signature: String,
    date: &str,
    expires: Option<i64>,
    has_session_token: bool,
) -> Result<Claim, AuthError> {
    let parts: Vec<&str> = credential.split('/').collect();
    let [key, day, region, service, "aws4_request"] = parts[..] else {
        return Err(incomplete(
            "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/aws4_request",
        ));
    };
    let time = DateTime::strptime("%Y%m%dT%H%M%SZ", date)
        .and_then(|t| t.to_zoned(TimeZone::UTC))
        .map_err(|_| incomplete("Date must be in ISO-8601 'basic format', as 20150830T123600Z"))?
        .timestamp();
    if date.get(..8) != Some(day) {
        return Err(AuthError::Scope(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP."
                .into(),
        ));
    }
    let signed_headers: Vec<String> = signed_headers.split(';').map(str::to_owned).collect();
    if signed_headers.len() > MAX_SIGNED_HEADERS
        || !signed_headers.is_sorted_by(|a, b| a < b)
        || signed_headers
            .iter()
            .any(|h| h.bytes().any(|b| b.is_ascii_uppercase()))
    {
        return Err(incomplete(
            "SignedHeaders must be lower-case, in order and each there once",
        ));
    }
    if !signed_headers.iter().any(|h| h == "host") {
        return Err(incomplete(
            "'Host' must be a 'SignedHeader' in the AWS Authorization.",
        ));
    }
    Ok(Claim {
        access_key_id: key.to_owned(),
        service: service.to_owned(),
        has_session_token,
        scope: [day.to_owned(), region.to_owned()],
        signed_headers,
        signature,
        time,
        time_text: date.to_owned(),
        expires,
    })
}

/// Verifies a claim with the secret of the key that it names, for one of `regions`.
///
/// # Errors
/// When the signature is not that key's, or not for here and now.
pub fn verify(
    claim: &Claim,
    request: &Incoming<'_>,
    secret: &str,
    regions: &[&str],
    now: Timestamp,
) -> Result<(), AuthError> {
    // A header that AWS gives a meaning must be covered, or a stranger between
    // could add it.
    for name in request.headers.keys().map(http::HeaderName::as_str) {
        if name.starts_with("x-amz-") && !claim.signed_headers.iter().any(|h| h == name) {
            return Err(incomplete(format!(
                "'{name}' must be a 'SignedHeader' in the AWS Authorization."
            )));
        }
    }
    let payload = hex::encode(Sha256::digest(request.body));
    let text = string_to_sign(claim, &canonical_request(claim, request, &payload)?);
    let signature = sign(claim, secret, &text);
    if !bool::from(signature.as_bytes().ct_eq(claim.signature.as_bytes())) {
        return Err(AuthError::Mismatch);
    }
    // Only whoever has the secret learns what else is wrong.
    if !regions.contains(&claim.region()) {
        return Err(AuthError::Scope(format!(
            "Credential should be scoped to a valid region, not '{}': there is {}",
            claim.region(),
            regions.join(", ")
        )));
    }
    let latest = claim.expires.map_or(SKEW, SignedDuration::from_secs);
    let age = now.duration_since(claim.time);
    if age < -SKEW || age > latest {
        return Err(AuthError::Expired {
            signed: claim.time,
            now,
        });
    }
    match single(request.headers, "x-amz-content-sha256")? {
        Some(given) if !given.eq_ignore_ascii_case(&payload) => Err(AuthError::Payload),
        _ => Ok(()),
    }
}

/// The names and values of a query, percent-decoded, in the order they came: what
/// is signed, and so what a request of this query says. A `+` is a plus here, as in
/// RFC 3986; only a form's body has it for a space.
pub fn pairs(query: &str) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    query.split('&').filter(|p| !p.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode = |s: &str| percent_decode(s.as_bytes()).collect();
        (decode(name), decode(value))
    })
}

fn canonical_request(
    claim: &Claim,
    request: &Incoming<'_>,
    payload: &str,
) -> Result<String, AuthError> {
    let mut query: Vec<(String, String)> = pairs(request.query)
        .filter(|(name, _)| claim.expires.is_none() || name != b"X-Amz-Signature")
        .map(|(name, value)| {
            let encode = |b: &[u8]| percent_encode(b, ENCODED).to_string();
            (encode(&name), encode(&value))
        })
        .collect();
    query.sort();
    let query: Vec<String> = query.into_iter().map(|(n, v)| format!("{n}={v}")).collect();

    // Every service but S3 encodes the path, as it came, once more.
    let path: Vec<String> = request
        .path
        .split('/')
        .map(|part| percent_encode(part.as_bytes(), ENCODED).to_string())
        .collect();

    let mut out = format!(
        "{}\n{}\n{}\n",
        request.method,
        path.join("/"),
        query.join("&")
    );
    for name in &claim.signed_headers {
        let mut values = Vec::new();
        for value in request.headers.get_all(name.as_str()) {
            let value = value
                .to_str()
                .map_err(|_| incomplete(format!("the header {name} is not ASCII")))?;
            values.push(value.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
        }
        if values.is_empty() {
            return Err(incomplete(format!(
                "the signed header {name} is not in the request"
            )));
        }
        let _ = writeln!(out, "{name}:{}", values.join(","));
    }
    let _ = write!(out, "\n{}\n{payload}", claim.signed_headers.join(";"));
    Ok(out)
}

fn string_to_sign(claim: &Claim, canonical: &str) -> String {
    let [day, region] = &claim.scope;
    format!(
        "{ALGORITHM}\n{}\n{day}/{region}/{}/aws4_request\n{}",
        claim.time_text,
        claim.service,
        hex::encode(Sha256::digest(canonical))
    )
}

fn sign(claim: &Claim, secret: &str, text: &str) -> String {
    let [day, region] = &claim.scope;
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [day, region, &claim.service, "aws4_request"] {
        key = mac(&key, part);
    }
    hex::encode(mac(&key, text))
}

fn mac(key: &[u8], message: &str) -> Vec<u8> {
    // HMAC takes keys of every length, so the error can't happen; an empty code
    // would match no signature if it did.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return Vec::new();
    };
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests;
