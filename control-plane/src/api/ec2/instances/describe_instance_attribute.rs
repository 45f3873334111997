//! `DescribeInstanceAttribute`: one attribute at a time.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstanceAttribute.html>

use serde::{Deserialize, Serialize};

use super::{
    answer::{self, BlockDevice, Group},
    attributes::{Attribute, Shown},
};
use crate::{
    api::{Action, ApiError, Ctx, Targets, ec2::listing::Row, shared::found},
    model::Instance,
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
    /// Whether it may have enclaves: never.
    pub enclave_options: Option<Enclaves>,
    /// Its security groups.
    pub group_set: Option<Vec<Group>>,
    /// What the guest's own power-off leads to.
    pub instance_initiated_shutdown_behavior: Option<Value<String>>,
    /// Its type.
    pub instance_type: Option<Value<String>>,
    /// A kernel of EC2's: none.
    pub kernel: Option<Value<Option<String>>>,
    /// What it pays for by its image: nothing.
    pub product_codes: Option<Vec<ProductCode>>,
    /// A RAM disk of EC2's: none.
    pub ramdisk: Option<Value<Option<String>>>,
    /// Its root device.
    pub root_device_name: Option<Value<String>>,
    /// Whether only its own address may be the source of its packets.
    pub source_dest_check: Option<Value<bool>>,
    /// Enhanced networking by a virtual function: none.
    pub sriov_net_support: Option<Value<Option<String>>>,
    /// Its user data, base64.
    pub user_data: Option<Value<Option<String>>>,
}

/// Nitro enclaves.
#[derive(Debug, Serialize, Deserialize)]
pub struct Enclaves {
    /// Whether there may be any.
    pub enabled: bool,
}

/// A product of a marketplace.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProductCode {
    /// Its code.
    pub product_code: String,
    /// Whose it is.
    #[serde(rename = "type")]
    pub kind: String,
}

/// The value of an attribute.
#[derive(Debug, Serialize, Deserialize)]
pub struct Value<T> {
    /// The value.
    pub value: T,
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
        let attribute = Attribute::named(&request.attribute)?;
        let show = attribute
            .show
            .ok_or_else(|| attribute.cannot_be("asked for"))?;
        let mut response = Response {
            instance_id: instance.id.to_string(),
            ..Response::default()
        };
        let item = answer::instance(&Row::new(view, instance));
        let shown = Shown {
            view,
            instance,
            item,
        };
        show(&shown, &mut response);
        Ok(response)
    }
}
