//! `credentials.json`: read, and replaced as a whole.
//!
//! What replaces it is written into a spare file, `credentials.new`, whose space is
//! taken beforehand: a key must be gone when its owner says so, on a full disk too.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use rustix::{
    fs::{FallocateFlags, FlockOperation},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::{AccessKey, Account, MAX_KEYS, is_account_id};

/// The two forms that the file has had.
#[derive(Deserialize)]
#[serde(untagged)]
enum Form {
    Accounts(Accounts),
    /// The first: one key, of the one account.
    Key(AccessKey),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Accounts {
    accounts: Vec<Account>,
}

pub(super) fn invalid(path: &Path, why: impl std::fmt::Display) -> io::Error {
    let why = format!("{}: {why}", path.display());
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// The accounts in the file; a file of the old form holds `default_account`'s key.
pub(super) fn read(path: &Path, default_account: &str) -> io::Result<Vec<Account>> {
    let bytes = fs::read(path)?;
    match serde_json::from_slice(&bytes) {
        Ok(Form::Accounts(file)) => Ok(file.accounts),
        Ok(Form::Key(key)) => Ok(vec![Account {
            id: default_account.to_owned(),
            name: None,
            keys: vec![key],
        }]),
        // Serde's own words would quote what is in there.
        Err(error) => Err(invalid(
            path,
            format!(
                "it holds no accounts in a form that this version knows (line {})",
                error.line()
            ),
        )),
    }
}

/// Whether the accounts of configuration and file can stand side by side.
pub(super) fn check(given: &[Account], kept: &[Account]) -> Result<(), String> {
    let mut keys = HashSet::new();
    for accounts in [given, kept] {
        let mut ids = HashSet::new();
        for account in accounts {
            if !is_account_id(&account.id) {
                return Err(format!("the account id {:?} must be 12 digits", account.id));
            }
            if !ids.insert(&account.id) {
                return Err(format!("the account {} is there twice", account.id));
            }
            for key in &account.keys {
                let id = &key.access_key_id;
                if !key.is_sound() {
                    return Err(format!(
                        "an access key of the account {} must have an id of 4 to 128 letters and \
                         digits and a secret of printable ASCII characters",
                        account.id
                    ));
                }
                if !keys.insert(id) {
                    return Err(format!("the access key {id} is there twice"));
                }
            }
        }
    }
    Ok(())
}

/// Gives each of the accounts `wanted` a key that has none.
pub(super) fn first_keys<'a>(
    path: &Path,
    default_account: &str,
    given: &[Account],
    wanted: impl Iterator<Item = &'a str>,
) -> io::Result<()> {
    let has_key = |accounts: &[Account], id: &str| {
        let mut accounts = accounts.iter();
        accounts.any(|a| a.id == id && !a.keys.is_empty())
    };
    let wanted: Vec<&str> = wanted.filter(|id| !has_key(given, id)).collect();
    update(path, default_account, |kept| {
        check(given, kept).map_err(|why| invalid(path, why))?;
        for id in wanted {
            if !has_key(kept, id) {
                account(kept, id).keys.push(AccessKey::generate());
            }
        }
        Ok(())
    })
}

fn account<'a>(kept: &'a mut Vec<Account>, id: &str) -> &'a mut Account {
    let position = kept.iter().position(|a| a.id == id);
    let position = position.unwrap_or_else(|| {
        kept.push(Account {
            id: id.to_owned(),
            name: None,
            keys: Vec::new(),
        });
        kept.len() - 1
    });
    &mut kept[position]
}

/// What `hearth account` does to the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// A new account, under a number of its own choice if none is given.
    Create {
        /// 12 digits.
        id: Option<String>,
        /// What its owner calls it.
        name: Option<String>,
    },
    /// A new key for an account.
    Rotate {
        /// The account.
        id: String,
        /// Whether its newest key so far stays valid beside it.
        keep: bool,
    },
    /// An end to an account's keys.
    Delete {
        /// The account.
        id: String,
    },
}

/// Changes the file; answers the account as it is now, its newest key last.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] when the change makes no sense, in words for
/// the operator; else whatever kept the file from being read or written.
pub fn change(
    path: &Path,
    default_account: &str,
    given: &[Account],
    what: &Changed,
) -> io::Result<Account> {
    let refuse = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    let is_given = |id: &str| given.iter().any(|a| a.id == id);
    let mut answer = None;
    update(path, default_account, |kept| {
        let find = |kept: &[Account], id: &str| kept.iter().position(|a| a.id == id);
        match what {
            Changed::Create { id, name } => {
                let id = id.clone().unwrap_or_else(fresh_id);
                if !is_account_id(&id) {
                    return refuse(format!("the account id {id:?} must be 12 digits"));
                }
                if is_given(&id) || find(kept, &id).is_some() || id == default_account {
                    return refuse(format!("the account {id} is there already"));
                }
                kept.push(Account {
                    id,
                    name: name.clone(),
                    keys: vec![AccessKey::generate()],
                });
                answer = kept.last().cloned();
            }
            Changed::Rotate { id, keep } => {
                let Some(position) = find(kept, id) else {
                    return refuse(absent(id, is_given(id)));
                };
                let keys = &mut kept[position].keys;
                // The newest so far stays at most.
                let stay = if *keep { MAX_KEYS - 1 } else { 0 };
                keys.drain(..keys.len().saturating_sub(stay));
                keys.push(AccessKey::generate());
                answer = Some(kept[position].clone());
            }
            Changed::Delete { id } => {
                let Some(position) = find(kept, id) else {
                    return refuse(absent(id, is_given(id)));
                };
                if is_given(id) {
                    return refuse(format!("the configuration file names the account {id}"));
                }
                if id == default_account {
                    return refuse(format!(
                        "{id} is the default account, which owns the images"
                    ));
                }
                answer = Some(kept.remove(position));
            }
        }
        Ok(())
    })?;
    answer.ok_or_else(|| io::Error::other("nothing was changed"))
}

fn absent(id: &str, given: bool) -> String {
    if given {
        format!("the keys of the account {id} are in the configuration file: change them there")
    } else {
        format!("there is no account {id}")
    }
}

/// Not 0: so that it is 12 digits in every tool that takes it for a number.
fn fresh_id() -> String {
    let number = 100_000_000_000 + rand::random::<u64>() % 900_000_000_000;
    number.to_string()
}

/// By how much the spare file is bigger than the one in use, in bytes: some twenty
/// accounts, and what [`GROWTH`] leaves.
const SPARE: u64 = 4096 + GROWTH;
/// So much a change that makes the file longer must leave free of its space, in bytes: with
/// what the file before it took, that is a spare one for a change that doesn't. Who makes
/// accounts on a full disk can't hinder those who end and replace keys.
const GROWTH: u64 = 8192;

/// Applies a change under a lock, so that none is lost, and replaces the file as
/// a whole, so that a crash leaves the old one or the new one.
fn update(
    path: &Path,
    default_account: &str,
    change: impl FnOnce(&mut Vec<Account>) -> io::Result<()>,
) -> io::Result<()> {
    let lock = private(&path.with_extension("lock"))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let before = match read(path, default_account) {
        Ok(accounts) => Some(accounts),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let mut accounts = before.clone().unwrap_or_default();
    change(&mut accounts)?;
    let spare = path.with_extension("new");
    let changed = before.as_ref() != Some(&accounts);
    let mut text = serde_json::to_vec_pretty(&Accounts { accounts })?;
    text.push(b'\n');
    if changed {
        let length = fs::metadata(path).map_or(0, |file| file.len());
        let grows = text.len() as u64 > length;
        let beside = if grows { GROWTH } else { 0 };
        fill(&spare, &text, beside).map_err(|error| unwritten(path, error))?;
        fs::rename(&spare, path)?;
        // The rename lasts when the folder does.
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
    }
    // The file that was replaced has left space for it; if not for all, for a change that
    // doesn't make it longer.
    let length = text.len() as u64;
    if let Err(error) = keep(&spare, length + SPARE).or_else(|_| keep(&spare, length)) {
        tracing::warn!(path = %spare.display(), %error, "there is no space for the next change");
    }
    Ok(())
}

pub(super) fn unwritten(path: &Path, error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::StorageFull {
        return error;
    }
    let path = path.display();
    let why = format!("{path} stays as it is: the disk is full, and its spare file too small");
    io::Error::new(io::ErrorKind::StorageFull, why)
}

/// Makes this what is in the spare file, and all of it durable. Where there is too
/// little space for it and so much beside, the spare file stays what it was.
fn fill(spare: &Path, text: &[u8], beside: u64) -> io::Result<()> {
    keep(spare, text.len() as u64 + beside)?;
    let mut file = private(spare)?;
    let written = file
        .write_all(text)
        .and_then(|()| file.set_len(text.len() as u64))
        .and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(spare);
    }
    written
}

/// Takes space for a spare file of this length, in bytes, as far as it has less; all of
/// it or none. It holds zeroes, or what a crash has left there.
pub(super) fn keep(spare: &Path, length: u64) -> io::Result<()> {
    let file = private(spare)?;
    let before = file.metadata()?.len();
    if before >= length {
        return Ok(());
    }
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, length) {
        // A file system that can't promise space.
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(error) => {
            // Some file systems keep what they came by.
            file.set_len(before)?;
            if before == 0 {
                fs::remove_file(spare)?;
            }
            Err(error.into())
        }
    }
}

fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}
