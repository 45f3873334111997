use super::{kinds::slot_of, *};
use crate::{Batch, Entry, Event, Range, record};
use hearth_model::{
    Eni, GroupId, Host, HostId, Instance, InstanceId, Reservation, ReservationId, Subnet, SubnetId,
    each_kind, samples,
};

#[test]
fn what_refers_to_a_resource_is_found_by_its_declaration() {
    let (vpc, subnet, group) = (samples::vpc(), samples::subnet(), GroupId::from_random(1));
    let there = View::default().with(vpc.clone());
    assert!(!there.is_referred_to(&vpc));
    let there = there.with(subnet.clone());
    assert!(there.is_referred_to(&vpc) && !there.is_referred_to(&subnet));
    let elsewhere = Scope::new("1", "elsewhere");
    let other = Eni {
        scope: elsewhere.clone(),
        ..samples::eni(1)
    };
    let there = there.with(other);
    assert!(!there.is_referred_to(&subnet), "another account's");
    assert!(there.clone().with(samples::eni(2)).is_referred_to(&subnet));
    // That one of its kind is referred to says nothing of another.
    let unused = Subnet {
        id: SubnetId::from_random(0),
        ..subnet.clone()
    };
    assert!(!there.clone().with(samples::eni(2)).is_referred_to(&unused));
    // A launch that is under way has no interfaces yet.
    let pending = Reservation {
        id: ReservationId::from_random(1),
        scope: samples::scope(),
        created: samples::time(),
        user_data: None,
        pending: Some(Box::new(samples::launch(1, &subnet, &group))),
    };
    let done = Reservation {
        pending: None,
        ..pending.clone()
    };
    assert!(there.clone().with(pending).is_referred_to(&subnet));
    assert!(!there.clone().with(done).is_referred_to(&subnet));
    // What can't be read may refer to any of its scope; an image refers to none.
    for (scope, kind, refers) in [
        (samples::scope(), Eni::KIND, true),
        (samples::scope(), hearth_model::Image::KIND, false),
        (elsewhere, Eni::KIND, false),
    ] {
        let mut unread = there.clone();
        let key = format!("/{kind}/{}", scope.path("x"));
        unread.unreadable.insert(key.as_str().into(), "why".into());
        assert_eq!(unread.is_referred_to(&subnet), refers, "{key}");
    }
}

#[test]
fn kinds_and_indexes_are_told_apart() {
    for (i, kind) in KINDS.iter().enumerate() {
        assert!(
            KINDS[..i].iter().all(|other| other.name != kind.name),
            "{} twice",
            kind.name
        );
    }
    fn distinct<T: Resource>() {
        assert_eq!(KINDS[T::SLOT].name, T::KIND);
        for (i, index) in T::INDEXES.iter().enumerate() {
            assert!(T::INDEXES[..i].iter().all(|other| other.name != index.name));
        }
    }
    macro_rules! each {
        (described: [$($resource:ident),*], others: [$($other:ident),* $(,)?] $(,)?) => {
            $(distinct::<hearth_model::$resource>();
            // `find` looks in the first.
            assert_eq!(hearth_model::$resource::INDEXES[0].name, "id");)*
            $(distinct::<hearth_model::$other>();)*
        };
    }
    each_kind!(each);
}

fn put<T: Resource>(resource: &T, revision: u64) -> Batch {
    let entry = Entry {
        key: resource.key(),
        value: record::encode(resource),
        created: Revision(1),
        modified: Revision(revision),
    };
    Batch {
        revision: Revision(revision),
        events: vec![Event::Put(entry)],
    }
}

#[test]
fn an_older_picture_stays_as_it_was() {
    let before = View::default().with(samples::host("a", 1));
    let mut after = before.clone();
    after.apply(put(&samples::host("a", 2), 2));
    assert_eq!(before.shared::<Host>("a").unwrap().vcpus, 1);
    assert_eq!(after.shared::<Host>("a").unwrap().vcpus, 2);
    assert_eq!(after.modified(&samples::host("a", 0)), Some(Revision(2)));

    let gone = Event::Delete {
        key: "/hosts/a".into(),
    };
    after.apply(Batch {
        revision: Revision(3),
        events: vec![gone],
    });
    assert!(after.shared::<Host>("a").is_none());
    assert_eq!(after.all::<Host>().count(), 0);
    assert_eq!(before.all::<Host>().count(), 1);
}

#[test]
fn indexes_follow_the_records() {
    let on = |host: Option<&str>| Instance {
        host: host.map(|h| HostId(h.into())),
        ..samples::instance(1)
    };
    let ids = |view: &View, index, key: &str| -> Vec<InstanceId> {
        view.by(index, key)
            .map(|i: &Instance| i.id.clone())
            .collect()
    };
    let one = InstanceId::from_random(1);
    let mut view = View::default().with(on(None)).with(samples::instance(2));
    assert_eq!(view.in_order(Instance::UNPLACED).count(), 2);
    view.apply(put(&on(Some("a")), 9));
    assert_eq!(
        ids(&view, Instance::BY_HOST, "a"),
        std::slice::from_ref(&one)
    );
    assert_eq!(view.in_order(Instance::UNPLACED).count(), 1);
    view.apply(put(&on(Some("ab")), 10));
    assert_eq!(ids(&view, Instance::BY_HOST, "a"), []);
    assert_eq!(
        ids(&view, Instance::BY_HOST, "ab"),
        std::slice::from_ref(&one)
    );
    assert_eq!(view.find::<Instance>(&one).unwrap().id, one);
    let key = on(None).key();
    view.apply(Batch {
        revision: Revision(11),
        events: vec![Event::Delete { key }],
    });
    assert_eq!(ids(&view, Instance::BY_HOST, "ab"), []);
    assert!(view.find::<Instance>(&one).is_none());
    assert_eq!(view.kinds[slot_of("instances").unwrap()].index.len(), 4);
}

#[test]
fn an_index_has_its_records_in_the_order_of_its_keys() {
    let asked = |n: u8, seconds, launch_index| Instance {
        launched_at: samples::time() + jiff::SignedDuration::from_secs(seconds),
        launch_index,
        ..samples::instance(n)
    };
    let view = View::default()
        .with(asked(1, 9, 0))
        .with(asked(2, 1, 10))
        .with(asked(3, 1, 9))
        .with(asked(4, 100, 0));
    let order: Vec<_> = view.in_order(Instance::UNPLACED).map(|i| &i.id).collect();
    let expected = [3, 2, 1, 4].map(InstanceId::from_random);
    assert_eq!(order, expected.iter().collect::<Vec<_>>());
}

#[test]
fn an_account_sees_its_own() {
    let theirs = Scope::new("111111111111", "us-east-1");
    let elsewhere = Scope::new(samples::ACCOUNT, "eu-west-1");
    let in_scope = |n, scope: &Scope| Eni {
        scope: scope.clone(),
        ..samples::eni(n)
    };
    let mine = samples::scope();
    let view = View::default()
        .with(in_scope(1, &mine))
        .with(in_scope(2, &theirs))
        .with(in_scope(3, &elsewhere));
    for (scope, n) in [(&mine, 1), (&theirs, 2), (&elsewhere, 3)] {
        let here = view.at(scope);
        let own = samples::eni(n);
        let seen: Vec<_> = here.all::<Eni>().map(|e| &e.id).collect();
        assert_eq!(seen, [&own.id]);
        assert_eq!(here.get::<Eni>(&own.id).unwrap().home(), scope);
        let by_vpc: Vec<_> = here.by(Eni::BY_VPC, own.vpc.as_str()).collect();
        assert_eq!(by_vpc.len(), 1);
    }
    assert!(view.at(&theirs).get::<Eni>(samples::eni(1).id).is_none());
    assert_eq!(view.by(Eni::BY_VPC, samples::vpc().id.as_str()).count(), 3);
}

#[test]
fn a_record_that_cant_be_read_is_set_aside() {
    let mut batch = put(&samples::host("a", 1), 1);
    let Event::Put(entry) = &mut batch.events[0] else {
        unreachable!()
    };
    entry.value = b"{}".to_vec();
    let entries = vec![entry.clone()];
    let mut view = View::of(Range {
        revision: Revision(1),
        entries,
    });
    assert_eq!(view.revision(), Revision(1));
    assert!(view.shared::<Host>("a").is_none());
    assert!(view.has_unreadable::<Host>() && !view.has_unreadable::<Eni>());
    let (key, why) = view.unreadable().next().unwrap();
    assert_eq!(key, "/hosts/a");
    assert!(why.contains("version"), "{why}");
    view.apply(put(&samples::host("a", 1), 2));
    assert!(!view.has_unreadable::<Host>());
    assert_eq!(view.shared::<Host>("a").unwrap().vcpus, 1);
}
