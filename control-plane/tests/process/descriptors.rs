//! A process has so many descriptors and no more; instances are to be more.

use crate::hearth::{Hearth, until};

/// Fewer than one for each instance, by far.
const LIMIT: usize = 256;
const INSTANCES: usize = 2000;

fn open(hearth: &Hearth) -> usize {
    let open = std::fs::read_dir(format!("/proc/{}/fd", hearth.pid()));
    open.expect("it runs").count()
}

#[test]
fn two_thousand_instances_of_simulated_hosts_take_no_descriptors() {
    let shell = format!("ulimit -n {LIMIT}; exec \"$@\"");
    let mut hearth = Hearth::start(&["sh", "-c", &shell, "sh"]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", hearth.pid()));
    let limits = limits.expect("it runs");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let fields: Vec<_> = line.unwrap_or_default().split_whitespace().collect();
    assert_eq!(fields[3..5], [LIMIT.to_string(), LIMIT.to_string()]);

    hearth.run_instances(1, &[]).done();
    hearth.settled();
    let before = open(&hearth);
    hearth.run_instances(INSTANCES / 2, &[]).done();
    hearth.run_instances(INSTANCES / 2 - 1, &[]).done();
    hearth.settled();
    let ids = hearth.instances("running");
    assert_eq!(ids.len(), INSTANCES);
    // What is under way at the moment, as a connection, ends.
    let few = |when: &str| {
        until(&format!("few descriptors {when}"), || {
            let now = open(&hearth);
            if now <= before + 8 {
                Ok(())
            } else {
                Err((before, now))
            }
        });
    };
    few("where all run");
    for ids in ids.chunks(1000) {
        hearth.terminate(ids).done();
    }
    hearth.settled();
    assert_eq!(hearth.instances("terminated").len(), INSTANCES);
    few("where all have ended");
    assert!(hearth.is_alive());
}
