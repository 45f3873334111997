use std::os::unix::fs::PermissionsExt as _;

use super::*;

const FIRST: &str = "000000000000";
const OTHER: &str = "111122223333";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("credentials.json")
    }

    fn open(&self) -> CredentialStore {
        CredentialStore::load_or_create(&self.path(), FIRST).unwrap()
    }

    fn change(&self, what: &Changed) -> io::Result<Account> {
        change(&self.path(), FIRST, &[], what)
    }

    fn keys(&self, account: &str) -> Vec<AccessKey> {
        let accounts = file::read(&self.path(), FIRST).unwrap();
        let account = accounts.into_iter().find(|a| a.id == account);
        account.map(|a| a.keys).unwrap_or_default()
    }
}

fn create(id: &str) -> Changed {
    Changed::Create {
        id: Some(id.into()),
        name: Some("other".into()),
    }
}

fn rotate(id: &str, keep: bool) -> Changed {
    Changed::Rotate {
        id: id.into(),
        keep,
    }
}

fn delete(id: &str) -> Changed {
    Changed::Delete { id: id.into() }
}

fn knows(store: &CredentialStore, key: &AccessKey) -> bool {
    let found = store.find(&key.access_key_id);
    found.is_some_and(|(_, secret)| secret == key.secret_access_key)
}

#[test]
fn the_first_key_is_made_once_and_kept_private() {
    let folder = Folder::new();
    let store = folder.open();
    let first = folder.keys(FIRST);
    folder.open();
    assert_eq!(folder.keys(FIRST), first);
    for entry in fs::read_dir(folder.0.path()).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let [key] = &first[..] else {
        panic!("{first:?}")
    };
    assert!(knows(&store, key));
    assert_eq!(key.access_key_id.len(), 20);
    assert_eq!(key.secret_access_key.len(), 40);
    assert!(!format!("{first:?}").contains(&key.secret_access_key));
}

#[test]
fn a_file_of_the_first_form_is_the_default_accounts_key() {
    let folder = Folder::new();
    let key = AccessKey::generate();
    fs::write(folder.path(), serde_json::to_vec(&key).unwrap()).unwrap();
    let store = folder.open();
    let found = store.find(&key.access_key_id).unwrap();
    assert_eq!(found, (FIRST.into(), key.secret_access_key.clone()));
    // It is left as it is until something changes, and then nothing is lost.
    let text = fs::read_to_string(folder.path()).unwrap();
    assert!(!text.contains("accounts"));
    folder.change(&create(OTHER)).unwrap();
    assert!(knows(&store, &key));
    assert_eq!(store.accounts(), [FIRST, OTHER]);
}

#[test]
fn a_broken_file_is_an_error_and_stays() {
    for text in [
        "{}",
        "",
        "{\"accounts\": 1}",
        "{\"accounts\": [{\"id\": \"12\"}]}",
    ] {
        let folder = Folder::new();
        fs::write(folder.path(), text).unwrap();
        assert!(CredentialStore::load_or_create(&folder.path(), FIRST).is_err());
        assert_eq!(fs::read_to_string(folder.path()).unwrap(), text);
    }
}

#[test]
fn a_running_store_follows_every_change() {
    let folder = Folder::new();
    let store = folder.open();
    let made = folder.change(&create(OTHER)).unwrap().keys.remove(0);
    assert_eq!(store.find(&made.access_key_id).unwrap().0, OTHER);

    // Beside the old key, and then in its place.
    let second = folder.change(&rotate(OTHER, true)).unwrap().keys.remove(1);
    assert!(knows(&store, &made) && knows(&store, &second));
    let third = folder.change(&rotate(OTHER, true)).unwrap().keys.remove(1);
    assert!(!knows(&store, &made) && knows(&store, &second) && knows(&store, &third));
    let only = folder.change(&rotate(OTHER, false)).unwrap().keys;
    assert!(!knows(&store, &third) && knows(&store, &only[0]) && only.len() == 1);

    folder.change(&delete(OTHER)).unwrap();
    assert!(!knows(&store, &only[0]));
    assert_eq!(store.accounts(), [FIRST]);

    // What can't be read changes nothing.
    let first = folder.keys(FIRST).remove(0);
    fs::write(folder.path(), "?").unwrap();
    assert!(knows(&store, &first));
}

#[test]
fn senseless_changes_are_refused() {
    let folder = Folder::new();
    folder.open();
    folder.change(&create(OTHER)).unwrap();
    for (what, why) in [
        (create(OTHER), "already"),
        (create(FIRST), "already"),
        (create("12"), "12 digits"),
        (rotate("999999999999", false), "no account"),
        (delete("999999999999"), "no account"),
        (delete(FIRST), "default account"),
    ] {
        let error = folder.change(&what).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(why), "{what:?}: {error}");
    }
    let given = [Account {
        id: "444455556666".into(),
        name: None,
        keys: vec![AccessKey::generate()],
    }];
    for what in [
        create("444455556666"),
        rotate("444455556666", false),
        delete("444455556666"),
    ] {
        assert!(
            change(&folder.path(), FIRST, &given, &what).is_err(),
            "{what:?}"
        );
    }
}

#[test]
fn changes_at_once_are_all_kept() {
    let folder = Folder::new();
    folder.open();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let folder = &folder;
            scope.spawn(move || folder.change(&create(&format!("{n:012}1")[1..])).unwrap());
        }
    });
    assert_eq!(folder.open().accounts().len(), 9);
}

#[test]
fn given_accounts_stand_beside_the_kept_ones() {
    let folder = Folder::new();
    let key = AccessKey::generate();
    let given = vec![
        Account {
            id: OTHER.into(),
            name: None,
            keys: vec![key.clone()],
        },
        Account {
            id: "444455556666".into(),
            name: None,
            keys: Vec::new(),
        },
    ];
    let open = || CredentialStore::open(&folder.path(), OTHER, given.clone()).unwrap();
    let store = open();
    assert_eq!(store.find(&key.access_key_id).unwrap().0, OTHER);
    assert_eq!(store.accounts(), [OTHER, "444455556666"]);
    // Whoever is named without a key gets one, once.
    let made = folder.keys("444455556666");
    assert!(knows(&store, &made[0]) && knows(&open(), &made[0]));
    assert!(folder.keys(OTHER).is_empty());

    let twice = vec![Account {
        id: OTHER.into(),
        name: None,
        keys: made,
    }];
    assert!(CredentialStore::open(&folder.path(), OTHER, twice).is_err());

    let listed = list(&folder.path(), OTHER, &given).unwrap();
    assert!(listed[OTHER].given && listed[OTHER].access_key_ids == [key.access_key_id]);
}

#[test]
fn space_for_the_next_change_is_kept_and_no_secret_in_it() {
    let folder = Folder::new();
    folder.open();
    let spare = folder.path().with_extension("new");
    let kept = || {
        let file = fs::read(&spare).unwrap();
        assert!(file.iter().all(|byte| *byte == 0));
        let mode = fs::metadata(&spare).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // Enough for some accounts more, and little.
        let used = fs::read(folder.path()).unwrap().len();
        (used + 1024..used + 16384).contains(&file.len())
    };
    assert!(kept());
    folder.change(&create(OTHER)).unwrap();
    assert!(kept());
    // As a crash would leave it, or a program of before.
    fs::write(&spare, "").unwrap();
    folder.open();
    assert!(kept());
    fs::write(&spare, "x".repeat(100_000)).unwrap();
    folder
        .change(&Changed::Delete { id: OTHER.into() })
        .unwrap();
    assert!(folder.keys(OTHER).is_empty());
    assert!(kept());
}

#[test]
fn a_spare_file_that_there_is_no_space_for_is_as_it_was() {
    let folder = Folder::new();
    let spare = folder.path().with_extension("new");
    // More than any file system has.
    let refused = || file::keep(&spare, i64::MAX.cast_unsigned()).unwrap_err();
    refused();
    assert!(!spare.exists());
    file::keep(&spare, 10).unwrap();
    refused();
    assert_eq!(fs::read(&spare).unwrap(), [0; 10]);
}

#[test]
fn who_changes_a_key_on_a_full_disk_is_told_so() {
    let folder = Folder::new();
    let said = |kind: io::ErrorKind| file::unwritten(&folder.path(), kind.into());
    let full = said(io::ErrorKind::StorageFull);
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    assert!(full.to_string().contains("stays as it is"), "{full}");
    let denied = said(io::ErrorKind::PermissionDenied);
    assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
    assert!(!denied.to_string().contains("full"), "{denied}");
}

#[test]
fn a_key_has_the_form_of_awss() {
    let keys: Vec<AccessKey> = (0..64).map(|_| AccessKey::generate()).collect();
    let mut letters = BTreeSet::new();
    for key in &keys {
        assert!(key.is_sound());
        let id = key.access_key_id.strip_prefix("AKIA").unwrap();
        letters.extend(id.chars());
        assert_eq!(format!("{key:?}"), format!("AccessKey(AKIA{id})"));
    }
    // RFC 4648's base 32, each of them: of 1024 there is one missing once in 10^12.
    let all: String = letters.into_iter().collect();
    assert_eq!(all, "234567ABCDEFGHIJKLMNOPQRSTUVWXYZ");
}

#[test]
fn what_a_signature_cant_carry_is_no_key() {
    let sound = |id: &str, secret: &str| {
        let key = AccessKey {
            access_key_id: id.into(),
            secret_access_key: secret.into(),
        };
        key.is_sound()
    };
    let of = |length| "a".repeat(length);
    for (id, secret, expected) in [
        (of(4), of(1), true),
        (of(3), of(1), false),
        (of(128), of(256), true),
        (of(129), of(1), false),
        (of(4), of(0), false),
        (of(4), of(257), false),
        ("ab/c".into(), of(1), false),
        (of(4), "a b".into(), false),
        (of(4), "a/+=".into(), true),
        (of(4), "\u{e9}".into(), false),
    ] {
        assert_eq!(sound(&id, &secret), expected, "{id} {secret}");
    }
}

#[test]
fn each_account_without_a_key_gets_its_own() {
    let folder = Folder::new();
    let theirs = AccessKey::generate();
    let text = serde_json::json!({"accounts": [
        {"id": OTHER, "keys": [theirs]},
        {"id": FIRST, "keys": []},
    ]});
    fs::write(folder.path(), text.to_string()).unwrap();
    let store = folder.open();
    assert_eq!(folder.keys(OTHER), [theirs]);
    let own = folder.keys(FIRST);
    assert_eq!(own.len(), 1);
    assert_eq!(store.find(&own[0].access_key_id).unwrap().0, FIRST);
    assert_eq!(file::read(&folder.path(), FIRST).unwrap().len(), 2);
}

#[test]
fn an_account_of_no_number_gets_one() {
    let folder = Folder::new();
    let what = Changed::Create {
        id: None,
        name: None,
    };
    let ids: Vec<String> = (0..24).map(|_| folder.change(&what).unwrap().id).collect();
    for id in &ids {
        assert!(is_account_id(id) && !id.starts_with('0'), "{id}");
    }
    // All with the same first digit: once in 9^23.
    assert!(ids.iter().any(|id| id[..1] != ids[0][..1]), "{ids:?}");
}

#[test]
fn a_file_that_is_as_it_was_is_not_read_again() {
    let folder = Folder::new();
    let store = folder.open();
    let first = folder.keys(FIRST).remove(0);
    let meta = fs::metadata(folder.path()).unwrap();
    // As long as before, in its place and of its time: whoever replaces it, as all do,
    // leaves another inode.
    let text = fs::read_to_string(folder.path()).unwrap();
    let other = AccessKey::generate().access_key_id;
    fs::write(folder.path(), text.replace(&first.access_key_id, &other)).unwrap();
    let file = fs::File::options().write(true).open(folder.path()).unwrap();
    file.set_modified(meta.modified().unwrap()).unwrap();
    assert!(knows(&store, &first) && store.find(&other).is_none());
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert!(!knows(&store, &first) && store.find(&other).is_some());
    // One that is gone says nothing.
    fs::remove_file(folder.path()).unwrap();
    assert!(store.find(&other).is_some());
}

#[test]
fn a_configuration_names_each_account_and_key_once() {
    let account = |id: &str, key: &AccessKey| Account {
        id: id.into(),
        name: None,
        keys: vec![key.clone()],
    };
    let (a, b) = (AccessKey::generate(), AccessKey::generate());
    check(&[account(FIRST, &a), account(OTHER, &b)]).unwrap();
    for (accounts, why) in [
        ([account(FIRST, &a), account(FIRST, &b)], "there twice"),
        ([account(FIRST, &a), account(OTHER, &a)], "there twice"),
        ([account(FIRST, &a), account("12", &b)], "12 digits"),
    ] {
        let refused = check(&accounts).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn before_the_first_start_the_list_has_what_is_given() {
    let folder = Folder::new();
    let given = [Account {
        id: OTHER.into(),
        name: Some("a test bed".into()),
        keys: Vec::new(),
    }];
    let listed = list(&folder.path(), FIRST, &given).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[OTHER].name.as_deref(), Some("a test bed"));
    // A file that can't be read is no missing one.
    fs::write(folder.path(), "?").unwrap();
    assert!(list(&folder.path(), FIRST, &given).is_err());
}
