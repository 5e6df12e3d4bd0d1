//! A message that is put together from many: what is small is copied behind one another, what is large stays where it is.
//!
//! ```text
//!   put, put_bytes   ├ a ┤├ b ┤├ c, large            ┤├ d ┤
//!   pieces           ├ a b ───┤├ c, where it was ────┤├ d ┤
//! ```

use bytes::Bytes;

use crate::http2::COPIED_BYTES_MAX;

/// A piece of copies is closed when it is this long: it grows no further, so that little of it is copied twice.
const PIECE_BYTES: usize = 64 << 10;

/// A message in one piece or several. A clone counts references.
#[derive(Debug, Clone, Default)]
pub struct Pieces {
    pub(super) first: Bytes,
    /// Nearly always empty, and then without an allocation.
    pub(super) rest: Vec<Bytes>,
}

/// Puts [`Pieces`] together.
#[derive(Debug, Default)]
pub struct Gather {
    closed: Vec<Bytes>,
    open: Vec<u8>,
    bytes: usize,
}

impl Pieces {
    /// How long the message is.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.first.len() + self.rest.iter().map(Bytes::len).sum::<usize>()
    }
}

impl From<Bytes> for Pieces {
    fn from(message: Bytes) -> Self {
        Self { first: message, rest: Vec::new() }
    }
}

impl Gather {
    /// With room for `bytes` of copies; more of them make more room.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self { open: Vec::with_capacity(bytes.min(PIECE_BYTES)), ..Self::default() }
    }

    /// How long the message is by now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a copy.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.open.extend_from_slice(bytes);
        if self.open.len() >= PIECE_BYTES {
            self.close();
        }
    }

    /// Appends `bytes`, without a copy if they are [`COPIED_BYTES_MAX`] or more.
    pub fn put_bytes(&mut self, bytes: Bytes) {
        if bytes.len() < COPIED_BYTES_MAX {
            return self.put(&bytes);
        }
        self.close();
        self.bytes += bytes.len();
        self.closed.push(bytes);
    }

    /// The message.
    #[must_use]
    pub fn into_pieces(mut self) -> Pieces {
        if self.closed.is_empty() {
            return Pieces::from(Bytes::from(self.open)); // Only for speed: nothing to shift.
        }
        self.close();
        let first = self.closed.remove(0);
        Pieces { first, rest: self.closed }
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.closed.push(Bytes::from(std::mem::take(&mut self.open)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(pieces: &Pieces) -> Vec<u8> {
        std::iter::once(&pieces.first).chain(&pieces.rest).flat_map(|piece| piece.to_vec()).collect()
    }

    #[test]
    fn small_pieces_become_one_and_large_ones_stay_where_they_are() {
        let large = Bytes::from(vec![7; COPIED_BYTES_MAX]);
        let mut gather = Gather::default();
        gather.put(b"ab");
        gather.put_bytes(Bytes::from_static(b"c"));
        gather.put_bytes(large.clone());
        gather.put(b"d");
        assert_eq!(gather.bytes(), 4 + large.len());
        let pieces = gather.into_pieces();
        assert_eq!((&pieces.first[..], &pieces.rest[1][..]), (&b"abc"[..], &b"d"[..]));
        assert_eq!(pieces.rest[0].as_ptr(), large.as_ptr());
        assert_eq!(whole(&pieces), [b"abc", &large[..], b"d"].concat());
    }

    #[test]
    fn a_message_of_nothing_and_one_that_begins_with_a_large_piece_are_whole_too() {
        assert_eq!(Gather::default().into_pieces().bytes(), 0);
        let large = Bytes::from(vec![7; COPIED_BYTES_MAX]);
        let mut gather = Gather::default();
        gather.put_bytes(large.clone());
        let pieces = gather.into_pieces();
        assert_eq!((pieces.first.as_ptr(), pieces.rest.len()), (large.as_ptr(), 0));
    }

    #[test]
    fn many_small_pieces_are_cut_into_several() {
        let mut gather = Gather::default();
        let chunk: Vec<u8> = (0..1_000).map(|index| index as u8).collect();
        (0..200).for_each(|_| gather.put(&chunk));
        let pieces = gather.into_pieces();
        assert!(pieces.rest.iter().all(|piece| piece.len() < PIECE_BYTES + chunk.len()));
        assert_eq!(whole(&pieces), chunk.repeat(200));
    }
}
