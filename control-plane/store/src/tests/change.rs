use std::collections::BTreeMap;

use hearth_model::{
    AddressHolder, Authority, Described as _, GroupId, Host, Part, PublicAddress, Resource as _,
    Rule, RuleId, Scope, SecurityGroup, Tags, VpcId, samples,
};

use crate::{Change, Compare, Db, Op, StoreError, TransactError, View};

fn rule(n: u128) -> Rule {
    Rule {
        id: RuleId::from_random(n),
        direction: hearth_model::Direction::Ingress,
        matcher: hearth_model::Protocol::All,
        peer: hearth_model::Peer::Ipv4("0.0.0.0/0".parse().unwrap()),
        description: None,
    }
}

fn group(rules: Vec<Rule>) -> SecurityGroup {
    SecurityGroup {
        id: GroupId::from_random(1),
        scope: samples::scope(),
        vpc: VpcId::from_random(1),
        name: "web".into(),
        description: String::new(),
        rules,
        deleting: false,
    }
}

fn tags(value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("Name".to_owned(), value.to_owned())])
}

/// What a change needs, a line each: the record's key, whose ARN, whether that exists.
fn needed(change: &Change<'_>) -> Vec<String> {
    let line = |(key, authority, exists): (&str, &Authority, bool)| match authority {
        Authority::Own(arn) => format!("{key} own {arn} {exists}"),
        Authority::Of(arn) => format!("{key} of {arn} {exists}"),
        Authority::Free(_) => format!("{key} free {exists}"),
        Authority::Closed(_) => format!("{key} closed {exists}"),
    };
    change.authorities().map(line).collect()
}

#[tokio::test]
async fn a_parts_tags_come_and_go_with_it() {
    let db = Db::in_memory().await;
    let scope = samples::scope();
    let rule = rule(7);
    let whole = group(vec![rule.clone()]);
    let given = |db: &Db| db.view().at(&scope).tags(&rule.id).clone();
    db.transact(|_, change| {
        change.create(&whole);
        change.put_part_tags(&scope, &rule.id, tags("a"));
        Ok::<_, ()>(())
    })
    .await
    .unwrap();
    assert_eq!(given(&db), tags("a"));
    db.transact(|_, change| {
        change.delete_part_tags::<RuleId>(&whole, &rule.id);
        Ok::<_, ()>(())
    })
    .await
    .unwrap();
    assert!(given(&db).is_empty());
    assert_eq!(db.view().count::<Tags>(), 0);
}

#[test]
fn a_new_resource_is_asked_for_as_one_that_doesnt_exist() {
    let volume = samples::volume(1);
    let (key, arn) = (volume.key(), volume.arn());
    let tagged = "/tags/000000000000/us-east-1/vol-00000000000000001";

    let empty = View::default();
    let mut change = Change::new(&empty, None);
    change.create(&volume);
    change.put_tags(&volume, tags("a"));
    assert_eq!(
        needed(&change),
        [
            format!("{tagged} of {arn} false"),
            format!("{key} own {arn} false"),
        ]
    );

    let there = View::default().with(volume.clone());
    let mut change = Change::new(&there, None);
    change.overwrite(&volume);
    change.put_tags(&volume, tags("a"));
    let both = [
        format!("{tagged} of {arn} true"),
        format!("{key} own {arn} true"),
    ];
    assert_eq!(needed(&change), both);
    let mut change = Change::new(&there, None);
    change.delete_tagged(&volume);
    assert_eq!(needed(&change), both);
    // What is deleted before it was ever written is not made.
    let mut change = Change::new(&empty, None);
    change.delete(&volume);
    assert_eq!(needed(&change), [format!("{key} own {arn} true")]);
}

#[test]
fn a_new_part_is_asked_for_as_one_that_doesnt_exist() {
    let scope = samples::scope();
    let id = RuleId::from_random(7);
    let arn = <RuleId as Part>::arn_at(&scope, id.as_str());
    let key = "/tags/000000000000/us-east-1/sgr-00000000000000007";
    let without = View::default().with(group(vec![]));
    let with = View::default().with(group(vec![rule(7)]));
    for (view, exists) in [(&without, false), (&with, true)] {
        let mut change = Change::new(view, None);
        change.put_part_tags(&scope, &id, tags("a"));
        assert_eq!(needed(&change), [format!("{key} of {arn} {exists}")]);
    }
    // Who takes it from its whole must be allowed to change that.
    let mut change = Change::new(&with, None);
    let whole = group(vec![rule(7)]);
    change.delete_part_tags::<RuleId>(&whole, &id);
    assert_eq!(needed(&change), [format!("{key} of {} true", whole.arn())]);
}

#[test]
fn who_writes_over_a_record_is_asked_for_both() {
    let address = |owner: Option<Scope>| PublicAddress {
        address: "203.0.113.1".into(),
        holder: AddressHolder::Interface(samples::eni(1).id),
        owner,
    };
    let view = View::default().with(address(None));
    let mut change = Change::new(&view, None);
    change.overwrite(&address(Some(samples::scope())));
    let key = "/public-addresses/203.0.113.1";
    let eni = samples::eni(1).arn();
    assert_eq!(
        needed(&change),
        [format!("{key} of {eni} true"), format!("{key} closed true")]
    );
}

#[test]
fn what_a_caller_asks_for_makes_no_room_unless_it_is_said() {
    let (view, scope) = (View::default(), samples::scope());
    let of = |change: Change<'_>| change.into_txn().unwrap().makes_room;
    assert!(!of(Change::new(&view, Some(&scope))));
    assert!(of(Change::new(&view, None)), "a reconciler's");
    let mut change = Change::new(&view, Some(&scope));
    change.makes_room();
    assert!(of(change));
}

#[test]
fn what_is_touched_is_written_as_it_is_and_guarded() {
    let view = View::default().with(samples::host("a", 1));
    let scope = samples::scope();
    let mut change = Change::new(&view, Some(&scope));
    change.touch::<Host>("none");
    assert!(change.is_empty());
    change.touch::<Host>("a");
    assert!(!change.is_empty());
    let txn = change.into_txn().unwrap();
    let revision = view.modified(&samples::host("a", 1)).unwrap();
    assert_eq!(
        txn.compares,
        [Compare::Unchanged("/hosts/a".into(), revision)]
    );
    assert!(matches!(&txn.ops[..], [Op::Put { key, .. }] if key == "/hosts/a"));

    // What is written besides stays.
    let mut change = Change::new(&view, None);
    change.delete(&samples::host("a", 1));
    change.touch::<Host>("a");
    assert!(!change.puts(&samples::host("a", 1)));
}

#[tokio::test]
async fn a_caller_writes_in_its_scope_and_what_of_the_shared_it_owns() {
    let db = Db::in_memory().await;
    let (mine, theirs) = (samples::scope(), Scope::new("111122223333", "us-east-1"));
    let volume_of = |scope: &Scope| hearth_model::Volume {
        scope: scope.clone(),
        ..samples::volume(1)
    };
    let address_of = |scope: &Scope| PublicAddress {
        address: "203.0.113.1".into(),
        holder: AddressHolder::Interface(samples::eni(1).id),
        owner: Some(scope.clone()),
    };
    let refused = |answer: Result<(), TransactError<()>>| matches!(answer, Err(TransactError::Store(StoreError::Invalid(why))) if why.ends_with("is out of scope"));
    let put_volume = async |at: &Scope, of: &Scope| {
        let volume = volume_of(of);
        db.transact_at(at, |_, change| {
            change.overwrite(&volume);
            Ok::<_, ()>(())
        })
        .await
    };
    put_volume(&mine, &mine).await.unwrap();
    assert!(refused(put_volume(&mine, &theirs).await));

    let put_address = async |at: &Scope, of: &Scope| {
        let address = address_of(of);
        db.transact_at(at, |_, change| {
            change.overwrite(&address);
            Ok::<_, ()>(())
        })
        .await
    };
    put_address(&mine, &mine).await.unwrap();
    // Neither what another has nor what it would have.
    assert!(refused(put_address(&theirs, &theirs).await));
    assert!(refused(put_address(&mine, &theirs).await));
    // A host is nobody's.
    let host = db
        .transact_at(&mine, |_, change| {
            change.create(&samples::host("a", 1));
            Ok::<_, ()>(())
        })
        .await;
    assert!(refused(host));
    assert_eq!(db.view().count::<Host>(), 0);
}
