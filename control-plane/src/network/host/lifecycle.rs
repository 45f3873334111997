//! A VPC's life on the host: brought up, taken over from an earlier process, brought
//! to what is desired since, removed.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use super::netns::{self, Namespace};
use super::services::Services;
use super::{LinuxNetwork, Wire, blocking, link, lock, nft, step, uplink, vpc};
use crate::model::VpcId;
use crate::network::plan::connections::{Hold, holds};
use crate::network::plan::nft::{Table, difference, replace};
use crate::network::plan::{HostSide, rules};
use crate::network::{Error, Failed, Result, VpcNet, names};

/// A VPC as this process has brought it up or taken it over.
pub(super) struct Applied {
    pub(super) namespace: Namespace,
    pub(super) vpc: VpcNet,
    pub(super) table: Table,
    pub(super) generation: Option<nft::Generation>,
}

/// What this process knows of a VPC. It is there before anything of the VPC is.
#[derive(Default)]
pub(super) struct Slot {
    /// Held while the VPC is worked on.
    pub(super) work: tokio::sync::Mutex<Work>,
    /// What it was last brought to: what others read while it is worked on.
    pub(super) applied: Mutex<Option<Arc<Applied>>>,
    /// Whom its rules may lead to: while it is worked on, or when that failed,
    /// those of before and those of after.
    pub(super) held: Mutex<BTreeSet<Hold>>,
}

/// What only the one who works on a VPC needs.
#[derive(Default)]
pub(super) struct Work {
    pub(super) services: Option<Services>,
    /// Whether the last try failed: what there is, is not known then.
    pub(super) unsure: bool,
    /// Whether what was tracked before this process has been gone through.
    pub(super) gone_through: bool,
}

impl Slot {
    pub(super) fn applied(&self) -> Option<Arc<Applied>> {
        lock(&self.applied).clone()
    }
}

impl LinuxNetwork {
    /// Makes the VPC what is desired, from its namespace on.
    pub(super) async fn shape(
        &self,
        slot: &Slot,
        work: &mut Work,
        vpc: &VpcNet,
        host: &HostSide,
    ) -> Result<Failed> {
        let name = self.names.namespace(&vpc.id);
        let wire = Wire::new(&vpc.id, self.pool);
        // What fails is done anew the next time, the rules included.
        let known = slot.applied().filter(|_| !work.unsure);
        work.unsure = true;
        let found = {
            let name = name.clone();
            blocking(move || Namespace::open(&name)).await
        };
        let found = step(|| format!("opening namespace {name}"), found)?;
        let (namespace, known) = match found {
            Some(namespace) => (namespace, known),
            // Somebody took it away: begin anew.
            None => {
                work.services = None;
                let made = {
                    let name = name.clone();
                    blocking(move || Namespace::create(&name)).await
                };
                let made = step(|| format!("making namespace {name}"), made)?;
                lock(&slot.held).retain(|hold| !hold.has_ended(vpc));
                work.gone_through = true;
                (made, None)
            }
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
        // An address that comes has no past here: whose it was before, if
        // anybody's, has been forgotten when it left.
        let left = !work.gone_through || lock(&slot.held).iter().any(|h| h.has_ended(vpc));
        let shaped = {
            let (vpc, wire) = (vpc.clone(), wire.clone());
            // Who has been at the rules may have been at the rest too.
            let before = (known.as_ref().filter(|_| !brought.replaced)).map(|k| k.vpc.clone());
            namespace
                .run_async(
                    move || async move { vpc::shape(&vpc, &wire, before.as_ref(), left).await },
                )
                .await
        };
        let mut shaped = step(|| format!("shaping the namespace of {}", vpc.id), shaped)?;
        if !work.gone_through {
            // Whom it has led to until now, nobody here knows.
            self.host.lock().await.past.unknown();
            work.gone_through = true;
        }
        *lock(&slot.held) = holds(vpc).collect();
        if work.services.is_none() {
            let started = Services::start(&namespace, vpc, &self.shared).await;
            let started = step(|| format!("starting the services of {}", vpc.id), started)?;
            work.services = Some(started);
        }
        if let Some(services) = &mut work.services {
            let served = services.update(&namespace, vpc, &shaped.taps, &self.shared);
            shaped.failed.extend(served.await);
        }
        let mut vpc = vpc.clone();
        vpc.interfaces
            .retain(|id, _| !shaped.failed.contains_key(id));
        *lock(&slot.applied) = Some(Arc::new(Applied {
            namespace,
            vpc,
            table,
            generation: brought.generation,
        }));
        work.unsure = false;
        let failed = shaped.failed.into_iter().map(|(id, error)| {
            let what = format!("connecting {id}");
            (id, Error::host(what, error))
        });
        Ok(failed.collect())
    }

    /// Removes a VPC from the host.
    pub(super) async fn remove(&self, id: &VpcId) -> Result<()> {
        let slot = lock(&self.vpcs).entry(id.clone()).or_default().clone();
        let mut work = slot.work.lock().await;
        work.services = None;
        *lock(&slot.applied) = None;
        let cut = uplink::cut(&self.names.igw(id)).await;
        step(|| format!("removing the gateway of {id}"), cut)?;
        let name = self.names.namespace(id);
        let removed = remove_namespace(&name).await;
        step(|| format!("removing namespace {name}"), removed)?;
        lock(&slot.held).clear();
        drop(work);
        // Whoever waits for this one's slot comes after it, and keeps it.
        lock(&self.vpcs).retain(|known, slot| known != id || Arc::strong_count(slot) > 2);
        Ok(())
    }
}

/// Removes a namespace with its taps: a VMM that still has one open would keep
/// it, and with it the namespace, alive unseen.
pub(super) async fn remove_namespace(name: &str) -> io::Result<()> {
    let opened = {
        let name = name.to_owned();
        blocking(move || Namespace::open(&name)).await?
    };
    if let Some(namespace) = opened {
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
    let name = name.to_owned();
    blocking(move || netns::delete(&name)).await
}
