//! The members of a reservation get their records: some in each transaction,
//! until all have them, or the call is refused because they can't.

use std::net::Ipv4Addr;

use crate::{
    model::{
        AddressHolder, Eni, Instance, InstanceState, Intent, Launch, Member, PrivateAddress,
        PublicAddress, PublicPool, Reservation, StateReason, Subnet, Volume, VolumeAttachment,
    },
    store::{Change, Scoped},
};

/// Makes the records of the next members, as many as one transaction carries;
/// whether all have them then. `pool` has the public addresses that there are. Of a
/// launch that was refused nothing is made.
pub fn expand(
    view: Scoped<'_>,
    change: &mut Change<'_>,
    reservation: &Reservation,
    pool: PublicPool,
) -> bool {
    let Some(launch) = reservation.pending.as_ref().filter(|l| !l.refused) else {
        return true;
    };
    // Nothing is made of a launch that is refused meanwhile.
    change.expect_unchanged(reservation);
    for (index, member) in (0..).zip(&launch.members) {
        if view.get::<Instance>(&member.instance).is_some() {
            continue;
        }
        let made =
            change.attempt(|change| make(view, change, reservation, launch, member, index, pool));
        if made.is_none() {
            return false;
        }
    }
    let done = Reservation {
        pending: None,
        ..reservation.clone()
    };
    let ended = change.attempt(|change| change.update(reservation, &done));
    ended.is_some()
}

/// About how many bytes the records of all members take, rather more than less.
pub fn size(launch: &Launch) -> usize {
    /// What is alike in every launch, with what the store needs beside it.
    const EACH: usize = 4096;
    let tags = [
        &launch.instance_tags,
        &launch.volume_tags,
        &launch.interface_tags,
    ];
    let tags = tags.into_iter().flatten();
    let tags: usize = tags.map(|(key, value)| key.len() + value.len() + 8).sum();
    let own = launch.description.len()
        + launch.public_key.as_ref().map_or(0, String::len)
        + launch.groups.len() * 32;
    launch.members.len() * (EACH + 2 * (tags + own))
}

/// Takes a launch back that can't be carried out: no more of it is made, and what there
/// is of it is the garbage controller's to end. Whether there was something to take
/// back: the members of one that is whole are the caller's.
///
/// It writes less than there was, so that it can be done when nothing else can.
pub fn refuse(view: Scoped<'_>, change: &mut Change<'_>, reservation: &Reservation) -> bool {
    let Some(launch) = &reservation.pending else {
        return false;
    };
    if !launch.refused {
        let mut launch = launch.clone();
        let begun = |member: &Member| view.get::<Instance>(&member.instance).is_some();
        launch.members.retain(begun);
        launch.refused = true;
        change.makes_room();
        let refused = Reservation {
            pending: Some(launch),
            ..reservation.clone()
        };
        change.update(reservation, &refused);
    }
    true
}

/// One instance, with its interface, its addresses and its root volume. Where
/// addresses have run out since the call was taken, it ends as a launch ends
/// that fails.
fn make(
    view: Scoped<'_>,
    change: &mut Change<'_>,
    reservation: &Reservation,
    launch: &Launch,
    member: &Member,
    index: u32,
    pool: PublicPool,
) {
    let scope = &reservation.scope;
    let mut instance = Instance {
        id: member.instance.clone(),
        scope: scope.clone(),
        reservation: reservation.id.clone(),
        launch_index: index,
        image: launch.image.clone(),
        boot: None,
        instance_type: launch.instance_type.clone(),
        key_name: launch.key_name.clone(),
        public_key: launch.public_key.clone(),
        vpc: launch.vpc.clone(),
        subnet: launch.subnet.clone(),
        zone: launch.zone.clone(),
        host: None,
        enis: vec![member.eni.clone()],
        root_volume: member.volume.clone(),
        root_device_name: launch.root_device_name.clone(),
        client_token: launch.client_token.clone(),
        launched_at: reservation.created,
        settings: launch.settings.clone(),
        own_user_data: None,
        hibernated: None,
        intent: Intent::Run,
        state: InstanceState::Pending,
        state_since: reservation.created,
        state_reason: None,
        transition_reason: String::new(),
        reboots_asked: 0,
        reboots_done: 0,
        reboot: None,
        boots: 1,
    };
    match addresses(view, change, launch, member, pool) {
        Ok((private_ip, public_ip)) => {
            let eni = Eni {
                id: member.eni.clone(),
                scope: scope.clone(),
                vpc: launch.vpc.clone(),
                subnet: launch.subnet.clone(),
                description: launch.description.clone(),
                mac: member.mac,
                private_ip,
                public_ip,
                last_public_ip: None,
                auto_public_ip: launch.public,
                groups: launch.groups.clone(),
                source_dest_check: true,
                instance: Some(member.instance.clone()),
                device_index: 0,
                attachment: Some(member.attachment.clone()),
            };
            let volume = Volume {
                id: member.volume.clone(),
                scope: scope.clone(),
                zone: launch.zone.clone(),
                host: None,
                size_gib: launch.volume_gib,
                volume_type: launch.volume_type.clone(),
                image: Some(launch.image.clone()),
                created: reservation.created,
                deleting: false,
                attachment: Some(VolumeAttachment {
                    instance: member.instance.clone(),
                    device: launch.root_device_name.clone(),
                    attached: reservation.created,
                    delete_on_termination: launch.delete_on_termination,
                }),
            };
            change.create(&eni);
            change.put_tags(&eni, launch.interface_tags.clone());
            change.create(&volume);
            change.put_tags(&volume, launch.volume_tags.clone());
        }
        Err(reason) => {
            instance.enis.clear();
            instance.intent = Intent::Terminate;
            instance.state = InstanceState::ShuttingDown;
            instance.transition_reason = reason.message.clone();
            instance.state_reason = Some(reason);
        }
    }
    change.create(&instance);
    change.put_tags(&instance, launch.instance_tags.clone());
}

fn addresses(
    view: Scoped<'_>,
    change: &mut Change<'_>,
    launch: &Launch,
    member: &Member,
    pool: PublicPool,
) -> Result<(Ipv4Addr, Option<Ipv4Addr>), StateReason> {
    let private = free_private(view, change, launch, member);
    let private = private.ok_or_else(StateReason::no_private_address)?;
    let public = match launch.public {
        true => {
            let holder = AddressHolder::Interface(member.eni.clone());
            let taken = free_public(view, change, holder, pool, None);
            Some(taken.ok_or_else(StateReason::no_public_address)?)
        }
        false => None,
    };
    change.create(&private.1);
    if let Some(public) = &public {
        change.create(&public.1);
    }
    Ok((private.0, public.map(|public| public.0)))
}

fn free_private(
    view: Scoped<'_>,
    change: &Change<'_>,
    launch: &Launch,
    member: &Member,
) -> Option<(Ipv4Addr, PrivateAddress)> {
    let subnet = view.get::<Subnet>(&launch.subnet)?;
    from_anywhere(subnet.usable()).find_map(|n| {
        let address = subnet.usable_at(n);
        let record = PrivateAddress::new(&subnet.scope, &subnet.id, address, member.eni.clone());
        let free = view.get::<PrivateAddress>(&record.key).is_none() && !change.puts(&record);
        free.then_some((address, record))
    })
}

/// A public address that nobody has, with its record; the one that the holder had
/// before only if no other is free, so that stop and start really change it.
///
/// From a place of chance on, so that two calls at once rarely draw the same and
/// neither has to write down where the other should go on.
pub fn free_public(
    view: Scoped<'_>,
    change: &Change<'_>,
    holder: AddressHolder,
    pool: PublicPool,
    before: Option<Ipv4Addr>,
) -> Option<(Ipv4Addr, PublicAddress)> {
    let others = from_anywhere(pool.count()).map(|n| pool.at(n));
    let others = others.filter(|address| Some(*address) != before);
    others.chain(before).find_map(|address| {
        let record = PublicAddress {
            address: address.to_string(),
            holder: holder.clone(),
            owner: Some(view.scope().clone()),
        };
        let free = view.shared::<PublicAddress>(&record.address).is_none() && !change.puts(&record);
        free.then_some((address, record))
    })
}

/// All numbers below this, beginning at one of chance: an address just left is
/// rarely met again at once.
fn from_anywhere(count: u32) -> impl Iterator<Item = u32> {
    let start = rand::random_range(0..count.max(1)).min(count);
    (start..count).chain(0..start)
}

/// How many private addresses of the subnet are free.
pub fn free_in(view: Scoped<'_>, subnet: &Subnet) -> usize {
    let taken = view.by(Eni::BY_SUBNET, subnet.id.as_str()).count();
    (subnet.usable() as usize).saturating_sub(taken)
}
