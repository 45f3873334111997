//! VMMs that give way to another while their machine runs.

use std::os::unix::fs::symlink;

use super::*;

use super::super::process::Identity;

/// What the bench's data folder knows of its one instance.
struct Updated {
    bench: Bench,
    root: PathBuf,
    host: HostCompute,
    spec: LaunchSpec,
}

impl Updated {
    async fn new() -> Option<Self> {
        let (bench, root) = Bench::new()?;
        let host = bench.open(&root);
        let spec = bench.spec("kernel");
        launch(&host, &spec).await.unwrap();
        Some(Self {
            bench,
            root,
            host,
            spec,
        })
    }

    fn data(&self) -> PathBuf {
        self.bench.dir.path().join("data")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.bench.dir.path().join(name)
    }

    fn id(&self) -> &InstanceId {
        &self.spec.instance
    }

    fn ask(&self) {
        ask_for_update(&self.data(), self.id()).unwrap();
        assert_eq!(update_of(&self.data(), self.id()).unwrap(), None);
    }

    fn outcome(&self) -> UpdateOutcome {
        update_of(&self.data(), self.id())
            .unwrap()
            .unwrap()
            .unwrap()
    }

    /// As [`launch`].
    async fn update(&self) -> Result<(), ComputeError> {
        loop {
            match self.host.update(self.id(), self.spec.boot).await {
                Err(ComputeError::Host { source, .. })
                    if source.kind() == io::ErrorKind::WouldBlock =>
                {
                    tokio::task::yield_now().await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn pid(&self) -> u32 {
        match observed(&self.host, &self.spec).await {
            Some(Observed::Running { pid, boot }) if boot == self.spec.boot => pid,
            other => panic!("it is {other:?}"),
        }
    }

    /// Waits until what is seen is this.
    async fn until_seen(&self, what: &str, is_it: impl Fn(&Observed) -> bool) -> Observed {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let seen = self.host.look(self.id()).await;
            if let Ok(Some(seen)) = &seen
                && is_it(seen)
            {
                return seen.clone();
            }
            assert!(std::time::Instant::now() < deadline, "{what}: {seen:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// As `kill -9` of a `hearth` leaves it, while a VMM is about to take over.
    async fn killed_meanwhile(&mut self) {
        let starts = self.file("starts");
        let begun = fs::read(&starts).unwrap().len();
        let is_begun = async {
            while fs::read(&starts).unwrap().len() == begun
                && self.host.cgroups.members(self.id()).unwrap().len() < 3
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            outcome = self.update() => panic!("{outcome:?}"),
            () = is_begun => {}
        }
        self.host = self.bench.open(&self.root);
    }

    async fn ends(self) {
        self.host.purge().await.unwrap();
        fs::remove_dir(&self.root).unwrap();
        assert_eq!(fs::read_dir(self.data()).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_machine_is_taken_over_again_and_again() {
    let Some(updated) = Updated::new().await else {
        return;
    };
    let (host, id) = (&updated.host, updated.id());
    host.reboot(id, 0).await.unwrap();
    let mut exits = host.exits();
    let first = updated.pid().await;
    assert!(!host.wants_update(id).await.unwrap());
    // Unasked, nothing happens.
    updated.update().await.unwrap();
    assert_eq!(updated.pid().await, first);
    let mut was = first;
    for _ in 0..2 {
        updated.ask();
        an_end(&mut exits).await;
        assert!(host.wants_update(id).await.unwrap());
        updated.update().await.unwrap();
        let pid = updated.pid().await;
        assert_ne!(pid, was);
        let refused = None;
        assert_eq!(updated.outcome(), UpdateOutcome { was, pid, refused });
        assert!(!host.wants_update(id).await.unwrap());
        assert_eq!(host.cgroups.members(id).unwrap(), [pid]);
        assert_eq!(host.resets(id).await.unwrap(), 1);
        // The old one's end, by which it is looked for.
        an_end(&mut exits).await;
        was = pid;
    }
    assert_eq!(host.console(id).await.unwrap(), b"hello\ntaken\ntaken\n");
    // The launch is the same as before, and its machine is there.
    launch(host, &updated.spec).await.unwrap();
    assert_eq!(updated.pid().await, was);
    host.power_button(id).await.unwrap();
    an_end(&mut exits).await;
    let exit = Exit::GuestPowerOff;
    let ended = Observed::Exited { boot: 1, exit };
    assert_eq!(observed(host, &updated.spec).await, Some(ended));
    // What was asked about one that has ended is of no account for the next.
    updated.ask();
    let spec = LaunchSpec {
        boot: 2,
        ..updated.spec.clone()
    };
    launch(host, &spec).await.unwrap();
    assert!(!host.wants_update(id).await.unwrap());
    assert_eq!(update_of(&updated.data(), id).unwrap(), Some(None));
    updated.ask();
    host.forget(id).await.unwrap();
    assert!(!host.wants_update(id).await.unwrap());
    updated.ends().await;
}

#[tokio::test]
async fn a_machine_that_can_not_be_handed_over_goes_on() {
    let Some(mut updated) = Updated::new().await else {
        return;
    };
    let pid = updated.pid().await;
    fs::write(updated.file("keeps"), "").unwrap();
    updated.ask();
    updated.update().await.unwrap();
    let why = "--take-over: a debugger has the machine";
    assert_eq!(updated.outcome().refused.as_deref(), Some(why));
    assert_eq!(updated.pid().await, pid);
    fs::remove_file(updated.file("keeps")).unwrap();

    updated.host.available_mib = || Ok(1);
    updated.ask();
    updated.update().await.unwrap();
    let why = updated.outcome().refused.unwrap();
    assert!(why.contains("20 MiB, and the host has 1 MiB"), "{why}");
    updated.host.available_mib = || Ok(1 << 20);

    // There is no program to be had.
    let vmm = updated.file("vmm");
    fs::rename(&vmm, updated.file("was")).unwrap();
    updated.ask();
    assert!(updated.update().await.is_err());
    symlink("/bin/false", &vmm).unwrap();
    updated.update().await.unwrap();
    let outcome = updated.outcome();
    assert_eq!((outcome.was, outcome.pid), (pid, pid));
    assert_eq!(outcome.refused.as_deref(), Some("it ended at once"));
    // Nor another than the one that it runs.
    fs::remove_file(&vmm).unwrap();
    symlink(format!("/proc/{pid}/exe"), &vmm).unwrap();
    updated.ask();
    updated.update().await.unwrap();
    let refused = None;
    assert_eq!(
        updated.outcome(),
        UpdateOutcome {
            was: pid,
            pid,
            refused
        }
    );
    assert_eq!(updated.pid().await, pid);

    let found = vmms(&updated.data(), &vmm).await.unwrap();
    let [found] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!((&found.instance, found.pid), (updated.id(), pid));
    assert!(found.is_installed && found.build.len() == 12, "{found:?}");
    assert_eq!(found.version.as_deref(), Some("1.2.3"));
    let reader = updated.file("reader");
    let found = vmms(&updated.data(), &reader).await.unwrap();
    assert!(!found[0].is_installed);
    updated.ends().await;
}

#[tokio::test]
async fn a_killed_hearth_leaves_one_machine_that_the_next_one_finds() {
    let Some(mut updated) = Updated::new().await else {
        return;
    };
    let old = updated.pid().await;
    let early = updated.file("early");
    fs::write(&early, "").unwrap();
    updated.ask();
    updated.killed_meanwhile().await;
    // The old one has it, and no third is started.
    assert_eq!(updated.pid().await, old);
    let busy = updated.update().await.unwrap_err();
    assert!(format!("{busy:?}").contains("is about to take"), "{busy:?}");
    assert!(updated.host.wants_update(updated.id()).await.unwrap());
    fs::remove_file(&early).unwrap();
    let is_new = |seen: &Observed| matches!(seen, Observed::Running { pid, .. } if *pid != old);
    let seen = updated.until_seen("it is taken over", is_new).await;
    let folder = updated.host.folder(updated.id());
    let noted = folder.identity().unwrap().unwrap();
    assert_eq!(
        seen,
        Observed::Running {
            pid: noted.pid,
            boot: 1
        }
    );
    // It is still asked for, which another one does.
    updated.update().await.unwrap();
    let pid = updated.pid().await;
    assert_eq!(updated.outcome().was, noted.pid);
    assert_ne!(pid, noted.pid);

    // Taken over, and not noted.
    let late = updated.file("late");
    fs::write(&late, "").unwrap();
    updated.ask();
    let before = folder.identity().unwrap().unwrap();
    updated.killed_meanwhile().await;
    let gone = |identity: &Identity| !identity.is_alive().unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !gone(&before) {
        assert!(std::time::Instant::now() < deadline, "the old one stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    folder.set_identity(&before).unwrap();
    // Whoever is at work on it will note it.
    let held = updated.host.hold(updated.id()).await;
    let unclear = updated.host.look(updated.id()).await.unwrap_err();
    assert!(format!("{unclear:?}").contains("at work"), "{unclear:?}");
    drop(held);
    fs::remove_file(&late).unwrap();
    let is_heir =
        |seen: &Observed| matches!(seen, Observed::Running { pid, .. } if *pid != before.pid);
    updated.until_seen("the heir is found", is_heir).await;
    updated.ends().await;
}

#[tokio::test]
async fn a_machine_that_is_lost_on_the_way_has_ended() {
    let Some(mut updated) = Updated::new().await else {
        return;
    };
    // The old one is killed before it has given it away.
    fs::write(updated.file("early"), "").unwrap();
    updated.ask();
    let old = updated.pid().await;
    updated.killed_meanwhile().await;
    let pid = rustix::process::Pid::from_raw(old.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let crashed = |seen: &Observed| {
        matches!(
            seen,
            Observed::Exited {
                exit: Exit::Crashed { .. },
                ..
            }
        )
    };
    updated.until_seen("it has ended", crashed).await;
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !updated
        .host
        .cgroups
        .members(updated.id())
        .unwrap()
        .is_empty()
    {
        assert!(std::time::Instant::now() < deadline, "somebody goes on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let gone = updated.update().await.unwrap_err();
    assert!(matches!(gone, ComputeError::NotRunning(_)), "{gone:?}");
    assert_eq!(
        update_of(&updated.data(), updated.id()).unwrap(),
        Some(None)
    );
    fs::remove_file(updated.file("early")).unwrap();

    // The new one is, when it has it.
    updated.spec.boot = 2;
    launch(&updated.host, &updated.spec).await.unwrap();
    fs::write(updated.file("dies"), "").unwrap();
    updated.ask();
    updated.update().await.unwrap();
    assert!(updated.outcome().refused.is_some());
    updated.until_seen("it has ended", crashed).await;
    updated.ends().await;
}
