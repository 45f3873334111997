//! The names that the resolver knows by itself: pure. Everything else is
//! forwarded.
//!
//! As on EC2, a private name is made from its address, so that any address of
//! the VPC has one; and a public name means the private address to those in
//! the same VPC.
//!
//! <https://docs.aws.amazon.com/vpc/latest/userguide/AmazonDNS-concepts.html>

use std::net::Ipv4Addr;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use ipnet::{IpNet, Ipv4Net};

use super::plan::rules::IMDS_ADDRESS;
use crate::model::dns_names;

/// The time to live of an answer in seconds.
const TTL: u32 = 60;
/// The largest answer over UDP to a client that doesn't say (RFC 1035).
pub const PLAIN_UDP: usize = 512;

/// What the resolver of a VPC knows.
#[derive(Debug, Clone)]
pub struct Zone {
    /// The VPC's addresses.
    pub cidr: Ipv4Net,
    /// The pool of public addresses.
    pub pool: Ipv4Net,
    /// The region's name.
    pub region: String,
}

/// What to do with a query.
#[derive(Debug)]
pub enum Verdict {
    /// Send this.
    Answer(Box<Message>),
    /// Ask the host's resolvers.
    Forward,
    /// Nothing: no question that could be answered.
    Drop,
}

enum Known {
    Here(Option<RData>),
    Nowhere,
    Elsewhere,
}

/// Decides on one message. `private_of` tells the private address of who has a
/// public one in this VPC.
pub fn decide(
    bytes: &[u8],
    zone: &Zone,
    private_of: impl Fn(Ipv4Addr) -> Option<Ipv4Addr>,
) -> Verdict {
    let Ok(message) = Message::from_vec(bytes) else {
        return Verdict::Drop;
    };
    if message.metadata.message_type != MessageType::Query {
        return Verdict::Drop;
    }
    if message.metadata.op_code != OpCode::Query {
        return Verdict::Answer(Box::new(failure(&message, ResponseCode::NotImp)));
    }
    let [query] = message.queries.as_slice() else {
        return Verdict::Answer(Box::new(failure(&message, ResponseCode::FormErr)));
    };
    if query.query_class() != DNSClass::IN {
        return Verdict::Forward;
    }
    match known(query, zone, private_of) {
        Known::Elsewhere => Verdict::Forward,
        Known::Nowhere => Verdict::Answer(Box::new(failure(&message, ResponseCode::NXDomain))),
        Known::Here(data) => {
            let mut answer = failure(&message, ResponseCode::NoError);
            if let Some(data) = data {
                answer.add_answer(Record::from_rdata(query.name().clone(), TTL, data));
            }
            Verdict::Answer(Box::new(answer))
        }
    }
}

/// The answer without content that a message gets.
pub fn failure(message: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::response(message.metadata.id, message.metadata.op_code);
    answer.metadata.recursion_desired = message.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = code;
    answer.add_queries(message.queries.iter().take(1).cloned());
    answer
}

fn known(query: &Query, zone: &Zone, private_of: impl Fn(Ipv4Addr) -> Option<Ipv4Addr>) -> Known {
    let a = |address: Ipv4Addr| {
        Known::Here((query.query_type() == RecordType::A).then_some(RData::A(A(address))))
    };
    let name = query.name().to_lowercase().to_ascii();
    let name = name.trim_end_matches('.');
    if name.ends_with(".in-addr.arpa") {
        return reverse(query, zone);
    }
    let within = |domain: &str| name.strip_suffix(domain).and_then(|l| l.strip_suffix('.'));
    let private = dns_names::private_domain(&zone.region);
    if name == private {
        return Known::Here(None);
    }
    if let Some(label) = within(&private) {
        if label == "instance-data" {
            return IMDS_ADDRESS.parse().map_or(Known::Nowhere, a);
        }
        return match dns_names::address_in_label(label, "ip") {
            Some(address) if zone.cidr.contains(&address) => a(address),
            _ => Known::Nowhere,
        };
    }
    if let Some(label) = within(&dns_names::public_domain(&zone.region))
        && let Some(address) = dns_names::address_in_label(label, "ec2")
        && zone.pool.contains(&address)
    {
        return a(private_of(address).unwrap_or(address));
    }
    Known::Elsewhere
}

fn reverse(query: &Query, zone: &Zone) -> Known {
    let Ok(IpNet::V4(net)) = query.name().parse_arpa_name() else {
        return Known::Elsewhere;
    };
    let address = net.addr();
    let name = match net.prefix_len() {
        32 if zone.cidr.contains(&address) => dns_names::private_name(&zone.region, address),
        32 if zone.pool.contains(&address) => dns_names::public_name(&zone.region, address),
        // Nobody outside knows these.
        _ if address.is_link_local() => return Known::Nowhere,
        _ => return Known::Elsewhere,
    };
    if query.query_type() != RecordType::PTR {
        return Known::Here(None);
    }
    match Name::from_ascii(format!("{name}.")) {
        Ok(name) => Known::Here(Some(RData::PTR(PTR(name)))),
        Err(_) => Known::Nowhere,
    }
}

/// The addresses of the resolvers in a resolv.conf(5).
pub fn nameservers(resolv_conf: &str) -> Vec<std::net::IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next())?
        })
        .filter_map(|address| address.parse().ok())
        .take(3)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> Zone {
        Zone {
            cidr: "172.31.0.0/16".parse().unwrap(),
            pool: "203.0.113.0/24".parse().unwrap(),
            region: "us-east-1".into(),
        }
    }

    fn ask(name: &str, kind: RecordType) -> String {
        let mut m = Message::query();
        m.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let private_of = |public: Ipv4Addr| {
            (public == Ipv4Addr::new(203, 0, 113, 7)).then_some([172, 31, 0, 4].into())
        };
        match decide(&m.to_vec().unwrap(), &zone(), private_of) {
            Verdict::Forward => "forward".into(),
            Verdict::Drop => "drop".into(),
            Verdict::Answer(answer) => {
                // It must survive the wire.
                let answer = Message::from_vec(&answer.to_vec().unwrap()).unwrap();
                assert_eq!(answer.metadata.id, m.metadata.id);
                match answer.answers.first() {
                    Some(record) => record.data.to_string(),
                    None => format!("{:?}", answer.metadata.response_code),
                }
            }
        }
    }

    #[test]
    fn names_are_answered() {
        for (name, kind, expected) in [
            ("ip-172-31-0-4.ec2.internal.", RecordType::A, "172.31.0.4"),
            ("IP-172-31-0-4.EC2.internal.", RecordType::A, "172.31.0.4"),
            ("ip-172-31-0-4.ec2.internal.", RecordType::AAAA, "NoError"),
            ("ip-10-0-0-4.ec2.internal.", RecordType::A, "NXDomain"),
            ("db.ec2.internal.", RecordType::A, "NXDomain"),
            (
                "instance-data.ec2.internal.",
                RecordType::A,
                "169.254.169.254",
            ),
            (
                "4.0.31.172.in-addr.arpa.",
                RecordType::PTR,
                "ip-172-31-0-4.ec2.internal.",
            ),
            (
                "7.113.0.203.in-addr.arpa.",
                RecordType::PTR,
                "ec2-203-0-113-7.compute-1.amazonaws.com.",
            ),
            ("254.169.254.169.in-addr.arpa.", RecordType::PTR, "NXDomain"),
            ("8.8.8.8.in-addr.arpa.", RecordType::PTR, "forward"),
            (
                "ec2-203-0-113-7.compute-1.amazonaws.com.",
                RecordType::A,
                "172.31.0.4",
            ),
            (
                "ec2-203-0-113-8.compute-1.amazonaws.com.",
                RecordType::A,
                "203.0.113.8",
            ),
            (
                "ec2-3-4-5-6.compute-1.amazonaws.com.",
                RecordType::A,
                "forward",
            ),
            ("example.com.", RecordType::MX, "forward"),
            ("notec2.internal.", RecordType::A, "forward"),
        ] {
            assert_eq!(ask(name, kind), expected, "{name} {kind}");
        }
    }

    #[test]
    fn an_answer_or_noise_is_dropped() {
        let drop = |bytes: &[u8]| matches!(decide(bytes, &zone(), |_| None), Verdict::Drop);
        assert!(drop(b""));
        assert!(drop(&[0xff; 40]));
        let response = Message::response(7, OpCode::Query);
        assert!(drop(&response.to_vec().unwrap()));
    }

    #[test]
    fn resolv_conf_is_read() {
        let text = "# x\nsearch a b\nnameserver 10.0.0.1\n nameserver ::1 # y\nnameserver bad\n";
        let servers: Vec<String> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.1", "::1"]);
    }

    proptest::proptest! {
        #[test]
        fn no_message_does_harm(bytes: Vec<u8>) {
            let _ = decide(&bytes, &zone(), |_| None);
        }
    }
}
