//! The handlers against a small cloud, with the controllers' part played by hand.

mod launches;
mod lists;
mod lives;

use serde::de::DeserializeOwned;

use super::*;
use crate::{
    api::{
        Action, ApiError, Ctx,
        wire::{Form, Protocol, from_form},
    },
    bootstrap::{Machine, bootstrap},
    config::Config,
    model::*,
    store::Db,
};

async fn cloud() -> Ctx {
    cloud_on(Db::in_memory().await).await
}

pub(in crate::api) async fn cloud_on(db: Db) -> Ctx {
    // Room for eight t2.micro by vCPU.
    with_machine(db, 2).await
}

/// With room for this many t2.micro.
async fn cloud_of(room: u32) -> Ctx {
    with_machine(Db::in_memory().await, room / 4).await
}

pub(super) async fn with_machine(db: Db, cpus: u32) -> Ctx {
    let machine = Machine {
        cpus,
        memory_mib: u64::from(cpus) * 8 * 1024,
        disk_gib: 1000,
    };
    bootstrap(&db, &Config::for_tests(), machine).await.unwrap();
    db.transact(|_, change| {
        change.overwrite(&samples::image());
        Ok::<_, ()>(())
    })
    .await
    .unwrap();
    Ctx::for_tests(db)
}

fn request<T: DeserializeOwned>(text: &str) -> T {
    from_form(&Form::parse(text.as_bytes()).unwrap(), Protocol::Ec2).unwrap()
}

pub(super) async fn call<A: Action>(ctx: &Ctx, text: &str) -> Result<A::Response, ApiError> {
    A::handle(ctx, request(text)).await
}

pub(super) async fn code<A: Action>(ctx: &Ctx, text: &str) -> String {
    match call::<A>(ctx, text).await {
        Ok(_) => "no error".into(),
        Err(error) => error.code.into_owned(),
    }
}

pub(in crate::api) const RUN: &str =
    "ImageId=ami-00000000000000001&InstanceType=t2.micro&MinCount=1&MaxCount=1";

async fn run(ctx: &Ctx, more: &str) -> run_instances::Response {
    call::<RunInstances>(ctx, &format!("{RUN}{more}"))
        .await
        .unwrap()
}

/// What the controllers write when a step is done, as far as handlers look.
async fn becomes(ctx: &Ctx, id: &str, state: InstanceState) {
    ctx.transact(|view, change| {
        let instance = view.get::<Instance>(id).unwrap().clone();
        for id in &instance.enis {
            let eni = view.get::<Eni>(id).unwrap().clone();
            if let (InstanceState::Stopped, Some(address)) = (state, eni.public_ip) {
                let taken = view.shared::<PublicAddress>(address.to_string());
                change.delete(taken.unwrap());
                change.overwrite(&Eni {
                    public_ip: None,
                    last_public_ip: Some(address),
                    ..eni
                });
            }
        }
        change.overwrite(&Instance {
            host: Some(HostId("test-host".into())),
            state,
            ..instance
        });
        Ok(())
    })
    .await
    .unwrap();
}

async fn described(ctx: &Ctx, id: &str) -> answer::InstanceItem {
    let text = format!("InstanceId.1={id}");
    let mut answer = call::<DescribeInstances>(ctx, &text).await.unwrap();
    answer.reservation_set.remove(0).instances_set.remove(0)
}
