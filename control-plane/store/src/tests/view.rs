use std::sync::Arc;

use hearth_model::{
    Eni, Host, HostId, Image, Instance, InstanceId, InstanceState, Quota, Regional as _,
    Resource as _, Scope, Tags, Volume, samples,
};

use crate::{Db, Op, OwnedView, Revision, Txn, View};

fn theirs() -> Scope {
    Scope::new("111122223333", "us-east-1")
}

fn ids<'v>(volumes: impl Iterator<Item = &'v Volume>) -> Vec<&'v str> {
    volumes.map(|volume| volume.id.as_str()).collect()
}

const ONE: &str = "vol-00000000000000001";
const TWO: &str = "vol-00000000000000002";
const THREE: &str = "vol-00000000000000003";

#[test]
fn a_page_goes_on_after_the_last_id_of_the_one_before() {
    let mine = samples::scope();
    let view = View::default()
        .with(samples::volume(3))
        .with(samples::volume(1))
        .with(samples::volume(2))
        .with(Volume {
            scope: theirs(),
            ..samples::volume(4)
        });
    let here = view.at(&mine);
    assert_eq!(here.scope(), &mine);
    assert_eq!(ids(here.all()), [ONE, TWO, THREE]);
    assert_eq!(ids(here.after(ONE)), [TWO, THREE]);
    assert_eq!(ids(here.after(THREE)), [""; 0]);
    // Whatever is there of the id itself.
    assert_eq!(ids(here.after("vol-00000000000000001x")), [TWO, THREE]);
    assert_eq!(view.count::<Volume>(), 4);
    assert_eq!(view.count::<Eni>(), 0);
    assert_eq!(view.revision(), Revision(4));
    assert_eq!(view.modified(&samples::volume(2)), Some(Revision(3)));
    assert_eq!(view.modified(&samples::volume(9)), None);
}

#[test]
fn how_many_there_are_at_most_is_of_one_scope_and_each_kind() {
    let (mine, theirs) = (samples::scope(), theirs());
    let view = View::default()
        .with(samples::volume(1))
        .with(samples::volume(2))
        .with(samples::eni(1))
        .with(Volume {
            scope: theirs.clone(),
            ..samples::volume(3)
        });
    let has_at_most = |scope: &Scope, most| view.at(scope).has_at_most(most);
    assert!(has_at_most(&mine, 2) && !has_at_most(&mine, 1));
    assert!(has_at_most(&theirs, 1) && !has_at_most(&theirs, 0));
    assert!(has_at_most(&Scope::new("111122223333", "eu-west-1"), 0));
}

#[test]
fn what_is_referred_to_is_so_from_its_scope() {
    let (scope, subnet) = (samples::scope(), samples::subnet());
    let view = View::default().with(samples::vpc()).with(subnet.clone());
    let here = view.at(&scope);
    assert!(here.is_referred_to(&samples::vpc()) && !here.is_referred_to(&subnet));
}

#[test]
fn what_is_found_by_id_and_by_index_is_the_scopes_own() {
    let mine = samples::scope();
    let other = Volume {
        scope: theirs(),
        ..samples::volume(2)
    };
    let view = View::default()
        .with(samples::volume(1))
        .with(other.clone())
        .with(samples::host("a", 1))
        .with(Tags {
            scope: mine.clone(),
            resource: ONE.into(),
            tags: [("Name".to_owned(), "a".to_owned())].into(),
        });
    let here = view.at(&mine);
    assert_eq!(
        here.find::<Volume>(&samples::volume(1).id),
        Some(&samples::volume(1))
    );
    assert_eq!(here.find::<Volume>(&other.id), None);
    assert_eq!(view.find::<Volume>(&other.id), Some(&other));
    let by = |instance: u8| {
        let instance = InstanceId::from_random(instance.into());
        ids(here.by(Volume::BY_INSTANCE, instance.as_str())).len()
    };
    assert_eq!((by(1), by(2)), (1, 0));
    assert_eq!(here.tags_of(&samples::volume(1))["Name"], "a");
    assert!(here.tags_of(&other).is_empty());
    assert!(view.at(&theirs()).tags_of(&samples::volume(1)).is_empty());
    assert_eq!(here.shared::<Host>("a"), Some(&samples::host("a", 1)));
    assert_eq!(here.whole().count::<Volume>(), 2);

    let owned = OwnedView::new(Arc::new(view), theirs());
    assert_eq!(ids(owned.view().all()), [TWO]);
    assert_eq!(owned.view().scope(), &theirs());
}

#[test]
fn an_image_is_seen_by_all_of_its_region() {
    let elsewhere = Image {
        id: hearth_model::ImageId::from_random(2),
        scope: Scope::new(samples::ACCOUNT, "eu-west-1"),
        ..samples::image()
    };
    let view = View::default()
        .with(samples::image())
        .with(elsewhere.clone());
    let scope = theirs();
    let there = view.at(&scope);
    assert_eq!(there.visible(&samples::image().id), Some(&samples::image()));
    assert_eq!(there.visible::<Image>(&elsewhere.id), None);
    let all: Vec<_> = there.all_visible::<Image>().collect();
    assert_eq!(all, [&samples::image()]);
    assert_eq!(there.all::<Image>().count(), 0);
}

#[test]
fn what_is_taken_of_a_host_follows_the_records() {
    let (a, b) = (HostId("a".into()), HostId("b".into()));
    let volume = |host: Option<&HostId>, size_gib| Volume {
        host: host.cloned(),
        size_gib,
        ..samples::volume(1)
    };
    let disk = |disk_gib| Quota {
        disk_gib,
        ..Quota::default()
    };
    let taken = |view: &View| (view.claimed(&a), view.claimed(&b));
    let none = Quota::default();
    let view = View::default().with(volume(None, 8));
    assert_eq!(taken(&view), (none, none));
    let view = view.with(volume(Some(&a), 8));
    assert_eq!(taken(&view), (disk(8), none));
    // The same again is counted once, and another size in place of the first.
    let view = view.with(volume(Some(&a), 8)).with(volume(Some(&a), 10));
    assert_eq!(taken(&view), (disk(10), none));
    let view = view.with(volume(Some(&b), 10));
    assert_eq!(taken(&view), (none, disk(10)));

    let instance = Instance {
        host: Some(b.clone()),
        state: InstanceState::Running,
        ..samples::instance(1)
    };
    let both = disk(10).plus(instance.quota());
    let view = view.with(instance.clone());
    assert_eq!(taken(&view), (none, both));
    let view = view.with(Instance {
        state: InstanceState::Stopped,
        ..instance
    });
    assert_eq!(taken(&view), (none, disk(10)));
}

#[tokio::test]
async fn what_is_deleted_takes_nothing_and_is_under_no_key() {
    let db = Db::in_memory().await;
    let host = HostId("a".into());
    let volume = Volume {
        host: Some(host.clone()),
        ..samples::volume(1)
    };
    let found = |db: &Db| {
        let view = db.view();
        let instance = InstanceId::from_random(1);
        let found = view.by(Volume::BY_INSTANCE, instance.as_str()).count();
        (view.claimed(&host).disk_gib, found)
    };
    db.transact_infallible(|_, change| change.overwrite(&volume))
        .await
        .unwrap();
    assert_eq!(found(&db), (8, 1));
    db.transact_infallible(|_, change| change.delete(&volume))
        .await
        .unwrap();
    assert_eq!(found(&db), (0, 0));
}

#[tokio::test]
async fn what_cant_be_read_is_of_its_kind_and_its_scope() {
    let db = Db::in_memory().await;
    let volume = samples::volume(1);
    let write = async |op: Op| {
        let ops = vec![op];
        let txn = Txn {
            ops,
            ..Txn::default()
        };
        db.store().commit(txn).await.unwrap();
    };
    write(Op::Put {
        key: volume.key(),
        value: b"?".to_vec(),
        lease: None,
    })
    .await;
    let mut changed = db.changed();
    let view = View::clone(
        &*changed
            .wait_for(|v| v.is_unreadable(&volume))
            .await
            .unwrap(),
    );
    assert!(!view.is_unreadable(&samples::volume(2)));
    let (mine, theirs) = (volume.home().clone(), theirs());
    assert!(view.at(&mine).has_unreadable::<Volume>());
    assert!(!view.at(&mine).has_unreadable::<Eni>());
    assert!(!view.at(&theirs).has_unreadable::<Volume>());
    let keys: Vec<_> = view.unreadable().map(|(key, _)| key.to_owned()).collect();
    assert_eq!(keys, [volume.key()]);

    // Gone, it is unreadable no more.
    write(Op::Delete { key: volume.key() }).await;
    let gone = changed.wait_for(|v| !v.is_unreadable(&volume)).await;
    assert_eq!(gone.unwrap().unreadable().count(), 0);
}
