//! How much a device may do: token buckets, shared by its queues.
//!
//! ```text
//!   rate ──► level (at most the burst) ──► requests, each for one operation and its bytes
//!                                           refused ones wait in line, the first in front
//! ```
//!
//! A request passes when both buckets have enough for it, and takes that out. One that is
//! larger than a burst passes when the bucket is full, and leaves it in debt. So in no
//! time `t` does more pass than burst + rate · t, but for what one such request is larger
//! than the burst.
//!
//! Whoever was refused is in line until it has passed, is gone, or doesn't come though it
//! is its time, and nobody passes before the first: else a queue of small requests would
//! take away for ever what another one's large request saves up for.
//!
//! All is counted in billionths of a token, of which a rate brings a whole number each
//! nanosecond: nothing is rounded. Whoever asks brings the time along.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hearth_vmm_api as api;
use vmm_sys_util::eventfd::EventFd;

/// What a token is counted in: a nanosecond at one token a second brings one.
const SCALE: i128 = 1_000_000_000;

/// When somebody who is not the first in line asks again, if those before it are late.
const LATE: Duration = Duration::from_millis(1);

/// How late the first in line may come before the others pass it: a device whose driver
/// broke the rules on one queue serves its others.
const PATIENCE: Duration = Duration::from_millis(100);

/// The longest wait before asking again, so that no time is beyond the clock's end.
const LONGEST: Duration = Duration::from_secs(3600);

/// The limit of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    per_second: u64,
    burst: u64,
}

impl Rate {
    /// So much each second, and so much at once after a rest. None: one of them is 0.
    #[must_use]
    pub fn new(per_second: u64, burst: u64) -> Option<Self> {
        let some = per_second > 0 && burst > 0;
        some.then_some(Self { per_second, burst })
    }
}

/// What a device may do; none: as much as it can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests or packets.
    pub operations: Option<Rate>,
    /// Bytes of data.
    pub bytes: Option<Rate>,
}

impl Limits {
    /// No limits.
    pub const NONE: Self = Self {
        operations: None,
        bytes: None,
    };
}

impl TryFrom<api::Limits> for Limits {
    type Error = String;

    fn try_from(limits: api::Limits) -> Result<Self, String> {
        let rate = |name, per_second, burst: Option<u64>| match per_second {
            None if burst.is_some() => Err(format!("a burst of {name} needs their rate")),
            None => Ok(None),
            Some(per_second) => match Rate::new(per_second, burst.unwrap_or(per_second)) {
                Some(rate) => Ok(Some(rate)),
                None => Err(format!("{name}: rate and burst are at least 1")),
            },
        };
        Ok(Self {
            operations: rate("ops", limits.ops, limits.ops_burst)?,
            bytes: rate("bytes", limits.bytes, limits.bytes_burst)?,
        })
    }
}

impl From<Limits> for api::Limits {
    fn from(limits: Limits) -> Self {
        let Limits { operations, bytes } = limits;
        Self {
            ops: operations.map(|rate| rate.per_second),
            ops_burst: operations.map(|rate| rate.burst),
            bytes: bytes.map(|rate| rate.per_second),
            bytes_burst: bytes.map(|rate| rate.burst),
        }
    }
}

/// What a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Requests or packets.
    pub operations: u64,
    /// Bytes of data.
    pub bytes: u64,
}

impl Cost {
    /// That of one request.
    #[must_use]
    pub fn one(bytes: usize) -> Self {
        Self {
            operations: 1,
            bytes: bytes as u64,
        }
    }
}

/// Tokens of one kind.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    rate: Rate,
    /// Below 0: debt.
    level: i128,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        let level = i128::from(rate.burst) * SCALE;
        Self { rate, level }
    }

    /// The same with another rate: what is in it stays, as far as there is room.
    fn changed(self, rate: Rate) -> Self {
        let level = self.level.min(Self::new(rate).level);
        Self { rate, level }
    }

    fn refill(&mut self, elapsed: Duration) {
        let elapsed = i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX);
        let more = elapsed.saturating_mul(self.rate.per_second.into());
        let full = i128::from(self.rate.burst) * SCALE;
        self.level = self.level.saturating_add(more).min(full);
    }

    /// How long it takes until there is enough for `cost`, behind what those in front
    /// take.
    fn wait(&self, ahead: u128, cost: u64) -> Duration {
        let need = i128::from(cost.min(self.rate.burst)) * SCALE;
        let ahead = i128::try_from(ahead).unwrap_or(i128::MAX);
        let need = ahead.saturating_mul(SCALE).saturating_add(need);
        let missing = need.saturating_sub(self.level).max(0);
        let wait = missing.unsigned_abs().div_ceil(self.rate.per_second.into());
        u64::try_from(wait).map_or(LONGEST, |wait| Duration::from_nanos(wait).min(LONGEST))
    }

    fn spend(&mut self, cost: u64) {
        self.level = self.level.saturating_sub(i128::from(cost) * SCALE);
    }
}

/// One who was refused.
#[derive(Debug)]
struct Waiting {
    name: u64,
    cost: Cost,
    /// When it was told to ask again.
    due: Instant,
}

/// Both buckets, and who waits for them.
#[derive(Debug)]
struct Buckets {
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
    filled: Instant,
    /// In turn, each once.
    line: VecDeque<Waiting>,
    /// Names given to those who ask.
    names: u64,
}

impl Buckets {
    fn new(limits: Limits, now: Instant) -> Self {
        Self {
            operations: limits.operations.map(Bucket::new),
            bytes: limits.bytes.map(Bucket::new),
            filled: now,
            line: VecDeque::new(),
            names: 0,
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            operations: self.operations.map(|bucket| bucket.rate),
            bytes: self.bytes.map(|bucket| bucket.rate),
        }
    }

    fn refill(&mut self, now: Instant) {
        // Whoever looked at the clock first need not be the first here.
        let elapsed = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        for bucket in [&mut self.operations, &mut self.bytes] {
            bucket.iter_mut().for_each(|bucket| bucket.refill(elapsed));
        }
    }

    fn change(&mut self, limits: Limits, now: Instant) {
        self.refill(now);
        let change = |bucket: Option<Bucket>, rate: Option<Rate>| {
            rate.map(|rate| bucket.map_or(Bucket::new(rate), |bucket| bucket.changed(rate)))
        };
        self.operations = change(self.operations, limits.operations);
        self.bytes = change(self.bytes, limits.bytes);
        if limits == Limits::NONE {
            self.line.clear();
        }
    }

    /// Whether `name` may pass with `cost`, of which nothing is taken out yet. One that
    /// may not is in line from here on, and asks again at the time.
    fn admit(&mut self, name: u64, cost: Cost, now: Instant) -> Result<(), Instant> {
        self.refill(now);
        let is_late = |first: &Waiting| first.name != name && first.due + PATIENCE < now;
        while self.line.front().is_some_and(is_late) {
            self.line.pop_front();
        }
        let place = self.line.iter().position(|other| other.name == name);
        let ahead = self.line.iter().take(place.unwrap_or(self.line.len()));
        let (mut count, mut operations, mut bytes) = (0, 0u128, 0u128);
        for Waiting { cost, .. } in ahead {
            count += 1;
            operations += u128::from(cost.operations);
            bytes += u128::from(cost.bytes);
        }
        let wait = |bucket: &Option<Bucket>, ahead, cost| {
            bucket.map_or(Duration::ZERO, |bucket| bucket.wait(ahead, cost))
        };
        let wait = wait(&self.operations, operations, cost.operations).max(wait(
            &self.bytes,
            bytes,
            cost.bytes,
        ));
        if count == 0 && wait.is_zero() {
            if place.is_some() {
                self.line.pop_front();
            }
            return Ok(());
        }
        let least = if count == 0 { Duration::ZERO } else { LATE };
        let due = now.max(self.filled) + wait.max(least);
        // A hostile driver may have changed its request.
        let waiting = Waiting { name, cost, due };
        match place {
            Some(place) => self.line[place] = waiting,
            None => self.line.push_back(waiting),
        }
        Err(due)
    }

    fn spend(&mut self, cost: Cost) {
        if let Some(bucket) = &mut self.operations {
            bucket.spend(cost.operations);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.spend(cost.bytes);
        }
    }

    fn leave(&mut self, name: u64) {
        self.line.retain(|other| other.name != name);
    }
}

/// The limits of a device, or of one direction of it, which can change while its queues
/// are served.
pub struct Limiter {
    /// So that a device without limits does next to nothing for them.
    is_limited: AtomicBool,
    buckets: Mutex<Buckets>,
    /// What wakes those who wait.
    bells: Mutex<Vec<Arc<EventFd>>>,
}

impl Limiter {
    /// Both buckets are full.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            is_limited: AtomicBool::new(limits != Limits::NONE),
            buckets: Mutex::new(Buckets::new(limits, now)),
            bells: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rings these when the limits change: the doorbells of the queues.
    pub fn wake_with(&self, bells: &[Arc<EventFd>]) {
        let mut all = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(bells.iter().cloned());
    }

    /// What they are.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.lock().limits()
    }

    /// Changes them, from now on.
    pub fn change(&self, limits: Limits, now: Instant) {
        self.lock().change(limits, now);
        self.is_limited
            .store(limits != Limits::NONE, Ordering::SeqCst);
        for bell in &*self.bells.lock().unwrap_or_else(PoisonError::into_inner) {
            // Fails only when the counter is full, and then it is rung already.
            let _ = bell.write(1);
        }
    }

    /// Whether there are any: if not, nobody need ask.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.is_limited.load(Ordering::Relaxed)
    }
}

/// One who asks. Whoever waits keeps its place in the line until this is dropped.
pub struct Claim {
    limiter: Arc<Limiter>,
    name: u64,
}

impl Claim {
    /// Of a queue that takes a part of what a device may do.
    #[must_use]
    pub fn new(limiter: &Arc<Limiter>) -> Self {
        let mut buckets = limiter.lock();
        buckets.names += 1;
        Self {
            limiter: Arc::clone(limiter),
            name: buckets.names,
        }
    }

    /// [`Limiter::is_limited`].
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.limiter.is_limited()
    }

    /// Passes with a request.
    ///
    /// # Errors
    /// When to ask again, with the same one.
    pub fn take(&self, cost: Cost, now: Instant) -> Result<(), Instant> {
        let mut buckets = self.limiter.lock();
        buckets.admit(self.name, cost, now)?;
        buckets.spend(cost);
        Ok(())
    }

    /// Passes with a request whose size is known only once it is done: one of these is
    /// all that may come too much. [`Self::charge`] follows, if there was one.
    ///
    /// # Errors
    /// When to ask again.
    pub fn ask(&self, now: Instant) -> Result<(), Instant> {
        self.limiter.lock().admit(self.name, Cost::one(1), now)
    }

    /// Takes out what was done, into debt if need be.
    pub fn charge(&self, cost: Cost) {
        self.limiter.lock().spend(cost);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.limiter.lock().leave(self.name);
    }
}

#[cfg(test)]
mod tests;
