//! Registers the images that lie in the images folder.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use async_trait::async_trait;

use crate::{
    images,
    model::{Image, ImageId, Instance, InstanceState, Reservation, Scope},
    reconcile::{
        Controller, Requeue,
        queue::{Singleton, Wake},
    },
    store::{Change, Changed, Db, View},
};

/// How often the folder is looked at: nothing tells when a file is put there.
const LOOK: Duration = Duration::from_secs(10);

/// The images of this host.
pub struct ImageController {
    db: Db,
    folder: PathBuf,
    /// The owner, in each region: an image is in all of them.
    scopes: Vec<Scope>,
    /// What was verified: a folder that can't be written keeps no record.
    known: Arc<Mutex<images::Known>>,
    /// The problems already told, so that the log has each once.
    told: Mutex<BTreeSet<String>>,
}

impl ImageController {
    /// A controller of the images in this folder, in each of these scopes.
    pub fn new(db: Db, folder: PathBuf, scopes: Vec<Scope>) -> Self {
        Self {
            db,
            folder,
            scopes,
            known: Arc::default(),
            told: Mutex::default(),
        }
    }

    fn tell(&self, problems: &[images::Problem]) {
        let lines: BTreeSet<String> = problems
            .iter()
            .map(|p| format!("{}: {}", p.manifest.display(), p.what))
            .collect();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for line in lines.difference(&told) {
            tracing::warn!(problem = line, "an image can't be used");
        }
        *told = lines;
    }
}

#[async_trait]
impl Controller for ImageController {
    type Key = Singleton;

    fn name(&self) -> &'static str {
        "images"
    }

    /// It reads whole disks when they are new.
    fn deadline(&self) -> Duration {
        Duration::from_secs(3600)
    }

    async fn all(&self) -> anyhow::Result<BTreeSet<Singleton>> {
        Ok([Singleton].into())
    }

    fn concerned(&self, _: &View, _: &Changed) -> Vec<Wake<Singleton>> {
        Vec::new()
    }

    async fn step(&self, _: &Singleton) -> anyhow::Result<Requeue> {
        let folder = self.folder.clone();
        let Some(scope) = self.scopes.first().cloned() else {
            return Ok(Requeue::Idle);
        };
        let known = Arc::clone(&self.known);
        let scan = tokio::task::spawn_blocking(move || {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            images::scan(&folder, &scope, &mut known)
        })
        .await
        .context("the scan of the images panicked")?
        .context("scanning the images")?;
        self.tell(&scan.problems);
        let done = self
            .db
            .transact_infallible(|view, change| {
                let in_scope = |image: &Image, scope: &Scope| Image {
                    scope: scope.clone(),
                    ..image.clone()
                };
                for scope in &self.scopes {
                    for image in scan.images.iter().map(|image| in_scope(image, scope)) {
                        let known = view.at(scope).get::<Image>(&image.id);
                        let as_it_is = known == Some(&image) || view.is_unreadable(&image);
                        let write = |change: &mut Change<'_>| change.overwrite(&image);
                        if !as_it_is && change.attempt(write).is_none() {
                            return false;
                        }
                    }
                }
                if scan.more {
                    // What isn't verified yet may be one of those.
                    return true;
                }
                let there: BTreeSet<&ImageId> = scan.images.iter().map(|i| &i.id).collect();
                // A first boot still needs its image's disk, and the instances of
                // an older hearth boot by its manifest.
                let needed: BTreeSet<&ImageId> = view
                    .all::<Instance>()
                    .filter(|i| i.state != InstanceState::Terminated)
                    .filter(|i| i.boot.is_none() || i.boots <= 1)
                    .map(|i| &i.image)
                    .collect();
                let pending = view.by(Reservation::PENDING, "");
                let pending = pending.filter_map(|reservation| reservation.pending.as_ref());
                let launching: BTreeSet<&ImageId> = pending.map(|launch| &launch.image).collect();
                let own = self.scopes.iter().flat_map(|s| view.at(s).all::<Image>());
                for image in own.filter(|image| !launching.contains(&image.id)) {
                    let stays = there.contains(&image.id) || needed.contains(&image.id);
                    let delete = |change: &mut Change<'_>| change.delete_tagged(image);
                    if !stays && change.attempt(delete).is_none() {
                        return false;
                    }
                }
                true
            })
            .await?;
        Ok(if scan.more || !done {
            Requeue::Now
        } else {
            Requeue::After(LOOK)
        })
    }
}
