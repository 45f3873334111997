//! Templates, with the stand-ins: the kernel's text is what a template's console says.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::compute::CloneOf;
use crate::model::{ImageId, Quota, overhead_mib};

use super::*;

const HELD: &str = "hearth.hold: held";

fn spec(bench: &Bench, instance: u128, kernel: &str) -> LaunchSpec {
    let image = bench.dir.path().join(format!("image-{}.raw", kernel.len()));
    fs::write(&image, format!("{kernel}\n")).unwrap();
    let mut spec = bench.spec("refuse");
    spec.instance = InstanceId::from_random(instance);
    spec.clone_of = Some(Box::new(CloneOf {
        image: ImageId::from_random(kernel.len() as u128),
        path: image,
        warm_for: Some("111122223333".to_owned()),
    }));
    spec
}

/// What the console of a launch shows.
async fn launched(host: &HostCompute, spec: &LaunchSpec) -> String {
    launch(host, spec).await.unwrap();
    let console = host.console(&spec.instance).await.unwrap();
    String::from_utf8(console).unwrap()
}

/// Waits until all that was to be made is made, or won't be.
async fn made(host: &HostCompute, spec: &LaunchSpec) -> bool {
    let key = &key(host, spec);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !host.templates.is_settled(key) {
        assert!(tokio::time::Instant::now() < deadline, "never made");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    host.templates.find(spec, &host.vmm).is_some()
}

fn key(host: &HostCompute, spec: &LaunchSpec) -> String {
    host.templates.key(spec, &host.vmm).unwrap().unwrap()
}

#[tokio::test]
async fn the_second_launch_goes_on_from_a_template_until_it_is_damaged() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let [first, second, third, fourth] = [1, 2, 3, 4].map(|n| spec(&bench, n, HELD));
    assert_eq!(launched(&host, &first).await, "hello\n");
    let template = key(&host, &first);
    assert!(made(&host, &first).await);
    // Its console begins as the template's.
    assert_eq!(launched(&host, &second).await, "hello\nwarm\n");
    let steps = host.folder(&second.instance).trace().unwrap();
    let steps = steps.unwrap().steps;
    assert!(steps.iter().any(|step| step.step.contains("a template")));
    // Nobody but us has what it is made of.
    let folder = bench.dir.path().join("data/templates").join(&template);
    assert!(!bench.dir.path().join("data/templates/.making").exists());
    assert_eq!(host.cgroups.of_templates().list().unwrap().len(), 0);
    let mode = fs::metadata(folder.join("memory")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    // Another hearth finds it.
    drop(host);
    let host = bench.open(&root);
    fs::write(folder.join("machine.json"), "something else").unwrap();
    assert_eq!(launched(&host, &third).await, "hello\n");
    assert!(!folder.exists());
    // It isn't made again, and that costs nobody anything.
    assert_eq!(launched(&host, &fourth).await, "hello\n");
    assert!(!folder.exists());
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
    assert_eq!(
        fs::read_dir(bench.dir.path().join("data")).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn what_another_machine_is_made_of_is_another_template() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let one = spec(&bench, 1, HELD);
    let with = |change: &dyn Fn(&mut LaunchSpec)| {
        let mut other = one.clone();
        change(&mut other);
        host.templates.key(&other, &host.vmm).unwrap()
    };
    let key = key(&host, &one);
    assert_eq!(
        with(&|spec| spec.instance = InstanceId::from_random(9)),
        Some(key.clone())
    );
    assert_eq!(with(&|spec| spec.boot = 2), Some(key.clone()));
    assert_eq!(with(&|spec| spec.clone_of = None), None);
    let changes: [&dyn Fn(&mut LaunchSpec); 6] = [
        &|spec| spec.clone_of.as_mut().unwrap().warm_for = Some("222233334444".to_owned()),
        &|spec| spec.vcpus = 2,
        &|spec| spec.memory_mib = 1024,
        &|spec| spec.instance_type = "t2.micro".to_owned(),
        &|spec| spec.disks.push(spec.disks[0].clone()),
        &|spec| {
            let crate::model::BootMethod::Linux { cmdline, .. } = &mut spec.boot_method;
            cmdline.push('x');
        },
    ];
    for change in changes {
        assert!(with(change).is_some_and(|other| other != key));
    }
    // An upgrade of the VMM.
    fs::write(&host.vmm, "another").unwrap();
    assert!(with(&|_| {}).is_some_and(|other| other != key));
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}

#[tokio::test]
async fn a_host_without_memory_to_spare_tries_again_later() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let mut host = bench.open(&root);
    host.available_mib = || Ok(512);
    let [first, second] = [1, 2].map(|n| spec(&bench, n, HELD));
    assert_eq!(launched(&host, &first).await, "hello\n");
    assert!(!made(&host, &first).await);
    host.available_mib = || Ok(1 << 20);
    assert_eq!(launched(&host, &second).await, "hello\n");
    assert!(made(&host, &second).await);
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}

/// What a host has beyond all promises, in MiB and GiB.
#[derive(Debug, Default)]
struct Promises([AtomicU64; 2]);

impl Promises {
    fn leave(&self, memory_mib: u64, disk_gib: u64) {
        self.0[0].store(memory_mib, Ordering::SeqCst);
        self.0[1].store(disk_gib, Ordering::SeqCst);
    }
}

impl Spare for Promises {
    fn left(&self) -> Quota {
        let [memory_mib, disk_gib] = [0, 1].map(|n| self.0[n].load(Ordering::SeqCst));
        Quota {
            memory_mib,
            disk_gib,
            ..Quota::default()
        }
    }
}

#[tokio::test]
async fn a_template_is_made_of_what_is_promised_to_nobody() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let spare = Arc::new(Promises::default());
    let host = bench.open(&root).with_spare(spare.clone());
    let [first, second] = [1, 2].map(|n| spec(&bench, n, HELD));
    let memory = u64::from(first.memory_mib);
    let memory = memory + overhead_mib(memory);
    for (n, left) in (10..).zip([(memory - 1, 100), (1 << 20, 0)]) {
        spare.leave(left.0, left.1);
        let spec = spec(&bench, n, HELD);
        assert_eq!(launched(&host, &spec).await, "hello\n");
        assert!(!made(&host, &spec).await, "with {left:?}");
    }
    // One whose guest never holds: it ends as soon as what it takes is promised.
    spare.leave(memory, 1);
    let never = spec(&bench, 3, "a guest that says nothing");
    assert_eq!(launched(&host, &never).await, "hello\n");
    let groups = host.cgroups.of_templates();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let runs = || {
        let mut made_in = groups.list().unwrap().into_iter();
        made_in.any(|id| !groups.members(&id).unwrap().is_empty())
    };
    while !runs() {
        assert!(tokio::time::Instant::now() < deadline, "never started");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    spare.leave(memory - 1, 1);
    assert!(!made(&host, &never).await);
    assert!(!runs());
    // Neither was given up.
    spare.leave(memory, 1);
    assert!(host.templates.wanted(&never, &host.vmm).is_some());
    assert_eq!(launched(&host, &second).await, "hello\n");
    assert!(made(&host, &first).await);
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}

#[tokio::test]
async fn an_image_that_does_not_hold_is_given_up() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    // A guest that ends: `refuse` is what the stand-in refuses.
    let refused = spec(&bench, 1, "a guest that says nothing");
    assert_eq!(launched(&host, &refused).await, "hello\n");
    let groups = host.cgroups.of_templates();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let id = loop {
        if let Some(id) = groups.list().unwrap().pop_first() {
            break id;
        }
        assert!(tokio::time::Instant::now() < deadline, "never begun");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    while groups.members(&id).unwrap().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "never started");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    groups.kill_all().unwrap();
    assert!(!made(&host, &refused).await);
    assert_eq!(host.templates.wanted(&refused, &host.vmm), None);
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}

#[tokio::test]
async fn no_template_is_made_of_what_is_on_an_instances_disk() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let spec = spec(&bench, 1, HELD);
    // The image's file went after the clone was made, and the guest ran before: an
    // earlier attempt of this launch was given up.
    fs::remove_file(&spec.clone_of.as_ref().unwrap().path).unwrap();
    fs::write(&spec.disks[0].path, "the guest's own kernel\n").unwrap();
    assert_eq!(launched(&host, &spec).await, "hello\n");
    assert!(host.templates.wanted(&spec, &host.vmm).is_some());
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}

#[tokio::test]
async fn a_template_without_its_console_costs_itself() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let [first, second] = [1, 2].map(|n| spec(&bench, n, HELD));
    launched(&host, &first).await;
    assert!(made(&host, &first).await);
    let template = host.templates.find(&first, &host.vmm).unwrap();
    let console = template.folder().join("console");
    fs::remove_file(&console).unwrap();
    fs::create_dir(&console).unwrap();
    assert_eq!(launched(&host, &second).await, "hello\n");
    assert!(host.templates.find(&first, &host.vmm).is_none());
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}

#[tokio::test]
async fn what_a_killed_hearth_left_of_a_template_is_in_nobodys_way() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let left = root.join("hearth/templates").join("i-00000000000000007");
    fs::create_dir_all(&left).unwrap();
    let folder = bench.dir.path().join("data/templates");
    fs::create_dir_all(folder.parent().unwrap()).unwrap();
    // What can't be swept costs templates alone.
    fs::write(&folder, "no folder").unwrap();
    drop(bench.open(&root));
    fs::remove_file(&folder).unwrap();
    let host = bench.open(&root);
    let spec = spec(&bench, 1, HELD);
    launched(&host, &spec).await;
    assert!(made(&host, &spec).await);
    assert!(!left.exists());
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}

#[tokio::test]
async fn a_template_takes_nothing_of_what_the_host_keeps_free() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open_keeping(&root, u64::MAX);
    let spec = spec(&bench, 1, HELD);
    launched(&host, &spec).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    // It is wanted again once it was not made.
    while host.templates.wanted(&spec, &host.vmm).is_none() {
        assert!(host.templates.find(&spec, &host.vmm).is_none());
        assert!(tokio::time::Instant::now() < deadline, "never given up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(host.templates.find(&spec, &host.vmm).is_none());
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}

/// A save that finds no room, one that is given up and a guard that would pause guests have
/// templates go first.
#[tokio::test]
async fn templates_are_the_first_to_go_when_the_disk_runs_short() {
    const MIB: u64 = 1 << 20;
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    bench.set_free(2000 * MIB);
    let host = bench.open_keeping(&root, 80 * MIB);
    let first = spec(&bench, 1, HELD);
    launched(&host, &first).await;
    assert!(made(&host, &first).await);
    let has_one = || host.templates.find(&first, &host.vmm).is_some();
    // A save that has room costs none.
    host.hibernate(&first.instance, 1).await.unwrap();
    assert!(has_one());
    let second = spec(&bench, 2, HELD);
    launched(&host, &second).await;
    // Room for none: what the stand-in has free doesn't grow, and all has gone.
    bench.set_free(100 * MIB);
    host.hibernate(&second.instance, 1).await.unwrap_err();
    assert!(!has_one());
    // It may be made again.
    bench.set_free(2000 * MIB);
    let third = spec(&bench, 3, HELD);
    launched(&host, &third).await;
    assert!(made(&host, &first).await);
    assert!(host.give_way().unwrap() && !has_one() && !host.give_way().unwrap());
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}
