//! The accounts there are, and the access keys of each.
//!
//! Some are given by the configuration file and never change; the others are in
//! `credentials.json` in the data folder, which `hearth account` changes and a
//! `hearth serve` that is running follows. Every key is its account's root key.

mod file;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

pub use file::{Changed, change};

/// How many keys an account may have: as an IAM user, so that one can take the
/// other's place without a gap.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html>
pub const MAX_KEYS: usize = 2;

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

    /// Whether both halves are of a form that a signature can carry.
    pub(crate) fn is_sound(&self) -> bool {
        let id = self.access_key_id.as_bytes();
        let secret = self.secret_access_key.as_bytes();
        (4..=128).contains(&id.len())
            && id.iter().all(u8::is_ascii_alphanumeric)
            && (1..=256).contains(&secret.len())
            && secret.iter().all(u8::is_ascii_graphic)
    }
}

/// An account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Its number: 12 digits.
    pub id: String,
    /// What its owner calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its root's access keys.
    #[serde(default, alias = "key")]
    pub keys: Vec<AccessKey>,
}

/// Whether `id` is an account's number.
pub fn is_account_id(id: &str) -> bool {
    id.len() == 12 && id.bytes().all(|b| b.is_ascii_digit())
}

/// The accounts and their keys, as of now. Clones are the same store.
#[derive(Debug, Clone)]
pub struct CredentialStore(Arc<Store>);

#[derive(Debug)]
struct Store {
    /// Whose key it is that an old file holds, and who gets the first one.
    default_account: String,
    given: Vec<Account>,
    path: Option<PathBuf>,
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The file that this was read from.
    stamp: Option<Stamp>,
    accounts: BTreeSet<String>,
    /// Account and secret by access key id.
    keys: HashMap<String, (String, String)>,
}

/// What changes when the file does: each change is a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl CredentialStore {
    /// One account with one key, kept nowhere.
    pub fn new(account: &str, key: AccessKey) -> Self {
        Self::given(vec![Account {
            id: account.to_owned(),
            name: None,
            keys: vec![key],
        }])
    }

    /// These accounts, kept nowhere.
    pub fn given(accounts: Vec<Account>) -> Self {
        let default_account = accounts.first().map(|a| a.id.clone()).unwrap_or_default();
        let known = Known::of(&accounts, &[], None);
        Self(Arc::new(Store {
            default_account,
            given: accounts,
            path: None,
            known: RwLock::new(known),
        }))
    }

    /// The accounts `given` by the configuration and those of the file at `path`.
    /// An account that would have no key gets one, kept in the file, mode 0600:
    /// `default_account`, and whichever is given without.
    ///
    /// # Errors
    /// When the file can't be read or written, is none of ours, or holds what
    /// contradicts `given`.
    pub fn open(path: &Path, default_account: &str, given: Vec<Account>) -> io::Result<Self> {
        let wanted = std::iter::once(default_account).chain(given.iter().map(|a| a.id.as_str()));
        file::first_keys(path, default_account, &given, wanted)?;
        let store = Self(Arc::new(Store {
            default_account: default_account.to_owned(),
            given,
            path: Some(path.to_owned()),
            known: RwLock::default(),
        }));
        let known = store.0.read(path)?;
        *store
            .0
            .known
            .write()
            .unwrap_or_else(PoisonError::into_inner) = known;
        Ok(store)
    }

    /// [`open`](Self::open) without given accounts.
    ///
    /// # Errors
    /// As `open`'s.
    pub fn load_or_create(path: &Path, account: &str) -> io::Result<Self> {
        Self::open(path, account, Vec::new())
    }

    /// The account and the secret of an access key.
    pub fn find(&self, access_key_id: &str) -> Option<(String, String)> {
        self.follow();
        let known = self.known();
        known.keys.get(access_key_id).cloned()
    }

    /// The numbers of all accounts, in order.
    pub fn accounts(&self) -> Vec<String> {
        self.follow();
        self.known().accounts.iter().cloned().collect()
    }

    fn known(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the file again if it is another one. Asked at every lookup, so that a
    /// deleted key signs nothing more: one `stat` of an inode that is in memory.
    fn follow(&self) {
        let Some(path) = &self.0.path else { return };
        let stamp = Stamp::of(path).ok();
        if stamp.is_none() || self.known().stamp == stamp {
            return;
        }
        let mut known = self.0.known.write().unwrap_or_else(PoisonError::into_inner);
        match self.0.read(path) {
            Ok(read) => {
                tracing::info!(
                    accounts = read.accounts.len(),
                    "the credentials have changed"
                );
                *known = read;
            }
            Err(error) => {
                // What was known stays, and this is said once for each change.
                tracing::error!(path = %path.display(), %error, "the credentials can't be read");
                known.stamp = stamp;
            }
        }
    }
}

impl Store {
    fn read(&self, path: &Path) -> io::Result<Known> {
        // The stamp first: a change after it is seen at the next look.
        let stamp = Stamp::of(path)?;
        let kept = file::read(path, &self.default_account)?;
        file::check(&self.given, &kept).map_err(|why| file::invalid(path, why))?;
        Ok(Known::of(&self.given, &kept, Some(stamp)))
    }
}

impl Known {
    fn of(given: &[Account], kept: &[Account], stamp: Option<Stamp>) -> Self {
        let mut known = Self {
            stamp,
            ..Self::default()
        };
        for account in given.iter().chain(kept) {
            known.accounts.insert(account.id.clone());
            for key in &account.keys {
                let value = (account.id.clone(), key.secret_access_key.clone());
                known.keys.insert(key.access_key_id.clone(), value);
            }
        }
        known
    }
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self {
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        })
    }
}

/// Checks the accounts of a configuration.
///
/// # Errors
/// When an id or a key is malformed or there twice.
pub fn check(accounts: &[Account]) -> Result<(), String> {
    file::check(accounts, &[])
}

/// All accounts with their names and key ids, and whether the configuration gives
/// them; for `hearth account list`.
///
/// # Errors
/// When the file is there and can't be read.
pub fn list(
    path: &Path,
    default_account: &str,
    given: &[Account],
) -> io::Result<BTreeMap<String, Listed>> {
    let kept = match file::read(path, default_account) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    let mut all: BTreeMap<String, Listed> = BTreeMap::new();
    for (account, is_given) in given
        .iter()
        .map(|a| (a, true))
        .chain(kept.iter().map(|a| (a, false)))
    {
        let listed = all.entry(account.id.clone()).or_default();
        listed.given |= is_given;
        listed.name = listed.name.take().or_else(|| account.name.clone());
        let ids = account.keys.iter().map(|k| k.access_key_id.clone());
        listed.access_key_ids.extend(ids);
    }
    Ok(all)
}

/// One line of `hearth account list`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// What its owner calls it.
    pub name: Option<String>,
    /// Its keys' public halves.
    pub access_key_ids: Vec<String>,
    /// Whether it is in the configuration file.
    pub given: bool,
}

#[cfg(test)]
mod tests;
