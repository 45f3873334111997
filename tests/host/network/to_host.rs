//! What instances reach of the host, and beyond it.

use std::net::UdpSocket;
use std::time::Duration;

use hearth::model::Protocol;

use super::cloud::{Cloud, OPEN_PORT, all_egress, anywhere, ingress, isolated, outside};
use super::guest::{fetch, sh};

/// Serves a page on these ports of the host, on all of its addresses.
pub(super) fn serve_on_host(ports: &[u16]) {
    sh("mkdir -p /run/host; echo host > /run/host/index.html");
    for port in ports {
        sh(&format!("busybox httpd -p {port} -h /run/host"));
    }
}

#[test]
fn an_instance_reaches_of_the_host_what_is_opened_and_no_more() {
    isolated(
        "network::to_host::an_instance_reaches_of_the_host_what_is_opened_and_no_more",
        async || {
            outside();
            serve_on_host(&[22, OPEN_PORT]);
            // As Docker publishes a container's port.
            sh(
                "nft 'table ip published { chain c { type nat hook prerouting priority -100;
                    tcp dport 8080 dnat to 198.51.100.2:80
                }
                chain d { type nat hook postrouting priority 100;
                    ip daddr 198.51.100.2 masquerade
                }
                }'",
            );
            let mut cloud = Cloud::new();
            cloud.group(1, vec![all_egress(), ingress(Protocol::All, anywhere())]);
            cloud.instance(10, &[1], |_| ());
            cloud.apply().await;
            let guest = cloud.guest(10).await;
            guest.serve(80, "guest");
            for address in ["203.0.113.1", "198.51.100.1"] {
                let at = |port: u16| guest.fetch(&format!("http://{address}:{port}"));
                assert_eq!(at(22), None, "{address}");
                assert_eq!(at(8080), None, "{address}");
                assert_eq!(at(OPEN_PORT).as_deref(), Some("host"), "{address}");
                let ping = format!("busybox ping -c 1 -W 1 {address}");
                assert!(!guest.try_sh(&ping).status.success(), "{address}");
            }
            // What the host opens is answered.
            assert_eq!(fetch("http://203.0.113.10").as_deref(), Some("guest"));
            let (host, inside) = (UdpSocket::bind("0.0.0.0:0"), guest.udp(7));
            let host = host.expect("a socket");
            for socket in [&host, &inside] {
                let timeout = Some(Duration::from_secs(5));
                socket.set_read_timeout(timeout).expect("a timeout");
            }
            host.send_to(b"hello", "203.0.113.10:7").expect("sent");
            let (_, from) = inside.recv_from(&mut [0; 64]).expect("it arrives");
            inside.send_to(b"hello", from).expect("sent");
            host.recv_from(&mut [0; 64]).expect("the answer arrives");
            // What lies beyond the host is reached as ever, link-local is not.
            assert_eq!(
                guest.fetch("http://198.51.100.2").as_deref(),
                Some("outside")
            );
            assert_eq!(fetch("http://169.254.170.2").as_deref(), Some("outside"));
            assert_eq!(guest.fetch("http://169.254.170.2"), None);
            // Each of the two layers holds by itself.
            let closed = |layer: &str| {
                let at = guest.fetch("http://203.0.113.1:22");
                assert_eq!(at, None, "without {layer}'s rules");
                let at = guest.fetch("http://169.254.170.2");
                assert_eq!(at, None, "without {layer}'s rules");
            };
            sh("nft flush chain inet hearth from-instances");
            closed("the host");
            cloud.apply().await;
            sh(
                "ip netns exec hearth-vpc-00000000000000001 nft flush set inet hearth host-addresses",
            );
            closed("the VPC");
        },
    );
}
