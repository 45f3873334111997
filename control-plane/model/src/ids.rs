//! Identifiers: a prefix that names the kind and 17 hexadecimal digits, as EC2's.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/resource-ids.html>

/// Why a string is no identifier of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{given}\" is not of the form {prefix}- followed by 8 or 17 hexadecimal digits")]
pub struct MalformedId {
    /// What was given.
    pub given: String,
    /// The prefix that the kind has.
    pub prefix: &'static str,
}

/// A new identifier type: 17 digits after a prefix.
macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident = $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Makes an identifier from random bits; the top 60 bits are dropped.
            pub fn from_random(bits: u128) -> Self {
                Self(format!("{}-{:017x}", $prefix, bits & ((1 << 68) - 1)))
            }

            /// The identifier as EC2 writes it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::MalformedId;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                let ok = s
                    .strip_prefix(concat!($prefix, "-"))
                    .is_some_and(|d| matches!(d.len(), 8 | 17) && d.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
                if ok { Ok(Self(s.to_owned())) } else {
                    Err($crate::MalformedId { given: s.chars().take(64).collect(), prefix: $prefix })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::MalformedId;
            fn try_from(s: String) -> Result<Self, Self::Error> { s.parse() }
        }
        impl From<$name> for String { fn from(id: $name) -> String { id.0 } }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(&self.0) }
        }
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(&self.0) }
        }
        impl AsRef<str> for $name { fn as_ref(&self) -> &str { &self.0 } }
        impl std::borrow::Borrow<str> for $name { fn borrow(&self) -> &str { &self.0 } }
    };
}

/// An identifier type that the API takes, with EC2's errors for it.
macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident = $prefix:literal, $malformed:literal, $not_found:literal, $noun:literal) => {
        $crate::ids::id_type! { $(#[$doc])* $name = $prefix }
        impl $crate::Identifier for $name {
            const PREFIX: &'static str = $prefix;
            const MALFORMED: &'static str = $malformed;
            const NOT_FOUND: &'static str = $not_found;
            const NOUN: &'static str = $noun;
        }
    };
}

pub(crate) use {id_type, identifier};

id_type! {
    /// The reservation that one RunInstances call made.
    ReservationId = "r"
}
id_type! {
    /// The attachment of an interface to an instance.
    EniAttachmentId = "eni-attach"
}
id_type! {
    /// A set of DHCP options.
    DhcpOptionsId = "dopt"
}

#[cfg(test)]
mod tests {
    use crate::InstanceId;

    #[test]
    fn ids_have_17_digits_and_parse_back() {
        let id = InstanceId::from_random(u128::MAX);
        assert_eq!(id.as_str(), "i-fffffffffffffffff");
        assert_eq!(id.as_str().parse::<InstanceId>(), Ok(id));
        assert_eq!(InstanceId::from_random(1).as_str(), "i-00000000000000001");
    }

    #[test]
    fn another_kinds_id_is_refused() {
        for bad in [
            "",
            "i-",
            "i-123",
            "vol-00000000000000001",
            "i-0000000000000000G",
            "i-0000000000000000A",
        ] {
            assert!(bad.parse::<InstanceId>().is_err(), "{bad}");
        }
    }
}
