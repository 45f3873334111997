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
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/how-ec2-instance-stop-start-works.html>,
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-reboot.html>
//!
//! [`ComputeHost::reboot`]: crate::compute::ComputeHost::reboot

use std::time::Duration;

use hearth_vmm_api::Exit;
use jiff::Timestamp;

use crate::{
    compute::Observed,
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
    /// Whether any volume that goes with it is still on the host.
    pub volumes: bool,
    /// How often its VMM was reset: known while a reboot is asked for.
    pub resets: Option<u64>,
    /// When its power button was last pressed since it began to go down.
    pub pressed: Option<Timestamp>,
    /// When its VMM was first seen to have ended.
    pub ended: Option<Timestamp>,
    /// Why its launch has failed for good.
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
    /// Make its root volume and taps, and boot it from cold.
    Launch,
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
            _ => Step::Nothing,
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
        Exit::GuestPowerOff => match instance.on_shutdown {
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
mod tests {
    use super::*;
    use crate::model::{Reboot, samples};

    const NOTHING: Option<Observed> = None;

    fn up(boot: u64) -> Option<Observed> {
        Some(Observed::Running { pid: 1, boot })
    }

    fn off(boot: u64, exit: Exit) -> Option<Observed> {
        Some(Observed::Exited { boot, exit })
    }

    fn crash() -> Exit {
        Exit::Crashed {
            detail: "triple fault".into(),
        }
    }

    fn in_state(state: InstanceState, intent: Intent) -> Instance {
        Instance {
            state,
            intent,
            ..samples::instance(1)
        }
    }

    fn facts(observed: &Option<Observed>) -> Facts<'_> {
        Facts {
            now: samples::time(),
            observed: observed.as_ref(),
            volumes: false,
            resets: None,
            pressed: None,
            ended: None,
            restart_lost: false,
            failed: None,
            stop_grace: Duration::from_secs(120),
            terminate_grace: Duration::from_secs(30),
        }
    }

    fn stopped(reason: StateReason) -> Step {
        Step::Record(Transition::Stopped(Some(reason)))
    }

    #[test]
    fn a_pending_instance_comes_up() {
        let lost = StateReason::internal_error("no");
        let first = in_state(InstanceState::Pending, Intent::Run);
        let third = Instance {
            boots: 3,
            ..first.clone()
        };
        let by_guest = StateReason::instance_initiated();
        for (instance, observed, failed, step) in [
            (&first, NOTHING, None, Step::Launch),
            (&first, Some(Observed::Incomplete), None, Step::Launch),
            (&first, up(1), None, Step::Record(Transition::Running)),
            // The VMM that is there is what counts, not how its launch seemed to end.
            (
                &first,
                up(1),
                Some(&lost),
                Step::Record(Transition::Running),
            ),
            (
                &first,
                NOTHING,
                Some(&lost),
                Step::Record(Transition::ShuttingDown(lost.clone())),
            ),
            (&third, off(2, Exit::GuestPowerOff), None, Step::Launch),
            (&third, up(2), None, Step::Kill),
            (&third, off(3, Exit::GuestPowerOff), None, stopped(by_guest)),
            (&third, off(2, crash()), Some(&lost), stopped(lost.clone())),
        ] {
            let facts = Facts {
                failed,
                ..facts(&observed)
            };
            assert_eq!(plan(instance, &facts), step, "{observed:?}");
        }
    }

    #[test]
    fn a_running_instance_is_kept_rebooted_or_found_ended() {
        let stop = in_state(InstanceState::Running, Intent::Run);
        let terminate = Instance {
            on_shutdown: ShutdownBehavior::Terminate,
            ..stop.clone()
        };
        let by_guest = StateReason::instance_initiated();
        for (instance, observed, step) in [
            (&stop, up(1), Step::Nothing),
            (&stop, up(0), Step::Kill),
            (
                &stop,
                off(1, Exit::GuestPowerOff),
                stopped(by_guest.clone()),
            ),
            (
                &terminate,
                off(1, Exit::GuestPowerOff),
                Step::Record(Transition::ShuttingDown(by_guest)),
            ),
            // A crash keeps the data, whatever the guest's own power-off would do.
            (
                &terminate,
                off(1, crash()),
                stopped(StateReason::internal_error("triple fault")),
            ),
            (
                &stop,
                off(1, Exit::Stopped),
                stopped(StateReason::internal_error(
                    "The instance was stopped by an operator of its host",
                )),
            ),
            (
                &stop,
                NOTHING,
                stopped(StateReason::internal_error(
                    "The instance was lost with its host",
                )),
            ),
            // How an earlier boot ended says nothing of this one.
            (
                &terminate,
                off(0, Exit::GuestPowerOff),
                stopped(StateReason::internal_error(
                    "The instance was lost with its host",
                )),
            ),
        ] {
            assert_eq!(plan(instance, &facts(&observed)), step, "{observed:?}");
        }
    }

    #[test]
    fn what_went_down_with_its_host_comes_up_again_if_that_is_set() {
        let instance = in_state(InstanceState::Running, Intent::Run);
        let lost = |boot| Some(Observed::HostLost { boot });
        let reason = StateReason::internal_error("The instance was lost with its host");
        let restart = Step::Record(Transition::Lost);
        for (observed, restart_lost, step) in [
            (lost(1), true, restart),
            (lost(1), false, stopped(reason.clone())),
            // What is there of another boot says nothing, nor does nothing.
            (lost(0), true, stopped(reason.clone())),
            (NOTHING, true, stopped(reason)),
        ] {
            let facts = Facts {
                restart_lost,
                ..facts(&observed)
            };
            assert_eq!(plan(&instance, &facts), step, "{observed:?}");
        }
        // One that was coming up goes on, one that was going down is down.
        for (state, intent, step) in [
            (InstanceState::Pending, Intent::Run, Step::Launch),
            (
                InstanceState::Stopping,
                Intent::Stop,
                Step::Record(Transition::Stopped(None)),
            ),
            (InstanceState::ShuttingDown, Intent::Terminate, Step::Forget),
            (InstanceState::Stopped, Intent::Stop, Step::Nothing),
        ] {
            let observed = lost(1);
            let facts = Facts {
                restart_lost: true,
                ..facts(&observed)
            };
            assert_eq!(plan(&in_state(state, intent), &facts), step, "{state:?}");
        }
    }

    #[test]
    fn a_vmm_ended_by_an_operator_may_be_the_host_going_down() {
        let instance = in_state(InstanceState::Running, Intent::Run);
        let observed = off(1, Exit::Stopped);
        let by_operator = stopped(StateReason::internal_error(
            "The instance was stopped by an operator of its host",
        ));
        let at = |s: i64| samples::time() + jiff::SignedDuration::from_secs(s);
        for (ended, now, step) in [
            (None, 0, Step::Wait(GOING_DOWN)),
            (Some(0), 4, Step::Wait(GOING_DOWN - Duration::from_secs(4))),
            (Some(0), 10, by_operator),
        ] {
            let facts = Facts {
                now: at(now),
                ended: ended.map(at),
                restart_lost: true,
                ..facts(&observed)
            };
            assert_eq!(plan(&instance, &facts), step, "{ended:?} {now}");
        }
    }

    #[test]
    fn a_reboot_is_button_then_reset_and_done_once() {
        let asked = Instance {
            reboots_asked: 3,
            reboots_done: 1,
            ..in_state(InstanceState::Running, Intent::Run)
        };
        let begun = Instance {
            reboot: Some(Reboot {
                since: samples::time(),
                resets: 5,
            }),
            ..asked.clone()
        };
        let look = Step::Wait(LOOK_AGAIN);
        let begin = Step::Record(Transition::Rebooting { resets: 5 });
        let done = Step::Record(Transition::Rebooted);
        // Seconds since it began, when in them it was asked last, resets counted.
        for (instance, now, pressed, resets, step) in [
            (&asked, 0, None, None, look.clone()),
            (&asked, 0, None, Some(5), begin),
            (&begun, 0, None, Some(5), Step::AskToReboot(5)),
            (&begun, 1, Some(0), Some(5), look.clone()),
            (&begun, 10, Some(0), Some(5), Step::AskToReboot(5)),
            (&begun, 11, Some(10), Some(6), done.clone()),
            (&begun, 120, Some(115), Some(5), Step::Reset),
            // Reset by force or by itself, by whomever that was seen.
            (&begun, 500, None, Some(6), done),
            (&begun, 500, None, None, look),
        ] {
            let at = |s: i64| samples::time() + jiff::SignedDuration::from_secs(s);
            let observed = up(1);
            let facts = Facts {
                now: at(now),
                pressed: pressed.map(at),
                resets,
                ..facts(&observed)
            };
            assert_eq!(plan(instance, &facts), step, "{now} {pressed:?} {resets:?}");
        }
        // It went down for good instead: no reboot brings that back.
        let observed = off(1, Exit::GuestPowerOff);
        let by_guest = stopped(StateReason::instance_initiated());
        assert_eq!(plan(&begun, &facts(&observed)), by_guest);
    }

    #[test]
    fn going_down_is_button_then_force() {
        let stop = in_state(InstanceState::Stopping, Intent::Stop);
        let force = in_state(InstanceState::Stopping, Intent::ForceStop);
        let terminate = in_state(InstanceState::ShuttingDown, Intent::Terminate);
        let wait = |s| Step::Wait(Duration::from_secs(s));
        // Seconds since it began, and when in them the button was pressed last.
        for (instance, now, pressed, step) in [
            (&stop, 0, None, Step::PressButton),
            (&stop, 1, Some(0), wait(9)),
            (&stop, 10, Some(0), Step::PressButton),
            (&stop, 118, Some(115), wait(2)),
            (&stop, 120, Some(115), Step::Kill),
            (&force, 0, None, Step::Kill),
            (&terminate, 5, None, Step::PressButton),
            (&terminate, 29, Some(25), wait(1)),
            (&terminate, 30, Some(25), Step::Kill),
            // A clock set back is no reason to kill.
            (&stop, -500, None, Step::PressButton),
        ] {
            let at = |s: i64| samples::time() + jiff::SignedDuration::from_secs(s);
            let observed = up(1);
            let facts = Facts {
                now: at(now),
                pressed: pressed.map(at),
                ..facts(&observed)
            };
            assert_eq!(plan(instance, &facts), step, "{now} {pressed:?}");
        }
    }

    #[test]
    fn what_is_down_is_cleared_away_in_order() {
        let stopping = in_state(InstanceState::Stopping, Intent::Stop);
        let stopped = in_state(InstanceState::Stopped, Intent::Stop);
        let ending = in_state(InstanceState::ShuttingDown, Intent::Terminate);
        let gone = in_state(InstanceState::Terminated, Intent::Terminate);
        let over = off(1, Exit::GuestPowerOff);
        for (instance, observed, volumes, step) in [
            (
                &stopping,
                over.clone(),
                true,
                Step::Record(Transition::Stopped(None)),
            ),
            (
                &stopping,
                NOTHING,
                true,
                Step::Record(Transition::Stopped(None)),
            ),
            (&stopped, over.clone(), true, Step::Nothing),
            (&stopped, up(1), true, Step::Kill),
            (&ending, over.clone(), true, Step::Forget),
            (&ending, Some(Observed::Incomplete), true, Step::Forget),
            (&ending, NOTHING, true, Step::RemoveVolumes),
            (
                &ending,
                NOTHING,
                false,
                Step::Record(Transition::Terminated),
            ),
            (&gone, NOTHING, false, Step::Nothing),
            (&gone, over, false, Step::Forget),
            (&gone, up(1), false, Step::Forget),
        ] {
            let facts = Facts {
                volumes,
                ..facts(&observed)
            };
            assert_eq!(
                plan(instance, &facts),
                step,
                "{:?} {observed:?}",
                instance.state
            );
        }
    }
}
