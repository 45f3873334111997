//! `DescribeInstanceTypes`: of what EC2 tells of a type, what is true here.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstanceTypes.html>

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        ApiError,
        ec2::listing::{Filterable, Table, TagsOf, describe},
        wire::quoted,
    },
    model::{INSTANCE_TYPES, InstanceType},
};

describe! {
    DescribeInstanceTypes {
        ids: "InstanceType",
        set: instance_type_set of Item,
        unsupported: ["IncludeUnsupportedInRegion"],
        pages: 5..=100,
        page: |asked, _| {
            let types = named(&asked.ids)?;
            let (types, next_token) = asked.page_of(types, |t| t.name.to_owned())?;
            Ok((types.into_iter().map(Item::new).collect(), next_token))
        },
    }
}

/// The types of these names, or all, in the order of their names.
fn named(names: &[String]) -> Result<Vec<&'static InstanceType>, ApiError> {
    let unknown = names.iter().find(|n| InstanceType::find(n).is_none());
    if let Some(unknown) = unknown {
        let message = format!(
            "The following supplied instance types do not exist: [{}]",
            quoted(unknown)
        );
        return Err(ApiError::new("InvalidInstanceType", message));
    }
    let found = INSTANCE_TYPES.iter();
    let found = found.filter(|t| names.is_empty() || names.iter().any(|n| n == t.name));
    Ok(found.collect())
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    instance_type: String,
    current_generation: bool,
    supported_usage_classes: Vec<String>,
    supported_root_device_types: Vec<String>,
    supported_virtualization_types: Vec<String>,
    bare_metal: bool,
    hypervisor: String,
    processor_info: Processor,
    v_cpu_info: Vcpus,
    memory_info: Memory,
    ebs_info: Ebs,
    network_info: Network,
    instance_storage_supported: bool,
    hibernation_supported: bool,
    burstable_performance_supported: bool,
    dedicated_hosts_supported: bool,
    auto_recovery_supported: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Processor {
    supported_architectures: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Vcpus {
    default_v_cpus: u8,
    default_cores: u8,
    default_threads_per_core: u8,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    #[serde(rename = "sizeInMiB")]
    size_in_mib: u32,
}

/// What a volume is reached over: virtio, in clear, beside everything else.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ebs {
    ebs_optimized_support: String,
    encryption_support: String,
    nvme_support: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Network {
    maximum_network_interfaces: u8,
    maximum_network_cards: u8,
    default_network_card_index: u8,
    network_cards: Vec<Card>,
    ipv4_addresses_per_interface: u8,
    ipv6_addresses_per_interface: u8,
    ipv6_supported: bool,
    ena_support: String,
    efa_supported: bool,
    encryption_in_transit_supported: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Card {
    network_card_index: u8,
    maximum_network_interfaces: u8,
    baseline_bandwidth_in_gbps: Option<f64>,
}

impl Network {
    fn new(t: &InstanceType) -> Self {
        Self {
            maximum_network_interfaces: t.interfaces,
            maximum_network_cards: 1,
            default_network_card_index: 0,
            network_cards: vec![Card {
                network_card_index: 0,
                maximum_network_interfaces: t.interfaces,
                baseline_bandwidth_in_gbps: t.network_mbps.map(|mbps| f64::from(mbps) / 1000.0),
            }],
            ipv4_addresses_per_interface: t.addresses,
            ipv6_addresses_per_interface: 0,
            ipv6_supported: false,
            // The interface is virtio's.
            ena_support: UNSUPPORTED.into(),
            efa_supported: false,
            encryption_in_transit_supported: false,
        }
    }
}

const UNSUPPORTED: &str = "unsupported";

/// Every type here counts as of the current generation.
impl Filterable for &InstanceType {
    const TAGS: Option<TagsOf<Self>> = None;

    fn filters() -> Table<Self> {
        Table::<Self>::new()
            .on_each(
                [
                    "auto-recovery-supported",
                    "bare-metal",
                    "dedicated-hosts-supported",
                    "instance-storage-supported",
                    "network-info.efa-supported",
                    "network-info.encryption-in-transit-supported",
                    "network-info.ipv6-supported",
                ],
                |_, out| out.add(false),
            )
            .on_each(
                [
                    "ebs-info.ebs-optimized-support",
                    "ebs-info.encryption-support",
                    "ebs-info.nvme-support",
                    "network-info.ena-support",
                ],
                |_, out| out.add(UNSUPPORTED),
            )
            .on("hypervisor", |t, out| out.add(t.hypervisor()))
            .on("network-info.ipv4-addresses-per-interface", |t, out| {
                out.add(t.addresses);
            })
            .on("network-info.ipv6-addresses-per-interface", |_, out| {
                out.add(0)
            })
            .on("network-info.maximum-network-cards", |_, out| out.add(1))
            .on("network-info.maximum-network-interfaces", |t, out| {
                out.add(t.interfaces);
            })
            .on("burstable-performance-supported", |t, out| {
                out.add(t.burstable());
            })
            .on_each(["current-generation", "hibernation-supported"], |_, out| {
                out.add(true)
            })
            .on("instance-type", |t, out| out.add(t.name))
            .on("memory-info.size-in-mib", |t, out| out.add(t.memory_mib))
            .on("processor-info.supported-architecture", |_, out| {
                out.add("x86_64");
            })
            .on("supported-root-device-type", |_, out| out.add("ebs"))
            .on("supported-usage-class", |_, out| out.add("on-demand"))
            .on("supported-virtualization-type", |_, out| out.add("hvm"))
            .on_each(
                ["vcpu-info.default-cores", "vcpu-info.default-vcpus"],
                |t, out| out.add(t.vcpus),
            )
            .on("vcpu-info.default-threads-per-core", |_, out| out.add(1))
    }
}

impl Item {
    fn new(t: &InstanceType) -> Self {
        Self {
            instance_type: t.name.into(),
            current_generation: true,
            supported_usage_classes: vec!["on-demand".into()],
            supported_root_device_types: vec!["ebs".into()],
            supported_virtualization_types: vec!["hvm".into()],
            bare_metal: false,
            hypervisor: t.hypervisor().into(),
            processor_info: Processor {
                supported_architectures: vec!["x86_64".into()],
            },
            v_cpu_info: Vcpus {
                default_v_cpus: t.vcpus,
                default_cores: t.vcpus,
                default_threads_per_core: 1,
            },
            memory_info: Memory {
                size_in_mib: t.memory_mib,
            },
            ebs_info: Ebs {
                ebs_optimized_support: UNSUPPORTED.into(),
                encryption_support: UNSUPPORTED.into(),
                nvme_support: UNSUPPORTED.into(),
            },
            network_info: Network::new(t),
            instance_storage_supported: false,
            hibernation_supported: true,
            burstable_performance_supported: t.burstable(),
            dedicated_hosts_supported: false,
            auto_recovery_supported: false,
        }
    }
}
