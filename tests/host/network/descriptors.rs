//! The descriptors of the process that guests and their number cost.

use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::cloud::{Cloud, all_egress, isolated};

fn open() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").expect("this process");
    open.count()
}

/// Waits until so many descriptors are open.
async fn until(so_many: impl Fn(usize) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !so_many(open()) {
        assert!(Instant::now() < deadline, "{} are open", open());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn who_holds_many_connections_holds_few_descriptors() {
    isolated(
        "network::descriptors::who_holds_many_connections_holds_few_descriptors",
        async || {
            let mut cloud = Cloud::new();
            cloud.group(1, vec![all_egress()]);
            cloud.instance(10, &[1], |_| ());
            cloud.instance(11, &[1], |_| ());
            cloud.apply().await;
            let (greedy, neighbour) = (cloud.guest(10).await, cloud.guest(11).await);
            let before = open();
            let held: Vec<_> = ["169.254.169.254:80", "172.31.0.2:53", "169.254.169.253:53"]
                .into_iter()
                .flat_map(|to| std::iter::repeat_n(to, 100))
                .filter_map(|to| greedy.connect(to))
                .collect();
            // The guest's ends are this process's too; the services hold one for
            // each of 32 connections to IMDS, and one for each of 32 to the
            // resolver, which has another in reserve for each.
            until(|open| open <= before + held.len() + 70).await;
            let at = "http://169.254.169.254/latest/";
            assert_eq!(greedy.fetch(at), None);
            assert!(neighbour.fetch(at).is_some());
            drop(held);
            let deadline = Instant::now() + Duration::from_secs(20);
            while greedy.fetch(at).is_none() {
                assert!(Instant::now() < deadline, "its places are not free again");
            }
        },
    );
}

#[test]
fn all_guests_together_hold_half_of_the_descriptors() {
    isolated(
        "network::descriptors::all_guests_together_hold_half_of_the_descriptors",
        async || {
            // What is less than the shares of five guests is known as the services
            // start; the guests' ends, which are this process's too, take more.
            let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("asked");
            setrlimit(Resource::RLIMIT_NOFILE, 200, hard).expect("less");
            let mut cloud = Cloud::new();
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("as it was");
            cloud.group(1, vec![all_egress()]);
            let numbers = 10..15;
            for n in numbers.clone() {
                cloud.instance(n, &[1], |_| ());
            }
            cloud.apply().await;
            let mut guests = Vec::new();
            for n in numbers {
                guests.push(cloud.guest(n).await);
            }
            let neighbour = guests.pop().expect("five");
            let before = open();
            // Nobody more than its share, and all more than there is.
            let held: Vec<_> = guests
                .iter()
                .flat_map(|guest| (0..32).filter_map(|_| guest.connect("169.254.169.254:80")))
                .collect();
            assert_eq!(held.len(), 4 * 32);
            until(|open| open == before + held.len() + 100).await;
            let at = "http://169.254.169.254/latest/";
            assert_eq!(neighbour.fetch(at), None);
            drop(held);
            let deadline = Instant::now() + Duration::from_secs(20);
            while neighbour.fetch(at).is_none() {
                assert!(Instant::now() < deadline, "there is no place again");
            }
        },
    );
}

#[test]
fn two_thousand_instances_take_a_descriptor_each() {
    isolated(
        "network::descriptors::two_thousand_instances_take_a_descriptor_each",
        async || {
            let mut cloud = Cloud::new();
            cloud.group(1, vec![all_egress()]);
            cloud.instance(10, &[1], |_| ());
            cloud.apply().await;
            let before = open();
            for n in 256..256 + 2000 {
                cloud.instance(n, &[1], |_| ());
            }
            cloud.apply().await;
            // The socket of its DHCP server.
            assert!(open() <= before + 2000, "{before} {}", open());
            let guest = cloud.guest(2000).await;
            assert!(guest.fetch("http://169.254.169.254/latest/").is_some());
        },
    );
}
