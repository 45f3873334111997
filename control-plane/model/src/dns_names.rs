//! The names that instances have in DNS.

use std::net::Ipv4Addr;

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
    fn names_and_addresses_turn_into_each_other() {
        let a = Ipv4Addr::new(172, 31, 0, 4);
        assert_eq!(private_name("us-east-1", a), "ip-172-31-0-4.ec2.internal");
        assert_eq!(
            private_name("eu-west-1", a),
            "ip-172-31-0-4.eu-west-1.compute.internal"
        );
        let public = Ipv4Addr::new(203, 0, 113, 7);
        assert_eq!(
            public_name("us-east-1", public),
            "ec2-203-0-113-7.compute-1.amazonaws.com"
        );
        assert_eq!(
            public_name("eu-west-1", public),
            "ec2-203-0-113-7.eu-west-1.compute.amazonaws.com"
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
