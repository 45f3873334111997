//! `DescribeVolumes`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeVolumes.html>

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        Action, ApiError, Ctx,
        ec2::{
            regions::zone_id,
            shared::{Filter, Filterable, Listing, Tag, Tagged, named_or_all},
        },
        wire::Time,
    },
    model::{Volume, VolumeId},
};

/// The action.
pub(crate) struct DescribeVolumes;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    #[serde(default, rename = "VolumeId")]
    ids: Vec<String>,
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    volume_set: Vec<Item>,
    next_token: Option<String>,
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
    fn new(ctx: &Ctx, tagged: &Tagged<'_, Volume>) -> Self {
        let volume = tagged.resource;
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
            volume_arn: ctx.arn(&format!("volume/{}", volume.id)),
            owner_id: volume.owner.clone(),
            size: volume.size_gib,
            volume_type: volume.volume_type.clone(),
            availability_zone: volume.zone.clone(),
            availability_zone_id: zone_id(&volume.zone),
            status: status(volume).into(),
            create_time: volume.created.into(),
            attachment_set: attachment.into_iter().collect(),
            encrypted: false,
            multi_attach_enabled: false,
            tag_set: Tag::set(tagged.tags),
        }
    }
}

impl Filterable for Tagged<'_, Volume> {
    const FILTERS: &'static [&'static str] = &[
        "attachment.attach-time",
        "attachment.delete-on-termination",
        "attachment.device",
        "attachment.instance-id",
        "attachment.status",
        "availability-zone",
        "availability-zone-id",
        "create-time",
        "encrypted",
        "multi-attach-enabled",
        "size",
        "status",
        "volume-id",
        "volume-type",
    ];

    fn values(&self, filter: &str) -> Vec<String> {
        let volume = self.resource;
        if let Some(of) = filter.strip_prefix("attachment.") {
            let attachment = volume.attachment.iter();
            return attachment
                .map(|a| match of {
                    "attach-time" => Time(a.attached).to_string(),
                    "delete-on-termination" => a.delete_on_termination.to_string(),
                    "device" => a.device.clone(),
                    "instance-id" => a.instance.to_string(),
                    _ => "attached".into(),
                })
                .collect();
        }
        vec![match filter {
            "availability-zone" => volume.zone.clone(),
            "availability-zone-id" => zone_id(&volume.zone),
            "create-time" => Time(volume.created).to_string(),
            "encrypted" | "multi-attach-enabled" => "false".into(),
            "size" => volume.size_gib.to_string(),
            "status" => status(volume).into(),
            "volume-id" => volume.id.to_string(),
            _ => volume.volume_type.clone(),
        }]
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(self.tags)
    }
}

impl Action for DescribeVolumes {
    const NAME: &'static str = "DescribeVolumes";
    const IAM: &'static str = "ec2:DescribeVolumes";
    const UNSUPPORTED: &'static [&'static str] = &["IncludeManagedResources"];
    type Request = Request;
    type Response = Response;

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let view = ctx.db.view();
        let volumes = named_or_all::<VolumeId, Volume>(&view, &request.ids)?.into_iter();
        let (found, next_token) =
            Listing::new(request.filters, request.max_results, request.next_token).page_of(
                volumes.map(|volume| Tagged::new(&view, volume)),
                |tagged| tagged.resource.id.to_string(),
                (5, 1000),
            )?;
        Ok(Response {
            volume_set: found.iter().map(|tagged| Item::new(ctx, tagged)).collect(),
            next_token,
        })
    }
}
