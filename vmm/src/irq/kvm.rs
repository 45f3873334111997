//! [`Interrupts`] over KVM: irqfd behind each MSI-X vector, ioeventfd behind each
//! doorbell.
//!
//! A machine reset makes a new KVM VM while devices and their vectors stay, so the
//! VM behind is exchanged by [`KvmInterrupts::replace`]; vectors and doorbells are
//! unrouted and unbound before, by the devices' own reset.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Doorbell, Interrupts, MsiMessage, MsiVector};
use crate::arch::layout::GSI_MSI_FIRST;

/// As many vectors as we give out. KVM routes 4096 GSIs; 32 slots with 33 vectors
/// each stay well below.
const MAX_VECTORS: u32 = 2048;

struct State {
    vm: Arc<VmFd>,
    /// One bit's worth for each vector: its GSI is taken.
    taken: Vec<bool>,
    /// The message routes in force, by GSI.
    routes: BTreeMap<u32, MsiMessage>,
}

/// The machine's interrupt controller, as devices see it.
pub struct KvmInterrupts {
    state: Mutex<State>,
    this: Weak<Self>,
}

impl KvmInterrupts {
    /// Takes charge of a VM's interrupt routes: the IOAPIC's pins and MSI.
    ///
    /// # Errors
    /// When KVM refuses the routes.
    pub fn new(vm: Arc<VmFd>) -> io::Result<Arc<Self>> {
        let state = State {
            vm,
            taken: Vec::new(),
            routes: BTreeMap::new(),
        };
        state.apply()?;
        Ok(Arc::new_cyclic(|this| Self {
            state: Mutex::new(state),
            this: Weak::clone(this),
        }))
    }

    /// Goes over to another VM. All vectors must be masked and all doorbells
    /// unbound, as a device's reset leaves them; routes left over are dropped.
    ///
    /// # Errors
    /// When KVM refuses the routes.
    pub fn replace(&self, vm: Arc<VmFd>) -> io::Result<()> {
        let mut state = self.lock();
        state.vm = vm;
        state.routes.clear();
        state.apply()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Hands KVM the whole table, which is the only way it takes one.
    fn apply(&self) -> io::Result<()> {
        let pins = (0..GSI_MSI_FIRST).map(|pin| kvm_irq_routing_entry {
            gsi: pin,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            u: kvm_irq_routing_entry__bindgen_ty_1 {
                irqchip: kvm_irq_routing_irqchip {
                    irqchip: KVM_IRQCHIP_IOAPIC,
                    pin,
                },
            },
            ..Default::default()
        });
        let messages = self.routes.iter().map(|(gsi, message)| {
            let mut msi = kvm_irq_routing_msi {
                data: message.data,
                ..Default::default()
            };
            let [low, high] = halves(message.address);
            msi.address_lo = low;
            msi.address_hi = high;
            kvm_irq_routing_entry {
                gsi: *gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
                ..Default::default()
            }
        });
        let entries: Vec<_> = pins.chain(messages).collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        self.vm.set_gsi_routing(&table).map_err(io::Error::from)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a half is what is wanted")]
fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

impl Interrupts for KvmInterrupts {
    fn msi_vector(&self) -> io::Result<Arc<dyn MsiVector>> {
        let parent = self
            .this
            .upgrade()
            .ok_or_else(|| io::Error::other("the machine is gone"))?;
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let mut state = self.lock();
        let index = match state.taken.iter().position(|taken| !taken) {
            Some(index) => index,
            None if state.taken.len() < MAX_VECTORS as usize => {
                state.taken.push(false);
                state.taken.len() - 1
            }
            None => return Err(io::Error::other("no interrupt vector is left")),
        };
        state.taken[index] = true;
        drop(state);
        let offset = u32::try_from(index).map_err(io::Error::other)?;
        Ok(Arc::new(KvmVector {
            parent,
            gsi: GSI_MSI_FIRST + offset,
            event,
            assigned: Mutex::new(false),
        }))
    }

    fn bind_doorbell(&self, doorbell: Doorbell, event: &EventFd) -> io::Result<()> {
        let state = self.lock();
        match doorbell {
            Doorbell::Port(port, value) => {
                let port = IoEventAddress::Pio(port.into());
                state.vm.register_ioevent(event, &port, value)
            }
            Doorbell::Memory(address) => {
                let address = IoEventAddress::Mmio(address);
                state.vm.register_ioevent(event, &address, NoDatamatch)
            }
        }
        .map_err(io::Error::from)
    }

    fn unbind_doorbell(&self, doorbell: Doorbell, event: &EventFd) -> io::Result<()> {
        let state = self.lock();
        match doorbell {
            Doorbell::Port(port, value) => {
                let port = IoEventAddress::Pio(port.into());
                state.vm.unregister_ioevent(event, &port, value)
            }
            Doorbell::Memory(address) => {
                let address = IoEventAddress::Mmio(address);
                state.vm.unregister_ioevent(event, &address, NoDatamatch)
            }
        }
        .map_err(io::Error::from)
    }
}

struct KvmVector {
    parent: Arc<KvmInterrupts>,
    gsi: u32,
    event: EventFd,
    /// Whether KVM listens to the event.
    assigned: Mutex<bool>,
}

impl KvmVector {
    fn unassign(&self, state: &mut State) -> io::Result<()> {
        let mut assigned = self.assigned.lock().unwrap_or_else(PoisonError::into_inner);
        if *assigned {
            state
                .vm
                .unregister_irqfd(&self.event, self.gsi)
                .map_err(io::Error::from)?;
            *assigned = false;
        }
        Ok(())
    }
}

impl MsiVector for KvmVector {
    fn route(&self, message: MsiMessage, masked: bool) -> io::Result<()> {
        let mut state = self.parent.lock();
        if masked {
            // The route stays: KVM's table is costly to change, and a vector that
            // is masked is mostly unmasked again unchanged.
            return self.unassign(&mut state);
        }
        if state.routes.get(&self.gsi) != Some(&message) {
            state.routes.insert(self.gsi, message);
            state.apply()?;
        }
        let mut assigned = self.assigned.lock().unwrap_or_else(PoisonError::into_inner);
        if !*assigned {
            state
                .vm
                .register_irqfd(&self.event, self.gsi)
                .map_err(io::Error::from)?;
            *assigned = true;
        }
        Ok(())
    }

    fn signal(&self) -> io::Result<()> {
        self.event.write(1)
    }

    fn eventfd(&self) -> &EventFd {
        &self.event
    }
}

impl Drop for KvmVector {
    fn drop(&mut self) {
        let mut state = self.parent.lock();
        // The VM may be on its way out, and then there is nothing to undo.
        let _ = self.unassign(&mut state);
        if state.routes.remove(&self.gsi).is_some() {
            let _ = state.apply();
        }
        let index = (self.gsi - GSI_MSI_FIRST) as usize;
        if let Some(taken) = state.taken.get_mut(index) {
            *taken = false;
        }
    }
}
