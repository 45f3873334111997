//! A cloud of one VPC, as far as the network sees it.

use std::process::Command;
use std::sync::Arc;

use hearth::model::*;
use hearth::network::host::LinuxNetwork;
use hearth::network::names::HostNames;
use hearth::network::plan::topology;
use hearth::network::{Limits, NetworkHost as _, Topology};
use hearth::store::View;
use tokio::sync::watch;

use super::guest::Guest;

const INSIDE: &str = "HEARTH_HOST_TEST_INSIDE";

/// Runs a test's body in a process of its own with its own network, mounts and
/// `/run`, so that neither a cloud that runs here nor the test can harm the
/// other, and a failed test leaves nothing.
pub(super) fn isolated(test: &str, body: impl AsyncFnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        super::guest::sh("mount -t tmpfs tmpfs /run; ip link set lo up");
        tokio::runtime::Runtime::new()
            .expect("a runtime starts")
            .block_on(body());
        return;
    }
    let own = std::env::current_exe().expect("the test knows its program");
    let done = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .args(["--propagation", "private"])
        .arg(own)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare(1) runs");
    // Marked, for it ends with a count of its own, and whoever counts tests
    // would count this one twice.
    for line in String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).lines() {
        eprintln!("inside| {line}");
    }
    assert!(done.status.success(), "{test} failed inside; is this root?");
}

/// The records and the network that follows them.
pub(super) struct Cloud {
    view: View,
    sender: watch::Sender<Arc<View>>,
    limits: Limits,
    /// The network under test.
    pub(super) network: LinuxNetwork,
}

const LAUNCHED: jiff::Timestamp = jiff::Timestamp::UNIX_EPOCH;

fn scope() -> Scope {
    Scope::new("000000000000", "us-east-1")
}

/// The one port of the host that instances may reach.
pub(super) const OPEN_PORT: u16 = 3128;

fn network(sender: &watch::Sender<Arc<View>>, limits: Limits) -> LinuxNetwork {
    let pool = "203.0.113.0/24".parse().expect("a net");
    let run = std::path::Path::new("/run/hearth");
    let open = format!("tcp/{OPEN_PORT}").parse().expect("a port");
    LinuxNetwork::new(
        HostNames::new(None),
        pool,
        "us-east-1",
        run,
        sender.subscribe(),
    )
    .expect("/run can be written")
    .with_open_ports([open])
    .with_limits(limits)
}

impl Cloud {
    pub(super) fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    pub(super) fn with_limits(limits: Limits) -> Self {
        let subnet = SubnetId::from_random(1);
        let view = View::default()
            .with(Vpc {
                id: VpcId::from_random(1),
                scope: scope(),
                cidr: "172.31.0.0/16".parse().expect("a net"),
                is_default: true,
                dhcp_options: DhcpOptionsId::from_random(1),
            })
            .with(Subnet {
                id: subnet,
                scope: scope(),
                vpc: VpcId::from_random(1),
                cidr: "172.31.0.0/20".parse().expect("a net"),
                zone: "us-east-1a".into(),
                is_default: true,
                map_public_ip: true,
            });
        let (sender, _) = watch::channel(Arc::new(view.clone()));
        let network = network(&sender, limits);
        Self {
            view,
            sender,
            limits,
            network,
        }
    }

    /// The network of another hearth on the same host, with nothing in it yet.
    pub(super) fn neighbour(&self) -> LinuxNetwork {
        let names = HostNames::new(Some("neighbour"));
        let pool = "198.51.100.0/24".parse().expect("a net");
        let run = std::path::Path::new("/run/hearth-neighbour");
        LinuxNetwork::new(names, pool, "us-east-1", run, self.sender.subscribe())
            .expect("/run can be written")
    }

    /// As if hearth had ended and started again.
    pub(super) fn restart(&mut self) {
        self.network = network(&self.sender, self.limits);
    }

    pub(super) fn put<T: Resource>(&mut self, resource: T) {
        self.view = self.view.clone().with(resource);
        self.sender.send_replace(Arc::new(self.view.clone()));
    }

    pub(super) fn topology(&self) -> Topology {
        topology(&self.view, &Hosts::one(HostId("here".into())))
    }

    pub(super) async fn apply(&self) {
        if let Err(e) = self.network.apply(&self.topology()).await {
            let mut text = e.to_string();
            let mut source = std::error::Error::source(&e);
            while let Some(inner) = source {
                text = format!("{text}: {inner}");
                source = inner.source();
            }
            panic!("{text}");
        }
    }

    /// Puts a group with these rules, replacing the one of this number.
    pub(super) fn group(&mut self, n: u128, rules: Vec<Rule>) {
        self.put(SecurityGroup {
            id: GroupId::from_random(n),
            scope: scope(),
            vpc: VpcId::from_random(1),
            name: format!("group-{n}"),
            description: String::new(),
            rules,
            deleting: false,
        });
    }

    /// Puts instance `n` at 172.31.0.`n` and, as far as the pool goes, 203.0.113.`n`.
    pub(super) fn instance(&mut self, n: u16, groups: &[u128], edit: impl FnOnce(&mut Instance)) {
        let id = InstanceId::from_random(n.into());
        let [high, low] = n.to_be_bytes();
        let subnet = SubnetId::from_random(1);
        let eni = Eni {
            id: EniId::from_random(u128::from(n) << 24),
            scope: scope(),
            vpc: VpcId::from_random(1),
            subnet: subnet.clone(),
            description: String::new(),
            mac: [2, 0, 0, 0, high, low],
            private_ip: [172, 31, high, low].into(),
            public_ip: (high == 0).then(|| [203, 0, 113, low].into()),
            last_public_ip: None,
            auto_public_ip: true,
            groups: groups.iter().map(|g| GroupId::from_random(*g)).collect(),
            source_dest_check: true,
            instance: Some(id.clone()),
            device_index: 0,
            attachment: None,
        };
        let mut instance = Instance {
            id,
            reservation: ReservationId::from_random(1),
            instance_type: "t3.micro".into(),
            key_name: Some("my-key".into()),
            public_key: Some("ssh-ed25519 AAAA my-key".into()),
            subnet,
            host: Some(HostId("here".into())),
            enis: vec![eni.id.clone()],
            launched_at: LAUNCHED,
            state: InstanceState::Running,
            state_since: LAUNCHED,
            ..samples::instance(1)
        };
        edit(&mut instance);
        self.put(Reservation {
            id: instance.reservation.clone(),
            scope: scope(),
            created: LAUNCHED,
            user_data: Some("IyEvYmluL3NoCg==".into()),
            pending: None,
        });
        self.put(eni);
        self.put(instance);
    }

    /// The instances whose guests answer ARP.
    pub(super) async fn answering(&self) -> Vec<u16> {
        let answering = self
            .network
            .answering(&VpcId::from_random(1))
            .await
            .expect("all can be asked");
        let id = |n: &u16| EniId::from_random(u128::from(*n) << 24);
        (0..256).filter(|n| answering.has(&id(n))).collect()
    }

    /// Changes the interface of instance `n`.
    pub(super) fn interface(&mut self, n: u16, edit: impl FnOnce(&mut Eni)) {
        let id = EniId::from_random(u128::from(n) << 24);
        let mut eni = self.view.find::<Eni>(&id).expect("it was put").clone();
        edit(&mut eni);
        self.put(eni);
    }

    /// Plugs a guest into the tap of instance `n` and gives it its address.
    pub(super) async fn guest(&self, n: u16) -> Guest {
        let id = EniId::from_random(u128::from(n) << 24);
        let eni = self.view.find::<Eni>(&id).expect("it was put").clone();
        let tap = self.network.open_tap(&eni).await.expect("its tap is there");
        let guest = Guest::new(&format!("guest-{n}"), tap, eni.mac);
        guest.dhcp();
        guest
    }
}

/// A machine beyond the host's uplink, in the namespace `outside`, that knows no
/// way to the pool: it can answer only what comes with the host's own address,
/// 198.51.100.1. It serves a page on 198.51.100.2, and on the link-local
/// 169.254.170.2 as a cloud does that the host itself is an instance of.
pub(super) fn outside() {
    super::guest::sh(
        "ip netns add outside
        ip link add up0 type veth peer name eth0 netns outside
        ip addr add 198.51.100.1/24 dev up0; ip link set up0 up
        ip -n outside addr add 198.51.100.2/24 dev eth0; ip -n outside link set eth0 up
        ip -n outside addr add 169.254.170.2/32 dev eth0
        ip route add 169.254.170.2 dev up0 src 198.51.100.1
        mkdir -p /run/www; echo outside > /run/www/index.html
        ip netns exec outside busybox httpd -p 80 -h /run/www",
    );
}

pub(super) fn anywhere() -> Peer {
    net("0.0.0.0/0")
}

pub(super) fn net(text: &str) -> Peer {
    Peer::Ipv4(text.parse().expect("a net"))
}

pub(super) fn ingress(matcher: Protocol, peer: Peer) -> Rule {
    rule(Direction::Ingress, matcher, peer)
}

/// What EC2 puts into every new group.
pub(super) fn all_egress() -> Rule {
    rule(Direction::Egress, Protocol::All, anywhere())
}

fn rule(direction: Direction, matcher: Protocol, peer: Peer) -> Rule {
    Rule {
        id: RuleId::from_random(1),
        direction,
        matcher,
        peer,
        description: None,
    }
}
