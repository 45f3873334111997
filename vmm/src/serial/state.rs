//! The UART, saved: its registers and the input that the guest has not read. Output is
//! the log's, and who is attached is this process's.

use serde::{Deserialize, Serialize};
use vm_superio::serial::SerialState;

use super::{RECEIVED, Serial, Uart};
use crate::snapshot::Refused;

/// Bits of the interrupt enable register. PC16550D, section 8.7.
const ENABLES: u8 = 0b1111;
/// Interrupt identification: nothing, room for output, input, or both.
const REASONS: [u8; 4] = [0b001, 0b010, 0b100, 0b110];
/// Line status: room for output, and the line idle. It always is. Section 8.4.
const IDLE: u8 = 0b0110_0000;

/// [`Serial`], saved. Registers are named as in PC16550D, section 8.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialV1 {
    /// Divisor latch.
    pub divisor: u16,
    /// Interrupt enable.
    pub interrupt_enable: u8,
    /// Interrupt identification, without the bits of the FIFOs.
    pub interrupt_identification: u8,
    /// Line control.
    pub line_control: u8,
    /// Line status.
    pub line_status: u8,
    /// Modem control.
    pub modem_control: u8,
    /// Modem status.
    pub modem_status: u8,
    /// Scratch.
    pub scratch: u8,
    /// Input that waits, the oldest byte first.
    pub input: Vec<u8>,
}

impl From<SerialState> for SerialV1 {
    fn from(state: SerialState) -> Self {
        Self {
            divisor: u16::from_le_bytes([state.baud_divisor_low, state.baud_divisor_high]),
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }
}

impl SerialV1 {
    /// The register machine's own form, if a guest could have come there.
    fn check(&self) -> Result<SerialState, Refused> {
        let refuse =
            |what: &str, value| Err(Refused::because(format!("{what} can't be {value:#x}")));
        if self.interrupt_enable & !ENABLES != 0 {
            return refuse("interrupt enable", self.interrupt_enable);
        }
        if !REASONS.contains(&self.interrupt_identification) {
            return refuse("interrupt identification", self.interrupt_identification);
        }
        let received = if self.input.is_empty() { 0 } else { RECEIVED };
        if self.line_status != IDLE | received {
            return refuse("line status", self.line_status);
        }
        let [baud_divisor_low, baud_divisor_high] = self.divisor.to_le_bytes();
        Ok(SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: self.interrupt_enable,
            interrupt_identification: self.interrupt_identification,
            line_control: self.line_control,
            line_status: self.line_status,
            modem_control: self.modem_control,
            modem_status: self.modem_status,
            scratch: self.scratch,
            in_buffer: self.input.clone(),
        })
    }
}

impl Serial {
    /// The registers, and the input that waits.
    #[must_use]
    pub fn save(&self) -> SerialV1 {
        self.lock().state().into()
    }

    /// Takes over what was saved. An interrupt that waits is raised again: at worst the
    /// guest looks, and finds that it has seen to it.
    ///
    /// # Errors
    /// When no UART is in such a state, or there is more input than it has room for.
    pub fn restore(&self, state: &SerialV1) -> Result<(), Refused> {
        let state = state.check()?;
        let uart = Uart::from_state(
            &state,
            self.interrupt.clone(),
            self.input_read.clone(),
            self.sink.clone(),
        );
        *self.lock() = uart.map_err(|error| Refused::because(error.to_string()))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serial::{INTERRUPT_ENABLE, Output};
    use proptest::prelude::*;

    fn serial() -> Serial {
        let file = tempfile::tempfile().expect("a file");
        Serial::new(Output::log(file).expect("a log")).expect("a UART")
    }

    /// Reads all registers so often that all input is read.
    fn all(serial: &Serial) -> Vec<u8> {
        let read = |register| {
            let mut byte = [0];
            serial.read(register, &mut byte);
            byte[0]
        };
        (0..70).flat_map(|_| (0..8).map(read)).collect()
    }

    proptest! {
        #[test]
        fn a_copy_answers_as_the_first_does(
            writes in prop::collection::vec((0u8..8, any::<u8>()), 0..24),
            input in prop::collection::vec(any::<u8>(), 0..80),
            reads in prop::collection::vec(0u8..8, 0..8),
        ) {
            let first = serial();
            for (register, value) in &writes {
                first.write(*register, &[*value]);
            }
            first.input(&input);
            for register in reads {
                first.read(register, &mut [0]);
            }
            let json = serde_json::to_string(&first.save()).expect("JSON");
            let copy = serial();
            copy.restore(&serde_json::from_str(&json).expect("a state")).expect("taken");
            prop_assert_eq!(copy.save(), first.save());
            prop_assert_eq!(all(&copy), all(&first));
        }
    }

    #[test]
    fn input_that_waits_interrupts_again() {
        let first = serial();
        first.write(INTERRUPT_ENABLE, &[RECEIVED]);
        first.input(b"x");
        let copy = serial();
        copy.restore(&first.save()).expect("taken");
        assert!(copy.interrupt().read().is_ok());
    }

    #[test]
    fn what_no_uart_is_in_is_refused_and_changes_nothing() {
        let serial = serial();
        serial.input(b"abc");
        let now = serial.save();
        for (what, state) in [
            (
                "interrupt enable can't be 0x10",
                SerialV1 {
                    interrupt_enable: 0x10,
                    ..now.clone()
                },
            ),
            (
                "interrupt identification can't be 0x3",
                SerialV1 {
                    interrupt_identification: 3,
                    ..now.clone()
                },
            ),
            (
                "line status can't be 0x61",
                SerialV1 {
                    input: Vec::new(),
                    ..now.clone()
                },
            ),
            (
                "No space left in FIFO",
                SerialV1 {
                    input: vec![0; 65],
                    ..now.clone()
                },
            ),
        ] {
            let refused = serial.restore(&state).expect_err("not possible");
            assert_eq!(refused.to_string(), what);
            assert_eq!(serial.save(), now);
        }
    }
}
