//! `--smbios`: what the machine says it is, made from its name where the flag doesn't say.

use super::options::Options;
use crate::smbios::{Identity, MAX_STRING, Uuid};

/// Reads the flag's text, if it was given, for the machine `id`.
pub(super) fn parse(text: Option<&str>, id: &str) -> Result<Identity, String> {
    let flag = "--smbios";
    let mut options = match text {
        Some(text) => Options::new(flag, text)?,
        None => Options::none(flag),
    };
    let product = options.value("product")?.unwrap_or("hearth").to_owned();
    let asset_tag = options.value("asset-tag")?.unwrap_or(id).to_owned();
    let uuid = match options.value("uuid")? {
        Some(text) => Uuid::parse(text).ok_or(format!("--smbios: uuid {text:?} is no UUID"))?,
        None => derived_uuid(id),
    };
    options.finish()?;
    for (name, value) in [("product", &product), ("asset-tag", &asset_tag)] {
        if value.len() > MAX_STRING || !value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            return Err(format!(
                "--smbios: {name} may have {MAX_STRING} printable ASCII characters"
            ));
        }
    }
    // Only a machine that the flag makes an EC2 instance says so: a guest that
    // believes it waits for the metadata service.
    let manufacturer = if uuid.to_string().starts_with("ec2") {
        "Amazon EC2"
    } else {
        "Hearth"
    };
    Ok(Identity {
        manufacturer: manufacturer.to_owned(),
        product,
        uuid,
        asset_tag,
    })
}

/// The fewest bytes of an asset tag that is found nowhere else in memory.
const PLACEHOLDER: usize = 16;

/// Whether a template may be called so: by what it is found in memory later.
pub(super) fn check_placeholder(identity: &Identity) -> Result<(), String> {
    match identity.asset_tag.len() {
        PLACEHOLDER.. => Ok(()),
        few => Err(format!(
            "--template: its asset-tag in --smbios has {few} bytes, and less than {PLACEHOLDER} may be found elsewhere in memory"
        )),
    }
}

/// A UUID out of the machine's name, as version 8 (RFC 9562, section 5.8); the
/// first byte keeps it from looking like EC2's.
fn derived_uuid(id: &str) -> Uuid {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&hash(&[id]).to_be_bytes());
    bytes[8..].copy_from_slice(&hash(&[id, "uuid"]).to_be_bytes());
    bytes[0] = b'H';
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Uuid::from_bytes(bytes)
}

/// FNV-1a, to make the same names into the same numbers on every start.
pub(super) fn hash(parts: &[&str]) -> u64 {
    let mut value = 0xcbf2_9ce4_8422_2325u64;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
        value = (value ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    value
}
