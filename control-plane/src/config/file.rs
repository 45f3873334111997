//! The configuration file: the accounts and the regions, so that a test bed comes
//! up the same each time.
//!
//! ```toml
//! [[region]]
//! name = "us-east-1"
//! zones = ["us-east-1a"]
//!
//! [[account]]
//! id = "111122223333"
//! name = "team a"
//!
//! [[account.key]]
//! access_key_id = "AKIAEXAMPLEEXAMPLE00"
//! secret_access_key = "…"
//! ```

use std::collections::HashSet;

use serde::Deserialize;

use crate::auth::credentials::{self, Account};

/// A region with its availability zones.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Its name, as `us-east-1`.
    pub name: String,
    /// The names of its zones, each the region's and a letter; at least one.
    pub zones: Vec<String>,
}

impl Region {
    pub(super) fn check_name(&self) -> Result<(), String> {
        let name = &self.name;
        let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || !name.bytes().all(known) {
            return Err(format!("{name:?}: lower-case letters, digits and -"));
        }
        Ok(())
    }

    pub(super) fn check_zones(&self) -> Result<(), String> {
        let name = &self.name;
        for zone in &self.zones {
            let letter = zone.strip_prefix(name.as_str()).unwrap_or_default();
            if letter.len() != 1 || !letter.bytes().all(|b| b.is_ascii_lowercase()) {
                return Err(format!(
                    "{zone:?}: must be the region's name and a letter, as {name}a"
                ));
            }
        }
        Ok(())
    }
}

/// What the file says. Without one: nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// The regions; this host is in the first unless `--region` says otherwise.
    #[serde(default, rename = "region")]
    pub regions: Vec<Region>,
    /// Accounts with their ids, and with keys or without.
    #[serde(default, rename = "account")]
    pub accounts: Vec<Account>,
}

impl ConfigFile {
    /// Reads the text of a file, and checks it.
    ///
    /// # Errors
    /// One line that says where and why.
    pub fn parse(text: &str) -> Result<Self, String> {
        // The whole of an error would quote the line, with the secret in it.
        let file: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map_or(0, |before| before.matches('\n').count() + 1);
            format!("line {line}: {}", error.message())
        })?;
        let mut seen = HashSet::new();
        for region in &file.regions {
            region.check_name().map_err(|why| format!("region {why}"))?;
            region.check_zones().map_err(|why| format!("zone {why}"))?;
            if region.zones.is_empty() {
                return Err(format!("the region {} has no zones", region.name));
            }
            for name in region.zones.iter().chain([&region.name]) {
                if !seen.insert(name) {
                    return Err(format!("{name} is there twice"));
                }
            }
        }
        credentials::check(&file.accounts)?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_contradicts_itself_is_refused_and_no_secret_quoted() {
        for (text, why) in [
            ("region = 1", "line 1"),
            ("[[region]]\nname = 'x-1'", "line 1"),
            ("[[region]]\nname = 'x-1'\nzones = []", "no zones"),
            ("[[region]]\nname = 'X'\nzones = ['Xa']", "lower-case"),
            ("[[region]]\nname = 'x-1'\nzones = ['x-2a']", "x-2a"),
            (
                "[[region]]\nname = 'x-1'\nzones = ['x-1a', 'x-1a']",
                "twice",
            ),
            ("[[account]]\nid = '12'", "12 digits"),
            (
                "[[account]]\nid = '111122223333'\n[[account]]\nid = '111122223333'",
                "twice",
            ),
            (
                "[[account]]\nid = '111122223333'\nkey = [{access_key_id = 'A b', \
              secret_access_key = 'sesame'}]",
                "letters and digits",
            ),
            (
                "[[account]]\nid = '111122223333'\nkey = [{access_key_id = 'AKIA', \
              secret_acces_key = 'sesame'}]",
                "line 3",
            ),
            ("nothing = 1", "line 1"),
        ] {
            let refused = ConfigFile::parse(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
            assert!(!refused.contains("sesame"), "{refused}");
        }
        assert_eq!(ConfigFile::parse("").unwrap(), ConfigFile::default());
    }
}
