//! The real network: namespaces, taps, nftables, DHCP, DNS and IMDS, with
//! guests that are namespaces behind the taps.

mod addresses;
mod cloud;
mod descriptors;
mod forged;
mod guest;
mod heal;
mod limits;
mod to_host;

use cloud::{Cloud, all_egress, anywhere, ingress, isolated, net, outside};
use guest::{fetch, run, sh};
use hearth::model::{GroupId, InstanceState, Peer, Protocol};
use hearth::network::NetworkHost as _;

const WEB: Protocol = Protocol::Tcp { from: 80, to: 80 };
const PING: Protocol = Protocol::Icmp {
    kind: Some(8),
    code: None,
};

#[test]
fn an_instance_gets_its_address_and_its_metadata() {
    isolated(
        "network::an_instance_gets_its_address_and_its_metadata",
        async || {
            let mut cloud = Cloud::new();
            cloud.group(1, vec![all_egress()]);
            cloud.instance(10, &[1], |_| ());
            cloud.instance(11, &[1], |i| i.settings.metadata.tokens_required = true);
            cloud.apply().await;
            let old = cloud.guest(10).await;
            let new = cloud.guest(11).await;

            let said = old.dhcp();
            for line in [
                "ip=172.31.0.10",
                "mask=20",
                "router=172.31.0.1",
                "dns=172.31.0.2",
                "hostname=ip-172-31-0-10",
                "domain=ec2.internal",
                "mtu=1500",
            ] {
                assert!(said.lines().any(|l| l == line), "{line} in\n{said}");
            }

            let at = "http://169.254.169.254";
            let get = |path: &str| old.fetch(&format!("-f {at}/{path}"));
            assert_eq!(
                get("latest/meta-data/local-ipv4").as_deref(),
                Some("172.31.0.10")
            );
            assert_eq!(get("2009-04-04/user-data").as_deref(), Some("#!/bin/sh"));
            assert_eq!(get("latest/meta-data/iam/info"), None);

            // Who closes its side once it has asked is answered all the same.
            let path = "/latest/meta-data/instance-id";
            let asked = format!("printf 'GET {path} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'");
            let half = old.sh(&format!(
                "{asked} | timeout 60 busybox nc 169.254.169.254 80"
            ));
            assert!(half.ends_with("i-0000000000000000a"), "{half}");

            let token = |guest: &guest::Guest, more: &str| {
                guest.fetch(&format!(
                "-f -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' {more} {at}/latest/api/token"
            ))
            };
            let instance = format!("{at}/latest/meta-data/instance-id");
            assert_eq!(
                new.fetch(&format!("-f {instance}")),
                None,
                "version 1 is off"
            );
            let own = token(&new, "").expect("a token");
            let header = format!("-f -H 'X-aws-ec2-metadata-token: {own}' {instance}");
            assert_eq!(new.fetch(&header).as_deref(), Some("i-0000000000000000b"));
            assert_eq!(old.fetch(&header), None, "another's token");
            assert_eq!(token(&new, "-H 'X-Forwarded-For: 1.2.3.4'"), None);

            let dns = "timeout 5 busybox nslookup ip-172-31-0-11.ec2.internal";
            for server in ["172.31.0.2", "169.254.169.253"] {
                let out = old.sh(&format!("{dns} {server}"));
                assert!(out.contains("172.31.0.11"), "{out}");
            }
        },
    );
}

#[test]
fn who_answers_arp_is_known() {
    isolated("network::who_answers_arp_is_known", async || {
        let mut cloud = Cloud::new();
        cloud.group(1, vec![]);
        for n in [10, 11, 12] {
            cloud.instance(n, &[1], |_| ());
        }
        cloud.apply().await;
        assert!(cloud.answering().await.is_empty(), "no guest is there yet");
        let ten = cloud.guest(10).await;
        let _eleven = cloud.guest(11).await;
        assert_eq!(cloud.answering().await, [10, 11]);
        // Another's answer is none of its own.
        ten.sh("ip addr flush dev eth0; ip addr add 172.31.0.12/20 dev eth0");
        assert_eq!(cloud.answering().await, [11]);
    });
}

#[test]
fn a_tokens_answer_goes_no_farther_than_its_hop_limit() {
    isolated(
        "network::a_tokens_answer_goes_no_farther_than_its_hop_limit",
        async || {
            let mut cloud = Cloud::new();
            cloud.group(1, vec![all_egress()]);
            cloud.instance(10, &[1], |_| ());
            cloud.instance(11, &[1], |i| i.settings.metadata.hop_limit = 2);
            cloud.apply().await;
            for (n, reaches) in [(10, false), (11, true)] {
                let guest = cloud.guest(n).await;
                // A container in the guest, behind the guest's own NAT.
                let name = format!("guest-{n}");
                sh(&format!(
                    "ip netns add box
                 ip -n {name} link add c0 type veth peer name eth0 netns box
                 ip -n {name} addr add 10.9.9.1/24 dev c0; ip -n {name} link set c0 up
                 ip -n box addr add 10.9.9.2/24 dev eth0; ip -n box link set eth0 up
                 ip -n box route add default via 10.9.9.1"
                ));
                guest.sh("echo 1 > /proc/sys/net/ipv4/ip_forward
                 nft 'table ip n { chain p { type nat hook postrouting priority 100;
                      oifname \"eth0\" masquerade
                 }
                 }'");
                let curl = |args: &str| {
                    let url = format!("curl -s -f -m 2 {args}");
                    run("ip", &["netns", "exec", "box", "sh", "-c", &url])
                        .status
                        .success()
                };
                assert!(
                    curl("http://169.254.169.254/latest/"),
                    "version 1 reaches a container"
                );
                let put = "-X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60'";
                let got = curl(&format!("{put} http://169.254.169.254/latest/api/token"));
                assert_eq!(got, reaches, "hop limit of {name}");
                sh("ip netns del box");
            }
        },
    );
}

#[test]
fn a_change_of_rules_is_seen_by_packets() {
    isolated(
        "network::a_change_of_rules_is_seen_by_packets",
        async || {
            let mut cloud = Cloud::new();
            cloud.group(1, vec![all_egress()]);
            cloud.group(2, vec![all_egress()]);
            cloud.instance(10, &[1], |_| ());
            cloud.instance(11, &[2], |_| ());
            cloud.apply().await;
            let a = cloud.guest(10).await;
            let b = cloud.guest(11).await;
            a.serve(80, "hello");
            let (public, private) = ("http://203.0.113.10", "http://172.31.0.10");
            assert_eq!(fetch(public), None, "nothing is open");
            assert_eq!(b.fetch(private), None, "nothing is open");

            // Anywhere may.
            cloud.group(1, vec![all_egress(), ingress(WEB, anywhere())]);
            cloud.apply().await;
            assert_eq!(fetch(public).as_deref(), Some("hello"), "from the host");
            assert_eq!(b.fetch(private).as_deref(), Some("hello"), "same subnet");
            assert_eq!(
                b.fetch(public).as_deref(),
                Some("hello"),
                "by the public address"
            );
            assert_eq!(fetch("http://203.0.113.10:81"), None, "another port");

            // The members of a group may, by their private addresses.
            let of_2 = Peer::Group(GroupId::from_random(2));
            cloud.group(1, vec![all_egress(), ingress(WEB, of_2)]);
            cloud.apply().await;
            assert_eq!(fetch(public), None, "the host is no member");
            assert_eq!(b.fetch(private).as_deref(), Some("hello"), "a member");
            assert_eq!(
                b.fetch(public),
                None,
                "from outside it is no member, as on EC2"
            );

            // By the public address an instance is seen with its own.
            cloud.group(1, vec![all_egress(), ingress(WEB, net("203.0.113.11/32"))]);
            cloud.apply().await;
            assert_eq!(b.fetch(private), None);
            assert_eq!(b.fetch(public).as_deref(), Some("hello"));

            // What B may not send doesn't arrive, whatever A lets in.
            cloud.group(
                1,
                vec![
                    all_egress(),
                    ingress(WEB, anywhere()),
                    ingress(PING, anywhere()),
                ],
            );
            cloud.group(2, vec![]);
            cloud.apply().await;
            assert_eq!(b.fetch(private), None, "no egress");
            assert!(
                b.fetch("http://169.254.169.254/latest/").is_some(),
                "always"
            );
            cloud.group(2, vec![all_egress()]);
            cloud.apply().await;
            b.sh("busybox ping -c 1 -W 2 172.31.0.10");
            sh("busybox ping -c 1 -W 2 203.0.113.10");
            assert!(
                !a.try_sh("busybox ping -c 1 -W 1 172.31.0.11")
                    .status
                    .success(),
                "B opens nothing"
            );
        },
    );
}

#[test]
fn a_forged_source_goes_nowhere() {
    isolated("network::a_forged_source_goes_nowhere", async || {
        let mut cloud = Cloud::new();
        cloud.group(1, vec![all_egress(), ingress(Protocol::All, anywhere())]);
        cloud.instance(10, &[1], |_| ());
        cloud.instance(11, &[1], |_| ());
        cloud.instance(12, &[1], |_| ());
        cloud.apply().await;
        let a = cloud.guest(10).await;
        let b = cloud.guest(11).await;
        let seen = "cat /proc/net/snmp | awk '/^Icmp: [0-9]/ {print $9}'";
        b.sh("busybox ping -c 1 -W 2 172.31.0.10");
        let before = a.sh(seen);
        b.sh("ip addr add 172.31.0.12/32 dev eth0; ip addr add 9.9.9.9/32 dev eth0");
        for source in ["172.31.0.12", "9.9.9.9"] {
            let ping = format!("busybox ping -c 1 -W 1 -I {source} 172.31.0.10");
            assert!(!b.try_sh(&ping).status.success(), "{source}");
        }
        b.sh("ip link set eth0 address 02:00:00:00:00:77; ip route replace default via 172.31.0.1");
        assert!(
            !b.try_sh("busybox ping -c 1 -W 1 172.31.0.10")
                .status
                .success(),
            "a forged MAC"
        );
        assert_eq!(a.sh(seen), before, "the victim has seen none of them");
        b.sh("ip link set eth0 address 02:00:00:00:00:0b; ip route replace default via 172.31.0.1");
        b.sh("busybox ping -c 1 -W 2 172.31.0.10");
        // Nor does anybody speak to the metadata service for another.
        let asked =
            b.fetch("--interface 172.31.0.12 http://169.254.169.254/latest/meta-data/instance-id");
        assert_eq!(asked, None);
    });
}

#[test]
fn who_has_a_public_address_gets_out_and_nobody_else() {
    isolated(
        "network::who_has_a_public_address_gets_out_and_nobody_else",
        async || {
            let mut cloud = Cloud::new();
            cloud.group(1, vec![all_egress()]);
            cloud.instance(10, &[1], |_| ());
            cloud.instance(11, &[1], |_| ());
            cloud.interface(11, |eni| eni.public_ip = None);
            cloud.apply().await;
            let (with, without) = (cloud.guest(10).await, cloud.guest(11).await);
            outside();
            let url = "http://198.51.100.2";
            assert_eq!(fetch(url).as_deref(), Some("outside"), "the host itself");
            assert_eq!(with.fetch(url).as_deref(), Some("outside"));
            assert_eq!(without.fetch(url), None);
            // An address that nobody has is refused at the host.
            assert_eq!(fetch("http://203.0.113.99"), None);
        },
    );
}

#[test]
fn a_restart_disturbs_nothing_and_purge_leaves_nothing() {
    isolated(
        "network::a_restart_disturbs_nothing_and_purge_leaves_nothing",
        async || {
            let all = "ip -o link; ip -4 route; ip rule; ls /run/netns; nft list tables";
            sh("mkdir -p /run/netns");
            let pristine = sh(all);
            let mut cloud = Cloud::new();
            cloud.group(1, vec![all_egress(), ingress(Protocol::All, anywhere())]);
            cloud.instance(10, &[1], |_| ());
            cloud.instance(11, &[1], |_| ());
            cloud.apply().await;
            let a = cloud.guest(10).await;
            let vpc = "ip netns exec hearth-vpc-00000000000000001";
            let links = format!(
                "{vpc} ip -o link | cut -d' ' -f1,2; ip -o link | cut -d' ' -f1,2; {vpc} ip route; {vpc} nft list ruleset | sed '/limit rate/d; /ct count/d'"
            );
            let before = sh(&links);
            // A connection that is open across everything that follows.
            a.sh("busybox nc -l -p 7 -e cat > /dev/null 2>&1 &");
            let mut stream = connect("203.0.113.10:7").await;
            assert_eq!(echo(&mut stream, b"one").await, "one");

            cloud.apply().await;
            assert_eq!(sh(&links), before, "a second time changes nothing");
            cloud.restart();
            cloud.apply().await;
            assert_eq!(sh(&links), before, "nor does another process");
            assert_eq!(echo(&mut stream, b"two").await, "two");
            assert!(
                a.fetch("http://169.254.169.254/latest/").is_some(),
                "the services are back"
            );

            // What is taken away comes back.
            sh(&format!("{vpc} ip link del tap-0000000000b"));
            cloud.apply().await;
            assert!(sh(&format!("{vpc} ip route")).contains("172.31.0.11 dev tap-0000000000b"));

            // Instance 11 stops: its tap and its address go, the other's stay.
            cloud.instance(11, &[1], |i| i.state = InstanceState::Stopped);
            cloud.apply().await;
            let left = sh(&format!(
                "{vpc} ip -o link; ip route; {vpc} nft list ruleset"
            ));
            assert!(
                !left.contains("tap-0000000000b") && !left.contains("203.0.113.11"),
                "{left}"
            );
            assert_eq!(echo(&mut stream, b"three").await, "three");

            cloud.network.purge().await.expect("purged");
            let gone =
                sh(&all.replace("ls /run/netns", "ls /run/netns | grep -v guest-10 || true"));
            assert_eq!(gone, pristine);
            cloud.network.purge().await.expect("twice is harmless");
        },
    );
}

/// Connects as soon as somebody listens there.
async fn connect(address: &str) -> tokio::net::TcpStream {
    let connecting = async {
        loop {
            match tokio::net::TcpStream::connect(address).await {
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
                other => return other,
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), connecting)
        .await
        .expect("within its time")
        .expect("connected")
}

async fn echo(stream: &mut tokio::net::TcpStream, text: &[u8]) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let said = async {
        stream.write_all(text).await.expect("sent");
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).await.expect("answered");
        String::from_utf8_lossy(&back).into_owned()
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), said)
        .await
        .expect("within its time")
}

#[test]
fn two_hearths_leave_each_other_alone() {
    isolated("network::two_hearths_leave_each_other_alone", async || {
        let mut cloud = Cloud::new();
        cloud.group(1, vec![all_egress(), ingress(PING, anywhere())]);
        cloud.instance(10, &[1], |_| ());
        cloud.apply().await;
        let _guest = cloud.guest(10).await;
        // The same VPC, by another hearth: its own copy beside the first.
        let neighbour = cloud.neighbour();
        let mut topology = cloud.topology();
        for vpc in topology.vpcs.values_mut() {
            for interface in vpc.interfaces.values_mut() {
                interface.public_ip = Some([198, 51, 100, 10].into());
            }
        }
        neighbour.apply(&topology).await.expect("applied");
        cloud.apply().await;
        let there = || {
            let listed = |command: &str| sh(command).lines().map(str::to_owned).collect::<Vec<_>>();
            (
                listed("ls /run/netns | grep hearth"),
                listed("nft list tables | grep hearth"),
                listed("ip -o link | grep -o 'igw[^@]*'"),
            )
        };
        let (namespaces, tables, links) = there();
        for found in [&namespaces, &tables, &links] {
            assert_eq!(found.len(), 2, "{found:?}");
        }
        neighbour.purge().await.expect("purged");
        let (namespaces, tables, links) = there();
        for found in [&namespaces, &tables, &links] {
            assert_eq!(found.len(), 1, "{found:?}");
        }
        sh("busybox ping -c 1 -W 2 203.0.113.10");
        // And the other way about: nothing of one is left by the sweep of another.
        neighbour.apply(&topology).await.expect("applied");
        cloud.network.purge().await.expect("purged");
        let (namespaces, tables, links) = there();
        assert!(
            namespaces[0].starts_with("hearth-neighbour-vpc-"),
            "{namespaces:?}"
        );
        assert!(tables[0].ends_with("hearth-neighbour"), "{tables:?}");
        assert_eq!((namespaces.len(), tables.len(), links.len()), (1, 1, 1));
    });
}
