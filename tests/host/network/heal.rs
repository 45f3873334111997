//! What happens when another program takes the rules away.

use hearth::model::{InstanceState, Protocol};

use super::cloud::{Cloud, OPEN_PORT, all_egress, anywhere, ingress, isolated, outside};
use super::guest::{Guest, fetch, sh};
use super::to_host::serve_on_host;

const VPC: &str = "ip netns exec hearth-vpc-00000000000000001";

fn pings(from: &Guest, to: &str) -> bool {
    let ping = format!("busybox ping -c 1 -W 1 {to}");
    from.try_sh(&ping).status.success()
}

#[test]
fn without_its_rules_nothing_passes_until_they_are_back() {
    isolated(
        "network::heal::without_its_rules_nothing_passes_until_they_are_back",
        async || {
            outside();
            serve_on_host(&[22, OPEN_PORT]);
            let mut cloud = Cloud::new();
            cloud.group(1, vec![all_egress(), ingress(Protocol::All, anywhere())]);
            cloud.group(2, vec![all_egress()]);
            cloud.instance(10, &[1], |_| ());
            cloud.instance(11, &[2], |_| ());
            cloud.apply().await;
            let (open, shut) = (cloud.guest(10).await, cloud.guest(11).await);
            let as_it_should_be = || {
                assert!(pings(&shut, "172.31.0.10") && !pings(&open, "172.31.0.11"));
                assert!(open.fetch("http://198.51.100.2").is_some());
                let at = open.fetch(&format!("http://203.0.113.1:{OPEN_PORT}"));
                assert_eq!(at.as_deref(), Some("host"));
                assert_eq!(open.fetch("http://203.0.113.1:22"), None);
                assert!(open.fetch("http://169.254.169.254/latest/").is_some());
            };
            as_it_should_be();
            open.serve(80, "guest");

            for flush in ["nft flush ruleset", "nft flush table inet hearth"] {
                sh(&format!("{VPC} {flush}"));
                assert!(!pings(&shut, "172.31.0.10"), "{flush}");
                assert!(!pings(&open, "203.0.113.1"), "{flush}");
                // Nor with an answer to a new question for its MAC address.
                open.sh("ip neigh flush dev eth0");
                assert!(!pings(&open, "172.31.0.11"), "{flush}");
                assert_eq!(fetch("http://203.0.113.10"), None, "{flush}");
                for url in [
                    "http://203.0.113.1:22",
                    "http://198.51.100.2",
                    "http://169.254.169.254/latest/",
                ] {
                    assert_eq!(open.fetch(url), None, "{flush}");
                }
                cloud.apply().await;
                as_it_should_be();
            }

            for flush in ["nft flush ruleset", "nft delete table inet hearth"] {
                sh(flush);
                assert_eq!(open.fetch("http://203.0.113.1:22"), None, "{flush}");
                assert_eq!(open.fetch("http://169.254.170.2"), None, "{flush}");
                assert!(pings(&shut, "172.31.0.10"), "the VPC is none of it");
                cloud.apply().await;
                as_it_should_be();
            }

            // Another program's own table is left alone, and ours with it.
            sh("nft add table inet other");
            cloud.apply().await;
            as_it_should_be();
            sh("nft list table inet other");

            // After all that an increment is one again.
            cloud.instance(11, &[2], |i| i.state = InstanceState::Stopped);
            cloud.apply().await;
            let rules = sh(&format!("{VPC} nft list ruleset"));
            assert!(!rules.contains("jump in-tap-0000000000b"), "{rules}");
        },
    );
}
