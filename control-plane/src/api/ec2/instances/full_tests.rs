//! Calls on a store that has no room left half-way.

use std::sync::Arc;

use super::{
    RunInstances,
    tests::{RUN, call, with_machine},
};
use crate::{
    api::{Ctx, Idempotency},
    model::{ClientToken, GroupId, Instance, Reservation, samples},
    records::launch::{expand, size},
    store::{Db, MemoryStore, Store as _},
};

/// A cloud with room for a hundred t2.micro, on a store that can be filled.
async fn cloud() -> (Arc<MemoryStore>, Ctx) {
    let store = Arc::new(MemoryStore::new());
    let db = Db::open(store.clone()).await.unwrap();
    (store, with_machine(db, 25).await)
}

fn with_token(ctx: Ctx) -> Ctx {
    ctx.with_token(Idempotency {
        key: "RunInstances:t".into(),
        digest: "d".into(),
    })
}

/// Each of these is three transactions' worth.
fn run() -> String {
    let run = RUN.replace("MaxCount=1", "MaxCount=40");
    run.replace("MinCount=1", "MinCount=40") + "&ClientToken=t"
}

#[tokio::test]
async fn a_call_that_is_refused_half_way_launches_nothing_later() {
    // The intent alone has room, or one of its three parts as well.
    for (room, begun) in [(1, 0), (2, 15)] {
        let (store, ctx) = cloud().await;
        let ctx = with_token(ctx);
        store.set_room(Some(room));
        let refused = call::<RunInstances>(&ctx, &run()).await.err().unwrap();
        assert_eq!((refused.status, &*refused.code), (503, "Unavailable"));
        assert!(refused.message.contains("disk"), "{}", refused.message);
        store.set_room(None);

        let picture = ctx.view();
        let view = picture.view();
        assert_eq!(view.all::<Instance>().count(), begun);
        let made = view.all::<Reservation>().next().unwrap();
        let launch = made.pending.as_ref().unwrap();
        assert!(launch.refused);
        assert_eq!(launch.members.len(), begun);
        // Whoever comes by makes no more of it.
        let pool = ctx.config.public_addresses();
        let more = ctx.transact(|view, change| Ok(expand(view, change, made, pool)));
        assert!(more.await.unwrap());
        assert_eq!(ctx.view().view().all::<Instance>().count(), begun);

        // Its token stands for nothing.
        assert_eq!(view.all::<ClientToken>().count(), 0);
        let again = call::<RunInstances>(&ctx, &run()).await.unwrap();
        assert_eq!(again.instances_set.len(), 40);
        assert_ne!(again.reservation_id, made.id.to_string());
    }
}

#[tokio::test]
async fn no_more_is_said_to_come_than_comes_and_not_much_less() {
    let value = "v".repeat(256);
    let tag = format!(
        "&TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=k\
                       &TagSpecification.1.Tag.1.Value={value}"
    );
    for more in ["", &tag] {
        let (store, ctx) = cloud().await;
        let bytes = async || {
            let all = store.range("").await.unwrap().entries;
            let all = all.iter().filter(|e| !e.key.starts_with("/reservations/"));
            all.map(|e| e.key.len() + e.value.len()).sum::<usize>()
        };
        let before = bytes().await;
        let run = RUN.replace("MaxCount=1", "MaxCount=8");
        call::<RunInstances>(&ctx, &format!("{run}{more}"))
            .await
            .unwrap();
        let taken = bytes().await - before;
        let view = ctx.view();
        let mut launch = samples::launch(
            8,
            view.view().all().next().unwrap(),
            &GroupId::from_random(1),
        );
        if !more.is_empty() {
            launch.instance_tags.insert("k".into(), value.clone());
        }
        let said = size(&launch);
        assert!(
            (taken * 4 / 3..taken * 3).contains(&said),
            "{said} for {taken}"
        );
    }
}
