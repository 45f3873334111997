//! The serde serializer of answers, and errors, in both protocols.
//!
//! A structure's member is an element of its name; what is `None` is left out;
//! a list is an element that holds an `<item>` (or `<member>`) for each
//! element. What comes out is always well-formed XML 1.0, and says what the value
//! says: a character that XML can't carry is an error. Requests bring none in.

use std::fmt::{Display, Write as _};

use serde::{
    Serialize, Serializer,
    ser::{self, Impossible, SerializeSeq, SerializeStruct},
};

use super::{Protocol, carriable};

/// Why a value has no form in XML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// A fault in the type, or text that no request could have brought in.
    #[error("{0}")]
    Unfit(String),
    /// It would be longer than it may be.
    #[error("the answer is too long")]
    TooLong,
}

impl ser::Error for XmlError {
    fn custom<T: Display>(message: T) -> Self {
        Self::Unfit(message.to_string())
    }
}

/// An action's answer, of not much more than `most` bytes.
///
/// # Errors
/// When it would be longer, or the type has a form that the wire can't carry.
pub fn response<T: Serialize>(
    protocol: Protocol,
    namespace: &str,
    action: &str,
    request_id: &str,
    value: &T,
    most: usize,
) -> Result<String, XmlError> {
    let mut out = String::from(DECLARATION);
    let _ = write!(out, "<{action}Response xmlns=\"{namespace}\">");
    match protocol {
        Protocol::Ec2 => {
            text(&mut out, "requestId", request_id)?;
            value.serialize(Element::bare(&mut out, protocol, most))?;
        }
        Protocol::Query => {
            let _ = write!(out, "<{action}Result>");
            value.serialize(Element::bare(&mut out, protocol, most))?;
            let _ = write!(out, "</{action}Result><ResponseMetadata>");
            text(&mut out, "RequestId", request_id)?;
            out.push_str("</ResponseMetadata>");
        }
    }
    let _ = write!(out, "</{action}Response>");
    Ok(out)
}

/// An error's answer. Its text is shown to people: what XML can't carry is spelled
/// out in it.
pub fn error(
    protocol: Protocol,
    namespace: &str,
    request_id: &str,
    code: &str,
    message: &str,
    sender: bool,
) -> String {
    let mut out = String::from(DECLARATION);
    match protocol {
        Protocol::Ec2 => {
            out.push_str("<Response><Errors><Error>");
            shown(&mut out, "Code", code);
            shown(&mut out, "Message", message);
            out.push_str("</Error></Errors>");
            shown(&mut out, "RequestID", request_id);
            out.push_str("</Response>");
        }
        Protocol::Query => {
            let _ = write!(out, "<ErrorResponse xmlns=\"{namespace}\"><Error>");
            shown(&mut out, "Type", if sender { "Sender" } else { "Receiver" });
            shown(&mut out, "Code", code);
            shown(&mut out, "Message", message);
            out.push_str("</Error>");
            shown(&mut out, "RequestId", request_id);
            out.push_str("</ErrorResponse>");
        }
    }
    out
}

const DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

fn text(out: &mut String, name: &str, value: &str) -> Result<(), XmlError> {
    if !is_plain(value)
        && let Some(c) = value.chars().find(|c| !carriable(*c))
    {
        let code = c.escape_unicode();
        return Err(XmlError::Unfit(format!(
            "{name} has the character {code}, which XML can't carry"
        )));
    }
    shown(out, name, value);
    Ok(())
}

/// Whether XML carries the text as it is: nearly all is such, and most of the work on
/// a long list would be to look at each of its characters.
fn is_plain(value: &str) -> bool {
    let plain = |b: u8| matches!(b, b' '..=b'~') && !matches!(b, b'&' | b'<' | b'>' | b'"');
    value.bytes().all(plain)
}

fn shown(out: &mut String, name: &str, value: &str) {
    start(out, name);
    if is_plain(value) {
        out.push_str(value);
    } else {
        escaped(out, value);
    }
    end(out, name);
}

fn escaped(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // A bare carriage return would be read as a line feed.
            '\r' => out.push_str("&#xD;"),
            c if carriable(c) => out.push(c),
            c => out.extend(c.escape_unicode()),
        }
    }
}

fn start(out: &mut String, name: &str) {
    out.push('<');
    out.push_str(name);
    out.push('>');
}

fn end(out: &mut String, name: &str) {
    out.push_str("</");
    out.push_str(name);
    out.push('>');
}

/// Writes one value as the element `name`; without a name, a structure's
/// members alone.
struct Element<'o> {
    out: &'o mut String,
    name: Option<&'static str>,
    protocol: Protocol,
    /// How long all may be.
    most: usize,
}

impl<'o> Element<'o> {
    fn bare(out: &'o mut String, protocol: Protocol, most: usize) -> Self {
        Self {
            out,
            name: None,
            protocol,
            most,
        }
    }

    fn open(&mut self) {
        if let Some(name) = self.name {
            start(self.out, name);
        }
    }

    fn display(self, value: impl Display) -> Result<(), XmlError> {
        self.serialize_str(&value.to_string())
    }

    fn no(&self, what: &str) -> XmlError {
        XmlError::Unfit(format!(
            "{what} has no form on the wire (in {})",
            self.name.unwrap_or("the answer")
        ))
    }
}

macro_rules! plain {
    ($($method:ident($ty:ty)),*) => {$(
        fn $method(self, value: $ty) -> Result<(), XmlError> { self.display(value) }
    )*};
}

impl<'o> Serializer for Element<'o> {
    type Ok = ();
    type Error = XmlError;
    type SerializeSeq = Open<'o>;
    type SerializeTuple = Impossible<(), XmlError>;
    type SerializeTupleStruct = Impossible<(), XmlError>;
    type SerializeTupleVariant = Impossible<(), XmlError>;
    type SerializeMap = Impossible<(), XmlError>;
    type SerializeStruct = Open<'o>;
    type SerializeStructVariant = Impossible<(), XmlError>;

    plain! {
        serialize_bool(bool), serialize_i8(i8), serialize_i16(i16), serialize_i32(i32),
        serialize_i64(i64), serialize_u8(u8), serialize_u16(u16), serialize_u32(u32),
        serialize_u64(u64), serialize_f32(f32), serialize_f64(f64), serialize_char(char)
    }

    fn serialize_str(self, value: &str) -> Result<(), XmlError> {
        if self.out.len() > self.most {
            return Err(XmlError::TooLong);
        }
        match self.name {
            Some(name) => text(self.out, name, value),
            None => Err(self.no("a scalar without a name")),
        }
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<(), XmlError> {
        Err(self.no("a byte string"))
    }

    fn serialize_none(self) -> Result<(), XmlError> {
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), XmlError> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), XmlError> {
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), XmlError> {
        Ok(())
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), XmlError> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), XmlError> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), XmlError> {
        Err(self.no("a variant with data"))
    }

    fn serialize_seq(mut self, _: Option<usize>) -> Result<Open<'o>, XmlError> {
        if self.name.is_none() {
            return Err(self.no("a list without a name"));
        }
        self.open();
        Ok(Open(self))
    }

    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, XmlError> {
        Err(self.no("a tuple"))
    }

    fn serialize_tuple_struct(
        self,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleStruct, XmlError> {
        Err(self.no("a tuple"))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, XmlError> {
        Err(self.no("a variant with data"))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, XmlError> {
        Err(self.no("a map"))
    }

    fn serialize_struct(mut self, _: &'static str, _: usize) -> Result<Open<'o>, XmlError> {
        self.open();
        Ok(Open(self))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, XmlError> {
        Err(self.no("a variant with data"))
    }
}

/// An element whose start tag has been written.
struct Open<'o>(Element<'o>);

impl Open<'_> {
    fn child<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), XmlError> {
        value.serialize(Element {
            out: self.0.out,
            name: Some(name),
            protocol: self.0.protocol,
            most: self.0.most,
        })
    }

    fn close(self) {
        if let Some(name) = self.0.name {
            end(self.0.out, name);
        }
    }
}

impl SerializeSeq for Open<'_> {
    type Ok = ();
    type Error = XmlError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), XmlError> {
        let name = match self.0.protocol {
            Protocol::Ec2 => "item",
            Protocol::Query => "member",
        };
        self.child(name, value)
    }

    fn end(self) -> Result<(), XmlError> {
        self.close();
        Ok(())
    }
}

impl SerializeStruct for Open<'_> {
    type Ok = ();
    type Error = XmlError;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), XmlError> {
        self.child(name, value)
    }

    fn end(self) -> Result<(), XmlError> {
        self.close();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
