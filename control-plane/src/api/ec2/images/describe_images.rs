//! `DescribeImages`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeImages.html>

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        ApiError,
        ec2::listing::{Filtered, Row, Table, describe},
        shared::{Tag, all_found_by},
        wire::Time,
    },
    model::{Image, ImageId},
    store::Scoped,
};

describe! {
    DescribeImages {
        ids: "ImageId",
        set: images_set of Item,
        more: {
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
        },
        pages: 1..=1000,
        page: |asked, more| {
            let rows = seen(asked.view, &asked.ids, &more)?;
            let (rows, next_token) = asked.page_of(rows, |row| row.id.to_string())?;
            Ok((rows.iter().map(item).collect(), next_token))
        },
    }
}

/// The images that a request is about, in the order of their ids: those of other
/// accounts are seen, too, so the view has them in no order.
fn seen<'v>(
    view: Scoped<'v>,
    ids: &[String],
    more: &More,
) -> Result<impl Iterator<Item = Row<'v, Image>> + use<'v>, ApiError> {
    let account = &view.scope().account;
    // `self` as a launcher asks for images shared with this account by name,
    // and public ones are not.
    let by = &more.executable_by;
    let launchable = by.is_empty() || by.iter().any(|who| who == "all");
    let owned = |image: &Image| {
        more.owners.is_empty()
            || more.owners.iter().any(|owner| {
                *owner == image.scope.account
                    || (owner == "self" && image.scope.account == *account)
            })
    };
    let seen: Vec<&Image> = match ids {
        [] => view.all_visible().collect(),
        ids => all_found_by(ids, |id: &ImageId| view.visible::<Image>(id))?,
    };
    let rows: BTreeMap<&ImageId, Row<'v, Image>> = seen
        .into_iter()
        .filter(|image| launchable && owned(image))
        .map(|image| (&image.id, Row::new(view, image)))
        .collect();
    Ok(rows.into_values())
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
    format!("{}/{}", image.scope.account, image.manifest.name)
}

impl Filtered for Image {
    fn filters<'v>() -> Table<Row<'v, Self>> {
        Table::<Row<'v, Self>>::new()
            .on("architecture", |i, out| out.add(&i.manifest.architecture))
            .on("block-device-mapping.delete-on-termination", |_, out| {
                out.add(true);
            })
            .on_each(
                ["block-device-mapping.device-name", "root-device-name"],
                |i, out| out.add(&i.manifest.root_device_name),
            )
            .on("block-device-mapping.encrypted", |_, out| out.add(false))
            .on("block-device-mapping.volume-size", |i, out| {
                out.add(size(i));
            })
            .on("block-device-mapping.volume-type", |_, out| out.add("gp3"))
            .on("creation-date", |i, out| out.add(Time(i.manifest.created)))
            .on("description", |i, out| out.add(&i.manifest.description))
            .on("image-id", |i, out| out.add(&i.id))
            .on("image-type", |_, out| out.add("machine"))
            .on("is-public", |_, out| out.add(true))
            .on("manifest-location", |i, out| out.add(location(i)))
            .on("name", |i, out| out.add(&i.manifest.name))
            .on("owner-id", |i, out| out.add(&i.scope.account))
            .on("root-device-type", |_, out| out.add("ebs"))
            .on("state", |_, out| out.add("available"))
            .on("virtualization-type", |_, out| out.add("hvm"))
    }
}

fn item(row: &Row<'_, Image>) -> Item {
    let manifest = &row.manifest;
    Item {
        image_id: row.id.to_string(),
        image_location: location(row),
        image_state: "available".into(),
        image_owner_id: row.scope.account.clone(),
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
                volume_size: size(row),
                volume_type: "gp3".into(),
                delete_on_termination: true,
                encrypted: false,
            },
        }],
        virtualization_type: "hvm".into(),
        creation_date: manifest.created.into(),
        platform_details: "Linux/UNIX".into(),
        tag_set: Tag::set(row.tags()),
    }
}
