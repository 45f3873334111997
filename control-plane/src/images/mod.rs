//! The image registry: a folder of raw root disks, each with a manifest beside
//! it ([`Manifest`], `<name>.json` beside `<name>.raw`).
//!
//! An image's id is made from the SHA-256 of its disk, so that the same disk is
//! the same AMI everywhere, and a disk that doesn't hash to what its manifest
//! says is not an image. Hashing gigabytes takes a while: what was verified is
//! remembered, by size, modification and change time ([`Known`]), also in a file
//! beside the images (`.verified.json`), and hashed again when one of these
//! changes. `hearth images` verifies a folder ahead of a cloud that finds it
//! read-only or slow.

mod manifest;
mod verified;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use self::manifest::{describe, manifests};
use self::verified::{Verified, read_cache, verify, write_cache};
use crate::model::{Image, ImageId, Manifest, Scope};

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// The images, by name.
    pub images: Vec<Image>,
    /// The manifests that describe no usable image.
    pub problems: Vec<Problem>,
    /// Whether there are disks that have yet to be verified: scan again.
    pub more: bool,
}

/// What was verified: kept over scans, and in the images' folder if that can be
/// written.
#[derive(Debug, Default)]
pub struct Known {
    /// By the disk's file name; none before the folder's own record was read.
    disks: Option<BTreeMap<String, Verified>>,
}

/// A manifest that describes no usable image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {what}", manifest.display())]
pub struct Problem {
    /// The manifest's path.
    pub manifest: PathBuf,
    /// What is wrong with it, in one line.
    pub what: String,
}

/// Reads every manifest in `dir`, and verifies at most one disk that isn't known
/// yet, the smallest: so the first image is there before the last gigabyte is
/// read. Blocks while it does.
///
/// # Errors
/// When the folder can't be read. A folder that isn't there has no images.
pub fn scan(dir: &Path, scope: &Scope, known: &mut Known) -> io::Result<Scan> {
    let mut found = Scan::default();
    let before = known.disks.get_or_insert_with(|| read_cache(dir));
    let mut described = Vec::new();
    for path in manifests(dir)? {
        match describe(&path) {
            Ok(image) => described.push((path, image)),
            Err(what) => found.problems.push(Problem {
                manifest: path,
                what,
            }),
        }
    }
    described.sort_by(|(_, a), (_, b)| {
        (a.disk_size, &a.name, &a.disk).cmp(&(b.disk_size, &b.name, &b.disk))
    });

    let mut after = BTreeMap::new();
    let mut hashed = false;
    for (path, manifest) in described {
        let disk = dir.join(&manifest.disk);
        let seen = after.get(&manifest.disk).or(before.get(&manifest.disk));
        let verified = match verify(&disk, seen, !hashed) {
            Ok(Some((verified, fresh))) => {
                hashed |= fresh;
                verified
            }
            Ok(None) => {
                found.more = true;
                continue;
            }
            Err(e) => {
                let what = format!("its disk {}: {e}", disk.display());
                found.problems.push(Problem {
                    manifest: path,
                    what,
                });
                continue;
            }
        };
        after.insert(manifest.disk.clone(), verified.clone());
        let named = image(manifest, &verified, scope).and_then(|image| {
            match found.images.iter().find(|i| i.id == image.id) {
                None => Ok(image),
                Some(first) => Err(format!(
                    "its disk is the same as that of image \"{}\"",
                    first.manifest.name
                )),
            }
        });
        match named {
            Ok(image) => found.images.push(image),
            Err(what) => found.problems.push(Problem {
                manifest: path,
                what,
            }),
        }
    }
    if after != *before {
        if let Err(e) = write_cache(dir, &after) {
            // In a folder that is read-only it is remembered here alone.
            tracing::debug!(dir = %dir.display(), error = %e, "what was verified is not written down");
        }
        *before = after;
    }
    found
        .images
        .sort_by(|a, b| a.manifest.name.cmp(&b.manifest.name));
    found.problems.sort_by(|a, b| a.manifest.cmp(&b.manifest));
    Ok(found)
}

/// Where an image's disk lies.
pub fn disk_path(dir: &Path, image: &Image) -> PathBuf {
    dir.join(&image.manifest.disk)
}

/// The id of the image whose disk has this SHA-256: its first 68 bits. None
/// when it is not 64 lower-case hexadecimal digits.
pub fn image_id(sha256: &str) -> Option<ImageId> {
    let hex = sha256.len() == 64
        && sha256
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    hex.then(|| format!("{}-{}", ImageId::PREFIX, &sha256[..17]))?
        .parse()
        .ok()
}

/// The image that a manifest describes, if its disk is what it says.
fn image(manifest: Manifest, verified: &Verified, scope: &Scope) -> Result<Image, String> {
    let id = image_id(&manifest.sha256)
        .ok_or("\"sha256\" is not 64 lower-case hexadecimal digits".to_owned())?;
    if verified.size != manifest.disk_size {
        return Err(format!(
            "its disk has {} bytes, and not the {} of \"disk_size\"",
            verified.size, manifest.disk_size
        ));
    }
    if verified.sha256 != manifest.sha256 {
        return Err(format!(
            "its disk's SHA-256 is {}, and not that of \"sha256\"",
            verified.sha256
        ));
    }
    Ok(Image {
        id,
        scope: scope.clone(),
        manifest,
    })
}

/// A file's bytes, if they are no more than `cap`.
fn read_capped(path: &Path, cap: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(cap + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > cap {
        return Err(io::Error::other(format!("longer than {cap} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use sha2::{Digest as _, Sha256};

    use super::verified::CACHE_NAME;
    use super::*;

    /// A folder with one good image, and its manifest to spoil.
    fn folder() -> (tempfile::TempDir, serde_json::Value) {
        let dir = tempfile::tempdir().unwrap();
        let disk = vec![7; 4096];
        fs::write(dir.path().join("one.raw"), &disk).unwrap();
        let manifest = serde_json::json!({
            "name": "one", "description": "the first", "architecture": "x86_64",
            "root_device_name": "/dev/xvda", "default_user": "admin", "disk": "one.raw",
            "disk_size": 4096, "sha256": hex::encode(Sha256::digest(&disk)),
            "created": "2026-11-01T00:00:00Z",
            "boot": { "method": "linux", "partition": 1, "kernel": "/vmlinuz",
                      "initrd": "/initrd.img", "cmdline": "console=ttyS0" },
        });
        (dir, manifest)
    }

    /// Scans until all is verified.
    fn scan(dir: &Path, owner: &str) -> io::Result<Scan> {
        let scope = Scope::new(owner, "us-east-1");
        let mut known = Known::default();
        loop {
            let found = super::scan(dir, &scope, &mut known)?;
            if !found.more {
                return Ok(found);
            }
        }
    }

    fn put(dir: &tempfile::TempDir, name: &str, manifest: &serde_json::Value) {
        fs::write(dir.path().join(name), manifest.to_string()).unwrap();
    }

    #[test]
    fn a_good_image_is_found_by_its_hash() {
        let (dir, manifest) = folder();
        put(&dir, "one.json", &manifest);
        let found = scan(dir.path(), "000000000000").unwrap();
        assert_eq!(found.problems, []);
        let [image] = &found.images[..] else {
            panic!("{found:?}")
        };
        let sha = manifest["sha256"].as_str().unwrap();
        assert_eq!(image.id.as_str(), format!("ami-{}", &sha[..17]));
        assert_eq!(image.scope.account, "000000000000");
        assert_eq!(disk_path(dir.path(), image), dir.path().join("one.raw"));
    }

    #[test]
    fn a_folder_that_is_not_there_has_no_images() {
        let found = scan(Path::new("/nonexistent/images"), "0").unwrap();
        assert!(found.images.is_empty() && found.problems.is_empty());
    }

    #[test]
    fn a_bad_manifest_is_named_in_one_line_and_spoils_no_other() {
        let cases: [(&str, serde_json::Value, &str); 9] = [
            ("sha256", "00".repeat(32).into(), "its disk's SHA-256 is"),
            ("sha256", "xyz".into(), "64 lower-case"),
            ("disk_size", 512.into(), "has 4096 bytes"),
            ("disk_size", 13.into(), "512-byte sectors"),
            ("disk", "../one.raw".into(), "name of a file beside"),
            ("disk", "none.raw".into(), "none.raw: No such file"),
            ("architecture", "arm64".into(), "only x86_64"),
            ("root_device_name", "xvda".into(), "/dev/"),
            ("surprise", 1.into(), "unknown field `surprise`"),
        ];
        for (field, value, complaint) in cases {
            let (dir, manifest) = folder();
            put(&dir, "one.json", &manifest);
            let mut bad = manifest.clone();
            bad[field] = value;
            put(&dir, "bad.json", &bad);
            let found = scan(dir.path(), "0").unwrap();
            assert_eq!(found.images.len(), 1, "{complaint}");
            let [problem] = &found.problems[..] else {
                panic!("{found:?}")
            };
            let line = problem.to_string();
            assert!(
                line.contains("bad.json: ") && line.contains(complaint),
                "{line}"
            );
            assert!(!line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn the_same_disk_twice_is_one_image() {
        let (dir, mut manifest) = folder();
        put(&dir, "one.json", &manifest);
        manifest["name"] = "two".into();
        put(&dir, "two.json", &manifest);
        let found = scan(dir.path(), "0").unwrap();
        assert_eq!(found.images.len(), 1);
        assert!(
            found.problems[0]
                .what
                .contains("same as that of image \"one\"")
        );
    }

    #[test]
    fn what_was_verified_is_not_hashed_again_until_it_changes() {
        let (dir, manifest) = folder();
        put(&dir, "one.json", &manifest);
        scan(dir.path(), "0").unwrap();

        // A lie in the cache shows whether it was asked.
        let mut cache = read_cache(dir.path());
        cache.get_mut("one.raw").unwrap().sha256 = "11".repeat(32);
        write_cache(dir.path(), &cache).unwrap();
        let found = scan(dir.path(), "0").unwrap();
        assert!(found.problems[0].what.contains(&"11".repeat(32)));

        // Rewritten in place: another modification time, and hashed again.
        let disk = dir.path().join("one.raw");
        let later =
            fs::metadata(&disk).unwrap().modified().unwrap() + std::time::Duration::from_secs(1);
        File::options()
            .write(true)
            .open(&disk)
            .unwrap()
            .set_modified(later)
            .unwrap();
        assert_eq!(scan(dir.path(), "0").unwrap().images.len(), 1);
    }

    #[test]
    fn a_damaged_cache_is_no_harm() {
        let (dir, manifest) = folder();
        put(&dir, "one.json", &manifest);
        fs::write(dir.path().join(CACHE_NAME), b"{").unwrap();
        assert_eq!(scan(dir.path(), "0").unwrap().images.len(), 1);
    }

    #[test]
    fn one_disk_is_verified_at_a_time_the_smallest_first() {
        let (dir, manifest) = folder();
        put(&dir, "one.json", &manifest);
        let disk = vec![8; 512];
        fs::write(dir.path().join("two.raw"), &disk).unwrap();
        let mut small = manifest.clone();
        small["name"] = "two".into();
        small["disk"] = "two.raw".into();
        small["disk_size"] = 512.into();
        small["sha256"] = hex::encode(Sha256::digest(&disk)).into();
        put(&dir, "two.json", &small);

        let mut known = Known::default();
        let names = |found: &Scan| -> Vec<String> {
            found
                .images
                .iter()
                .map(|i| i.manifest.name.clone())
                .collect()
        };
        let first = super::scan(dir.path(), &Scope::new("0", "r"), &mut known).unwrap();
        assert_eq!((names(&first), first.more), (vec!["two".to_owned()], true));
        let second = super::scan(dir.path(), &Scope::new("0", "r"), &mut known).unwrap();
        assert_eq!(names(&second), ["one", "two"]);
        assert!(!second.more);
    }

    #[test]
    fn what_was_verified_is_known_though_the_folder_takes_no_record() {
        let (dir, manifest) = folder();
        put(&dir, "one.json", &manifest);
        // A folder in the record's place: it can be neither read nor replaced.
        fs::create_dir_all(dir.path().join(CACHE_NAME).join("x")).unwrap();
        let mut known = Known::default();
        assert_eq!(
            super::scan(dir.path(), &Scope::new("0", "r"), &mut known)
                .unwrap()
                .images
                .len(),
            1
        );
        let disks = known.disks.as_mut().unwrap();
        disks.get_mut("one.raw").unwrap().sha256 = "11".repeat(32);
        let found = super::scan(dir.path(), &Scope::new("0", "r"), &mut known).unwrap();
        assert!(
            found.problems[0].what.contains(&"11".repeat(32)),
            "hashed again"
        );
    }
}
