//! An Elastic IP address comes to an interface, and leaves it. The interface's
//! `public_ip` says which address the network translates; that it is another is all that
//! the network needs to lead it there, and to end what was connected over the one before.

use crate::{
    model::{
        AddressHolder, Association, AssociationId, ElasticIp, Eni, Instance, InstanceState,
        PublicAddress, PublicPool,
    },
    store::{Change, Scoped},
};

use super::launch::free_public;

/// The address, associated with nothing.
pub fn free(elastic: &ElasticIp) -> ElasticIp {
    ElasticIp {
        association: None,
        ..elastic.clone()
    }
}

/// The address that this interface has.
pub fn at<'v>(view: Scoped<'v>, eni: &Eni) -> Option<&'v ElasticIp> {
    view.by(ElasticIp::BY_ENI, eni.id.as_str()).next()
}

/// The interface that has this address.
pub fn interface<'v>(view: Scoped<'v>, elastic: &ElasticIp) -> Option<&'v Eni> {
    view.get(&elastic.association.as_ref()?.eni)
}

/// Leads the address to the interface: from whichever had it, and in the place of
/// whichever that had. What it had drawn from the pool goes back there.
pub fn associate(
    view: Scoped<'_>,
    change: &mut Change<'_>,
    elastic: &ElasticIp,
    eni: &Eni,
    id: AssociationId,
    pool: PublicPool,
) {
    if let Some(before) = interface(view, elastic) {
        draw_again(view, change, before, pool);
    }
    if let Some(replaced) = at(view, eni) {
        change.update(replaced, &free(replaced));
    }
    let mut after = Eni {
        public_ip: Some(elastic.address),
        ..eni.clone()
    };
    let drawn = eni.public_ip.map(|address| address.to_string());
    let drawn = drawn.and_then(|address| view.shared::<PublicAddress>(address));
    if let Some(drawn) = drawn.filter(|a| a.holder == AddressHolder::Interface(eni.id.clone())) {
        change.delete(drawn);
        after.last_public_ip = eni.public_ip;
    }
    change.update(eni, &after);
    let association = Association {
        id,
        eni: eni.id.clone(),
    };
    change.update(
        elastic,
        &ElasticIp {
            association: Some(association),
            ..elastic.clone()
        },
    );
}

/// Takes the address from the interface that has it; the rest of its record is the
/// caller's to write.
pub fn leave(view: Scoped<'_>, change: &mut Change<'_>, elastic: &ElasticIp, pool: PublicPool) {
    if let Some(eni) = interface(view, elastic) {
        draw_again(view, change, eni, pool);
    }
}

/// The interface's Elastic IP address leaves it. If it is one that has a public address
/// whenever its instance runs, it draws one, as far as there are any.
fn draw_again(view: Scoped<'_>, change: &mut Change<'_>, eni: &Eni, pool: PublicPool) {
    let instance = eni.instance.as_ref();
    let instance = instance.and_then(|id| view.get::<Instance>(id));
    let runs = instance.is_some_and(|instance| {
        let state = instance.state;
        matches!(state, InstanceState::Pending | InstanceState::Running)
    });
    let drawn = (eni.auto_public_ip && runs).then(|| {
        let holder = AddressHolder::Interface(eni.id.clone());
        free_public(view, change, holder, pool, eni.last_public_ip)
    });
    let drawn = drawn.flatten();
    if let Some((_, record)) = &drawn {
        change.create(record);
    }
    change.update(
        eni,
        &Eni {
            public_ip: drawn.map(|(address, _)| address),
            ..eni.clone()
        },
    );
}
