//! Availability zones.

/// The id of a zone that means the same zone to every account, made as EC2 makes
/// its own: `us-east-1a` is `use1-az1`.
pub fn zone_id(zone: &str) -> String {
    let mut parts = zone.split('-');
    let area = parts.next().unwrap_or_default();
    let direction = parts.next().unwrap_or_default();
    let last = parts.next_back().unwrap_or_default();
    let number = last.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let direction = match direction {
        "northeast" => "ne",
        "northwest" => "nw",
        "southeast" => "se",
        "southwest" => "sw",
        other => other.get(..1).unwrap_or_default(),
    };
    let index = last
        .bytes()
        .next_back()
        .filter(u8::is_ascii_lowercase)
        .map_or(1, |b| b.saturating_sub(b'a') + 1);
    format!("{area}{direction}{number}-az{index}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn zone_ids() {
        assert_eq!(super::zone_id("us-east-1a"), "use1-az1");
        assert_eq!(super::zone_id("ap-southeast-2c"), "apse2-az3");
        assert_eq!(super::zone_id(""), "-az1");
    }
}
