//! Numbers as people read them: three digits, a unit, and no more.

use std::fmt;

/// A time in nanoseconds: `950 ns`, `12.3 µs`, `1.50 s`.
#[derive(Clone, Copy)]
pub(super) struct Nanoseconds(pub(super) f64);

impl fmt::Display for Nanoseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(f64, &str); 4] = [(1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns")];
        // 999.6 µs would be written as 1000 µs; it is 1.00 ms.
        let fits = |(size, _): &&(f64, &str)| self.0 >= size * 0.9995;
        let (size, unit) = UNITS.iter().find(fits).unwrap_or(&UNITS[3]);
        write!(f, "{} {unit}", three_digits(self.0 / size))
    }
}

/// A whole number, or a rate: `1,234,567`.
#[derive(Clone, Copy)]
pub(super) struct Grouped(pub(super) f64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.abs() < 99.95 && self.0.fract() != 0.0 {
            return f.write_str(&three_digits(self.0));
        }
        let digits = format!("{:.0}", self.0);
        for (index, digit) in digits.char_indices() {
            let behind = digits.len() - index;
            if index > 0 && behind.is_multiple_of(3) && !digits[..index].ends_with('-') {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// A number at the end of an axis, where there is little room: `20k`, `1.5M`.
#[derive(Clone, Copy)]
pub(super) struct Short(pub(super) f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(f64, &str); 4] = [(1e9, "G"), (1e6, "M"), (1e3, "k"), (0.0, "")];
        let (size, unit) = UNITS.iter().find(|(size, _)| self.0 >= *size).unwrap_or(&UNITS[3]);
        // Ticks are 1, 2 or 5 times a power of ten: what is behind the third digit is rounding.
        let value = self.0 / size.max(1.0);
        write!(f, "{}{unit}", (value * 1e3).round() / 1e3)
    }
}

/// A time in nanoseconds at the end of an axis: `0`, `500 µs`, `1 ms`.
#[derive(Clone, Copy)]
pub(super) struct ShortTime(pub(super) f64);

impl fmt::Display for ShortTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(f64, &str); 4] = [(1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns")];
        if self.0 == 0.0 {
            return f.write_str("0");
        }
        // A tick may be a hair below the round value that it is.
        let (size, unit) = UNITS.iter().find(|(size, _)| self.0 >= size * 0.9995).unwrap_or(&UNITS[3]);
        write!(f, "{} {unit}", (self.0 / size * 1e3).round() / 1e3)
    }
}

/// A size: `512 B`, `1.50 KiB`, `3.00 GiB`.
#[derive(Clone, Copy)]
pub(crate) struct Size(pub(crate) f64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(f64, &str); 4] = [(1_073_741_824.0, "GiB"), (1_048_576.0, "MiB"), (1_024.0, "KiB"), (1.0, "B")];
        let (size, unit) = UNITS.iter().find(|(size, _)| self.0 >= *size).unwrap_or(&UNITS[3]);
        write!(f, "{} {unit}", Grouped(self.0 / size))
    }
}

/// A share from 0 to 1: `12.3 %`.
#[derive(Clone, Copy)]
pub(super) struct Share(pub(super) f64);

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", three_digits(self.0 * 100.0))
    }
}

/// A moment in milliseconds since the Unix epoch: `2026-11-22 14:03:05 UTC`.
#[derive(Clone, Copy)]
pub(super) struct Moment(pub(super) u64);

impl fmt::Display for Moment {
    /// Days to a date: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1000;
        let days = seconds / 86_400 + 719_468; // from 0000-03-01, so that leap days end a year
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}

/// 0.123, 1.23, 12.3, 123: as many digits as a measurement on a shared machine can bear.
fn three_digits(value: f64) -> String {
    let places = match value.abs() {
        size if size < 0.0005 && size > 0.0 => return format!("{value:.1e}"),
        size if size < 0.9995 => 3,
        size if size < 9.995 => 2,
        size if size < 99.95 => 1,
        _ => 0,
    };
    if value == 0.0 { "0".to_owned() } else { format!("{value:.places$}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_the_unit_that_fits() {
        let shown = [0.0, 7.0, 950.0, 999.6, 1e3, 12_345.0, 999_600.0, 1.5e9, 90e9];
        let shown = shown.map(|ns| Nanoseconds(ns).to_string());
        assert_eq!(
            shown,
            ["0 ns", "7.00 ns", "950 ns", "1.00 µs", "1.00 µs", "12.3 µs", "1.00 ms", "1.50 s", "90.0 s"]
        );
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let shown = [0.0, 7.0, 12.345, 999.0, 1_000.0, 1_234_567.4, -123_456.0].map(|value| Grouped(value).to_string());
        assert_eq!(shown, ["0", "7", "12.3", "999", "1,000", "1,234,567", "-123,456"]);
    }

    #[test]
    fn ticks_sizes_and_shares_are_short() {
        let times = [0.0, 0.5, 999.999_9, 500_000.0, 1.5e9].map(|ns| ShortTime(ns).to_string());
        assert_eq!(times, ["0", "0.5 ns", "1 µs", "500 µs", "1.5 s"]);
        assert_eq!(
            [0.0, 0.2, 500.0, 20_000.0, 1.5e6].map(|value| Short(value).to_string()),
            ["0", "0.2", "500", "20k", "1.5M"]
        );
        assert_eq!(
            [0.0, 100.0, 1_536.0, 2_147_483_648.0].map(|value| Size(value).to_string()),
            ["0 B", "100 B", "1.50 KiB", "2 GiB"]
        );
        assert_eq!(
            [0.0, 0.00001, 0.5, 1.0].map(|value| Share(value).to_string()),
            ["0 %", "0.001 %", "50.0 %", "100 %"]
        );
    }

    #[test]
    fn moments_are_dates_also_on_leap_days() {
        let shown = [0, 951_782_400_000, 1_795_359_785_000].map(|ms| Moment(ms).to_string());
        assert_eq!(shown, ["1970-01-01 00:00:00 UTC", "2000-02-29 00:00:00 UTC", "2026-11-22 15:03:05 UTC"]);
        assert!(Moment(u64::MAX).to_string().ends_with("UTC"), "whatever a file says");
    }
}
