//! What the filters of DescribeInstances look at.

use std::fmt::Display;

use super::answer::{
    HYPERVISOR, TENANCY, VIRTUALIZATION, architecture, attachment_status, interfaces,
    metadata_endpoint, metadata_tokens, primary, volumes,
};
use crate::{
    api::{
        ec2::listing::{Filtered, Row, Table, Values},
        wire::Time,
    },
    model::{Eni, Instance, SecurityGroup, dns_names},
};

type Seen<'v> = Row<'v, Instance>;

/// What `value` tells of each interface.
fn of_interfaces<T: Display>(
    row: &Seen<'_>,
    out: &mut Values<'_>,
    value: impl Fn(&Eni) -> Option<T>,
) {
    out.extend(interfaces(row).filter_map(value));
}

/// What `value` tells of the primary interface.
fn of_primary<T: Display>(row: &Seen<'_>, out: &mut Values<'_>, value: impl Fn(&Eni) -> Option<T>) {
    out.extend(primary(row).and_then(value));
}

/// The names of an interface's groups.
fn group_names<'v>(row: &Seen<'v>, eni: &Eni) -> impl Iterator<Item = &'v String> {
    let view = row.view;
    let groups = eni.groups.iter();
    groups.filter_map(move |id| Some(&view.get::<SecurityGroup>(id)?.name))
}

impl Filtered for Instance {
    fn filters<'v>() -> Table<Row<'v, Self>> {
        Table::<Row<'v, Self>>::new()
            .on("architecture", |i, out| out.add(architecture(i)))
            .on("availability-zone", |i, out| out.add(&i.zone))
            .on("block-device-mapping.delete-on-termination", |i, out| {
                out.extend(volumes(i).map(|(_, a)| a.delete_on_termination));
            })
            .on("block-device-mapping.device-name", |i, out| {
                out.extend(volumes(i).map(|(_, a)| &a.device));
            })
            .on("block-device-mapping.status", |i, out| {
                out.extend(volumes(i).map(|_| attachment_status(i)));
            })
            .on("block-device-mapping.volume-id", |i, out| {
                out.extend(volumes(i).map(|(v, _)| &v.id));
            })
            .on("client-token", |i, out| out.extend(&i.client_token))
            .on("dns-name", |i, out| {
                of_primary(i, out, |e| {
                    Some(dns_names::public_name(e.region(), e.public_ip?))
                });
            })
            .on("hibernation-options.configured", |i, out| {
                out.add(i.settings.may_hibernate);
            })
            .on("hypervisor", |_, out| out.add(HYPERVISOR))
            .on("image-id", |i, out| out.add(&i.image))
            .on("instance-id", |i, out| out.add(&i.id))
            .on("instance-state-code", |i, out| out.add(i.state.code()))
            .on("instance-state-name", |i, out| out.add(i.state.name()))
            .on("instance-type", |i, out| out.add(&i.instance_type))
            .on("instance.group-id", |i, out| {
                out.extend(primary(i).into_iter().flat_map(|e| &e.groups));
            })
            .on("instance.group-name", |i, out| {
                out.extend(primary(i).into_iter().flat_map(|e| group_names(i, e)));
            })
            .on("ip-address", |i, out| of_primary(i, out, |e| e.public_ip))
            .on("key-name", |i, out| out.extend(&i.key_name))
            .on("launch-index", |i, out| out.add(i.launch_index))
            .on("launch-time", |i, out| out.add(Time(i.launched_at)))
            .on("metadata-options.http-endpoint", |i, out| {
                out.add(metadata_endpoint(i));
            })
            .on("metadata-options.http-tokens", |i, out| {
                out.add(metadata_tokens(i));
            })
            .on(
                "network-interface.addresses.private-ip-address",
                |i, out| of_interfaces(i, out, |e| Some(e.private_ip)),
            )
            .on("network-interface.association.public-ip", |i, out| {
                of_interfaces(i, out, |e| e.public_ip);
            })
            .on("network-interface.group-id", |i, out| {
                out.extend(interfaces(i).flat_map(|e| &e.groups));
            })
            .on("network-interface.group-name", |i, out| {
                out.extend(interfaces(i).flat_map(|e| group_names(i, e)));
            })
            .on("network-interface.mac-address", |i, out| {
                of_interfaces(i, out, |e| Some(e.mac_string()));
            })
            .on("network-interface.network-interface-id", |i, out| {
                out.extend(interfaces(i).map(|e| &e.id));
            })
            .on("network-interface.private-dns-name", |i, out| {
                of_interfaces(i, out, |e| {
                    Some(dns_names::private_name(e.region(), e.private_ip))
                });
            })
            .on("network-interface.subnet-id", |i, out| {
                out.extend(interfaces(i).map(|e| &e.subnet));
            })
            .on("network-interface.vpc-id", |i, out| {
                out.extend(interfaces(i).map(|e| &e.vpc));
            })
            .on("owner-id", |i, out| out.add(&i.scope.account))
            .on("placement-group-name", |_, out| out.add(""))
            .on("private-dns-name", |i, out| {
                of_primary(i, out, |e| {
                    Some(dns_names::private_name(e.region(), e.private_ip))
                });
            })
            .on("private-ip-address", |i, out| {
                of_primary(i, out, |e| Some(e.private_ip));
            })
            .on("reason", |i, out| out.add(&i.transition_reason))
            .on("reservation-id", |i, out| out.add(&i.reservation))
            .on("root-device-name", |i, out| out.add(&i.root_device_name))
            .on("root-device-type", |_, out| out.add("ebs"))
            .on("source-dest-check", |i, out| {
                of_primary(i, out, |e| Some(e.source_dest_check));
            })
            .on("state-reason-code", |i, out| {
                out.extend(i.state_reason.as_ref().map(|r| &r.code));
            })
            .on("state-reason-message", |i, out| {
                out.extend(i.state_reason.as_ref().map(|r| &r.message));
            })
            .on("subnet-id", |i, out| {
                out.extend(primary(i).map(|e| &e.subnet));
            })
            .on("tenancy", |_, out| out.add(TENANCY))
            .on("virtualization-type", |_, out| out.add(VIRTUALIZATION))
            .on("vpc-id", |i, out| out.extend(primary(i).map(|e| &e.vpc)))
    }
}
