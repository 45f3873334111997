//! What the service knows of an instance.

use std::collections::BTreeMap;

use base64::Engine as _;

use crate::model::{Eni, Instance, InstanceId, Reservation, SecurityGroup, Subnet, Volume, Vpc};
use crate::store::View;

/// One interface with its surroundings.
#[derive(Debug, Clone)]
pub struct Nic {
    /// The interface.
    pub eni: Eni,
    /// Its subnet.
    pub subnet: Subnet,
    /// Its VPC.
    pub vpc: Vpc,
    /// The names of its groups.
    pub group_names: Vec<String>,
}

/// Everything that an instance's documents are made from.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The instance.
    pub instance: Instance,
    /// Its interfaces, the primary first.
    pub nics: Vec<Nic>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// The device names of its volumes other than the root, by volume id.
    pub disks: BTreeMap<String, String>,
    /// User data in base64, as it was given.
    pub user_data: Option<String>,
    /// The region's name.
    pub region: String,
}

impl Facts {
    /// Reads them from the view; `None` for an instance that isn't there.
    pub fn read(view: &View, id: &InstanceId, region: &str) -> Option<Self> {
        let instance = view.find::<Instance>(id)?.clone();
        let view = view.at(&instance.scope);
        let nics = instance.enis.iter().filter_map(|eni| {
            let eni = view.get::<Eni>(eni)?.clone();
            let names = eni.groups.iter();
            let names = names.filter_map(|id| Some(view.get::<SecurityGroup>(id)?.name.clone()));
            Some(Nic {
                subnet: view.get::<Subnet>(&eni.subnet)?.clone(),
                vpc: view.get::<Vpc>(&eni.vpc)?.clone(),
                group_names: names.collect(),
                eni,
            })
        });
        let nics = nics.collect();
        let disks = view
            .by(Volume::BY_INSTANCE, id.as_str())
            .filter_map(|v| Some((v, v.attachment.as_ref()?)))
            .filter(|(v, _)| v.id != instance.root_volume)
            .map(|(v, a)| (v.id.to_string(), a.device.clone()))
            .collect();
        Some(Self {
            nics,
            disks,
            tags: view.tags(id).clone(),
            user_data: instance
                .user_data(view.get::<Reservation>(&instance.reservation))
                .map(str::to_owned),
            region: region.to_owned(),
            instance,
        })
    }

    /// User data as it goes out.
    pub fn user_data(&self) -> Option<Vec<u8>> {
        let engine = base64::engine::general_purpose::STANDARD;
        // The handler checked it; what doesn't decode was never user data.
        engine.decode(self.user_data.as_ref()?).ok()
    }
}
