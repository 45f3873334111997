//! Every order in which a device's interrupt and its driver's masks can meet:
//! `vcpu/models.rs` says how to run this.
//!
//! What must hold is that no interrupt is lost, and that none outlives the driver that it
//! was for.

use std::sync::Arc;

use loom::thread;

use super::msix::Msix;
use crate::virtio::testing::FakeInterrupts;

/// Message control: enabled, and enabled with the function's mask.
const OPEN: u16 = 0x8000;
const MASKED: u16 = 0xc000;

/// Vector control, of the one vector.
const CONTROL: u64 = 12;

struct Function {
    msix: Msix,
    interrupts: FakeInterrupts,
}

impl Function {
    /// Whose vector is open, or not.
    fn new(control: u16, masked: u32) -> Arc<Self> {
        let interrupts = FakeInterrupts::default();
        let msix = Msix::new(1, &interrupts).expect("a vector");
        msix.table_write(CONTROL, &masked.to_le_bytes());
        msix.set_control(control);
        Arc::new(Self { msix, interrupts })
    }

    /// A device thread that has something to say.
    fn signal(self: &Arc<Self>) -> thread::JoinHandle<()> {
        let function = Arc::clone(self);
        thread::spawn(move || function.msix.signal(0))
    }

    fn is_pending(&self) -> bool {
        let mut bits = [0];
        self.msix.pending_read(0, &mut bits);
        bits[0] & 1 == 1
    }

    fn delivered(&self) -> usize {
        self.interrupts.signals(0)
    }
}

#[test]
fn an_interrupt_that_meets_a_mask_is_sent_or_pends() {
    loom::model(|| {
        let function = Function::new(OPEN, 0);
        let device = function.signal();
        function.msix.table_write(CONTROL, &1u32.to_le_bytes());
        device.join().expect("no panic");
        assert_eq!(function.delivered() + usize::from(function.is_pending()), 1);
        function.msix.table_write(CONTROL, &0u32.to_le_bytes());
        assert_eq!((function.delivered(), function.is_pending()), (1, false));
    });
}

#[test]
fn an_interrupt_that_meets_an_unmasking_is_sent() {
    for (control, masked) in [(MASKED, 0), (OPEN, 1)] {
        loom::model(move || {
            let function = Function::new(control, masked);
            let device = function.signal();
            function.msix.table_write(CONTROL, &0u32.to_le_bytes());
            function.msix.set_control(OPEN);
            device.join().expect("no panic");
            assert_eq!((function.delivered(), function.is_pending()), (1, false));
        });
    }
}

#[test]
fn two_masks_of_two_processors_lose_nothing() {
    loom::model(|| {
        let function = Function::new(MASKED, 1);
        let device = function.signal();
        let other = thread::spawn({
            let function = Arc::clone(&function);
            move || function.msix.set_control(OPEN)
        });
        function.msix.table_write(CONTROL, &0u32.to_le_bytes());
        device.join().expect("no panic");
        other.join().expect("no panic");
        assert_eq!((function.delivered(), function.is_pending()), (1, false));
    });
}

#[test]
fn nothing_pends_for_the_driver_after_a_reset() {
    loom::model(|| {
        let function = Function::new(MASKED, 0);
        let device = function.signal();
        function.msix.reset();
        device.join().expect("no panic");
        assert!(!function.is_pending());
        assert_eq!(function.delivered(), 0);
    });
}
