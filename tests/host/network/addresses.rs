//! What becomes of connections when an address or a rule that they are over
//! goes.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::Duration;

use hearth::model::{InstanceState, Protocol};

use super::cloud::{Cloud, all_egress, anywhere, ingress, isolated};

/// What the socket hears within some seconds, and from whom.
pub(super) fn hear(socket: &UdpSocket) -> (String, std::net::SocketAddr) {
    let mut buffer = [0; 64];
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("a socket has a timeout");
    let (length, from) = socket.recv_from(&mut buffer).expect("something comes");
    (
        String::from_utf8_lossy(&buffer[..length]).into_owned(),
        from,
    )
}

/// Whether nothing has come so far.
pub(super) fn silent(socket: &UdpSocket) -> bool {
    socket.set_nonblocking(true).expect("a socket has a mode");
    let nothing = matches!(socket.recv(&mut [0; 64]), Err(e) if e.kind() == ErrorKind::WouldBlock);
    socket.set_nonblocking(false).expect("a socket has a mode");
    nothing
}

#[test]
fn a_moved_public_address_leads_to_its_new_owner() {
    isolated(
        "network::addresses::a_moved_public_address_leads_to_its_new_owner",
        async || {
            let mut cloud = Cloud::new();
            cloud.group(1, vec![all_egress(), ingress(Protocol::All, anywhere())]);
            cloud.instance(10, &[1], |_| ());
            cloud.instance(11, &[1], |_| ());
            let address = Some([203, 0, 113, 10].into());
            cloud.interface(11, |eni| eni.public_ip = None);
            cloud.apply().await;
            let (ten, eleven) = (cloud.guest(10).await, cloud.guest(11).await);
            let (a, b) = (ten.udp(7), eleven.udp(7));
            // A peer that keeps its port, as WireGuard and many resolvers do.
            let peer = UdpSocket::bind("203.0.113.1:4000").expect("the host's address");
            let say = |text: &str| {
                let sent = peer.send_to(text.as_bytes(), "203.0.113.10:7");
                sent.expect("it goes out");
            };
            let answers = |guest: &UdpSocket, text: &str| {
                let sent = guest.send_to(text.as_bytes(), "203.0.113.1:4000");
                sent.expect("it goes out");
            };
            say("to ten");
            assert_eq!(hear(&a).0, "to ten");
            answers(&a, "from ten");
            assert_eq!(
                hear(&peer),
                ("from ten".into(), "203.0.113.10:7".parse().expect("so"))
            );

            cloud.interface(10, |eni| eni.public_ip = None);
            cloud.interface(11, |eni| eni.public_ip = address);
            cloud.apply().await;
            answers(&a, "too late");
            say("to eleven");
            assert_eq!(hear(&b).0, "to eleven");
            answers(&b, "from eleven");
            assert_eq!(hear(&peer).0, "from eleven");
            assert!(silent(&a) && silent(&peer));

            // And back, by a process that hasn't seen how it was before.
            cloud.interface(10, |eni| eni.public_ip = address);
            cloud.interface(11, |eni| eni.public_ip = None);
            cloud.restart();
            cloud.apply().await;
            say("to ten again");
            assert_eq!(hear(&a).0, "to ten again");
            assert!(silent(&b));
        },
    );
}

/// AssociateAddress and DisassociateAddress, as the network sees them.
#[test]
fn an_elastic_address_comes_to_a_running_instance_and_leaves_it() {
    isolated(
        "network::addresses::an_elastic_address_comes_to_a_running_instance_and_leaves_it",
        async || {
            let mut cloud = Cloud::new();
            cloud.group(1, vec![all_egress(), ingress(Protocol::All, anywhere())]);
            cloud.instance(10, &[1], |_| ());
            cloud.apply().await;
            let ten = cloud.guest(10).await;
            let guest = ten.udp(7);
            let peer = UdpSocket::bind("203.0.113.1:4000").expect("the host's address");
            let mut before = None;
            for last in [10, 99, 11] {
                cloud.interface(10, |eni| eni.public_ip = Some([203, 0, 113, last].into()));
                cloud.apply().await;
                let address = format!("203.0.113.{last}");
                // What goes on over the one before leads nowhere.
                if let Some(before) = &before {
                    let _ = peer.take_error();
                    let _ = peer.send_to(b"too late", before);
                }
                let to: std::net::SocketAddr = format!("{address}:7").parse().expect("so");
                let _ = peer.take_error();
                peer.send_to(b"from without", to).expect("it goes out");
                assert_eq!(hear(&guest).0, "from without");
                guest
                    .send_to(b"from within", "203.0.113.1:4000")
                    .expect("it goes out");
                assert_eq!(hear(&peer), ("from within".into(), to));
                assert!(silent(&guest) && silent(&peer));
                let metadata = "http://169.254.169.254/latest/meta-data/public-ipv4";
                assert_eq!(ten.fetch(&format!("-f {metadata}")), Some(address));
                before = Some(to);
            }
        },
    );
}

#[test]
fn a_released_public_address_has_no_past() {
    isolated(
        "network::addresses::a_released_public_address_has_no_past",
        async || {
            let mut cloud = Cloud::new();
            cloud.group(1, vec![all_egress(), ingress(Protocol::All, anywhere())]);
            cloud.instance(10, &[1], |_| ());
            cloud.instance(11, &[1], |_| ());
            cloud.interface(11, |eni| eni.public_ip = None);
            cloud.apply().await;
            let (ten, eleven) = (cloud.guest(10).await, cloud.guest(11).await);
            let (a, b) = (ten.udp(7), eleven.udp(7));
            let peer = UdpSocket::bind("203.0.113.1:4000").expect("the host's address");
            let say = |text: &str| {
                // Nobody's address is unreachable, which the socket hears of late.
                let _ = peer.take_error();
                let _ = peer.send_to(text.as_bytes(), "203.0.113.10:7");
            };
            say("to ten");
            assert_eq!(hear(&a).0, "to ten");
            a.send_to(b"from ten", "203.0.113.1:4000")
                .expect("it goes out");
            assert_eq!(hear(&peer).0, "from ten");

            // Nobody's for a while, to which all go on sending.
            cloud.interface(10, |eni| eni.public_ip = None);
            cloud.apply().await;
            say("to nobody");
            a.send_to(b"too late", "203.0.113.1:4000")
                .expect("it goes out");
            cloud.interface(11, |eni| eni.public_ip = Some([203, 0, 113, 10].into()));
            cloud.apply().await;
            say("to eleven");
            assert_eq!(hear(&b).0, "to eleven");
            b.send_to(b"from eleven", "203.0.113.1:4000")
                .expect("it goes out");
            a.send_to(b"too late", "203.0.113.1:4000")
                .expect("it goes out");
            assert_eq!(hear(&peer).0, "from eleven");
            assert!(silent(&a) && silent(&peer));
        },
    );
}

#[test]
fn an_address_that_is_used_again_has_no_past() {
    isolated(
        "network::addresses::an_address_that_is_used_again_has_no_past",
        async || {
            let mut cloud = Cloud::new();
            cloud.group(1, vec![all_egress(), ingress(Protocol::All, anywhere())]);
            cloud.group(2, vec![all_egress()]);
            cloud.instance(10, &[1], |_| ());
            cloud.instance(11, &[1], |_| ());
            cloud.apply().await;
            let (ten, eleven) = (cloud.guest(10).await, cloud.guest(11).await);
            let (a, b) = (ten.udp(7), eleven.udp(7));
            b.send_to(b"hello", "172.31.0.10:7").expect("it goes out");
            assert_eq!(hear(&a).0, "hello");
            a.send_to(b"you too", "172.31.0.11:7").expect("it goes out");
            assert_eq!(hear(&b).0, "you too");

            // Another instance, which lets nobody in, gets the address at once.
            cloud.instance(10, &[1], |i| i.state = InstanceState::Terminated);
            cloud.instance(12, &[2], |_| ());
            cloud.interface(12, |eni| eni.private_ip = [172, 31, 0, 10].into());
            cloud.apply().await;
            let twelve = cloud.guest(12).await;
            let c = twelve.udp(7);
            b.send_to(b"still there?", "172.31.0.10:7")
                .expect("it goes out");
            // What it asks for itself comes back.
            let d = twelve.udp(8);
            d.send_to(b"who is it?", "172.31.0.11:7")
                .expect("it goes out");
            let (said, from) = hear(&b);
            assert_eq!(said, "who is it?");
            b.send_to(b"eleven", from).expect("it goes out");
            assert_eq!(hear(&d).0, "eleven");
            assert!(silent(&c), "what was open to ten is not open to twelve");
        },
    );
}

#[test]
fn a_connection_outlives_the_rule_that_let_it_in() {
    isolated(
        "network::addresses::a_connection_outlives_the_rule_that_let_it_in",
        async || {
            let mut cloud = Cloud::new();
            cloud.group(1, vec![all_egress(), ingress(Protocol::All, anywhere())]);
            cloud.instance(10, &[1], |_| ());
            cloud.apply().await;
            let ten = cloud.guest(10).await;
            let a = ten.udp(7);
            let peer = UdpSocket::bind("203.0.113.1:4000").expect("the host's address");
            let late = UdpSocket::bind("203.0.113.1:4001").expect("the host's address");
            let say = |from: &UdpSocket, text: &str| {
                let sent = from.send_to(text.as_bytes(), "203.0.113.10:7");
                sent.expect("it goes out");
            };
            say(&peer, "one");
            assert_eq!(hear(&a).0, "one");
            a.send_to(b"one", "203.0.113.1:4000").expect("it goes out");
            assert_eq!(hear(&peer).0, "one");

            cloud.group(1, vec![all_egress()]);
            cloud.apply().await;
            say(&late, "too late");
            say(&peer, "two");
            assert_eq!(hear(&a).0, "two");
            assert!(silent(&a));
        },
    );
}
