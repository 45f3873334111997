//! Keeps guests from filling this host's disk.
//!
//! Volumes are thin, and the store lies on the same file system. So free space is
//! looked at, the oftener the less there is, and at the low mark
//! ([`crate::storage::Pressure`]) what is there for speed alone goes, and if that isn't
//! enough, instances whose volumes grow are paused; they go on when there is room again. New volumes are refused meanwhile: the host's
//! record says that it has nothing to give.
//!
//! A loop of its own and no [`super::super::Controller`]: it must keep its time
//! whatever the others wait for, and writes no record itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    compute::Pausable,
    model::{Host, HostId, InstanceId, Volume, VolumeId},
    storage::{Pressure, Space, host::HostStorage},
    store::{Db, View},
};

/// The fastest that guests are thought to write, in bytes a second: free space
/// above the low mark is looked at again before they could have used it.
const FASTEST: u64 = 4 << 30;
/// How often it is looked at least and most.
const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How often the host's record is written at most.
const TELLS: Duration = Duration::from_millis(500);
/// How much a volume may grow between two looks without counting as one that
/// grows, in bytes: a log line now and then is no reason to pause a guest.
const STILL: u64 = 1 << 20;

/// The guard of one host's disk.
pub struct DiskGuard {
    /// Desired state.
    pub db: Db,
    /// This host.
    pub host: HostId,
    /// The volumes.
    pub storage: Arc<HostStorage>,
    /// Who writes to them.
    pub writers: Arc<dyn Pausable>,
    /// Disk promised for each byte that is free.
    pub overcommit: f64,
}

/// Whom to pause, and whom to let go on.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    pause: BTreeSet<InstanceId>,
    resume: BTreeSet<InstanceId>,
}

/// What to do about `writers`, each with how many bytes its volumes grew since the
/// last look, of which some are `paused`. Pure.
fn plan(
    pressure: Pressure,
    writers: &BTreeMap<InstanceId, u64>,
    paused: &BTreeSet<InstanceId>,
) -> Plan {
    let pause = |least: u64| {
        writers
            .iter()
            .filter(|(id, grown)| **grown >= least && !paused.contains(*id))
            .map(|(id, _)| id.clone())
            .collect()
    };
    match pressure {
        Pressure::None => Plan {
            resume: paused.clone(),
            ..Plan::default()
        },
        Pressure::Some => Plan::default(),
        Pressure::Low => Plan {
            pause: pause(STILL),
            ..Plan::default()
        },
        Pressure::Critical => Plan {
            pause: pause(0),
            ..Plan::default()
        },
    }
}

/// When to look again.
fn pause_after(available: u64, reserve: u64) -> Duration {
    let until_low = available.saturating_sub(reserve);
    let micros = until_low.saturating_mul(1000) / (FASTEST / 1000);
    Duration::from_micros(micros).clamp(LOOKS.0, LOOKS.1)
}

/// Whether the record's figure is off enough to be written again: a GiB or a
/// twentieth, or when it becomes or ceases to be nothing.
fn differs(recorded: u64, now: u64) -> bool {
    recorded != now
        && ((recorded == 0) != (now == 0) || recorded.abs_diff(now) > (recorded / 20).max(1))
}

/// What the volumes of each instance on this host take, in bytes.
fn by_instance(
    view: &View,
    host: &HostId,
    allocated: &BTreeMap<VolumeId, u64>,
) -> BTreeMap<InstanceId, u64> {
    let mut sums = BTreeMap::new();
    for volume in view.all::<Volume>() {
        if volume.host.as_ref() == Some(host)
            && let Some(attachment) = &volume.attachment
        {
            let bytes = allocated.get(&volume.id).copied().unwrap_or(0);
            *sums.entry(attachment.instance.clone()).or_default() += bytes;
        }
    }
    sums
}

impl DiskGuard {
    /// Guards until `shutdown` is true. Instances that are paused then stay so
    /// until the next `hearth` lets them go on.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) {
        let (seen, last_seen) = watch::channel(None);
        tokio::select! {
            () = self.guard(&seen) => {}
            () = self.tell(last_seen) => {}
            _ = shutdown.wait_for(|s| *s) => {}
        }
    }

    /// Keeps guests from filling the disk, and leaves in `seen` what it found.
    async fn guard(&self, seen: &watch::Sender<Option<Space>>) {
        let reserve = self.storage.reserve();
        let mut before = BTreeMap::new();
        loop {
            let pause = match self.look(reserve, &mut before).await {
                Ok(space) => {
                    let pause = pause_after(space.available, reserve);
                    seen.send_replace(Some(space));
                    pause
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the disk can't be guarded");
                    Duration::from_secs(1)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Looks once and acts; gives what there is of space. `before` is what the
    /// instances' volumes took at the last look.
    async fn look(
        &self,
        reserve: u64,
        before: &mut BTreeMap<InstanceId, u64>,
    ) -> anyhow::Result<Space> {
        let mut space = self.storage.space().await?;
        while Pressure::of(space.available, reserve) >= Pressure::Low && self.gives_way().await {
            space = self.storage.space().await?;
        }
        let pressure = Pressure::of(space.available, reserve);
        // A file of each instance.
        let writers = Arc::clone(&self.writers);
        let paused = tokio::task::spawn_blocking(move || writers.paused()).await??;
        // Far from the mark nobody need be looked at one by one.
        if pressure > Pressure::None || !paused.is_empty() {
            let taken = by_instance(
                &self.db.view(),
                &self.host,
                &self.storage.allocated().await?,
            );
            let grown = taken
                .iter()
                .map(|(id, now)| {
                    let then = before.get(id).unwrap_or(now);
                    (id.clone(), now.saturating_sub(*then))
                })
                .collect();
            *before = taken;
            self.carry_out(plan(pressure, &grown, &paused), &space, reserve);
        }
        Ok(space)
    }

    /// Has what is there for speed alone make room; false: there is nothing more of it.
    async fn gives_way(&self) -> bool {
        let writers = Arc::clone(&self.writers);
        let gave = tokio::task::spawn_blocking(move || writers.give_way()).await;
        let gave = gave.map_err(std::io::Error::from).flatten();
        gave.unwrap_or_else(|error| {
            tracing::warn!(%error, "templates can't make room");
            false
        })
    }

    /// Has the host's record follow what was `seen`. Beside the guard: a commit waits
    /// for the very disk that a guest fills, and meanwhile that guest must be paused.
    async fn tell(&self, mut seen: watch::Receiver<Option<Space>>) {
        let reserve = self.storage.reserve();
        while seen.changed().await.is_ok() {
            let Some(mut space) = *seen.borrow_and_update() else {
                continue;
            };
            // Room was set aside for it, as for volumes. A folder of each instance, on a disk
            // that may be slow.
            let writers = Arc::clone(&self.writers);
            let kept = tokio::task::spawn_blocking(move || writers.kept_bytes()).await;
            let kept = kept
                .map_err(std::io::Error::from)
                .flatten()
                .unwrap_or_else(|error| {
                    tracing::warn!(%error, "what the memory of instances takes can't be told");
                    0
                });
            space.allocated = space.allocated.saturating_add(kept);
            let gib = space.capacity_gib(reserve, self.overcommit);
            if let Err(error) = self.record(gib).await {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the host's free space can't be told"
                );
            }
            tokio::time::sleep(TELLS).await;
        }
    }

    fn carry_out(&self, plan: Plan, space: &Space, reserve: u64) {
        let (free_mib, reserve_mib) = (space.available >> 20, reserve >> 20);
        for id in plan.pause {
            match self.writers.set_paused(&id, true) {
                Ok(()) => tracing::warn!(
                    instance = %id, free_mib, reserve_mib,
                    "the disk is nearly full: the instance is paused until there is room again"
                ),
                Err(error) => {
                    tracing::error!(instance = %id, %error, "an instance that fills the disk can't be paused");
                }
            }
        }
        for id in plan.resume {
            match self.writers.set_paused(&id, false) {
                Ok(()) => {
                    tracing::warn!(instance = %id, free_mib, "there is room again: the instance goes on");
                }
                Err(error) => tracing::error!(instance = %id, %error, "a paused instance is stuck"),
            }
        }
    }

    /// Has the host's record say what it can give.
    async fn record(&self, disk_gib: u64) -> anyhow::Result<()> {
        let off = |view: &View| {
            view.shared::<Host>(&self.host.0)
                .is_some_and(|h| differs(h.disk_gib, disk_gib))
        };
        if !off(&self.db.view()) {
            return Ok(());
        }
        self.db
            .transact_infallible(|view, change| {
                if let Some(host) = view.shared::<Host>(&self.host.0) {
                    change.update(
                        host,
                        &Host {
                            disk_gib,
                            ..host.clone()
                        },
                    );
                }
            })
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::samples;

    #[test]
    fn who_grows_is_paused_first_and_all_go_on_together() {
        let id = |n| InstanceId::from_random(n);
        let writers = BTreeMap::from([(id(1), 0), (id(2), 8 << 20), (id(3), STILL - 1)]);
        let none = BTreeSet::new();
        let both = BTreeSet::from([id(2), id(3)]);
        let pause = |ids: &[u128]| Plan {
            pause: ids.iter().map(|n| id(*n)).collect(),
            ..Plan::default()
        };
        for (pressure, paused, expected) in [
            (Pressure::None, &none, Plan::default()),
            (Pressure::Some, &none, Plan::default()),
            (Pressure::Low, &none, pause(&[2])),
            (Pressure::Low, &both, Plan::default()),
            (Pressure::Critical, &none, pause(&[1, 2, 3])),
            (Pressure::Critical, &both, pause(&[1])),
            (Pressure::Some, &both, Plan::default()),
            (
                Pressure::None,
                &both,
                Plan {
                    resume: both.clone(),
                    ..Plan::default()
                },
            ),
        ] {
            assert_eq!(plan(pressure, &writers, paused), expected, "{pressure:?}");
        }
    }

    #[test]
    fn it_looks_the_oftener_the_less_there_is() {
        assert_eq!(pause_after(0, 1 << 30), LOOKS.0);
        assert_eq!(pause_after(1 << 30, 1 << 30), LOOKS.0);
        let second = pause_after((1 << 30) + FASTEST, 1 << 30);
        assert!(second.abs_diff(Duration::from_secs(1)) < Duration::from_millis(1));
        assert_eq!(pause_after(u64::MAX, 0), LOOKS.1);
    }

    #[test]
    fn small_changes_are_not_written() {
        for (recorded, now, off) in [
            (100, 100, false),
            (100, 105, false),
            (100, 106, true),
            (10, 9, false),
            (10, 8, true),
            (1, 0, true),
            (0, 1, true),
            (0, 0, false),
        ] {
            assert_eq!(differs(recorded, now), off, "{recorded} {now}");
        }
    }

    #[test]
    fn only_volumes_on_this_host_count() {
        let here = HostId("here".into());
        let on = |n, host: Option<&HostId>| Volume {
            host: host.cloned(),
            ..samples::volume(n)
        };
        let there = HostId("there".into());
        let view = View::default()
            .with(on(1, Some(&here)))
            .with(on(2, Some(&there)))
            .with(on(3, None));
        let allocated = (1..=3).map(|n| (samples::volume(n).id, 7)).collect();
        assert_eq!(
            by_instance(&view, &here, &allocated),
            [(InstanceId::from_random(1), 7)].into()
        );
    }
}
