//! A snapshot on the disk: a folder with what the machine was and what it had in memory.
//!
//! | file | what is in it |
//! |---|---|
//! | `machine.json` | an [`Envelope`]: which format, by which program, a digest, and the state |
//! | `memory` | guest memory, its regions one behind the other; pages of zeroes are holes |
//!
//! `machine.json` comes last, by a rename: a folder without it holds no snapshot. Memory
//! has no digest, since it is read page by page as the guest touches it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::Refused;

/// The format that is written, and the only one that is read: of a machine that another
/// process takes over, too. It is raised with each change of a structure that is saved
/// (`…V1`), be it a field more or less, or one that means something else, if a commit of
/// main had the last one; a structure that was released gets a successor (`…V2`) besides.
const FORMAT: u32 = 2;
/// The largest `machine.json` in bytes: 32 vCPUs and as many devices fit several times.
const MAX_STATE: u64 = 16 << 20;
const STATE: &str = "machine.json";
/// Its name until it is whole.
const UNFINISHED: &str = "machine.json.new";
const MEMORY: &str = "memory";

/// What `machine.json` is, whatever the state in it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    format: u32,
    /// The version of the program that wrote it, for those who look into it.
    vmm: &'a str,
    /// Of the state's bytes as they stand here, in hexadecimal.
    sha256: String,
    #[serde(borrow)]
    state: &'a RawValue,
}

/// All that is read of a snapshot before its format is known.
#[derive(Deserialize)]
struct Head {
    format: u32,
}

/// Where a snapshot goes.
#[derive(Debug)]
pub enum Destination {
    /// Into a folder, which is there and holds none.
    Folder(PathBuf),
    /// Into files that are open to read and write. They are not made one step: whoever
    /// opened them keeps them only if all went well.
    Files {
        /// For guest memory.
        memory: File,
        /// For `machine.json`.
        state: File,
    },
}

/// Where a snapshot comes from.
#[derive(Debug)]
pub struct Source {
    /// `machine.json`.
    pub state: File,
    /// Guest memory.
    pub memory: File,
}

/// Files that go again unless they are kept.
#[derive(Debug, Default)]
struct Unfinished(Vec<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        for path in &self.0 {
            // The error that brought it here is the one to hear of.
            let _ = fs::remove_file(path);
        }
    }
}

impl Destination {
    /// Makes or takes the files of a snapshot, in which there is none yet. What is left is
    /// to write them.
    ///
    /// # Errors
    /// When they can't be made; `AlreadyExists`: there is a snapshot in the folder, which
    /// stays.
    pub fn open(self) -> io::Result<Opened> {
        match self {
            Self::Folder(folder) => open_folder(&folder),
            Self::Files {
                memory,
                state: state_file,
            } => {
                if FileId::of(&memory)? == FileId::of(&state_file)? {
                    let twice = "memory and state need a file each";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, twice));
                }
                Ok(Opened {
                    memory,
                    state_file,
                    folder: None,
                    unfinished: Unfinished::default(),
                })
            }
        }
    }
}

/// A snapshot's files, open. Those that were made go again unless it is written.
#[derive(Debug)]
pub struct Opened {
    memory: File,
    state_file: File,
    /// Where the files get their names when they are whole.
    folder: Option<InFolder>,
    unfinished: Unfinished,
}

/// The folder of a snapshot.
#[derive(Debug)]
struct InFolder {
    path: PathBuf,
    /// None in a jail, which keeps folders from being opened.
    open: Option<File>,
}

impl Opened {
    /// Writes it: what `memory` writes into its file, and the state. When this returns, it
    /// is on the disk. Returns what `memory` does. `is_wanted` is asked when all is written,
    /// right before it becomes a snapshot. Opens nothing.
    ///
    /// # Errors
    /// When it can't be written, or is wanted no longer, and there is none then.
    pub fn write<T>(
        mut self,
        state: &impl Serialize,
        memory: impl FnOnce(&mut File) -> io::Result<T>,
        is_wanted: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<T> {
        let state = sealed(state)?;
        let written = memory(&mut self.memory)?;
        self.memory.sync_all()?;
        // Whatever it held, and wherever whoever opened it stands.
        self.state_file.set_len(0)?;
        self.state_file.rewind()?;
        self.state_file.write_all(&state)?;
        self.state_file.sync_all()?;
        // However long all that took.
        is_wanted()?;
        let Some(folder) = self.folder else {
            return Ok(written);
        };
        fs::rename(folder.path.join(UNFINISHED), folder.path.join(STATE))?;
        self.unfinished.0.clear();
        // The names too. Where the folder can't be opened, what the journal has of the
        // file is all there is.
        match folder.open {
            Some(folder) => folder.sync_all()?,
            None => self.state_file.sync_all()?,
        }
        Ok(written)
    }
}

/// Which file it is: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId(u64, u64);

impl FileId {
    /// That of an open file.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self(metadata.dev(), metadata.ino()))
    }
}

fn open_folder(folder: &Path) -> io::Result<Opened> {
    let place = |name| folder.join(name);
    if place(STATE).exists() {
        let taken = "there is a snapshot already";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, taken));
    }
    // Left by one that was killed. Another machine may still read from that memory, so it
    // is another file that takes its name.
    for name in [UNFINISHED, MEMORY] {
        match fs::remove_file(place(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let mut unfinished = Unfinished::default();
    let mut make = |name| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(place(name))?;
        unfinished.0.push(place(name));
        io::Result::Ok(file)
    };
    let (memory, state_file) = (make(MEMORY)?, make(UNFINISHED)?);
    Ok(Opened {
        memory,
        state_file,
        folder: Some(InFolder {
            path: folder.to_owned(),
            open: File::open(folder).ok(),
        }),
        unfinished,
    })
}

/// A state with its format and its digest round it.
pub(crate) fn sealed(state: &impl Serialize) -> io::Result<Vec<u8>> {
    let state = serde_json::value::to_raw_value(state)?;
    let envelope = Envelope {
        format: FORMAT,
        vmm: env!("CARGO_PKG_VERSION"),
        sha256: digest(&state),
        state: &state,
    };
    Ok(serde_json::to_vec(&envelope)?)
}

fn digest(state: &RawValue) -> String {
    hex::encode(Sha256::digest(state.get().as_bytes()))
}

impl Source {
    /// Opens one, and looks at nothing in it.
    ///
    /// # Errors
    /// When a file is missing or is none.
    pub fn open(folder: &Path) -> Result<Self, Refused> {
        let open = |name| {
            let fail = |error: io::Error| Refused::by_host(name, &error);
            let file = File::open(folder.join(name)).map_err(fail)?;
            if !file.metadata().map_err(fail)?.is_file() {
                return Err(Refused::because("not a regular file").within(name));
            }
            Ok(file)
        };
        Ok(Self {
            state: open(STATE)?,
            memory: open(MEMORY)?,
        })
    }

    /// The state.
    ///
    /// # Errors
    /// When it is damaged, of another format, or no such state.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T, Refused> {
        let mut bytes = Vec::new();
        let mut file = (&self.state).take(MAX_STATE + 1);
        let read = file.read_to_end(&mut bytes);
        read.map_err(|error| Refused::by_host("can't be read", &error))?;
        if bytes.len() as u64 > MAX_STATE {
            return Err(Refused::because(format!("has more than {MAX_STATE} bytes")));
        }
        unsealed(&bytes)
    }
}

/// What [`sealed`] has made, if it still is that.
pub(crate) fn unsealed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refused> {
    let Head { format } = serde_json::from_slice(bytes)?;
    if format != FORMAT {
        let wrong = format!("is of format {format}, and this program reads {FORMAT}");
        return Err(Refused::because(wrong));
    }
    let envelope: Envelope<'_> = serde_json::from_slice(bytes)?;
    if digest(envelope.state) != envelope.sha256 {
        return Err(Refused::because("is damaged: its digest is another one"));
    }
    Ok(serde_json::from_str(envelope.state.get())?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        let name = |entry: io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        let mut names: Vec<_> = entries
            .map(|entry| name(entry).into_string().expect("text"))
            .collect();
        names.sort();
        names
    }

    fn saved(folder: &Path) -> io::Result<usize> {
        let destination = Destination::Folder(folder.to_owned());
        let write = |file: &mut File| file.write(b"memory");
        destination.open()?.write(&[1, 2, 3], write, || Ok(()))
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().expect("folder");
        // What one that was killed has left.
        fs::write(folder.path().join(UNFINISHED), "{").expect("written");
        fs::write(folder.path().join(MEMORY), "of another").expect("written");
        assert_eq!(saved(folder.path()).expect("saved"), 6);
        assert_eq!(names(folder.path()), [STATE, MEMORY]);
        let mut source = Source::open(folder.path()).expect("opens");
        assert_eq!(source.state::<Vec<u8>>(), Ok(vec![1, 2, 3]));
        let mut memory = String::new();
        source.memory.read_to_string(&mut memory).expect("read");
        assert_eq!(memory, "memory");
        // It stays.
        let again = saved(folder.path()).expect_err("taken");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert!(Source::open(folder.path()).is_ok());
    }

    #[test]
    fn open_files_will_do() {
        let [memory, mut state] = [(); 2].map(|()| tempfile::tempfile().expect("a file"));
        state.write_all(b"of another").expect("written");
        let both = || [&memory, &state].map(|file| file.try_clone().expect("open"));
        let write = |file: &mut File| file.write_all(b"memory");
        // The same open files once more, which stand at their ends then.
        for said in ["a longer one", "state"] {
            let [memory, state] = both();
            let destination = Destination::Files { memory, state };
            let opened = destination.open().expect("opens");
            opened.write(&said, write, || Ok(())).expect("written");
        }
        let [memory, mut state] = both();
        state.rewind().expect("a file");
        let source = Source { state, memory };
        assert_eq!(source.state::<String>().as_deref(), Ok("state"));
    }

    #[test]
    fn one_file_is_not_two() {
        let file = tempfile::tempfile().expect("a file");
        let open = || file.try_clone().expect("open");
        let destination = Destination::Files {
            memory: open(),
            state: open(),
        };
        let refused = destination.open();
        let refused = refused.expect_err("one would be written over the other");
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn nothing_half_made_stays() {
        let folder = tempfile::tempdir().expect("folder");
        let destination = || Destination::Folder(folder.path().to_owned());
        let full = |file: &mut File| {
            file.write_all(b"as far as it goes")?;
            io::Result::<()>::Err(io::ErrorKind::StorageFull.into())
        };
        let opened = destination().open().expect("opens");
        assert!(opened.write(&0, full, || Ok(())).is_err());
        assert_eq!(names(folder.path()), [""; 0]);
        // All is written, and nobody wants it any more.
        let opened = destination().open().expect("opens");
        let cancelled = || {
            assert_eq!(names(folder.path()), [UNFINISHED, MEMORY]);
            io::Result::<()>::Err(io::ErrorKind::Interrupted.into())
        };
        let unwanted = opened.write(&0, |file| file.write_all(b"memory"), cancelled);
        assert_eq!(
            unwanted.expect_err("none").kind(),
            io::ErrorKind::Interrupted
        );
        assert_eq!(names(folder.path()), [""; 0]);
        let missing = folder.path().join("missing");
        assert!(saved(&missing).is_err());
        assert!(Source::open(folder.path()).is_err());
    }

    fn refused(bytes: &[u8]) -> String {
        let refused = unsealed::<Vec<u8>>(bytes);
        refused.expect_err("not as it was").to_string()
    }

    #[test]
    fn what_is_not_as_it_was_is_refused() {
        let whole = sealed(&[10, 20, 30]).expect("JSON");
        assert_eq!(unsealed::<Vec<u8>>(&whole), Ok(vec![10, 20, 30]));
        let text = String::from_utf8(whole).expect("text");
        let with = |old: &str, new: &str| refused(text.replacen(old, new, 1).as_bytes());
        assert_eq!(with("20", "21"), "is damaged: its digest is another one");
        // Another format may have other fields.
        let other = r#"{"format":1,"seal":"#;
        assert_eq!(
            refused(format!("{other}0}}").as_bytes()),
            "is of format 1, and this program reads 2"
        );
        let more = with(r#""format":2"#, r#""format":2,"more":0"#);
        assert!(more.contains("unknown field `more`"), "{more}");
        let other = unsealed::<String>(text.as_bytes()).expect_err("no text");
        assert!(other.to_string().contains("expected a string"), "{other}");
        for end in 0..text.len() {
            refused(&text.as_bytes()[..end]);
        }
    }

    #[test]
    fn one_that_has_no_end_is_refused() {
        let state = tempfile::tempfile().expect("a file");
        state.set_len(MAX_STATE * 1000).expect("a hole");
        let memory = tempfile::tempfile().expect("a file");
        let refused = Source { state, memory }
            .state::<u8>()
            .expect_err("too long");
        assert_eq!(refused.to_string(), "has more than 16777216 bytes");
    }

    proptest! {
        #[test]
        fn a_byte_that_is_another_is_refused_or_does_not_matter(at: usize, byte: u8, cut: bool) {
            let mut bytes = sealed(&[10, 20, 30]).expect("JSON");
            let at = at % bytes.len();
            if cut {
                bytes.remove(at);
            } else {
                bytes[at] = byte;
            }
            let read = unsealed(&bytes);
            prop_assert!(read.is_err() || read == Ok(vec![10, 20, 30]));
        }
    }
}
