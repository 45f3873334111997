//! Key pairs. The public half is kept, the private half is given once.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-key-pairs.html>

mod create_key_pair;
mod delete_key_pair;
mod describe_key_pairs;
mod import_key_pair;
mod material;
mod ppk;

pub(super) use create_key_pair::CreateKeyPair;
pub(super) use delete_key_pair::DeleteKeyPair;
pub(super) use describe_key_pairs::DescribeKeyPairs;
pub(super) use import_key_pair::ImportKeyPair;

use std::collections::BTreeMap;

use crate::{
    api::{ApiError, Ctx, shared::quota, wire::quoted},
    model::{KeyPair, KeyPairId},
};

/// EC2's quota of key pairs in a region.
pub(super) const MAX_KEY_PAIRS: usize = 5000;

/// Checks a new key pair's name: up to 255 printable ASCII characters.
fn check_name(name: &str) -> Result<(), ApiError> {
    let printable = name.bytes().all(|b| (b' '..=b'~').contains(&b));
    if name.is_empty() || name.len() > 255 || !printable || name.trim() != name {
        let why = "It must be 1 to 255 ASCII characters, without spaces around.";
        return Err(ApiError::invalid_value("KeyName", name, why));
    }
    Ok(())
}

/// Keeps a new key pair with its tags.
async fn keep(
    ctx: &Ctx,
    name: String,
    key: material::Public,
    tags: BTreeMap<String, String>,
) -> Result<KeyPair, ApiError> {
    let pair = KeyPair {
        id: ctx.fresh_id(KeyPairId::from_random),
        scope: ctx.scope().clone(),
        name,
        key_type: key.kind.to_owned(),
        fingerprint: key.fingerprint,
        public_key: key.openssh,
        created: ctx.now(),
    };
    ctx.transact(|view, change| {
        if view.get::<KeyPair>(&pair.name).is_some() {
            return Err(duplicate(&pair.name));
        }
        quota::one_more::<KeyPair>(view, change, MAX_KEY_PAIRS, || {
            ApiError::new(
                "KeyPairLimitExceeded",
                format!("The maximum number of key pairs, {MAX_KEY_PAIRS}, has been reached."),
            )
        })?;
        change.create(&pair);
        if !tags.is_empty() {
            change.put_tags(&pair, tags.clone());
        }
        Ok(())
    })
    .await?;
    Ok(pair)
}

fn duplicate(name: &str) -> ApiError {
    let message = format!("The keypair '{}' already exists.", quoted(name));
    ApiError::new("InvalidKeyPair.Duplicate", message)
}
