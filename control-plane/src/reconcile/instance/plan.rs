//! What to do next for one instance.
//!
//! How an instance comes down: the power button is pressed, and pressed again
//! every ten seconds, since a guest that still boots hears none of them; after
//! a grace period the VMM is killed. EC2 does the same ("a few minutes").
//!
//! A reboot begins in the same way, only that the power-off brings the guest back
//! ([`ComputeHost::reboot`]); after the grace period it is reset. What tells that
//! it is done is the VMM's count of resets, compared with the one that was
//! written down before the guest was first asked: so it is done once, whoever
//! was there to see it.
//!
//! One that is to be hibernated has its memory saved, which leaves it held; then its VMM
//! is ended. Where that can't be done, it comes down by the power button after all. The
//! next launch goes on from its memory; the host sees to it that this is done once.
//!
//! While it runs, and no reboot is under way, its VMM may be replaced: an operator asked
//! for that, and its guest notices a pause.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/how-ec2-instance-stop-start-works.html>,
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-hibernate-overview.html>,
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-reboot.html>
//!
//! [`ComputeHost::reboot`]: crate::compute::ComputeHost::reboot

use std::time::Duration;

use hearth_vmm_api::Exit;
use jiff::Timestamp;

use crate::{
    compute::{Kept, Observed},
    model::{Instance, InstanceState, Intent, ShutdownBehavior, StateReason},
};

/// How long after one press of the power button the next one comes.
const PRESS_AGAIN: Duration = Duration::from_secs(10);
/// How long nobody is told of a VMM that an operator of the host ended: a host
/// that shuts down ends all of them, and starts them again.
const GOING_DOWN: Duration = Duration::from_secs(10);
/// How often is looked whether a reboot is done: nothing tells.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What is known of an instance beside its record.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The time.
    pub now: Timestamp,
    /// What there is of it on the host.
    pub observed: Option<&'a Observed>,
    /// What the host keeps of its memory: known while it matters.
    pub kept: Option<Kept>,
    /// Whether any volume that goes with it is still on the host.
    pub volumes: bool,
    /// How often its VMM was reset: known while a reboot is asked for.
    pub resets: Option<u64>,
    /// Whether its VMM is to be replaced: known while it runs.
    pub update: bool,
    /// When its power button was last pressed since it began to go down.
    pub pressed: Option<Timestamp>,
    /// When its VMM was first seen to have ended.
    pub ended: Option<Timestamp>,
    /// Why its launch, or its hibernation, has failed for good.
    pub failed: Option<&'a StateReason>,
    /// How long it has to power down when stopped.
    pub stop_grace: Duration,
    /// The same when terminated.
    pub terminate_grace: Duration,
    /// Whether an instance that went down with its host is started again.
    pub restart_lost: bool,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// All is as it should be.
    Nothing,
    /// Nothing before this time has passed.
    Wait(Duration),
    /// Make its root volume and taps, and boot it from cold, or from its memory.
    Launch,
    /// Have another VMM take its machine over.
    Update,
    /// Save its memory, and leave it held.
    Hibernate,
    /// Remove its memory, which is good for nothing any more.
    DiscardMemory,
    /// Reset its VMM.
    Reset,
    /// Ask its guest to reboot, if it was reset no more often than this.
    AskToReboot(u64),
    /// Press its power button.
    PressButton,
    /// End its VMM.
    Kill,
    /// Remove every trace of its VMM.
    Forget,
    /// Remove the volumes that go with it.
    RemoveVolumes,
    /// Write down what became of it.
    Record(Transition),
}

/// What became of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transition {
    /// Its VMM runs.
    Running,
    /// It is going to be asked to reboot, and was reset so often before.
    Rebooting {
        /// The VMM's count.
        resets: u64,
    },
    /// It was reset since.
    Rebooted,
    /// It stopped; the reason, when it is another than the one it went down for.
    Stopped(Option<StateReason>),
    /// Its VMM was ended, and its memory is kept.
    Hibernated,
    /// It can't be hibernated, and comes down in the ordinary way; why.
    NotHibernated(StateReason),
    /// It went down with its host, and is to be started again.
    Lost,
    /// It goes to be terminated, for this reason and not by a call.
    ShuttingDown(StateReason),
    /// Nothing is left of it.
    Terminated,
}

/// The next step for an instance that is on this host.
pub fn plan(instance: &Instance, facts: &Facts<'_>) -> Step {
    match instance.state {
        InstanceState::Pending => starting(instance, facts),
        InstanceState::Running => running(instance, facts),
        InstanceState::Stopping if instance.intent == Intent::Hibernate => {
            hibernating(instance, facts)
        }
        InstanceState::Stopping => match going_down(instance, facts, facts.stop_grace) {
            Some(step) => step,
            None => Step::Record(Transition::Stopped(None)),
        },
        InstanceState::ShuttingDown => match going_down(instance, facts, facts.terminate_grace) {
            Some(step) => step,
            None if facts.observed.is_some() => Step::Forget,
            None if facts.volumes => Step::RemoveVolumes,
            None => Step::Record(Transition::Terminated),
        },
        // No VMM may run, whoever started it. What an ended one left (its
        // console) stays with a stopped instance.
        InstanceState::Stopped => match facts.observed {
            Some(Observed::Running { .. }) => Step::Kill,
            _ => match (facts.kept, instance.hibernated) {
                (Some(Kept::Whole { boot }), Some(hibernated)) if boot == hibernated => {
                    Step::Nothing
                }
                (Some(_), _) => Step::DiscardMemory,
                (None, _) => Step::Nothing,
            },
        },
        InstanceState::Terminated => match facts.observed {
            Some(_) => Step::Forget,
            None => Step::Nothing,
        },
    }
}

fn starting(instance: &Instance, facts: &Facts<'_>) -> Step {
    match facts.observed {
        Some(Observed::Running { boot, .. }) if *boot == instance.boots => {
            Step::Record(Transition::Running)
        }
        // One of an earlier boot must not be taken for this one.
        Some(Observed::Running { .. }) => Step::Kill,
        // It ran, and ended before that was written down.
        Some(Observed::Exited { boot, exit }) if *boot == instance.boots => {
            ended(instance, exit, facts)
        }
        Some(Observed::Exited { .. } | Observed::HostLost { .. } | Observed::Incomplete) | None => {
            match facts.failed {
                None => Step::Launch,
                Some(reason) => Step::Record(launch_failed(instance, reason)),
            }
        }
    }
}

/// A first launch that fails ends the instance; a later one leaves it stopped,
/// with its data.
fn launch_failed(instance: &Instance, reason: &StateReason) -> Transition {
    if instance.boots <= 1 {
        Transition::ShuttingDown(reason.clone())
    } else {
        Transition::Stopped(Some(reason.clone()))
    }
}

fn running(instance: &Instance, facts: &Facts<'_>) -> Step {
    match facts.observed {
        Some(Observed::Running { boot, .. }) if *boot == instance.boots => {
            if instance.reboots_asked > instance.reboots_done {
                rebooting(instance, facts)
            } else if facts.update {
                Step::Update
            } else {
                Step::Nothing
            }
        }
        Some(Observed::Running { .. }) => Step::Kill,
        Some(Observed::Exited { boot, exit }) if *boot == instance.boots => {
            ended(instance, exit, facts)
        }
        Some(Observed::HostLost { boot }) if *boot == instance.boots && facts.restart_lost => {
            Step::Record(Transition::Lost)
        }
        Some(Observed::Exited { .. } | Observed::HostLost { .. } | Observed::Incomplete) | None => {
            let reason = StateReason::internal_error("The instance was lost with its host");
            Step::Record(Transition::Stopped(Some(reason)))
        }
    }
}

fn rebooting(instance: &Instance, facts: &Facts<'_>) -> Step {
    let Some(resets) = facts.resets else {
        return Step::Wait(LOOK_AGAIN);
    };
    let Some(reboot) = &instance.reboot else {
        return Step::Record(Transition::Rebooting { resets });
    };
    if resets != reboot.resets {
        return Step::Record(Transition::Rebooted);
    }
    if elapsed(reboot.since, facts.now) >= facts.stop_grace {
        return Step::Reset;
    }
    match facts.pressed.map(|at| elapsed(at, facts.now)) {
        Some(ago) if ago < PRESS_AGAIN => Step::Wait(LOOK_AGAIN),
        _ => Step::AskToReboot(resets),
    }
}

/// The VMM ended, and nobody had asked the instance to go down.
fn ended(instance: &Instance, exit: &Exit, facts: &Facts<'_>) -> Step {
    if *exit == Exit::Stopped && facts.restart_lost {
        let ago = facts
            .ended
            .map_or(Duration::ZERO, |at| elapsed(at, facts.now));
        if ago < GOING_DOWN {
            return Step::Wait(GOING_DOWN - ago);
        }
    }
    Step::Record(match exit {
        Exit::GuestPowerOff => match instance.settings.on_shutdown {
            ShutdownBehavior::Stop => Transition::Stopped(Some(StateReason::instance_initiated())),
            ShutdownBehavior::Terminate => {
                Transition::ShuttingDown(StateReason::instance_initiated())
            }
        },
        Exit::Stopped => Transition::Stopped(Some(StateReason::internal_error(
            "The instance was stopped by an operator of its host",
        ))),
        Exit::Crashed { detail } => Transition::Stopped(Some(StateReason::internal_error(detail))),
    })
}

/// Saves its memory and ends its VMM.
fn hibernating(instance: &Instance, facts: &Facts<'_>) -> Step {
    let boot = instance.boots;
    let saved = facts.kept == Some(Kept::Whole { boot });
    match (facts.observed, facts.failed) {
        (Some(Observed::Running { boot: running, .. }), _) if saved || *running != boot => {
            Step::Kill
        }
        (Some(Observed::Running { .. }), Some(reason)) => {
            Step::Record(Transition::NotHibernated(reason.clone()))
        }
        (Some(Observed::Running { .. }), None) => Step::Hibernate,
        _ if saved => Step::Record(Transition::Hibernated),
        (Some(Observed::Exited { exit, .. }), _) => {
            let why = match exit {
                Exit::GuestPowerOff => "its guest powered itself off before",
                Exit::Stopped => "an operator of its host stopped it before",
                Exit::Crashed { .. } => "it ended before its memory was saved",
            };
            Step::Record(Transition::Stopped(Some(StateReason::not_hibernated(why))))
        }
        _ => {
            let why = "it was lost with its host before its memory was saved";
            Step::Record(Transition::Stopped(Some(StateReason::not_hibernated(why))))
        }
    }
}

/// Brings the VMM down; `None` when there is none any more.
fn going_down(instance: &Instance, facts: &Facts<'_>, grace: Duration) -> Option<Step> {
    if !matches!(facts.observed, Some(Observed::Running { .. })) {
        return None;
    }
    let since = elapsed(instance.state_since, facts.now);
    if instance.intent == Intent::ForceStop || since >= grace {
        return Some(Step::Kill);
    }
    let left = grace - since;
    Some(match facts.pressed.map(|at| elapsed(at, facts.now)) {
        Some(ago) if ago < PRESS_AGAIN => Step::Wait(left.min(PRESS_AGAIN - ago)),
        _ => Step::PressButton,
    })
}

/// The time from one to the other; none if the clock was set back.
fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
