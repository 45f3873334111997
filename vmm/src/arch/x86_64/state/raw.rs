//! A structure of KVM's as it lies in memory, in hexadecimal: for `#[serde(with)]`.
//!
//! These are part of the kernel's interface to programs (`asm/kvm.h`), so they have the
//! same layout everywhere, and KVM itself checks what is set.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub(super) fn serialize<T, S>(value: &T, serializer: S) -> Result<S::Ok, S::Error>
where
    T: IntoBytes + Immutable,
    S: Serializer,
{
    serializer.serialize_str(&hex::encode(value.as_bytes()))
}

pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromBytes,
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    let bytes = hex::decode(text).map_err(D::Error::custom)?;
    T::read_from_bytes(&bytes).map_err(|_| {
        let (has, wants) = (bytes.len(), size_of::<T>());
        D::Error::custom(format_args!("{has} bytes where {wants} are wanted"))
    })
}
