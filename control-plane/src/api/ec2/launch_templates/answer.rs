//! A template and a version as the answers show them.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ResponseLaunchTemplateData.html>

use serde::{Deserialize, Serialize};

use super::data_of;
use crate::{
    api::{
        ApiError,
        ec2::instances::{launch_data::LaunchData, metadata_options},
        shared::{Tag, TagSpecification},
        wire::Time,
    },
    model::{LaunchTemplate, LaunchTemplateVersion},
};

macro_rules! shapes {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_attr:meta])* $field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[allow(missing_docs)] // EC2's own names, and EC2's own page says what they are.
        #[derive(Debug, Clone, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub(crate) struct $name { $($(#[$field_attr])* pub $field: $kind,)* }
    )*};
}

shapes! {
    /// A template.
    Template {
        launch_template_id: String,
        launch_template_name: String,
        create_time: Time,
        created_by: String,
        default_version_number: u32,
        latest_version_number: u32,
        tag_set: Option<Vec<Tag>>,
    }
    /// A version.
    Version {
        launch_template_id: String,
        launch_template_name: String,
        version_number: u32,
        version_description: Option<String>,
        create_time: Time,
        created_by: String,
        default_version: bool,
        launch_template_data: Data,
    }
    /// What a version has.
    Data {
        image_id: Option<String>,
        instance_type: Option<String>,
        key_name: Option<String>,
        security_group_id_set: Option<Vec<String>>,
        security_group_set: Option<Vec<String>>,
        user_data: Option<String>,
        tag_specification_set: Option<Vec<Tags>>,
        block_device_mapping_set: Option<Vec<BlockDevice>>,
        metadata_options: Option<Metadata>,
        instance_initiated_shutdown_behavior: Option<String>,
        disable_api_termination: Option<bool>,
        disable_api_stop: Option<bool>,
        placement: Option<Placement>,
        network_interface_set: Option<Vec<Interface>>,
        hibernation_options: Option<Hibernation>,
    }
    /// Tags for what is made.
    Tags {
        resource_type: Option<String>,
        tag_set: Vec<Tag>,
    }
    /// A volume's place.
    BlockDevice {
        device_name: Option<String>,
        ebs: Option<Ebs>,
    }
    /// The volume there.
    Ebs {
        volume_size: Option<u32>,
        volume_type: Option<String>,
        delete_on_termination: Option<bool>,
    }
    /// How an instance may ask for metadata.
    Metadata {
        http_tokens: Option<String>,
        http_put_response_hop_limit: Option<i64>,
        http_endpoint: Option<String>,
        instance_metadata_tags: Option<String>,
    }
    /// Where.
    Placement {
        availability_zone: Option<String>,
    }
    /// An interface.
    Interface {
        associate_public_ip_address: Option<bool>,
        delete_on_termination: Option<bool>,
        description: Option<String>,
        device_index: Option<u32>,
        group_set: Option<Vec<GroupId>>,
        subnet_id: Option<String>,
    }
    /// Whether an instance may be hibernated.
    Hibernation {
        configured: Option<bool>,
    }
}

/// A security group's id.
pub(crate) type GroupId = String;

impl Template {
    /// The template with its tags.
    pub(super) fn new(
        template: &LaunchTemplate,
        tags: &std::collections::BTreeMap<String, String>,
    ) -> Self {
        Self {
            launch_template_id: template.id.to_string(),
            launch_template_name: template.name.clone(),
            create_time: template.created.into(),
            created_by: template.created_by.clone(),
            default_version_number: template.default_version,
            latest_version_number: template.latest_version,
            tag_set: Tag::set(tags),
        }
    }
}

impl Version {
    /// A version of this template.
    pub(super) fn new(
        template: &LaunchTemplate,
        version: &LaunchTemplateVersion,
    ) -> Result<Self, ApiError> {
        Ok(Self {
            launch_template_id: template.id.to_string(),
            launch_template_name: template.name.clone(),
            version_number: version.number,
            version_description: version.description.clone(),
            create_time: version.created.into(),
            created_by: version.created_by.clone(),
            default_version: version.number == template.default_version,
            launch_template_data: data_of(version)?.into(),
        })
    }
}

/// A list that is left out where it has nothing.
fn some<T, U>(list: Vec<T>, item: impl Fn(T) -> U) -> Option<Vec<U>> {
    (!list.is_empty()).then(|| list.into_iter().map(item).collect())
}

fn tags(specification: TagSpecification) -> Tags {
    let tag = |tag: crate::api::shared::tag::TagInput| Tag {
        key: tag.key,
        value: tag.value.unwrap_or_default(),
    };
    Tags {
        resource_type: specification.resource_type,
        tag_set: specification.tags.into_iter().map(tag).collect(),
    }
}

fn metadata(options: metadata_options::Input) -> Metadata {
    Metadata {
        http_tokens: options.http_tokens,
        http_put_response_hop_limit: options.http_put_response_hop_limit,
        http_endpoint: options.http_endpoint,
        instance_metadata_tags: options.instance_metadata_tags,
    }
}

impl From<LaunchData> for Data {
    fn from(data: LaunchData) -> Self {
        // All of them: what a template has is shown.
        let LaunchData {
            image_id,
            instance_type,
            key_name,
            security_group_ids,
            security_groups,
            user_data,
            tag_specifications,
            block_device_mappings,
            metadata_options,
            instance_initiated_shutdown_behavior,
            disable_api_termination,
            disable_api_stop,
            placement,
            network_interfaces,
            hibernation_options,
        } = data;
        Self {
            image_id,
            instance_type,
            key_name,
            security_group_id_set: some(security_group_ids, |id| id),
            security_group_set: some(security_groups, |name| name),
            user_data,
            tag_specification_set: some(tag_specifications, tags),
            block_device_mapping_set: some(block_device_mappings, |mapping| BlockDevice {
                device_name: mapping.device_name,
                ebs: mapping.ebs.map(|ebs| Ebs {
                    volume_size: ebs.volume_size,
                    volume_type: ebs.volume_type,
                    delete_on_termination: ebs.delete_on_termination,
                }),
            }),
            metadata_options: metadata_options.map(metadata),
            instance_initiated_shutdown_behavior,
            disable_api_termination,
            disable_api_stop,
            placement: placement.map(|placement| Placement {
                availability_zone: placement.availability_zone,
            }),
            network_interface_set: some(network_interfaces, |interface| Interface {
                associate_public_ip_address: interface.associate_public_ip_address,
                delete_on_termination: interface.delete_on_termination,
                description: interface.description,
                device_index: interface.device_index,
                group_set: some(interface.groups, |id| id),
                subnet_id: interface.subnet_id,
            }),
            hibernation_options: hibernation_options.map(|options| Hibernation {
                configured: options.configured,
            }),
        }
    }
}
