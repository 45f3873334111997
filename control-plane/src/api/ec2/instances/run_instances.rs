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
    insufficient_addresses, insufficient_capacity, metadata_options,
};
use crate::{
    api::{
        Action, ApiError, Ctx, Once, Targets,
        ec2::listing::Row,
        shared::{TagSpecification, tag},
    },
    model::{
        EniAttachmentId, EniId, Instance, InstanceId, InstanceState, InstanceType, Launch, Member,
        PublicAddress, PublicPool, Reservation, ReservationId, VolumeId,
    },
    records::launch::{free_in, size},
    scheduler::{Demand, Ledger},
    store::Scoped,
};

/// The action.
pub struct RunInstances;

/// Its parameters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Request {
    /// The image.
    pub image_id: Option<String>,
    /// The instance type; must be given, the type that EC2 defaults to is not there.
    pub instance_type: Option<String>,
    /// How many at least, or none at all.
    pub min_count: u32,
    /// How many at most.
    pub max_count: u32,
    /// The key pair.
    pub key_name: Option<String>,
    /// The security groups by id.
    #[serde(default, rename = "SecurityGroupId")]
    pub security_group_ids: Vec<String>,
    /// The security groups by name, in the default VPC.
    #[serde(default, rename = "SecurityGroup")]
    pub security_groups: Vec<String>,
    /// The subnet.
    pub subnet_id: Option<String>,
    /// User data, base64.
    pub user_data: Option<String>,
    /// Tags for what is made.
    #[serde(default, rename = "TagSpecification")]
    pub tag_specifications: Vec<TagSpecification>,
    /// The token that makes a repeated call harmless.
    pub client_token: Option<String>,
    /// The root volume.
    #[serde(default, rename = "BlockDeviceMapping")]
    pub block_device_mappings: Vec<BlockDeviceMapping>,
    /// How the instance may ask for metadata.
    pub metadata_options: Option<metadata_options::Input>,
    /// What the guest's own power-off leads to.
    pub instance_initiated_shutdown_behavior: Option<String>,
    /// Termination protection.
    pub disable_api_termination: Option<bool>,
    /// Protection from being stopped.
    pub disable_api_stop: Option<bool>,
    /// Where.
    pub placement: Option<PlacementInput>,
    /// The primary interface.
    #[serde(default, rename = "NetworkInterface")]
    pub network_interfaces: Vec<InterfaceInput>,
    /// Whether it may be hibernated.
    pub hibernation_options: Option<HibernationInput>,
}

/// `HibernationOptions`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct HibernationInput {
    /// Whether it may be.
    pub configured: Option<bool>,
}

/// A volume of the request.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct BlockDeviceMapping {
    /// The device: the image's root device.
    pub device_name: Option<String>,
    /// The volume.
    pub ebs: Option<EbsInput>,
}

/// The volume there.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct EbsInput {
    /// In GiB.
    pub volume_size: Option<u32>,
    /// `gp2`, `gp3` or `standard`.
    pub volume_type: Option<String>,
    /// Whether it goes with the instance.
    pub delete_on_termination: Option<bool>,
}

/// `Placement`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct PlacementInput {
    /// The zone.
    pub availability_zone: Option<String>,
}

/// `NetworkInterface`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct InterfaceInput {
    /// Whether it gets a public address.
    pub associate_public_ip_address: Option<bool>,
    /// Whether it goes with the instance: it does.
    pub delete_on_termination: Option<bool>,
    /// In words.
    pub description: Option<String>,
    /// 0, the primary.
    pub device_index: Option<u32>,
    /// Its groups.
    #[serde(default, rename = "SecurityGroupId")]
    pub groups: Vec<String>,
    /// Its subnet.
    pub subnet_id: Option<String>,
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
    const UNSUPPORTED: &'static [&'static str] = &[
        "AdditionalInfo",
        "BlockDeviceMapping.Ebs.AvailabilityZone",
        "BlockDeviceMapping.Ebs.AvailabilityZoneId",
        "BlockDeviceMapping.Ebs.EbsCardIndex",
        "BlockDeviceMapping.Ebs.Encrypted",
        "BlockDeviceMapping.Ebs.Iops",
        "BlockDeviceMapping.Ebs.KmsKeyId",
        "BlockDeviceMapping.Ebs.OutpostArn",
        "BlockDeviceMapping.Ebs.SnapshotId",
        "BlockDeviceMapping.Ebs.Throughput",
        "BlockDeviceMapping.Ebs.VolumeInitializationRate",
        "BlockDeviceMapping.NoDevice",
        "BlockDeviceMapping.VirtualName",
        "CapacityReservationSpecification",
        "CpuOptions",
        "CreditSpecification",
        "EbsOptimized",
        "ElasticGpuSpecification",
        "ElasticInferenceAccelerator",
        "EnablePrimaryIpv6",
        "EnclaveOptions",
        "IamInstanceProfile",
        "InstanceMarketOptions",
        "Ipv6Address",
        "Ipv6AddressCount",
        "KernelId",
        "LaunchTemplate",
        "LicenseSpecification",
        "MaintenanceOptions",
        "MetadataOptions.HttpProtocolIpv6",
        "Monitoring",
        "NetworkInterface.AssociateCarrierIpAddress",
        "NetworkInterface.ConnectionTrackingSpecification",
        "NetworkInterface.EnaQueueCount",
        "NetworkInterface.EnaSrdSpecification",
        "NetworkInterface.InterfaceType",
        "NetworkInterface.Ipv4Prefix",
        "NetworkInterface.Ipv4PrefixCount",
        "NetworkInterface.Ipv6AddressCount",
        "NetworkInterface.Ipv6Addresses",
        "NetworkInterface.Ipv6Prefix",
        "NetworkInterface.Ipv6PrefixCount",
        "NetworkInterface.NetworkCardIndex",
        "NetworkInterface.NetworkInterfaceId",
        "NetworkInterface.PrimaryIpv6",
        "NetworkInterface.PrivateIpAddress",
        "NetworkInterface.PrivateIpAddresses",
        "NetworkInterface.SecondaryPrivateIpAddressCount",
        "NetworkPerformanceOptions",
        "Operator",
        "Placement.Affinity",
        "Placement.AvailabilityZoneId",
        "Placement.GroupId",
        "Placement.GroupName",
        "Placement.HostId",
        "Placement.HostResourceGroupArn",
        "Placement.PartitionNumber",
        "Placement.SpreadDomain",
        "Placement.Tenancy",
        "PrivateDnsNameOptions",
        "PrivateIpAddress",
        "RamdiskId",
        "SecondaryInterface",
    ];
    const NO_OPS: &'static [(&'static str, &'static str)] = &[
        ("BlockDeviceMapping.Ebs.Encrypted", "false"),
        (
            "CapacityReservationSpecification.CapacityReservationPreference",
            "open",
        ),
        ("EbsOptimized", "false"),
        ("EnablePrimaryIpv6", "false"),
        ("EnclaveOptions.Enabled", "false"),
        ("IamInstanceProfile", ""),
        ("IamInstanceProfile.Arn", ""),
        ("IamInstanceProfile.Name", ""),
        ("Ipv6AddressCount", "0"),
        ("MaintenanceOptions.AutoRecovery", "default"),
        ("MetadataOptions.HttpProtocolIpv6", "disabled"),
        ("Monitoring.Enabled", "false"),
        ("NetworkInterface.InterfaceType", "interface"),
        ("NetworkInterface.Ipv6AddressCount", "0"),
        ("NetworkInterface.NetworkCardIndex", "0"),
        ("NetworkInterface.SecondaryPrivateIpAddressCount", "0"),
        ("Placement", ""),
        ("Placement.GroupName", ""),
        ("Placement.Tenancy", ""),
        ("Placement.Tenancy", "default"),
        ("TagSpecification.Tag", ""),
    ];
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        targets::targets(request, to);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let kinds = ["instance", "volume", "network-interface"];
        let tags = tag::specified(&request.tag_specifications, &kinds)?;
        let pool = ctx.config.public_addresses();
        let once = ctx
            .once(|view, change| {
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
