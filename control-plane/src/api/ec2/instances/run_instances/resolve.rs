//! From the parameters to what they mean.

use super::Request;
use crate::api::ec2::instances::{
    groups,
    input::{shutdown_behavior, type_named, user_data},
    launch_data::InterfaceInput,
    metadata_options,
};
use crate::{
    api::{
        ApiError, Ctx,
        shared::{found, found_visible},
        wire::quoted,
    },
    model::{
        GroupId, Host, Image, InstanceType, KeyPair, SecurityGroup, Settings, ShutdownBehavior,
        Subnet, VpcId,
    },
    store::Scoped,
};

/// The most instances of one call.
const MAX_COUNT: u32 = 1000;
/// The biggest volume, in GiB, as gp2's and gp3's on EC2.
const MAX_VOLUME: u32 = 16 * 1024;

/// What a request means.
pub(super) struct Resolved<'v> {
    pub image: &'v Image,
    pub kind: &'static InstanceType,
    pub subnet: &'v Subnet,
    pub groups: Vec<GroupId>,
    pub public: bool,
    pub description: String,
    pub key: Option<&'v KeyPair>,
    pub user_data: Option<String>,
    pub client_token: Option<String>,
    pub volume_gib: u32,
    pub volume_type: String,
    pub delete_on_termination: bool,
    pub settings: Settings,
}

pub(super) fn launch<'v>(
    ctx: &Ctx,
    view: Scoped<'v>,
    request: &Request,
) -> Result<Resolved<'v>, ApiError> {
    count(request)?;
    let image = image(view, request)?;
    let kind = instance_type(request)?;
    let interface = interface(request)?;
    let subnet = subnet(ctx, view, request, interface)?;
    let groups = groups(view, request, interface, subnet)?;
    let key = match &request.key_name {
        None => None,
        Some(name) => Some(view.get::<KeyPair>(name).ok_or_else(|| {
            ApiError::new(
                "InvalidKeyPair.NotFound",
                format!("The key pair '{}' does not exist", quoted(name)),
            )
        })?),
    };
    let (volume_gib, volume_type, delete_on_termination) = root_volume(request, image)?;
    Ok(Resolved {
        kind,
        groups,
        public: public(interface, subnet),
        description: interface
            .and_then(|i| i.description.clone())
            .unwrap_or_default(),
        key,
        user_data: user_data(request.user_data.as_deref())?,
        client_token: request.client_token.clone(),
        volume_gib,
        volume_type,
        delete_on_termination,
        settings: settings(request)?,
        image,
        subnet,
    })
}

/// How the instances shall behave.
fn settings(request: &Request) -> Result<Settings, ApiError> {
    let hibernation = request.hibernation_options.as_ref();
    Ok(Settings {
        metadata: metadata_options::at_launch(request.metadata_options.as_ref())?,
        on_shutdown: match request.instance_initiated_shutdown_behavior.as_deref() {
            None => ShutdownBehavior::Stop,
            Some(name) => shutdown_behavior(name)?,
        },
        protected: request.disable_api_termination.unwrap_or(false),
        stop_protected: request.disable_api_stop.unwrap_or(false),
        may_hibernate: hibernation
            .and_then(|options| options.configured)
            .unwrap_or(false),
    })
}

/// Whether the instances get public addresses.
pub(super) fn public(interface: Option<&InterfaceInput>, subnet: &Subnet) -> bool {
    interface
        .and_then(|i| i.associate_public_ip_address)
        .unwrap_or(subnet.map_public_ip)
}

pub(super) fn zone(request: &Request) -> Option<&str> {
    request.placement.as_ref()?.availability_zone.as_deref()
}

pub(super) fn subnet_id<'r>(
    request: &'r Request,
    interface: Option<&'r InterfaceInput>,
) -> Option<&'r String> {
    let of_interface = interface.and_then(|i| i.subnet_id.as_ref());
    request.subnet_id.as_ref().or(of_interface)
}

pub(super) fn default_subnet<'v>(view: Scoped<'v>, zone: Option<&str>) -> Option<&'v Subnet> {
    let default = |zone: &str| {
        view.all::<Subnet>()
            .find(|s| s.is_default && s.zone == zone)
    };
    // Where none is asked for, one that has a host is better than another.
    let hosts = || view.whole().all::<Host>().map(|host| host.zone.as_str());
    let all = || view.all::<Subnet>().find(|s| s.is_default);
    zone.map_or_else(|| hosts().find_map(default).or_else(all), default)
}

fn count(request: &Request) -> Result<(), ApiError> {
    let (min, max) = (request.min_count, request.max_count);
    if min == 0 {
        return Err(ApiError::invalid_value(
            "minCount",
            "0",
            "It must be at least 1.",
        ));
    }
    if max < min {
        let why = "It must not be less than minCount.";
        return Err(ApiError::invalid_value("maxCount", &max.to_string(), why));
    }
    if max > MAX_COUNT {
        return Err(ApiError::new(
            "InstanceLimitExceeded",
            format!(
                "You have requested more instances ({max}) than one call may make, {MAX_COUNT}."
            ),
        ));
    }
    Ok(())
}

fn image<'v>(view: Scoped<'v>, request: &Request) -> Result<&'v Image, ApiError> {
    let id = request
        .image_id
        .as_ref()
        .ok_or_else(|| ApiError::missing("ImageId"))?;
    found_visible::<Image>(view, id)
}

fn instance_type(request: &Request) -> Result<&'static InstanceType, ApiError> {
    let name = request.instance_type.as_deref();
    type_named(name.ok_or_else(|| ApiError::missing("InstanceType"))?)
}

fn interface(request: &Request) -> Result<Option<&InterfaceInput>, ApiError> {
    let Some(first) = request.network_interfaces.first() else {
        return Ok(None);
    };
    if request.network_interfaces.len() > 1 {
        return Err(ApiError::unsupported("More than one NetworkInterface"));
    }
    match first.device_index {
        Some(0) => {}
        None => return Err(ApiError::missing("NetworkInterface.1.DeviceIndex")),
        Some(other) => {
            return Err(ApiError::unsupported(&format!(
                "The value {other} of the parameter NetworkInterface.1.DeviceIndex"
            )));
        }
    }
    if first.delete_on_termination == Some(false) {
        return Err(ApiError::unsupported(
            "The value false of the parameter NetworkInterface.1.DeleteOnTermination",
        ));
    }
    if request.subnet_id.is_some() {
        return Err(ApiError::combination(
            "Network interfaces and an instance-level subnet ID may not be specified on the same request",
        ));
    }
    if !request.security_group_ids.is_empty() || !request.security_groups.is_empty() {
        return Err(ApiError::combination(
            "Network interfaces and an instance-level security groups may not be specified on the same request",
        ));
    }
    Ok(Some(first))
}

fn subnet<'v>(
    ctx: &Ctx,
    view: Scoped<'v>,
    request: &Request,
    interface: Option<&InterfaceInput>,
) -> Result<&'v Subnet, ApiError> {
    let zone = zone(request);
    if let Some(id) = subnet_id(request, interface) {
        let subnet = found::<Subnet>(view, id)?;
        if zone.is_some_and(|z| z != subnet.zone) {
            return Err(ApiError::combination(format!(
                "The subnet '{}' is not in the availability zone that Placement names",
                subnet.id
            )));
        }
        return Ok(subnet);
    }
    if let Some(zone) = zone
        && !ctx
            .config
            .zones_of(&view.scope().region)
            .iter()
            .any(|z| z == zone)
    {
        let why = "It is no availability zone of this region.";
        return Err(ApiError::invalid_value(
            "Placement.AvailabilityZone",
            zone,
            why,
        ));
    }
    default_subnet(view, zone).ok_or_else(|| {
        ApiError::new(
            "MissingInput",
            format!(
                "No default subnet{}: SubnetId must be given",
                zone.map(|zone| format!(" for the availability zone {zone}"))
                    .unwrap_or_default()
            ),
        )
    })
}

fn groups(
    view: Scoped<'_>,
    request: &Request,
    interface: Option<&InterfaceInput>,
    subnet: &Subnet,
) -> Result<Vec<GroupId>, ApiError> {
    let ids = interface.map_or(&request.security_group_ids, |i| &i.groups);
    if !request.security_groups.is_empty() && request.subnet_id.is_some() {
        return Err(ApiError::combination(
            "The parameter groupName cannot be used with the parameter subnet",
        ));
    }
    let mut groups = groups::by_id(view, &subnet.vpc, ids)?;
    for name in &request.security_groups {
        groups.push(group_named(view, &subnet.vpc, name)?);
    }
    if groups.is_empty() {
        groups.push(group_named(view, &subnet.vpc, "default")?);
    }
    groups::distinct(groups)
}

fn group_named(view: Scoped<'_>, vpc: &VpcId, name: &str) -> Result<GroupId, ApiError> {
    view.by(SecurityGroup::BY_NAME, &SecurityGroup::named(vpc, name))
        .next()
        .map(|g| g.id.clone())
        .ok_or_else(|| {
            let name = quoted(name);
            ApiError::new(
                "InvalidGroup.NotFound",
                format!("The security group '{name}' does not exist in VPC '{vpc}'"),
            )
        })
}

/// Its size in GiB, its type, and whether it goes with the instance.
pub(super) fn root_volume(
    request: &Request,
    image: &Image,
) -> Result<(u32, String, bool), ApiError> {
    let manifest = &image.manifest;
    let least = u32::try_from(manifest.disk_size.div_ceil(1 << 30))
        .unwrap_or(u32::MAX)
        .max(1);
    let Some(mapping) = request.block_device_mappings.first() else {
        return Ok((least, "gp3".into(), true));
    };
    let invalid = |message: String| ApiError::new("InvalidBlockDeviceMapping", message);
    let device = mapping
        .device_name
        .as_deref()
        .ok_or_else(|| ApiError::missing("BlockDeviceMapping.1.DeviceName"))?;
    if device != manifest.root_device_name || request.block_device_mappings.len() > 1 {
        return Err(ApiError::unsupported(&format!(
            "A BlockDeviceMapping other than the root device's, {},",
            manifest.root_device_name
        )));
    }
    let ebs = mapping
        .ebs
        .as_ref()
        .ok_or_else(|| invalid(format!("The device '{device}' has no Ebs parameters")))?;
    let size = ebs.volume_size.unwrap_or(least);
    if size < least {
        return Err(invalid(format!(
            "Volume of size {size}GB is smaller than image '{}', expect size >= {least}GB",
            image.id
        )));
    }
    if size > MAX_VOLUME {
        return Err(invalid(format!(
            "Volume of size {size}GB is bigger than {MAX_VOLUME}GB"
        )));
    }
    // Their performance is the host's; types that promise another are refused.
    let kind = ebs.volume_type.as_deref().unwrap_or("gp3");
    if !["gp2", "gp3", "standard"].contains(&kind) {
        return Err(ApiError::unsupported(&format!(
            "The value {} of the parameter BlockDeviceMapping.1.Ebs.VolumeType",
            quoted(kind)
        )));
    }
    Ok((
        size,
        kind.to_owned(),
        ebs.delete_on_termination.unwrap_or(true),
    ))
}
