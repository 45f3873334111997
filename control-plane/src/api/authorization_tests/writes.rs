//! What a handler can write: what was authorized, what belongs to that, and no more.

use super::*;

#[tokio::test]
async fn a_handler_writes_nothing_that_was_not_asked_for() {
    let db = Db::in_memory().await;
    let made = cloud_on(db.clone()).await;
    let instance = samples::instance(1);
    let instance = Instance {
        scope: made.scope().clone(),
        ..instance
    };
    let nothing = || {
        let caller = made.caller.clone();
        auth::authorize(&RootOnly, &caller, "ec2:Test", &[], &Keys::new()).unwrap()
    };
    let put = async |ctx: &Ctx| {
        ctx.transact(|_, change| {
            change.overwrite(&instance);
            Ok(())
        })
        .await
    };
    let refused = put(&ctx(&db, nothing())).await.unwrap_err();
    assert!(
        format!("{:?}", refused.internal).contains("not authorized"),
        "{refused:?}"
    );
    // Asked for by its own name, or, while there is none, as a new one.
    let by_name = nothing().along([made.arn_of::<Instance>(&instance.id)]);
    let any = || nothing().along([instance.arn().any()]);
    put(&ctx(&db, any())).await.unwrap();
    put(&ctx(&db, any())).await.unwrap_err();
    put(&ctx(&db, by_name)).await.unwrap();
    // Of many, none is written when one was not asked for.
    let many: Vec<_> = (2..32).map(samples::instance).collect();
    let but_one = many.iter().take(29).map(|i| made.arn_of::<Instance>(&i.id));
    let most = ctx(&db, nothing().along(but_one));
    let written = most.each(&many, |_, change, instance| {
        change.overwrite(&Instance {
            scope: made.scope().clone(),
            ..instance.clone()
        });
        Ok(())
    });
    written.await.unwrap_err();
    assert_eq!(db.view().all::<Instance>().count(), 1);
}

/// A call's context that may do so much.
fn ctx(db: &Db, authorized: auth::Authorized) -> Ctx {
    Ctx::for_tests(db.clone()).with_authorized(authorized)
}

/// Whether a call that was allowed this much may write what the closure does.
async fn may(
    db: &Db,
    arns: impl IntoIterator<Item = Arn>,
    write: impl Fn(&mut Change<'_>),
) -> Result<(), String> {
    let made = Ctx::for_tests(db.clone());
    let nothing = auth::authorize(&RootOnly, &made.caller, "ec2:Test", &[], &Keys::new());
    let ctx = made.with_authorized(nothing.unwrap().along(arns));
    let revision = db.view().revision();
    let written = ctx.transact(|_, change| {
        write(change);
        Ok(())
    });
    let written = written.await;
    assert_eq!(db.view().revision() == revision, written.is_err());
    written.map_err(|refused| format!("{:?}", refused.internal))
}

#[tokio::test]
async fn what_belongs_to_a_resource_is_written_by_who_may_write_that() {
    let db = Db::in_memory().await;
    let made = cloud_on(db.clone()).await;
    let scope = made.scope();
    let instance = |n| Instance {
        scope: scope.clone(),
        ..samples::instance(n)
    };
    let (old, new) = (instance(1), instance(2));
    let any = old.arn().any();
    may(&db, [any.clone()], |change| change.overwrite(&old))
        .await
        .unwrap();
    let tags = || [("a".to_owned(), "b".to_owned())].into();

    // Tags: of what is there by its own name, of what is made with it.
    let tag_old = |change: &mut Change<'_>| change.put_tags(&old, tags());
    for arns in [vec![], vec![new.arn()], vec![any.clone()]] {
        let refused = may(&db, arns, tag_old).await.unwrap_err();
        assert!(refused.contains("not authorized for"), "{refused}");
    }
    may(&db, [old.arn()], tag_old).await.unwrap();
    may(&db, [any.clone()], |change| change.put_tags(&new, tags()))
        .await
        .unwrap_err();
    let tag_new = |change: &mut Change<'_>| {
        change.put_tags(&new, tags());
        change.overwrite(&new);
    };
    may(&db, [any], tag_new).await.unwrap();
    // And not past what they are on.
    let record = db.view().all::<Tags>().next().unwrap().clone();
    let refused = may(&db, [old.arn()], |change| change.delete(&record))
        .await
        .unwrap_err();
    assert!(refused.contains("put_tags"), "{refused}");

    // Those of a rule: by its own name, or with the group that loses it.
    let view = db.view();
    let group = view.at(scope).all::<SecurityGroup>().next().unwrap();
    let rule = &group.rules[0].id;
    let tag_rule = |change: &mut Change<'_>| change.put_part_tags(scope, rule, tags());
    let any_rule = made.arn_of_part(rule).any();
    may(&db, [any_rule.clone(), group.arn()], tag_rule)
        .await
        .unwrap_err();
    may(&db, [made.arn_of_part(rule)], tag_rule).await.unwrap();
    let drop_rule = |change: &mut Change<'_>| change.delete_part_tags(group, rule);
    may(&db, [any_rule.clone()], drop_rule).await.unwrap_err();
    may(&db, [group.arn()], drop_rule).await.unwrap();
    let new_rule = RuleId::from_random(77);
    may(&db, [any_rule], |change| {
        change.put_part_tags(scope, &new_rule, tags())
    })
    .await
    .unwrap();

    // A name that another group has is that group's.
    let mut name = GroupName::of(group);
    name.group = GroupId::from_random(77);
    let mine = SecurityGroup::arn_at(scope, name.group.as_str());
    may(&db, [mine], |change| change.overwrite(&name))
        .await
        .unwrap_err();
    // An instance's interface is needed for that interface's address.
    let eni = samples::eni(1);
    let address = PrivateAddress::new(scope, &eni.subnet, eni.private_ip, eni.id.clone());
    may(&db, [old.arn()], |change| change.overwrite(&address))
        .await
        .unwrap_err();
    let eni = Eni::arn_at(scope, eni.id.as_str());
    may(&db, [eni], |change| change.overwrite(&address))
        .await
        .unwrap();
    let settled = DefaultVpcMark::of(scope);
    may(&db, [], |change| change.overwrite(&settled))
        .await
        .unwrap_err();
}

#[tokio::test]
async fn what_all_accounts_share_is_written_by_its_owner() {
    let db = Db::in_memory().await;
    let made = cloud_on(db.clone()).await;
    let eni = samples::eni(1);
    let address = |scope: &Scope| PublicAddress {
        address: "203.0.113.1".into(),
        holder: AddressHolder::Interface(eni.id.clone()),
        owner: Some(scope.clone()),
    };
    let other = Scope::new("222222222222", &made.scope().region);
    let (mine, others) = (address(made.scope()), address(&other));
    let unknown = PublicAddress {
        owner: None,
        ..mine.clone()
    };
    let (mine, others, unknown) = (&mine, &others, &unknown);
    let arn = |scope: &Scope| Eni::arn_at(scope, eni.id.as_str());
    let (my, their) = (arn(made.scope()), arn(&other));
    for there in [others, unknown] {
        let given = db.transact(|_, change| {
            change.overwrite(there);
            Ok::<_, ()>(())
        });
        given.await.unwrap();
        // Whatever it was authorized for.
        let arns = || [my.clone(), their.clone()];
        may(&db, arns(), |change| change.delete(there))
            .await
            .unwrap_err();
        may(&db, arns(), |change| change.overwrite(mine))
            .await
            .unwrap_err();
        // The store alone refuses that, too.
        for delete in [true, false] {
            let stolen = db.transact_at(made.scope(), |_, change| {
                if delete {
                    change.delete(there);
                } else {
                    change.overwrite(mine);
                }
                Ok::<_, ()>(())
            });
            stolen.await.unwrap_err();
        }
    }
    let freed = db.transact(|_, change| {
        change.delete(unknown);
        Ok::<_, ()>(())
    });
    freed.await.unwrap();
    may(&db, [my.clone()], |change| change.overwrite(mine))
        .await
        .unwrap();
    may(&db, [my], |change| change.delete(mine)).await.unwrap();

    // A host is nobody's: it can be touched, and stays as it is.
    let host = db.view().all::<Host>().next().unwrap().clone();
    let more = Host {
        vcpus: host.vcpus + 1,
        ..host.clone()
    };
    may(&db, [], |change| change.overwrite(&more))
        .await
        .unwrap_err();
    may(&db, [], |change| change.delete(&host))
        .await
        .unwrap_err();
    may(&db, [], |change| change.touch::<Host>(&host.id.0))
        .await
        .unwrap();
    assert_eq!(db.view().shared::<Host>(&host.id.0), Some(&host));
}

#[tokio::test]
async fn of_many_none_is_written_where_one_was_not_asked_for() {
    let db = Db::in_memory().await;
    let made = cloud_on(db.clone()).await;
    // More than one transaction takes.
    let many: Vec<Instance> = (1..=40)
        .map(|n| Instance {
            scope: made.scope().clone(),
            ..samples::instance(n)
        })
        .collect();
    let all_but_last = many[..39].iter().map(Instance::arn);
    let authorized = auth::authorize(&RootOnly, &made.caller, "ec2:Test", &[], &Keys::new());
    let ctx = ctx(&db, authorized.unwrap().along(all_but_last));
    let revision = db.view().revision();
    let put = ctx.each(&many, |_, change, instance| {
        change.overwrite(instance);
        Ok(())
    });
    let refused = format!("{:?}", put.await.unwrap_err().internal);
    let last = many[39].arn().to_string();
    assert!(
        refused.contains("ec2:Test") && refused.contains(&last),
        "{refused}"
    );
    assert_eq!(db.view().revision(), revision);
}

#[tokio::test]
async fn what_one_transaction_cant_carry_is_several_or_none() {
    let db = Db::in_memory().await;
    let ctx = cloud_on(db.clone()).await;
    // By their tags alone more bytes than etcd takes, though few records.
    let many: Vec<Instance> = (1..=10)
        .map(|n| Instance {
            scope: ctx.scope().clone(),
            ..samples::instance(n)
        })
        .collect();
    let tags = || [("k".to_owned(), "v".repeat(200 << 10))].into();
    let put = async |refused: Option<&Instance>| {
        let step = |_: Scoped<'_>, change: &mut Change<'_>, instance: &Instance| {
            if refused == Some(instance) {
                return Err(ApiError::missing("Test"));
            }
            change.create(instance);
            change.put_tags(instance, tags());
            Ok(())
        };
        ctx.each(&many, step).await
    };
    let before = db.view().revision();
    put(many.last()).await.unwrap_err();
    assert_eq!(db.view().revision(), before);
    assert_eq!(put(None).await.unwrap().len(), 10);
    assert_eq!(db.view().all::<Instance>().count(), 10);
    assert_eq!(db.view().revision().0, before.0 + 2);
}
