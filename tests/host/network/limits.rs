//! A guest that floods, and its neighbours.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Instant;

use hearth::model::Protocol;
use hearth::network::Limits;

use super::addresses::hear;
use super::cloud::{Cloud, all_egress, anywhere, ingress, isolated};
use super::guest::sh;

const VPC: &str = "ip netns exec hearth-vpc-00000000000000001";

/// Sends a datagram to each of these ports, as fast as it can.
fn flood(socket: &UdpSocket, to: [u8; 4], ports: impl IntoIterator<Item = u16>) {
    for port in ports {
        let sent = socket.send_to(b"flood", (Ipv4Addr::from(to), port));
        sent.expect("it goes out");
    }
}

#[test]
fn who_opens_too_many_connections_hinders_only_itself() {
    isolated(
        "network::limits::who_opens_too_many_connections_hinders_only_itself",
        async || {
            let mut cloud = Cloud::with_limits(Limits {
                connections: 50,
                new_connections: 400,
                ..Limits::default()
            });
            cloud.group(1, vec![all_egress(), ingress(Protocol::All, anywhere())]);
            for n in [10, 11, 12] {
                cloud.instance(n, &[1], |_| ());
            }
            cloud.apply().await;
            let ten = cloud.guest(10).await;
            let (flooder, neighbour) = (cloud.guest(11).await, cloud.guest(12).await);
            let to_ten = ten.udp(7);
            let early = flooder.udp(8);
            early.send_to(b"early", "172.31.0.10:7").expect("sent");
            assert_eq!(hear(&to_ten).0, "early");
            flood(&flooder.udp(9), [172, 31, 0, 10], 10_000..10_300);
            let tracked = || {
                let count = format!("{VPC} cat /proc/sys/net/netfilter/nf_conntrack_count");
                sh(&count).parse::<u32>().expect("a number")
            };
            // The DHCP of three guests is tracked too.
            assert!((50..70).contains(&tracked()), "{}", tracked());
            // The rest of its second's worth, so that nothing new gets in at all.
            let late = flooder.udp(10);
            late.send_to(b"late", "172.31.0.10:7").expect("sent");
            let other = neighbour.udp(8);
            other.send_to(b"neighbour", "172.31.0.10:7").expect("sent");
            assert_eq!(hear(&to_ten).0, "neighbour");
            early.send_to(b"still", "172.31.0.10:7").expect("sent");
            assert_eq!(hear(&to_ten).0, "still", "what it had goes on");
            // The victim can open connections itself.
            let back = neighbour.udp(20);
            ten.udp(21).send_to(b"ten", "172.31.0.12:20").expect("sent");
            assert_eq!(hear(&back).0, "ten");

            // From outside likewise: each interface has its own.
            let host = UdpSocket::bind("203.0.113.1:4000").expect("the host's address");
            flood(&host, [203, 0, 113, 10], 10_000..10_300);
            assert!((100..140).contains(&tracked()), "{}", tracked());
            host.send_to(b"late", "203.0.113.10:7").expect("sent");
            let to_other = neighbour.udp(7);
            host.send_to(b"other", "203.0.113.12:7").expect("sent");
            assert_eq!(hear(&to_other).0, "other");
            ten.udp(22).send_to(b"out", "172.31.0.12:20").expect("sent");
            assert_eq!(hear(&back).0, "out");
        },
    );
}

#[test]
fn who_asks_too_often_is_not_heard_and_its_neighbours_are() {
    isolated(
        "network::limits::who_asks_too_often_is_not_heard_and_its_neighbours_are",
        async || {
            let mut cloud = Cloud::with_limits(Limits {
                service_packets: 100,
                ..Limits::default()
            });
            cloud.group(1, vec![all_egress()]);
            cloud.instance(10, &[1], |_| ());
            cloud.instance(11, &[1], |_| ());
            cloud.apply().await;
            let (flooder, neighbour) = (cloud.guest(10).await, cloud.guest(11).await);
            let heard = || {
                let count = "cat /proc/net/snmp | awk '/^Udp: [0-9]/ {print $2}'";
                sh(&format!("{VPC} sh -c \"{}\"", count.replace('$', "\\$")))
                    .parse::<u64>()
                    .expect("a number")
            };
            let socket = flooder.udp(9);
            let (before, began) = (heard(), Instant::now());
            flood(&socket, [172, 31, 0, 2], std::iter::repeat_n(53, 5000));
            assert!(neighbour.fetch("http://169.254.169.254/latest/").is_some());
            let (after, took) = (heard(), began.elapsed().as_secs());
            let most = 100 * (took + 2);
            assert!((1..=most).contains(&(after - before)), "{}", after - before);
            // Once it is quiet it is heard again.
            let deadline = Instant::now() + std::time::Duration::from_secs(20);
            while flooder.fetch("http://169.254.169.254/latest/").is_none() {
                assert!(Instant::now() < deadline, "it stays unheard");
            }
        },
    );
}
