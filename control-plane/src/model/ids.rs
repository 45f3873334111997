//! Identifiers: a prefix that names the kind and 17 hexadecimal digits, as EC2's.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/resource-ids.html>

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a string is no identifier of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{given}\" is not of the form {prefix}- followed by 8 or 17 hexadecimal digits")]
pub struct MalformedId {
    /// What was given.
    pub given: String,
    /// The prefix that the kind has.
    pub prefix: &'static str,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The prefix, without its dash.
            pub const PREFIX: &'static str = $prefix;

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
            type Err = MalformedId;
            fn from_str(s: &str) -> Result<Self, MalformedId> {
                let ok = s
                    .strip_prefix(concat!($prefix, "-"))
                    .is_some_and(|d| matches!(d.len(), 8 | 17) && d.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
                if ok { Ok(Self(s.to_owned())) } else {
                    Err(MalformedId { given: s.chars().take(64).collect(), prefix: $prefix })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = MalformedId;
            fn try_from(s: String) -> Result<Self, MalformedId> { s.parse() }
        }
        impl From<$name> for String { fn from(id: $name) -> String { id.0 } }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl AsRef<str> for $name { fn as_ref(&self) -> &str { &self.0 } }
        impl std::borrow::Borrow<str> for $name { fn borrow(&self) -> &str { &self.0 } }
    )*};
}

ids! {
    /// An instance.
    InstanceId = "i";
    /// The reservation that one RunInstances call made.
    ReservationId = "r";
    /// A machine image.
    ImageId = "ami";
    /// A key pair.
    KeyPairId = "key";
    /// A security group.
    GroupId = "sg";
    /// One rule of a security group.
    RuleId = "sgr";
    /// A VPC.
    VpcId = "vpc";
    /// A subnet.
    SubnetId = "subnet";
    /// An elastic network interface.
    EniId = "eni";
    /// The attachment of an interface to an instance.
    EniAttachmentId = "eni-attach";
    /// An EBS volume.
    VolumeId = "vol";
    /// An EBS snapshot.
    SnapshotId = "snap";
    /// A set of DHCP options.
    DhcpOptionsId = "dopt";
}

#[cfg(test)]
mod tests {
    use super::*;

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
