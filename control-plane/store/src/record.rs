//! The form that a record has in the store: its value with its version.
//!
//! ```json
//! {"version": 1, "record": {…}}
//! ```
//!
//! A record of an older version is brought up by its kind when it is read. One
//! of a newer version, or that can't be read at all, is set aside by the view:
//! it is never an end of the control plane, and never overwritten.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use hearth_model::Resource;

#[derive(Serialize)]
struct Written<'a, T> {
    version: u32,
    record: &'a T,
}

#[derive(Deserialize)]
struct Read<'a> {
    version: u32,
    #[serde(borrow)]
    record: &'a RawValue,
}

/// A record as the store keeps it.
pub(super) fn encode<T: Resource>(resource: &T) -> Vec<u8> {
    let written = Written {
        version: T::VERSION,
        record: resource,
    };
    // Our own types have no maps with keys that JSON lacks, and no failing impl.
    #[allow(clippy::expect_used)]
    serde_json::to_vec(&written).expect("a resource is JSON")
}

/// Reads a record of this or an older version.
///
/// # Errors
/// Why it can't be read, for the operator.
pub(super) fn decode<T: Resource>(bytes: &[u8]) -> Result<T, String> {
    let said = |error: serde_json::Error| error.to_string();
    let read: Read<'_> = serde_json::from_slice(bytes).map_err(said)?;
    match read.version.cmp(&T::VERSION) {
        Ordering::Equal => serde_json::from_str(read.record.get()).map_err(said),
        Ordering::Greater => Err(format!(
            "it has version {}, and this program knows {} up to version {}",
            read.version,
            T::KIND,
            T::VERSION
        )),
        Ordering::Less => {
            let old = serde_json::from_str(read.record.get()).map_err(said)?;
            let new = T::upgrade(read.version, old)?;
            serde_json::from_value(new).map_err(said)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    use serde_json::{Value, json};

    use super::*;
    use hearth_model::{Authority, Scope};

    /// A kind in its second version: `size` was `mib` in the first.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Thing {
        size: u64,
    }

    impl hearth_model::Listed for Thing {
        const SLOT: usize = usize::MAX;
    }

    impl Resource for Thing {
        const KIND: &'static str = "things";
        const VERSION: u32 = 2;
        fn id(&self) -> &str {
            "a"
        }
        fn scope(&self) -> Option<&Scope> {
            None
        }
        fn authority(&self) -> Authority {
            Authority::Free("a test's")
        }
        fn upgrade(version: u32, record: Value) -> Result<Value, String> {
            match (version, record.get("mib").and_then(Value::as_u64)) {
                (1, Some(mib)) => Ok(json!({ "size": mib << 20 })),
                _ => Err("no such version".into()),
            }
        }
    }

    #[test]
    fn an_older_record_is_brought_up_and_a_newer_refused() {
        let thing = Thing { size: 1 << 20 };
        assert_eq!(decode::<Thing>(&encode(&thing)), Ok(thing.clone()));
        let old = br#"{"version":1,"record":{"mib":1}}"#;
        assert_eq!(decode::<Thing>(old), Ok(thing));
        for (bad, why) in [
            (&br#"{"version":3,"record":{"size":1}}"#[..], "version 3"),
            (br#"{"version":0,"record":{"mib":1}}"#, "no such version"),
            (br#"{"version":2,"record":{}}"#, "size"),
            (br#"{"size":1}"#, "version"),
            (b"\xff", "expected value"),
        ] {
            let refused = decode::<Thing>(bad).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }

    /// The forms that each kind's records have had, by which program: a file each in
    /// `stored/KIND`, in the order of their names.
    fn keeps_its_form<T: Resource>() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("stored")
            .join(T::KIND);
        let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        files.sort();
        let read = |path: &PathBuf| fs::read(path).unwrap();
        for path in &files {
            let why = decode::<T>(&read(path)).err();
            assert_eq!(why, None, "{} can't be read any more", path.display());
        }
        let newest = read(files.last().unwrap());
        let now = encode(&decode::<T>(&newest).unwrap());
        let [was, now] = [newest, now].map(|form| serde_json::from_slice::<Value>(&form).unwrap());
        assert_eq!(
            was,
            now,
            "the form of {} is another now. A program of before must not read it wrongly: \
             raise its version where it would. Then put the new form beside the old ones.",
            T::KIND
        );
    }

    #[test]
    fn what_was_stored_can_be_read() {
        macro_rules! each {
            (described: [$($resource:ident),*], others: [$($other:ident),* $(,)?] $(,)?) => {
                $(keeps_its_form::<hearth_model::$resource>();)*
                $(keeps_its_form::<hearth_model::$other>();)*
            };
        }
        hearth_model::each_kind!(each);
    }
}
