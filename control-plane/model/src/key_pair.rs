//! Key pairs.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ConditionKey, Scope, condition_key::ec2, resource::resource};

/// A key pair's public half; the private half is never kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPair {
    /// Its id.
    pub id: KeyPairId,
    /// The account and region that it is in.
    pub scope: Scope,
    /// Its name, unique in its scope; the store's key.
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

resource! {
    KeyPair {
        /// A key pair's identifier.
        id: KeyPairId = "key",
        kind: "key-pairs",
        key: name,
        service: "ec2",
        arn: "key-pair",
        malformed: "InvalidParameterValue",
        not_found: "InvalidKeyPair.NotFound",
        noun: "key pair ID",
        indexes: [],
        conditions: conditions,
    }
}

impl KeyPair {
    fn conditions(&self) -> Vec<(ConditionKey, String)> {
        vec![
            (ec2::KEY_PAIR_NAME, self.name.clone()),
            (ec2::KEY_PAIR_TYPE, self.key_type.clone()),
        ]
    }
}
