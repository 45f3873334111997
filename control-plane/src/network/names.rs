//! The names that things have on the host.

use sha2::{Digest as _, Sha256};

use crate::model::{EniId, VpcId};

/// What every tap's name starts with.
pub const TAP_PREFIX: &str = "tap-";
/// The namespace's end of the internet gateway.
pub const IGW: &str = "igw0";
/// The name of the nft table in the namespaces.
pub const TABLE: &str = "hearth";

/// How one hearth names what it makes in places that all of the host's processes
/// share. By these names it also finds, later, what is its own to remove: those
/// of two hearths never match each other's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNames {
    label: String,
    igw_prefix: String,
    number: u16,
}

impl HostNames {
    /// How many [numbers](Self::number) there are.
    pub const NUMBERS: u16 = 1 << 11;

    /// Whether a hearth may have this name.
    pub fn may_be(name: &str) -> bool {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        (1..=24).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('-')
    }

    /// The names of the hearth with this name, or of the one without any.
    pub fn new(name: Option<&str>) -> Self {
        let Some(name) = name else {
            return Self {
                label: "hearth".to_owned(),
                igw_prefix: "igw-".to_owned(),
                number: 0,
            };
        };
        let digest = Sha256::digest(name.as_bytes());
        let hash = u16::from_be_bytes([digest[0], digest[1]]);
        Self {
            label: format!("hearth-{name}"),
            // No room for the name in IFNAMSIZ.
            igw_prefix: format!("igw{:03x}-", hash >> 4),
            number: hash % (Self::NUMBERS - 1) + 1,
        }
    }

    /// `hearth`, or `hearth-NAME`: the nft table in the host's own namespace,
    /// and the parent of the control groups.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A number below [`NUMBERS`](Self::NUMBERS) for what is shared by number:
    /// 0 without a name, and another one with any.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// The namespace of a VPC: `hearth-vpc-…`, visible to `ip netns`.
    pub fn namespace(&self, vpc: &VpcId) -> String {
        format!("{}-{vpc}", self.label)
    }

    /// The VPC of this hearth's that a namespace is of.
    pub fn vpc_of(&self, namespace: &str) -> Option<VpcId> {
        let rest = namespace.strip_prefix(self.label.as_str())?;
        rest.strip_prefix('-')?.parse().ok()
    }

    /// Whether a namespace of this name is one of this hearth's VPCs.
    pub fn is_namespace(&self, name: &str) -> bool {
        self.vpc_of(name).is_some()
    }

    /// What the host's end of every internet gateway's name starts with.
    pub fn igw_prefix(&self) -> &str {
        &self.igw_prefix
    }

    /// The host's end of a VPC's internet gateway.
    pub fn igw(&self, vpc: &VpcId) -> String {
        format!(
            "{}{}",
            self.igw_prefix,
            short(vpc.as_str(), self.igw_prefix.len())
        )
    }
}

/// The first digits of an id, as many as fit IFNAMSIZ (15 and NUL) after a prefix.
fn short(id: &str, prefix: usize) -> &str {
    let digits = id.rsplit_once('-').map_or(id, |(_, digits)| digits);
    &digits[..digits.len().min(15 - prefix)]
}

/// The tap of an interface.
pub fn tap(eni: &EniId) -> String {
    format!("{TAP_PREFIX}{}", short(eni.as_str(), TAP_PREFIX.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit() {
        let eni = EniId::from_random(u128::MAX);
        assert_eq!(tap(&eni), "tap-fffffffffff");
        assert_eq!(tap(&"eni-12345678".parse().unwrap()), "tap-12345678");
    }

    #[test]
    fn a_name_is_short_and_fits_wherever_it_stands() {
        for name in ["a", "test-2", "2", &"a".repeat(24)] {
            assert!(HostNames::may_be(name), "{name}");
        }
        for name in ["", "-a", "A", "a_b", "a/b", "\u{e9}", &"a".repeat(25)] {
            assert!(!HostNames::may_be(name), "{name}");
        }
    }

    #[test]
    fn no_hearth_takes_anothers_things_for_its_own() {
        let vpc = VpcId::from_random(0x1234 << 48);
        let all: Vec<HostNames> = [None, Some("test"), Some("test-vpc"), Some("vpc-1")]
            .map(HostNames::new)
            .into();
        for mine in &all {
            assert_eq!(mine.igw(&vpc).len(), 15);
            for other in &all {
                let same = mine == other;
                assert_eq!(mine.is_namespace(&other.namespace(&vpc)), same);
                assert_eq!(other.igw(&vpc).starts_with(mine.igw_prefix()), same);
                assert_eq!(mine.label() == other.label(), same);
                assert_eq!(mine.number() == other.number(), same);
            }
        }
        let unnamed = &all[0];
        assert_eq!(unnamed.namespace(&vpc), format!("hearth-{vpc}"));
        for not in ["hearth-", "hearth-vpc", "hearth-vpc-xyz", "other-vpc-1"] {
            assert!(!unnamed.is_namespace(not), "{not}");
        }
    }
}
