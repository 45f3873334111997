//! The bus, saved: which slots are taken, by what, and where BARs decode.
//!
//! A copy is a bus to which the same devices were added at the same slots. Where their
//! BARs were placed comes along, since that depends on what else came and went; where the
//! guest has put them is in their configuration spaces.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Bus, Function, Places};
use crate::pci::config::{ConfigSpaceV1, Space};
use crate::pci::window::Window;
use crate::snapshot::Refused;

/// What is in a slot, saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotV1 {
    /// The PCI device number.
    pub slot: u8,
    /// Its configuration space.
    pub config: ConfigSpaceV1,
    /// Where each of its BARs was placed when it was added, and is after a reset.
    pub homes: Vec<u64>,
    /// What is behind that, in the words of the function itself; null: nothing.
    pub function: Value,
}

/// The bus, saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusV1 {
    /// The address register, port 0xCF8.
    pub address: u32,
    /// The last slot for devices.
    pub last_slot: u8,
    /// What is in the slots that are taken, the host bridge among them.
    pub slots: Vec<SlotV1>,
}

/// The slot in front of a reason.
fn in_slot(slot: u8) -> impl Fn(Refused) -> Refused {
    move |refused| refused.within(format_args!("PCI slot {slot}"))
}

/// One of the ranges in which BARs may decode.
fn holds(window: &Range<u64>, bar: &Range<u64>) -> bool {
    window.start <= bar.start && bar.end <= window.end
}

impl Places {
    /// The same windows, all free.
    fn emptied(&self) -> Self {
        let empty = |window: &Window| Window::new(window.range());
        Self {
            low: empty(&self.low),
            high: self.high.as_ref().map(empty),
            io: empty(&self.io),
        }
    }
}

impl Bus {
    /// All of it, with every device quiet.
    pub(in crate::pci::root) fn save(&mut self) -> Result<BusV1, Refused> {
        self.check_quiet()?;
        self.check_decoding()?;
        let save = |(slot, function): (u8, &Function)| -> Result<_, Refused> {
            Ok(SlotV1 {
                slot,
                config: function.device.config().save(),
                homes: function.bars.iter().map(|bar| bar.home).collect(),
                function: function.device.save().map_err(in_slot(slot))?,
            })
        };
        Ok(BusV1 {
            address: self.address,
            last_slot: self.last_slot,
            slots: self.functions().map(save).collect::<Result<_, _>>()?,
        })
    }

    /// Takes over what was saved, with every device quiet.
    pub(in crate::pci::root) fn restore(&mut self, state: &BusV1) -> Result<(), Refused> {
        self.check_quiet()?;
        if state.last_slot != self.last_slot {
            let (wants, has) = (state.last_slot, self.last_slot);
            let wrong = format!("its last slot for devices is {wants}, and here it is {has}");
            return Err(Refused::because(wrong));
        }
        let saved = self.match_slots(&state.slots)?;
        self.place_again(&saved)?;
        self.address = state.address;
        for (slot, function) in self.functions_mut() {
            let config = function.device.config_mut();
            config
                .restore(&saved[&slot].config)
                .map_err(in_slot(slot))?;
        }
        // Before anything decodes there.
        self.check_decoding()?;
        let io = self.places.io.range();
        for (slot, function) in self.functions_mut() {
            let state = &saved[&slot].function;
            function.device.restore(state).map_err(in_slot(slot))?;
            function.update_bars(&io);
        }
        Ok(())
    }

    fn functions(&self) -> impl Iterator<Item = (u8, &Function)> {
        let slots = (0..).zip(&self.slots);
        slots.filter_map(|(slot, function)| Some((slot, function.as_ref()?)))
    }

    fn functions_mut(&mut self) -> impl Iterator<Item = (u8, &mut Function)> {
        let slots = (0..).zip(&mut self.slots);
        slots.filter_map(|(slot, function)| Some((slot, function.as_mut()?)))
    }

    /// Whether nothing touches guest memory, and nothing is on its way out.
    fn check_quiet(&mut self) -> Result<(), Refused> {
        let leaving = self.leaving.first().map(|(slot, _)| *slot);
        let is_busy = |(slot, function): (u8, &mut Function)| {
            let is_busy = !function.device.is_quiet();
            is_busy.then_some(slot)
        };
        match self.functions_mut().find_map(is_busy).or(leaving) {
            Some(slot) => Err(in_slot(slot)(Refused::because("its device is at work"))),
            None => Ok(()),
        }
    }

    /// What was saved of each slot that is taken, by slot.
    fn match_slots<'a>(&self, saved: &'a [SlotV1]) -> Result<BTreeMap<u8, &'a SlotV1>, Refused> {
        let by_slot: BTreeMap<_, _> = saved.iter().map(|saved| (saved.slot, saved)).collect();
        let wrong = |slot, what: &str| Err(in_slot(slot)(Refused::because(what)));
        let is_taken = |slot| self.functions().any(|(taken, _)| taken == slot);
        for SlotV1 { slot, .. } in saved {
            if !is_taken(*slot) {
                return wrong(*slot, "it is empty here and taken there");
            }
            if saved.iter().filter(|other| other.slot == *slot).count() > 1 {
                return wrong(*slot, "it is there twice");
            }
        }
        match self
            .functions()
            .find(|(slot, _)| !by_slot.contains_key(slot))
        {
            Some((slot, _)) => wrong(slot, "it is taken here and empty there"),
            None => Ok(by_slot),
        }
    }

    /// Places all BARs where they were placed, or none.
    fn place_again(&mut self, saved: &BTreeMap<u8, &SlotV1>) -> Result<(), Refused> {
        let mut places = self.places.emptied();
        for (slot, function) in self.functions() {
            let homes = &saved[&slot].homes;
            let (own, count) = (function.bars.len(), homes.len());
            if own != count {
                let wrong = format!("it has {own} BARs here and {count} there");
                return Err(in_slot(slot)(Refused::because(wrong)));
            }
            for (bar, home) in function.bars.iter().zip(homes) {
                if !places.window(bar.kind).take(*home, bar.size) {
                    let wrong = format!("BAR {} can't be placed at {home:#x}", bar.index);
                    return Err(in_slot(slot)(Refused::because(wrong)));
                }
            }
        }
        self.places = places;
        for (slot, function) in self.functions_mut() {
            for (bar, home) in function.bars.iter_mut().zip(&saved[&slot].homes) {
                bar.home = *home;
            }
        }
        Ok(())
    }

    /// Whether each BAR that is enabled lies in a window, and none on another. The bus
    /// itself gets along with a guest that puts them elsewhere; but no operating system
    /// does, and what was written over a saved state might.
    fn check_decoding(&self) -> Result<(), Refused> {
        let Places { low, high, io } = &self.places;
        let memory = [Some(low), high.as_ref()].into_iter().flatten();
        let memory: Vec<_> = memory.map(Window::range).collect();
        let io = [io.range()];
        let mut placed: Vec<(Space, Range<u64>)> = Vec::new();
        for (slot, function) in self.functions() {
            for bar in &function.bars {
                let Some(start) = function.device.config().decoded(bar.index) else {
                    continue;
                };
                let range = start..start.saturating_add(bar.size);
                let space = bar.kind.space();
                let windows = match space {
                    Space::Memory => &memory[..],
                    Space::Io => &io[..],
                };
                let wrong = |what| {
                    let wrong = format!("BAR {} decodes at {start:#x}, {what}", bar.index);
                    Err(in_slot(slot)(Refused::because(wrong)))
                };
                if !windows.iter().any(|window| holds(window, &range)) {
                    return wrong("outside of its window");
                }
                let overlaps = |(other, there): &(Space, Range<u64>)| {
                    *other == space && there.start < range.end && range.start < there.end
                };
                if placed.iter().any(overlaps) {
                    return wrong("where another does");
                }
                placed.push((space, range));
            }
        }
        Ok(())
    }
}
