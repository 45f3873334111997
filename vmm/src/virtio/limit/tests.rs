use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

use super::*;

fn operations(per_second: u64, burst: u64) -> Limits {
    Limits {
        operations: Rate::new(per_second, burst),
        bytes: None,
    }
}

fn bytes(per_second: u64, burst: u64) -> Limits {
    Limits {
        operations: None,
        bytes: Rate::new(per_second, burst),
    }
}

fn limited(limits: Limits, now: Instant) -> Arc<Limiter> {
    Arc::new(Limiter::new(limits, now))
}

/// Bytes and no operation.
fn only(bytes: u64) -> Cost {
    Cost {
        operations: 0,
        bytes,
    }
}

#[test]
fn a_burst_passes_and_then_the_rate() {
    let start = Instant::now();
    let limiter = limited(operations(10, 3), start);
    let claim = Claim::new(&limiter);
    for _ in 0..3 {
        assert_eq!(claim.take(Cost::one(1 << 30), start), Ok(()));
    }
    let mut now = start;
    for _ in 0..5 {
        let then = claim.take(Cost::one(1 << 30), now).unwrap_err();
        assert_eq!(then, now + Duration::from_millis(100));
        let early = then.checked_sub(Duration::from_nanos(1)).unwrap();
        assert_eq!(claim.take(Cost::one(1 << 30), early), Err(then));
        assert_eq!(claim.take(Cost::one(1 << 30), then), Ok(()));
        now = then;
    }
    now += Duration::from_secs(3600);
    for _ in 0..3 {
        assert_eq!(claim.take(Cost::one(0), now), Ok(()));
    }
    assert!(claim.take(Cost::one(0), now).is_err(), "no more than that");
}

#[test]
fn more_than_a_burst_passes_when_the_bucket_is_full_and_is_paid_off() {
    let start = Instant::now();
    let limiter = limited(bytes(100, 50), start);
    let claim = Claim::new(&limiter);
    assert_eq!(claim.take(only(250), start), Ok(()));
    let paid = start + Duration::from_secs(2);
    assert_eq!(claim.ask(paid), Err(paid + Duration::from_millis(10)));
    let full = paid + Duration::from_millis(500);
    assert_eq!(claim.take(only(250), paid), Err(full));
    assert_eq!(claim.take(only(250), full), Ok(()));
}

#[test]
fn both_kinds_count() {
    let start = Instant::now();
    let limits = Limits {
        operations: operations(10, 2).operations,
        ..bytes(1000, 1000)
    };
    let limiter = limited(limits, start);
    let claim = Claim::new(&limiter);
    assert_eq!(claim.take(Cost::one(900), start), Ok(()));
    // One that is refused takes nothing out, of either.
    let then = start + Duration::from_millis(800);
    assert_eq!(claim.take(Cost::one(900), start), Err(then));
    assert_eq!(claim.take(Cost::one(100), start), Ok(()));
    let then = start + Duration::from_millis(100);
    assert_eq!(claim.take(Cost::one(1), start), Err(then));
}

#[test]
fn what_is_done_is_charged_afterwards() {
    let start = Instant::now();
    let limiter = limited(bytes(1000, 1000), start);
    let claim = Claim::new(&limiter);
    assert_eq!(claim.ask(start), Ok(()));
    assert_eq!(claim.ask(start), Ok(()), "nothing was done");
    claim.charge(Cost::one(1500));
    let then = start + Duration::from_millis(501);
    assert_eq!(claim.ask(start), Err(then));
    assert_eq!(claim.ask(then), Ok(()));
}

#[test]
fn nobody_passes_before_the_first_in_line_until_that_is_gone() {
    let start = Instant::now();
    let limiter = limited(bytes(1000, 1000), start);
    let [large, small] = [(), ()].map(|()| Claim::new(&limiter));
    assert_eq!(small.take(only(500), start), Ok(()));
    let then = start + Duration::from_millis(100);
    assert_eq!(large.take(only(600), start), Err(then));
    // There is enough for it, but it comes behind.
    let behind = then + Duration::from_millis(100);
    assert_eq!(small.take(only(100), start), Err(behind));
    assert_eq!(small.take(only(100), behind), Err(behind + LATE));
    drop(large);
    assert_eq!(small.take(only(100), behind), Ok(()));
    // One that doesn't come, for long after its time, is passed.
    let silent = Claim::new(&limiter);
    let then = silent.take(only(1000), behind).unwrap_err();
    let last = then + PATIENCE;
    assert!(small.take(only(100), last).is_err());
    let over = last + Duration::from_nanos(1);
    assert_eq!(small.take(only(100), over), Ok(()));
}

#[test]
fn changes_hold_at_once_and_ring() {
    let start = Instant::now();
    let limiter = limited(Limits::NONE, start);
    let bell = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap());
    limiter.wake_with(&[Arc::clone(&bell)]);
    let claim = Claim::new(&limiter);
    assert!(!claim.is_limited());
    assert_eq!(claim.take(Cost::one(usize::MAX), start), Ok(()));
    limiter.change(operations(1, 1), start);
    assert_eq!(bell.read().unwrap(), 1);
    assert!(claim.is_limited());
    assert_eq!(limiter.limits(), operations(1, 1));
    assert_eq!(claim.take(Cost::one(0), start), Ok(()));
    assert!(claim.take(Cost::one(0), start).is_err());
    limiter.change(operations(1000, 1000), start);
    let then = start + Duration::from_millis(1);
    assert_eq!(claim.take(Cost::one(0), start), Err(then), "none for free");
    limiter.change(Limits::NONE, start);
    assert_eq!(bell.read().unwrap(), 2);
    assert_eq!(claim.take(Cost::one(0), start), Ok(()));
    assert!(!claim.is_limited());
}

#[test]
fn limits_are_checked_and_shown_whole() {
    let given = api::Limits {
        ops: Some(100),
        bytes: Some(4096),
        bytes_burst: Some(9),
        ..api::Limits::default()
    };
    let limits = Limits::try_from(given).unwrap();
    let expected = Limits {
        operations: operations(100, 100).operations,
        ..bytes(4096, 9)
    };
    assert_eq!(limits, expected);
    let ops_burst = Some(100);
    assert_eq!(
        api::Limits::from(limits),
        api::Limits { ops_burst, ..given }
    );
    assert_eq!(Limits::try_from(api::Limits::default()), Ok(Limits::NONE));
    for wrong in [
        api::Limits {
            ops: Some(0),
            ..api::Limits::default()
        },
        api::Limits {
            ops_burst: Some(0),
            ..given
        },
        api::Limits {
            bytes: None,
            ..given
        },
    ] {
        assert!(Limits::try_from(wrong).is_err(), "{wrong:?}");
    }
}

/// A queue that always has a next request, which asks when it was told to, or later.
struct Asker {
    claim: Claim,
    next: Instant,
    refused: Option<Instant>,
}

/// Has queues take requests of these sizes until all have had that many. Returns when
/// each passed and its size, and the longest that one was refused.
fn run(
    limiter: &Arc<Limiter>,
    start: Instant,
    sizes: &[Vec<u64>],
    late: &[Duration],
) -> (Vec<(Instant, u64)>, Duration) {
    let ask = |_| Asker {
        claim: Claim::new(limiter),
        next: start,
        refused: None,
    };
    let mut askers: Vec<Asker> = sizes.iter().map(ask).collect();
    let mut counts = vec![0; sizes.len()];
    let mut passed = Vec::new();
    let mut longest = Duration::ZERO;
    let mut late = late.iter().cycle();
    loop {
        let busy = (0..sizes.len()).filter(|at| counts[*at] < sizes[*at].len());
        let Some(at) = busy.min_by_key(|at| askers[*at].next) else {
            return (passed, longest);
        };
        let asker = &mut askers[at];
        let now = asker.next;
        let size = sizes[at][counts[at]];
        match asker.claim.take(only(size), now) {
            Ok(()) => {
                passed.push((now, size));
                counts[at] += 1;
                let since = asker.refused.take().unwrap_or(now);
                longest = longest.max(now - since);
            }
            Err(then) => {
                assert!(then > now);
                asker.refused.get_or_insert(now);
                asker.next = then + *late.next().unwrap();
            }
        }
    }
}

/// The most that passed more than `rate` allows in any window, in billionths.
fn excess(passed: &[(Instant, u64)], rate: u64) -> i128 {
    let mut most = 0;
    for (first, (from, _)) in passed.iter().enumerate() {
        let mut sum = 0;
        for (to, size) in &passed[first..] {
            sum += i128::from(*size) * SCALE;
            let time = i128::try_from((*to - *from).as_nanos()).unwrap();
            most = most.max(sum - time * i128::from(rate));
        }
    }
    most
}

fn sizes(largest: u64) -> impl Strategy<Value = Vec<Vec<u64>>> {
    prop::collection::vec(prop::collection::vec(1..=largest, 1..30), 1..5)
}

fn late() -> impl Strategy<Value = Vec<Duration>> {
    prop::collection::vec((0..20_000_000u64).prop_map(Duration::from_nanos), 1..5)
}

proptest! {
    #[test]
    fn never_more_than_the_burst_and_the_rate(
        rate in 1..100_000u64,
        burst in 1..50_000u64,
        all in sizes(100_000),
        late in late(),
    ) {
        let start = Instant::now();
        let limiter = limited(bytes(rate, burst), start);
        let (passed, _) = run(&limiter, start, &all, &late);
        // One that is larger than the burst may pass, but it alone.
        let largest = all.iter().flatten().max().copied().unwrap_or(0);
        let most = burst.max(largest);
        prop_assert!(excess(&passed, rate) <= i128::from(most) * SCALE);
        let small = all.iter().flatten().all(|size| *size <= burst);
        prop_assert!(!small || excess(&passed, rate) <= i128::from(burst) * SCALE);
    }

    #[test]
    fn nobody_starves_and_the_rate_is_had(
        rate in 1000..100_000u64,
        burst in 1..50_000u64,
        all in sizes(100_000),
    ) {
        let start = Instant::now();
        let limiter = limited(bytes(rate, burst), start);
        let (passed, longest) = run(&limiter, start, &all, &[Duration::ZERO]);
        // Those before it in line have one request each, behind the debt of another.
        let one_each: u64 = all.iter().map(|sizes| sizes.iter().max().unwrap_or(&0)).sum();
        let largest = all.iter().flatten().max().unwrap_or(&0);
        let seconds = (one_each + largest + burst).div_ceil(rate) + 1;
        prop_assert!(longest <= Duration::from_secs(seconds), "{longest:?}");
        // Until the last passed, none of the rate was lost but a moment at each turn.
        let sum: u64 = passed.iter().map(|(_, size)| size).sum();
        let (last, _) = passed[passed.len() - 1];
        let turns = u32::try_from(passed.len()).unwrap();
        let in_time = Duration::from_secs((sum + burst).div_ceil(rate)) + turns * LATE;
        prop_assert!(last - start <= in_time);
    }

    #[test]
    fn no_number_is_too_large(
        numbers in prop::collection::vec(
            prop_oneof![Just(1), Just(u64::MAX), 1..=u64::MAX], 4),
        steps in prop::collection::vec((any::<bool>(), any::<u64>(), any::<u64>(), 0..4u8), 1..40),
    ) {
        let start = Instant::now();
        let rate = |at: usize| Rate::new(numbers[at], numbers[at + 1]);
        let limits = Limits { operations: rate(0), bytes: rate(2) };
        let limiter = limited(limits, start);
        let claims = [(), ()].map(|()| Claim::new(&limiter));
        let mut now = start;
        for (which, operations, bytes, what) in steps {
            let claim = &claims[usize::from(which)];
            let cost = Cost { operations, bytes };
            match what {
                0 => claim.charge(cost),
                1 => {
                    let time = Duration::from_nanos(operations);
                    now = now.checked_add(time).unwrap_or(now);
                }
                2 => limiter.change(Limits { operations: rate(usize::from(which)), ..limits }, now),
                _ => {
                    if let Err(then) = claim.take(cost, now) {
                        prop_assert!(then > now && then <= now + LONGEST);
                    }
                }
            }
        }
        // A time that is past harms nobody.
        let _ = claims[0].take(Cost::one(1), start);
    }

    #[test]
    fn changes_hold_from_the_moment_on(
        changes in prop::collection::vec((1..100_000u64, 1..50_000u64, sizes(1000)), 1..5),
    ) {
        let mut now = Instant::now();
        let limiter = limited(bytes(1, 1), now);
        for (rate, burst, all) in changes {
            limiter.change(bytes(rate, burst), now);
            let (passed, _) = run(&limiter, now, &all, &[Duration::ZERO]);
            prop_assert!(excess(&passed, rate) <= i128::from(burst.max(1000)) * SCALE);
            now = passed[passed.len() - 1].0;
        }
    }
}
