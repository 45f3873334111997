//! Saves of memory: the room that they take, and the `hearth`s that are killed over them.

use super::bench::{Bench, an_end, launch};
use super::hibernation::{WHOLE, clean_up, cut_short, left, machine_state, starts};
use super::*;

/// What each VMM of this bench was asked to save, in order.
fn saves(bench: &Bench) -> Vec<String> {
    let saves = fs::read_to_string(bench.dir.path().join("saves")).unwrap_or_default();
    saves.lines().map(ToOwned::to_owned).collect()
}

/// Lets those VMMs write that take their time.
fn let_write(bench: &Bench) {
    fs::write(bench.dir.path().join("go"), "").unwrap();
}

const MIB: u64 = 1 << 20;
const SAVING: hearth_vmm_api::MachineState = hearth_vmm_api::MachineState::Saving;

/// Instance `n` of this disk, which is being saved.
async fn being_saved(
    host: &Arc<HostCompute>,
    mut spec: LaunchSpec,
    n: u128,
) -> (
    InstanceId,
    tokio::task::JoinHandle<Result<(), ComputeError>>,
) {
    spec.instance = InstanceId::from_random(n);
    launch(host, &spec).await.unwrap();
    let (id, saving) = (spec.instance.clone(), Arc::clone(host));
    let saved = tokio::spawn(async move { saving.hibernate(&spec.instance, 1).await });
    while machine_state(host, &id).await != SAVING {
        assert!(!saved.is_finished());
        tokio::task::yield_now().await;
    }
    (id, saved)
}

#[tokio::test]
async fn a_save_leaves_the_room_that_others_will_take() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    // Of 512 MiB each, one fits beside the reserve and a quarter of it.
    bench.set_free((80 + 20 + 512 + 511) * MIB);
    let host = Arc::new(bench.open_keeping(&root, 80 * MIB));
    let (first, saved) = being_saved(&host, bench.spec("slow"), 1).await;
    let mut second = bench.spec("kernel");
    second.instance = InstanceId::from_random(2);
    launch(&host, &second).await.unwrap();
    // A `hearth` that has begun none of them knows it too.
    for host in [&*host, &bench.open_keeping(&root, 80 * MIB)] {
        let full = host.hibernate(&second.instance, 1).await.unwrap_err();
        assert!(
            format!("{full:?}").contains("beyond the reserve"),
            "{full:?}"
        );
        assert!(left(host, &second.instance).is_empty());
    }
    let_write(&bench);
    saved.await.unwrap().unwrap();
    assert_eq!(host.kept_memory(&first).await.unwrap(), WHOLE);
    host.hibernate(&second.instance, 1).await.unwrap();
    clean_up(&host, &root).await;
}

#[tokio::test]
async fn a_save_is_given_up_before_it_fills_the_disk() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    bench.set_free(700 * MIB);
    let host = Arc::new(bench.open_keeping(&root, 100 * MIB));
    let (id, saved) = being_saved(&host, bench.spec("slow"), 1).await;
    bench.set_free(99 * MIB);
    let full = saved.await.unwrap().unwrap_err();
    assert!(format!("{full:?}").contains("nearly full"), "{full:?}");
    // It runs on, as any that can't be saved.
    let running = hearth_vmm_api::MachineState::Running;
    assert_eq!(machine_state(&host, &id).await, running);
    assert!(left(&host, &id).is_empty());
    host.forget(&id).await.unwrap();
    // What can't be told, as a VMM of an older hearth, is ended.
    bench.set_free(700 * MIB);
    let (id, saved) = being_saved(&host, bench.spec("stubborn"), 2).await;
    bench.set_free(99 * MIB);
    saved.await.unwrap().unwrap_err();
    let ended = host.look(&id).await.unwrap();
    assert!(
        matches!(ended, Some(Observed::Exited { boot: 1, .. })),
        "{ended:?}"
    );
    assert_eq!(host.kept_bytes().unwrap(), 0);
    clean_up(&host, &root).await;
}

#[tokio::test]
async fn a_save_whose_hearth_was_killed_anywhere_is_kept_or_given_up() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let_write(&bench);
    for polls in 0.. {
        for record in ["starts", "saves"] {
            let _ = fs::remove_file(bench.dir.path().join(record));
        }
        let host = bench.open(&root);
        let mut spec = bench.spec("slow");
        let id = spec.instance.clone();
        launch(&host, &spec).await.unwrap();
        let done = cut_short(host.hibernate(&id, 1), polls).await.is_some();
        let kept = match polls % 3 {
            // Its user wants it stopped after all.
            0 => {
                let mut exits = host.exits();
                host.power_button(&id).await.unwrap();
                an_end(&mut exits).await;
                None
            }
            _ => {
                host.hibernate(&id, 1).await.unwrap();
                // What one has begun the next one keeps: nothing is written twice.
                assert_eq!(saves(&bench).len(), 1, "{polls}");
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
async fn a_save_that_goes_on_without_its_hearth_is_waited_for() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = Arc::new(bench.open(&root));
    // The next one comes before it is through, or after.
    for (n, is_through) in [(1, false), (2, true)] {
        bench.set_free(u64::MAX);
        let (id, saved) = being_saved(&host, bench.spec("slow"), n).await;
        saved.abort();
        assert!(saved.await.unwrap_err().is_cancelled());
        if is_through {
            let_write(&bench);
            while machine_state(&host, &id).await == SAVING {
                tokio::task::yield_now().await;
            }
        }
        // There is no room for another beside it.
        bench.set_free(0);
        let next = bench.open(&root);
        let end = async { let_write(&bench) };
        let (saved, ()) = tokio::join!(next.hibernate(&id, 1), end);
        saved.unwrap();
        assert_eq!(next.kept_memory(&id).await.unwrap(), WHOLE);
        fs::remove_file(bench.dir.path().join("go")).unwrap();
    }
    assert_eq!(saves(&bench).len(), 2);
    clean_up(&host, &root).await;
}

#[tokio::test]
async fn what_is_cut_short_of_a_save_is_never_kept() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = Arc::new(bench.open(&root));
    let (id, saved) = being_saved(&host, bench.spec("slow"), 1).await;
    saved.abort();
    assert!(saved.await.unwrap_err().is_cancelled());
    // It fails, and no `hearth` is there to see it.
    let socket = host.folder(&id).socket();
    client::cancel_snapshot(&socket).await.unwrap();
    fs::write(
        host.folder(&id).path().join("memory.new/machine.json"),
        "\"sav",
    )
    .unwrap();
    let_write(&bench);
    host.hibernate(&id, 1).await.unwrap();
    assert_eq!(saves(&bench).len(), 2);
    assert_eq!(host.kept_memory(&id).await.unwrap(), WHOLE);
    clean_up(&host, &root).await;
}

#[tokio::test]
async fn what_was_given_up_is_never_kept_though_it_was_written_to_its_end() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = Arc::new(bench.open(&root));
    let (id, saved) = being_saved(&host, bench.spec("slow"), 1).await;
    saved.abort();
    assert!(saved.await.unwrap_err().is_cancelled());
    // As a `hearth` leaves it that is killed when it has made room and told nobody.
    memory::Memory::of(&host.folder(&id)).spoil().unwrap();
    let_write(&bench);
    host.hibernate(&id, 1).await.unwrap();
    assert_eq!(saves(&bench).len(), 2);
    clean_up(&host, &root).await;
}
