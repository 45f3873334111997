//! Tracked connections, listed and deleted over netlink in the namespace of the
//! calling thread.
//!
//! Deleted one by one: only Linux 6.10 and newer delete by a filter of ours. The
//! kernel has one table for all namespaces, and a list of one of them is a walk
//! over all of it, filtered (`CTA_FILTER`) or not: what it costs is the size of
//! the table, so whoever needs no list asks for none.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::StreamExt as _;
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, Tuple};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla as _,
};
use rtnetlink::proto::{ConnectionHandle, new_connection};
use rtnetlink::sys::{SocketAddr, protocols::NETLINK_NETFILTER};

use crate::network::plan::connections::Connection;

/// `include/uapi/linux/netfilter/nfnetlink_conntrack.h`; the crate has no names
/// for these two.
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;

/// Deletes the connections that have `outlived` what they were made for; returns
/// how many there were.
pub(super) async fn sweep(outlived: impl Fn(&Connection) -> bool) -> io::Result<usize> {
    let (connection, handle, _) = new_connection(NETLINK_NETFILTER)?;
    let task = tokio::spawn(connection);
    let swept = async {
        let mut deleted = 0;
        for attributes in list(&handle).await? {
            if parse(&attributes).is_some_and(|c| outlived(&c)) {
                delete(&handle, attributes).await?;
                deleted += 1;
            }
        }
        Ok(deleted)
    }
    .await;
    task.abort();
    swept
}

fn request(message: ConntrackMessage, flags: u16) -> NetlinkMessage<NetfilterMessage> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
    let mut request = NetlinkMessage::from(NetfilterMessage::new(header, message));
    request.header.flags = NLM_F_REQUEST | flags;
    request
}

async fn list(
    handle: &ConnectionHandle<NetfilterMessage>,
) -> io::Result<Vec<Vec<ConntrackAttribute>>> {
    let get = request(ConntrackMessage::Get(Vec::new()), NLM_F_DUMP);
    let mut answers = handle
        .request(get, SocketAddr::new(0, 0))
        .map_err(io::Error::other)?;
    let mut all = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(NetfilterMessage {
                inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
                ..
            }) => all.push(attributes),
            NetlinkPayload::Error(e) => return Err(e.to_io()),
            _ => {}
        }
    }
    Ok(all)
}

/// Deletes the one connection that has these attributes, and none that has come
/// in its place since.
async fn delete(
    handle: &ConnectionHandle<NetfilterMessage>,
    attributes: Vec<ConntrackAttribute>,
) -> io::Result<()> {
    let names_it = |attribute: &ConntrackAttribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(_) => true,
        ConntrackAttribute::Other(other) => matches!(other.kind(), CTA_ID | CTA_ZONE),
        _ => false,
    };
    let names = attributes.into_iter().filter(names_it).collect();
    let mut answers = handle
        .request(
            request(ConntrackMessage::Delete(names), NLM_F_ACK),
            SocketAddr::new(0, 0),
        )
        .map_err(io::Error::other)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(e) = answer.payload {
            let e = e.to_io();
            // It has ended by itself meanwhile.
            if e.raw_os_error() != Some(libc::ENOENT) {
                return Err(e);
            }
        }
    }
    Ok(())
}

fn parse(attributes: &[ConntrackAttribute]) -> Option<Connection> {
    let mut original = None;
    let mut reply = None;
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => original = ends(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => reply = ends(tuple),
            _ => {}
        }
    }
    Some(Connection {
        original: original?,
        reply: reply?,
    })
}

/// Source and destination.
fn ends(tuple: &[Tuple]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let mut source = None;
    let mut destination = None;
    for part in tuple {
        let Tuple::Ip(addresses) = part else { continue };
        for address in addresses {
            match address {
                IPTuple::SourceAddress(IpAddr::V4(a)) => source = Some(*a),
                IPTuple::DestinationAddress(IpAddr::V4(a)) => destination = Some(*a),
                _ => {}
            }
        }
    }
    Some((source?, destination?))
}
