//! What is made once and kept: keys, and the certificates that people were given.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use anyhow::Context as _;

/// What the file says, or what `make` returns, which it says from then on: all of it or
/// there is no file, whenever this process ends. `mode` is the file's; a folder that isn't
/// there is made, for its owner alone.
///
/// # Errors
/// When the file can't be read or written, or nothing be made for it.
pub fn read_or_make(
    path: &Path,
    mode: u32,
    make: impl FnOnce() -> anyhow::Result<String>,
) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        read => return read.with_context(|| format!("reading {}", path.display())),
    }
    let text = make()?;
    write(path, mode, &text).with_context(|| format!("writing {}", path.display()))?;
    Ok(text)
}

fn write(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // The rename lasts when the folder does.
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/key");
        let make = |text: &'static str| move || Ok(text.to_owned());
        assert!(read_or_make(&path, 0o600, || anyhow::bail!("no chance")).is_err());
        assert_eq!(read_or_make(&path, 0o600, make("a")).unwrap(), "a");
        // What a process leaves that ends as it writes.
        fs::write(path.with_extension("new"), "half").unwrap();
        assert_eq!(read_or_make(&path, 0o600, make("b")).unwrap(), "a");
        fs::remove_file(&path).unwrap();
        assert_eq!(read_or_make(&path, 0o600, make("c")).unwrap(), "c");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
