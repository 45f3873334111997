//! A launch: the disk and the interfaces, and the VMM on them.

use std::{os::fd::OwnedFd, path::PathBuf};

use anyhow::Context as _;
use futures_util::{TryFutureExt as _, future::try_join};
use jiff::Timestamp;

use super::{InstanceController, record};
use crate::{
    compute::{CloneOf, ComputeError, DiskSpec, LaunchSpec, NicSpec, trace::Trace},
    images,
    model::{BootMethod, Image, Instance, InstanceType, StateReason, Volume},
    reconcile::queue::Kind,
    storage::{Source, VolumeSpec},
    store::View,
};

/// The MTU of an instance's interface, in bytes.
const MTU: u16 = 1500;

/// Why a launch failed.
pub(super) enum LaunchError {
    /// Trying again may help.
    Passing(anyhow::Error),
    /// It won't.
    Final(StateReason),
}

impl<E: Into<anyhow::Error>> From<E> for LaunchError {
    fn from(error: E) -> Self {
        Self::Passing(error.into())
    }
}

impl InstanceController {
    /// Network and disk side by side, then the VMM.
    pub(super) async fn launch(&self, view: &View, instance: &Instance) -> Result<(), LaunchError> {
        let lost = |what: &str| LaunchError::Final(StateReason::internal_error(what));
        let kind = InstanceType::find(&instance.instance_type)
            .ok_or_else(|| lost("Its instance type is gone"))?;
        let boot_method = boot_method(view, instance).ok_or_else(|| lost("Its image is gone"))?;
        let trace = Trace::of(instance.launched_at);
        trace.add(
            "call taken, placed and picked up",
            instance.launched_at,
            Timestamp::now(),
        );
        let ((root, source), (nics, taps)) = try_join(
            async {
                let _step = trace.begin("root volume");
                self.root_volume(view, instance).await
            },
            self.interfaces(view, instance, &trace),
        )
        .await?;
        let spec = LaunchSpec {
            instance: instance.id.clone(),
            boot: instance.boots,
            instance_type: instance.instance_type.clone(),
            vcpus: kind.vcpus,
            memory_mib: kind.memory_mib,
            boot_method,
            disks: vec![DiskSpec {
                volume: instance.root_volume.clone(),
                path: root,
                read_only: false,
            }],
            nics,
            resume: instance.hibernated,
            clone_of: source.map(|Source { image, path }| {
                let found = view.at(&instance.scope).visible::<Image>(&image);
                let is_warm = found.is_some_and(|image| image.manifest.warm);
                let account = &instance.scope.account;
                Box::new(CloneOf {
                    image,
                    path,
                    warm_for: is_warm.then(|| account.clone()),
                })
            }),
            trace,
        };
        let launch = self.compute.launch(&spec, taps);
        match self.slots.run(Kind::Launch, launch).await? {
            Ok(()) => Ok(()),
            Err(ComputeError::Unbootable(why)) => {
                Err(LaunchError::Final(StateReason::client_error(&why)))
            }
            Err(ComputeError::Refused(why)) => {
                tracing::warn!(instance = %instance.id, why, "the VMM refused to start");
                Err(lost("Internal error on launch"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Its interfaces with their taps, made and open.
    async fn interfaces(
        &self,
        view: &View,
        instance: &Instance,
        trace: &Trace,
    ) -> Result<(Vec<NicSpec>, Vec<OwnedFd>), LaunchError> {
        let mut nics = Vec::new();
        let mut taps = Vec::new();
        for eni in record::interfaces(view, instance) {
            let tap = self.network.tap(eni, trace).await;
            taps.push(tap.context("making a tap")?);
            nics.push(NicSpec {
                eni: eni.id.clone(),
                mac: eni.mac,
                mtu: MTU,
            });
        }
        Ok((nics, taps))
    }

    /// The root volume's file: a clone of the image at the first boot. Later it
    /// must be there, for a new clone would pass for the user's data; its image is
    /// not needed any more then.
    async fn root_volume(
        &self,
        view: &View,
        instance: &Instance,
    ) -> Result<(PathBuf, Option<Source>), LaunchError> {
        let lost = |what: &str| LaunchError::Final(StateReason::internal_error(what));
        let own = view.at(&instance.scope);
        let volume = own
            .get::<Volume>(&instance.root_volume)
            .filter(|v| {
                v.attachment
                    .as_ref()
                    .is_some_and(|a| a.instance == instance.id)
            })
            .ok_or_else(|| lost("Its root volume is lost"))?;
        let source = if instance.boots > 1 {
            let holds = self.slots.run(Kind::Look, self.storage.holds(&volume.id));
            if !holds.await?.context("looking for its root volume")? {
                return Err(lost("Its root volume is lost"));
            }
            None
        } else {
            let image = own
                .visible::<Image>(&instance.image)
                .ok_or_else(|| lost("Its image is gone"))?;
            Some(Source {
                image: image.id.clone(),
                path: images::disk_path(&self.config.images_dir, image),
            })
        };
        let spec = VolumeSpec {
            id: volume.id.clone(),
            size_bytes: u64::from(volume.size_gib) << 30,
            source,
        };
        let made = self
            .storage
            .ensure_volume(&spec)
            .map_err(anyhow::Error::from);
        let made = self.slots.run(Kind::Disk, made).await?;
        Ok((made.context("making its root volume")?, spec.source))
    }
}

/// How it boots: as its image said when it was launched.
fn boot_method(view: &View, instance: &Instance) -> Option<BootMethod> {
    let own = view.at(&instance.scope);
    let image = || own.visible::<Image>(&instance.image);
    let boot = instance.boot.as_ref();
    boot.or_else(|| image().map(|i| &i.manifest.boot)).cloned()
}
