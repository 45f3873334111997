//! `GetLaunchTemplateData`: what launches another instance like one that there is.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_GetLaunchTemplateData.html>

use serde::{Deserialize, Serialize};

use super::answer::Data;
use crate::{
    api::{
        Action, ApiError, Ctx, Targets,
        ec2::{
            instances::{
                answer,
                launch_data::{
                    BlockDeviceMapping, EbsInput, HibernationInput, InterfaceInput, LaunchData,
                    PlacementInput,
                },
                metadata_options,
            },
            listing::Row,
        },
        shared::{
            TagSpecification, found,
            tag::{TagInput, reserved},
        },
    },
    model::{Instance, Reservation},
};

/// The action.
pub(crate) struct GetLaunchTemplateData;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    instance_id: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    launch_template_data: Data,
}

impl Action for GetLaunchTemplateData {
    const NAME: &'static str = "GetLaunchTemplateData";
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        to.named::<Instance>([&request.instance_id]);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let view = ctx.view();
        let instance = found::<Instance>(view.view(), &request.instance_id)?;
        Ok(Response {
            launch_template_data: data(&Row::new(view.view(), instance)).into(),
        })
    }
}

fn data(row: &Row<'_, Instance>) -> LaunchData {
    let (view, instance) = (row.view, row.resource);
    let settings = &instance.settings;
    let metadata = answer::metadata(instance);
    let volumes = answer::volumes(row).map(|(volume, attachment)| BlockDeviceMapping {
        device_name: Some(attachment.device.clone()),
        ebs: Some(EbsInput {
            volume_size: Some(volume.size_gib),
            volume_type: Some(volume.volume_type.clone()),
            delete_on_termination: Some(attachment.delete_on_termination),
        }),
    });
    let interfaces = answer::interfaces(row).map(|eni| InterfaceInput {
        associate_public_ip_address: Some(eni.auto_public_ip),
        delete_on_termination: Some(true),
        description: Some(eni.description.clone()),
        device_index: Some(eni.device_index),
        groups: eni.groups.iter().map(ToString::to_string).collect(),
        subnet_id: Some(eni.subnet.to_string()),
    });
    let tags = row.tags().iter().filter(|(key, _)| !reserved(key));
    let tags: Vec<_> = tags
        .map(|(key, value)| TagInput {
            key: key.clone(),
            value: Some(value.clone()),
        })
        .collect();
    let tags = (!tags.is_empty()).then(|| TagSpecification {
        resource_type: Some("instance".into()),
        tags,
    });
    let reservation = view.get::<Reservation>(&instance.reservation);
    LaunchData {
        image_id: Some(instance.image.to_string()),
        instance_type: Some(instance.instance_type.clone()),
        key_name: instance.key_name.clone(),
        user_data: instance.user_data(reservation).map(str::to_owned),
        tag_specifications: tags.into_iter().collect(),
        block_device_mappings: volumes.collect(),
        metadata_options: Some(metadata_options::Input {
            http_tokens: Some(metadata.http_tokens),
            http_put_response_hop_limit: Some(metadata.http_put_response_hop_limit.into()),
            http_endpoint: Some(metadata.http_endpoint),
            instance_metadata_tags: Some(metadata.instance_metadata_tags),
        }),
        instance_initiated_shutdown_behavior: Some(settings.on_shutdown.name().into()),
        disable_api_termination: Some(settings.protected),
        disable_api_stop: Some(settings.stop_protected),
        placement: Some(PlacementInput {
            availability_zone: Some(instance.zone.clone()),
        }),
        network_interfaces: interfaces.collect(),
        hibernation_options: Some(HibernationInput {
            configured: Some(settings.may_hibernate),
        }),
        // The interface has them.
        security_group_ids: Vec::new(),
        security_groups: Vec::new(),
    }
}
