//! The attributes of an instance: DescribeInstanceAttribute, ModifyInstanceAttribute and
//! ResetInstanceAttribute follow from one row each.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_InstanceAttribute.html>

use std::collections::BTreeMap;

use super::{
    describe_instance_attribute::{Enclaves, Response, Value},
    groups, incorrect_state,
    input::{flag, shutdown_behavior, type_named, user_data as checked_user_data},
    modify_instance_attribute::{Mapping, Request},
    user_data,
};
use crate::{
    api::{
        ApiError,
        ec2::{instances::answer, security_groups::refer_to},
        wire::quoted,
    },
    model::{Eni, Instance, InstanceState, Settings, Volume, VolumeAttachment},
    store::{Change, Scoped},
};

/// One of them.
pub(super) struct Attribute {
    /// As the parameter `Attribute` calls it.
    pub name: &'static str,
    /// As ModifyInstanceAttribute calls its own parameter, and policies the attribute.
    pub parameter: &'static str,
    /// Puts it into an answer, where it can be asked for.
    pub show: Option<fn(&Shown<'_>, &mut Response)>,
    /// What a request to modify gives it by its own parameter.
    pub given: fn(&Request) -> Option<String>,
    /// What such a request does.
    pub set: Set,
    /// What it is reset to, where it can be.
    pub reset: Option<&'static str>,
}

/// What comes of a request to modify an attribute.
#[derive(Clone, Copy)]
pub(super) enum Set {
    /// It can't be modified.
    Never,
    /// It is so always. EC2 accepts what changes nothing, and tools that fill in its
    /// defaults send it.
    Always(&'static str),
    /// One of the settings, which the value is read into. The last says whether that lifts
    /// a protection: who can't do so can't terminate either, so it needs no room.
    Setting(fn(&mut Settings, &str) -> Result<(), ApiError>, Room),
    /// More than that; the value as text.
    One(fn(&mut Doing<'_, '_, '_>, &str) -> Result<(), ApiError>),
    /// Several values, which the request has in a parameter of its own.
    Several(fn(&mut Doing<'_, '_, '_>, &Request) -> Result<(), ApiError>),
}

/// Whether a change must be carried out when the store's disk is nearly full.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// As any other.
    Needed,
    /// Where the value is `false`.
    MadeByFalse,
}

/// The instance as an answer shows it, and its record.
pub(super) struct Shown<'v> {
    pub view: Scoped<'v>,
    pub instance: &'v Instance,
    pub item: answer::InstanceItem,
}

/// A modification under way.
pub(super) struct Doing<'c, 'd, 'v> {
    pub view: Scoped<'v>,
    pub change: &'c mut Change<'d>,
    pub instance: &'v Instance,
}

fn value<T>(value: T) -> Option<Value<T>> {
    Some(Value { value })
}

/// All of them.
pub(super) const ATTRIBUTES: [Attribute; 16] = [
    Attribute {
        name: "blockDeviceMapping",
        parameter: "BlockDeviceMapping",
        show: Some(|at, to| to.block_device_mapping = Some(at.item.block_device_mapping.clone())),
        given: |request| (!request.block_device_mappings.is_empty()).then(String::new),
        set: Set::Several(set_volumes),
        reset: None,
    },
    Attribute {
        name: "disableApiStop",
        parameter: "DisableApiStop",
        show: Some(|at, to| {
            to.disable_api_stop = value(at.instance.settings.stop_protected);
        }),
        given: |request| request.disable_api_stop.as_ref().map(ToString::to_string),
        set: Set::Setting(
            |settings, value| {
                settings.stop_protected = flag(value)?;
                Ok(())
            },
            Room::MadeByFalse,
        ),
        reset: None,
    },
    Attribute {
        name: "disableApiTermination",
        parameter: "DisableApiTermination",
        show: Some(|at, to| {
            to.disable_api_termination = value(at.instance.settings.protected);
        }),
        given: |request| {
            let flag = request.disable_api_termination.as_ref();
            flag.map(ToString::to_string)
        },
        set: Set::Setting(
            |settings, value| {
                settings.protected = flag(value)?;
                Ok(())
            },
            Room::MadeByFalse,
        ),
        reset: None,
    },
    Attribute {
        name: "ebsOptimized",
        parameter: "EbsOptimized",
        show: Some(|at, to| to.ebs_optimized = value(at.item.ebs_optimized)),
        given: |request| request.ebs_optimized.as_ref().map(ToString::to_string),
        set: Set::Always("false"),
        reset: None,
    },
    // EC2 says of this one that it can't be asked for.
    Attribute {
        name: "enaSupport",
        parameter: "EnaSupport",
        show: None,
        given: |request| request.ena_support.as_ref().map(ToString::to_string),
        set: Set::Always("false"),
        reset: None,
    },
    Attribute {
        name: "enclaveOptions",
        parameter: "EnclaveOptions",
        show: Some(|_, to| to.enclave_options = Some(Enclaves { enabled: false })),
        given: |request| {
            let enclaves = request.enclave_options.as_ref();
            enclaves.map(|enclaves| enclaves.enabled.to_string())
        },
        set: Set::Always("false"),
        reset: None,
    },
    Attribute {
        name: "groupSet",
        parameter: "GroupId",
        show: Some(|at, to| to.group_set = Some(at.item.group_set.clone())),
        given: |request| (!request.groups.is_empty()).then(String::new),
        set: Set::Several(set_groups),
        reset: None,
    },
    Attribute {
        name: "instanceInitiatedShutdownBehavior",
        parameter: "InstanceInitiatedShutdownBehavior",
        show: Some(|at, to| {
            let name = at.instance.settings.on_shutdown.name();
            to.instance_initiated_shutdown_behavior = value(name.to_owned());
        }),
        given: |request| {
            let behavior = request.instance_initiated_shutdown_behavior.as_ref();
            behavior.map(ToString::to_string)
        },
        set: Set::Setting(
            |settings, value| {
                settings.on_shutdown = shutdown_behavior(value)?;
                Ok(())
            },
            Room::Needed,
        ),
        reset: None,
    },
    Attribute {
        name: "instanceType",
        parameter: "InstanceType",
        show: Some(|at, to| to.instance_type = value(at.item.instance_type.clone())),
        given: |request| request.instance_type.as_ref().map(ToString::to_string),
        set: Set::One(set_type),
        reset: None,
    },
    // Of paravirtual instances, which are gone; the other kind has none.
    Attribute {
        name: "kernel",
        parameter: "Kernel",
        show: Some(|_, to| to.kernel = value(None)),
        given: |_| None,
        set: Set::Always(""),
        reset: None,
    },
    Attribute {
        name: "productCodes",
        parameter: "",
        show: Some(|_, to| to.product_codes = Some(Vec::new())),
        given: |_| None,
        set: Set::Never,
        reset: None,
    },
    Attribute {
        name: "ramdisk",
        parameter: "Ramdisk",
        show: Some(|_, to| to.ramdisk = value(None)),
        given: |_| None,
        set: Set::Always(""),
        reset: None,
    },
    Attribute {
        name: "rootDeviceName",
        parameter: "",
        show: Some(|at, to| to.root_device_name = value(at.item.root_device_name.clone())),
        given: |_| None,
        set: Set::Never,
        reset: None,
    },
    Attribute {
        name: "sourceDestCheck",
        parameter: "SourceDestCheck",
        show: Some(|at, to| to.source_dest_check = at.item.source_dest_check.and_then(value)),
        given: |request| request.source_dest_check.as_ref().map(ToString::to_string),
        set: Set::One(set_source_dest_check),
        reset: Some("true"),
    },
    // Enhanced networking by a virtual function: there is none, the interface is virtio.
    Attribute {
        name: "sriovNetSupport",
        parameter: "SriovNetSupport",
        show: Some(|_, to| to.sriov_net_support = value(None)),
        given: |_| None,
        set: Set::Always(""),
        reset: None,
    },
    Attribute {
        name: "userData",
        parameter: "UserData",
        show: Some(|at, to| {
            to.user_data = value(user_data(at.view, at.instance).map(str::to_owned));
        }),
        given: |request| request.user_data.as_ref().map(ToString::to_string),
        set: Set::One(set_user_data),
        reset: None,
    },
];

impl Attribute {
    /// The attribute of this name.
    ///
    /// # Errors
    /// `InvalidParameterValue`.
    pub(super) fn named(name: &str) -> Result<&'static Self, ApiError> {
        let found = ATTRIBUTES.iter().find(|attribute| attribute.name == name);
        found.ok_or_else(|| {
            ApiError::invalid_value("attribute", name, "It is no attribute of an instance.")
        })
    }

    /// `InvalidParameterValue`: the attribute can't be `done` so.
    pub(super) fn cannot_be(&self, done: &str) -> ApiError {
        let why = format!("The attribute can't be {done}.");
        ApiError::invalid_value("attribute", self.name, &why)
    }

    /// Gives it the value that a request has as text.
    pub(super) fn set(&self, doing: &mut Doing<'_, '_, '_>, value: &str) -> Result<(), ApiError> {
        match self.set {
            Set::Never => Err(self.cannot_be("modified")),
            Set::Always(is) if is == value => Ok(()),
            Set::Always(_) => {
                let what = format!("A change of the attribute {}", self.name);
                Err(ApiError::unsupported(&what))
            }
            Set::Setting(read, room) => {
                let mut changed = doing.instance.clone();
                read(&mut changed.settings, value)?;
                if room == Room::MadeByFalse && value == "false" {
                    doing.change.makes_room();
                }
                doing.change.update(doing.instance, &changed);
                Ok(())
            }
            Set::One(set) => set(doing, value),
            Set::Several(_) => Err(ApiError::combination(format!(
                "The attribute {} has a parameter of its own",
                self.name
            ))),
        }
    }
}

/// One that may be modified at all, with what is done to its interfaces or volumes.
///
/// # Errors
/// `IncorrectInstanceState`.
pub(super) fn doing<'c, 'd, 'v>(
    view: Scoped<'v>,
    change: &'c mut Change<'d>,
    instance: &'v Instance,
) -> Result<Doing<'c, 'd, 'v>, ApiError> {
    if matches!(
        instance.state,
        InstanceState::ShuttingDown | InstanceState::Terminated
    ) {
        return Err(incorrect_state(instance, "modified"));
    }
    // It must not meet its end meanwhile.
    change.expect_unchanged(instance);
    Ok(Doing {
        view,
        change,
        instance,
    })
}

impl<'v> Doing<'_, '_, 'v> {
    /// What a running machine has is no more to be changed.
    fn is_stopped(&self, attribute: &str) -> Result<(), ApiError> {
        if self.instance.state == InstanceState::Stopped {
            return Ok(());
        }
        Err(ApiError::new(
            "IncorrectInstanceState",
            format!(
                "The instance '{}' is not in the 'stopped' state: its '{attribute}' can't be changed",
                self.instance.id
            ),
        ))
    }

    fn interfaces(&self) -> impl Iterator<Item = &'v Eni> + use<'v> {
        let (view, instance) = (self.view, self.instance);
        instance.enis.iter().filter_map(move |id| view.get(id))
    }
}

fn set_type(doing: &mut Doing<'_, '_, '_>, name: &str) -> Result<(), ApiError> {
    let (kind, instance) = (type_named(name)?, doing.instance);
    if kind.name == instance.instance_type {
        return Ok(());
    }
    doing.is_stopped("instanceType")?;
    // Room for its memory was set aside at its launch, and its memory may be there.
    if instance.settings.may_hibernate {
        return Err(ApiError::unsupported(
            "A change of the type of an instance that may be hibernated",
        ));
    }
    doing.change.update(
        instance,
        &Instance {
            instance_type: kind.name.to_owned(),
            ..instance.clone()
        },
    );
    Ok(())
}

fn set_user_data(doing: &mut Doing<'_, '_, '_>, text: &str) -> Result<(), ApiError> {
    let (text, instance) = (checked_user_data(Some(text))?, doing.instance);
    // Empty for none.
    let text = text.unwrap_or_default();
    if user_data(doing.view, instance).unwrap_or_default() == text {
        return Ok(());
    }
    doing.is_stopped("userData")?;
    doing.change.update(
        instance,
        &Instance {
            own_user_data: Some(text),
            ..instance.clone()
        },
    );
    Ok(())
}

fn set_source_dest_check(doing: &mut Doing<'_, '_, '_>, check: &str) -> Result<(), ApiError> {
    let source_dest_check = flag(check)?;
    for eni in doing.interfaces() {
        let changed = Eni {
            source_dest_check,
            ..eni.clone()
        };
        doing.change.update(eni, &changed);
    }
    Ok(())
}

fn set_groups(doing: &mut Doing<'_, '_, '_>, request: &Request) -> Result<(), ApiError> {
    let named = groups::by_id(doing.view, &doing.instance.vpc, &request.groups)?;
    let groups = groups::distinct(named)?;
    for group in &groups {
        refer_to(doing.view, doing.change, group)?;
    }
    for eni in doing.interfaces() {
        let groups = groups.clone();
        let changed = Eni {
            groups,
            ..eni.clone()
        };
        doing.change.update(eni, &changed);
    }
    Ok(())
}

fn set_volumes(doing: &mut Doing<'_, '_, '_>, request: &Request) -> Result<(), ApiError> {
    // The last that a request says of a device holds.
    let mut wanted = BTreeMap::new();
    for mapping in &request.block_device_mappings {
        let (device, goes) = volume(mapping)?;
        wanted.insert(device, goes);
    }
    for (device, goes) in wanted {
        set_goes_with(doing, device, goes)?;
    }
    Ok(())
}

fn volume(mapping: &Mapping) -> Result<(&str, bool), ApiError> {
    let device = mapping.device_name.as_deref();
    let device = device.ok_or_else(|| ApiError::missing("BlockDeviceMapping.1.DeviceName"))?;
    let ebs = mapping.ebs.as_ref();
    let goes = ebs
        .and_then(|ebs| ebs.delete_on_termination)
        .ok_or_else(|| ApiError::missing("BlockDeviceMapping.1.Ebs.DeleteOnTermination"))?;
    Ok((device, goes))
}

fn set_goes_with(doing: &mut Doing<'_, '_, '_>, device: &str, goes: bool) -> Result<(), ApiError> {
    let of_instance = (doing.view).by(Volume::BY_INSTANCE, doing.instance.id.as_str());
    let (volume, attachment) = of_instance
        .filter_map(|v| Some((v, v.attachment.as_ref()?)))
        .find(|(_, a)| a.device == device)
        .ok_or_else(|| {
            let device = quoted(device);
            ApiError::new(
                "InvalidInstanceAttributeValue",
                format!("No device is currently mapped at {device}"),
            )
        })?;
    let changed = Volume {
        attachment: Some(VolumeAttachment {
            delete_on_termination: goes,
            ..attachment.clone()
        }),
        ..volume.clone()
    };
    doing.change.update(volume, &changed);
    Ok(())
}
