//! `DescribeImages`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeImages.html>

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        Action, ApiError, Ctx,
        ec2::shared::{Filter, Filterable, Listing, Tag, Tagged, named_or_all},
        wire::Time,
    },
    model::{Image, ImageId},
};

/// The action.
pub(crate) struct DescribeImages;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    #[serde(default, rename = "ImageId")]
    ids: Vec<String>,
    #[serde(default, rename = "Owner")]
    owners: Vec<String>,
    /// Whom the image must be launchable by: every image here is public.
    #[serde(default, rename = "ExecutableBy")]
    executable_by: Vec<String>,
    /// Deprecated ones, too: there are none to leave out.
    #[serde(rename = "IncludeDeprecated")]
    _include_deprecated: Option<bool>,
    /// Disabled ones, too: there are none to leave out.
    #[serde(rename = "IncludeDisabled")]
    _include_disabled: Option<bool>,
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    images_set: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    image_id: String,
    image_location: String,
    image_state: String,
    image_owner_id: String,
    is_public: bool,
    architecture: String,
    image_type: String,
    name: String,
    description: String,
    root_device_type: String,
    root_device_name: String,
    block_device_mapping: Vec<Mapping>,
    virtualization_type: String,
    creation_date: Time,
    platform_details: String,
    tag_set: Option<Vec<Tag>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    device_name: String,
    ebs: Ebs,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ebs {
    volume_size: u64,
    volume_type: String,
    delete_on_termination: bool,
    encrypted: bool,
}

/// The root volume's size in GiB: the disk's, rounded up.
fn size(image: &Image) -> u64 {
    image.manifest.disk_size.div_ceil(1 << 30).max(1)
}

fn location(image: &Image) -> String {
    format!("{}/{}", image.owner, image.manifest.name)
}

impl Filterable for Tagged<'_, Image> {
    const FILTERS: &'static [&'static str] = &[
        "architecture",
        "block-device-mapping.delete-on-termination",
        "block-device-mapping.device-name",
        "block-device-mapping.encrypted",
        "block-device-mapping.volume-size",
        "block-device-mapping.volume-type",
        "creation-date",
        "description",
        "image-id",
        "image-type",
        "is-public",
        "manifest-location",
        "name",
        "owner-id",
        "root-device-name",
        "root-device-type",
        "state",
        "virtualization-type",
    ];

    fn values(&self, filter: &str) -> Vec<String> {
        let image = self.resource;
        let manifest = &image.manifest;
        vec![match filter {
            "architecture" => manifest.architecture.clone(),
            "block-device-mapping.delete-on-termination" | "is-public" => "true".into(),
            "block-device-mapping.device-name" | "root-device-name" => {
                manifest.root_device_name.clone()
            }
            "block-device-mapping.encrypted" => "false".into(),
            "block-device-mapping.volume-size" => size(image).to_string(),
            "block-device-mapping.volume-type" => "gp3".into(),
            "creation-date" => Time(manifest.created).to_string(),
            "description" => manifest.description.clone(),
            "image-type" => "machine".into(),
            "manifest-location" => location(image),
            "name" => manifest.name.clone(),
            "owner-id" => image.owner.clone(),
            "root-device-type" => "ebs".into(),
            "state" => "available".into(),
            "virtualization-type" => "hvm".into(),
            _ => image.id.to_string(),
        }]
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(self.tags)
    }
}

impl Action for DescribeImages {
    const NAME: &'static str = "DescribeImages";
    const IAM: &'static str = "ec2:DescribeImages";
    type Request = Request;
    type Response = Response;

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let view = ctx.db.view();
        let account = &ctx.caller.account;
        // `self` as a launcher asks for images shared with this account by name,
        // and public ones are not.
        let by = &request.executable_by;
        let launchable = by.is_empty() || by.iter().any(|who| who == "all");
        let owned = |image: &Image| {
            request.owners.is_empty()
                || request.owners.iter().any(|owner| {
                    *owner == image.owner || (owner == "self" && image.owner == *account)
                })
        };
        let images = named_or_all::<ImageId, Image>(&view, &request.ids)?.into_iter();
        let images = images.filter(|image| launchable && owned(image));
        let (found, next_token) =
            Listing::new(request.filters, request.max_results, request.next_token).page_of(
                images.map(|image| Tagged::new(&view, image)),
                |tagged| tagged.resource.id.to_string(),
                (1, 1000),
            )?;
        Ok(Response {
            images_set: found.iter().map(item).collect(),
            next_token,
        })
    }
}

fn item(Tagged { resource, tags }: &Tagged<'_, Image>) -> Item {
    let manifest = &resource.manifest;
    Item {
        image_id: resource.id.to_string(),
        image_location: location(resource),
        image_state: "available".into(),
        image_owner_id: resource.owner.clone(),
        is_public: true,
        architecture: manifest.architecture.clone(),
        image_type: "machine".into(),
        name: manifest.name.clone(),
        description: manifest.description.clone(),
        root_device_type: "ebs".into(),
        root_device_name: manifest.root_device_name.clone(),
        block_device_mapping: vec![Mapping {
            device_name: manifest.root_device_name.clone(),
            ebs: Ebs {
                volume_size: size(resource),
                volume_type: "gp3".into(),
                delete_on_termination: true,
                encrypted: false,
            },
        }],
        virtualization_type: "hvm".into(),
        creation_date: manifest.created.into(),
        platform_details: "Linux/UNIX".into(),
        tag_set: Tag::set(tags),
    }
}
