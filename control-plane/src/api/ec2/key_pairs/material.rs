//! The keys themselves: made, read, and their fingerprints as EC2 makes them.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/verify-keys.html>

use base64::{Engine as _, engine::general_purpose::STANDARD};
use md5::Md5;
use rand::rngs::SysRng;
use rsa::{
    BoxedUint, PrivateKey as RsaPrivateKey, PublicKey as RsaPublicKey,
    pkcs1::{EncodeRsaPrivateKey as _, LineEnding as PemLineEnding},
    pkcs8::{DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _},
    traits::{PrivateKeyParts as _, PublicKeyParts as _},
};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use ssh_key::{
    Algorithm, HashAlg, LineEnding, Mpint, PrivateKey, PublicKey,
    public::{KeyData, RsaPublicKey as SshRsa},
    rand_core::OsRng,
};
use tokio::sync::Semaphore;

use super::ppk;
use crate::api::ApiError;

/// So many keys are made at a time: each takes a processor for a moment, and
/// callers who ask for many must leave some to others.
static MAKERS: Semaphore = Semaphore::const_new(2);

/// The size of the RSA keys that EC2 makes.
const RSA_BITS: usize = 2048;
/// The sizes of RSA keys that EC2 imports.
const RSA_IMPORTED: [usize; 3] = [1024, 2048, 4096];

/// The longest text of a key that is looked at; one of 4096 bits has some 800 characters.
const MAX_IMPORTED: usize = 16 * 1024;

/// The longest public exponent, in bytes: as long as every implementation takes.
const MAX_EXPONENT: usize = 8;

/// A public key as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Public {
    /// `rsa` or `ed25519`.
    pub kind: &'static str,
    /// One line, with the key pair's name as its comment.
    pub openssh: String,
    /// EC2's fingerprint for a key of this kind and origin.
    pub fingerprint: String,
}

/// Makes a key: its public half, and its private half in this format.
///
/// # Errors
/// When the system has no randomness.
pub(super) async fn generate(
    kind: Kind,
    format: Format,
    name: &str,
) -> Result<(Public, String), ApiError> {
    let maker = MAKERS.acquire().await.map_err(ApiError::internal)?;
    let name = name.to_owned();
    tokio::task::spawn_blocking(move || {
        // Kept until it is done, also when the caller has gone.
        let _maker = maker;
        make(kind, format, &name)
    })
    .await
    .map_err(ApiError::internal)?
    .map_err(ApiError::internal)
}

/// Takes CPU time; not for the async threads.
fn make(kind: Kind, format: Format, name: &str) -> anyhow::Result<(Public, String)> {
    match kind {
        Kind::Rsa => make_rsa(format, name),
        Kind::Ed25519 => make_ed25519(format, name),
    }
}

/// What kinds of keys there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Rsa,
    Ed25519,
}

/// How the private half is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Pem,
    /// PuTTY's.
    Ppk,
}

fn make_rsa(format: Format, name: &str) -> anyhow::Result<(Public, String)> {
    let key = RsaPrivateKey::new(&mut SysRng, RSA_BITS)?;
    // Of a key that EC2 made: SHA-1 of the private key as DER PKCS#8.
    let fingerprint = colons(&Sha1::digest(key.to_pkcs8_der()?.as_bytes()));
    let public = SshRsa {
        e: Mpint::from_positive_bytes(&key.e_bytes())?,
        n: Mpint::from_positive_bytes(&key.n_bytes())?,
    };
    let ssh = PublicKey::new(KeyData::Rsa(public), name);
    let private = match format {
        Format::Pem => key.to_pkcs1_pem(PemLineEnding::LF)?.to_string(),
        Format::Ppk => ppk::file("ssh-rsa", name, &ssh.to_bytes()?, &rsa_beside(&key)?)?,
    };
    let public = Public {
        kind: "rsa",
        openssh: ssh.to_openssh()?,
        fingerprint,
    };
    Ok((public, private))
}

/// What PuTTY keeps of an RSA key beside its public half: d, p, q, and q's inverse
/// modulo p.
fn rsa_beside(key: &RsaPrivateKey) -> anyhow::Result<Vec<u8>> {
    let [p, q] = key.primes() else {
        anyhow::bail!("an RSA key of other than two primes");
    };
    let inverse = key.crt_coefficient();
    let inverse = inverse.ok_or_else(|| anyhow::anyhow!("an RSA key without its inverse"))?;
    let mut beside = Vec::new();
    for number in [key.d(), p, q, &inverse] {
        let number = Mpint::from_positive_bytes(&number.to_be_bytes_trimmed_vartime())?;
        beside.extend(ppk::string(number.as_bytes())?);
    }
    Ok(beside)
}

fn make_ed25519(format: Format, name: &str) -> anyhow::Result<(Public, String)> {
    let mut key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519)?;
    key.set_comment(name);
    let private = match (format, key.key_data().ed25519()) {
        (Format::Pem, _) => key.to_openssh(LineEnding::LF)?.to_string(),
        (Format::Ppk, Some(pair)) => {
            let beside = ppk::string(&pair.private.to_bytes())?;
            let public = key.public_key().to_bytes()?;
            ppk::file("ssh-ed25519", name, &public, &beside)?
        }
        (Format::Ppk, None) => anyhow::bail!("the key is of another kind"),
    };
    let public = Public {
        kind: "ed25519",
        openssh: key.public_key().to_openssh()?,
        fingerprint: sha256(key.public_key()),
    };
    Ok((public, private))
}

/// Reads a caller's key in any form that EC2 takes: OpenSSH's line, SSH's file, or DER
/// in base64.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/create-key-pairs.html#how-to-generate-your-own-key-and-import-it-to-aws>
pub(super) fn import(text: &str, name: &str) -> Result<Public, String> {
    let no_key = || "Key is not in valid OpenSSH public key format".to_owned();
    // Before anything is made of it: what a caller sends may be of any size.
    if text.len() > MAX_IMPORTED {
        return Err(no_key());
    }
    let text = text.trim();
    let read = PublicKey::from_openssh(text).ok();
    let read = read.or_else(|| PublicKey::from_bytes(&ssh2_file(text)?).ok());
    let mut key = read.or_else(|| from_der(text)).ok_or_else(no_key)?;
    key.set_comment(name);
    let openssh = key
        .to_openssh()
        .map_err(|_| "Key can't be written in OpenSSH format".to_owned())?;
    let (kind, fingerprint) = match key.key_data() {
        KeyData::Ed25519(_) => ("ed25519", sha256(&key)),
        KeyData::Rsa(data) => {
            let no_key = || "Key is no valid RSA key".to_owned();
            let [n, e] = [&data.n, &data.e].map(Mpint::as_positive_bytes);
            let (n, e) = (n.ok_or_else(no_key)?, e.ok_or_else(no_key)?);
            // Before the arithmetic: what a caller sends may be of any size.
            let bits = n.len() * 8 - n.first().map_or(0, |b| b.leading_zeros() as usize);
            if !RSA_IMPORTED.contains(&bits) {
                return Err(format!(
                    "RSA keys have 1024, 2048 or 4096 bits, this one has {bits}"
                ));
            }
            if e.len() > MAX_EXPONENT {
                return Err(no_key());
            }
            let number = BoxedUint::from_be_slice_vartime;
            let public = RsaPublicKey::new(number(n), number(e)).map_err(|_| no_key())?;
            let der = public.to_public_key_der().map_err(|_| no_key())?;
            // Of a key that was imported: MD5 of the public key as DER.
            ("rsa", colons(&Md5::digest(der.as_bytes())))
        }
        _ => return Err("Only RSA and ED25519 keys are supported".to_owned()),
    };
    Ok(Public {
        kind,
        openssh,
        fingerprint,
    })
}

/// The key, as SSH sends it, in a file of RFC 4716: the base64 between two marks, after
/// headers, a line of which that ends with a backslash goes on in the next.
///
/// <https://www.rfc-editor.org/rfc/rfc4716#section-3>
fn ssh2_file(text: &str) -> Option<Vec<u8>> {
    let mut lines = text.lines().map(str::trim_end);
    (lines.next()? == "---- BEGIN SSH2 PUBLIC KEY ----").then_some(())?;
    let (mut body, mut in_header) = (String::new(), false);
    for line in lines {
        if line == "---- END SSH2 PUBLIC KEY ----" {
            return STANDARD.decode(body).ok();
        }
        // No base64 has a colon.
        if in_header || line.contains(':') {
            in_header = line.ends_with('\\');
        } else {
            body.push_str(line);
        }
    }
    None
}

/// An RSA key as DER (a `SubjectPublicKeyInfo`) in base64, in however many lines.
fn from_der(text: &str) -> Option<PublicKey> {
    let joined: String = text.split_ascii_whitespace().collect();
    let der = STANDARD.decode(joined).ok()?;
    let key = RsaPublicKey::from_public_key_der(&der).ok()?;
    let number = |bytes: &[u8]| Mpint::from_positive_bytes(bytes).ok();
    let (e, n) = (number(&key.e_bytes())?, number(&key.n_bytes())?);
    Some(PublicKey::new(KeyData::Rsa(SshRsa { e, n }), ""))
}

/// OpenSSH's SHA-256 fingerprint, without its name and with padding.
fn sha256(key: &PublicKey) -> String {
    debug_assert_eq!(
        key.fingerprint(HashAlg::Sha256).algorithm(),
        HashAlg::Sha256
    );
    match key.key_data().fingerprint(HashAlg::Sha256) {
        ssh_key::Fingerprint::Sha256(hash) => STANDARD.encode(hash),
        _ => STANDARD.encode(Sha256::digest(key.to_bytes().unwrap_or_default())),
    }
}

fn colons(bytes: &[u8]) -> String {
    let parts: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    parts.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ed25519_key_fits_its_public_half() {
        let (public, pem) = make(Kind::Ed25519, Format::Pem, "k").unwrap();
        assert!(pem.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n"));
        let private = PrivateKey::from_openssh(&pem).unwrap();
        assert_eq!(private.public_key().to_openssh().unwrap(), public.openssh);
        assert!(public.openssh.ends_with(" k"));
        // 32 bytes in base64.
        assert_eq!(public.fingerprint.len(), 44);
        // The fingerprint doesn't depend on where the key came from.
        let imported = import(&public.openssh, "k").unwrap();
        assert_eq!(imported, public);
    }

    #[test]
    fn an_rsa_key_fits_its_public_half() {
        let (public, pem) = make(Kind::Rsa, Format::Pem, "k").unwrap();
        assert!(pem.starts_with("-----BEGIN RSA PRIVATE KEY-----\n"));
        let imported = import(&public.openssh, "k").unwrap();
        assert_eq!(imported.openssh, public.openssh);
        assert_eq!(public.fingerprint.len(), 20 * 3 - 1);
        assert_eq!(imported.fingerprint.len(), 16 * 3 - 1);
    }

    #[tokio::test]
    async fn only_so_many_are_made_at_a_time() {
        let all = MAKERS.acquire_many(2).await.unwrap();
        let mut third = std::pin::pin!(generate(Kind::Ed25519, Format::Pem, "k"));
        let waits = tokio::time::timeout(std::time::Duration::from_millis(20), &mut third);
        assert!(waits.await.is_err());
        drop(all);
        third.await.unwrap();
    }

    #[test]
    fn other_keys_are_refused() {
        let ecdsa = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2HMM5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkbqAcEc= x";
        for bad in ["", "x", "ssh-ed25519 AAAA", ecdsa] {
            assert!(import(bad, "k").is_err(), "{bad}");
        }
    }

    /// A DER integer, or a sequence of what is in it.
    fn tagged(tag: u8, body: &[u8]) -> Vec<u8> {
        let [high, low] = u16::try_from(body.len()).unwrap().to_be_bytes();
        let length = match (high, low) {
            (0, 0..128) => vec![low],
            (0, _) => vec![0x81, low],
            _ => vec![0x82, high, low],
        };
        [&[tag], &length[..], body].concat()
    }

    /// An RSA key of these numbers as `SubjectPublicKeyInfo` in base64 (RFC 3279, 2.3.1).
    fn der(n: &[u8], e: &[u8]) -> String {
        let key = tagged(0x30, &[tagged(0x02, n), tagged(0x02, e)].concat());
        let rsa = [
            0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0,
        ];
        let bits = tagged(0x03, &[&[0], &key[..]].concat());
        STANDARD.encode(tagged(0x30, &[&rsa[..], &bits].concat()))
    }

    #[test]
    fn hostile_keys_are_refused_and_no_panic() {
        let modulus = |length: usize, last: u8| {
            let mut n = vec![0xd5; length];
            n[0] = 0;
            n[length - 1] = last;
            n
        };
        let (odd, three) = (modulus(257, 1), vec![3]);
        assert!(import(&der(&odd, &three), "k").is_ok(), "a good one");
        for (n, e) in [
            (vec![0], three.clone()),
            (vec![1], three.clone()),
            (modulus(257, 2), three.clone()),
            (modulus(11_000, 1), three.clone()),
            (odd.clone(), vec![0]),
            (odd.clone(), vec![2]),
            (odd.clone(), vec![0x7f; 9]),
            (odd.clone(), odd.clone()),
            (vec![0xff; 256], three),
            (vec![], vec![]),
        ] {
            let text = der(&n, &e);
            assert!(import(&text, "k").is_err(), "{} {}", n.len(), e.len());
        }
        let begin = "---- BEGIN SSH2 PUBLIC KEY ----";
        for body in [
            "",
            "\n",
            "\nComment: x\\",
            "\nComment: x\\\nAAAA",
            "\n====\n---- END SSH2 PUBLIC KEY ----",
        ] {
            assert!(import(&format!("{begin}{body}"), "k").is_err(), "{body}");
        }
        // A good one, a byte of which is another: read or refused.
        let (public, _) = make(Kind::Ed25519, Format::Pem, "k").unwrap();
        for at in 0..public.openssh.len() {
            let mut bytes = public.openssh.clone().into_bytes();
            bytes[at] ^= 1;
            let _ = String::from_utf8(bytes).map(|text| import(&text, "k"));
        }
    }
}
