//! Links, addresses, routes and neighbours through rtnetlink, in the namespace
//! that the connection was made in; and the sysctls of links.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

use futures_util::TryStreamExt as _;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection,
};

use super::netns::Namespace;

/// What is known of a link.
#[derive(Debug, Clone)]
pub(super) struct Link {
    /// Its index.
    pub(super) index: u32,
    /// Whether it is up.
    pub(super) up: bool,
    /// Its MAC address.
    pub(super) mac: Option<[u8; 6]>,
}

/// A rule of policy routing (ip-rule(8)) for IPv4.
#[derive(Debug, Clone, Copy)]
pub(super) struct PolicyRule {
    /// Its place: lower ones are asked first.
    pub(super) priority: u32,
    /// What it is about.
    pub(super) of: Packets,
    /// What it says of them.
    pub(super) verdict: Verdict,
}

/// What a rule of policy routing is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Packets {
    /// All.
    All,
    /// Those that this host makes itself, and questions whether a source
    /// address is one that its link may have.
    Own,
    /// Those whose mark has these bits.
    Marked(u32),
}

/// What a rule of policy routing says.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verdict {
    /// Ask the rule of this priority next.
    Goto(u32),
    /// Look into the table of this host's own addresses.
    Local,
    /// Drop them.
    Blackhole,
}

impl PolicyRule {
    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        let attributes = &mut message.attributes;
        attributes.push(RuleAttribute::Priority(self.priority));
        match self.of {
            Packets::All => {}
            Packets::Own => attributes.push(RuleAttribute::Iifname("lo".to_owned())),
            Packets::Marked(bits) => {
                attributes.push(RuleAttribute::FwMark(bits));
                attributes.push(RuleAttribute::FwMask(bits));
            }
        }
        message.header.action = match self.verdict {
            Verdict::Goto(priority) => {
                message.attributes.push(RuleAttribute::Goto(priority));
                RuleAction::Goto
            }
            Verdict::Local => {
                message.header.table = libc::RT_TABLE_LOCAL;
                RuleAction::ToTable
            }
            Verdict::Blackhole => RuleAction::Blackhole,
        };
        message
    }
}

/// A netlink connection.
pub(super) struct Netlink {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn io_error(e: rtnetlink::Error) -> io::Error {
    match e {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

/// Lets pass that something is gone already.
fn gone_is_fine(result: Result<(), rtnetlink::Error>) -> io::Result<()> {
    match result.map_err(io_error) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ESRCH)) => Ok(()),
        other => other,
    }
}

impl Netlink {
    /// Connects to the calling thread's namespace; needs a runtime.
    pub(super) fn connect() -> io::Result<Self> {
        let (connection, handle, _) = new_connection()?;
        let task = tokio::spawn(connection);
        Ok(Self { handle, task })
    }

    /// All links by name.
    pub(super) async fn links(&self) -> io::Result<BTreeMap<String, Link>> {
        let mut links = BTreeMap::new();
        let mut stream = Box::pin(self.handle.link().get().execute());
        while let Some(message) = stream.try_next().await.map_err(io_error)? {
            let mut link = Link {
                index: message.header.index,
                up: message.header.flags.contains(LinkFlags::Up),
                mac: None,
            };
            let mut named = None;
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => named = Some(name),
                    LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
                    _ => {}
                }
            }
            links.extend(named.map(|name| (name, link)));
        }
        Ok(links)
    }

    /// Sets a link up.
    pub(super) async fn up(&self, index: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(io_error)
    }

    /// Sets a link's MTU and sets it up.
    pub(super) async fn up_with_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(io_error)
    }

    /// Deletes a link.
    pub(super) async fn delete(&self, index: u32) -> io::Result<()> {
        gone_is_fine(self.handle.link().del(index).execute().await)
    }

    /// Makes a pair of links, `name` here and `peer` in the other namespace.
    pub(super) async fn add_veth(
        &self,
        (name, mac): (&str, [u8; 6]),
        (peer, peer_mac): (&str, [u8; 6]),
        namespace: &Namespace,
    ) -> io::Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer)
            .address(peer_mac.to_vec())
            .setns_by_fd(namespace.as_file().as_raw_fd())
            .build();
        let message = LinkVeth::new(name, "unused")
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .address(mac.to_vec())
            .build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(io_error)
    }

    /// Gives a link an address.
    pub(super) async fn address(&self, index: u32, address: Ipv4Addr) -> io::Result<()> {
        let request = self.handle.address().add(index, IpAddr::V4(address), 32);
        request.replace().execute().await.map_err(io_error)
    }

    /// The IPv4 addresses of all links.
    pub(super) async fn addresses(&self) -> io::Result<BTreeSet<Ipv4Addr>> {
        let mut stream = Box::pin(self.handle.address().get().execute());
        let mut addresses = BTreeSet::new();
        while let Some(message) = stream.try_next().await.map_err(io_error)? {
            for attribute in message.attributes {
                // The peer's, where there is one, is AddressAttribute::Address.
                if let AddressAttribute::Local(IpAddr::V4(address)) = attribute {
                    addresses.insert(address);
                }
            }
        }
        Ok(addresses)
    }

    /// Adds a policy routing rule, if there is none like it.
    pub(super) async fn add_rule(&self, rule: &PolicyRule) -> io::Result<()> {
        let mut request = self.handle.rule().add().v4();
        *request.message_mut() = rule.message();
        match request.execute().await.map_err(io_error) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Deletes a policy routing rule, there or not.
    pub(super) async fn delete_rule(&self, rule: &PolicyRule) -> io::Result<()> {
        match self
            .handle
            .rule()
            .del(rule.message())
            .execute()
            .await
            .map_err(io_error)
        {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Fixes a neighbour's MAC address.
    pub(super) async fn neighbour(
        &self,
        index: u32,
        address: Ipv4Addr,
        mac: [u8; 6],
    ) -> io::Result<()> {
        let request = self.handle.neighbours().add(index, IpAddr::V4(address));
        let request = request.link_layer_address(&mac).replace();
        request.execute().await.map_err(io_error)
    }

    async fn replace_route(&self, route: RouteMessage) -> io::Result<()> {
        let request = self.handle.route().add(route);
        request.replace().execute().await.map_err(io_error)
    }

    /// Routes one address straight to a link.
    pub(super) async fn route_to(&self, address: Ipv4Addr, index: u32) -> io::Result<()> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .output_interface(index)
            .scope(RouteScope::Link);
        self.replace_route(route.build()).await
    }

    /// Routes a net over a gateway that no other route leads to.
    pub(super) async fn route_via(
        &self,
        net: Ipv4Net,
        gateway: Ipv4Addr,
        index: u32,
        source: Option<Ipv4Addr>,
    ) -> io::Result<()> {
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(index)
            .onlink();
        if net.prefix_len() > 0 {
            route = route.destination_prefix(net.network(), net.prefix_len());
        }
        if let Some(source) = source {
            route = route.pref_source(source);
        }
        self.replace_route(route.build()).await
    }

    /// Refuses a net, unless a narrower route leads to a part of it.
    pub(super) async fn refuse(&self, net: Ipv4Net) -> io::Result<()> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .kind(RouteType::Unreachable);
        self.replace_route(route.build()).await
    }

    /// Takes that back.
    pub(super) async fn unrefuse(&self, net: Ipv4Net) -> io::Result<()> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .kind(RouteType::Unreachable);
        gone_is_fine(self.handle.route().del(route.build()).execute().await)
    }

    /// The /32 routes over a link.
    pub(super) async fn routes_over(
        &self,
        index: u32,
    ) -> io::Result<Vec<(Ipv4Addr, RouteMessage)>> {
        let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut stream = Box::pin(self.handle.route().get(query).execute());
        let mut routes = Vec::new();
        while let Some(route) = stream.try_next().await.map_err(io_error)? {
            let header = &route.header;
            if header.address_family != AddressFamily::Inet
                || header.kind != RouteType::Unicast
                || header.destination_prefix_length != 32
            {
                continue;
            }
            let mut address = None;
            let mut over = false;
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(a)) => address = Some(*a),
                    RouteAttribute::Oif(oif) => over = *oif == index,
                    _ => {}
                }
            }
            if let (Some(address), true) = (address, over) {
                routes.push((address, route));
            }
        }
        Ok(routes)
    }

    /// Deletes a route.
    pub(super) async fn delete_route(&self, route: RouteMessage) -> io::Result<()> {
        gone_is_fine(self.handle.route().del(route).execute().await)
    }
}

/// Sets `/proc/sys/net/KEY` in the calling thread's namespace, if it isn't so yet.
pub(super) fn sysctl(key: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/{key}");
    if std::fs::read_to_string(&path)?.trim() == value {
        return Ok(());
    }
    std::fs::write(&path, value)
        .map_err(|e| io::Error::new(e.kind(), format!("net.{}: {e}", key.replace('/', "."))))
}

/// The same where the kernel may lack the feature, as it may IPv6.
pub(super) fn sysctl_if_there(key: &str, value: &str) -> io::Result<()> {
    match sysctl(key, value) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
