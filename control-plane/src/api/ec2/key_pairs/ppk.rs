//! PuTTY's form of a private key, version 2, which every PuTTY reads: what
//! `KeyFormat=ppk` asks for. No passphrase, as with the PEM.
//!
//! <https://the.earth.li/~sgtatham/putty/0.83/htmldoc/AppendixC.html>

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::{Digest as _, Sha1};

/// What the key of the message's authentication is a hash of; a passphrase would follow.
const MAC_KEY: &[u8] = b"putty-private-key-file-mac-key";
/// The length of a line of base64.
const WIDTH: usize = 64;

/// The file. `public` is the key as SSH sends it, `private` what this algorithm keeps
/// beside that, both in SSH's encoding.
pub(super) fn file(
    algorithm: &str,
    comment: &str,
    public: &[u8],
    private: &[u8],
) -> anyhow::Result<String> {
    let mut text =
        format!("PuTTY-User-Key-File-2: {algorithm}\nEncryption: none\nComment: {comment}\n");
    lines(&mut text, "Public", public)?;
    lines(&mut text, "Private", private)?;
    let mut mac = Hmac::<Sha1>::new_from_slice(&Sha1::digest(MAC_KEY))?;
    for part in [
        algorithm.as_bytes(),
        b"none",
        comment.as_bytes(),
        public,
        private,
    ] {
        mac.update(&string(part)?);
    }
    writeln!(
        text,
        "Private-MAC: {}",
        hex::encode(mac.finalize().into_bytes())
    )?;
    Ok(text)
}

fn lines(text: &mut String, what: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let encoded = STANDARD.encode(bytes);
    writeln!(text, "{what}-Lines: {}", encoded.len().div_ceil(WIDTH))?;
    for line in encoded.as_bytes().chunks(WIDTH) {
        writeln!(text, "{}", std::str::from_utf8(line)?)?;
    }
    Ok(())
}

/// SSH's `string`: its length and its bytes.
///
/// <https://www.rfc-editor.org/rfc/rfc4251#section-5>
pub(super) fn string(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut string = u32::try_from(bytes.len())?.to_be_bytes().to_vec();
    string.extend(bytes);
    Ok(string)
}
