//! `DescribeInstanceAttribute`: one attribute at a time.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstanceAttribute.html>

use serde::{Deserialize, Serialize};

use super::{
    answer::{self, BlockDevice, Group},
    user_data,
};
use crate::{
    api::{Action, ApiError, Ctx, Targets, ec2::listing::Row, shared::found, wire::quoted},
    model::{Instance, ShutdownBehavior},
};

/// The action.
pub struct DescribeInstanceAttribute;

/// Its parameters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Request {
    /// The instance.
    pub instance_id: String,
    /// The attribute's name.
    pub attribute: String,
}

/// Its answer: the attribute that was asked for, and no other.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// The instance.
    pub instance_id: String,
    /// Its volumes.
    pub block_device_mapping: Option<Vec<BlockDevice>>,
    /// Whether it is protected from being stopped.
    pub disable_api_stop: Option<Value<bool>>,
    /// Termination protection.
    pub disable_api_termination: Option<Value<bool>>,
    /// Whether its volumes have a network of their own: never.
    pub ebs_optimized: Option<Value<bool>>,
    /// Its security groups.
    pub group_set: Option<Vec<Group>>,
    /// What the guest's own power-off leads to.
    pub instance_initiated_shutdown_behavior: Option<Value<String>>,
    /// Its type.
    pub instance_type: Option<Value<String>>,
    /// Its root device.
    pub root_device_name: Option<Value<String>>,
    /// Whether only its own address may be the source of its packets.
    pub source_dest_check: Option<Value<bool>>,
    /// Its user data, base64.
    pub user_data: Option<Value<Option<String>>>,
}

/// The value of an attribute.
#[derive(Debug, Serialize, Deserialize)]
pub struct Value<T> {
    /// The value.
    pub value: T,
}

fn value<T>(value: T) -> Option<Value<T>> {
    Some(Value { value })
}

impl Action for DescribeInstanceAttribute {
    const NAME: &'static str = "DescribeInstanceAttribute";
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        to.named::<Instance>([&request.instance_id]);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let view = ctx.view();
        let view = view.view();
        let instance = found::<Instance>(view, &request.instance_id)?;
        let shown = answer::instance(&Row::new(view, instance));
        let mut response = Response {
            instance_id: instance.id.to_string(),
            ..Response::default()
        };
        match request.attribute.as_str() {
            "blockDeviceMapping" => {
                response.block_device_mapping = Some(shown.block_device_mapping)
            }
            "disableApiStop" => response.disable_api_stop = value(instance.stop_protected),
            "disableApiTermination" => {
                response.disable_api_termination = value(instance.protected);
            }
            "ebsOptimized" => response.ebs_optimized = value(shown.ebs_optimized),
            "groupSet" => response.group_set = Some(shown.group_set),
            "instanceInitiatedShutdownBehavior" => {
                let name = match instance.on_shutdown {
                    ShutdownBehavior::Stop => "stop",
                    ShutdownBehavior::Terminate => "terminate",
                };
                response.instance_initiated_shutdown_behavior = value(name.to_owned());
            }
            "instanceType" => response.instance_type = value(shown.instance_type),
            "rootDeviceName" => response.root_device_name = value(shown.root_device_name),
            "sourceDestCheck" => {
                response.source_dest_check = shown.source_dest_check.and_then(value);
            }
            "userData" => {
                response.user_data = value(user_data(view, instance).map(str::to_owned));
            }
            other => {
                return Err(ApiError::unsupported(&format!(
                    "The value {} of the parameter Attribute",
                    quoted(other)
                )));
            }
        }
        Ok(response)
    }
}
