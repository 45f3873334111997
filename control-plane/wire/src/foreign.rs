//! Errors in the protocols that no service here speaks yet, so that a client of
//! such a service is told in words that it isn't there.
//!
//! <https://smithy.io/2.0/aws/protocols/aws-json-1_0-protocol.html#operation-error-serialization>,
//! <https://smithy.io/2.0/additional-specs/protocols/smithy-rpc-v2.html#operation-error-serialization>

use http::{HeaderMap, header};

/// A protocol by what its requests show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// JSON 1.0, 1.1 and REST JSON.
    Json,
    /// RPC v2 CBOR.
    Cbor,
}

impl Foreign {
    /// The protocol of a request with these headers, if it is one of these.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        if text("smithy-protocol") == Some("rpc-v2-cbor") {
            return Some(Self::Cbor);
        }
        let kind = text(header::CONTENT_TYPE.as_str()).unwrap_or_default();
        let json =
            kind.starts_with("application/x-amz-json") || kind.starts_with("application/json");
        (json || headers.contains_key("x-amz-target")).then_some(Self::Json)
    }

    /// The media type of an error.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/x-amz-json-1.0",
            Self::Cbor => "application/cbor",
        }
    }

    /// Writes an error.
    pub fn error(self, code: &str, message: &str) -> Vec<u8> {
        match self {
            Self::Json => serde_json::json!({"__type": code, "message": message})
                .to_string()
                .into_bytes(),
            Self::Cbor => {
                // RFC 8949: a map of two pairs of text.
                let mut out = vec![0xa2];
                for text in ["__type", code, "message", message] {
                    cbor_text(&mut out, text);
                }
                out
            }
        }
    }
}

/// RFC 8949, major type 3: its length in the shortest of the forms that are needed.
fn cbor_text(out: &mut Vec<u8>, text: &str) {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    let text = &text.as_bytes()[..length as usize];
    match length {
        0..24 => out.push(0x60 + length.to_be_bytes()[3]),
        24..0x100 => out.extend([0x78, length.to_be_bytes()[3]]),
        _ => {
            out.push(0x7a);
            out.extend(length.to_be_bytes());
        }
    }
    out.extend(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_shows_its_protocol() {
        let of = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            Foreign::of(&headers)
        };
        assert_eq!(
            of("x-amz-target", "DynamoDB_20120810.ListTables"),
            Some(Foreign::Json)
        );
        assert_eq!(
            of("content-type", "application/x-amz-json-1.1"),
            Some(Foreign::Json)
        );
        assert_eq!(of("smithy-protocol", "rpc-v2-cbor"), Some(Foreign::Cbor));
        assert_eq!(
            of("content-type", "application/x-www-form-urlencoded"),
            None
        );
    }

    #[test]
    fn errors_are_told() {
        assert_eq!(Foreign::Json.content_type(), "application/x-amz-json-1.0");
        assert_eq!(Foreign::Cbor.content_type(), "application/cbor");
        let json = Foreign::Json.error("C", "a \"b\"");
        assert_eq!(json, br#"{"__type":"C","message":"a \"b\""}"#);
        let cbor = Foreign::Cbor.error("C", &"m".repeat(30));
        assert_eq!(cbor[..2], [0xa2, 0x66]);
        assert!(cbor.ends_with(&[&[0x78, 30][..], &[b'm'; 30]].concat()));
        let long = Foreign::Cbor.error("C", &"m".repeat(300));
        assert!(long.ends_with(&[&[0x7a, 0, 0, 1, 44][..], &[b'm'; 300]].concat()));
    }
}
