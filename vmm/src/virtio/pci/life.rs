//! Whether a device is at work, becoming quiet, or quiet, and what follows.
//!
//! ```text
//!            activate                 reset, power-on, hold
//!   Idle ───────────────► Active ───────────────────────────► Quiescing(then)
//!    ▲                      ▲                                    │ quiet
//!    ├── reset, power-on ◄──┼────────────────────────────────────┤
//!    │                      ├── resume ◄── Held ◄── hold ◄───────┤
//!    └──── power-on ◄───────┼───────────── Held                  │
//!                           └── resume, which took a hold back ◄─┘
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use super::{Status, VirtioPciDevice};
use crate::snapshot::Refused;
use crate::virtio::quiet::{QueueState, QueueStateV1, Quiet, Why};
use crate::virtio::{Activation, ActiveQueue, Interrupt};

/// What follows once a device is quiet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// The driver's reset, section 2.4: MSI-X and configuration space stay.
    Reset,
    /// All is as after power-on.
    PowerOn,
    /// Nothing, until the machine goes on.
    Hold,
    /// The device goes on: a hold was taken back.
    Resume,
}

impl Then {
    /// What the device's threads are to know.
    fn why(self) -> Why {
        match self {
            Self::Reset | Self::PowerOn => Why::Reset,
            Self::Hold | Self::Resume => Why::Hold,
        }
    }
}

#[derive(Debug)]
enum Stage {
    /// No queue is served.
    Idle,
    /// Queues are served.
    Active,
    /// They may still be. The device was asked for the first of these.
    Quiescing(Why, Then),
    /// They stand there.
    Held(Vec<QueueState>),
}

/// The stage, and the word that the device is quiet.
pub(super) struct Life {
    stage: Stage,
    quiet: Arc<Mutex<Option<Vec<QueueState>>>>,
    bell: Arc<EventFd>,
}

impl Life {
    /// Of a device that nobody drives yet. `bell` is rung when it has become quiet.
    pub(super) fn new(bell: Arc<EventFd>) -> Self {
        Self {
            stage: Stage::Idle,
            quiet: Arc::default(),
            bell,
        }
    }

    /// Whether guest memory is left alone for now.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.stage, Stage::Idle | Stage::Held(_))
    }

    /// Whether nobody drives it.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Idle)
    }

    /// Whether the driver's writes are lost.
    pub(super) fn is_resetting(&self) -> bool {
        matches!(self.stage, Stage::Quiescing(_, Then::Reset | Then::PowerOn))
    }

    /// Where the queues of a held device stand; none: nobody drives it.
    pub(super) fn save(&self) -> Result<Option<Vec<QueueStateV1>>, Refused> {
        match &self.stage {
            Stage::Idle => Ok(None),
            Stage::Held(queues) => Ok(Some(queues.iter().copied().map(Into::into).collect())),
            Stage::Active | Stage::Quiescing(..) => Err(Refused::because("it is at work")),
        }
    }

    /// What a device gets to let go of when it is quiet.
    fn watch(&self) -> Quiet {
        let (quiet, bell) = (Arc::clone(&self.quiet), Arc::clone(&self.bell));
        Quiet::new(move |queues| {
            *quiet.lock().unwrap_or_else(PoisonError::into_inner) = Some(queues);
            // Fails only when the counter is full, and then it is rung already.
            let _ = bell.write(1);
        })
    }

    fn take_quiet(&self) -> Option<Vec<QueueState>> {
        let mut quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        quiet.take()
    }
}

impl VirtioPciDevice {
    /// Has the device become quiet, and then what follows. What was asked for before
    /// gives way, but for a power-on.
    pub(super) fn become_quiet(&mut self, then: Then) {
        self.settle();
        match &mut self.life.stage {
            Stage::Idle => self.has_become_quiet(then, Vec::new()),
            Stage::Active => self.ask(then),
            Stage::Quiescing(_, next) => {
                if !matches!(next, Then::Reset | Then::PowerOn) || then == Then::PowerOn {
                    *next = then;
                }
            }
            Stage::Held(_) if then == Then::Hold => {}
            // Its threads keep what they were to go on with.
            Stage::Held(_) => self.ask(then),
        }
    }

    fn ask(&mut self, then: Then) {
        self.life.stage = Stage::Quiescing(then.why(), then);
        self.device.quiesce(then.why(), self.life.watch());
    }

    /// Notices that the device has become quiet, if it has.
    pub(super) fn settle(&mut self) {
        let Stage::Quiescing(why, then) = self.life.stage else {
            return;
        };
        let Some(queues) = self.life.take_quiet() else {
            return;
        };
        if why == Why::Hold && then.why() == Why::Reset {
            self.ask(then);
        } else {
            self.has_become_quiet(then, queues);
        }
    }

    fn has_become_quiet(&mut self, then: Then, queues: Vec<QueueState>) {
        let was_idle = matches!(self.life.stage, Stage::Idle);
        self.life.stage = Stage::Idle;
        match then {
            Then::Reset => self.common.reset(),
            Then::PowerOn => {
                self.common.reset();
                self.shared.msix.reset();
            }
            Then::Hold | Then::Resume if was_idle => {}
            Then::Hold => self.life.stage = Stage::Held(queues),
            Then::Resume => self.activate(Some(&queues)),
        }
    }

    /// A device that is idle becomes one that was held, with its queues where they stood:
    /// its registers are restored. Those of the queues are judged as at DRIVER_OK.
    pub(super) fn restore_held(&mut self, held: Option<&[QueueStateV1]>) -> Result<(), Refused> {
        let status = self.shared.status();
        let is_driven = status.contains(Status::DRIVER_OK);
        let Some(held) = held else {
            // One that couldn't start has a driver, and is at rest.
            return match is_driven && !status.contains(Status::NEEDS_RESET) {
                true => Err(Refused::because("it has a driver and no queues")),
                false => Ok(()),
            };
        };
        if !is_driven {
            return Err(Refused::because("it has queues and no driver"));
        }
        let built = self.common.build_queues(&self.backplane.memory);
        let built = built.map_err(|index| {
            let wrong = format!("queue {index} is too large, misaligned or outside of memory");
            Refused::because(wrong)
        })?;
        for (place, state) in held.iter().enumerate() {
            let index = state.index;
            let wrong = |what| Err(Refused::because(format!("queue {index} {what}")));
            if !built.iter().any(|(enabled, _)| *enabled == index) {
                return wrong("is not enabled");
            }
            if held[..place].iter().any(|other| other.index == index) {
                return wrong("stands there twice");
            }
        }
        self.life.stage = Stage::Held(held.iter().copied().map(Into::into).collect());
        Ok(())
    }

    /// The machine goes on.
    pub(super) fn go_on(&mut self) {
        self.settle();
        match &mut self.life.stage {
            Stage::Quiescing(_, then @ Then::Hold) => *then = Then::Resume,
            Stage::Held(queues) => {
                let queues = std::mem::take(queues);
                self.activate(Some(&queues));
            }
            Stage::Idle | Stage::Active | Stage::Quiescing(..) => {}
        }
    }

    /// DRIVER_OK, or the machine goes on with queues that were `held`: the device
    /// starts, or says that it can't. A queue of which nothing is known was broken when
    /// it was held, and stays alone.
    pub(super) fn activate(&mut self, held: Option<&[QueueState]>) {
        self.life.stage = Stage::Idle;
        let interrupt = Arc::clone(&self.shared) as Arc<dyn Interrupt>;
        let memory = &self.backplane.memory;
        let Ok(built) = self.common.build_queues(memory) else {
            interrupt.needs_reset();
            return;
        };
        let mut queues = Vec::new();
        for (index, mut queue) in built {
            if let Some(held) = held {
                let Some(state) = held.iter().find(|state| state.index == index) else {
                    continue;
                };
                queue.set_next_avail(state.next_available);
                queue.set_next_used(state.next_used);
            }
            let bell = self.doorbells.get(usize::from(index));
            queues.extend(bell.map(|bell| ActiveQueue {
                index,
                queue,
                doorbell: Arc::clone(&bell.event),
            }));
        }
        self.life.stage = Stage::Active;
        self.device.activate(Activation {
            memory: Arc::clone(memory),
            features: self.common.features(),
            queues,
            interrupt,
            resumed: held.is_some(),
        });
    }
}
