//! Security groups, anti-spoofing, limits and public addresses as the nft tables
//! of a VPC's namespace.
//!
//! ```text
//! prerouting  spoof      a tap's packet has its MAC and its address, or is
//!                        dropped; what passes gets the mark FILTERED
//!             services   so many packets a second of each tap to DNS, IMDS, DHCP
//!             opening    so many new connections of each tap, a second and in all
//!             public     from the gateway: public → private address
//! input       local      an instance reaches DHCP, DNS and IMDS, nothing else here
//! forward     egress     from a tap: the rules of its groups, else dropped
//!             ingress    to the gateway: only who has a public address, and not
//!                        to the host; to a tap: the rules of its groups
//! postrouting private    to the gateway: private → public address
//!             reaching   so many new connections from the gateway to each tap
//! ```
//!
//! `egress` and `ingress` are two base chains, since an `accept` ends only its
//! own: traffic between two instances passes both. A group is one chain for
//! each direction, shared by all its interfaces; an interface is a chain of
//! jumps, found by its tap in a verdict map. As on EC2, what no rule allows is
//! dropped silently, and a tracked connection outlives the rule that let it in.
//!
//! Whose a packet is, is a matter of the tap that it comes from. A source
//! address alone says nothing: an instance without source/destination check may
//! send any that is no other interface's here.
//!
//! An instance that speaks to another by its public address goes out through
//! the gateway and back in, so that it is seen with its own public address, as
//! on EC2.
//!
//! <https://docs.aws.amazon.com/vpc/latest/userguide/security-group-rules.html>

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::nft::{Chain, Map, Set, Table};
use super::{HostSide, Interface, Limits, VpcNet};
use crate::model::{Direction, GroupId, Peer, Protocol, Rule};
use crate::network::names::{IGW, TABLE, TAP_PREFIX};

/// Where instances find the DNS beside the VPC's own resolver address.
pub const DNS_ADDRESS: &str = "169.254.169.253";
/// Where instances find the metadata service.
pub const IMDS_ADDRESS: &str = "169.254.169.254";
/// The bit of a packet's mark that says that nftables has seen it. Routing in a
/// VPC's namespace refuses what comes without it: where the rules are gone,
/// nothing passes.
pub const FILTERED: u32 = 0x2000;
/// Where no instance's packet may go beyond the VPC: this network, loopback,
/// link-local (where a host that is itself a virtual machine finds the metadata
/// of its own cloud), multicast, reserved (RFC 6890).
pub const NOWHERE: &str = "{ 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4, 240.0.0.0/4 }";

/// The first of `ARP_RATE` questions a second may all come at once.
const ARP_RATE: u32 = 256;
/// Sets that packets fill, an element for each tap that has sent any of late.
const METER: &str = "size 65535; flags dynamic,timeout; timeout 1m;";
/// The same for counts of connections; the kernel lets an element go with the
/// last connection of it.
const COUNTER: &str = "size 65535; flags dynamic;";

/// The table in a VPC's namespace.
pub fn vpc_table(vpc: &VpcNet, host: &HostSide, limits: &Limits) -> Table {
    let mut table = Table::default();
    sets_and_maps(&mut table, host);
    prerouting(&mut table, limits);
    base_chains(&mut table, vpc);
    for (id, group) in &vpc.groups {
        for (direction, prefix) in [(Direction::Ingress, "in"), (Direction::Egress, "out")] {
            let rules = group
                .rules
                .iter()
                .filter(|rule| rule.direction == direction)
                .filter_map(rule_line)
                .collect();
            let name = format!("{prefix}-{id}");
            table.chains.insert(name, Chain { hook: None, rules });
        }
    }
    for interface in vpc.interfaces.values() {
        add_interface(&mut table, vpc, interface);
    }
    let taps: BTreeMap<Ipv4Addr, String> = vpc
        .interfaces
        .values()
        .map(|i| (i.private_ip, i.tap()))
        .collect();
    for rule in vpc.groups.values().flat_map(|group| &group.rules) {
        let Peer::Group(id) = &rule.peer else {
            continue;
        };
        // A rule may name a group that is gone; it matches nobody. A member on
        // another host has no way to here.
        let group = vpc.groups.get(id);
        let members_of = group.into_iter().flat_map(|group| &group.members);
        let elements = members_of
            .filter_map(|address| Some(format!("\"{}\" . {address}", taps.get(address)?)))
            .collect();
        add_set(&mut table, &members(id), "ifname . ipv4_addr", "", elements);
    }
    table
}

/// The script of the namespace's ARP table. A guest's question is routed like a
/// packet, so it needs the mark; and it may not ask all too often.
pub fn arp_table() -> String {
    format!(
        "table arp {TABLE}\ndelete table arp {TABLE}\ntable arp {TABLE} {{\n\
         \tset asking {{\n\t\ttype ifname; {METER}\n\t}}\n\
         \tchain questions {{\n\
         \t\ttype filter hook input priority 0; policy drop;\n\
         \t\tiifname \"{TAP_PREFIX}*\" {}\n\
         \t\tmeta mark set {FILTERED:#x} accept\n\t}}\n}}\n",
        over_rate("asking", "iifname", ARP_RATE),
    )
}

/// Drops what an interface sends above `rate` packets a second, a second's
/// worth of which may come at once.
fn over_rate(meter: &str, key: &str, rate: u32) -> String {
    format!("update @{meter} {{ {key} limit rate over {rate}/second burst {rate} packets }} drop")
}

fn members(id: &GroupId) -> String {
    format!("members-{id}")
}

pub(super) fn base(table: &mut Table, name: &str, hook: &'static str, rules: &[String]) {
    let rules = rules.to_vec();
    let hook = Some(hook);
    table.chains.insert(name.to_owned(), Chain { hook, rules });
}

pub(super) fn add_set(
    table: &mut Table,
    name: &str,
    kind: &'static str,
    options: &'static str,
    elements: BTreeSet<String>,
) {
    let set = Set {
        kind,
        options,
        elements,
    };
    table.sets.insert(name.to_owned(), set);
}

fn sets_and_maps(table: &mut Table, host: &HostSide) {
    for (name, kind, options, elements) in [
        (
            "sources",
            "ifname . ether_addr . ipv4_addr",
            "",
            BTreeSet::new(),
        ),
        ("routers", "ifname . ether_addr", "", BTreeSet::new()),
        ("addresses", "ipv4_addr", "", BTreeSet::new()),
        (
            "host-addresses",
            "ipv4_addr",
            "",
            host.addresses.iter().map(ToString::to_string).collect(),
        ),
        (
            "host-ports",
            "inet_proto . inet_service",
            "",
            host.port_elements(),
        ),
        ("asking", "ifname", METER, BTreeSet::new()),
        ("opening", "ifname", METER, BTreeSet::new()),
        ("opened", "ifname", COUNTER, BTreeSet::new()),
        ("reaching", "ifname", METER, BTreeSet::new()),
        ("reached", "ifname", COUNTER, BTreeSet::new()),
    ] {
        add_set(table, name, kind, options, elements);
    }
    for (name, kind) in [
        ("from-tap", "ifname : verdict"),
        ("to-tap", "ifname : verdict"),
        ("has-public", "ifname . ipv4_addr : verdict"),
        ("private-of", "ipv4_addr : ipv4_addr"),
        ("public-of", "ipv4_addr : ipv4_addr"),
    ] {
        let elements = BTreeMap::new();
        table.maps.insert(name.into(), Map { kind, elements });
    }
}

fn prerouting(table: &mut Table, limits: &Limits) {
    let tap = format!("iifname \"{TAP_PREFIX}*\"");
    let pass = format!("meta mark set {FILTERED:#x} accept");
    // Before fragments are put together (-400), so that a forged one is never
    // part of another's packet, and before conntrack (-200), so that it leaves
    // no trace there.
    base(
        table,
        "spoof",
        "type filter hook prerouting priority -450; policy drop;",
        &[
            "iifname \"lo\" accept".into(),
            format!("iifname \"{IGW}\" {pass}"),
            format!("iifname . ether saddr . ip saddr @sources {pass}"),
            format!("iifname . ether saddr @routers ip saddr != @addresses {pass}"),
            // A DHCP client that has no address yet.
            "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept".into(),
        ],
    );
    base(
        table,
        "services",
        "type filter hook prerouting priority -440; policy accept;",
        &[format!(
            "{tap} fib daddr type != unicast {}",
            over_rate("asking", "iifname", limits.service_packets)
        )],
    );
    // A connection that isn't confirmed is not in the table yet; to drop its
    // packet keeps it out. "new" would be every packet of a stream that nobody
    // answers.
    let new = "ct status & confirmed == 0";
    // The rate comes first: to count costs more the more there are.
    let bounded = |of: &str, key: &str, rate: &str, count: &str| {
        let most = limits.connections;
        [
            format!(
                "{of} {new} {}",
                over_rate(rate, key, limits.new_connections)
            ),
            format!("{of} {new} add @{count} {{ {key} ct count over {most} }} drop"),
        ]
    };
    base(
        table,
        "opening",
        "type filter hook prerouting priority -190; policy accept;",
        &bounded(&tap, "iifname", "opening", "opened"),
    );
    // What comes from outside; an instance that reaches for another is bounded
    // itself. After the rules of the groups: what they drop doesn't count.
    base(
        table,
        "reaching",
        "type filter hook postrouting priority 150; policy accept;",
        &bounded(
            &format!("iifname \"{IGW}\" oifname \"{TAP_PREFIX}*\""),
            "oifname",
            "reaching",
            "reached",
        ),
    );
    base(
        table,
        "public",
        "type nat hook prerouting priority -100; policy accept;",
        &[format!(
            "iifname \"{IGW}\" dnat ip to ip daddr map @private-of"
        )],
    );
}

fn base_chains(table: &mut Table, vpc: &VpcNet) {
    let tracked = "ct state vmap { established : accept, related : accept, invalid : drop }";
    let tap = format!("iifname \"{TAP_PREFIX}*\"");
    let dns = format!("ip daddr {{ {}, {DNS_ADDRESS} }}", vpc.resolver());
    base(
        table,
        "local",
        "type filter hook input priority 0; policy drop;",
        &[
            "iifname \"lo\" accept".into(),
            format!("{tap} udp sport 68 udp dport 67 accept"),
            // Here also an interface without source check speaks for itself only.
            "iifname . ether saddr . ip saddr != @sources drop".into(),
            tracked.into(),
            format!("{dns} meta l4proto {{ tcp, udp }} th dport 53 accept"),
            format!("ip daddr {IMDS_ADDRESS} tcp dport 80 accept"),
        ],
    );
    base(
        table,
        "egress",
        "type filter hook forward priority -10; policy drop;",
        &[
            tracked.into(),
            format!("iifname \"{IGW}\" accept"),
            "iifname vmap @from-tap".into(),
        ],
    );
    let out = format!("oifname \"{IGW}\"");
    base(
        table,
        "ingress",
        "type filter hook forward priority 0; policy drop;",
        &[
            format!("{out} ip daddr {NOWHERE} drop"),
            tracked.into(),
            // The host drops these as well; this holds even when its rules are gone.
            format!("{out} ip daddr @host-addresses meta l4proto . th dport != @host-ports drop"),
            format!("{out} iifname . ip saddr vmap @has-public"),
            "oifname vmap @to-tap".into(),
        ],
    );
    base(
        table,
        "private",
        "type nat hook postrouting priority 100; policy accept;",
        &[format!("{out} snat ip to ip saddr map @public-of")],
    );
}

fn add_interface(table: &mut Table, vpc: &VpcNet, interface: &Interface) {
    let tap = interface.tap();
    let [a, b, c, d, e, f] = interface.mac;
    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    let private = interface.private_ip.to_string();
    let mut set = |name: &str, element: String| {
        if let Some(set) = table.sets.get_mut(name) {
            set.elements.insert(element);
        }
    };
    set("sources", format!("\"{tap}\" . {mac} . {private}"));
    set("addresses", private.clone());
    if !interface.source_dest_check {
        set("routers", format!("\"{tap}\" . {mac}"));
    }
    for (prefix, map) in [("in", "to-tap"), ("out", "from-tap")] {
        let rules = interface
            .groups
            .iter()
            .filter(|id| vpc.groups.contains_key(*id))
            .map(|id| format!("jump {prefix}-{id}"))
            .collect();
        let chain = format!("{prefix}-{tap}");
        if let Some(map) = table.maps.get_mut(map) {
            let jump = format!("jump {chain}");
            map.elements.insert(format!("\"{tap}\""), jump);
        }
        table.chains.insert(chain, Chain { hook: None, rules });
    }
    if let Some(public) = interface.public_ip {
        let public = public.to_string();
        let here = format!("\"{tap}\" . {private}");
        for (map, key, value) in [
            ("has-public", here, "accept".to_owned()),
            ("private-of", public.clone(), private.clone()),
            ("public-of", private.clone(), public),
        ] {
            if let Some(map) = table.maps.get_mut(map) {
                map.elements.insert(key, value);
            }
        }
    }
}

/// A rule as nft's; `None` where it can match nothing, since a VPC here has no IPv6.
fn rule_line(rule: &Rule) -> Option<String> {
    let (interface, side) = match rule.direction {
        Direction::Ingress => ("iifname", "saddr"),
        Direction::Egress => ("oifname", "daddr"),
    };
    let peer = match &rule.peer {
        Peer::Ipv4(net) if net.prefix_len() == 0 => String::new(),
        Peer::Ipv4(net) => format!("ip {side} {} ", net.trunc()),
        Peer::Group(id) => format!("{interface} . ip {side} @{} ", members(id)),
        Peer::Ipv6(_) => return None,
    };
    let ports = |name: &str, from: u16, to: u16| match (from, to) {
        (0, u16::MAX) => format!("meta l4proto {name} "),
        (from, to) if from == to => format!("{name} dport {from} "),
        (from, to) => format!("{name} dport {from}-{to} "),
    };
    let matcher = match rule.matcher {
        Protocol::All => String::new(),
        Protocol::Tcp { from, to } | Protocol::Udp { from, to } if from > to => return None,
        Protocol::Tcp { from, to } => ports("tcp", from, to),
        Protocol::Udp { from, to } => ports("udp", from, to),
        Protocol::Icmp { kind: None, .. } => "meta l4proto icmp ".to_owned(),
        Protocol::Icmp {
            kind: Some(kind),
            code: None,
        } => format!("icmp type {kind} "),
        Protocol::Icmp {
            kind: Some(kind),
            code: Some(code),
        } => format!("icmp type {kind} icmp code {code} "),
        Protocol::Icmpv6 { .. } => return None,
        Protocol::Number(number) => format!("meta l4proto {number} "),
    };
    Some(format!("{peer}{matcher}accept"))
}

#[cfg(test)]
mod tests;
