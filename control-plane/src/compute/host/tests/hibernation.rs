//! Memory: saved whole, kept from others, given out once.

use std::future::poll_fn;
use std::os::unix::fs::MetadataExt as _;
use std::pin::pin;
use std::task::Poll;

use super::bench::{Bench, launch, observed};
use super::*;
use crate::{compute::DiskSpec, model::VolumeId};

/// How the VMMs of this bench began, the first one first.
pub(super) fn starts(bench: &Bench) -> Vec<String> {
    let starts = fs::read_to_string(bench.dir.path().join("starts")).unwrap_or_default();
    starts.lines().map(ToOwned::to_owned).collect()
}

/// What there is of its memory in its folder.
pub(super) fn left(host: &HostCompute, id: &InstanceId) -> Vec<String> {
    let entries = fs::read_dir(host.folder(id).path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("memory")).collect()
}

pub(super) async fn machine_state(
    host: &HostCompute,
    id: &InstanceId,
) -> hearth_vmm_api::MachineState {
    let socket = host.folder(id).socket();
    client::machine(&socket).await.unwrap().state
}

pub(super) async fn clean_up(host: &HostCompute, root: &Path) {
    host.purge().await.unwrap();
    fs::remove_dir(root).unwrap();
}

/// An instance of this disk, hibernated.
async fn hibernated(bench: &Bench, root: &Path, disk: &str) -> (HostCompute, LaunchSpec) {
    let host = bench.open(root);
    let mut spec = bench.spec(disk);
    launch(&host, &spec).await.unwrap();
    host.hibernate(&spec.instance, 1).await.unwrap();
    host.kill(&spec.instance).await.unwrap();
    (spec.boot, spec.resume) = (2, Some(1));
    (host, spec)
}

pub(super) const WHOLE: Option<Kept> = Some(Kept::Whole { boot: 1 });

#[tokio::test]
async fn memory_is_saved_kept_and_gone_on_from_once() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let mut spec = bench.spec("kernel");
    let id = spec.instance.clone();
    launch(&host, &spec).await.unwrap();
    assert_eq!(host.kept_memory(&id).await.unwrap(), None);
    for _ in 0..2 {
        host.hibernate(&id, 1).await.unwrap();
        assert_eq!(host.kept_memory(&id).await.unwrap(), WHOLE);
    }
    // It is held until it is ended.
    let held = hearth_vmm_api::MachineState::Paused;
    assert_eq!(machine_state(&host, &id).await, held);
    host.kill(&id).await.unwrap();
    assert_eq!(host.kept_memory(&id).await.unwrap(), WHOLE);
    fs::write(host.instances.join("no-folder"), "").unwrap();
    assert!(host.kept_bytes().unwrap() > 0);
    fs::remove_file(host.instances.join("no-folder")).unwrap();
    let folder = host.folder(&id).path().join("memory-1");
    for (name, mode) in [("", 0o700), ("memory", 0o600), ("machine.json", 0o600)] {
        let meta = fs::metadata(folder.join(name)).unwrap();
        assert_eq!(meta.mode() & 0o777, mode, "{name}");
        assert_eq!(meta.uid(), fs::metadata("/proc/self").unwrap().uid());
    }

    // Another hearth finds it.
    let host = bench.open(&root);
    (spec.boot, spec.resume) = (2, Some(1));
    launch(&host, &spec).await.unwrap();
    assert_eq!(starts(&bench), ["cold", "memory of boot"]);
    assert!(left(&host, &id).is_empty(), "{:?}", left(&host, &id));
    assert_eq!(host.kept_bytes().unwrap(), 0);
    // Once, whoever asks for it again.
    host.kill(&id).await.unwrap();
    launch(&host, &spec).await.unwrap();
    assert_eq!(starts(&bench), ["cold", "memory of boot", "cold"]);
    clean_up(&host, &root).await;
}

#[tokio::test]
async fn whatever_runs_first_takes_the_memory_away() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    // A boot from cold, or from other memory.
    for resume in [None, Some(7)] {
        let (host, mut spec) = hibernated(&bench, &root, "kernel").await;
        spec.resume = resume;
        launch(&host, &spec).await.unwrap();
        assert!(left(&host, &spec.instance).is_empty());
        host.forget(&spec.instance).await.unwrap();
    }
    // Its own VMM, let go.
    let host = bench.open(&root);
    let spec = bench.spec("kernel");
    let id = &spec.instance;
    launch(&host, &spec).await.unwrap();
    host.hibernate(id, 1).await.unwrap();
    let mut exits = host.exits();
    host.power_button(id).await.unwrap();
    an_end(&mut exits).await;
    assert!(left(&host, id).is_empty());
    let exit = Exit::GuestPowerOff;
    assert_eq!(
        observed(&host, &spec).await,
        Some(Observed::Exited { boot: 1, exit })
    );
    assert!(!starts(&bench).iter().any(|start| start.contains("memory")));
    clean_up(&host, &root).await;
}

#[tokio::test]
async fn memory_that_is_damaged_is_lost_and_it_boots_from_cold() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    for lost in [false, true] {
        let (host, spec) = hibernated(&bench, &root, "kernel").await;
        let state = host
            .folder(&spec.instance)
            .path()
            .join("memory-1/machine.json");
        match lost {
            true => fs::remove_file(state).unwrap(),
            false => fs::write(state, "cut").unwrap(),
        }
        launch(&host, &spec).await.unwrap();
        assert!(matches!(
            observed(&host, &spec).await,
            Some(Observed::Running { boot: 2, .. })
        ));
        assert!(left(&host, &spec.instance).is_empty());
        host.forget(&spec.instance).await.unwrap();
    }
    assert_eq!(starts(&bench), ["cold"; 4]);
    fs::remove_dir_all(bench.dir.path().join("data")).unwrap();
    bench.open(&root).purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}

#[tokio::test]
async fn what_cant_be_saved_runs_on() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let spec = bench.spec("unsaved");
    let id = &spec.instance;
    launch(&host, &spec).await.unwrap();
    let running = hearth_vmm_api::MachineState::Running;
    let refused = host.hibernate(id, 1).await.unwrap_err();
    assert!(
        format!("{refused:?}").contains("refuses: no"),
        "{refused:?}"
    );
    assert_eq!(machine_state(&host, id).await, running);
    assert!(left(&host, id).is_empty());
    // No room: it is not even held.
    let host = bench.open_keeping(&root, u64::MAX);
    let full = host.hibernate(id, 1).await.unwrap_err();
    assert!(
        format!("{full:?}").contains("beyond the reserve"),
        "{full:?}"
    );
    assert!(left(&host, id).is_empty());
    // Another boot's, or nobody's.
    let other = host.hibernate(id, 2).await.unwrap_err();
    assert!(matches!(other, ComputeError::NotRunning(_)), "{other:?}");
    clean_up(&host, &root).await;
}

#[tokio::test]
async fn a_guest_that_is_just_being_reset_is_asked_again() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let (host, spec) = hibernated(&bench, &root, "busy").await;
    assert_eq!(host.kept_memory(&spec.instance).await.unwrap(), WHOLE);
    clean_up(&host, &root).await;
}

/// Does so many polls of it, and drops it.
pub(super) async fn cut_short<T>(work: impl Future<Output = T>, polls: usize) -> Option<T> {
    let (mut work, mut left) = (pin!(work), polls);
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        work.as_mut().poll(cx).map(Some)
    })
    .await
}

#[tokio::test]
async fn a_start_that_is_cut_short_anywhere_never_gives_memory_out_twice() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let mut outcomes = BTreeSet::new();
    for polls in 0.. {
        let _ = fs::remove_file(bench.dir.path().join("starts"));
        let (host, spec) = hibernated(&bench, &root, "kernel").await;
        let done = cut_short(host.launch(&spec, vec![]), polls).await.is_some();
        drop(host);
        // Twice again, by others: whatever runs by then is ended in between.
        for _ in 0..2 {
            let host = bench.open(&root);
            launch(&host, &spec).await.unwrap();
            host.kill(&spec.instance).await.unwrap();
        }
        let starts = starts(&bench);
        let from_memory = starts.iter().filter(|s| s.starts_with("memory")).count();
        // Once, and before anything else ran on its disk; or never, if it was cut short
        // when it had taken the memory and before the VMM had it.
        let first = usize::from(starts[1] == "memory of boot");
        assert_eq!(from_memory, first, "{polls}: {starts:?}");
        outcomes.insert(from_memory);
        bench.open(&root).forget(&spec.instance).await.unwrap();
        if done {
            break;
        }
    }
    assert!(outcomes.contains(&1));
    clean_up(&bench.open(&root), &root).await;
}

#[tokio::test]
async fn a_hibernation_that_is_cut_short_anywhere_keeps_all_or_nothing() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    for polls in 0.. {
        let _ = fs::remove_file(bench.dir.path().join("starts"));
        let host = bench.open(&root);
        let mut spec = bench.spec("kernel");
        let id = spec.instance.clone();
        launch(&host, &spec).await.unwrap();
        let done = cut_short(host.hibernate(&id, 1), polls).await.is_some();
        // Half of them are given up, and half are tried again.
        let kept = match polls % 2 {
            0 => {
                let mut exits = host.exits();
                host.power_button(&id).await.unwrap();
                an_end(&mut exits).await;
                None
            }
            _ => {
                host.hibernate(&id, 1).await.unwrap();
                WHOLE
            }
        };
        host.kill(&id).await.unwrap();
        assert_eq!(host.kept_memory(&id).await.unwrap(), kept, "{polls}");
        (spec.boot, spec.resume) = (2, Some(1));
        launch(&host, &spec).await.unwrap();
        let from = kept.map_or("cold", |_| "memory of boot");
        assert_eq!(starts(&bench), ["cold", from], "{polls}");
        host.forget(&id).await.unwrap();
        if done {
            break;
        }
    }
    clean_up(&bench.open(&root), &root).await;
}

#[tokio::test]
async fn memory_is_kept_once_the_disks_it_knows_are_on_the_hosts_disk() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let mut spec = bench.spec("kernel");
    let id = spec.instance.clone();
    // A disk that can't be synced stands for one that a power cut takes something back of.
    spec.disks.push(DiskSpec {
        volume: VolumeId::from_random(2),
        path: "/dev/null".into(),
        read_only: false,
    });
    launch(&host, &spec).await.unwrap();
    host.hibernate(&id, 1).await.unwrap_err();
    assert_eq!(host.kept_memory(&id).await.unwrap(), None);
    let running = hearth_vmm_api::MachineState::Running;
    assert_eq!(machine_state(&host, &id).await, running);
    clean_up(&host, &root).await;
}

#[tokio::test]
async fn what_is_no_instances_does_not_keep_memory_from_being_counted() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let (host, _) = hibernated(&bench, &root, "kernel").await;
    let kept = host.kept_bytes().unwrap();
    fs::write(host.instances.join("notes"), "an operator's").unwrap();
    assert_eq!(host.kept_bytes().unwrap(), kept);
    assert!(kept > 0);
    clean_up(&host, &root).await;
}

#[tokio::test]
async fn memory_that_was_given_out_goes_whoever_notes_the_vmm() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let (host, spec) = hibernated(&bench, &root, "kernel").await;
    launch(&host, &spec).await.unwrap();
    // As `hearth` leaves it that is killed after it has started the VMM.
    let folder = host.folder(&spec.instance).path().to_owned();
    drop(host);
    fs::remove_file(folder.join("identity.json")).unwrap();
    fs::create_dir(folder.join("memory.used")).unwrap();
    fs::write(folder.join("memory.used/memory"), "of boot").unwrap();
    let host = bench.open(&root);
    assert!(matches!(
        observed(&host, &spec).await,
        Some(Observed::Running { boot: 2, .. })
    ));
    assert!(left(&host, &spec.instance).is_empty());
    clean_up(&host, &root).await;
}

#[tokio::test]
async fn memory_outlasts_what_its_host_lacks_for_a_while() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let (mut host, spec) = hibernated(&bench, &root, "kernel").await;
    let id = &spec.instance;
    let lacking = bench.dir.path().join("lacking");
    for why in [
        "512 MiB of guest memory can't be had: Cannot allocate memory (os error 12)",
        "--restore: memory: Cannot allocate memory (os error 12)",
        // Its words are for people: whatever they are, its status is what counts.
        "--restore: vCPU 0: it has not answered",
        "--socket: Address already in use (os error 98)",
        "--disk /x: another process has it",
    ] {
        fs::write(&lacking, format!("2 {why}")).unwrap();
        let refused = launch(&host, &spec).await.unwrap_err();
        // It is tried again: what the VMM refuses for good is not.
        assert!(
            matches!(&refused, ComputeError::Host { source, .. } if source.to_string() == why),
            "{refused:?}"
        );
        assert_eq!(host.kept_memory(id).await.unwrap(), WHOLE, "{why}");
    }
    fs::remove_file(lacking).unwrap();
    let vmm = std::mem::replace(&mut host.vmm, "/none/such".into());
    launch(&host, &spec).await.unwrap_err();
    assert_eq!(host.kept_memory(id).await.unwrap(), WHOLE);
    host.vmm = vmm;
    launch(&host, &spec).await.unwrap();
    assert_eq!(starts(&bench), ["cold", "memory of boot"]);
    assert!(left(&host, id).is_empty());
    clean_up(&host, &root).await;
}

#[tokio::test]
async fn memory_that_is_another_machines_is_lost() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let (host, spec) = hibernated(&bench, &root, "kernel").await;
    // Whatever its words are.
    let why = "its devices are a, b, and here there are a";
    fs::write(bench.dir.path().join("lacking"), format!("3 {why}")).unwrap();
    launch(&host, &spec).await.unwrap();
    assert_eq!(starts(&bench), ["cold", "cold"]);
    assert!(left(&host, &spec.instance).is_empty());
    clean_up(&host, &root).await;
}

#[tokio::test]
async fn memory_whose_guest_may_have_run_is_never_given_back() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    // It fails with its process id noted: whether the guest ran can't be told.
    let (host, spec) = hibernated(&bench, &root, "dies").await;
    launch(&host, &spec).await.unwrap();
    assert_eq!(starts(&bench), ["cold", "memory of boot", "cold"]);
    assert!(left(&host, &spec.instance).is_empty());
    clean_up(&host, &root).await;
}

#[tokio::test]
async fn what_changes_memory_holds_the_lock_though_nobody_waits_for_it() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let id = bench.spec("kernel").instance;
    let held = host.hold(&id).await;
    let (go_on, waits) = std::sync::mpsc::channel::<()>();
    let mut changing = Box::pin(under(&held, move || waits.recv().map_err(io::Error::other)));
    assert!(futures_util::poll!(&mut changing).is_pending());
    drop(changing);
    drop(held);
    assert!(host.lock(&id).try_lock().is_err());
    go_on.send(()).unwrap();
    drop(host.hold(&id).await);
    clean_up(&host, &root).await;
}
