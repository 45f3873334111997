//! The host's side of the network: makes what [`plan`](super::plan) says.
//!
//! What it leaves on the host, named by [`HostNames`](names::HostNames) and all
//! of it removed by [`purge`](NetworkHost::purge): the namespaces `hearth-vpc-…`,
//! the links `igw-…`, the routes of public addresses over them, an unreachable
//! route for the rest of the pool, and the nft table `inet hearth`. It also sets
//! `net.ipv4.ip_forward`, and leaves that set: others may have come to need it.
//! A firewall of the host that drops forwarded packets (as Docker's does) must
//! let those from and to `igw-*` pass.

mod arp;
mod conntrack;
mod link;
mod netns;
mod nft;
mod services;
mod tap;
mod uplink;
mod vpc;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use self::netns::Namespace;
use self::services::{Services, Shared};
use super::names::{self, HostNames};
use super::plan::connections::{self, OverPool, Owners};
use super::plan::nft::{Table, difference, replace};
use super::plan::{HostPort, HostSide, Limits, host_rules, rules};
use super::{Error, NetworkHost, Result, Topology, VpcNet};
use crate::metadata::token::TokenKey;
use crate::model::{Eni, EniId, VpcId};
use crate::store::View;

/// The MTU of everything, the guests' interfaces included.
pub const MTU: u16 = 1500;

/// The wire between a VPC's namespace and the host: who has which MAC address.
#[derive(Debug, Clone)]
struct Wire {
    /// The host's address on it, the pool's first: the next hop of the VPC.
    host: Ipv4Addr,
    host_mac: [u8; 6],
    /// The next hop of the host; an address that nobody answers for, since the
    /// neighbour's entry is fixed.
    gateway: Ipv4Addr,
    gateway_mac: [u8; 6],
}

impl Wire {
    fn new(vpc: &VpcId, pool: Ipv4Net) -> Self {
        let digest = Sha256::digest(vpc.as_str().as_bytes());
        let mac = |side| [0x0e, side, digest[0], digest[1], digest[2], digest[3]];
        Self {
            host: host_address(pool),
            host_mac: mac(1),
            gateway: Ipv4Addr::new(169, 254, 64, 1),
            gateway_mac: mac(2),
        }
    }
}

/// The host's own address in the pool: its first.
fn host_address(pool: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(pool.network()).saturating_add(1))
}

/// A VPC that this process has brought up or taken over.
struct Applied {
    namespace: Namespace,
    vpc: VpcNet,
    table: Table,
    generation: Option<nft::Generation>,
    services: Option<Services>,
}

/// What this process knows of what it made.
#[derive(Default)]
struct State {
    vpcs: BTreeMap<VpcId, Applied>,
    /// The host's own namespace, once prepared.
    host: Option<uplink::Prepared>,
    /// The host's addresses when last listed.
    addresses: BTreeSet<Ipv4Addr>,
    /// Who had the public addresses when connections were last gone through.
    owners: Option<Owners>,
}

/// The network of a Linux host.
pub struct LinuxNetwork {
    names: HostNames,
    pool: Ipv4Net,
    shared: Shared,
    key_file: PathBuf,
    open_ports: BTreeSet<HostPort>,
    limits: Limits,
    state: tokio::sync::Mutex<State>,
}

impl std::fmt::Debug for LinuxNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinuxNetwork")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

fn step<T>(what: impl FnOnce() -> String, result: io::Result<T>) -> Result<T> {
    result.map_err(|e| Error::host(what(), e))
}

/// Keeps the first error and goes on.
fn note(first: &mut Option<Error>, result: Result<()>) {
    if let Err(e) = result {
        if first.is_some() {
            tracing::warn!(error = %e, "another step of the network failed");
        } else {
            *first = Some(e);
        }
    }
}

impl LinuxNetwork {
    /// A network with this pool of public addresses, whose services answer from
    /// the newest view. `run_dir` keeps the key of the metadata service's
    /// tokens, so that they outlive this process.
    ///
    /// # Errors
    /// When the key can be neither read nor written.
    pub fn new(
        names: HostNames,
        pool: Ipv4Net,
        region: &str,
        run_dir: &Path,
        views: watch::Receiver<Arc<View>>,
    ) -> Result<Self> {
        let pool = pool.trunc();
        let key_file = run_dir.join("imds-token.key");
        let key = step(
            || "keeping the metadata service's key".into(),
            token_key(&key_file),
        )?;
        let guests = crate::descriptors::Guests::of_this_process();
        let guests = step(|| "asking for the limit of descriptors".into(), guests)?;
        let shared = Shared {
            guests,
            region: region.to_owned(),
            pool,
            key,
            views,
        };
        let state = tokio::sync::Mutex::default();
        Ok(Self {
            names,
            pool,
            shared,
            key_file,
            open_ports: BTreeSet::new(),
            limits: Limits::default(),
            state,
        })
    }

    /// Lets instances reach these ports of the host; by default none.
    #[must_use]
    pub fn with_open_ports(mut self, ports: impl IntoIterator<Item = HostPort>) -> Self {
        self.open_ports = ports.into_iter().collect();
        self
    }

    /// Gives each interface other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    async fn apply_vpc(
        &self,
        applied: &mut BTreeMap<VpcId, Applied>,
        vpc: &VpcNet,
        host: &HostSide,
    ) -> Result<()> {
        let name = self.names.namespace(&vpc.id);
        let wire = Wire::new(&vpc.id, self.pool);
        let found = step(
            || format!("opening namespace {name}"),
            Namespace::open(&name),
        )?;
        let known = applied.remove(&vpc.id);
        let (namespace, known) = match found {
            Some(namespace) => (namespace, known),
            // Somebody took it away: begin anew.
            None => (
                step(
                    || format!("making namespace {name}"),
                    Namespace::create(&name),
                )?,
                None,
            ),
        };
        let table = rules::vpc_table(vpc, host, &self.limits);
        let increment =
            (known.as_ref()).map(|known| difference(names::TABLE, &known.table, &table));
        let generation = known.as_ref().and_then(|known| known.generation);
        let whole = replace(names::TABLE, &table) + &rules::arp_table();
        // The rules come before the links: nothing passes unfiltered.
        let brought = namespace
            .run_async(move || async move { nft::bring(generation, increment.as_deref(), &whole) })
            .await;
        let brought = step(|| format!("applying the rules of {}", vpc.id), brought)?;
        step(
            || format!("wiring {} to the host", vpc.id),
            uplink::wire(&self.names.igw(&vpc.id), vpc, &namespace, &wire).await,
        )?;
        let shaped = {
            let (vpc, wire) = (vpc.clone(), wire.clone());
            // Who has been at the rules may have been at the rest too.
            let before = (known.as_ref().filter(|_| !brought.replaced)).map(|k| k.vpc.clone());
            namespace
                .run_async(move || async move { vpc::shape(&vpc, &wire, before.as_ref()).await })
                .await
        };
        let mut services = known.and_then(|known| known.services);
        let served = match &shaped {
            Ok(taps) => self.serve(&mut services, &namespace, vpc, taps).await,
            Err(_) => Ok(()),
        };
        // What failed is done anew the next time, the rules included.
        if shaped.is_ok() && served.is_ok() {
            let vpc = vpc.clone();
            let done = Applied {
                namespace,
                vpc,
                table,
                generation: brought.generation,
                services,
            };
            applied.insert(done.vpc.id.clone(), done);
        }
        step(|| format!("shaping the namespace of {}", vpc.id), shaped)?;
        step(|| format!("starting the services of {}", vpc.id), served)
    }

    async fn serve(
        &self,
        services: &mut Option<Services>,
        namespace: &Namespace,
        vpc: &VpcNet,
        taps: &BTreeMap<EniId, u32>,
    ) -> io::Result<()> {
        let services = match services {
            Some(services) => services,
            None => services.insert(Services::start(namespace, vpc, &self.shared).await?),
        };
        services.update(namespace, vpc, taps, &self.shared).await
    }

    /// Removes the VPCs of Hearth's that are not wanted, and the host's part
    /// when none is.
    async fn sweep(&self, applied: &mut BTreeMap<VpcId, Applied>, wanted: &Topology) -> Result<()> {
        let mut first = None;
        applied.retain(|id, _| wanted.vpcs.contains_key(id));
        let names = &self.names;
        let igws = wanted.vpcs.keys().map(|vpc| names.igw(vpc)).collect();
        let swept = uplink::sweep(names, &igws).await;
        note(&mut first, step(|| "removing gateways".into(), swept));
        let keep: Vec<String> = wanted.vpcs.keys().map(|v| names.namespace(v)).collect();
        for name in step(|| "listing namespaces".into(), netns::list(names))? {
            if !keep.contains(&name) {
                note(
                    &mut first,
                    remove_namespace(&name)
                        .await
                        .map_err(|e| Error::host(format!("removing namespace {name}"), e)),
                );
            }
        }
        if wanted.vpcs.is_empty() {
            let down = uplink::down(names, self.pool).await;
            note(&mut first, step(|| "removing the host's part".into(), down));
        }
        first.map_or(Ok(()), Err)
    }

    /// Ends the connections over public addresses that have left their owners,
    /// the host's and those of the VPCs.
    async fn forget(&self, state: &State, owners: &Owners) -> Result<()> {
        let host = host_address(self.pool);
        let before = state.owners.as_ref();
        let may_be = Arc::new(OverPool::new(self.pool, host, owners, before));
        step(
            || "ending the host's connections over released addresses".into(),
            conntrack::sweep(|connection| may_be.outlived(connection)).await,
        )?;
        for (id, vpc) in &state.vpcs {
            let may_be = Arc::clone(&may_be);
            let sweep = move || async move { conntrack::sweep(|c| may_be.outlived(c)).await };
            step(
                || format!("ending connections over released addresses in {id}"),
                vpc.namespace.run_async(sweep).await,
            )?;
        }
        Ok(())
    }
}

/// The guests of a VPC, by their taps.
fn targets(vpc: &VpcNet, links: &BTreeMap<String, link::Link>) -> Vec<arp::Target> {
    let target = |interface: &super::Interface| {
        let tap = links.get(&interface.tap())?;
        Some(arp::Target {
            eni: interface.id.clone(),
            ifindex: tap.index,
            tap_mac: tap.mac?,
            router: interface.router,
            mac: interface.mac,
            address: interface.private_ip,
        })
    };
    vpc.interfaces.values().filter_map(target).collect()
}

/// The key that was kept, or a new one.
fn token_key(path: &Path) -> io::Result<TokenKey> {
    if let Ok(kept) = std::fs::read(path)
        && let Ok(key) = <[u8; 32]>::try_from(kept)
    {
        return Ok(TokenKey::new(key));
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let key: [u8; 32] = rand::random();
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(&key)?;
    Ok(TokenKey::new(key))
}

/// Removes a namespace with its taps: a VMM that still has one open would keep
/// it, and with it the namespace, alive unseen.
async fn remove_namespace(name: &str) -> io::Result<()> {
    if let Some(namespace) = Namespace::open(name)? {
        namespace
            .run_async(|| async {
                let netlink = link::Netlink::connect()?;
                for (name, link) in netlink.links().await? {
                    if name.starts_with(names::TAP_PREFIX) {
                        netlink.delete(link.index).await?;
                    }
                }
                Ok(())
            })
            .await?;
    }
    netns::delete(name)
}

#[async_trait]
impl NetworkHost for LinuxNetwork {
    async fn apply(&self, desired: &Topology) -> Result<()> {
        let mut state = self.state.lock().await;
        let mut first = None;
        note(&mut first, self.sweep(&mut state.vpcs, desired).await);
        let addresses = uplink::addresses().await;
        let addresses = step(|| "listing the host's addresses".into(), addresses);
        note(&mut first, addresses.map(|all| state.addresses = all));
        let mut host = HostSide {
            addresses: state.addresses.clone(),
            ports: self.open_ports.clone(),
        };
        // The first VPC brings it.
        host.addresses.insert(host_address(self.pool));
        if desired.vpcs.is_empty() {
            state.host = None;
        } else {
            let table = host_rules::host_table(&self.names, self.pool, &host);
            let up = uplink::up(&self.names, self.pool, table, state.host.take()).await;
            let up = step(|| "preparing the host".into(), up);
            note(&mut first, up.map(|up| state.host = Some(up)));
        }
        for vpc in desired.vpcs.values() {
            note(
                &mut first,
                self.apply_vpc(&mut state.vpcs, vpc, &host).await,
            );
        }
        let owners = connections::owners(desired);
        if state.owners.as_ref() != Some(&owners) {
            note(&mut first, self.forget(&state, &owners).await);
            if first.is_none() {
                state.owners = Some(owners);
            }
        }
        first.map_or(Ok(()), Err)
    }

    async fn open_tap(&self, eni: &Eni) -> Result<OwnedFd> {
        let state = self.state.lock().await;
        let no_tap = || Error::NoTap(eni.id.to_string());
        let vpc = state.vpcs.get(&eni.vpc).ok_or_else(no_tap)?;
        let name = names::tap(&eni.id);
        let opened = vpc
            .namespace
            .run_async(move || async move { tap::open(&name) })
            .await;
        step(|| format!("opening the tap of {}", eni.id), opened)?.ok_or_else(no_tap)
    }

    async fn answering(&self) -> Result<BTreeSet<EniId>> {
        let vpcs: Vec<(Namespace, VpcNet)> = {
            let state = self.state.lock().await;
            let namespace = |vpc: &Applied| (vpc.namespace.clone(), vpc.vpc.clone());
            state.vpcs.values().map(namespace).collect()
        };
        let mut answering = BTreeSet::new();
        for (namespace, vpc) in vpcs {
            let what = format!("asking the guests of {}", vpc.id);
            let asked = namespace
                .run_async(move || async move {
                    let links = link::Netlink::connect()?.links().await?;
                    arp::ask(targets(&vpc, &links))
                })
                .await;
            answering.extend(step(|| what, asked)?);
        }
        Ok(answering)
    }

    async fn purge(&self) -> Result<()> {
        let mut state = self.state.lock().await;
        state.host = None;
        let swept = self.sweep(&mut state.vpcs, &Topology::default()).await;
        let forgotten = self.forget(&state, &Owners::new()).await;
        state.owners = None;
        let key = match std::fs::remove_file(&self.key_file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
        swept?;
        forgotten?;
        step(|| "removing the metadata service's key".into(), key)
    }
}
