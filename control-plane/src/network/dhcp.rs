//! DHCP's answers: pure.
//!
//! Each tap has one client and one address, so there is no pool and no lease to
//! remember: who asks is known by the tap, and the answer is always the same.
//!
//! RFC 2131, RFC 2132.

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Flags, HType, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable as _, Encodable as _};
use ipnet::Ipv4Net;

use super::{Interface, VpcNet};
use crate::model::dns_names;

/// The time of a lease in seconds: EC2's.
const LEASE_SECONDS: u32 = 3600;

/// What one client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// Its router, which is also the server's name for itself.
    pub router: Ipv4Addr,
    /// The resolver.
    pub resolver: Ipv4Addr,
    /// Its host name, without the domain.
    pub hostname: String,
    /// The domain.
    pub domain: String,
    /// The MTU in bytes.
    pub mtu: u16,
}

impl Lease {
    /// The lease of an interface.
    pub fn of(vpc: &VpcNet, interface: &Interface, region: &str, mtu: u16) -> Self {
        Self {
            address: interface.private_ip,
            subnet: interface.subnet,
            router: interface.router,
            resolver: vpc.resolver(),
            hostname: dns_names::private_host(interface.private_ip),
            domain: dns_names::private_domain(region),
            mtu,
        }
    }
}

/// An answer and where to send it, at port 68.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The datagram.
    pub bytes: Vec<u8>,
    /// The client's address, or broadcast while it has none.
    pub to: Ipv4Addr,
}

/// The fixed part of a message with the cookie before the options, in bytes (RFC 2131,
/// section 2, and RFC 2132, section 2).
const FIXED: usize = 240;

/// What is read of a request: its fixed part, and the options that the answer depends
/// on. `dhcproto` asserts of some others that they have their right length, and a guest
/// may write what it likes.
fn relevant(datagram: &[u8]) -> Option<Vec<u8>> {
    let (fixed, mut rest) = datagram.split_at_checked(FIXED)?;
    let mut relevant = fixed.to_vec();
    loop {
        match rest {
            // The padding has no length, nor has the end.
            [0, after @ ..] => rest = after,
            [] | [255, ..] => break,
            [_] => return None,
            [code, length, after @ ..] => {
                let (value, after) = after.split_at_checked(usize::from(*length))?;
                let known = match OptionCode::from(*code) {
                    OptionCode::MessageType => 1,
                    OptionCode::RequestedIpAddress | OptionCode::ServerIdentifier => 4,
                    _ => 0,
                };
                if known != 0 && known == value.len() {
                    relevant.extend([*code, *length]);
                    relevant.extend(value);
                }
                rest = after;
            }
        }
    }
    relevant.push(255);
    Some(relevant)
}

/// Answers a datagram; `None` to what needs or deserves no answer.
pub fn reply(datagram: &[u8], lease: &Lease) -> Option<Reply> {
    let request = Message::from_bytes(&relevant(datagram)?).ok()?;
    if request.opcode() != Opcode::BootRequest
        || request.htype() != HType::Eth
        || request.hlen() != 6
        || !request.giaddr().is_unspecified()
    {
        return None;
    }
    let options = request.opts();
    if let Some(DhcpOption::ServerIdentifier(server)) = options.get(OptionCode::ServerIdentifier)
        && *server != lease.router
    {
        return None;
    }
    let kind = match options.msg_type()? {
        MessageType::Discover => MessageType::Offer,
        MessageType::Inform => MessageType::Ack,
        MessageType::Request => {
            let asked = match options.get(OptionCode::RequestedIpAddress) {
                Some(DhcpOption::RequestedIpAddress(asked)) => *asked,
                _ => request.ciaddr(),
            };
            if asked == lease.address {
                MessageType::Ack
            } else {
                MessageType::Nak
            }
        }
        _ => return None,
    };
    let inform = options.msg_type() == Some(MessageType::Inform);
    let mut answer = Message::default();
    answer
        .set_opcode(Opcode::BootReply)
        .set_xid(request.xid())
        .set_flags(request.flags())
        .set_chaddr(request.chaddr());
    let out = answer.opts_mut();
    out.insert(DhcpOption::MessageType(kind));
    out.insert(DhcpOption::ServerIdentifier(lease.router));
    if kind == MessageType::Nak {
        answer.set_flags(Flags::default().set_broadcast());
    } else {
        out.insert(DhcpOption::SubnetMask(lease.subnet.netmask()));
        out.insert(DhcpOption::BroadcastAddr(lease.subnet.broadcast()));
        out.insert(DhcpOption::Router(vec![lease.router]));
        out.insert(DhcpOption::DomainNameServer(vec![lease.resolver]));
        out.insert(DhcpOption::Hostname(lease.hostname.clone()));
        out.insert(DhcpOption::DomainName(lease.domain.clone()));
        out.insert(DhcpOption::InterfaceMtu(lease.mtu));
        if !inform {
            out.insert(DhcpOption::AddressLeaseTime(LEASE_SECONDS));
            answer.set_yiaddr(lease.address);
        }
        answer.set_ciaddr(request.ciaddr());
    }
    // A client that claims another's address gets no unicast there.
    let to = if kind != MessageType::Nak && request.ciaddr() == lease.address {
        lease.address
    } else {
        Ipv4Addr::BROADCAST
    };
    let bytes = answer.to_vec().ok()?;
    Some(Reply { bytes, to })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        Lease {
            address: [172, 31, 0, 4].into(),
            subnet: "172.31.0.0/20".parse().unwrap(),
            router: [172, 31, 0, 1].into(),
            resolver: [172, 31, 0, 2].into(),
            hostname: "ip-172-31-0-4".into(),
            domain: "ec2.internal".into(),
            mtu: 1500,
        }
    }

    fn ask(kind: MessageType, options: Vec<DhcpOption>) -> Message {
        let mut m = Message::default();
        m.set_chaddr(&[2, 0, 0, 0, 0, 9]).set_xid(77);
        m.opts_mut().insert(DhcpOption::MessageType(kind));
        for option in options {
            m.opts_mut().insert(option);
        }
        m
    }

    fn answer(m: &Message) -> Option<(Message, Ipv4Addr)> {
        let reply = reply(&m.to_vec().unwrap(), &lease())?;
        Some((Message::from_bytes(&reply.bytes).unwrap(), reply.to))
    }

    #[test]
    fn a_client_gets_its_address() {
        let (offer, to) = answer(&ask(MessageType::Discover, vec![])).unwrap();
        assert_eq!(to, Ipv4Addr::BROADCAST);
        assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
        assert_eq!((offer.yiaddr(), offer.xid()), (lease().address, 77));
        let router = offer.opts().get(OptionCode::Router).cloned();
        assert_eq!(router, Some(DhcpOption::Router(vec![lease().router])));

        let asked = DhcpOption::RequestedIpAddress(lease().address);
        let server = DhcpOption::ServerIdentifier(lease().router);
        let (ack, _) = answer(&ask(MessageType::Request, vec![asked, server])).unwrap();
        assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));

        let mut renewal = ask(MessageType::Request, vec![]);
        renewal.set_ciaddr(lease().address);
        assert_eq!(answer(&renewal).unwrap().1, lease().address);

        let (inform, _) = answer(&ask(MessageType::Inform, vec![])).unwrap();
        assert!(inform.yiaddr().is_unspecified());
        assert!(inform.opts().get(OptionCode::AddressLeaseTime).is_none());
    }

    #[test]
    fn anothers_address_is_refused() {
        let other = DhcpOption::RequestedIpAddress([172, 31, 0, 5].into());
        let (nak, to) = answer(&ask(MessageType::Request, vec![other])).unwrap();
        assert_eq!(nak.opts().msg_type(), Some(MessageType::Nak));
        assert_eq!(
            (nak.yiaddr(), to),
            (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)
        );
    }

    #[test]
    fn what_is_not_for_us_has_no_answer() {
        let server = DhcpOption::ServerIdentifier([172, 31, 0, 9].into());
        assert_eq!(answer(&ask(MessageType::Request, vec![server])), None);
        assert_eq!(answer(&ask(MessageType::Release, vec![])), None);
        let mut relayed = ask(MessageType::Discover, vec![]);
        relayed.set_giaddr([10, 0, 0, 1]);
        assert_eq!(answer(&relayed), None);
        let mut echo = ask(MessageType::Discover, vec![]);
        echo.set_opcode(Opcode::BootReply);
        assert_eq!(answer(&echo), None);
    }

    #[test]
    fn an_option_of_a_wrong_length_is_passed_over() {
        let good = ask(MessageType::Discover, vec![]).to_vec().unwrap();
        // A bulk lease query's status without its code, its times with one byte.
        for code in 150..160 {
            for length in 0..3 {
                let mut with = good[..FIXED].to_vec();
                with.extend([0, code, length]);
                with.extend(vec![1; length.into()]);
                with.extend(&good[FIXED..]);
                assert!(reply(&with, &lease()).is_some(), "{code} {length}");
            }
        }
        let cut = [&good[..FIXED], &[53, 1, 1, 12][..]].concat();
        assert_eq!(reply(&cut, &lease()), None);
        assert_eq!(reply(&good[..FIXED - 1], &lease()), None);
    }

    proptest::proptest! {
        #[test]
        fn no_datagram_does_harm(datagram: Vec<u8>, at in 0usize..300, byte: u8) {
            let _ = reply(&datagram, &lease());
            let mut near = ask(MessageType::Discover, vec![]).to_vec().unwrap();
            if let Some(b) = near.get_mut(at) { *b = byte; }
            let _ = reply(&near, &lease());
        }
    }
}
