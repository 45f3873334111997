//! A function, saved: what the transport knows of it, and what the device keeps beside
//! its queues.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::VirtioPciDevice;
use super::common::CommonV1;
use super::shared::SharedV1;
use crate::pci::msix::MsixV1;
use crate::snapshot::Refused;
use crate::virtio::quiet::QueueStateV1;

/// [`VirtioPciDevice`], saved, but for its configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtioFunctionV1 {
    /// Which kind of device it is, by the name in its declaration.
    pub kind: String,
    /// Its vectors.
    pub msix: MsixV1,
    /// What registers and device threads share.
    pub shared: SharedV1,
    /// The common configuration structure.
    pub common: CommonV1,
    /// Where its queues stand, of a device that was at work; null: it was not.
    pub held: Option<Vec<QueueStateV1>>,
    /// What the device keeps beside them, in its own words; null: nothing.
    pub device: Value,
}

impl VirtioPciDevice {
    /// All of it. It is quiet.
    pub(super) fn save_function(&self) -> Result<VirtioFunctionV1, Refused> {
        Ok(VirtioFunctionV1 {
            kind: self.device.declaration().name.to_owned(),
            msix: self.shared.msix.save(),
            shared: self.shared.save(),
            common: self.common.save(),
            held: self.life.save()?,
            device: self.device.save(),
        })
    }

    /// Takes over what was saved. Nobody drives it, and its configuration space is
    /// restored.
    pub(super) fn restore_function(&mut self, state: &VirtioFunctionV1) -> Result<(), Refused> {
        if !self.life.is_idle() {
            return Err(Refused::because("it is driven already"));
        }
        let kind = self.device.declaration().name;
        if state.kind != kind {
            let wrong = format!("it is a {kind} here and a {} there", state.kind);
            return Err(Refused::because(wrong));
        }
        let control = self.config.read_u16(self.offsets.msix + 2);
        if !state.msix.is_of(control) {
            let wrong = format!("MSI-X is not as its control says: {control:#x}");
            return Err(Refused::because(wrong));
        }
        // First: that it is another disk says more than that its features are others.
        self.device.restore(&state.device)?;
        self.shared.restore(&state.shared)?;
        self.common.restore(&state.common)?;
        self.shared.msix.restore(&state.msix)?;
        // Last: of what is refused, nothing goes on.
        self.restore_held(state.held.as_deref())
    }
}
