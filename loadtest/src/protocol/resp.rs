//! Redis: commands and answers in RESP2. Pure.
//!
//! ```text
//!   *2 CRLF $3 CRLF GET CRLF $n CRLF key CRLF      $n CRLF value CRLF   or   $-1 CRLF
//!   *3 … SET key value      *5 … SET key value PX ttl_ms                     +OK CRLF
//!   *2 … DEL key                                                             :0 or :1 CRLF
//!                                                  -ERR text CRLF            for any
//! ```
//! Specification: redis.io, "Redis serialization protocol specification".

use bytes::{Buf as _, BufMut as _, BytesMut};

use super::{
    Entry, Outcome, ServedBy, Verb,
    pipeline::{Garbled, line},
};

/// The longest line: a length, or an error's text.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Writes the command for one entry.
pub(super) fn encode(verb: Verb, entry: &Entry, out: &mut BytesMut) {
    entry.name.with(|name| match verb {
        Verb::Get => put_words(&[b"GET", name], out),
        Verb::Delete => put_words(&[b"DEL", name], out),
        Verb::Put if entry.ttl_ms == 0 => put_words(&[b"SET", name, &entry.value], out),
        Verb::Put => put_words(&[b"SET", name, &entry.value, b"PX", entry.ttl_ms.to_string().as_bytes()], out),
    });
}

fn put_words(words: &[&[u8]], out: &mut BytesMut) {
    put_head(b'*', words.len(), out);
    for word in words {
        put_head(b'$', word.len(), out);
        out.put_slice(word);
        out.put_slice(b"\r\n");
    }
}

fn put_head(kind: u8, number: usize, out: &mut BytesMut) {
    out.put_u8(kind);
    out.put_slice(number.to_string().as_bytes());
    out.put_slice(b"\r\n");
}

/// The next answer, if all of it is there.
pub(super) fn decode(verb: Verb, input: &mut BytesMut) -> Result<Option<Outcome>, Garbled> {
    let Some(end) = input.windows(2).position(|pair| pair == b"\r\n") else {
        return if input.len() > LINE_BYTES_MAX { Err(Garbled) } else { Ok(None) };
    };
    let head = input.first().copied().filter(|_| end > 0).ok_or(Garbled)?;
    let number = || std::str::from_utf8(&input[1..end]).ok().and_then(|text| text.parse::<i64>().ok());
    match (head, verb) {
        (b'$', Verb::Get) => match number().ok_or(Garbled)? {
            -1 => {
                input.advance(end + 2);
                Ok(Some(Outcome::Miss))
            }
            bytes => {
                let bytes = usize::try_from(bytes).map_err(|_| Garbled)?;
                if input.len() < end + 2 + bytes + 2 {
                    return Ok(None);
                }
                input.advance(end + 2);
                let value = input.split_to(bytes).freeze();
                let tail = input.split_to(2);
                if &tail[..] != b"\r\n" {
                    return Err(Garbled);
                }
                Ok(Some(Outcome::Hit { tier: ServedBy::Unspecified, value }))
            }
        },
        (b'+', Verb::Put) | (b':', Verb::Delete) => {
            input.advance(end + 2);
            Ok(Some(Outcome::Done))
        }
        (b'-', _) => {
            let line = line(input).expect("seen above");
            // The first word is the kind: ERR, OOM, WRONGTYPE, …
            let kind = line[1..].split(|byte| *byte == b' ').next().unwrap_or_default();
            Ok(Some(Outcome::Failed(String::from_utf8_lossy(kind).into_owned().into())))
        }
        _ => Err(Garbled),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::workload::Name;

    fn encoded(verb: Verb, value: &'static str, ttl_ms: u64) -> String {
        let entry = Entry { name: Name::Text("key".into()), value: Bytes::from(value), ttl_ms };
        let mut out = BytesMut::new();
        encode(verb, &entry, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    fn decoded(verb: Verb, bytes: &[u8]) -> (Result<Option<Outcome>, Garbled>, usize) {
        let mut input = BytesMut::from(bytes);
        let found = decode(verb, &mut input);
        (found, input.len())
    }

    #[test]
    fn commands_are_arrays_of_strings() {
        assert_eq!(encoded(Verb::Get, "", 0), "*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n");
        assert_eq!(encoded(Verb::Put, "v\r\n", 0), "*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$3\r\nv\r\n\r\n");
        assert!(encoded(Verb::Put, "v", 1500).ends_with("$2\r\nPX\r\n$4\r\n1500\r\n"));
        assert_eq!(encoded(Verb::Delete, "", 0), "*2\r\n$3\r\nDEL\r\n$3\r\nkey\r\n");
    }

    #[test]
    fn answers_are_hits_misses_done_or_failed() {
        let hit = Outcome::Hit { tier: ServedBy::Unspecified, value: Bytes::from_static(b"a\r\nb") };
        assert_eq!(decoded(Verb::Get, b"$4\r\na\r\nb\r\n+"), (Ok(Some(hit)), 1));
        assert_eq!(decoded(Verb::Get, b"$-1\r\n"), (Ok(Some(Outcome::Miss)), 0));
        assert_eq!(decoded(Verb::Put, b"+OK\r\n"), (Ok(Some(Outcome::Done)), 0));
        assert_eq!(decoded(Verb::Delete, b":0\r\n"), (Ok(Some(Outcome::Done)), 0));
        assert_eq!(decoded(Verb::Put, b"-OOM no memory\r\n"), (Ok(Some(Outcome::Failed("OOM".into()))), 0));
    }

    #[test]
    fn half_an_answer_is_waited_for_and_another_protocol_is_garbled() {
        for part in [&b""[..], b"$", b"$4\r", b"$4\r\nab", b"$4\r\nabcd\r"] {
            assert_eq!(decoded(Verb::Get, part), (Ok(None), part.len()), "{part:?}");
        }
        for other in [&b"ERROR\r\n"[..], b"HTTP/1.1 400\r\n", b"$x\r\n", b"\r\n", b"+OK\r\n", b"$1\r\nabc"] {
            assert_eq!(decoded(Verb::Get, other).0, Err(Garbled), "{other:?}");
        }
    }
}
