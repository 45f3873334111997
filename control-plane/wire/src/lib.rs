//! The wire formats of AWS's `ec2` and `query` protocols: requests are form
//! fields with dotted names, answers are XML.
//!
//! Pure: text in, typed value out, and back. Everything here meets bytes of
//! callers, so every size is bounded and nothing panics.
//!
//! - [`Protocol`] — how a service speaks: all that the dispatch needs of the rest.
//! - [`Form`] — the fields of a request, as a bounded tree.
//! - [`from_form`] — a serde deserializer over that tree.
//! - [`xml`] — a serde serializer of answers, and the shape of errors.
//! - [`Shape`] — what a type looks like on the wire, read from its own serde
//!   implementation, so that tests can hold it against botocore's model.
//!
//! <https://smithy.io/2.0/aws/protocols/aws-ec2-query-protocol.html>,
//! <https://smithy.io/2.0/aws/protocols/aws-query-protocol.html>

mod de;
mod foreign;
mod form;
mod protocol;
mod shape;
mod time;
pub mod xml;

pub use de::from_form;
pub use foreign::Foreign;
pub use form::{Form, MAX_BYTES, Node};
pub use protocol::Protocol;
pub use shape::{Shape, shape_of};
pub use time::Time;

/// Why a request could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A parameter that the action does not have.
    #[error("The parameter {0} is not recognized")]
    Unknown(String),
    /// A parameter that the action can't do without.
    #[error("The request must contain the parameter {0}")]
    Missing(String),
    /// A parameter that can't be read as what it should be.
    #[error("Invalid value for the parameter {name}: {why}")]
    Invalid {
        /// The parameter's dotted name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The whole request is not of the form asked for.
    #[error("{0}")]
    Malformed(String),
}

/// At most this much of a caller's text is repeated to it in an error.
const QUOTED: usize = 128;

/// The first characters of `text`, for an error message; controls among them in
/// a form that can be read.
pub fn quoted(text: &str) -> String {
    let mut short = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == QUOTED {
            short.push('…');
            break;
        }
        if c.is_control() || !carriable(c) {
            short.extend(c.escape_unicode());
        } else {
            short.push(c);
        }
    }
    short
}

/// Whether XML 1.0 has the character, as itself or as a reference. What it doesn't
/// have is in no answer, so no request may bring it in.
/// <https://www.w3.org/TR/xml/#charsets>
fn carriable(c: char) -> bool {
    match c {
        '\t' | '\n' | '\r' => true,
        '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => false,
        _ => true,
    }
}

/// `parent.child`, or `child` at the top.
fn join(parent: &str, child: &str) -> String {
    if parent.is_empty() {
        child.to_owned()
    } else {
        format!("{parent}.{child}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_is_short_and_readable() {
        assert_eq!(quoted("a\u{1}b\nc\u{ffff}é"), "a\\u{1}b\\u{a}c\\u{ffff}é");
        let long = "é".repeat(QUOTED + 1);
        assert_eq!(quoted(&long), "é".repeat(QUOTED) + "…");
        assert_eq!(quoted(&long[2..]), long[2..]);
    }
}
