//! `RunInstances`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RunInstances.html>

mod progress;
mod resolve;
mod targets;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use self::resolve::Resolved;
use super::{
    super::security_groups::refer_to,
    answer::{self, Group, InstanceItem},
    insufficient_addresses, insufficient_capacity,
    launch_data::{launch_data_no_ops, unsupported_launch_data, with_launch_data},
};
use crate::{
    api::{
        Action, ApiError, Ctx, Once, Targets,
        ec2::{launch_templates, listing::Row},
        shared::tag,
    },
    model::{
        EniAttachmentId, EniId, Instance, InstanceId, InstanceState, InstanceType, Launch, Member,
        PublicAddress, PublicPool, Reservation, ReservationId, VolumeId,
    },
    records::launch::{free_in, size},
    scheduler::{Demand, Ledger},
    store::Scoped,
};

/// What a launch makes and can tag.
pub(in crate::api::ec2) const TAGGED: [&str; 3] = ["instance", "volume", "network-interface"];

/// The action.
pub struct RunInstances;

with_launch_data! {
    /// Its parameters.
    Request {
        /// How many at least, or none at all.
        pub min_count: u32,
        /// How many at most.
        pub max_count: u32,
        /// The subnet.
        pub subnet_id: Option<String>,
        /// The token that makes a repeated call harmless.
        pub client_token: Option<String>,
        /// Where the parameters are that the request leaves out.
        pub launch_template: Option<TemplateInput>,
    }
}

/// `LaunchTemplate`: by its id or by its name.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct TemplateInput {
    /// Its id.
    pub launch_template_id: Option<String>,
    /// Its name.
    pub launch_template_name: Option<String>,
    /// Its version; the default one where there is none.
    pub version: Option<String>,
}

/// Its answer: the reservation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// Its id.
    pub reservation_id: String,
    /// Its owner.
    pub owner_id: String,
    /// Groups of EC2-Classic: none.
    pub group_set: Vec<Group>,
    /// The instances.
    pub instances_set: Vec<InstanceItem>,
}

impl Action for RunInstances {
    const NAME: &'static str = "RunInstances";
    const UNSUPPORTED: &'static [&'static str] = unsupported_launch_data!(
        "",
        "AdditionalInfo",
        "BlockDeviceMapping.Ebs.AvailabilityZone",
        "BlockDeviceMapping.Ebs.AvailabilityZoneId",
        "BlockDeviceMapping.Ebs.OutpostArn",
        "EnablePrimaryIpv6",
        "Ipv6Address",
        "Ipv6AddressCount",
        "PrivateIpAddress",
        "RamdiskId",
    );
    const NO_OPS: &'static [(&'static str, &'static str)] = launch_data_no_ops!(
        "",
        ("EnablePrimaryIpv6", "false"),
        ("Ipv6AddressCount", "0"),
    );
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        targets::targets(request, to);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let pool = ctx.config.public_addresses();
        let once = ctx
            .once(|view, change| {
                let (request, template) = from_template(view, &request)?;
                let mut tags = tag::specified(&request.tag_specifications, &TAGGED)?;
                tags.entry("instance").or_default().extend(template);
                let resolved = resolve::launch(ctx, view, &request)?;
                let count = places(view, &request, &resolved)?;
                addresses(view, &resolved, count, pool)?;
                // What the instances refer to must still be there when they are made.
                change.expect_unchanged(resolved.image);
                change.expect_unchanged(resolved.subnet);
                if let Some(key) = resolved.key {
                    change.expect_unchanged(key);
                }
                for group in &resolved.groups {
                    refer_to(view, change, group)?;
                }
                let reservation = reservation(ctx, resolved, count, &tags);
                change.create(&reservation);
                change.leads_to(reservation.pending.as_deref().map_or(0, size));
                Ok(reservation.id.to_string())
            })
            .await?;
        // Also after a repeated call: a crash may have cut the first one short.
        while !progress::make_next(ctx, &once, pool).await? {}
        ctx.answer(move |view| launched(view, once)).await
    }
}

/// The request with what its launch template has, and the tags that tell so.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/launch-instances-from-launch-template.html>
fn from_template(
    view: Scoped<'_>,
    request: &Request,
) -> Result<(Request, BTreeMap<String, String>), ApiError> {
    let Some(input) = &request.launch_template else {
        return Ok((request.clone(), BTreeMap::new()));
    };
    let template = launch_templates::find(
        view,
        input.launch_template_id.as_deref(),
        input.launch_template_name.as_deref(),
    )?;
    let version = launch_templates::version(
        view,
        template,
        input
            .version
            .as_deref()
            .unwrap_or(launch_templates::DEFAULT),
    )?;
    let tags = [
        ("aws:ec2launchtemplate:id", template.id.to_string()),
        ("aws:ec2launchtemplate:version", version.number.to_string()),
    ];
    let tags = tags.map(|(key, value)| (key.to_owned(), value));
    let data = launch_templates::data_of(version)?;
    Ok((request.clone().over(data), tags.into()))
}

/// The instances of a launch, by their indexes.
fn launched(view: Scoped<'_>, once: Once) -> Result<Response, ApiError> {
    let mut made: Vec<&Instance> = view.by(Instance::BY_RESERVATION, &once.made).collect();
    made.sort_by_key(|i| i.launch_index);
    let over = |i: &&Instance| i.state == InstanceState::Terminated;
    if once.repeated && made.iter().all(over) {
        return Err(ApiError::new(
            "IdempotentInstanceTerminated",
            "The client token was used before, and the instances that it launched have been terminated",
        ));
    }
    let instance = |i| answer::instance(&Row::new(view, i));
    Ok(Response {
        reservation_id: once.made,
        owner_id: view.scope().account.clone(),
        group_set: Vec::new(),
        instances_set: made.into_iter().map(instance).collect(),
    })
}

/// The disk that one of them takes: its volume, and room for its memory if it may be
/// hibernated.
fn disk_gib(kind: &InstanceType, volume_gib: u32, may_hibernate: bool) -> u64 {
    let memory = if may_hibernate { kind.memory_gib() } else { 0 };
    u64::from(volume_gib) + memory
}

/// How many of them the hosts have room for. Instances that still wait for
/// their place were first.
fn places(view: Scoped<'_>, request: &Request, launch: &Resolved<'_>) -> Result<u32, ApiError> {
    let cloud = view.whole();
    let mut ledger = Ledger::of(cloud);
    let waiting = cloud.in_order(Instance::UNPLACED);
    for waiting in waiting.filter(|i| i.state == InstanceState::Pending) {
        let _ = ledger.place(&Demand::of_instance(cloud, waiting));
    }
    let under_way = cloud.by(Reservation::PENDING, "");
    for pending in under_way.filter_map(|reservation| reservation.pending.as_ref()) {
        let made = |member: &&Member| cloud.find::<Instance>(&member.instance).is_some();
        let kind = InstanceType::find(&pending.instance_type);
        let demand = kind.map(|kind| {
            let disk = disk_gib(kind, pending.volume_gib, pending.settings.may_hibernate);
            Demand::of(kind, &pending.zone, disk)
        });
        for _ in pending.members.iter().filter(|member| !made(member)) {
            demand.iter().for_each(|demand| {
                let _ = ledger.place(demand);
            });
        }
    }
    let disk = disk_gib(
        launch.kind,
        launch.volume_gib,
        launch.settings.may_hibernate,
    );
    let demand = Demand::of(launch.kind, &launch.subnet.zone, disk);
    for count in 0..request.max_count {
        match ledger.place(&demand) {
            Ok(_) => {}
            Err(_) if count >= request.min_count => return Ok(count),
            Err(missing) => {
                return Err(insufficient_capacity(
                    launch.kind.name,
                    &launch.subnet.zone,
                    &missing,
                ));
            }
        }
    }
    Ok(request.max_count)
}

/// Whether there are addresses for so many: it may have changed when they are
/// taken, and a call that could never have been carried out is refused here.
fn addresses(
    view: Scoped<'_>,
    resolved: &Resolved<'_>,
    count: u32,
    pool: PublicPool,
) -> Result<(), ApiError> {
    let count = count as usize;
    if free_in(view, resolved.subnet) < count {
        return Err(ApiError::new(
            "InsufficientFreeAddressesInSubnet",
            format!(
                "There are not enough free addresses in subnet '{}' to satisfy the requested number of instances.",
                resolved.subnet.id
            ),
        ));
    }
    let taken = view.whole().count::<PublicAddress>();
    if resolved.public && (pool.count() as usize).saturating_sub(taken) < count {
        return Err(insufficient_addresses());
    }
    Ok(())
}

/// What is going to be made, with every id that it will have.
fn reservation(
    ctx: &Ctx,
    resolved: Resolved<'_>,
    count: u32,
    tags: &BTreeMap<&'static str, BTreeMap<String, String>>,
) -> Reservation {
    let member = |_| {
        let [a, b, c, d, e]: [u8; 5] = rand::random();
        Member {
            instance: ctx.fresh_id(InstanceId::from_random),
            eni: ctx.fresh_id(EniId::from_random),
            attachment: ctx.fresh_id(EniAttachmentId::from_random),
            // Locally administered, unicast.
            mac: [0x02, a, b, c, d, e],
            volume: ctx.fresh_id(VolumeId::from_random),
        }
    };
    let tags = |kind: &str| tags.get(kind).cloned().unwrap_or_default();
    let launch = Launch {
        members: (0..count).map(member).collect(),
        image: resolved.image.id.clone(),
        root_device_name: resolved.image.manifest.root_device_name.clone(),
        instance_type: resolved.kind.name.to_owned(),
        key_name: resolved.key.map(|key| key.name.clone()),
        public_key: resolved.key.map(|key| key.public_key.clone()),
        vpc: resolved.subnet.vpc.clone(),
        subnet: resolved.subnet.id.clone(),
        zone: resolved.subnet.zone.clone(),
        groups: resolved.groups,
        public: resolved.public,
        description: resolved.description,
        volume_gib: resolved.volume_gib,
        volume_type: resolved.volume_type,
        delete_on_termination: resolved.delete_on_termination,
        client_token: resolved.client_token,
        settings: resolved.settings,
        instance_tags: tags("instance"),
        volume_tags: tags("volume"),
        interface_tags: tags("network-interface"),
        refused: false,
    };
    Reservation {
        id: ctx.fresh_id(ReservationId::from_random),
        scope: ctx.scope().clone(),
        created: ctx.now(),
        user_data: resolved.user_data,
        pending: Some(Box::new(launch)),
    }
}
