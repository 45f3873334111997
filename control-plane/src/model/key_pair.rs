//! Key pairs.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{KeyPairId, Resource};

/// A key pair's public half; the private half is never kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPair {
    /// Its id.
    pub id: KeyPairId,
    /// Its name, unique in the account; the store's key.
    pub name: String,
    /// `rsa` or `ed25519`.
    pub key_type: String,
    /// As EC2 makes it for this kind of key and this origin.
    pub fingerprint: String,
    /// The public key, in OpenSSH's one-line form.
    pub public_key: String,
    /// When it was made or imported.
    pub created: Timestamp,
}

impl Resource for KeyPair {
    const KIND: &'static str = "key-pairs";
    fn id(&self) -> &str {
        &self.name
    }
}
