//! Whether an instance's guest answers on the network.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Authority, Described as _, Instance, InstanceId, Scope, resource::regional};

/// What was last seen of an instance from outside: kept apart from it, since it
/// is no desired state and has another writer. There is none of an instance
/// that has not been judged yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reachability {
    /// The account and region that it is in.
    pub scope: Scope,
    /// The instance.
    pub instance: InstanceId,
    /// [`Instance::boots`] at the time: what is of another boot counts for nothing.
    pub boot: u64,
    /// [`Instance::reboots_done`] at the time, likewise.
    pub reboots: u64,
    /// Whether it answers.
    pub answers: bool,
    /// Since when it does, or doesn't.
    pub since: Timestamp,
}

impl Reachability {
    /// Whether this is of the boot that the instance is in.
    pub fn is_of(&self, instance: &Instance) -> bool {
        (self.boot, self.reboots) == (instance.boots, instance.reboots_done)
    }
}

regional! {
    Reachability {
        kind: "reachability",
        key: instance,
        indexes: [],
        authority: |this| Authority::Of(Instance::arn_at(&this.scope, this.instance.as_str())),
    }
}
