//! Source addresses that are not the sender's, from interfaces that may send any
//! and from those that may not.

use std::net::{Ipv4Addr, UdpSocket};

use hearth::model::{GroupId, Peer, Protocol};

use super::addresses::{hear, silent};
use super::cloud::{Cloud, all_egress, anywhere, ingress, isolated, outside};
use super::guest::Guest;

const UDP: Protocol = Protocol::Udp { from: 7, to: 7 };

/// A part of a UDP datagram to port 7 in an IPv4 packet of its own (RFC 791):
/// `offset` is in bytes, `more` whether another follows.
fn packet(from: [u8; 4], to: [u8; 4], (offset, more): (u16, bool), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("a short packet");
    let fragment = (offset / 8) | (u16::from(more) << 13);
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0x77, 0x77]);
    packet.extend(fragment.to_be_bytes());
    // The kernel fills in the checksum.
    packet.extend([64, 17, 0, 0]);
    packet.extend(from);
    packet.extend(to);
    packet.extend(payload);
    packet
}

/// A UDP header to port 7, without a checksum (RFC 768), and its text.
fn datagram(text: &str) -> Vec<u8> {
    let length = u16::try_from(8 + text.len()).expect("a short text");
    let mut datagram = vec![0, 9, 0, 7];
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(text.as_bytes());
    datagram
}

fn whole(guest: &Guest, from: [u8; 4], to: [u8; 4], text: &str) {
    guest.raw(to.into(), &packet(from, to, (0, false), &datagram(text)));
}

/// Says `text` from the guest's own address until it arrives, and that nothing
/// else has arrived before.
fn only(to: &UdpSocket, guest: &Guest, address: [u8; 4], text: &str) {
    let sent = guest
        .udp(0)
        .send_to(text.as_bytes(), (Ipv4Addr::from(address), 7));
    sent.expect("it goes out");
    assert_eq!(hear(to).0, text);
    assert!(silent(to));
}

const TEN: [u8; 4] = [172, 31, 0, 10];
const ELEVEN: [u8; 4] = [172, 31, 0, 11];
const TWELVE: [u8; 4] = [172, 31, 0, 12];

#[test]
fn an_instance_without_source_check_is_no_other_instance() {
    isolated(
        "network::forged::an_instance_without_source_check_is_no_other_instance",
        async || {
            outside();
            let mut cloud = Cloud::new();
            let of_2 = Peer::Group(GroupId::from_random(2));
            cloud.group(1, vec![all_egress(), ingress(UDP, of_2)]);
            cloud.group(2, vec![all_egress()]);
            cloud.group(3, vec![all_egress(), ingress(UDP, anywhere())]);
            cloud.instance(10, &[1], |_| ());
            cloud.instance(11, &[3], |_| ());
            cloud.instance(12, &[2], |_| ());
            cloud.instance(13, &[3], |_| ());
            cloud.interface(11, |eni| {
                eni.source_dest_check = false;
                eni.public_ip = None;
            });
            cloud.apply().await;
            let (ten, router) = (cloud.guest(10).await, cloud.guest(11).await);
            let (member, open) = (cloud.guest(12).await, cloud.guest(13).await);
            let (to_ten, to_open) = (ten.udp(7), open.udp(7));

            whole(&router, ELEVEN, TEN, "as itself");
            whole(&router, TWELVE, TEN, "as a member");
            only(&to_ten, &member, TEN, "from the member");
            // Not even within what the member has open.
            let peer = member.udp(9);
            peer.send_to(b"one", "172.31.0.10:7").expect("sent");
            assert_eq!(hear(&to_ten).0, "one");
            to_ten.send_to(b"one", "172.31.0.12:9").expect("sent");
            assert_eq!(hear(&peer).0, "one");
            whole(&router, TWELVE, TEN, "in its stream");
            only(&to_ten, &member, TEN, "from the member again");

            // What it forwards for a net of its own passes.
            whole(&router, [10, 9, 9, 9], [172, 31, 0, 13], "for another");
            assert_eq!(hear(&to_open).0, "for another");

            // It has no public address, and gets out by nobody else's.
            let answered = |guest: &Guest| guest.fetch("http://198.51.100.2").is_some();
            assert!(answered(&member));
            assert!(!answered(&router));
            router.sh("ip addr add 172.31.0.12/32 dev eth0");
            let forged = router.fetch("--interface 172.31.0.12 http://198.51.100.2");
            assert_eq!(forged, None);
        },
    );
}

#[test]
fn a_forged_fragment_becomes_no_part_of_anothers_packet() {
    isolated(
        "network::forged::a_forged_fragment_becomes_no_part_of_anothers_packet",
        async || {
            let mut cloud = Cloud::new();
            cloud.group(1, vec![all_egress(), ingress(UDP, anywhere())]);
            for n in [10, 11, 12] {
                cloud.instance(n, &[1], |_| ());
            }
            cloud.apply().await;
            let ten = cloud.guest(10).await;
            let (forger, owner) = (cloud.guest(11).await, cloud.guest(12).await);
            let to_ten = ten.udp(7);
            let whole = datagram("aaaaaaaa12345678");
            let (first, second) = whole.split_at(16);
            let part = |guest: &Guest, at, payload: &[u8]| {
                guest.raw(TEN.into(), &packet(TWELVE, TEN, at, payload));
            };
            // Both halves alone: the forger's second comes first.
            part(&forger, (16, false), b"FORGED!!");
            part(&owner, (0, true), first);
            only(&to_ten, &forger, TEN, "not yet");
            part(&owner, (16, false), second);
            assert_eq!(hear(&to_ten).0, "aaaaaaaa12345678");
        },
    );
}
