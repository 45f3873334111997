//! Hearth's own certificate authority.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};

use crate::kept;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Clients have to be told of it by hand: for long.
const AUTHORITY_LIFE: Duration = DAY.saturating_mul(20 * 365);
/// Less than every client's own limit.
const SERVER_LIFE: Duration = DAY.saturating_mul(90);
/// When a third of that is left.
const RENEWED_AFTER: Duration = DAY.saturating_mul(60);
/// For clients whose clock is behind.
const BEFORE: Duration = Duration::from_secs(60 * 60);

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";

/// The authority: its certificate, and the key that signs.
pub struct Authority {
    /// In PEM.
    pub certificate: String,
    key: KeyPair,
}

/// A server's certificate and its key.
pub(super) struct Issued {
    pub certificate: CertificateDer<'static>,
    pub key: PrivateKeyDer<'static>,
    /// When another should take its place.
    pub renew: SystemTime,
}

impl Authority {
    /// Where its certificate is in `folder`.
    pub fn certificate_in(folder: &Path) -> PathBuf {
        folder.join(CERTIFICATE)
    }

    /// Reads the authority in `folder`, or makes one there.
    ///
    /// # Errors
    /// When a file can't be read or written, or holds something else.
    pub fn load_or_create(folder: &Path, now: SystemTime) -> anyhow::Result<Self> {
        let path = folder.join(KEY);
        let key = kept::read_or_make(&path, 0o600, || Ok(KeyPair::generate()?.serialize_pem()))?;
        let key = KeyPair::from_pem(&key).with_context(|| format!("reading {}", path.display()))?;
        // After the key: a crash between the two leaves a key to make it from.
        let certificate = kept::read_or_make(&Self::certificate_in(folder), 0o644, || {
            Ok(params(&key, now).self_signed(&key)?.pem())
        })?;
        Ok(Self { certificate, key })
    }

    /// A new certificate for these host names and addresses, with a new key.
    pub(super) fn issue(&self, names: &[String], now: SystemTime) -> anyhow::Result<Issued> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)
            .with_context(|| format!("a certificate for {}", names.join(", ")))?;
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "Hearth API");
        params.not_before = (now - BEFORE).into();
        params.not_after = (now + SERVER_LIFE).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::new(self::params(&self.key, now), &self.key);
        let certificate = params.signed_by(&key, &issuer)?;
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|why| anyhow::anyhow!("a key of our own: {why}"))?;
        Ok(Issued {
            certificate: certificate.into(),
            key,
            renew: now + RENEWED_AFTER,
        })
    }
}

/// All of it follows from the key, but for the time: so an issuer can be made anew
/// without reading the certificate.
fn params(key: &KeyPair, now: SystemTime) -> CertificateParams {
    let id = hex::encode(&Sha256::digest(key.subject_public_key_info())[..4]);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Hearth CA {id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - BEFORE).into();
    params.not_after = (now + AUTHORITY_LIFE).into();
    params
}
