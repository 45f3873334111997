//! What a launch is about: all that it takes, and all that it makes.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ExamplePolicies_EC2.html#iam-example-runinstances>

use super::{
    super::{launch_data::InterfaceInput, metadata_options},
    Request, from_template,
    resolve::{default_subnet, public, root_volume, subnet_id, zone},
};
use crate::{
    api::{Targets, ec2::launch_templates},
    model::{
        ConditionKey, Described as _, Eni, Image, Instance, KeyPair, SecurityGroup, Subnet, Volume,
        Vpc, condition_key::ec2, zone_id,
    },
};

/// Resolves a launch, before anything of it is checked.
pub(super) fn targets(request: &Request, to: &mut Targets<'_>) {
    let view = to.view();
    if let Some(input) = &request.launch_template {
        let (id, name) = (&input.launch_template_id, &input.launch_template_name);
        launch_templates::target(to, id.as_deref(), name.as_deref());
    }
    // One that can't be used is refused when the call is carried out.
    let merged = from_template(view, request).map(|(merged, _)| merged);
    let request = merged.as_ref().unwrap_or(request);
    let image = request.image_id.as_ref().and_then(|id| {
        to.visible::<Image>(id);
        view.visible::<Image>(&id.parse().ok()?)
    });
    let interface = request.network_interfaces.first();
    let zone = zone(request);
    let given = subnet_id(request, interface);
    let subnet = match given {
        Some(id) => id.parse().ok().and_then(|id| view.find::<Subnet>(&id)),
        None => default_subnet(view, zone),
    };
    match (subnet, given) {
        (Some(subnet), _) => to.existing(subnet),
        (None, Some(id)) => to.absent::<Subnet>(id),
        (None, None) => {}
    }
    let ids = interface.map_or(&request.security_group_ids, |i| &i.groups);
    to.named::<SecurityGroup>(ids);
    let mut names: Vec<&str> = request.security_groups.iter().map(String::as_str).collect();
    if ids.is_empty() && names.is_empty() {
        names.push("default");
    }
    for name in names {
        let key = subnet.map(|subnet| SecurityGroup::named(&subnet.vpc, name));
        match key.and_then(|key| view.by(SecurityGroup::BY_NAME, &key).next()) {
            Some(group) => to.existing(group),
            None => to.absent::<SecurityGroup>(name),
        }
    }
    if let Some(name) = &request.key_name {
        match view.get::<KeyPair>(name) {
            Some(pair) => to.existing(pair),
            None => to.absent::<KeyPair>(name),
        }
    }
    let zone = zone.or(subnet.map(|subnet| subnet.zone.as_str()));
    let zone = zone.map(|zone| (ec2::AVAILABILITY_ZONE, zone.to_owned()));
    let zone = || zone.clone().into_iter();
    let zone_id = || zone().map(|(_, name)| (ec2::AVAILABILITY_ZONE_ID, zone_id(&name)));
    let tags = &request.tag_specifications;
    to.made::<Instance>(zone().chain(zone_id()).chain(instance_keys(request)), tags);
    to.made::<Volume>(
        zone().chain(zone_id()).chain(volume_keys(request, image)),
        tags,
    );
    let eni = subnet.map(|subnet| eni_keys(interface, subnet));
    to.made::<Eni>(zone().chain(eni.into_iter().flatten()), tags);
}

// What is made is known by what it will have, defaults included. What is left out
// here, or wrong, is refused when the call is carried out.

fn instance_keys(request: &Request) -> impl Iterator<Item = (ConditionKey, String)> {
    let kind = request.instance_type.clone();
    let kind = kind.map(|kind| (ec2::INSTANCE_TYPE, kind));
    let alike = Instance::FIXED_CONDITIONS.map(|(key, value)| (key, value.to_owned()));
    let metadata = metadata_options::at_launch(request.metadata_options.as_ref()).ok();
    let metadata = metadata.map(|options| options.conditions());
    kind.into_iter()
        .chain(alike)
        .chain(metadata.into_iter().flatten())
}

fn volume_keys(
    request: &Request,
    image: Option<&Image>,
) -> impl Iterator<Item = (ConditionKey, String)> {
    let (size, class) = match image.and_then(|image| root_volume(request, image).ok()) {
        Some((size, class, _)) => (Some(size), Some(class)),
        None => {
            let ebs = request.block_device_mappings.first();
            let ebs = ebs.and_then(|mapping| mapping.ebs.as_ref());
            let size = ebs.and_then(|ebs| ebs.volume_size);
            (size, ebs.and_then(|ebs| ebs.volume_type.clone()))
        }
    };
    let size = size.map(|size| (ec2::VOLUME_SIZE, size.to_string()));
    let class = class.map(|class| (ec2::VOLUME_TYPE, class));
    let plain = (ec2::ENCRYPTED, "false".to_owned());
    [plain].into_iter().chain(size).chain(class)
}

fn eni_keys(interface: Option<&InterfaceInput>, subnet: &Subnet) -> [(ConditionKey, String); 3] {
    let vpc = Vpc::arn_at(&subnet.scope, subnet.vpc.as_str());
    [
        (
            ec2::ASSOCIATE_PUBLIC_IP_ADDRESS,
            public(interface, subnet).to_string(),
        ),
        (ec2::SUBNET, subnet.arn().to_string()),
        (ec2::VPC, vpc.to_string()),
    ]
}
