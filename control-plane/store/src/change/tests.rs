use std::collections::BTreeMap;

use super::*;
use crate::{Db, Outcome};
use hearth_model::{Host, RuleId, Subnet, samples, samples::host};

#[tokio::test]
async fn what_etcd_would_not_take_is_found() {
    let db = Db::in_memory().await;
    for (count, fits) in [(128, true), (129, false)] {
        let done = db
            .transact(|_, change| {
                for n in 0..count {
                    change.overwrite(&host(&format!("{count}-{n}"), 1));
                }
                Ok::<_, ()>(())
            })
            .await;
        assert_eq!(done.is_ok(), fits, "{count}");
    }
    assert_eq!(db.view().count::<Host>(), 128);
}

#[test]
fn a_key_is_carried_by_the_comparison_and_by_the_operation() {
    let view = View::default();
    let fits = |length: usize| {
        let mut change = Change::new(&view, None);
        for n in 0..MOST {
            change.delete(&host(&format!("{n:0length$}"), 1));
        }
        change.into_txn().is_ok()
    };
    // Each may take 12 KiB, of which these are the framing.
    let most = (MOST_BYTES / MOST - FRAMING) / 2 - "/hosts/".len();
    assert!(fits(most) && !fits(most + 1));
}

#[test]
fn what_is_to_come_is_told_to_the_store() {
    let view = View::default();
    let mut change = Change::new(&view, None);
    change.create(&host("a", 1));
    change.leads_to(4096);
    assert_eq!(change.into_txn().unwrap().to_come, 4096);
}

#[tokio::test]
async fn a_change_knows_what_it_writes() {
    let db = Db::in_memory().await;
    let known = db.transact(|_, change| {
        let mut known = vec![change.puts(&host("a", 1))];
        change.overwrite(&host("a", 1));
        known.extend([change.puts(&host("a", 1)), change.puts(&host("b", 1))]);
        change.delete(&host("a", 1));
        known.push(change.puts(&host("a", 1)));
        Ok::<_, ()>(known)
    });
    assert_eq!(known.await.unwrap(), [false, true, false, false]);
}

#[tokio::test]
async fn tags_come_and_go_with_their_resource() {
    let db = Db::in_memory().await;
    let volume = samples::volume(1);
    let tags = |n: u8| BTreeMap::from([("n".to_owned(), n.to_string())]);
    let given = |db: &Db| {
        let view = db.view();
        view.at(&volume.scope).tags(&volume.id).clone()
    };
    let put = async |given: BTreeMap<String, String>| {
        let put = |_: &View, change: &mut Change<'_>| {
            change.overwrite(&volume);
            change.put_tags(&volume, given.clone());
            Ok::<_, ()>(())
        };
        db.transact(put).await.unwrap();
    };
    put(tags(1)).await;
    assert_eq!(given(&db), tags(1));
    put(tags(2)).await;
    assert_eq!(given(&db), tags(2));
    put(BTreeMap::new()).await;
    assert_eq!(db.view().count::<Tags>(), 0);
    put(tags(3)).await;
    db.transact(|_, change| {
        change.delete_tagged(&volume);
        Ok::<_, ()>(())
    })
    .await
    .unwrap();
    let view = db.view();
    assert_eq!(view.count::<hearth_model::Volume>(), 0);
    assert_eq!(view.count::<Tags>(), 0);
}

/// What the store says of a change, carried out on this view.
fn refusal(db: &Db, decide: impl Fn(&View, &mut Change<'_>)) -> Option<String> {
    let view = db.view();
    let mut change = Change::new(&view, None);
    decide(&view, &mut change);
    change.into_txn().err().map(|refused| refused.to_string())
}

#[tokio::test]
async fn what_is_made_is_new() {
    let db = Db::in_memory().await;
    db.transact_infallible(|_, change| change.create(&host("a", 1)))
        .await
        .unwrap();
    let refused = refusal(&db, |_, change| change.create(&host("a", 2))).unwrap();
    assert!(refused.contains("is there already"), "{refused}");
    let twice = refusal(&db, |_, change| {
        change.create(&host("b", 1));
        change.create(&host("b", 2));
    });
    assert!(twice.unwrap().contains("written twice"));
}

#[tokio::test]
async fn an_update_is_of_what_the_view_has() {
    let db = Db::in_memory().await;
    let put = async |vcpus| {
        db.transact_infallible(|_, change| change.overwrite(&host("a", vcpus)))
            .await
            .unwrap();
    };
    put(1).await;
    let before = db.view();
    let read = before.shared::<Host>("a").unwrap();
    let update = |old: &Host| refusal(&db, |_, change| change.update(old, &host("a", 5)));
    let depend = |old: &Host| refusal(&db, |_, change| change.expect_unchanged(old));
    let not_read = |refused: Option<String>| refused.unwrap().contains("was not read");
    assert_eq!((update(read), depend(read)), (None, None));
    // One of its own making may be of any time.
    assert!(not_read(update(&read.clone())) && not_read(depend(&read.clone())));
    // What was read before another's change is no longer what is there.
    put(2).await;
    assert!(not_read(update(read)) && not_read(depend(read)));

    let other = refusal(&db, |view, change| {
        change.update(view.shared::<Host>("a").unwrap(), &host("b", 1));
    });
    assert!(other.unwrap().contains("is no update of"));
    // The second would be of what the view has, and undo the first.
    let twice = refusal(&db, |view, change| {
        let a = view.shared::<Host>("a").unwrap();
        change.touch::<Host>("a");
        change.update(a, &host("a", 3));
        change.update(a, &host("a", 4));
    });
    assert!(twice.unwrap().contains("written twice"));
}

#[tokio::test]
async fn what_does_not_fit_is_taken_back_whole() {
    let db = Db::in_memory().await;
    db.transact_infallible(|_, change| change.create(&host("0", 1)))
        .await
        .unwrap();
    let view = db.view();
    let mut change = Change::new(&view, None);
    let volume = |n: u8| samples::volume(n);
    let tags = |size: usize| BTreeMap::from([("k".to_owned(), "v".repeat(size))]);
    // Two records each: 63 fit beside the first two.
    change.touch::<Host>("0");
    change.create(&host("1", 1));
    let mut taken = 0;
    let tagged = |change: &mut Change<'_>, n| {
        change.create(&volume(n));
        change.put_tags(&volume(n), tags(1));
    };
    while change.attempt(|change| tagged(change, taken)).is_some() {
        taken += 1;
    }
    assert_eq!((taken, change.records.len()), (63, 128));
    let (bytes, steps) = (change.bytes, change.undo.len());
    let asked: Vec<_> = change.authorities.iter().cloned().collect();
    // Whatever it did: new records, one that was written before, one that was touched,
    // the mark, a fault.
    let too_much = change.attempt(|change| {
        change.makes_room = false;
        change.overwrite(&host("1", 2));
        change.update(view.shared::<Host>("0").unwrap(), &host("0", 2));
        change.expect_unchanged(&host("0", 1));
        change.put_part_tags(&samples::scope(), &RuleId::from_random(1), tags(1));
    });
    assert!(too_much.is_none());
    assert!(change.fault.is_none() && change.makes_room && change.parts.is_empty());
    assert_eq!((change.bytes, change.undo.len()), (bytes, steps));
    assert!(change.authorities.iter().eq(&asked));
    assert!(!change.puts(&host("0", 1)) && change.puts(&host("1", 1)));
    assert!(!change.puts(&volume(taken)));
    // What fits still does: here, what is written already.
    let again = change.attempt(|change| change.overwrite(&host("1", 3)));
    assert!(again.is_some());
    let txn = change.into_txn().unwrap();
    assert_eq!((txn.compares.len(), txn.ops.len()), (128, 128));

    // Not the number alone counts.
    let mut change = Change::new(&view, None);
    let big = |change: &mut Change<'_>, n| change.put_tags(&volume(n), tags(1 << 20));
    assert!(change.attempt(|change| big(change, 1)).is_some());
    assert!(change.attempt(|change| big(change, 2)).is_none());
    assert!(change.attempt(|change| tagged(change, 3)).is_some());
    change.into_txn().unwrap();
    // What no transaction could carry is no reason to wait for another.
    let mut change = Change::new(&view, None);
    let huge = |change: &mut Change<'_>| change.put_tags(&volume(1), tags(2 << 20));
    assert!(change.attempt(huge).is_some());
    change.into_txn().unwrap_err();
}

#[tokio::test]
async fn of_what_begins_to_refer_and_a_deletion_one_commits() {
    let db = Db::in_memory().await;
    let (subnet, scope) = (samples::subnet(), samples::scope());
    db.transact_infallible(|_, change| change.create(&subnet))
        .await
        .unwrap();
    // Both decided on the same view, in which nothing refers to it.
    let view = db.view();
    let there = view.at(&scope).get::<Subnet>(&subnet.id).unwrap();
    let mut referring = Change::new(&view, None);
    referring.refer_to(there);
    referring.create(&samples::eni(1));
    let mut deleting = Change::new(&view, None);
    deleting.delete(there);
    // Who refers need not be allowed to write it.
    let asked: Vec<_> = referring.authorities.iter().map(|(key, _)| key).collect();
    assert_eq!(asked, [&samples::eni(1).key()]);
    let [first, second] = [referring, deleting].map(|change| change.into_txn().unwrap());
    let outcome = db.store().commit(first).await.unwrap();
    assert!(matches!(outcome, Outcome::Committed(_)));
    let outcome = db.store().commit(second).await.unwrap();
    assert!(!matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
}
