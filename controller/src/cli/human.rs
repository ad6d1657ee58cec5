//! Numbers, sizes and times as people read them.

use jiff::{SignedDuration, Timestamp};

/// `1 file`, `12,345 files`: the plural is the singular with an `s`.
#[must_use]
pub fn count(number: u64, singular: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {singular}{plural}", grouped(number))
}

/// Thousands separated by commas.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Decimal units, as disks and clouds count: `999 B`, `2.2 MB`, `31 GB`.
#[must_use]
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if number < 1000 {
        return format!("{number} B");
    }
    // Tenths of the unit, in integers, so that 999,950 does not become "1000.0 kB".
    let mut tenths = u128::from(number) * 10;
    for (index, unit) in UNITS.iter().enumerate() {
        tenths = (tenths + 500) / 1000;
        let last = index + 1 == UNITS.len();
        if tenths < 100 {
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
        let whole = (tenths + 5) / 10;
        if whole < 1000 || last {
            return format!("{whole} {unit}");
        }
    }
    format!("{number} B")
}

/// `4.2s`, `1m 5s`, `2h 3m`, `1d 4h`: two units at most.
#[must_use]
pub fn duration(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match seconds {
        0..10 => format!("{:.1}s", duration.as_secs_f64().max(0.0)),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Time from one moment to another.
#[must_use]
pub fn between(from: Timestamp, to: Timestamp) -> String {
    duration(to.duration_since(from))
}

/// UTC to the second: `2026-11-23 20:52:58Z`.
#[must_use]
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals_and_groups() {
        assert_eq!(count(0, "file"), "0 files");
        assert_eq!(count(1, "file"), "1 file");
        assert_eq!(count(12_345, "file"), "12,345 files");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(999), "999");
    }

    #[test]
    fn sizes() {
        for (number, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (2_200_000, "2.2 MB"),
            (3_100_000_000, "3.1 GB"),
            (31_000_000_000, "31 GB"),
            (999_950, "1.0 MB"),
            (u64::MAX, "18 EB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn durations() {
        for (millis, text) in [
            (-5, "0.0s"),
            (4_200, "4.2s"),
            (59_900, "59s"),
            (65_000, "1m 5s"),
            (7_380_000, "2h 3m"),
            (100_800_000, "1d 4h"),
        ] {
            assert_eq!(duration(SignedDuration::from_millis(millis)), text);
        }
    }
}
