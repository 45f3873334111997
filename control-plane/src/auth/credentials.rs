//! The account's access key: made once, kept in a file that only its owner reads.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

/// One access key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessKey {
    /// Its public half.
    pub access_key_id: String,
    /// Its secret half.
    pub secret_access_key: String,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The secret never reaches a log.
        write!(f, "AccessKey({})", self.access_key_id)
    }
}

impl AccessKey {
    /// A new key from the system's randomness, in the form AWS's have.
    pub fn generate() -> Self {
        const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let id: [u8; 16] = rand::random();
        let id = id.map(|b| char::from(BASE32[usize::from(b % 32)]));
        let secret: [u8; 30] = rand::random();
        Self {
            access_key_id: format!("AKIA{}", id.iter().collect::<String>()),
            secret_access_key: STANDARD.encode(secret),
        }
    }
}

/// The access keys of an account.
#[derive(Debug, Clone)]
pub struct CredentialStore {
    /// The account's number.
    pub account: String,
    keys: Vec<AccessKey>,
}

impl CredentialStore {
    /// The account with the one key given.
    pub fn new(account: &str, key: AccessKey) -> Self {
        Self {
            account: account.to_owned(),
            keys: vec![key],
        }
    }

    /// Reads the key from `path`; makes it, mode 0600, when there is none.
    ///
    /// # Errors
    /// When the file can't be read, written, or is no key.
    pub fn load_or_create(path: &Path, account: &str) -> io::Result<Self> {
        loop {
            match fs::read(path) {
                Ok(bytes) => {
                    let key = serde_json::from_slice(&bytes).map_err(|e| {
                        io::Error::new(
                            io::ErrorKind::InvalidData,
                            format!("{}: {e}", path.display()),
                        )
                    })?;
                    return Ok(Self::new(account, key));
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => create(path)?,
                Err(e) => return Err(e),
            }
        }
    }

    /// The key with this id.
    pub fn find(&self, access_key_id: &str) -> Option<&AccessKey> {
        self.keys.iter().find(|k| k.access_key_id == access_key_id)
    }
}

/// Writes a new key beside `path` and links it there whole, so that a crash or
/// a second process leaves one key or none, never half of one.
fn create(path: &Path) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(&AccessKey::generate())?;
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&text)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    let linked = fs::hard_link(&new, path);
    fs::remove_file(&new)?;
    match linked {
        // Another process was first: its key counts.
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials.json");
        let first = CredentialStore::load_or_create(&path, "000000000000").unwrap();
        let second = CredentialStore::load_or_create(&path, "000000000000").unwrap();
        assert_eq!(first.keys, second.keys);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let key = &first.keys[0];
        assert_eq!(first.find(&key.access_key_id), Some(key));
        assert_eq!(key.access_key_id.len(), 20);
        assert_eq!(key.secret_access_key.len(), 40);
        assert!(!format!("{first:?}").contains(&key.secret_access_key));
    }

    #[test]
    fn a_broken_file_is_an_error_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials.json");
        fs::write(&path, "{}").unwrap();
        assert!(CredentialStore::load_or_create(&path, "0").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"{}");
    }
}
