//! `RunInstances`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RunInstances.html>

mod resolve;

use serde::{Deserialize, Serialize};

use self::resolve::Launch;
use super::{
    super::security_groups::refer_to,
    allocate::{self, PublicAddresses},
    answer::{self, Group, InstanceItem},
    insufficient_capacity,
};
use crate::{
    api::{
        Action, ApiError, Ctx,
        shared::{Row, TagSpecification, tag},
    },
    model::{
        ClientToken, Eni, EniAttachmentId, EniId, Host, Instance, InstanceId, InstanceState,
        Intent, ReservationId, Volume, VolumeAttachment, VolumeId,
    },
    scheduler::{Demand, Ledger},
    store::{Change, Scoped},
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
    pub metadata_options: Option<MetadataInput>,
    /// What the guest's own power-off leads to.
    pub instance_initiated_shutdown_behavior: Option<String>,
    /// Termination protection.
    pub disable_api_termination: Option<bool>,
    /// Where.
    pub placement: Option<PlacementInput>,
    /// The primary interface.
    #[serde(default, rename = "NetworkInterface")]
    pub network_interfaces: Vec<InterfaceInput>,
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

/// `MetadataOptions`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct MetadataInput {
    /// `optional` or `required`.
    pub http_tokens: Option<String>,
    /// 1 to 64.
    pub http_put_response_hop_limit: Option<i64>,
    /// `enabled` or `disabled`.
    pub http_endpoint: Option<String>,
    /// `enabled` or `disabled`.
    pub instance_metadata_tags: Option<String>,
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
    const IAM: &'static str = "ec2:RunInstances";
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
        "DisableApiStop",
        "EbsOptimized",
        "ElasticGpuSpecification",
        "ElasticInferenceAccelerator",
        "EnablePrimaryIpv6",
        "EnclaveOptions",
        "HibernationOptions",
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
    type Request = Request;
    type Response = Response;

    fn resources(request: &Request) -> Vec<String> {
        request
            .image_id
            .iter()
            .chain(&request.subnet_id)
            .cloned()
            .collect()
    }

    fn client_token(request: &Request) -> Option<&str> {
        request.client_token.as_deref()
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let kinds = ["instance", "volume", "network-interface"];
        let tags = tag::specified(&request.tag_specifications, &kinds)?;
        let reservation = ctx
            .transact(|view, change| {
                if let Some(earlier) = earlier(ctx, view)? {
                    return Ok(earlier);
                }
                let launch = resolve::launch(ctx, view, &request)?;
                let count = places(view, &request, &launch)?;
                let reservation = ctx.fresh_id(ReservationId::from_random);
                let mut publics = PublicAddresses::new(view, &ctx.config);
                for index in 0..count {
                    let made = one(
                        ctx,
                        view,
                        change,
                        &launch,
                        &reservation,
                        index,
                        &mut publics,
                    )?;
                    for (kind, tags) in &tags {
                        let id = match *kind {
                            "instance" => made.id.as_str(),
                            "volume" => made.root_volume.as_str(),
                            _ => made.enis[0].as_str(),
                        };
                        change.put_tags(ctx.scope(), id, tags.clone());
                    }
                }
                // What the instances refer to must still be there when they are made.
                change.expect_unchanged(&launch.subnet);
                for group in &launch.groups {
                    refer_to(view, change, group)?;
                }
                if let Some(idempotency) = &ctx.idempotency {
                    change.put(&ClientToken {
                        scope: ctx.scope().clone(),
                        key: idempotency.key.clone(),
                        digest: idempotency.digest.clone(),
                        reservation: reservation.clone(),
                        created: ctx.now(),
                    });
                }
                Ok(reservation)
            })
            .await?;
        let view = ctx.view();
        let view = view.view();
        let mut made: Vec<&Instance> = view
            .by(Instance::BY_RESERVATION, reservation.as_str())
            .collect();
        made.sort_by_key(|i| i.launch_index);
        Ok(Response {
            reservation_id: reservation.to_string(),
            owner_id: ctx.caller.account.clone(),
            group_set: Vec::new(),
            instances_set: made
                .into_iter()
                .map(|i| answer::instance(&Row::new(view, i)))
                .collect(),
        })
    }
}

/// The reservation that a call with the same token has made.
fn earlier(ctx: &Ctx, view: Scoped<'_>) -> Result<Option<ReservationId>, ApiError> {
    let Some(idempotency) = &ctx.idempotency else {
        return Ok(None);
    };
    match view.get::<ClientToken>(&idempotency.key) {
        None => Ok(None),
        Some(token) if token.digest == idempotency.digest => Ok(Some(token.reservation.clone())),
        Some(_) => Err(idempotency.mismatch()),
    }
}

/// How many of them the hosts have room for. Instances that still wait for
/// their place were first.
fn places(view: Scoped<'_>, request: &Request, launch: &Launch) -> Result<u32, ApiError> {
    let cloud = view.whole();
    let mut ledger = Ledger::new(cloud.all::<Host>(), cloud.all::<Instance>());
    let waiting = cloud.by(Instance::UNPLACED, "");
    for waiting in waiting.filter(|i| i.state == InstanceState::Pending) {
        ledger.place(&Demand::of_instance(waiting));
    }
    let demand = Demand::of(launch.kind, &launch.subnet.zone);
    let mut count = 0;
    while count < request.max_count && ledger.place(&demand).is_some() {
        count += 1;
    }
    if count < request.min_count {
        return Err(insufficient_capacity(launch.kind.name, &launch.subnet.zone));
    }
    Ok(count)
}

/// One instance, with its interface, its addresses and its root volume.
fn one(
    ctx: &Ctx,
    view: Scoped<'_>,
    change: &mut Change<'_>,
    launch: &Launch,
    reservation: &ReservationId,
    index: u32,
    publics: &mut PublicAddresses,
) -> Result<Instance, ApiError> {
    let id = ctx.fresh_id(InstanceId::from_random);
    let eni_id = ctx.fresh_id(EniId::from_random);
    let random: u64 = rand::random();
    let private_ip = allocate::private_address(view, change, &launch.subnet, &eni_id, random)?;
    let public_ip = match launch.public {
        true => Some(publics.take(change, &eni_id, None)?),
        false => None,
    };
    let [a, b, c, d, e]: [u8; 5] = rand::random();
    let eni = Eni {
        id: eni_id,
        scope: ctx.scope().clone(),
        vpc: launch.subnet.vpc.clone(),
        subnet: launch.subnet.id.clone(),
        description: launch.description.clone(),
        // Locally administered, unicast.
        mac: [0x02, a, b, c, d, e],
        private_ip,
        public_ip,
        last_public_ip: None,
        auto_public_ip: launch.public,
        groups: launch.groups.clone(),
        source_dest_check: true,
        instance: Some(id.clone()),
        device_index: 0,
        attachment: Some(ctx.fresh_id(EniAttachmentId::from_random)),
    };
    let volume = Volume {
        id: ctx.fresh_id(VolumeId::from_random),
        scope: ctx.scope().clone(),
        zone: launch.subnet.zone.clone(),
        size_gib: launch.volume_gib,
        volume_type: launch.volume_type.clone(),
        image: Some(launch.image.id.clone()),
        created: ctx.now(),
        deleting: false,
        attachment: Some(VolumeAttachment {
            instance: id.clone(),
            device: launch.image.manifest.root_device_name.clone(),
            attached: ctx.now(),
            delete_on_termination: launch.delete_on_termination,
        }),
    };
    let instance = Instance {
        id,
        reservation: reservation.clone(),
        scope: ctx.scope().clone(),
        launch_index: index,
        image: launch.image.id.clone(),
        instance_type: launch.kind.name.to_owned(),
        key_name: launch.key.as_ref().map(|k| k.name.clone()),
        public_key: launch.key.as_ref().map(|k| k.public_key.clone()),
        vpc: launch.subnet.vpc.clone(),
        subnet: launch.subnet.id.clone(),
        zone: launch.subnet.zone.clone(),
        host: None,
        enis: vec![eni.id.clone()],
        root_volume: volume.id.clone(),
        root_device_name: launch.image.manifest.root_device_name.clone(),
        user_data: launch.user_data.clone(),
        client_token: launch.client_token.clone(),
        launched_at: ctx.now(),
        on_shutdown: launch.on_shutdown,
        metadata: launch.metadata.clone(),
        protected: launch.protected,
        intent: Intent::Run,
        state: InstanceState::Pending,
        state_since: ctx.now(),
        state_reason: None,
        transition_reason: String::new(),
        reboots_asked: 0,
        reboots_done: 0,
        reboot: None,
        boots: 1,
    };
    change.put(&eni);
    change.put(&volume);
    change.put(&instance);
    Ok(instance)
}
