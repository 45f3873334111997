//! `ModifyInstanceAttribute`: one attribute at a time, as EC2 has it.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ModifyInstanceAttribute.html>

mod fixed;

use std::collections::BTreeMap;

use serde::Deserialize;

use self::fixed::Fixed;
use super::{
    super::security_groups::refer_to,
    groups, incorrect_state, interfaces_along,
    run_instances::resolve::{type_named, user_data as checked},
    user_data,
};
use crate::{
    api::{Action, ApiError, Ctx, Done, Targets, shared::found, wire::quoted},
    model::{
        Eni, GroupId, Instance, InstanceState, InstanceType, SecurityGroup, ShutdownBehavior,
        Volume, VolumeAttachment, condition_key::ec2,
    },
    store::{Change, Scoped},
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

/// An attribute that is a word.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Text {
    /// The word.
    pub value: String,
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

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Protected(bool),
    StopProtected(bool),
    Type(&'static InstanceType),
    /// Base64; empty for none.
    UserData(String),
    OnShutdown(ShutdownBehavior),
    SourceDestCheck(bool),
    Groups(Vec<String>),
    /// By device: whether the volume goes with the instance.
    Volumes(BTreeMap<String, bool>),
    /// An attribute that can't change shall be so. EC2 accepts what changes nothing, and
    /// tools that fill in its defaults send it.
    AsIs(Fixed, String),
}

/// What a request wants.
fn wanted(request: Request) -> Result<Wanted, ApiError> {
    let mut all = Vec::new();
    match (request.attribute.as_deref(), request.value.as_deref()) {
        (Some(name), Some(value)) => all.push(by_name(name, value)?),
        (None, None) => {}
        // The other parameters name their attributes themselves.
        (Some(name), None) => check_name(name)?,
        (None, Some(_)) => return Err(ApiError::missing("Attribute")),
    }
    all.extend(
        Fixed::ALL
            .into_iter()
            .filter_map(|fixed| Some(Wanted::AsIs(fixed, fixed.given(&request)?))),
    );
    all.extend(
        request
            .disable_api_termination
            .map(|f| Wanted::Protected(f.value)),
    );
    all.extend(
        request
            .disable_api_stop
            .map(|f| Wanted::StopProtected(f.value)),
    );
    if let Some(text) = request.instance_type {
        all.push(Wanted::Type(type_named(&text.value)?));
    }
    if let Some(text) = request.user_data {
        all.push(Wanted::UserData(checked_user_data(&text.value)?));
    }
    if let Some(text) = request.instance_initiated_shutdown_behavior {
        all.push(Wanted::OnShutdown(shutdown_behavior(&text.value)?));
    }
    all.extend(
        request
            .source_dest_check
            .map(|f| Wanted::SourceDestCheck(f.value)),
    );
    if !request.groups.is_empty() {
        all.push(Wanted::Groups(request.groups));
    }
    if !request.block_device_mappings.is_empty() {
        let volumes = request.block_device_mappings.into_iter().map(volume);
        all.push(Wanted::Volumes(volumes.collect::<Result<_, _>>()?));
    }
    match all.pop() {
        Some(one) if all.is_empty() => Ok(one),
        Some(_) => Err(ApiError::combination(
            "Fields for multiple attribute types specified",
        )),
        None => Err(ApiError::combination("No attributes specified.")),
    }
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let known = [
        "disableApiStop",
        "disableApiTermination",
        "instanceInitiatedShutdownBehavior",
        "instanceType",
        "userData",
        "sourceDestCheck",
        "groupSet",
        "blockDeviceMapping",
    ];
    if known.contains(&name) || Fixed::named(name).is_some() {
        return Ok(());
    }
    Err(unsupported(name))
}

fn unsupported(name: &str) -> ApiError {
    ApiError::unsupported(&format!(
        "The value {} of the parameter Attribute",
        quoted(name)
    ))
}

fn by_name(name: &str, value: &str) -> Result<Wanted, ApiError> {
    let flag = || match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(ApiError::invalid_value(
            "Value",
            value,
            "It must be true or false.",
        )),
    };
    match name {
        "disableApiStop" => flag().map(Wanted::StopProtected),
        "disableApiTermination" => flag().map(Wanted::Protected),
        "instanceType" => type_named(value).map(Wanted::Type),
        "userData" => checked_user_data(value).map(Wanted::UserData),
        "sourceDestCheck" => flag().map(Wanted::SourceDestCheck),
        "instanceInitiatedShutdownBehavior" => shutdown_behavior(value).map(Wanted::OnShutdown),
        "groupSet" | "blockDeviceMapping" => Err(ApiError::combination(format!(
            "The attribute {name} has a parameter of its own"
        ))),
        other => match Fixed::named(other) {
            Some(fixed) => Ok(Wanted::AsIs(fixed, value.to_owned())),
            None => Err(unsupported(other)),
        },
    }
}

fn checked_user_data(text: &str) -> Result<String, ApiError> {
    Ok(checked(Some(text))?.unwrap_or_default())
}

/// What the guest's own power-off leads to, by EC2's name.
pub(super) fn shutdown_behavior(name: &str) -> Result<ShutdownBehavior, ApiError> {
    match name {
        "stop" => Ok(ShutdownBehavior::Stop),
        "terminate" => Ok(ShutdownBehavior::Terminate),
        other => Err(ApiError::invalid_value(
            "instanceInitiatedShutdownBehavior",
            other,
            "It must be stop or terminate.",
        )),
    }
}

fn volume(mapping: Mapping) -> Result<(String, bool), ApiError> {
    let device = mapping
        .device_name
        .ok_or_else(|| ApiError::missing("BlockDeviceMapping.1.DeviceName"))?;
    let goes = mapping
        .ebs
        .and_then(|ebs| ebs.delete_on_termination)
        .ok_or_else(|| ApiError::missing("BlockDeviceMapping.1.Ebs.DeleteOnTermination"))?;
    Ok((device, goes))
}

/// The condition keys `ec2:Attribute` and `ec2:Attribute/…`, which call attributes as
/// the parameters are called: also those that a request names in the older form. There
/// are none for what is made of several values, as a volume's mapping.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/iam-policies-for-amazon-ec2.html#attribute-key>
fn attribute_keys(request: &Request, to: &mut Targets<'_>) {
    let flag = |flag: &Option<Flag>| flag.as_ref().map(|flag| Some(flag.value.to_string()));
    let text = |text: &Option<Text>| text.as_ref().map(|text| Some(text.value.clone()));
    let behavior = &request.instance_initiated_shutdown_behavior;
    let mut given = vec![
        (
            "DisableApiTermination",
            flag(&request.disable_api_termination),
        ),
        ("DisableApiStop", flag(&request.disable_api_stop)),
        ("SourceDestCheck", flag(&request.source_dest_check)),
        ("InstanceType", text(&request.instance_type)),
        ("UserData", text(&request.user_data)),
        ("InstanceInitiatedShutdownBehavior", text(behavior)),
        ("GroupId", (!request.groups.is_empty()).then_some(None)),
    ];
    let fixed = Fixed::ALL.into_iter();
    given.extend(fixed.map(|fixed| (fixed.parameter(), fixed.given(request).map(Some))));
    let older = match request.attribute.as_deref() {
        Some("disableApiStop") => Some("DisableApiStop"),
        Some("disableApiTermination") => Some("DisableApiTermination"),
        Some("instanceType") => Some("InstanceType"),
        Some("userData") => Some("UserData"),
        Some("sourceDestCheck") => Some("SourceDestCheck"),
        Some("instanceInitiatedShutdownBehavior") => Some("InstanceInitiatedShutdownBehavior"),
        // The others have no such form.
        other => other.and_then(Fixed::named).map(Fixed::parameter),
    };
    given.extend(older.map(|name| (name, request.value.clone().map(Some))));
    let mut names = Vec::new();
    for (name, value) in given {
        let Some(value) = value else { continue };
        names.push(name.to_owned());
        if let Some(value) = value {
            to.request_key_of(ec2::ATTRIBUTE, name, value);
        }
    }
    if !names.is_empty() {
        to.request_key(ec2::ATTRIBUTE, names);
    }
}

fn apply(
    view: Scoped<'_>,
    change: &mut Change<'_>,
    instance: &Instance,
    wanted: &Wanted,
) -> Result<(), ApiError> {
    // What is done to its interface or its volumes must not meet its end.
    change.expect_unchanged(instance);
    match wanted {
        // Who can't lift a protection can't terminate either.
        Wanted::Protected(false) => {
            change.makes_room();
            change.update(
                instance,
                &Instance {
                    protected: false,
                    ..instance.clone()
                },
            );
        }
        Wanted::Protected(true) => change.update(
            instance,
            &Instance {
                protected: true,
                ..instance.clone()
            },
        ),
        Wanted::StopProtected(stop_protected) => {
            // As above.
            if !stop_protected {
                change.makes_room();
            }
            let stop_protected = *stop_protected;
            change.update(
                instance,
                &Instance {
                    stop_protected,
                    ..instance.clone()
                },
            );
        }
        Wanted::Type(kind) if kind.name == instance.instance_type => {}
        Wanted::Type(kind) => {
            is_stopped(instance, "instanceType")?;
            // Room for its memory was set aside at its launch, and its memory may be there.
            if instance.may_hibernate {
                return Err(ApiError::unsupported(
                    "A change of the type of an instance that may be hibernated",
                ));
            }
            change.update(
                instance,
                &Instance {
                    instance_type: kind.name.to_owned(),
                    ..instance.clone()
                },
            );
        }
        Wanted::UserData(text) => {
            if user_data(view, instance).unwrap_or_default() != *text {
                is_stopped(instance, "userData")?;
                change.update(
                    instance,
                    &Instance {
                        own_user_data: Some(text.clone()),
                        ..instance.clone()
                    },
                );
            }
        }
        Wanted::OnShutdown(on_shutdown) => change.update(
            instance,
            &Instance {
                on_shutdown: *on_shutdown,
                ..instance.clone()
            },
        ),
        Wanted::SourceDestCheck(check) => {
            let source_dest_check = *check;
            for eni in instance.enis.iter().filter_map(|id| view.get::<Eni>(id)) {
                change.update(
                    eni,
                    &Eni {
                        source_dest_check,
                        ..eni.clone()
                    },
                );
            }
        }
        Wanted::Groups(ids) => {
            let found = groups::distinct(groups::by_id(view, &instance.vpc, ids)?)?;
            set_groups(view, change, instance, &found)?;
        }
        Wanted::Volumes(volumes) => {
            for (device, goes) in volumes {
                set_goes_with(view, change, instance, device, *goes)?;
            }
        }
        Wanted::AsIs(fixed, value) => {
            if value != "false" {
                let what = format!("A change of the attribute {}", fixed.name());
                return Err(ApiError::unsupported(&what));
            }
        }
    }
    Ok(())
}

/// What a running machine has is no more to be changed.
fn is_stopped(instance: &Instance, attribute: &str) -> Result<(), ApiError> {
    if instance.state == InstanceState::Stopped {
        return Ok(());
    }
    Err(ApiError::new(
        "IncorrectInstanceState",
        format!(
            "The instance '{}' is not in the 'stopped' state: its '{attribute}' can't be changed",
            instance.id
        ),
    ))
}

fn set_groups(
    view: Scoped<'_>,
    change: &mut Change<'_>,
    instance: &Instance,
    groups: &[GroupId],
) -> Result<(), ApiError> {
    for group in groups {
        refer_to(view, change, group)?;
    }
    for eni in instance.enis.iter().filter_map(|id| view.get::<Eni>(id)) {
        change.update(
            eni,
            &Eni {
                groups: groups.to_vec(),
                ..eni.clone()
            },
        );
    }
    Ok(())
}

fn set_goes_with(
    view: Scoped<'_>,
    change: &mut Change<'_>,
    instance: &Instance,
    device: &str,
    goes: bool,
) -> Result<(), ApiError> {
    let (volume, attachment) = view
        .by(Volume::BY_INSTANCE, instance.id.as_str())
        .filter_map(|v| Some((v, v.attachment.as_ref()?)))
        .find(|(_, a)| a.device == device)
        .ok_or_else(|| {
            let device = quoted(device);
            ApiError::new(
                "InvalidInstanceAttributeValue",
                format!("No device is currently mapped at {device}"),
            )
        })?;
    change.update(
        volume,
        &Volume {
            attachment: Some(VolumeAttachment {
                delete_on_termination: goes,
                ..attachment.clone()
            }),
            ..volume.clone()
        },
    );
    Ok(())
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
        let id = request.instance_id.clone();
        let wanted = wanted(request)?;
        ctx.transact(|view, change| {
            let instance = found::<Instance>(view, &id)?;
            match instance.state {
                InstanceState::ShuttingDown | InstanceState::Terminated => {
                    Err(incorrect_state(instance, "modified"))
                }
                _ => apply(view, change, instance, &wanted),
            }
        })
        .await?;
        Ok(Done::OK)
    }
}
