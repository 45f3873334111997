//! The guest's time: KVM's clock, and how long the machine stood still meanwhile.
//!
//! A guest reads either KVM's clock or the processor's time stamps. Both go on by the
//! host's time as soon as they are set, so both are set to what they would be by now:
//! neither has the guest's calendar be wrong for as long as the machine was nothing but a
//! file (Documentation/virt/kvm/devices/vcpu.rst, KVM_VCPU_TSC_OFFSET, does the same).

use std::time::{Duration, SystemTime};

use kvm_bindings::kvm_clock_data;
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::refused;
use crate::snapshot::Refused;

/// KVM's clock of a machine, at a moment of the world's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockV1 {
    /// What it said, in nanoseconds (KVM_GET_CLOCK).
    pub clock_ns: u64,
    /// The host's time then, in nanoseconds since 1970.
    pub unix_ns: u64,
}

/// For how long a machine was not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed(Duration);

impl Elapsed {
    /// This long.
    #[must_use]
    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    /// In cycles of a time stamp counter.
    pub(super) fn cycles(self, khz: u32) -> u64 {
        let cycles = self.0.as_nanos() * u128::from(khz) / 1_000_000;
        u64::try_from(cycles).unwrap_or(u64::MAX)
    }

    fn nanoseconds(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }
}

fn unix_time() -> Duration {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default()
}

impl ClockV1 {
    /// That of a VM, now.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn save(vm: &VmFd) -> Result<Self, Refused> {
        let clock = vm.get_clock().map_err(refused("get the clock"))?;
        Ok(Self {
            clock_ns: clock.clock,
            unix_ns: u64::try_from(unix_time().as_nanos()).unwrap_or(u64::MAX),
        })
    }

    /// How long ago that was; no time at all for a host whose clock is behind.
    #[must_use]
    pub fn elapsed(&self) -> Elapsed {
        let then = Duration::from_nanos(self.unix_ns);
        Elapsed(unix_time().saturating_sub(then))
    }

    /// Sets a VM's clock to what this one would be after so long.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn restore(&self, vm: &VmFd, elapsed: Elapsed) -> Result<(), Refused> {
        let clock = kvm_clock_data {
            clock: self.clock_ns.saturating_add(elapsed.nanoseconds()),
            ..Default::default()
        };
        vm.set_clock(&clock).map_err(refused("set the clock"))
    }
}
