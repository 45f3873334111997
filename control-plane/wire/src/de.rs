//! The serde deserializer over a [`Form`].
//!
//! Structures take named children, sequences take children numbered from 1
//! without a gap (`X.1`; `X.member.1` in the `query` protocol), scalars take the
//! value. With `#[serde(deny_unknown_fields)]` on the request a parameter that
//! it does not have becomes EC2's `UnknownParameter` under its full name.

use std::{collections::btree_map, fmt, str::FromStr};

use serde::{
    de::{
        self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor,
    },
    forward_to_deserialize_any,
};

use super::{Form, Node, Protocol, WireError, carriable, join, quoted};

/// Reads a request out of its form.
///
/// # Errors
/// When a parameter is unknown, missing, no number where one is asked for, or
/// a list has a gap.
pub fn from_form<T: DeserializeOwned>(form: &Form, protocol: Protocol) -> Result<T, WireError> {
    T::deserialize(NodeDeserializer {
        node: &form.root,
        path: String::new(),
        protocol,
    })
}

impl de::Error for WireError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        // Serde doesn't know where in the form it is: `place` adds the name.
        Self::Invalid {
            name: String::new(),
            why: message.to_string(),
        }
    }

    fn unknown_field(field: &str, _: &'static [&'static str]) -> Self {
        Self::Unknown(quoted(field))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field.to_owned())
    }
}

impl WireError {
    fn place(self, path: &str) -> Self {
        match self {
            Self::Invalid { name, why } if name.is_empty() => Self::Invalid {
                name: quoted(path),
                why,
            },
            other => other,
        }
    }
}

struct NodeDeserializer<'a> {
    node: &'a Node,
    path: String,
    protocol: Protocol,
}

impl<'a> NodeDeserializer<'a> {
    fn invalid(&self, why: impl Into<String>) -> WireError {
        WireError::Invalid {
            name: quoted(&self.path),
            why: why.into(),
        }
    }

    fn scalar(&self) -> Result<&'a str, WireError> {
        if let Some(child) = self.node.children.keys().next() {
            return Err(WireError::Unknown(quoted(&join(&self.path, child))));
        }
        let value = self.node.value.as_deref();
        let value = value.ok_or_else(|| self.invalid("it has no value"))?;
        // No answer could give it back.
        if let Some(c) = value.chars().find(|c| !carriable(*c)) {
            let code = c.escape_unicode();
            return Err(self.invalid(format!("it has the character {code}, which is not allowed")));
        }
        Ok(value)
    }

    fn number<T: FromStr>(&self) -> Result<T, WireError> {
        let text = self.scalar()?;
        text.parse().map_err(|_| {
            self.invalid(format!(
                "\"{}\" is not a number in the range allowed",
                quoted(text)
            ))
        })
    }

    /// The elements of a list with their full names, in order.
    fn elements(&self) -> Result<Vec<NodeDeserializer<'a>>, WireError> {
        let (mut node, mut path) = (self.node, self.path.clone());
        if self.protocol == Protocol::Query {
            // An empty list is written `X=` by the `query` protocol.
            if node.children.is_empty() && node.value.as_deref() == Some("") {
                return Ok(Vec::new());
            }
            if let (1, Some(member)) = (node.children.len(), node.children.get("member")) {
                path = join(&path, "member");
                node = member;
            }
        }
        if node.value.is_some() {
            return Err(self.invalid("it is a list, whose elements are numbered from 1"));
        }
        let mut elements = Vec::with_capacity(node.children.len());
        for (name, child) in &node.children {
            let index = name.parse::<usize>().ok();
            // One form of a number only, so that `1` and `01` can't both be there.
            let Some(index) = index.filter(|i| i.to_string() == *name) else {
                return Err(WireError::Unknown(quoted(&join(&path, name))));
            };
            elements.push((index, child, join(&path, name)));
        }
        elements.sort_by_key(|(index, ..)| *index);
        if elements.iter().enumerate().any(|(i, (n, ..))| *n != i + 1) {
            return Err(self.invalid("its elements are not numbered from 1 without a gap"));
        }
        Ok(elements
            .into_iter()
            .map(|(_, node, path)| NodeDeserializer {
                node,
                path,
                protocol: self.protocol,
            })
            .collect())
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
            visitor.$visit(self.number()?).map_err(|e: WireError| e.place(&self.path))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for NodeDeserializer<'_> {
    type Error = WireError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        if self.node.children.is_empty() {
            self.deserialize_str(visitor)
        } else {
            self.deserialize_map(visitor)
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        visitor
            .visit_str(self.scalar()?)
            .map_err(|e: WireError| e.place(&self.path))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        let text = self.scalar()?;
        if text.eq_ignore_ascii_case("true") {
            visitor.visit_bool(true)
        } else if text.eq_ignore_ascii_case("false") {
            visitor.visit_bool(false)
        } else {
            Err(self.invalid(format!("\"{}\" is neither true nor false", quoted(text))))
        }
    }

    numbers! {
        deserialize_i8 visit_i8, deserialize_i16 visit_i16, deserialize_i32 visit_i32,
        deserialize_i64 visit_i64, deserialize_u8 visit_u8, deserialize_u16 visit_u16,
        deserialize_u32 visit_u32, deserialize_u64 visit_u64,
        deserialize_f32 visit_f32, deserialize_f64 visit_f64
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        // A parameter that isn't there is never asked for: this one is.
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, WireError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        visitor.visit_seq(Elements(self.elements()?.into_iter()))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        if self.node.value.is_some() {
            return Err(self.invalid("it is a structure, and has no value of its own"));
        }
        visitor
            .visit_map(Members {
                rest: self.node.children.iter(),
                next: None,
                path: &self.path,
                protocol: self.protocol,
            })
            .map_err(|e| match e {
                WireError::Missing(name) if !name.contains('.') => {
                    WireError::Missing(join(&self.path, &name))
                }
                e => e.place(&self.path),
            })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, WireError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, WireError> {
        visitor
            .visit_enum(self.scalar()?.into_deserializer())
            .map_err(|e: WireError| e.place(&self.path))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        // Nothing is accepted and ignored, even where `deny_unknown_fields`
        // was forgotten.
        drop(visitor);
        Err(WireError::Unknown(quoted(&self.path)))
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

struct Elements<'a>(std::vec::IntoIter<NodeDeserializer<'a>>);

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = WireError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, WireError> {
        let Some(element) = self.0.next() else {
            return Ok(None);
        };
        let path = element.path.clone();
        let value = seed.deserialize(element).map_err(|e| e.place(&path));
        value.map(Some)
    }
}

struct Members<'a> {
    rest: btree_map::Iter<'a, String, Node>,
    next: Option<(&'a str, &'a Node)>,
    path: &'a str,
    protocol: Protocol,
}

impl<'de> MapAccess<'de> for Members<'_> {
    type Error = WireError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, WireError> {
        let Some((name, node)) = self.rest.next() else {
            return Ok(None);
        };
        self.next = Some((name, node));
        let key: de::value::StrDeserializer<'_, WireError> = name.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|e| match e {
            WireError::Unknown(name) => WireError::Unknown(quoted(&join(self.path, &name))),
            e => e,
        })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, WireError> {
        let Some((name, node)) = self.next.take() else {
            return Err(WireError::Malformed("a value without a name".into()));
        };
        let path = join(self.path, name);
        let value = NodeDeserializer {
            node,
            path: path.clone(),
            protocol: self.protocol,
        };
        // What refuses a value once it is read, as a `try_from` does, knows no name.
        seed.deserialize(value).map_err(|e| e.place(&path))
    }
}

#[cfg(test)]
mod tests;
