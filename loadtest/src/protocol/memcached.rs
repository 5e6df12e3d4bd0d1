//! memcached: the classic text protocol. Pure.
//!
//! ```text
//!   get KEY CRLF                                   VALUE KEY FLAGS BYTES CRLF value CRLF END CRLF   or   END CRLF
//!   set KEY 0 TTL_S BYTES CRLF value CRLF          STORED CRLF
//!   delete KEY CRLF                                DELETED or NOT_FOUND CRLF
//!                                                  ERROR, CLIENT_ERROR text, SERVER_ERROR text CRLF     for any
//! ```
//! Specification: memcached/memcached, doc/protocol.txt.

use bytes::{Buf as _, BufMut as _, BytesMut};

use super::{Entry, Failure, Outcome, ServedBy, Verb, pipeline::Garbled};

/// The longest key, in bytes.
const KEY_BYTES_MAX: usize = 250;

/// The longest line: a value's head, or an error's text.
const LINE_BYTES_MAX: usize = 2 << 10;

/// A life that is longer counts as a date, so this is the longest that can be said.
const TTL_SECONDS_MAX: u64 = 30 * 24 * 3600;

/// Writes the command for one entry.
///
/// # Errors
/// A key that memcached does not take.
pub(super) fn encode(verb: Verb, entry: &Entry, out: &mut BytesMut) -> Result<(), Failure> {
    entry.name.with(|name| {
        let is_legal = name.len() <= KEY_BYTES_MAX && !name.iter().any(|byte| byte.is_ascii_control() || *byte == b' ');
        if !is_legal {
            let text = "memcached takes keys of up to 250 bytes without spaces and control characters".to_owned();
            return Err(Failure { status: "INVALID_ARGUMENT".into(), text, is_undone: true });
        }
        match verb {
            Verb::Get => out.put_slice(&[b"get ", name, b"\r\n"].concat()),
            Verb::Delete => out.put_slice(&[b"delete ", name, b"\r\n"].concat()),
            Verb::Put => {
                let ttl_s = entry.ttl_ms.div_ceil(1000).min(TTL_SECONDS_MAX);
                out.put_slice(b"set ");
                out.put_slice(name);
                out.put_slice(format!(" 0 {ttl_s} {}\r\n", entry.value.len()).as_bytes());
                out.put_slice(&entry.value);
                out.put_slice(b"\r\n");
            }
        }
        Ok(())
    })
}

/// The next answer, if all of it is there.
pub(super) fn decode(verb: Verb, input: &mut BytesMut) -> Result<Option<Outcome>, Garbled> {
    let Some(end) = input.windows(2).position(|pair| pair == b"\r\n") else {
        return if input.len() > LINE_BYTES_MAX { Err(Garbled) } else { Ok(None) };
    };
    let line = std::str::from_utf8(&input[..end]).map_err(|_| Garbled)?;
    let mut words = line.split(' ');
    let outcome = match (words.next().unwrap_or_default(), verb) {
        ("VALUE", Verb::Get) => {
            let bytes = words.nth(2).and_then(|word| word.parse::<usize>().ok()).ok_or(Garbled)?;
            return value(input, end + 2, bytes);
        }
        ("END", Verb::Get) => Outcome::Miss,
        ("STORED", Verb::Put) | ("DELETED" | "NOT_FOUND", Verb::Delete) => Outcome::Done,
        (kind @ ("ERROR" | "CLIENT_ERROR" | "SERVER_ERROR"), _) => Outcome::Failed(kind.to_owned().into()),
        _ => return Err(Garbled),
    };
    input.advance(end + 2);
    Ok(Some(outcome))
}

fn value(input: &mut BytesMut, from: usize, bytes: usize) -> Result<Option<Outcome>, Garbled> {
    const TAIL: &[u8] = b"\r\nEND\r\n";
    if input.len() < from + bytes + TAIL.len() {
        return Ok(None);
    }
    input.advance(from);
    let value = input.split_to(bytes).freeze();
    let tail = input.split_to(TAIL.len());
    if &tail[..] != TAIL {
        return Err(Garbled);
    }
    Ok(Some(Outcome::Hit { tier: ServedBy::Unspecified, value }))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::workload::Name;

    fn encoded(verb: Verb, name: &'static str, value: &'static str, ttl_ms: u64) -> Result<String, Failure> {
        let entry = Entry { name: Name::Text(name.into()), value: Bytes::from(value), ttl_ms };
        let mut out = BytesMut::new();
        encode(verb, &entry, &mut out)?;
        Ok(String::from_utf8(out.to_vec()).unwrap())
    }

    fn decoded(verb: Verb, bytes: &[u8]) -> (Result<Option<Outcome>, Garbled>, usize) {
        let mut input = BytesMut::from(bytes);
        let found = decode(verb, &mut input);
        (found, input.len())
    }

    #[test]
    fn commands_are_lines_and_a_life_is_rounded_up_to_seconds() {
        assert_eq!(encoded(Verb::Get, "key", "", 0).unwrap(), "get key\r\n");
        assert_eq!(encoded(Verb::Put, "key", "abc", 1001).unwrap(), "set key 0 2 3\r\nabc\r\n");
        assert_eq!(encoded(Verb::Delete, "key", "", 0).unwrap(), "delete key\r\n");
    }

    #[test]
    fn a_key_that_would_break_the_line_is_refused_before_it_is_sent() {
        for name in ["a b", "a\r\nflush_all", "a\0"] {
            assert!(encoded(Verb::Get, name, "", 0).unwrap_err().is_undone);
        }
    }

    #[test]
    fn answers_are_hits_misses_done_or_failed() {
        let hit = Outcome::Hit { tier: ServedBy::Unspecified, value: Bytes::from_static(b"a\r\nb") };
        assert_eq!(decoded(Verb::Get, b"VALUE key 0 4\r\na\r\nb\r\nEND\r\nE"), (Ok(Some(hit)), 1));
        assert_eq!(decoded(Verb::Get, b"END\r\n"), (Ok(Some(Outcome::Miss)), 0));
        assert_eq!(decoded(Verb::Put, b"STORED\r\n"), (Ok(Some(Outcome::Done)), 0));
        assert_eq!(decoded(Verb::Delete, b"NOT_FOUND\r\n"), (Ok(Some(Outcome::Done)), 0));
        let full = Outcome::Failed("SERVER_ERROR".into());
        assert_eq!(decoded(Verb::Put, b"SERVER_ERROR out of memory\r\n"), (Ok(Some(full)), 0));
    }

    #[test]
    fn half_an_answer_is_waited_for_and_another_protocol_is_garbled() {
        for part in [&b""[..], b"VAL", b"VALUE key 0 4\r\nab", b"VALUE key 0 4\r\nabcd\r\nEND\r"] {
            assert_eq!(decoded(Verb::Get, part), (Ok(None), part.len()), "{part:?}");
        }
        for other in [&b"+OK\r\n"[..], b"$-1\r\n", b"VALUE key 0 x\r\n", b"VALUE key 0 1\r\nabcdefghij", b"STORED\r\n"]
        {
            assert_eq!(decoded(Verb::Get, other).0, Err(Garbled), "{other:?}");
        }
    }
}
