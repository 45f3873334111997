//! What a type looks like on the wire, asked of its own serde implementation.
//!
//! A deserializer that answers every question with a made-up value writes down
//! the questions: the fields of structures, lists, scalars. So the names in the
//! shape are the very names that serde reads, and a test can hold them against
//! botocore's model without a second list of them anywhere.

use std::fmt;

use serde::{
    Serialize,
    de::{
        self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor,
    },
    forward_to_deserialize_any,
};

/// A type's form on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Shape {
    /// Text.
    String,
    /// `true` or `false`.
    Boolean,
    /// A whole number.
    Integer,
    /// A number with a fraction.
    Float,
    /// A list.
    List {
        /// What it is a list of.
        item: Box<Shape>,
    },
    /// A structure.
    Structure {
        /// Its members by the names they have on the wire.
        members: Vec<Member>,
    },
}

impl Shape {
    /// Whether it is a structure with a member of this name.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Structure { members } => members.iter().any(|member| member.name == name),
            _ => false,
        }
    }
}

/// One member of a structure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its name on the wire.
    pub name: String,
    /// Its form.
    pub shape: Shape,
}

/// The shape of `T`.
///
/// # Errors
/// When `T` has a form that the wire can't carry, or refuses the made-up
/// values; requests and responses keep to text, numbers, booleans, lists and
/// structures.
pub fn shape_of<T: DeserializeOwned>() -> Result<Shape, String> {
    let mut shape = None;
    T::deserialize(Recorder { out: &mut shape }).map_err(|e| e.0)?;
    shape.ok_or_else(|| "the type asked for nothing".to_owned())
}

/// The made-up text: it passes as a string and as a point in time.
const SAMPLE_TEXT: &str = "1970-01-01T00:00:00.000Z";

#[derive(Debug)]
struct Unreadable(String);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreadable {}

impl de::Error for Unreadable {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

struct Recorder<'o> {
    out: &'o mut Option<Shape>,
}

macro_rules! integers {
    ($($method:ident $visit:ident),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
            *self.out = Some(Shape::Integer);
            visitor.$visit(1)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Recorder<'_> {
    type Error = Unreadable;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Unreadable> {
        Err(Unreadable(
            "a type that doesn't say what it is (untagged, flattened, a map or a tuple)".into(),
        ))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        *self.out = Some(Shape::String);
        visitor.visit_str(SAMPLE_TEXT)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        *self.out = Some(Shape::Boolean);
        visitor.visit_bool(true)
    }

    integers! {
        deserialize_i8 visit_i8, deserialize_i16 visit_i16, deserialize_i32 visit_i32,
        deserialize_i64 visit_i64, deserialize_u8 visit_u8, deserialize_u16 visit_u16,
        deserialize_u32 visit_u32, deserialize_u64 visit_u64
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        *self.out = Some(Shape::Float);
        visitor.visit_f32(1.0)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        *self.out = Some(Shape::Float);
        visitor.visit_f64(1.0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreadable> {
        let mut item = None;
        let value = visitor.visit_seq(One {
            out: Some(&mut item),
        })?;
        let item = item.ok_or_else(|| Unreadable("a list that reads no element".into()))?;
        *self.out = Some(Shape::List {
            item: Box::new(item),
        });
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        let mut members = Vec::new();
        let value = visitor.visit_map(Members {
            rest: fields.iter(),
            next: None,
            members: &mut members,
        })?;
        *self.out = Some(Shape::Structure { members });
        Ok(value)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unreadable> {
        *self.out = Some(Shape::String);
        visitor.visit_enum((*variants.first().unwrap_or(&"")).into_deserializer())
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct map identifier ignored_any
    }
}

struct One<'o> {
    out: Option<&'o mut Option<Shape>>,
}

impl<'de> SeqAccess<'de> for One<'_> {
    type Error = Unreadable;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Unreadable> {
        match self.out.take() {
            Some(out) => seed.deserialize(Recorder { out }).map(Some),
            None => Ok(None),
        }
    }
}

struct Members<'o> {
    rest: std::slice::Iter<'static, &'static str>,
    next: Option<&'static str>,
    members: &'o mut Vec<Member>,
}

impl<'de> MapAccess<'de> for Members<'_> {
    type Error = Unreadable;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Unreadable> {
        let Some(name) = self.rest.next() else {
            return Ok(None);
        };
        self.next = Some(name);
        seed.deserialize((*name).into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, Unreadable> {
        let name = self.next.take().unwrap_or_default();
        let mut shape = None;
        let value = seed
            .deserialize(Recorder { out: &mut shape })
            .map_err(|e| Unreadable(format!("{name}: {e}")))?;
        let shape = shape.ok_or_else(|| Unreadable(format!("{name}: nothing was asked for")))?;
        self.members.push(Member {
            name: name.to_owned(),
            shape,
        });
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::Time;

    #[test]
    fn names_and_forms_are_serdes_own() {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase", deny_unknown_fields)]
        #[expect(dead_code, reason = "only its shape is asked for")]
        struct T {
            first_name: String,
            #[serde(rename = "Tag", default)]
            tags: Vec<Inner>,
            at: Option<Time>,
        }
        #[derive(Deserialize)]
        #[expect(dead_code, reason = "only its shape is asked for")]
        struct Inner {
            n: u16,
            b: bool,
        }
        let member = |name: &str, shape| Member {
            name: name.into(),
            shape,
        };
        let shape = shape_of::<T>().unwrap();
        assert!(shape.has("At") && !shape.has("at") && !Shape::String.has("At"));
        let inner = Shape::Structure {
            members: vec![member("n", Shape::Integer), member("b", Shape::Boolean)],
        };
        assert_eq!(
            shape,
            Shape::Structure {
                members: vec![
                    member("FirstName", Shape::String),
                    member(
                        "Tag",
                        Shape::List {
                            item: Box::new(inner)
                        }
                    ),
                    member("At", Shape::String),
                ]
            }
        );
        assert!(shape_of::<serde_json::Value>().is_err());
    }
}
