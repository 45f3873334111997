//! ACPI's fixed power management registers, as far as firmware uses them itself: PM1
//! control, to switch the machine off, and the PM timer (ACPI 6.5, sections 4.8.3.2.1
//! and 4.8.3.3). The tables name neither: for a guest that runs the machine is
//! hardware-reduced, like any other of ours.

/// The PM timer's frequency in Hz.
const FREQUENCY: u128 = 3_579_545;

/// PM1 control, table 4.16.
mod control {
    pub(super) const SLEEP_TYPE: u16 = 0x7 << 10;
    pub(super) const SLEEP_ENABLE: u16 = 1 << 13;
}

/// The sleep type that is S5 on QEMU's boards, which is what their firmware writes.
const S5: u16 = 0;

/// The value of the PM timer so many nanoseconds after it was zero: 32 bits, which wrap.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "it wraps")]
pub fn timer(nanoseconds: u64) -> u32 {
    (u128::from(nanoseconds) * FREQUENCY / 1_000_000_000) as u32
}

/// PM1 control.
#[derive(Debug, Default)]
pub struct Control(u16);

impl Control {
    /// Reads it. "Sleep enable" is written only.
    pub fn read(&self, data: &mut [u8]) {
        let value = self.0.to_le_bytes();
        data.fill(0);
        data.iter_mut().zip(value).for_each(|(to, from)| *to = from);
    }

    /// Writes it. Returns whether the machine is to be switched off.
    #[must_use]
    pub fn write(&mut self, data: &[u8]) -> bool {
        let &[low, high] = data else { return false };
        let value = u16::from_le_bytes([low, high]);
        self.0 = value & !control::SLEEP_ENABLE;
        value & (control::SLEEP_ENABLE | control::SLEEP_TYPE) == control::SLEEP_ENABLE | S5 << 10
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_runs_at_its_frequency_and_wraps() {
        assert_eq!(timer(0), 0);
        assert_eq!(timer(1_000_000_000), 3_579_545);
        // Twenty minutes: 2^32 / 3579545 Hz are 1199.86 s.
        let twenty_minutes = timer(1_200_000_000_000);
        assert_eq!(u64::from(twenty_minutes), 1200 * 3_579_545 - (1 << 32));
        let _ = timer(u64::MAX);
    }

    #[test]
    fn only_s5_switches_off() {
        let mut control = Control::default();
        // SCI enable, as firmware does: kept.
        assert!(!control.write(&[1, 0]));
        let mut data = [0; 2];
        control.read(&mut data);
        assert_eq!(data, [1, 0]);
        assert!(!control.write(&[0, 0x20 | 1 << 2]), "S3");
        assert!(!control.write(&[0x20]));
        assert!(control.write(&[1, 0x20]));
        control.read(&mut data);
        assert_eq!(data, [1, 0]);
        control.read(&mut [0; 4]);
    }
}
