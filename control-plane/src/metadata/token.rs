//! IMDSv2's session tokens: bound to an instance and a time, and kept nowhere.
//!
//! A token is its expiry, a nonce and an HMAC of both with the instance's id
//! under a key that only this host has, base64. So a guest can ask for as many
//! as it likes, and a restart forgets none.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::model::InstanceId;

/// The longest life of a token: six hours.
pub const MAX_TTL_SECONDS: u64 = 21600;

/// The key that this host's tokens are signed with.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenKey(…)")
    }
}

impl TokenKey {
    /// A key of these bytes, which must be random.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    fn mac(&self, instance: &InstanceId, head: &[u8]) -> Hmac<Sha256> {
        // HMAC takes keys of any length; the array has a fixed one.
        #[allow(clippy::expect_used)]
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("any length is right");
        mac.update(head);
        mac.update(instance.as_str().as_bytes());
        mac
    }

    /// A token for `instance`, valid until `expiry` (seconds since 1970).
    pub fn issue(&self, instance: &InstanceId, expiry: u64, nonce: [u8; 8]) -> String {
        let mut bytes = Vec::with_capacity(48);
        bytes.extend_from_slice(&expiry.to_be_bytes());
        bytes.extend_from_slice(&nonce);
        let tag = self.mac(instance, &bytes).finalize().into_bytes();
        bytes.extend_from_slice(&tag);
        URL_SAFE.encode(bytes)
    }

    /// The seconds that a token has left at `now`; `None` when it is not this
    /// instance's, or no longer valid, or never was.
    pub fn remaining(&self, instance: &InstanceId, token: &str, now: u64) -> Option<u64> {
        if token.len() != 64 {
            return None;
        }
        let bytes = URL_SAFE.decode(token).ok()?;
        let (head, tag) = bytes.split_at_checked(16)?;
        self.mac(instance, head).verify_slice(tag).ok()?;
        let expiry = u64::from_be_bytes(head.get(..8)?.try_into().ok()?);
        expiry.checked_sub(now).filter(|left| *left > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_instances_for_its_time() {
        let key = TokenKey::new([7; 32]);
        let (a, b) = (InstanceId::from_random(1), InstanceId::from_random(2));
        let token = key.issue(&a, 1000, [1; 8]);
        assert_eq!(key.remaining(&a, &token, 990), Some(10));
        assert_eq!(key.remaining(&a, &token, 1000), None, "expired");
        assert_eq!(key.remaining(&b, &token, 990), None, "another's");
        assert_eq!(TokenKey::new([8; 32]).remaining(&a, &token, 990), None);
        for bad in ["", "x", &token[1..], &format!("A{}", &token[1..63])] {
            assert_eq!(key.remaining(&a, bad, 990), None, "{bad}");
        }
        let mut longer = token.into_bytes();
        longer[5] ^= 1;
        let forged = String::from_utf8(longer).unwrap();
        assert_eq!(key.remaining(&a, &forged, 990), None);
    }
}
