//! The memory and clock of a PC's MC146818, as a pure machine: firmware looks there for
//! the time, and for how much memory there is (SeaBIOS and QEMU keep it there).
//!
//! The clock shows UTC and can't be set: the next machine would not know of it. Its
//! alarm never comes.

/// Bytes of it.
const SIZE: usize = 128;

/// Registers: Motorola, "MC146818A" (1984), figure 10; the others are a PC's.
mod register {
    pub(super) const SECONDS: u8 = 0x00;
    pub(super) const MINUTES: u8 = 0x02;
    pub(super) const HOURS: u8 = 0x04;
    pub(super) const DAY_OF_WEEK: u8 = 0x06;
    pub(super) const DAY: u8 = 0x07;
    pub(super) const MONTH: u8 = 0x08;
    pub(super) const YEAR: u8 = 0x09;
    pub(super) const A: u8 = 0x0a;
    pub(super) const B: u8 = 0x0b;
    pub(super) const C: u8 = 0x0c;
    pub(super) const D: u8 = 0x0d;
    /// KiB above 1 MiB, two bytes, at most 63 MiB.
    pub(super) const EXTENDED: u8 = 0x30;
    pub(super) const CENTURY: u8 = 0x32;
    /// 64 KiB above 16 MiB, two bytes.
    pub(super) const ABOVE_16M: u8 = 0x34;
    /// 64 KiB above 4 GiB, three bytes.
    pub(super) const ABOVE_4G: u8 = 0x5b;
}

/// A: a divider for 32768 Hz, and a rate. Bit 7, "update in progress", is never set:
/// whoever asks has one moment's time from there on.
const A_AT_RESET: u8 = 0x26;
/// B: hours go to 24.
const B_24_HOURS: u8 = 1 << 1;
/// B: numbers are binary, not BCD.
const B_BINARY: u8 = 1 << 2;
/// D: time and memory are valid.
const D_VALID: u8 = 1 << 7;

/// How long the moment of a register A lasts, in seconds: a date is read in less.
const MOMENT: u64 = 1;

/// Index, then data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Which register.
    Index,
    /// What is in it.
    Data,
}

/// Memory and clock.
#[derive(Debug, Clone)]
pub struct Cmos {
    memory: [u8; SIZE],
    index: u8,
    /// The time when register A was read, in seconds since 1970.
    moment: u64,
}

impl Cmos {
    /// Of a machine with so many bytes of memory below 4 GiB, and above.
    #[must_use]
    pub fn new(below: u64, above: u64) -> Self {
        let mut cmos = Self {
            memory: [0; SIZE],
            index: 0,
            moment: 0,
        };
        cmos.memory[usize::from(register::A)] = A_AT_RESET;
        cmos.memory[usize::from(register::B)] = B_24_HOURS;
        let extended = (below.saturating_sub(1 << 20) >> 10).min(63 << 10);
        cmos.put(register::EXTENDED, 2, extended);
        cmos.put(register::ABOVE_16M, 2, below.saturating_sub(16 << 20) >> 16);
        cmos.put(register::ABOVE_4G, 3, above >> 16);
        cmos
    }

    fn put(&mut self, at: u8, count: usize, value: u64) {
        let at = usize::from(at);
        self.memory[at..at + count].copy_from_slice(&value.to_le_bytes()[..count]);
    }

    /// Reads a port at a time, in seconds since 1970.
    pub fn read(&mut self, port: Port, data: &mut [u8], now: u64) {
        data.fill(0xff);
        if let (Port::Data, [byte]) = (port, data) {
            *byte = self.value(now);
        }
    }

    /// Writes a port. The clock stays as it is.
    pub fn write(&mut self, port: Port, data: &[u8]) {
        let &[value] = data else { return };
        match port {
            // Bit 7 masks NMIs, of which there are none.
            Port::Index => self.index = value & 0x7f,
            Port::Data => {
                // C and D can't be written.
                if !matches!(self.index, register::C | register::D)
                    && let Some(byte) = self.memory.get_mut(usize::from(self.index))
                {
                    *byte = value;
                }
            }
        }
    }

    fn value(&mut self, now: u64) -> u8 {
        let held = now.checked_sub(self.moment);
        let at = match held {
            Some(0..=MOMENT) => self.moment,
            _ => now,
        };
        let date = Date::of(at);
        let number = match self.index {
            register::SECONDS => date.second,
            register::MINUTES => date.minute,
            register::HOURS => return self.hour(date.hour),
            register::DAY_OF_WEEK => date.day_of_week,
            register::DAY => date.day,
            register::MONTH => date.month,
            register::YEAR => date.year,
            // A PC's BIOS has it in BCD, whatever B says.
            register::CENTURY => return bcd(date.century),
            register::A => {
                self.moment = now;
                return self.memory[usize::from(register::A)] & 0x7f;
            }
            register::C => return 0,
            register::D => return D_VALID,
            index => return self.memory.get(usize::from(index)).copied().unwrap_or(0xff),
        };
        self.number(number)
    }

    fn b(&self) -> u8 {
        self.memory[usize::from(register::B)]
    }

    fn number(&self, number: u8) -> u8 {
        match self.b() & B_BINARY {
            0 => bcd(number),
            _ => number,
        }
    }

    /// Of twelve hours, the second half has bit 7.
    fn hour(&self, hour: u8) -> u8 {
        if self.b() & B_24_HOURS != 0 {
            return self.number(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        self.number((hour + 11) % 12 + 1) | afternoon
    }
}

fn bcd(number: u8) -> u8 {
    ((number / 10 % 10) << 4) | (number % 10)
}

/// A moment in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Date {
    second: u8,
    minute: u8,
    hour: u8,
    /// Sunday is 1.
    day_of_week: u8,
    day: u8,
    month: u8,
    year: u8,
    century: u8,
}

impl Date {
    /// Of seconds since 1970, before the year 10000. Years begin in March here, so that
    /// the day that not every year has is the last one.
    #[expect(clippy::cast_possible_truncation, reason = "each is a remainder")]
    fn of(seconds: u64) -> Self {
        let seconds = seconds % (8000 * 366 * 86400);
        let (days, second) = (seconds / 86400, seconds % 86400);
        // Since 0000-03-01: 719468 days before 1970-01-01.
        let day = days + 719_468;
        let (era, day) = (day / 146_097, day % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        // Months from March on are of 31, 30, 31, 30, 31 days, five and again.
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let year = 400 * era + year + u64::from(month >= 10);
        Self {
            second: (second % 60) as u8,
            minute: (second / 60 % 60) as u8,
            hour: (second / 3600) as u8,
            day_of_week: ((days + 4) % 7 + 1) as u8,
            day: day as u8,
            month: ((month + 2) % 12 + 1) as u8,
            year: (year % 100) as u8,
            century: (year / 100 % 100) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(cmos: &mut Cmos, index: u8, now: u64) -> u8 {
        cmos.write(Port::Index, &[index | 0x80]);
        let mut data = [0];
        cmos.read(Port::Data, &mut data, now);
        data[0]
    }

    fn date(now: u64) -> [u8; 8] {
        let mut cmos = Cmos::new(0, 0);
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| at(&mut cmos, index, now))
    }

    #[test]
    fn dates_are_the_calendars() {
        // date -u -d @N
        assert_eq!(date(0), [0x19, 0x70, 1, 1, 5, 0, 0, 0]);
        assert_eq!(
            date(951_782_399),
            [0x20, 0x00, 0x02, 0x28, 2, 0x23, 0x59, 0x59]
        );
        assert_eq!(date(951_782_400), [0x20, 0x00, 0x02, 0x29, 3, 0, 0, 0]);
        assert_eq!(
            date(1_798_761_599),
            [0x20, 0x26, 0x12, 0x31, 5, 0x23, 0x59, 0x59]
        );
        assert_eq!(date(1_798_761_600), [0x20, 0x27, 1, 1, 6, 0, 0, 0]);
        assert_eq!(date(4_107_542_400), [0x21, 0x00, 3, 1, 2, 0, 0, 0]);
    }

    #[test]
    fn numbers_are_as_b_says() {
        let mut cmos = Cmos::new(0, 0);
        let now = 951_782_399;
        cmos.write(Port::Index, &[0x0b]);
        cmos.write(Port::Data, &[1 << 2]);
        assert_eq!(at(&mut cmos, 2, now), 59);
        assert_eq!(at(&mut cmos, 4, now), 0x80 | 11);
        assert_eq!(at(&mut cmos, 4, 0), 12, "midnight");
        assert_eq!(at(&mut cmos, 4, 12 * 3600), 0x80 | 12, "noon");
    }

    #[test]
    fn a_date_is_read_as_of_one_moment() {
        let mut cmos = Cmos::new(0, 0);
        assert_eq!(at(&mut cmos, 0x0a, 59) & 0x80, 0);
        assert_eq!(at(&mut cmos, 0, 60), 0x59);
        assert_eq!(at(&mut cmos, 2, 60), 0);
        assert_eq!(at(&mut cmos, 0, 61), 0x01, "and that is over at some time");
    }

    #[test]
    fn memory_is_told_and_the_rest_is_kept() {
        let mut cmos = Cmos::new(2 << 30, 5 << 30);
        assert_eq!(at(&mut cmos, 0x34, 0), 0x00);
        assert_eq!(at(&mut cmos, 0x35, 0), 0x7f);
        assert_eq!(
            [0x5b, 0x5c, 0x5d].map(|i| at(&mut cmos, i, 0)),
            [0, 0x40, 1]
        );
        assert_eq!(at(&mut cmos, 0x31, 0), 0xfc);
        for index in [0x0c, 0x0d, 0x0f] {
            cmos.write(Port::Index, &[index]);
            cmos.write(Port::Data, &[0x11]);
        }
        let read = [0x0c, 0x0d, 0x0f].map(|index| at(&mut cmos, index, 0));
        assert_eq!(read, [0, 0x80, 0x11]);
    }

    proptest! {
        #[test]
        fn any_time_is_a_date(now: u64, index: u8, data: [u8; 2]) {
            let date = Date::of(now);
            prop_assert!((1..=31).contains(&date.day) && (1..=12).contains(&date.month));
            prop_assert!((1..=7).contains(&date.day_of_week) && date.hour < 24);
            let mut cmos = Cmos::new(now, now);
            cmos.write(Port::Index, &[index]);
            cmos.write(Port::Data, &data[..1]);
            cmos.write(Port::Data, &data);
            cmos.read(Port::Data, &mut [0; 4], now);
            cmos.read(Port::Data, &mut [0], now);
        }
    }
}
