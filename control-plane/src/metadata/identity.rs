//! The key that instance identity documents are signed with, and its certificate, by
//! which anybody can tell that a document is this cloud's.
//!
//! EC2 has a key and a certificate for each of the three forms of signature. Here one
//! RSA-2048 key makes all three, so that one certificate is right whichever is asked for.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/verify-iid.html>

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use cms::{
    cert::{
        IssuerAndSerialNumber,
        x509::{
            Certificate,
            der::{
                Any, Decode as _, Encode as _,
                asn1::{ObjectIdentifier, OctetString, SetOfVec},
            },
            spki::AlgorithmIdentifierOwned,
        },
    },
    content_info::{CmsVersion, ContentInfo},
    signed_data::{EncapsulatedContentInfo, SignedData, SignerIdentifier, SignerInfo, SignerInfos},
};
use rand::rngs::SysRng;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SigningKey as _};
use rsa::pkcs8::{EncodePrivateKey as _, LineEnding};

use crate::kept;

const KEY: &str = "identity.key";
const CERTIFICATE: &str = "identity.crt";
const BITS: usize = 2048;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Who verifies has been told of it by hand: for long.
const LIFE: Duration = DAY.saturating_mul(20 * 365);
/// For whoever's clock is behind.
const BEFORE: Duration = Duration::from_secs(60 * 60);

/// How many documents' signatures are kept: some kilobytes each.
const MOST_KEPT: usize = 1024;

// RFC 5652, 4 and 5.1; RFC 8017, appendix A; RFC 5754, 2.2.
const ID_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const ID_SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const SHA_256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");

/// A document's signatures, as they are served.
#[derive(Debug, PartialEq, Eq)]
pub struct Signatures {
    /// RSA with SHA-256 (PKCS #1 v1.5) over the document, base64.
    pub signature: String,
    /// The same within a signed message that has the document in it (RFC 5652), base64
    /// without the lines of PEM around it.
    pub pkcs7: String,
}

/// Signs identity documents.
pub struct Identity {
    /// In PEM.
    pub certificate: String,
    key: KeyPair,
    signer: IssuerAndSerialNumber,
    /// By document. A guest may ask as often as it likes: it has one, which is signed once.
    made: Mutex<BTreeMap<String, Arc<Signatures>>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(…)")
    }
}

impl Identity {
    /// Where it is kept below a data folder.
    pub fn folder(data_dir: &Path) -> PathBuf {
        data_dir.join("identity")
    }

    /// Reads the key and its certificate in `folder`, or makes them there.
    ///
    /// # Errors
    /// When a file can't be read or written, or holds something else.
    pub fn load_or_create(folder: &Path, now: SystemTime) -> anyhow::Result<Self> {
        let path = folder.join(KEY);
        let key = kept::read_or_make(&path, 0o600, || {
            let key = rsa::PrivateKey::new(&mut SysRng, BITS)?;
            Ok(key.to_pkcs8_pem(LineEnding::LF)?.to_string())
        })?;
        let key = KeyPair::from_pem_and_sign_algo(&key, &rcgen::PKCS_RSA_SHA256)
            .with_context(|| format!("reading {}", path.display()))?;
        let path = folder.join(CERTIFICATE);
        let certificate = kept::read_or_make(&path, 0o644, || {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params
                .distinguished_name
                .push(DnType::CommonName, "Hearth instance identity");
            params.not_before = (now - BEFORE).into();
            params.not_after = (now + LIFE).into();
            Ok(params.self_signed(&key)?.pem())
        })?;
        let signer = signer(&certificate).with_context(|| format!("reading {}", path.display()))?;
        Ok(Self {
            certificate,
            key,
            signer,
            made: Mutex::default(),
        })
    }

    /// The signatures of a document; those of one that was signed lately are at hand.
    ///
    /// # Errors
    /// When it can't be signed: with a key that is right it always can.
    pub fn sign(&self, document: &str) -> anyhow::Result<Arc<Signatures>> {
        let lock = || self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = lock().get(document) {
            return Ok(Arc::clone(made));
        }
        let signature = self.key.sign(document.as_bytes())?;
        let made = Arc::new(Signatures {
            pkcs7: lines(&self.message(document, &signature)?),
            signature: lines(&signature),
        });
        let mut all = lock();
        if all.len() >= MOST_KEPT {
            all.clear();
        }
        all.insert(document.to_owned(), Arc::clone(&made));
        Ok(made)
    }

    /// A signed message of `document` with this signature, DER. Without signed attributes:
    /// the signature is over the content itself (RFC 5652, 5.4).
    fn message(&self, document: &str, signature: &[u8]) -> anyhow::Result<Vec<u8>> {
        let content = OctetString::new(document.as_bytes())?;
        let signer = SignerInfo {
            version: CmsVersion::V1,
            sid: SignerIdentifier::IssuerAndSerialNumber(self.signer.clone()),
            digest_alg: algorithm(SHA_256),
            signed_attrs: None,
            signature_algorithm: algorithm(RSA_ENCRYPTION),
            signature: OctetString::new(signature)?,
            unsigned_attrs: None,
        };
        let signed = SignedData {
            version: CmsVersion::V1,
            digest_algorithms: SetOfVec::try_from(vec![algorithm(SHA_256)])?,
            encap_content_info: EncapsulatedContentInfo {
                econtent_type: ID_DATA,
                econtent: Some(Any::encode_from(&content)?),
            },
            certificates: None,
            crls: None,
            signer_infos: SignerInfos(SetOfVec::try_from(vec![signer])?),
        };
        let message = ContentInfo {
            content_type: ID_SIGNED_DATA,
            content: Any::encode_from(&signed)?,
        };
        Ok(message.to_der()?)
    }
}

fn algorithm(oid: ObjectIdentifier) -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned {
        oid,
        parameters: Some(Any::null()),
    }
}

fn signer(certificate: &str) -> anyhow::Result<IssuerAndSerialNumber> {
    let certificate = pem(certificate)?;
    let certificate = Certificate::from_der(&certificate)?.tbs_certificate;
    Ok(IssuerAndSerialNumber {
        issuer: certificate.issuer,
        serial_number: certificate.serial_number,
    })
}

fn pem(text: &str) -> anyhow::Result<Vec<u8>> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    Ok(CertificateDer::from_pem_slice(text.as_bytes())?.to_vec())
}

/// Base64 in lines of 64, as PEM has them: readers of it take no longer ones.
fn lines(bytes: &[u8]) -> String {
    let text = STANDARD.encode(bytes);
    let mut lines = String::with_capacity(text.len() + text.len() / 64);
    for (n, letter) in text.chars().enumerate() {
        if n > 0 && n % 64 == 0 {
            lines.push('\n');
        }
        lines.push(letter);
    }
    lines
}

#[cfg(test)]
pub(super) mod tests;
