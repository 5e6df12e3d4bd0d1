//! The fields of a protobuf message, one after the other, without decoding what is in them.
//!
//! ```text
//!   message   ├ number, wire type ┼ payload ┤├ number, wire type ┼ payload ┤ …
//! ```
//! For whoever wants two or three fields of a message and has to pass the rest on untouched
//! (<https://protobuf.dev/programming-guides/encoding/>).

use prost::encoding::{WireType, decode_key, decode_varint};

/// One field as it stands in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its number.
    pub number: u32,
    /// The payload of a string, of bytes or of a message; `None` for numbers.
    pub bytes: Option<&'a [u8]>,
}

/// The message is not protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The fields of `message` in the order in which they stand; ends with the first that is malformed. O(1) for each,
/// whatever its size.
pub fn of(message: &[u8]) -> impl Iterator<Item = Result<Field<'_>, Malformed>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = take(&mut rest);
        if field.is_none() {
            rest = &[];
        }
        Some(field.ok_or(Malformed))
    })
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<Field<'a>> {
    let (number, wire_type) = decode_key(rest).ok()?;
    let payload_bytes = match wire_type {
        WireType::Varint => {
            decode_varint(rest).ok()?;
            0
        }
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        WireType::LengthDelimited => usize::try_from(decode_varint(rest).ok()?).ok()?,
        // Groups are gone since proto2, and no message of ours has any.
        WireType::StartGroup | WireType::EndGroup => return None,
    };
    let payload = rest.split_off(..payload_bytes)?;
    Some(Field { number, bytes: (wire_type == WireType::LengthDelimited).then_some(payload) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_in_their_order_and_numbers_are_passed_over() {
        // 1: "ab", 2: varint 300, 3: eight bytes, 4: four bytes, 1: ""
        let message = b"\x0a\x02ab\x10\xac\x02\x19\0\0\0\0\0\0\0\0\x25\0\0\0\0\x0a\x00";
        let found: Vec<_> = of(message).map(|field| field.map(|field| (field.number, field.bytes))).collect();
        let expected: [(u32, Option<&[u8]>); 5] = [(1, Some(b"ab")), (2, None), (3, None), (4, None), (1, Some(b""))];
        assert_eq!(found, expected.map(Ok));
    }

    #[test]
    fn what_is_no_field_ends_the_walk() {
        for bad in
            [b"\x0a".as_slice(), b"\x0a\x03ab", b"\x10\x80", b"\x19\0", b"\x25\0\0", b"\x0b", b"\x00\x00", b"\xff"]
        {
            let message = [b"\x0a\x01x", bad].concat();
            let found: Vec<_> = of(&message).collect();
            assert_eq!(found, [Ok(Field { number: 1, bytes: Some(b"x") }), Err(Malformed)], "{bad:x?}");
        }
    }
}
