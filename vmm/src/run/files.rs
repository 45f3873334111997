//! Files that the process opens, makes and leaves behind.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hearth_vmm_api::{Exit, ExitRecord};

/// Files made on the way, removed again unless kept.
#[derive(Default)]
pub(super) struct Made(Vec<PathBuf>);

impl Made {
    /// Makes a file, or goes on with one that is there.
    pub(super) fn open(&mut self, path: &Path, options: &OpenOptions) -> io::Result<File> {
        let is_new = !path.exists();
        let file = options.open(path)?;
        if is_new {
            self.0.push(path.to_owned());
        }
        Ok(file)
    }

    /// From here on they stay.
    pub(super) fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            // Best effort: an error is on its way out already.
            let _ = fs::remove_file(path);
        }
    }
}

/// Where the process's id is written, for everybody to read.
pub(super) struct PidFile {
    file: File,
    pub(super) path: PathBuf,
    pid: u32,
}

impl PidFile {
    /// Opens the file, which keeps what it has.
    pub(super) fn open(path: &Path, pid: u32, made: &mut Made) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o644);
        Ok(Self {
            file: made.open(path, &options)?,
            path: path.to_owned(),
            pid,
        })
    }

    /// Writes the id.
    pub(super) fn write(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all(format!("{}\n", self.pid).as_bytes())
    }
}

/// A file's path with its folder's links followed, as the jail will know it.
pub(super) fn resolved(flag: &str, path: Option<&Path>) -> Result<Option<PathBuf>, String> {
    let Some(path) = path else { return Ok(None) };
    let fail = |error: io::Error| format!("{flag} {}: {error}", path.display());
    let absolute = std::path::absolute(path).map_err(fail)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(folder), Some(name)) => Ok(Some(folder.canonicalize().map_err(fail)?.join(name))),
        _ => Err(format!("{flag} {}: is no file", path.display())),
    }
}

/// Opens a regular file to read it.
pub(super) fn open_file(flag: &str, path: &Path) -> Result<File, String> {
    open(flag, path, File::options().read(true))
}

/// Opens a regular file, which must be there, to read and write it.
pub(super) fn open_to_write(flag: &str, path: &Path) -> Result<File, String> {
    open(flag, path, File::options().read(true).write(true))
}

fn open(flag: &str, path: &Path, options: &OpenOptions) -> Result<File, String> {
    let fail = |error: io::Error| format!("{flag} {}: {error}", path.display());
    let file = options.open(path).map_err(fail)?;
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(format!("{flag} {}: not a regular file", path.display()));
    }
    Ok(file)
}

/// Writes the exit file in one step: a reader finds all of it or none.
pub(super) fn write_exit(path: &Path, exit: &Exit, unfinished: Vec<String>) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let temporary = PathBuf::from(name);
    let record = ExitRecord {
        exit: exit.clone(),
        unfinished,
    };
    fs::write(&temporary, serde_json::to_vec(&record)?)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_file_is_json_and_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("exit.json");
        let exit = Exit::Crashed {
            detail: "triple fault".into(),
        };
        write_exit(&path, &exit, Vec::new()).expect("written");
        let read: Exit = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
        assert_eq!(read, exit);
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1);
    }
}
