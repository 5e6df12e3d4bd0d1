//! The header `grpc-timeout`: how much time a call has left, as a number of one to eight digits and a unit.
//!
//! ```text
//!   TimeoutValue TimeoutUnit        H hours   M minutes   S seconds   m ms   u µs   n ns
//!        15          S
//! ```
//! Specification: grpc/grpc, doc/PROTOCOL-HTTP2.md, "Timeout". The clock starts when the headers arrive.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use smallvec::SmallVec;

/// The header's name.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

const DIGITS_MAX: usize = 8;
const NUMBER_MAX: u64 = 10_u64.pow(DIGITS_MAX as u32) - 1;

/// Units from the finest to the coarsest, with their length in nanoseconds.
const UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60 * 1_000_000_000),
    (b'H', 3_600 * 1_000_000_000),
];

// The longest that can be said, 99 999 999 hours, is a duration like any other: about 11 400 years.
const _: () = assert!(NUMBER_MAX < u64::MAX / 3_600);

/// The time that a caller gives; `None` when the value is not a timeout.
///
/// A call with such a value is treated as one without a deadline, as tonic does: the client meant well, and to refuse
/// the call would break what works elsewhere. Zero is taken as it stands: that call is over before it begins.
#[must_use]
pub fn parse(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    // No sign, no space: `str::parse` alone would take "+1".
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let (_, unit_ns) = UNITS.iter().find(|(letter, _)| letter == unit)?;
    let number = digits.iter().fold(0_u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    let nanoseconds = u128::from(number) * u128::from(*unit_ns);
    let seconds = u64::try_from(nanoseconds / 1_000_000_000).expect("asserted above");
    Some(Duration::new(seconds, (nanoseconds % 1_000_000_000) as u32))
}

/// What is left of a caller's time, for the call that is made on its behalf: digits and a letter.
///
/// Rounded up to two digits that matter, as gRPC's own clients do, so that call after call says the same and the peer
/// recognises it. Up to a tenth too long; it only tells the peer when work is certainly in vain, whoever calls ends the
/// call itself.
#[must_use]
pub fn format(remaining: Duration) -> SmallVec<[u8; 16]> {
    let nanoseconds = u64::try_from(remaining.as_nanos()).unwrap_or(u64::MAX); // 584 years are as good as more.
    let (letter, number) = UNITS
        .iter()
        .map(|(letter, unit_ns)| (*letter, round_up(nanoseconds.div_ceil(*unit_ns))))
        .find(|(_, number)| *number <= NUMBER_MAX)
        .expect("hours have room for that");
    decimal(number, letter)
}

/// What `{number}{letter}` would be, without the machinery of formatting: this is said with every call.
fn decimal(number: u64, letter: u8) -> SmallVec<[u8; 16]> {
    let mut text = SmallVec::new();
    let mut unit = 10_u64.pow(number.checked_ilog10().unwrap_or(0));
    while unit > 0 {
        text.push(b'0' + (number / unit % 10) as u8);
        unit /= 10;
    }
    text.push(letter);
    text
}

/// The next number that has no more than two digits before its zeros.
fn round_up(number: u64) -> u64 {
    let unit = 10_u64.pow(number.checked_ilog10().unwrap_or(0).saturating_sub(1));
    number.div_ceil(unit).saturating_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<Duration> {
        parse(&HeaderValue::from_bytes(text.as_bytes()).unwrap())
    }

    #[test]
    fn every_unit_is_understood() {
        for (text, expected) in [
            ("1H", Duration::from_secs(3_600)),
            ("2M", Duration::from_secs(120)),
            ("15S", Duration::from_secs(15)),
            ("250m", Duration::from_millis(250)),
            ("00000007u", Duration::from_micros(7)),
            ("99999999n", Duration::from_nanos(99_999_999)),
            ("0n", Duration::ZERO),
            ("99999999H", Duration::from_secs(99_999_999 * 3_600)),
        ] {
            assert_eq!(parsed(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_timeout_is_ignored() {
        for text in
            ["", "S", "1", "1s", "1h", "123456789S", "-1S", "+1S", " 1S", "1 S", "1S ", "1.5S", "0x1S", "1SS", "é"]
        {
            assert_eq!(parsed(text), None, "{text:?}");
        }
        assert_eq!(parse(&HeaderValue::from_bytes(b"\xff\xffS").unwrap()), None);
    }

    #[test]
    fn the_finest_unit_with_room_is_used_and_two_digits_matter() {
        for (remaining, expected) in [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(7), "7n"),
            (Duration::from_nanos(98_765_432), "99000000n"),
            (Duration::from_nanos(99_999_999), "100000u"),
            (Duration::from_nanos(100_000_001), "110000u"),
            (Duration::from_micros(4_999_700), "5000000u"),
            (Duration::from_secs(5), "5000000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(100_000_000), "1700000M"),
            (Duration::from_secs(60 * 100_000_000), "1700000H"),
            (Duration::MAX, "5200000H"),
        ] {
            assert_eq!(std::str::from_utf8(&format(remaining)), Ok(expected), "{remaining:?}");
        }
    }

    #[test]
    fn what_is_passed_on_is_never_shorter_and_at_most_a_tenth_longer() {
        let mut remaining = Duration::from_nanos(1);
        while remaining < Duration::from_secs(5_000_000 * 3_600) {
            let passed_on = parse(&HeaderValue::from_bytes(&format(remaining)).unwrap()).unwrap();
            assert!(passed_on >= remaining, "{remaining:?}");
            assert!((passed_on - remaining).as_nanos() * 10 <= remaining.as_nanos(), "{remaining:?}");
            remaining = remaining * 17 / 10 + Duration::from_nanos(3);
        }
    }
}
