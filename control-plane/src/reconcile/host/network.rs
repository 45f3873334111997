//! Keeps this host's network as the view wants it, VPC by VPC.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use async_trait::async_trait;
use tokio::{sync::broadcast, time::Instant};

use crate::{
    compute::trace::Trace,
    model::{Eni, EniId, Hosts, Instance, SecurityGroup, Subnet, Vpc, VpcId},
    network::{HostNet, NetworkHost, VpcNet, plan},
    reconcile::{
        Controller, Requeue, Slots,
        queue::{Kind, Wake},
    },
    store::{Changed, Db, View},
};

/// How long the host's network is taken on trust before it is gone through
/// again, though nothing is desired anew: less than the queue's resync, so that
/// rules that another program took away are back after one.
const TRUST: Duration = Duration::from_secs(20);

/// What is worked on at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// One VPC.
    Vpc(VpcId),
    /// What no VPC has for itself.
    Host,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vpc(id) => id.fmt(f),
            Self::Host => f.write_str("host"),
        }
    }
}

/// Why the network is not as it should be: whoever waited for the same try gets
/// the same error.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct NetworkError(String);

impl NetworkError {
    fn of(error: impl Into<anyhow::Error>) -> Self {
        Self(format!("{:#}", error.into()))
    }
}

/// The interfaces that are not as they should be, each with the reason.
type Failed = BTreeMap<EniId, NetworkError>;

/// What became of a try, and the state that it made.
struct Done<T> {
    /// The number of the last try.
    number: u64,
    result: Result<Failed, NetworkError>,
    /// What was applied, and when, if that went well.
    applied: Option<(T, Instant)>,
}

/// A VPC, or the host's own part. One try at a time, so that an older picture is
/// never applied after a newer one.
struct Part<T> {
    /// How many tries were begun.
    begun: AtomicU64,
    done: tokio::sync::Mutex<Done<T>>,
}

impl<T> Default for Part<T> {
    fn default() -> Self {
        Self {
            begun: AtomicU64::new(0),
            done: tokio::sync::Mutex::new(Done {
                number: 0,
                result: Ok(Failed::new()),
                applied: None,
            }),
        }
    }
}

impl<T: PartialEq> Part<T> {
    /// Brings it to what `desired` says when its turn comes; whoever waits
    /// meanwhile shares what comes of that.
    async fn ensure<F>(
        &self,
        desired: impl FnOnce() -> T,
        apply: impl FnOnce(Arc<T>) -> F,
    ) -> Result<Failed, NetworkError>
    where
        F: Future<Output = Result<Failed, NetworkError>>,
    {
        let before = self.begun.load(Ordering::SeqCst);
        let mut done = self.done.lock().await;
        if done.number > before {
            return done.result.clone();
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let desired = Arc::new(desired());
        if let Some((applied, at)) = &done.applied
            && *applied == *desired
            && at.elapsed() < TRUST
        {
            done.number = number;
            return Ok(Failed::new());
        }
        // Should this be cut short, nothing is known.
        done.applied = None;
        let result = apply(Arc::clone(&desired)).await;
        done.number = number;
        done.result = result.clone();
        if let (Ok(failed), Some(desired)) = (&result, Arc::into_inner(desired))
            && failed.is_empty()
        {
            done.applied = Some((desired, Instant::now()));
        }
        result
    }
}

/// The network of this host.
pub struct NetworkController {
    db: Db,
    hosts: Hosts,
    network: Arc<dyn NetworkHost>,
    slots: Slots,
    vpcs: Mutex<BTreeMap<VpcId, Arc<Part<Option<VpcNet>>>>>,
    own: Part<HostNet>,
    events: broadcast::Sender<Key>,
}

impl NetworkController {
    /// A controller that has applied nothing yet.
    pub fn new(db: Db, hosts: Hosts, network: Arc<dyn NetworkHost>, slots: Slots) -> Self {
        Self {
            db,
            hosts,
            network,
            slots,
            vpcs: Mutex::default(),
            own: Part::default(),
            events: broadcast::Sender::new(16),
        }
    }

    fn vpcs(&self) -> MutexGuard<'_, BTreeMap<VpcId, Arc<Part<Option<VpcNet>>>>> {
        // It holds nothing that a panic could leave half-done.
        self.vpcs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings this interface, with its VPC, to what the view wants by now, and
    /// with it what the host has for it; opens its tap for a VMM. How long each of
    /// these took is in the trace.
    ///
    /// # Errors
    /// When its VPC as a whole, this interface, or the host's own part could not
    /// be brought there; other interfaces and VPCs are no matter.
    pub async fn tap(&self, eni: &Eni, trace: &Trace) -> Result<OwnedFd, NetworkError> {
        if self.network.has_packets() {
            let step = trace.begin("network: its VPC");
            let mut failed = self.ensure_vpc(&eni.vpc).await?;
            if let Some(error) = failed.remove(&eni.id) {
                return Err(error);
            }
            drop(step);
            let _step = trace.begin("network: the host's part");
            self.ensure_host().await?;
        }
        let _step = trace.begin("tap opened");
        let open = self.slots.run(Kind::Look, self.network.open_tap(eni));
        let open = open.await.map_err(NetworkError::of)?;
        open.map_err(NetworkError::of)
    }

    async fn ensure_vpc(&self, id: &VpcId) -> Result<Failed, NetworkError> {
        if plan::is_unclear(&self.db.view(), id) {
            // What seems to be gone may only be unreadable: all stays as it is.
            return Err(NetworkError(format!("records of {id} can't be read")));
        }
        let part = Arc::clone(self.vpcs().entry(id.clone()).or_default());
        let desired = || plan::vpc(&self.db.view(), &self.hosts, id);
        let apply = async |desired: Arc<Option<VpcNet>>| {
            let applied = self.network.apply_vpc(id, Option::as_ref(&desired));
            let failed = self.slots.run(Kind::Network, applied).await;
            let failed = failed.map_err(NetworkError::of)?;
            // Addresses may have gone from one to another with that.
            let _ = self.events.send(Key::Host);
            let failed = failed.map_err(NetworkError::of)?.into_iter();
            Ok(failed.map(|(id, e)| (id, NetworkError::of(e))).collect())
        };
        part.ensure(desired, apply).await
    }

    async fn ensure_host(&self) -> Result<(), NetworkError> {
        if plan::is_unclear_anywhere(&self.db.view()) {
            // Nothing is swept away meanwhile; what is new can be made all the same.
            tracing::warn!("records can't be read: what no record knows stays on this host");
            return Ok(());
        }
        let desired = || plan::host_net(&self.db.view(), &self.hosts);
        let apply = async |desired: Arc<HostNet>| {
            let applied = self.network.apply_host(&desired);
            let applied = self.slots.run(Kind::Network, applied).await;
            applied
                .map_err(NetworkError::of)?
                .map_err(NetworkError::of)?;
            Ok(Failed::new())
        };
        self.own.ensure(desired, apply).await.map(|_| ())
    }

    async fn step_vpc(&self, id: &VpcId) -> anyhow::Result<()> {
        if plan::is_unclear(&self.db.view(), id) {
            tracing::warn!(vpc = %id, "records of it can't be read: it stays as it is");
            return Ok(());
        }
        let failed = self.ensure_vpc(id).await.with_context(|| id.to_string())?;
        if plan::vpc(&self.db.view(), &self.hosts, id).is_none() {
            // Whoever holds it just now keeps it; the next resync finds it.
            self.vpcs()
                .retain(|known, part| known != id || Arc::strong_count(part) > 1);
        }
        match failed.into_iter().next() {
            Some((eni, error)) => Err(anyhow!(error).context(eni.to_string())),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Controller for NetworkController {
    type Key = Key;

    fn name(&self) -> &'static str {
        "network"
    }

    /// Whoever waits for a VPC that hangs waits for as many tries.
    fn deadline(&self) -> Duration {
        Duration::from_secs(600)
    }

    async fn all(&self) -> anyhow::Result<BTreeSet<Key>> {
        if !self.network.has_packets() {
            return Ok(BTreeSet::new());
        }
        let there = self.slots.run(Kind::Look, self.network.known()).await?;
        let there = there.context("looking for VPCs")?;
        let wanted = plan::host_net(&self.db.view(), &self.hosts).vpcs;
        let known = self.vpcs().keys().cloned().collect::<Vec<_>>();
        let vpcs = wanted.into_iter().chain(there).chain(known).map(Key::Vpc);
        Ok(vpcs.chain([Key::Host]).collect())
    }

    fn concerned(&self, view: &View, changed: &Changed) -> Vec<Wake<Key>> {
        if !self.network.has_packets() {
            return Vec::new();
        }
        let mut vpcs: BTreeSet<VpcId> = BTreeSet::new();
        let mut gone = false;
        let mut add = |vpc: Option<VpcId>| match vpc {
            Some(vpc) => drop(vpcs.insert(vpc)),
            // Which VPC it was in is not told.
            None => gone = true,
        };
        for eni in changed.of::<Eni>(view) {
            add(eni.ok().map(|eni| eni.vpc.clone()));
        }
        for group in changed.of::<SecurityGroup>(view) {
            add(group.ok().map(|group| group.vpc.clone()));
        }
        // One that is gone had ended before.
        for instance in changed.there::<Instance>(view) {
            add(Some(instance.vpc.clone()));
        }
        for subnet in changed.of::<Subnet>(view) {
            add(subnet.ok().map(|subnet| subnet.vpc.clone()));
        }
        for vpc in changed.of::<Vpc>(view) {
            add(vpc.ok().map(|vpc| vpc.id.clone()));
        }
        let known = self.vpcs().keys().cloned().collect::<Vec<_>>();
        if gone {
            vpcs.extend(known);
        }
        if vpcs.is_empty() {
            return Vec::new();
        }
        let vpcs = vpcs.into_iter().map(|id| Wake::Changed(Key::Vpc(id)));
        vpcs.chain([Wake::News(Key::Host)]).collect()
    }

    async fn step(&self, key: &Key) -> anyhow::Result<Requeue> {
        match key {
            Key::Vpc(id) => self.step_vpc(id).await?,
            Key::Host => self.ensure_host().await?,
        }
        Ok(Requeue::Idle)
    }

    fn events(&self) -> Option<broadcast::Receiver<Key>> {
        Some(self.events.subscribe())
    }
}
