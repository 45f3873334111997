//! The host's own namespace: one link to each VPC, the routes of its public
//! addresses, and the way out.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::link::{Netlink, sysctl, sysctl_if_there};
use super::netns::Namespace;
use super::{MTU, Wire, nft};
use crate::network::VpcNet;
use crate::network::names::{HostNames, IGW};
use crate::network::plan::nft::{Table, difference, replace};

/// What the host was brought to.
#[derive(Debug)]
pub(super) struct Prepared {
    table: Table,
    generation: Option<nft::Generation>,
}

/// Prepares the host for any VPC. `before` is what this process brought it to
/// the last time; what another has done to the rules since is undone.
pub(super) async fn up(
    names: &HostNames,
    pool: Ipv4Net,
    table: Table,
    before: Option<Prepared>,
) -> io::Result<Prepared> {
    let name = names.label();
    let increment = (before.as_ref()).map(|before| difference(name, &before.table, &table));
    let generation = before.and_then(|before| before.generation);
    let whole = replace(name, &table);
    let brought = blocking(move || nft::bring(generation, increment.as_deref(), &whole)).await?;
    if brought.replaced {
        // Public addresses that nobody has go nowhere, least of all to the uplink.
        Netlink::connect()?.refuse(pool).await?;
        sysctl("ipv4/ip_forward", "1")?;
    }
    let generation = brought.generation;
    Ok(Prepared { table, generation })
}

/// Takes that back, when no VPC is left.
pub(super) async fn down(names: &HostNames, pool: Ipv4Net) -> io::Result<()> {
    let table = names.label().to_owned();
    blocking(move || nft::delete(&table)).await?;
    Netlink::connect()?.unrefuse(pool).await
}

/// The host's addresses.
pub(super) async fn addresses() -> io::Result<BTreeSet<Ipv4Addr>> {
    Netlink::connect()?.addresses().await
}

async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(f)
        .await
        .map_err(io::Error::other)?
}

/// Links a VPC's namespace to the host by the link `name`, and routes its public
/// addresses there.
pub(super) async fn wire(
    name: &str,
    vpc: &VpcNet,
    namespace: &Namespace,
    wire: &Wire,
) -> io::Result<()> {
    let netlink = Netlink::connect()?;
    let mut link = netlink.links().await?.remove(name);
    let inside = namespace
        .run_async(|| async { Ok(nix::net::if_::if_nametoindex(IGW).is_ok()) })
        .await?;
    if let (Some(stale), false) = (&link, inside) {
        // Its other end is in a namespace that is gone from its name.
        netlink.delete(stale.index).await?;
        link = None;
    }
    if link.is_none() {
        let ends = ((name, wire.host_mac), (IGW, wire.gateway_mac));
        netlink.add_veth(ends.0, ends.1, namespace).await?;
        link = netlink.links().await?.remove(name);
    }
    let link = link.ok_or_else(|| io::Error::other(format!("{name} went away")))?;
    if !link.up {
        sysctl_if_there(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
        // A packet from one instance to another's public address leaves by the
        // link it came by; that is meant so.
        sysctl(&format!("ipv4/conf/{name}/send_redirects"), "0")?;
        sysctl(&format!("ipv4/conf/{name}/accept_redirects"), "0")?;
        netlink.up_with_mtu(link.index, MTU.into()).await?;
    }
    netlink.address(link.index, wire.host).await?;
    netlink
        .neighbour(link.index, wire.gateway, wire.gateway_mac)
        .await?;
    let public: BTreeSet<Ipv4Addr> = vpc
        .interfaces
        .values()
        .filter_map(|i| i.public_ip)
        .collect();
    let mut there = BTreeSet::new();
    for (address, route) in netlink.routes_over(link.index).await? {
        if public.contains(&address) {
            there.insert(address);
        } else {
            netlink.delete_route(route).await?;
        }
    }
    for address in public.difference(&there) {
        let net = Ipv4Net::from(*address);
        let source = Some(wire.host);
        netlink
            .route_via(net, wire.gateway, link.index, source)
            .await?;
    }
    Ok(())
}

/// The links to VPCs that there are.
pub(super) async fn list(names: &HostNames) -> io::Result<Vec<String>> {
    let links = Netlink::connect()?.links().await?.into_keys();
    let own = |name: &String| name.starts_with(names.igw_prefix());
    Ok(links.filter(own).collect())
}

/// Deletes the link to a VPC; its routes go with it. None is no error.
pub(super) async fn cut(name: &str) -> io::Result<()> {
    let netlink = Netlink::connect()?;
    match netlink.links().await?.remove(name) {
        Some(link) => netlink.delete(link.index).await,
        None => Ok(()),
    }
}
