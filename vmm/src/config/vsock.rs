//! `--vsock`.

use std::path::PathBuf;

use super::options::Options;

/// A socket device asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vsock {
    /// The guest's address.
    pub cid: u32,
    /// The Unix socket on the host.
    pub path: PathBuf,
}

/// Reads the flag's text.
pub(super) fn parse(text: &str) -> Result<Vsock, String> {
    let mut options = Options::new("--vsock", text)?;
    let cid = options.value("cid")?.ok_or("--vsock: cid=N is missing")?;
    let path = options
        .value("path")?
        .ok_or("--vsock: path=FILE is missing")?;
    options.finish()?;
    let cid = cid
        .parse()
        .ok()
        .filter(|cid| (3..u32::MAX).contains(cid))
        .ok_or(format!(
            "--vsock: cid {cid:?}: 3 to {} are allowed",
            u32::MAX - 1
        ))?;
    Ok(Vsock {
        cid,
        path: path.into(),
    })
}
