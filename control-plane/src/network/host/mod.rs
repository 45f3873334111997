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
mod lifecycle;
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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use ipnet::Ipv4Net;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use self::lifecycle::{Slot, remove_namespace};
use self::services::Shared;
use super::names::{self, HostNames};
use super::plan::connections::{Hold, Owners, Past, holds};
use super::plan::{HostPort, HostSide, Limits, host_rules};
use super::{Answering, Error, Failed, HostNet, NetworkHost, Result, Topology, VpcNet};
use crate::metadata::token::TokenKey;
use crate::metadata::{Identity, Keys};
use crate::model::{Eni, VpcId};
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

/// What this process knows of the host's own part.
#[derive(Default)]
struct HostState {
    /// The host's own namespace, once prepared.
    prepared: Option<uplink::Prepared>,
    /// The host's addresses when last listed.
    addresses: BTreeSet<Ipv4Addr>,
    /// Whose connections it may have tracked.
    past: Past,
}

/// The network of a Linux host.
pub struct LinuxNetwork {
    names: HostNames,
    pool: Ipv4Net,
    shared: Shared,
    key_file: PathBuf,
    open_ports: BTreeSet<HostPort>,
    limits: Limits,
    host: tokio::sync::Mutex<HostState>,
    vpcs: Mutex<BTreeMap<VpcId, Arc<Slot>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // None of them holds anything that a panic could leave half-done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
            keys: Keys {
                tokens: key,
                identity: None,
            },
            views,
        };
        Ok(Self {
            names,
            pool,
            shared,
            key_file,
            open_ports: BTreeSet::new(),
            limits: Limits::default(),
            host: tokio::sync::Mutex::default(),
            vpcs: Mutex::default(),
        })
    }

    /// Lets instances reach these ports of the host; by default none.
    #[must_use]
    pub fn with_open_ports(mut self, ports: impl IntoIterator<Item = HostPort>) -> Self {
        self.open_ports = ports.into_iter().collect();
        self
    }

    /// Has identity documents signed; by default they aren't.
    #[must_use]
    pub fn with_identity(mut self, identity: Arc<Identity>) -> Self {
        self.shared.keys.identity = Some(identity);
        self
    }

    /// Gives each interface other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The VPCs that this process knows, with their slots.
    fn slots(&self) -> BTreeMap<VpcId, Arc<Slot>> {
        lock(&self.vpcs).clone()
    }

    /// The namespaces of VPCs that this hearth has made.
    async fn namespaces(&self) -> Result<Vec<String>> {
        let names = self.names.clone();
        let namespaces = blocking(move || netns::list(&names)).await;
        step(|| "listing namespaces".into(), namespaces)
    }

    /// Prepares the host for VPCs, and undoes what others did to that. Returns
    /// what VPCs must know of it. One that holds these is about to come.
    async fn up(&self, holds: &BTreeSet<Hold>) -> Result<HostSide> {
        let mut host = self.host.lock().await;
        host.past.begin(holds);
        let addresses = uplink::addresses().await;
        host.addresses = step(|| "listing the host's addresses".into(), addresses)?;
        let mut side = HostSide {
            addresses: host.addresses.clone(),
            ports: self.open_ports.clone(),
        };
        // The first VPC brings it.
        side.addresses.insert(host_address(self.pool));
        let table = host_rules::host_table(&self.names, self.pool, &side);
        let up = uplink::up(&self.names, self.pool, table, host.prepared.take()).await;
        host.prepared = Some(step(|| "preparing the host".into(), up)?);
        Ok(side)
    }

    /// Removes what is of no VPC that is wanted or known to this process, and
    /// the host's part when there is none at all.
    async fn sweep(&self, host: &mut HostState, wanted: &BTreeSet<VpcId>) -> Result<()> {
        let mut first = None;
        // Listed before: what is made meanwhile has its slot already.
        let links = step(
            || "listing gateways".into(),
            uplink::list(&self.names).await,
        )?;
        let namespaces = self.namespaces().await?;
        let known: BTreeSet<VpcId> = self.slots().into_keys().collect();
        let keep: BTreeSet<String> = wanted
            .union(&known)
            .flat_map(|id| [self.names.igw(id), self.names.namespace(id)])
            .collect();
        for name in links.iter().filter(|name| !keep.contains(*name)) {
            let cut = uplink::cut(name).await;
            note(&mut first, step(|| format!("removing gateway {name}"), cut));
        }
        for name in namespaces.iter().filter(|name| !keep.contains(*name)) {
            let removed = remove_namespace(name).await;
            let removed = step(|| format!("removing namespace {name}"), removed);
            note(&mut first, removed);
        }
        if keep.is_empty() {
            let down = uplink::down(&self.names, self.pool).await;
            note(&mut first, step(|| "removing the host's part".into(), down));
            host.prepared = None;
        }
        first.map_or(Ok(()), Err)
    }

    /// Ends the host's connections over public addresses that have left their
    /// owners. A VPC has ended its own by then, or holds the address still.
    async fn forget(&self, state: &mut HostState, owners: &Owners) -> Result<()> {
        let host = host_address(self.pool);
        let Some(over) = state.past.outlived(self.pool, host, owners) else {
            return Ok(());
        };
        // Read before: what a VPC gives up meanwhile is gone through once more.
        let there: Vec<Hold> = (self.slots().values())
            .flat_map(|slot| lock(&slot.held).clone())
            .collect();
        step(
            || "ending the host's connections over released addresses".into(),
            conntrack::sweep(|connection| over.outlived(connection)).await,
        )?;
        state.past.settle(owners, &there);
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(f)
        .await
        .map_err(io::Error::other)?
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

#[async_trait]
impl NetworkHost for LinuxNetwork {
    async fn known(&self) -> Result<BTreeSet<VpcId>> {
        let namespaces = self.namespaces().await?;
        let vpcs = namespaces.iter().filter_map(|name| self.names.vpc_of(name));
        Ok(vpcs.chain(self.slots().into_keys()).collect())
    }

    async fn apply_vpc(&self, id: &VpcId, desired: Option<&VpcNet>) -> Result<Failed> {
        let Some(vpc) = desired else {
            self.remove(id).await?;
            return Ok(Failed::new());
        };
        // The slot first, then what it stands for: nobody takes that for a stray.
        let slot = lock(&self.vpcs).entry(id.clone()).or_default().clone();
        let mut work = slot.work.lock().await;
        let holds: BTreeSet<Hold> = holds(vpc).collect();
        lock(&slot.held).extend(holds.iter().cloned());
        let host = self.up(&holds).await?;
        self.shape(&slot, &mut work, vpc, &host).await
    }

    async fn apply_host(&self, desired: &HostNet) -> Result<()> {
        let mut host = self.host.lock().await;
        let mut first = None;
        note(&mut first, self.sweep(&mut host, &desired.vpcs).await);
        note(&mut first, self.forget(&mut host, &desired.owners).await);
        first.map_or(Ok(()), Err)
    }

    async fn apply(&self, desired: &Topology) -> Result<()> {
        let mut first = None;
        for id in self.slots().into_keys() {
            if !desired.vpcs.contains_key(&id) {
                note(&mut first, self.remove(&id).await);
            }
        }
        for (id, vpc) in &desired.vpcs {
            match self.apply_vpc(id, Some(vpc)).await {
                Ok(failed) => {
                    for error in failed.into_values() {
                        note(&mut first, Err(error));
                    }
                }
                Err(error) => note(&mut first, Err(error)),
            }
        }
        note(&mut first, self.apply_host(&desired.host()).await);
        first.map_or(Ok(()), Err)
    }

    async fn open_tap(&self, eni: &Eni) -> Result<OwnedFd> {
        let no_tap = || Error::NoTap(eni.id.to_string());
        let slot = lock(&self.vpcs).get(&eni.vpc).cloned();
        let vpc = slot.and_then(|slot| slot.applied()).ok_or_else(no_tap)?;
        let name = names::tap(&eni.id);
        let opened = vpc
            .namespace
            .run_async(move || async move { tap::open(&name) })
            .await;
        step(|| format!("opening the tap of {}", eni.id), opened)?.ok_or_else(no_tap)
    }

    async fn answering(&self, id: &VpcId) -> Result<Answering> {
        let slot = lock(&self.vpcs).get(id).cloned();
        let Some(applied) = slot.and_then(|slot| slot.applied()) else {
            return Ok(Answering::Only(BTreeSet::new()));
        };
        let vpc = applied.vpc.clone();
        let asked = applied
            .namespace
            .run_async(move || async move {
                let links = link::Netlink::connect()?.links().await?;
                arp::ask(targets(&vpc, &links))
            })
            .await;
        step(|| format!("asking the guests of {id}"), asked).map(Answering::Only)
    }

    async fn purge(&self) -> Result<()> {
        let mut first = None;
        note(&mut first, self.apply(&Topology::default()).await);
        self.host.lock().await.past = Past::default();
        let key = match std::fs::remove_file(&self.key_file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
        let key = step(|| "removing the metadata service's key".into(), key);
        note(&mut first, key);
        first.map_or(Ok(()), Err)
    }
}
