//! A small cloud for the reconcilers' tests.

use std::{convert::Infallible, net::Ipv4Addr};

use crate::{
    config::Config,
    model::{Host, InstanceId, PrivateAddress, PublicAddress, samples},
    scheduler::overhead_mib,
    store::Db,
};

/// Puts these instances there as RunInstances does, on a network with an image
/// and a host with room for `room` of them.
pub(crate) async fn cloud(db: &Db, instances: &[u8], room: u32) {
    db.transact(|_, change| {
        change.put(&samples::vpc());
        change.put(&samples::subnet());
        change.put(&samples::image());
        change.put(&Host {
            id: Config::for_tests().host_id,
            zone: "us-east-1a".into(),
            vcpus: room,
            memory_mib: u64::from(room) * (1024 + overhead_mib(1024)),
            disk_gib: u64::from(room) * 8,
        });
        for &n in instances {
            let mut instance = samples::instance(n);
            instance.launch_index = n.into();
            let eni = samples::eni(n);
            change.put(&PrivateAddress::new(
                &eni.scope,
                &eni.subnet,
                eni.private_ip,
                eni.id.clone(),
            ));
            change.put(&PublicAddress {
                address: Ipv4Addr::new(203, 0, 113, n).to_string(),
                eni: eni.id.clone(),
            });
            for id in [
                InstanceId::from_random(n.into()).to_string(),
                eni.id.to_string(),
                samples::volume(n).id.to_string(),
            ] {
                let tags = [("Name".to_owned(), n.to_string())].into();
                change.put_tags(&samples::scope(), id, tags);
            }
            change.put(&instance);
            change.put(&eni);
            change.put(&samples::volume(n));
        }
        Ok::<_, Infallible>(())
    })
    .await
    .unwrap();
}
