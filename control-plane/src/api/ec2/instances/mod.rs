//! Instances.
//!
//! A handler changes the desired state and answers with the transitional state;
//! what follows is the reconcilers' work.

pub mod answer;
mod attributes;
pub mod describe_instance_attribute;
pub mod describe_instance_status;
pub mod describe_instances;
pub mod filters;
pub mod get_console_output;
pub mod get_console_screenshot;
pub(in crate::api::ec2) mod groups;
pub(super) mod input;
pub(super) mod launch_data;
pub mod metadata_options;
mod modify_instance_attribute;
mod modify_instance_metadata_options;
pub mod reboot_instances;
mod reset_instance_attribute;
pub mod run_instances;
mod screen;
pub mod send_diagnostic_interrupt;
pub mod start_instances;
pub mod stop_instances;
pub mod terminate_instances;

#[cfg(test)]
mod full_tests;
#[cfg(test)]
mod race_tests;
#[cfg(test)]
mod tenancy_tests;
#[cfg(test)]
pub(in crate::api) mod tests;

pub use describe_instance_attribute::DescribeInstanceAttribute;
pub(crate) use describe_instance_status::DescribeInstanceStatus;
pub(crate) use describe_instances::DescribeInstances;
pub use get_console_output::GetConsoleOutput;
pub use get_console_screenshot::GetConsoleScreenshot;
pub use modify_instance_attribute::ModifyInstanceAttribute;
pub use modify_instance_metadata_options::ModifyInstanceMetadataOptions;
pub use reboot_instances::RebootInstances;
pub use reset_instance_attribute::ResetInstanceAttribute;
pub use run_instances::RunInstances;
pub use send_diagnostic_interrupt::SendDiagnosticInterrupt;
pub use start_instances::StartInstances;
pub use stop_instances::StopInstances;
pub use terminate_instances::TerminateInstances;

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    api::{ApiError, Ctx, Targets, shared::all_found},
    model::{Eni, Instance, InstanceState, Reservation},
    scheduler::Shortfall,
    store::Scoped,
};

/// A state on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// EC2's number of it.
    pub code: u16,
    /// Its name.
    pub name: String,
}

impl From<InstanceState> for State {
    fn from(state: InstanceState) -> Self {
        Self {
            code: state.code(),
            name: state.name().to_owned(),
        }
    }
}

/// What a call did to one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StateChange {
    /// The instance.
    pub instance_id: String,
    /// Its state now.
    pub current_state: State,
    /// Its state before the call.
    pub previous_state: State,
}

impl StateChange {
    fn new(before: &Instance, after: InstanceState) -> Self {
        Self {
            instance_id: before.id.to_string(),
            current_state: after.into(),
            previous_state: before.state.into(),
        }
    }
}

/// The answer of the actions that change states.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StateChanges {
    /// What the call did, in the order of the request.
    pub instances_set: Vec<StateChange>,
}

/// The ids of instances that a request names, each once, in its order.
fn each_once<'i>(ctx: &Ctx, ids: &'i [String]) -> Result<Vec<&'i String>, ApiError> {
    if ids.is_empty() {
        return Err(ApiError::missing("InstanceId"));
    }
    all_found::<Instance>(ctx.view().view(), ids)?;
    let mut seen = BTreeSet::new();
    Ok(ids.iter().filter(|id| seen.insert(*id)).collect())
}

/// The interfaces of these instances change along with them.
fn interfaces_along(to: &mut Targets<'_>, ids: impl IntoIterator<Item = impl AsRef<str>>) {
    let view = to.view();
    let instances = ids.into_iter().filter_map(|id| id.as_ref().parse().ok());
    for id in instances {
        let instance = view.find::<Instance>(&id).into_iter();
        let enis = instance.flat_map(|instance| &instance.enis);
        for eni in enis.filter_map(|id| view.get::<Eni>(id)) {
            to.along(eni);
        }
    }
}

/// The user data of an instance, base64.
fn user_data<'v>(view: Scoped<'v>, instance: &'v Instance) -> Option<&'v str> {
    instance.user_data(view.get::<Reservation>(&instance.reservation))
}

/// `IncorrectInstanceState`: what was asked for can't be done in this state.
fn incorrect_state(instance: &Instance, done: &str) -> ApiError {
    ApiError::new(
        "IncorrectInstanceState",
        format!(
            "The instance '{}' is not in a state from which it can be {done}.",
            instance.id
        ),
    )
}

/// `OperationNotPermitted`: an attribute keeps it from being `done` so.
fn protected(instance: &Instance, done: &str, attribute: &str) -> ApiError {
    ApiError::new(
        "OperationNotPermitted",
        format!(
            "The instance '{}' may not be {done}. Modify its '{attribute}' instance attribute and try again.",
            instance.id
        ),
    )
}

/// `InsufficientInstanceCapacity`, a fault of ours by EC2's own status. What is
/// missing is for the log: callers get EC2's words.
fn insufficient_capacity(instance_type: &str, zone: &str, missing: &Shortfall) -> ApiError {
    tracing::warn!(instance_type, %missing, "no host has room");
    ApiError::new(
        "InsufficientInstanceCapacity",
        format!(
            "We currently do not have sufficient {instance_type} capacity in the Availability Zone you requested ({zone})."
        ),
    )
    .with_status(500)
}

/// `InsufficientAddressCapacity`.
fn insufficient_addresses() -> ApiError {
    ApiError::new(
        "InsufficientAddressCapacity",
        "There are no free addresses in the pool of public addresses.",
    )
}

/// `StateTransitionReason` of what a caller asked for.
fn user_initiated(now: Timestamp) -> String {
    format!("User initiated ({})", now.strftime("%Y-%m-%d %H:%M:%S GMT"))
}
