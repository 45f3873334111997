//! What `scripts/up` leaves: a running instance, launched with user data.

use hearth_tests::{Cloud, wait};

#[test]
fn up_launched_an_instance_that_serves_its_page() {
    let cloud = Cloud::running();
    let found = cloud.aws.call(&[
        "ec2",
        "describe-instances",
        "--filters",
        "Name=instance-state-name,Values=running",
    ]);
    let first = &found["Reservations"][0]["Instances"][0];
    let ip = first["PublicIpAddress"]
        .as_str()
        .unwrap_or_else(|| panic!("nothing runs after scripts/up: {found}"));
    let page = wait::until("the first instance's page", 120, || {
        cloud.host.curl(&format!("http://{ip}/"))
    });
    assert!(!page.is_empty());
}

#[test]
fn doctor_says_that_instances_can_run_here() {
    let cloud = Cloud::running();
    let hearth = cloud.host.run("readlink -f /proc/$(hearth_pid)/exe");
    let table = cloud.host.run(&format!("{hearth} doctor"));
    assert!(table.contains("KVM"), "{table}");
}
