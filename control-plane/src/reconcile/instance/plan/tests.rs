//! Tables of what there is and the step that follows from it.

use super::*;
use crate::model::{Reboot, Settings, ShutdownBehavior, samples};

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

fn may_hibernate() -> Settings {
    Settings {
        may_hibernate: true,
        ..Settings::default()
    }
}

fn facts(observed: &Option<Observed>) -> Facts<'_> {
    Facts {
        now: samples::time(),
        observed: observed.as_ref(),
        kept: None,
        volumes: false,
        resets: None,
        update: false,
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
    let mut terminate = stop.clone();
    terminate.settings.on_shutdown = ShutdownBehavior::Terminate;
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
fn a_vmm_is_replaced_while_its_instance_runs_and_nothing_else_is_due() {
    let running = in_state(InstanceState::Running, Intent::Run);
    let rebooting = Instance {
        reboots_asked: 1,
        ..running.clone()
    };
    let stopping = in_state(InstanceState::Stopping, Intent::Stop);
    for (instance, observed, step) in [
        (&running, up(1), Step::Update),
        (&running, up(0), Step::Kill),
        (
            &rebooting,
            up(1),
            Step::Record(Transition::Rebooting { resets: 3 }),
        ),
        (&stopping, up(1), Step::PressButton),
    ] {
        let facts = Facts {
            update: true,
            resets: Some(3),
            ..facts(&observed)
        };
        assert_eq!(plan(instance, &facts), step, "{observed:?}");
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

#[test]
fn hibernation_is_save_end_and_write_down() {
    let instance = Instance {
        settings: may_hibernate(),
        boots: 2,
        ..in_state(InstanceState::Stopping, Intent::Hibernate)
    };
    let whole = |boot| Some(Kept::Whole { boot });
    let failed = StateReason::not_hibernated("no");
    let stopped_for = |why| stopped(StateReason::not_hibernated(why));
    let by_itself = stopped_for("its guest powered itself off before");
    for (observed, kept, failed, step) in [
        (up(2), None, None, Step::Hibernate),
        // What a try that was cut short has left, or an earlier boot, is none.
        (up(2), Some(Kept::Rest), None, Step::Hibernate),
        (up(2), whole(1), None, Step::Hibernate),
        (up(2), whole(2), None, Step::Kill),
        (up(1), None, None, Step::Kill),
        (
            up(2),
            None,
            Some(&failed),
            Step::Record(Transition::NotHibernated(failed.clone())),
        ),
        // What is saved is what counts, not how saving it seemed to end.
        (up(2), whole(2), Some(&failed), Step::Kill),
        (
            off(2, crash()),
            whole(2),
            None,
            Step::Record(Transition::Hibernated),
        ),
        (
            Some(Observed::HostLost { boot: 2 }),
            whole(2),
            None,
            Step::Record(Transition::Hibernated),
        ),
        (
            NOTHING,
            whole(2),
            None,
            Step::Record(Transition::Hibernated),
        ),
        (off(2, Exit::GuestPowerOff), None, None, by_itself),
        (
            off(2, crash()),
            Some(Kept::Rest),
            None,
            stopped_for("it ended before its memory was saved"),
        ),
        (
            off(2, Exit::Stopped),
            whole(1),
            None,
            stopped_for("an operator of its host stopped it before"),
        ),
        (
            Some(Observed::HostLost { boot: 2 }),
            Some(Kept::Rest),
            None,
            stopped_for("it was lost with its host before its memory was saved"),
        ),
    ] {
        let facts = Facts {
            kept,
            failed,
            ..facts(&observed)
        };
        assert_eq!(plan(&instance, &facts), step, "{observed:?} {kept:?}");
    }
}

#[test]
fn a_stopped_instance_keeps_the_memory_that_it_goes_on_from_and_no_other() {
    let whole = |boot| Some(Kept::Whole { boot });
    for (hibernated, observed, kept, step) in [
        (Some(2), off(2, crash()), whole(2), Step::Nothing),
        (Some(2), NOTHING, whole(2), Step::Nothing),
        (Some(2), NOTHING, None, Step::Nothing),
        (Some(2), up(2), whole(2), Step::Kill),
        (Some(2), NOTHING, whole(1), Step::DiscardMemory),
        (Some(2), NOTHING, Some(Kept::Rest), Step::DiscardMemory),
        (None, NOTHING, whole(2), Step::DiscardMemory),
        (None, NOTHING, Some(Kept::Rest), Step::DiscardMemory),
        (None, NOTHING, None, Step::Nothing),
    ] {
        let instance = Instance {
            settings: may_hibernate(),
            boots: 2,
            hibernated,
            ..in_state(InstanceState::Stopped, Intent::Stop)
        };
        let facts = Facts {
            kept,
            ..facts(&observed)
        };
        assert_eq!(plan(&instance, &facts), step, "{hibernated:?} {kept:?}");
    }
}
