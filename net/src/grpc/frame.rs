//! Messages in a stream of bytes.
//!
//! ```text
//!   0            1                     5
//!   ├ compressed ┼ length, big-endian ┼ message ┤├ compressed ┼ ...     PROTOCOL-HTTP2.md, "Length-Prefixed-Message"
//! ```
//! DATA frames may be cut anywhere, within the prefix too, and may hold several messages.

use bytes::{Buf, Bytes, BytesMut};

/// Bytes before each message.
pub const PREFIX_BYTES: usize = 5;

/// Why a stream of bytes is not a stream of messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameError {
    /// The first byte is neither 0 nor 1.
    Flag(u8),
    /// The message is compressed; nothing here is.
    Compressed,
    /// The message is longer than allowed. Known from its prefix, before anything of it is held.
    TooLarge {
        /// Bytes announced.
        found: usize,
        /// Bytes allowed.
        allowed: usize,
    },
}

/// Puts messages together from DATA frames.
///
/// A message that lies in one frame is handed out as a slice of it; one that is split is copied into a buffer of
/// its exact size.
#[derive(Debug)]
pub struct Assembler {
    whole_bytes_max: usize,
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    /// The message once its prefix is complete: what has come of it, and how long it will be.
    partial: Option<(BytesMut, usize)>,
}

impl Default for Assembler {
    /// One that puts together what is legal.
    fn default() -> Self {
        Self::up_to(usize::MAX)
    }
}

impl Assembler {
    /// One that leaves messages alone that are longer than `whole_bytes_max`.
    #[must_use]
    pub fn up_to(whole_bytes_max: usize) -> Self {
        Self { whole_bytes_max, prefix: [0; PREFIX_BYTES], prefix_bytes: 0, partial: None }
    }

    /// Takes bytes off the front of `data` until a message is complete; `None` when `data` is used up first, and after
    /// the prefix of a message that is left alone: what is in `data` then, and all that follows, is that message.
    ///
    /// # Errors
    /// [`FrameError`]; the rest of the stream means nothing then.
    pub fn push(&mut self, data: &mut Bytes, message_bytes_max: usize) -> Result<Option<Bytes>, FrameError> {
        loop {
            if let Some((partial, whole_bytes)) = &mut self.partial {
                if *whole_bytes > self.whole_bytes_max {
                    return Ok(None);
                }
                let missing = *whole_bytes - partial.len();
                if partial.is_empty() && data.len() >= missing {
                    // Only for speed: nothing to put together.
                    self.partial = None;
                    let is_all = data.len() == missing; // Spares the count of who holds the buffer.
                    return Ok(Some(if is_all { std::mem::take(data) } else { data.split_to(missing) }));
                }
                if data.is_empty() {
                    return Ok(None);
                }
                if partial.capacity() == 0 {
                    partial.reserve(*whole_bytes);
                }
                partial.extend_from_slice(&data.split_to(missing.min(data.len())));
                if partial.len() < *whole_bytes {
                    return Ok(None);
                }
                let whole = self.partial.take().map(|(whole, _)| whole.freeze());
                return Ok(whole);
            }
            let missing = PREFIX_BYTES - self.prefix_bytes;
            let taken = missing.min(data.len());
            data.copy_to_slice(&mut self.prefix[self.prefix_bytes..self.prefix_bytes + taken]);
            self.prefix_bytes += taken;
            if taken < missing {
                return Ok(None);
            }
            self.prefix_bytes = 0;
            self.partial = Some((BytesMut::new(), self.announced(message_bytes_max)?));
        }
    }

    fn announced(&self, message_bytes_max: usize) -> Result<usize, FrameError> {
        let [flag, length @ ..] = self.prefix;
        match flag {
            0 => {}
            1 => return Err(FrameError::Compressed),
            other => return Err(FrameError::Flag(other)),
        }
        let found = u32::from_be_bytes(length) as usize;
        if found > message_bytes_max {
            return Err(FrameError::TooLarge { found, allowed: message_bytes_max });
        }
        Ok(found)
    }

    /// Whether no message has been begun: the only place where a stream may end.
    #[must_use]
    pub fn is_between_messages(&self) -> bool {
        self.prefix_bytes == 0 && self.partial.is_none()
    }

    /// The length of the message that has been begun and is too long to be put together here, in bytes.
    #[must_use]
    pub fn large_bytes(&self) -> Option<usize> {
        self.partial.as_ref().map(|(_, whole_bytes)| *whole_bytes).filter(|bytes| *bytes > self.whole_bytes_max)
    }

    /// Bytes held of a message that is not complete.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |(partial, _)| partial.len())
    }
}

/// The prefix of an uncompressed message of `message_bytes`.
#[must_use]
pub fn prefix(message_bytes: usize) -> [u8; PREFIX_BYTES] {
    let [a, b, c, d] = u32::try_from(message_bytes).expect("messages are shorter than 4 GiB").to_be_bytes();
    [0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(messages: &[&[u8]]) -> Bytes {
        messages.iter().flat_map(|message| prefix(message.len()).into_iter().chain(message.iter().copied())).collect()
    }

    fn push_all(parts: &[Bytes]) -> (Vec<Bytes>, Assembler) {
        let mut assembler = Assembler::default();
        let mut messages = Vec::new();
        for part in parts {
            let mut part = part.clone();
            while let Some(message) = assembler.push(&mut part, 100).unwrap() {
                messages.push(message);
            }
            assert!(part.is_empty());
        }
        (messages, assembler)
    }

    #[test]
    fn messages_are_the_same_wherever_the_frames_are_cut() {
        let whole = stream(&[b"first", b"", b"third message"]);
        for first in 0..=whole.len() {
            for second in first..=whole.len() {
                let parts = [whole.slice(..first), whole.slice(first..second), whole.slice(second..)];
                let (messages, assembler) = push_all(&parts);
                assert_eq!(messages, [&b"first"[..], b"", b"third message"], "cut at {first} and {second}");
                assert!(assembler.is_between_messages());
            }
        }
    }

    #[test]
    fn a_stream_that_ends_early_is_within_a_message() {
        let whole = stream(&[b"message"]);
        for end in 1..whole.len() {
            let (messages, assembler) = push_all(&[whole.slice(..end)]);
            assert!(messages.is_empty() && !assembler.is_between_messages(), "cut at {end}");
        }
    }

    #[test]
    fn a_message_in_one_frame_is_not_copied() {
        let whole = stream(&[b"message"]);
        let (messages, _) = push_all(std::slice::from_ref(&whole));
        assert_eq!(messages[0].as_ptr(), whole[5..].as_ptr());
    }

    #[test]
    fn a_message_too_large_is_refused_by_its_prefix_alone() {
        let mut assembler = Assembler::default();
        let refused = assembler.push(&mut Bytes::from_static(&[0, 0, 0, 0, 101]), 100);
        assert_eq!(refused, Err(FrameError::TooLarge { found: 101, allowed: 100 }));
        assert_eq!(assembler.held_bytes(), 0);
    }

    #[test]
    fn a_first_byte_other_than_zero_is_refused() {
        for (flag, error) in [(1, FrameError::Compressed), (2, FrameError::Flag(2)), (255, FrameError::Flag(255))] {
            let mut data = Bytes::from(vec![flag, 0, 0, 0, 0]);
            assert_eq!(Assembler::default().push(&mut data, 100), Err(error));
        }
    }
}
