//! `ModifyInstanceAttribute`: one attribute at a time, as EC2 has it.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ModifyInstanceAttribute.html>

use std::fmt;

use serde::Deserialize;

use super::{
    attributes::{ATTRIBUTES, Attribute, Set, doing},
    interfaces_along,
};
use crate::{
    api::{Action, ApiError, Ctx, Done, Targets, shared::found},
    model::{Instance, SecurityGroup, Volume, condition_key::ec2},
};

/// The action.
pub struct ModifyInstanceAttribute;

/// Its parameters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Request {
    /// The instance.
    pub instance_id: String,
    /// The attribute's name, with `Value`: the older form for the simple ones.
    pub attribute: Option<String>,
    /// Its new value.
    pub value: Option<String>,
    /// Termination protection.
    pub disable_api_termination: Option<Flag>,
    /// What the guest's own power-off leads to.
    pub instance_initiated_shutdown_behavior: Option<Text>,
    /// Whether only its own address may be the source of its packets.
    pub source_dest_check: Option<Flag>,
    /// All security groups of its interface.
    #[serde(default, rename = "GroupId")]
    pub groups: Vec<String>,
    /// Which volumes go with it.
    #[serde(default, rename = "BlockDeviceMapping")]
    pub block_device_mappings: Vec<Mapping>,
    /// Protection from being stopped.
    pub disable_api_stop: Option<Flag>,
    /// Whether its volumes have a network of their own: never.
    pub ebs_optimized: Option<Flag>,
    /// Whether it has an ENA: never.
    pub ena_support: Option<Flag>,
    /// Whether it may have enclaves: never.
    pub enclave_options: Option<Enclaves>,
    /// Its type, of a stopped instance.
    pub instance_type: Option<Text>,
    /// Its user data, base64, of a stopped instance.
    pub user_data: Option<Text>,
}

/// An attribute that is true or false.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Flag {
    /// Which of them.
    pub value: bool,
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

/// An attribute that is a word.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Text {
    /// The word.
    pub value: String,
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

/// Nitro enclaves.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Enclaves {
    /// Whether there may be any.
    pub enabled: bool,
}

/// A volume at the instance.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Mapping {
    /// Its device.
    pub device_name: Option<String>,
    /// What shall be.
    pub ebs: Option<Ebs>,
}

/// What shall be of the volume there.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Ebs {
    /// Whether it goes with the instance.
    pub delete_on_termination: Option<bool>,
}

/// What a request wants: of which attribute, and what it is to be, as text.
type Wanted = (&'static Attribute, String);

/// All that a request names with a value.
fn given(request: &Request) -> Vec<Wanted> {
    let mut all = Vec::new();
    if let (Some(name), Some(value)) = (&request.attribute, &request.value) {
        let named = Attribute::named(name).ok();
        all.extend(named.map(|attribute| (attribute, value.clone())));
    }
    let by_parameter = ATTRIBUTES.iter();
    all.extend(by_parameter.filter_map(|a| Some((a, (a.given)(request)?))));
    all
}

/// The one that it wants.
fn wanted(request: &Request) -> Result<Wanted, ApiError> {
    match (request.attribute.as_deref(), request.value.as_deref()) {
        // The other parameters name their attributes themselves.
        (Some(name), _) => drop(Attribute::named(name)?),
        (None, Some(_)) => return Err(ApiError::missing("Attribute")),
        (None, None) => {}
    }
    let mut all = given(request);
    match all.pop() {
        Some(one) if all.is_empty() => Ok(one),
        Some(_) => Err(ApiError::combination(
            "Fields for multiple attribute types specified",
        )),
        None => Err(ApiError::combination("No attributes specified.")),
    }
}

/// The condition keys `ec2:Attribute` and `ec2:Attribute/…`, which call attributes as
/// the parameters are called: also those that a request names in the older form. There
/// are none for a volume's mapping, and of groups no values.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/iam-policies-for-amazon-ec2.html#attribute-key>
fn attribute_keys(request: &Request, to: &mut Targets<'_>) {
    let mut names = Vec::new();
    for (attribute, value) in given(request) {
        let name = attribute.parameter;
        if ["", "BlockDeviceMapping"].contains(&name) {
            continue;
        }
        names.push(name.to_owned());
        if !matches!(attribute.set, Set::Several(_)) {
            to.request_key_of(ec2::ATTRIBUTE, name, value);
        }
    }
    if !names.is_empty() {
        to.request_key(ec2::ATTRIBUTE, names);
    }
}

impl Action for ModifyInstanceAttribute {
    const NAME: &'static str = "ModifyInstanceAttribute";
    const UNSUPPORTED: &'static [&'static str] = &[
        "BlockDeviceMapping.Ebs.VolumeId",
        "BlockDeviceMapping.NoDevice",
        "BlockDeviceMapping.VirtualName",
        "Kernel",
        "Ramdisk",
        "SriovNetSupport",
    ];
    type Request = Request;
    type Response = Done;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        to.named::<Instance>([&request.instance_id]);
        to.named::<SecurityGroup>(&request.groups);
        interfaces_along(to, [&request.instance_id]);
        let mappings = request.block_device_mappings.iter();
        let devices: Vec<_> = mappings.filter_map(|m| m.device_name.as_ref()).collect();
        let mapped = |volume: &&Volume| {
            let attachment = volume.attachment.as_ref();
            attachment.is_some_and(|at| devices.contains(&&at.device))
        };
        let view = to.view();
        let volumes = view.by(Volume::BY_INSTANCE, &request.instance_id);
        volumes
            .filter(mapped)
            .for_each(|volume| to.existing(volume));
        attribute_keys(request, to);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Done, ApiError> {
        let (attribute, value) = wanted(&request)?;
        ctx.transact(|view, change| {
            let instance = found::<Instance>(view, &request.instance_id)?;
            let mut doing = doing(view, change, instance)?;
            match attribute.set {
                // Not where it is named by `Attribute`, which has no room for them.
                Set::Several(set) if (attribute.given)(&request).is_some() => {
                    set(&mut doing, &request)
                }
                _ => attribute.set(&mut doing, &value),
            }
        })
        .await?;
        Ok(Done::OK)
    }
}
