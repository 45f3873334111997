//! `DescribeVolumes`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeVolumes.html>

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        ec2::listing::{Filtered, Row, Table, describe},
        ec2::regions::zone_id,
        shared::Tag,
        wire::Time,
    },
    model::{Described as _, Volume},
};

describe! {
    DescribeVolumes {
        ids: "VolumeId",
        set: volume_set of Item,
        unsupported: ["IncludeManagedResources"],
        pages: 5..=1000,
        page: |asked, _| asked.show(Item::new),
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    volume_id: String,
    volume_arn: String,
    owner_id: String,
    size: u32,
    volume_type: String,
    availability_zone: String,
    availability_zone_id: String,
    status: String,
    create_time: Time,
    attachment_set: Vec<Attachment>,
    encrypted: bool,
    multi_attach_enabled: bool,
    tag_set: Option<Vec<Tag>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attachment {
    volume_id: String,
    instance_id: String,
    device: String,
    status: String,
    attach_time: Time,
    delete_on_termination: bool,
}

fn status(volume: &Volume) -> &'static str {
    match &volume.attachment {
        Some(_) => "in-use",
        None if volume.deleting => "deleting",
        None => "available",
    }
}

impl Item {
    fn new(row: &Row<'_, Volume>) -> Self {
        let volume = row.resource;
        let attachment = volume.attachment.as_ref().map(|a| Attachment {
            volume_id: volume.id.to_string(),
            instance_id: a.instance.to_string(),
            device: a.device.clone(),
            status: "attached".into(),
            attach_time: a.attached.into(),
            delete_on_termination: a.delete_on_termination,
        });
        Self {
            volume_id: volume.id.to_string(),
            volume_arn: volume.arn().to_string(),
            owner_id: volume.scope.account.clone(),
            size: volume.size_gib,
            volume_type: volume.volume_type.clone(),
            availability_zone: volume.zone.clone(),
            availability_zone_id: zone_id(&volume.zone),
            status: status(volume).into(),
            create_time: volume.created.into(),
            attachment_set: attachment.into_iter().collect(),
            encrypted: false,
            multi_attach_enabled: false,
            tag_set: Tag::set(row.tags()),
        }
    }
}

impl Filtered for Volume {
    fn filters<'v>() -> Table<Row<'v, Self>> {
        Table::<Row<'v, Self>>::new()
            .on("attachment.attach-time", |v, out| {
                out.extend(v.attachment.iter().map(|a| Time(a.attached)));
            })
            .on("attachment.delete-on-termination", |v, out| {
                out.extend(v.attachment.iter().map(|a| a.delete_on_termination));
            })
            .on("attachment.device", |v, out| {
                out.extend(v.attachment.iter().map(|a| &a.device));
            })
            .on("attachment.instance-id", |v, out| {
                out.extend(v.attachment.iter().map(|a| &a.instance));
            })
            .on("attachment.status", |v, out| {
                out.extend(v.attachment.iter().map(|_| "attached"));
            })
            .on("availability-zone", |v, out| out.add(&v.zone))
            .on("availability-zone-id", |v, out| out.add(zone_id(&v.zone)))
            .on("create-time", |v, out| out.add(Time(v.created)))
            .on("encrypted", |_, out| out.add(false))
            .on("multi-attach-enabled", |_, out| out.add(false))
            .on("size", |v, out| out.add(v.size_gib))
            .on("status", |v, out| out.add(status(v)))
            .on("volume-id", |v, out| out.add(&v.id))
            .on("volume-type", |v, out| out.add(&v.volume_type))
    }
}
