//! What is inside a VPC's namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::link::{Link, Netlink, Packets, PolicyRule, Verdict, sysctl, sysctl_if_there};
use super::{MTU, Wire, conntrack, tap};
use crate::model::EniId;
use crate::network::names::{IGW, TAP_PREFIX};
use crate::network::plan::connections::InVpc;
use crate::network::plan::rules::{DNS_ADDRESS, FILTERED, IMDS_ADDRESS};
use crate::network::{Interface, VpcNet};

/// What became of the interfaces of a VPC.
#[derive(Debug, Default)]
pub(super) struct Shaped {
    /// The indexes of the taps that are as they should be.
    pub(super) taps: BTreeMap<EniId, u32>,
    /// Why the others are not.
    pub(super) failed: BTreeMap<EniId, io::Error>,
}

/// Brings the links, addresses and routes in the calling thread's namespace to
/// what the VPC needs. `before` is what it was brought to the last time; without
/// that everything is set anew, which disturbs nothing that is right. `left` says
/// that addresses may have left their owners since. What fails for one interface
/// keeps none of the others back.
pub(super) async fn shape(
    vpc: &VpcNet,
    wire: &Wire,
    before: Option<&VpcNet>,
    left: bool,
) -> io::Result<Shaped> {
    let fresh = before.is_none();
    let netlink = Netlink::connect()?;
    let mut links = netlink.links().await?;
    if fresh {
        sysctls()?;
        fail_closed(&netlink).await?;
        services(&netlink, vpc, links.get("lo").map_or(1, |lo| lo.index)).await?;
    }
    if left {
        forget(vpc, &links).await?;
    }
    let mut wanted = BTreeSet::new();
    let mut shaped = Shaped::default();
    for interface in vpc.interfaces.values() {
        let name = interface.tap();
        let there = links.remove(&name);
        let known = before.and_then(|vpc| vpc.interfaces.get(&interface.id));
        match ensure_tap(&netlink, interface, &name, there, known).await {
            Ok(index) => shaped.taps.insert(interface.id.clone(), index).is_none(),
            Err(error) => shaped.failed.insert(interface.id.clone(), error).is_none(),
        };
        wanted.insert(name);
    }
    if let Some(igw) = links.remove(IGW)
        && (fresh || !igw.up)
    {
        gateway(&netlink, wire, igw.index).await?;
    }
    for (name, link) in links {
        if name.starts_with(TAP_PREFIX) && !wanted.contains(&name) {
            netlink.delete(link.index).await?;
        }
    }
    Ok(shaped)
}

/// One interface's tap, as it should be; its index. `there` is what is there of
/// it, `known` what it was brought to the last time.
async fn ensure_tap(
    netlink: &Netlink,
    interface: &Interface,
    name: &str,
    there: Option<Link>,
    known: Option<&Interface>,
) -> io::Result<u32> {
    let up = there.as_ref().is_some_and(|link| link.up);
    let index = match there {
        Some(link) => link.index,
        None => {
            tap::create(name)?;
            nix::net::if_::if_nametoindex(name)?
        }
    };
    if !up || known.is_none_or(|known| !same_link(known, interface)) {
        connect(netlink, interface, name, index).await?;
    }
    Ok(index)
}

/// Ends the connections of addresses that are no longer whose they were. The
/// rules are in force already, and a new interface has no tap yet: nothing of
/// the past can be tracked anew.
async fn forget(vpc: &VpcNet, links: &BTreeMap<String, Link>) -> io::Result<()> {
    let interfaces = vpc.interfaces.values();
    let fresh = interfaces.filter(|i| !links.contains_key(&i.tap()));
    let may_be = InVpc::new(vpc, fresh.map(|i| &i.id));
    let ended = conntrack::sweep(|connection| may_be.outlived(connection)).await?;
    tracing::debug!(vpc = %vpc.id, ended, "connections ended with their addresses");
    Ok(())
}

/// Whether two states of an interface need the same link.
fn same_link(a: &Interface, b: &Interface) -> bool {
    let key = |i: &Interface| (i.mac, i.private_ip, i.router, i.source_dest_check);
    key(a) == key(b)
}

fn sysctls() -> io::Result<()> {
    for (key, value) in [
        ("ipv4/ip_forward", "1"),
        // The larger of "all" and the link's own counts: the link's alone shall.
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "1"),
        // A source is looked up with its packet's mark, which routing demands.
        ("ipv4/conf/all/src_valid_mark", "1"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/default/accept_redirects", "0"),
        ("ipv4/conf/all/accept_source_route", "0"),
    ] {
        sysctl(key, value)?;
    }
    sysctl_if_there("ipv6/conf/all/disable_ipv6", "1")?;
    sysctl_if_there("ipv6/conf/default/disable_ipv6", "1")
}

/// Routes only what nftables has marked, so that nothing passes where its rules
/// are gone. That holds for what is for the namespace itself too: the rule for
/// its own addresses, which is the first by default, comes after.
async fn fail_closed(netlink: &Netlink) -> io::Result<()> {
    let rule = |priority, of, verdict| PolicyRule {
        priority,
        of,
        verdict,
    };
    for rule in [
        rule(10, Packets::All, Verdict::Local),
        rule(1, Packets::Own, Verdict::Goto(10)),
        rule(2, Packets::Marked(FILTERED), Verdict::Goto(10)),
        rule(3, Packets::All, Verdict::Blackhole),
    ] {
        netlink.add_rule(&rule).await?;
    }
    let first = rule(0, Packets::All, Verdict::Local);
    netlink.delete_rule(&first).await
}

/// The addresses that every instance may ask, on the loopback; and no way out
/// for addresses of the VPC that nobody has.
async fn services(netlink: &Netlink, vpc: &VpcNet, loopback: u32) -> io::Result<()> {
    netlink.up(loopback).await?;
    for text in [DNS_ADDRESS, IMDS_ADDRESS] {
        let address: Ipv4Addr = text.parse().map_err(io::Error::other)?;
        netlink.address(loopback, address).await?;
    }
    netlink.address(loopback, vpc.resolver()).await?;
    netlink.refuse(vpc.cidr).await
}

/// An interface: its router's address on the tap, a route to its own, and
/// answers to its ARP questions for whatever is routed elsewhere.
async fn connect(
    netlink: &Netlink,
    interface: &Interface,
    name: &str,
    index: u32,
) -> io::Result<()> {
    let strict = if interface.source_dest_check {
        "1"
    } else {
        "0"
    };
    for (key, value) in [
        ("rp_filter", strict),
        ("proxy_arp", "1"),
        ("send_redirects", "0"),
        ("accept_redirects", "0"),
    ] {
        sysctl(&format!("ipv4/conf/{name}/{key}"), value)?;
    }
    // By default a proxied answer waits for up to 0.8 s.
    sysctl(&format!("ipv4/neigh/{name}/proxy_delay"), "0")?;
    netlink.up_with_mtu(index, MTU.into()).await?;
    netlink.address(index, interface.router).await?;
    netlink.route_to(interface.private_ip, index).await?;
    // Fixed, so that no guest can talk the host into another MAC address.
    netlink
        .neighbour(index, interface.private_ip, interface.mac)
        .await
}

/// The default route, over a neighbour whose MAC address is known beforehand:
/// no ARP is spoken on this wire, so it needs no addresses of its own.
async fn gateway(netlink: &Netlink, wire: &Wire, index: u32) -> io::Result<()> {
    sysctl(&format!("ipv4/conf/{IGW}/rp_filter"), "1")?;
    sysctl(&format!("ipv4/conf/{IGW}/send_redirects"), "0")?;
    netlink.up_with_mtu(index, MTU.into()).await?;
    netlink.neighbour(index, wire.host, wire.host_mac).await?;
    netlink
        .route_via(Ipv4Net::default(), wire.host, index, None)
        .await
}
