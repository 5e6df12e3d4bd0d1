//! Both ends of h2's codec, in memory: what it reads is fed frame by frame, what it writes is gathered in an [`Outbox`].

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Values from this size on are sent from where they lie; smaller ones are copied beside their neighbours, which is
/// cheaper than one more element in a gathered write.
pub const COPIED_BYTES_MAX: usize = 16 << 10;

/// Bytes on their way to the socket, in order: gathered during a turn of the connection and sent once at its end.
///
/// ```text
///   parts ▶ [frames][large value][frames][large value]   tail ▶ [frames, still growing]
/// ```
#[derive(Debug, Default)]
pub struct Outbox {
    parts: VecDeque<Bytes>,
    tail: BytesMut,
    parts_bytes: usize,
}

impl Outbox {
    /// Bytes that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts_bytes + self.tail.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.tail.is_empty()
    }

    /// Appends a copy.
    pub fn put(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
    }

    /// Appends `bytes`, without a copy if they are [`COPIED_BYTES_MAX`] or more.
    pub fn put_bytes(&mut self, bytes: Bytes) {
        if bytes.len() < COPIED_BYTES_MAX {
            self.put(&bytes);
            return;
        }
        if !self.tail.is_empty() {
            let before = self.tail.split().freeze();
            self.parts_bytes += before.len();
            self.parts.push_back(before);
        }
        self.parts_bytes += bytes.len();
        self.parts.push_back(bytes);
    }

    /// The first slices to send; answers how many of `slices` were filled.
    pub fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(self.parts.iter().map(|part| &part[..]).chain(tail)) {
            *slice = IoSlice::new(part);
            count += 1;
        }
        count
    }

    /// Drops the first `sent` bytes.
    pub fn advance(&mut self, mut sent: usize) {
        assert!(sent <= self.len());
        while let Some(part) = self.parts.front_mut() {
            let of_part = sent.min(part.len());
            part.advance(of_part);
            self.parts_bytes -= of_part;
            sent -= of_part;
            if !part.is_empty() {
                return;
            }
            self.parts.pop_front();
        }
        if sent == self.tail.len() {
            self.tail.clear(); // Keeps the buffer: the next turn fills it again.
        } else {
            self.tail.advance(sent);
        }
    }

    /// Gives a large buffer back when it is empty.
    pub(crate) fn rest(&mut self, resting_bytes_max: usize) {
        if self.is_empty() && self.tail.capacity() > resting_bytes_max {
            self.tail = BytesMut::new();
        }
    }
}

/// What h2's codec takes for its socket. Reading from it never waits for a peer: it is fed whole frames.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    fed: BytesMut,
    pub(crate) outbox: Outbox,
}

impl Wire {
    /// The next frame for the codec to read.
    pub(crate) fn feed(&mut self, frame: BytesMut) {
        debug_assert!(self.fed.is_empty(), "the codec reads each frame at once");
        self.fed = frame;
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.fed.is_empty() {
            return Poll::Pending;
        }
        let bytes = self.fed.len().min(buf.remaining());
        buf.put_slice(&self.fed[..bytes]);
        self.fed.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.outbox.put(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(outbox: &mut Outbox, at_once: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); 2];
            let count = outbox.fill(&mut slices);
            let gathered: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
            let taken = gathered.len().min(at_once);
            all.extend_from_slice(&gathered[..taken]);
            outbox.advance(taken);
        }
        all
    }

    #[test]
    fn bytes_leave_in_the_order_they_came_whatever_the_socket_takes_at_once() {
        for at_once in [1, 7, 16 << 10, usize::MAX] {
            let mut outbox = Outbox::default();
            let mut expected = Vec::new();
            for size in [3, 20_000, 0, 5, 16 << 10, (16 << 10) - 1, 9] {
                let bytes: Vec<u8> = (0..size).map(|index| (index * 31 + size) as u8).collect();
                expected.extend_from_slice(&bytes);
                outbox.put_bytes(Bytes::from(bytes));
            }
            assert_eq!(outbox.len(), expected.len());
            assert!(sent(&mut outbox, at_once) == expected, "{at_once} bytes at once");
        }
    }

    #[test]
    fn a_large_value_is_not_copied() {
        let value = Bytes::from(vec![7; COPIED_BYTES_MAX]);
        let mut outbox = Outbox::default();
        outbox.put(b"head");
        outbox.put_bytes(value.clone());
        let mut slices = [IoSlice::new(&[]); 4];
        assert_eq!(outbox.fill(&mut slices), 2);
        assert_eq!(slices[1].as_ptr(), value.as_ptr());
    }
}
