//! Manifests: found in a folder, read, and checked beyond what their types say.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::read_capped;
use crate::model::{BootMethod, Manifest};

/// A manifest is some hundred bytes; more than this is something else.
const MAX_MANIFEST: u64 = 64 << 10;

/// The manifests in a folder, by name.
pub(super) fn manifests(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut manifests = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_none_or(|n| n.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|e| e == "json") {
            manifests.push(path);
        }
    }
    manifests.sort();
    Ok(manifests)
}

/// Reads one manifest.
pub(super) fn describe(path: &Path) -> Result<Manifest, String> {
    let text = read_capped(path, MAX_MANIFEST).map_err(|e| e.to_string())?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|e| format!("not a manifest: {e}"))?;
    check(&manifest)?;
    Ok(manifest)
}

/// The parts of a manifest that its types leave open.
fn check(m: &Manifest) -> Result<(), String> {
    // EC2's limits on image names: 3 to 128 characters.
    if !(3..=128).contains(&m.name.chars().count()) {
        return Err("\"name\" is not of 3 to 128 characters".to_owned());
    }
    if m.architecture != "x86_64" {
        return Err(format!(
            "\"architecture\" is \"{}\"; only x86_64 runs here",
            m.architecture
        ));
    }
    if !m.root_device_name.starts_with("/dev/") {
        return Err("\"root_device_name\" does not begin with /dev/".to_owned());
    }
    let mut parts = Path::new(&m.disk).components();
    if !matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(_)), None)
    ) {
        return Err("\"disk\" is not the name of a file beside the manifest".to_owned());
    }
    if m.disk_size == 0 || !m.disk_size.is_multiple_of(512) {
        return Err("\"disk_size\" is not a whole number of 512-byte sectors".to_owned());
    }
    let BootMethod::Linux { kernel, initrd, .. } = &m.boot;
    for path in [Some(kernel), initrd.as_ref()].into_iter().flatten() {
        if !path.starts_with('/') {
            return Err(format!("\"{path}\" in \"boot\" is not an absolute path"));
        }
    }
    Ok(())
}
