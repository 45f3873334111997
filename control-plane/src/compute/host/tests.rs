//! With stand-ins for the VMM and the boot-file reader, as processes of this
//! machine, in a real control group where there is one.

mod bench;
mod hibernation;
mod programs;
mod saving;
mod update;
mod warm;

use std::time::Duration;

use hearth_vmm_api::Exit;

use self::bench::{Bench, READER, an_end, launch, observed};
use super::*;

#[tokio::test]
async fn a_whole_life_and_another_boot() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let mut spec = bench.spec("kernel");
    let mut exits = host.exits();
    assert_eq!(observed(&host, &spec).await, None);

    launch(&host, &spec).await.unwrap();
    let Some(Observed::Running { pid, boot: 1 }) = observed(&host, &spec).await else {
        panic!()
    };
    assert!(host.cgroups.members(&spec.instance).unwrap().contains(&pid));
    assert!(!host.folder(&spec.instance).kernel().exists());
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "500");
    // The same boot again changes nothing.
    launch(&host, &spec).await.unwrap();
    assert_eq!(
        observed(&host, &spec).await,
        Some(Observed::Running { pid, boot: 1 })
    );
    assert_eq!(host.console(&spec.instance).await.unwrap(), b"hello\n");
    let refused = host.reset(&spec.instance).await.unwrap_err();
    assert!(format!("{refused:?}").contains("not now"));
    assert_eq!(host.resets(&spec.instance).await.unwrap(), 0);
    host.reboot(&spec.instance, 0).await.unwrap();
    assert_eq!(host.resets(&spec.instance).await.unwrap(), 1);
    let late = host.reboot(&spec.instance, 0).await.unwrap_err();
    assert!(format!("{late:?}").contains("reset since"));

    // hearth starts anew: the VMM is found again, and its end is seen.
    drop(host);
    let host = bench.open(&root);
    assert_eq!(
        observed(&host, &spec).await,
        Some(Observed::Running { pid, boot: 1 })
    );
    assert!(exits.try_recv().is_err());
    exits = host.exits();
    host.power_button(&spec.instance).await.unwrap();
    an_end(&mut exits).await;
    let exit = Exit::GuestPowerOff;
    assert_eq!(
        observed(&host, &spec).await,
        Some(Observed::Exited { boot: 1, exit })
    );
    let gone = host.power_button(&spec.instance).await.unwrap_err();
    assert!(matches!(gone, ComputeError::NotRunning(_)));

    spec.boot = 2;
    launch(&host, &spec).await.unwrap();
    assert!(matches!(
        observed(&host, &spec).await,
        Some(Observed::Running { boot: 2, .. })
    ));
    for _ in 0..2 {
        host.kill(&spec.instance).await.unwrap();
        assert!(matches!(
            observed(&host, &spec).await,
            Some(Observed::Exited {
                boot: 2,
                exit: Exit::Crashed { .. }
            })
        ));
    }
    for _ in 0..2 {
        host.forget(&spec.instance).await.unwrap();
        assert_eq!(observed(&host, &spec).await, None);
    }
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
    assert_eq!(
        fs::read_dir(bench.dir.path().join("data")).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn a_fresh_clone_boots_its_images_files_and_later_boots_their_own() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let image = bench.dir.path().join("image.raw");
    // The reader counts how often it is run.
    let reader = format!(
        "#!/bin/sh\necho x >> {}/reads\n",
        bench.dir.path().display()
    );
    let reader = READER.replace("#!/bin/sh\n", &reader);
    fs::write(bench.dir.path().join("reader"), reader).unwrap();
    fs::write(&image, "kernel\n").unwrap();
    let reads = || {
        fs::read_to_string(bench.dir.path().join("reads"))
            .unwrap()
            .len()
            / 2
    };
    // What is on the root disk itself would be refused.
    let mut spec = bench.spec("refuse");
    spec.clone_of = Some(Box::new(crate::compute::CloneOf {
        image: crate::model::ImageId::from_random(1),
        path: image.clone(),
        warm_for: None,
    }));
    let specs = [1, 2, 3].map(|n| LaunchSpec {
        instance: InstanceId::from_random(n),
        trace: trace::Trace::of(jiff::Timestamp::now()),
        ..spec.clone()
    });
    let all = futures_util::future::join_all(specs.iter().map(|spec| launch(&host, spec))).await;
    for (outcome, spec) in all.into_iter().zip(&specs) {
        outcome.unwrap();
        assert!(!host.folder(&spec.instance).kernel().exists());
    }
    assert_eq!(reads(), 1);
    spec = specs[2].clone();
    // How long it took is there to be shown.
    let data = bench.dir.path().join("data");
    let shown = trace_of(&data, &spec.instance).unwrap().unwrap();
    let steps: Vec<&str> = shown.steps.iter().map(|s| s.step.as_str()).collect();
    assert_eq!(steps.len(), 6, "{steps:?}");
    assert!(steps[4].starts_with("VMM's processes"), "{steps:?}");
    assert!(
        shown
            .asked
            .is_some_and(|asked| asked <= shown.steps[0].from)
    );
    assert_eq!(trace_of(&data, &InstanceId::from_random(9)).unwrap(), None);

    // The next boot's files are what is on the disk by then; and so are those of
    // a clone whose image is gone.
    host.kill(&spec.instance).await.unwrap();
    (spec.boot, spec.clone_of) = (2, None);
    let refused = launch(&host, &spec).await.unwrap_err();
    assert!(refused.to_string().contains("not a bzImage"), "{refused}");
    let failed = trace_of(&data, &spec.instance).unwrap().unwrap();
    assert!(failed.boot == 2 && failed.error.is_some(), "{failed:?}");
    spec.clone_of = Some(Box::new(crate::compute::CloneOf {
        image: crate::model::ImageId::from_random(1),
        path: bench.dir.path().join("gone"),
        warm_for: None,
    }));
    let _ = launch(&host, &spec).await.unwrap_err();
    assert_eq!(reads(), 3);
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
    assert_eq!(fs::read_dir(data).unwrap().count(), 0);
}

#[tokio::test]
async fn each_instance_has_a_user_of_its_own_until_it_is_forgotten() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let mut spec = bench.spec("kernel");
    let id = |n| InstanceId::from_random(n);
    let uid = |host: &HostCompute, n| host.folder(&id(n)).launch().unwrap().map(|l| l.uid);
    for n in 1..=2 {
        spec.instance = id(n);
        launch(&host, &spec).await.unwrap();
    }
    assert_eq!(
        (uid(&host, 1), uid(&host, 2)),
        (Some(FIRST_UID), Some(FIRST_UID + 1))
    );
    // Another process learns who has which.
    let host = bench.open(&root);
    host.forget(&id(1)).await.unwrap();
    for n in 3..=4 {
        spec.instance = id(n);
        launch(&host, &spec).await.unwrap();
    }
    assert_eq!(
        (uid(&host, 3), uid(&host, 4)),
        (Some(FIRST_UID), Some(FIRST_UID + 2))
    );
    host.forget(&id(2)).await.unwrap();
    spec.instance = id(5);
    launch(&host, &spec).await.unwrap();
    assert_eq!(uid(&host, 5), Some(FIRST_UID + 1));
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}

#[tokio::test]
async fn a_launch_that_fails_leaves_no_process_and_says_why() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let spec = bench.spec("refuse");
    let e = launch(&host, &spec).await.unwrap_err();
    assert_eq!(
        e.to_string(),
        "hearth-vmm did not start: --kernel: not a bzImage"
    );
    assert_eq!(observed(&host, &spec).await, Some(Observed::Incomplete));
    let spec = bench.spec("open");
    let e = launch(&host, &spec).await.unwrap_err();
    let line = e.to_string();
    assert!(line.contains("layers seccomp, io-uring"), "{line}");
    assert!(host.cgroups.members(&spec.instance).unwrap().is_empty());
    let spec = bench.spec("broken");
    let e = launch(&host, &spec).await.unwrap_err();
    assert_eq!(
        e.to_string(),
        "the root disk can't be booted: no readable ext4"
    );
    assert!(!host.cgroups.path(&spec.instance).exists());
    // And the next one succeeds.
    let spec = bench.spec("kernel");
    launch(&host, &spec).await.unwrap();
    assert!(matches!(
        observed(&host, &spec).await,
        Some(Observed::Running { .. })
    ));
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}

#[tokio::test]
async fn a_vmm_that_was_never_noted_is_found() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let spec = bench.spec("kernel");
    launch(&host, &spec).await.unwrap();
    let before = observed(&host, &spec).await;
    let folder = host.folder(&spec.instance).path().to_owned();
    // As kill -9 before the last record leaves it.
    fs::remove_file(folder.join("identity.json")).unwrap();
    let host = bench.open(&root);
    assert_eq!(observed(&host, &spec).await, before);
    assert!(folder.join("identity.json").exists());

    // One that can't be found is ended by the next launch: never two at a disk.
    fs::remove_file(folder.join("identity.json")).unwrap();
    fs::remove_file(folder.join("vmm/vmm.pid")).unwrap();
    let old = host.cgroups.members(&spec.instance).unwrap();
    let host = bench.open(&root);
    assert_eq!(observed(&host, &spec).await, Some(Observed::Incomplete));
    launch(&host, &spec).await.unwrap();
    let new = host.cgroups.members(&spec.instance).unwrap();
    assert!(new.len() == 1 && !old.contains(&new[0]), "{old:?} {new:?}");

    // No folder, but a group: cleared away.
    fs::remove_dir_all(&folder).unwrap();
    let host = bench.open(&root);
    assert_eq!(observed(&host, &spec).await, Some(Observed::Incomplete));
    host.forget(&spec.instance).await.unwrap();
    assert_eq!(observed(&host, &spec).await, None);
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}

#[tokio::test]
async fn a_paused_instance_stands_still_goes_on_and_can_be_ended() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let spec = bench.spec("kernel");
    let id = &spec.instance;
    host.set_paused(id, true).unwrap();
    launch(&host, &spec).await.unwrap();
    assert!(host.paused().unwrap().is_empty());
    host.set_paused(id, true).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !fs::read_to_string(host.cgroups.path(id).join("cgroup.events"))
        .unwrap()
        .contains("frozen 1")
    {
        assert!(
            std::time::Instant::now() < deadline,
            "it never stands still"
        );
        tokio::task::yield_now().await;
    }
    // Another hearth finds it so, and is told at once that it can't be asked.
    let host = bench.open(&root);
    assert_eq!(host.paused().unwrap(), [id.clone()].into());
    assert!(matches!(
        observed(&host, &spec).await,
        Some(Observed::Running { .. })
    ));
    let e = host.resets(id).await.unwrap_err();
    assert!(format!("{e:?}").contains("is paused"), "{e:?}");
    host.set_paused(id, false).unwrap();
    assert_eq!(host.resets(id).await.unwrap(), 0);
    host.set_paused(id, true).unwrap();
    host.forget(id).await.unwrap();
    assert_eq!(observed(&host, &spec).await, None);
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}

#[test]
fn limits_follow_the_instance_type() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench { dir };
    let mut spec = bench.spec("");
    (spec.vcpus, spec.memory_mib) = (2, 1024);
    let limits = cgroup::limits(&spec);
    let get = |name| &limits.iter().find(|(n, _)| *n == name).unwrap().1;
    assert_eq!(get("cpu.max"), "200000 100000");
    assert_eq!(
        get("memory.max"),
        // The guest, its VMM, and page cache.
        &((1024_u64 + 16 + 8 + 128) << 20).to_string()
    );
    assert_eq!(get("pids.max"), "514");
}
