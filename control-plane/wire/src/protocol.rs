//! The protocols that services speak, and the seams between a protocol and the
//! dispatch.

use serde::{Serialize, de::DeserializeOwned};

use super::{Form, WireError, from_form, xml};

/// How a service's requests and answers are written.
///
/// What differs between protocols is all here or below: [`decode`](Self::decode)
/// (a typed request out of what was received), [`encode`](Self::encode) (a typed
/// answer), [`error`](Self::error) and [`content_type`](Self::content_type). One seam
/// lies in the dispatch: where the operation's name and version stand, for these two
/// in the form's `Action` and `Version`. The JSON protocols have them in the header
/// `X-Amz-Target`, REST JSON and RPC v2 CBOR in the path: a protocol of those kinds
/// adds its arm there and here, and nothing to any action.
///
/// <https://smithy.io/2.0/aws/protocols/index.html>
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `ec2`: lists are `X.1` in requests and `<item>` in answers.
    Ec2,
    /// `query`: lists are `X.member.1` in requests and `<member>` in answers.
    Query,
}

impl Protocol {
    /// Reads a typed request.
    ///
    /// # Errors
    /// As [`from_form`]'s.
    pub fn decode<T: DeserializeOwned>(self, form: &Form) -> Result<T, WireError> {
        from_form(form, self)
    }

    /// What an element of a list is called in a request; the first is number 1.
    pub fn element(self, list: &str, number: usize) -> String {
        match self {
            Self::Ec2 => format!("{list}.{number}"),
            Self::Query => format!("{list}.member.{number}"),
        }
    }

    /// Writes an action's answer, of not much more than `most` bytes.
    ///
    /// # Errors
    /// When it would be longer, or the type has a form that the wire can't carry.
    pub fn encode<T: Serialize>(
        self,
        namespace: &str,
        action: &str,
        request_id: &str,
        answer: &T,
        most: usize,
    ) -> Result<String, xml::XmlError> {
        xml::response(self, namespace, action, request_id, answer, most)
    }

    /// Writes an error; `sender` says whose fault it is.
    pub fn error(
        self,
        namespace: &str,
        request_id: &str,
        code: &str,
        message: &str,
        sender: bool,
    ) -> String {
        xml::error(self, namespace, request_id, code, message, sender)
    }

    /// The media type of answers and errors.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Ec2 | Self::Query => "text/xml;charset=UTF-8",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_errors_are_in_the_protocols_own_form() {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Answer {
            names: Vec<&'static str>,
        }
        let answer = Answer { names: vec!["a"] };
        for (protocol, list, error) in [
            (Protocol::Ec2, "<names><item>a</item></names>", "<Errors>"),
            (
                Protocol::Query,
                "<names><member>a</member></names>",
                "<ErrorResponse",
            ),
        ] {
            let text = protocol
                .encode("http://ns/", "Do", "req", &answer, usize::MAX)
                .unwrap();
            assert!(text.contains(list), "{text}");
            let text = protocol.error("http://ns/", "req", "Code", "message", true);
            assert!(text.contains(error), "{text}");
            assert!(text.contains("<Code>Code</Code>"), "{text}");
            assert_eq!(protocol.content_type(), "text/xml;charset=UTF-8");
        }
    }

    #[test]
    fn a_lists_elements_are_named_as_they_are_read() {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Asked {
            names: Vec<String>,
        }
        for protocol in [Protocol::Ec2, Protocol::Query] {
            let mut form = Form::default();
            for (number, name) in (1..).zip(["a", "b"]) {
                let element = protocol.element("names", number);
                form.insert(&element, name.to_owned()).unwrap();
            }
            let asked: Asked = protocol.decode(&form).unwrap();
            assert_eq!(asked.names, ["a", "b"], "{protocol:?}");
        }
        assert_eq!(Protocol::Query.element("names", 2), "names.member.2");
    }
}
