//! The header `grpc-timeout`: how much time a call has left, as a number of one to eight digits and a unit.
//!
//! ```text
//!   TimeoutValue TimeoutUnit        H hours   M minutes   S seconds   m ms   u µs   n ns
//!        15          S
//! ```
//! Specification: grpc/grpc, doc/PROTOCOL-HTTP2.md, "Timeout". The clock starts when the headers arrive.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

/// The header's name.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

const DIGITS_MAX: usize = 8;
const NUMBER_MAX: u128 = 10_u128.pow(DIGITS_MAX as u32) - 1;

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
const _: () = assert!(NUMBER_MAX * 3_600 < u64::MAX as u128);

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

/// What is left of a caller's time, for the call that is made on its behalf.
///
/// In the finest unit that has room, rounded down, so that nobody works past the caller's own deadline; the error is
/// less than a hundred-thousandth. The value is never put into the peer's table of headers: it differs with every call.
#[must_use]
pub fn format(remaining: Duration) -> HeaderValue {
    let nanoseconds = remaining.as_nanos();
    let (letter, number) = UNITS
        .iter()
        .map(|(letter, unit_ns)| (*letter, nanoseconds / u128::from(*unit_ns)))
        .find(|(_, number)| *number <= NUMBER_MAX)
        .unwrap_or((b'H', NUMBER_MAX));
    let text = format!("{number}{}", char::from(letter));
    let mut value = HeaderValue::try_from(text).expect("digits and a letter");
    value.set_sensitive(true);
    value
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
    fn the_finest_unit_with_room_is_used() {
        for (remaining, expected) in [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_000), "100000u"),
            (Duration::from_secs(5), "5000000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(100_000_000), "1666666M"),
            (Duration::from_secs(60 * 100_000_000), "1666666H"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(format(remaining), expected, "{remaining:?}");
            assert!(format(remaining).is_sensitive());
        }
    }

    #[test]
    fn what_is_passed_on_is_never_longer_and_hardly_shorter() {
        let mut remaining = Duration::from_nanos(1);
        while remaining < Duration::from_secs(99_999_999 * 3_600) {
            let passed_on = parse(&format(remaining)).unwrap();
            assert!(passed_on <= remaining, "{remaining:?}");
            assert!((remaining - passed_on).as_nanos() * 100_000 <= remaining.as_nanos(), "{remaining:?}");
            remaining = remaining * 17 / 10 + Duration::from_nanos(3);
        }
    }
}
