//! The names that things have on the host, and those that hosts have in DNS.

use std::net::Ipv4Addr;

use crate::model::{EniId, VpcId};

/// What every namespace's name starts with.
pub const NAMESPACE_PREFIX: &str = "hearth-";
/// What every tap's name starts with.
pub const TAP_PREFIX: &str = "tap-";
/// What the host's end of every internet gateway's name starts with.
pub const IGW_PREFIX: &str = "igw-";
/// The namespace's end of the internet gateway.
pub const IGW: &str = "igw0";
/// The name of the nft table, in the namespaces and in the host's own.
pub const TABLE: &str = "hearth";

/// The namespace of a VPC: `hearth-vpc-…`, visible to `ip netns`.
pub fn namespace(vpc: &VpcId) -> String {
    format!("{NAMESPACE_PREFIX}{vpc}")
}

/// The first eleven digits of an id, so that a name fits IFNAMSIZ (15 and NUL).
fn short(id: &str) -> &str {
    let digits = id.rsplit_once('-').map_or(id, |(_, digits)| digits);
    &digits[..digits.len().min(11)]
}

/// The tap of an interface.
pub fn tap(eni: &EniId) -> String {
    format!("{TAP_PREFIX}{}", short(eni.as_str()))
}

/// The host's end of a VPC's internet gateway.
pub fn igw(vpc: &VpcId) -> String {
    format!("{IGW_PREFIX}{}", short(vpc.as_str()))
}

/// The domain of private names in a region: `ec2.internal` in us-east-1.
///
/// <https://docs.aws.amazon.com/vpc/latest/userguide/vpc-dns.html>
pub fn private_domain(region: &str) -> String {
    if region == "us-east-1" {
        "ec2.internal".to_owned()
    } else {
        format!("{region}.compute.internal")
    }
}

/// The domain of public names in a region.
pub fn public_domain(region: &str) -> String {
    if region == "us-east-1" {
        "compute-1.amazonaws.com".to_owned()
    } else {
        format!("{region}.compute.amazonaws.com")
    }
}

/// `ip-172-31-0-4`.
pub fn private_host(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("ip-{a}-{b}-{c}-{d}")
}

/// `ip-172-31-0-4.ec2.internal` (`PrivateDnsName`).
pub fn private_name(region: &str, address: Ipv4Addr) -> String {
    format!("{}.{}", private_host(address), private_domain(region))
}

/// `ec2-203-0-113-7.compute-1.amazonaws.com` (`PublicDnsName`).
pub fn public_name(region: &str, address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("ec2-{a}-{b}-{c}-{d}.{}", public_domain(region))
}

/// The address in a name's first label, if it is of the form `prefix-a-b-c-d`
/// and written as [`private_host`] would.
pub fn address_in_label(label: &str, prefix: &str) -> Option<Ipv4Addr> {
    let mut parts = label.strip_prefix(prefix)?.strip_prefix('-')?.split('-');
    let mut octets = [0u8; 4];
    for octet in &mut octets {
        let part = parts.next()?;
        *octet = part.parse().ok()?;
        if octet.to_string() != part {
            return None;
        }
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit() {
        let eni = EniId::from_random(u128::MAX);
        assert_eq!(tap(&eni), "tap-fffffffffff");
        assert_eq!(igw(&VpcId::from_random(0x1234 << 48)).len(), 15);
        assert_eq!(tap(&"eni-12345678".parse().unwrap()), "tap-12345678");
    }

    #[test]
    fn names_and_addresses_turn_into_each_other() {
        let a = Ipv4Addr::new(172, 31, 0, 4);
        assert_eq!(private_name("us-east-1", a), "ip-172-31-0-4.ec2.internal");
        assert_eq!(
            private_name("eu-west-1", a),
            "ip-172-31-0-4.eu-west-1.compute.internal"
        );
        assert_eq!(address_in_label(&private_host(a), "ip"), Some(a));
        for bad in [
            "ip",
            "ip-1-2-3",
            "ip-1-2-3-4-5",
            "ip-1-2-3-256",
            "ip-01-2-3-4",
            "ip-1-2-3-+4",
        ] {
            assert_eq!(address_in_label(bad, "ip"), None, "{bad}");
        }
    }
}
