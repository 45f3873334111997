//! After all: what is on the host is what the API says, no more.

use hearth_tests::{Cloud, wait};

#[test]
fn the_host_holds_what_the_api_says_and_no_more() {
    let cloud = Cloud::running();
    wait::until("API and host agree", 60, || {
        let found = cloud.aws.call(&[
            "ec2",
            "describe-instances",
            "--filters",
            "Name=instance-state-name,Values=running",
        ]);
        let running = found["Reservations"].as_array().map_or(0, |r| {
            r.iter()
                .map(|r| r["Instances"].as_array().map_or(0, Vec::len))
                .sum::<usize>()
        });
        let seen = cloud.host.run(
            "vmms=$(hearth_vmms | wc -l)
             taps=$(for n in $(ip netns list | awk -v l=$label 'index($1, l \"-vpc-\") == 1 {print $1}'); do ip -n $n -o link; done | grep -c ': tap-')
             cgroups=$(find /sys/fs/cgroup/$label -mindepth 1 -maxdepth 1 -name 'i-*' | wc -l)
             echo $vmms $taps $cgroups",
        );
        if seen == format!("{running} {running} {running}") {
            Ok(())
        } else {
            Err(format!(
                "{running} run, host has VMMs, taps, cgroups: {seen}"
            ))
        }
    });
}
