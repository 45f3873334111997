//! A VPC's table as text, and what nft says to it.

use super::super::host_rules::host_table;
use super::super::nft::{difference, replace};
use super::super::testing::*;
use super::super::{Topology, topology};
use super::*;
use crate::model::{HostId, Hosts, InstanceState};
use crate::network::names::HostNames;
use crate::store::View;

#[test]
fn only_guests_may_ask_by_arp_and_not_all_too_often() {
    let script = arp_table();
    let rules: Vec<&str> = script
        .lines()
        .map(str::trim)
        .skip_while(|line| !line.starts_with("chain"))
        .collect();
    assert_eq!(
        rules[..4],
        [
            "chain questions {",
            "type filter hook input priority 0; policy drop;",
            &format!(
                "iifname \"tap-*\" update @asking {{ iifname limit rate over {ARP_RATE}/second \
                 burst {ARP_RATE} packets }} drop"
            ),
            // Routed by this mark only.
            &format!("meta mark set {FILTERED:#x} accept"),
        ]
    );
    // Whatever was there before goes in the same transaction.
    assert!(script.starts_with("table arp hearth\ndelete table arp hearth\n"));
}

fn net(text: &str) -> Peer {
    Peer::Ipv4(text.parse().unwrap())
}

#[test]
fn rules_are_rendered() {
    let (tcp, udp) = (
        |from, to| Protocol::Tcp { from, to },
        |from, to| Protocol::Udp { from, to },
    );
    let icmp = |kind, code| Protocol::Icmp { kind, code };
    let members = "members-sg-00000000000000007";
    for (matcher, peer, expected) in [
        (Protocol::All, anywhere(), Some("accept".to_owned())),
        (
            tcp(22, 22),
            net("10.1.2.3/8"),
            Some("ip saddr 10.0.0.0/8 tcp dport 22 accept".into()),
        ),
        (
            tcp(0, 65535),
            anywhere(),
            Some("meta l4proto tcp accept".into()),
        ),
        (udp(1, 9), anywhere(), Some("udp dport 1-9 accept".into())),
        (tcp(9, 1), anywhere(), None),
        (
            icmp(None, None),
            anywhere(),
            Some("meta l4proto icmp accept".into()),
        ),
        (
            icmp(Some(8), None),
            net("1.2.3.4/32"),
            Some("ip saddr 1.2.3.4/32 icmp type 8 accept".into()),
        ),
        (
            icmp(Some(3), Some(4)),
            anywhere(),
            Some("icmp type 3 icmp code 4 accept".into()),
        ),
        (
            Protocol::Number(47),
            anywhere(),
            Some("meta l4proto 47 accept".into()),
        ),
        (
            Protocol::All,
            Peer::Group(group_id(7)),
            Some(format!("iifname . ip saddr @{members} accept")),
        ),
        (Protocol::All, Peer::Ipv6("::/0".parse().unwrap()), None),
        (
            Protocol::Icmpv6 {
                kind: None,
                code: None,
            },
            anywhere(),
            None,
        ),
    ] {
        let rule = rule(1, Direction::Ingress, matcher, peer);
        assert_eq!(rule_line(&rule), expected, "{rule:?}");
    }
    let out = rule(1, Direction::Egress, Protocol::All, net("10.0.0.0/8"));
    assert_eq!(
        rule_line(&out).as_deref(),
        Some("ip daddr 10.0.0.0/8 accept")
    );
}

fn host() -> HostSide {
    HostSide {
        addresses: [[192, 0, 2, 1].into(), [203, 0, 113, 1].into()].into(),
        ports: ["tcp/3128".parse().unwrap()].into(),
    }
}

fn table_of(view: &View) -> Table {
    let Topology { vpcs } = topology(view, &Hosts::one(HostId(HOST.into())));
    vpc_table(&vpcs[&vpc_id()], &host(), &Limits::default())
}

/// Three steps in the life of a VPC.
fn steps() -> Vec<Table> {
    let ssh = Protocol::Tcp { from: 22, to: 22 };
    let web = Protocol::Tcp { from: 80, to: 80 };
    let out = rule(1, Direction::Egress, Protocol::All, anywhere());
    let from_2 = rule(2, Direction::Ingress, ssh, Peer::Group(group_id(2)));
    let from_all = rule(3, Direction::Ingress, web, anywhere());
    let gone = rule(4, Direction::Ingress, web, Peer::Group(group_id(99)));
    let (a, mut a_eni) = instance(4, &[1], InstanceState::Running);
    let (b, b_eni) = instance(5, &[1, 2], InstanceState::Running);
    a_eni.public_ip = Some([203, 0, 113, 7].into());
    let one = view()
        .with(group(1, vec![out.clone(), from_2]))
        .with(group(2, vec![]))
        .with(a.clone())
        .with(a_eni.clone());
    let two = one.clone().with(b).with(b_eni).with(group(2, vec![gone]));
    a_eni.public_ip = Some([203, 0, 113, 9].into());
    let three = two.clone().with(a_eni).with(group(1, vec![out, from_all]));
    vec![table_of(&one), table_of(&two), table_of(&three)]
}

#[test]
fn an_increment_is_small() {
    let steps = steps();
    let tap = "tap-0000000000";
    let sg = "sg-0000000000000000";
    assert_eq!(
        difference("hearth", &steps[1], &steps[2]),
        format!(
            "delete element inet hearth private-of {{ 203.0.113.7 : 172.31.0.4 }}\n\
             delete element inet hearth public-of {{ 172.31.0.4 : 203.0.113.7 }}\n\
             flush chain inet hearth in-{sg}1\n\
             add rule inet hearth in-{sg}1 tcp dport 80 accept\n\
             add element inet hearth private-of {{ 203.0.113.9 : 172.31.0.4 }}\n\
             add element inet hearth public-of {{ 172.31.0.4 : 203.0.113.9 }}\n\
             delete set inet hearth members-{sg}2\n"
        )
    );
    let added = difference("hearth", &steps[0], &steps[1]);
    assert!(
        added.contains(&format!(
            "add element inet hearth to-tap {{ \"{tap}5\" : jump in-{tap}5 }}"
        )),
        "{added}"
    );
}

#[test]
fn nft_takes_the_whole_and_every_increment() {
    // In a namespace of its own, so that it may really load the rules.
    let nft = |script: &str| -> Option<std::process::Output> {
        let mut child = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "nft", "-f", "-"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .ok()?;
        std::io::Write::write_all(&mut child.stdin.take()?, script.as_bytes()).ok()?;
        child.wait_with_output().ok()
    };
    if !nft("add table inet probe\n").is_some_and(|out| out.status.success()) {
        eprintln!("nft can't load rules here: not checked");
        return;
    }
    let steps = steps();
    for (i, old) in steps.iter().enumerate() {
        for (j, new) in steps.iter().enumerate() {
            let script = replace("hearth", old) + &difference("hearth", old, new);
            let out = nft(&script).unwrap();
            let error = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "{i} to {j}: {error}\n{script}");
        }
    }
    let pool = "203.0.113.0/24".parse().unwrap();
    let of_host = |name| {
        let names = HostNames::new(name);
        replace(names.label(), &host_table(&names, pool, &host()))
    };
    for script in [arp_table(), of_host(None), of_host(Some("test"))] {
        let out = nft(&script).unwrap();
        let error = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{error}\n{script}");
    }
}

#[test]
fn the_whole_table() {
    insta::assert_snapshot!(replace("hearth", &steps()[0]));
}
