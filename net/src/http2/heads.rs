//! Heads and trailers as they are seen after decoding, and those seen before, which are not decoded again.
//!
//! Clients say the same head for call after call, mostly as a few bytes that name entries of the table of headers
//! (RFC 7541). What such a block means depends on its bytes and on the table; and a block that changes the table can be
//! told by its bytes alone. So:
//!
//! ```text
//!   1xxx xxxx  indexed                               ┐ neutral: a block of these leaves the table as it was,
//!   000x xxxx  literal, not (or never) indexed       ┘ and means the same until another block changes the table
//!   01xx xxxx  literal, added to the table           ┐ after a block with one of these, or one that we do not look
//!   001x xxxx  the table's size                      ┘ into, everything is forgotten
//! ```
//! Only for speed: a fifth of the cost of a Get was to make the same map of the same eight headers anew.
//!
//! For the same reason the heads that we say ourselves are blocks of literals: see [`RequestHead`].

use std::rc::Rc;

use h2::frame::{self, Pseudo};
use http::{
    HeaderMap, HeaderValue,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HOST},
};

/// Blocks that are remembered: Get, Put and Delete of one client, and one more.
const BLOCKS_MAX: usize = 4;

/// Longer blocks are decoded each time.
const BLOCK_BYTES_MAX: usize = 512;

/// `:status: 200`, `content-type: application/grpc`, as literals that leave both tables of headers alone (RFC 7541,
/// sections 6.1 and 6.2.2). The codec would say the same with two allocations.
pub(super) const OK_HEAD_BLOCK: &[u8] = b"\x88\x0f\x10\x10application/grpc";

/// `grpc-status: 0`, likewise.
pub(super) const OK_TRAILERS_BLOCK: &[u8] = b"\x00\x0bgrpc-status\x010";

/// A whole response up to its message: HEADERS with [`OK_HEAD_BLOCK`], and the head of a DATA frame. The stream's number
/// (twice) and the length of DATA are still zero.
pub(super) const OK_FRAMES_BEFORE: [u8; 38] =
    *b"\0\0\x14\x01\x04\0\0\0\0\x88\x0f\x10\x10application/grpc\0\0\0\0\0\0\0\0\0";

/// Where in it DATA begins.
pub(super) const OK_DATA_AT: usize = frame::HEADER_LEN + OK_HEAD_BLOCK.len();

/// What follows the message: HEADERS with [`OK_TRAILERS_BLOCK`], which end the stream. Its number is still zero.
pub(super) const OK_FRAME_AFTER: [u8; 24] = *b"\0\0\x0f\x01\x05\0\0\0\0\x00\x0bgrpc-status\x010";

const _: () = assert!(OK_FRAMES_BEFORE.len() == OK_DATA_AT + frame::HEADER_LEN);
const _: () = assert!(OK_FRAMES_BEFORE[2] as usize == OK_HEAD_BLOCK.len());
const _: () = assert!(OK_FRAME_AFTER[2] as usize == OK_TRAILERS_BLOCK.len());

/// What a client of gRPC says first on a stream.
///
/// ```text
///   83  86  04 │ path  01 │ authority  0f 10 │ application/grpc  00 te │ trailers  0f 2b │ user-agent  00 grpc-timeout │ …
///   POST http  └ literals without indexing (RFC 7541, section 6.2.2), names by their place in the static table ─────────┘
/// ```
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    /// For example `/cache_server.Cache/Get`.
    pub path: &'a str,
    /// Host and port.
    pub authority: &'a str,
    /// The value of grpc-timeout.
    pub timeout: &'a [u8],
}

const GRPC_STATUS: &str = "grpc-status";

const USER_AGENT: &str = concat!("milena/", env!("CARGO_PKG_VERSION"));

impl RequestHead<'_> {
    pub(super) fn put(&self, block: &mut Vec<u8>) {
        block.extend_from_slice(b"\x83\x86\x04");
        put_string(self.path.as_bytes(), block);
        block.push(0x01);
        put_string(self.authority.as_bytes(), block);
        block.extend_from_slice(b"\x0f\x10\x10application/grpc\x00\x02te\x08trailers\x0f\x2b");
        put_string(USER_AGENT.as_bytes(), block);
        block.extend_from_slice(b"\x00\x0cgrpc-timeout");
        put_string(self.timeout, block);
    }
}

/// Section 5.2, without Huffman's code.
fn put_string(text: &[u8], block: &mut Vec<u8>) {
    put_integer(0, 7, text.len(), block);
    block.extend_from_slice(text);
}

/// Section 6.3.
pub(super) fn put_table_size(bytes: u32, block: &mut impl Extend<u8>) {
    put_integer(0x20, 5, bytes as usize, block);
}

/// Section 5.1.
fn put_integer(first: u8, prefix_bits: u32, number: usize, block: &mut impl Extend<u8>) {
    let prefix_max = (1 << prefix_bits) - 1;
    if number < prefix_max {
        return block.extend([first | number as u8]);
    }
    block.extend([first | prefix_max as u8]);
    let mut rest = number - prefix_max;
    while rest >= 0x80 {
        block.extend([rest as u8 | 0x80]);
        rest >>= 7;
    }
    block.extend([rest as u8]);
}

/// A head or trailers, with what the connection wants to know of them each time.
#[derive(Debug)]
pub struct Head {
    /// Method, path and the like; or the status. Nothing for trailers.
    pub pseudo: Pseudo,
    /// All other headers.
    pub fields: HeaderMap,
    /// content-type is one of gRPC's.
    pub(crate) is_grpc: bool,
    /// grpc-status says that all is well.
    pub(crate) is_status_ok: bool,
    pub(super) are_values_legal: bool,
    pub(super) is_host_legal: bool,
    /// What content-length promises, if it is there and makes sense.
    pub(super) due_bytes: Result<Option<u64>, ()>,
}

impl Head {
    pub(super) fn new(pseudo: Pseudo, fields: HeaderMap) -> Rc<Self> {
        Rc::new(Self {
            is_grpc: fields.get(CONTENT_TYPE).is_some_and(|found| found.as_bytes().starts_with(b"application/grpc")),
            is_status_ok: fields.get(GRPC_STATUS).is_some_and(|status| status == "0"),
            are_values_legal: are_values_legal(&fields),
            is_host_legal: is_host_legal(pseudo.authority.as_deref(), &fields),
            due_bytes: due_bytes(&fields),
            pseudo,
            fields,
        })
    }
}

type Known = (Box<[u8]>, Rc<Head>);

/// What one peer's blocks were found to mean, as long as it holds.
#[derive(Debug, Default)]
pub(super) struct KnownHeads {
    known: [Option<Known>; BLOCKS_MAX],
    next: usize,
}

impl KnownHeads {
    /// What `block`, a whole header block, means.
    pub(super) fn get(&self, block: &[u8]) -> Option<Rc<Head>> {
        self.known.iter().flatten().find(|(known, _)| **known == *block).map(|(_, head)| Rc::clone(head))
    }

    /// `block` has been decoded and means `head`. To be told of every block that is decoded, or to [forget].
    ///
    /// [forget]: KnownHeads::forget
    pub(super) fn learn(&mut self, block: Box<[u8]>, head: &Rc<Head>) {
        self.known[self.next] = Some((block, Rc::clone(head)));
        self.next = (self.next + 1) % BLOCKS_MAX;
    }

    /// The table may have changed.
    pub(super) fn forget(&mut self) {
        self.known = Default::default();
    }
}

/// Whether decoding `block` leaves the table of headers alone. Says no where it cannot tell.
pub(super) fn is_neutral(block: &[u8]) -> bool {
    let mut rest = block;
    while let Some(&first) = rest.first() {
        let left = match first {
            0x80.. => after_integer(rest, 7).map(|(_, left)| left),
            0x20.. => return false,
            _ => after_literal(rest),
        };
        let Some(left) = left else { return false };
        rest = left;
    }
    block.len() <= BLOCK_BYTES_MAX
}

/// Section 6.2.2: the index of the name, or 0 and the name; the value.
fn after_literal(block: &[u8]) -> Option<&[u8]> {
    let (name_index, left) = after_integer(block, 4)?;
    let left = if name_index == 0 { after_string(left)? } else { left };
    after_string(left)
}

/// Section 5.2.
fn after_string(block: &[u8]) -> Option<&[u8]> {
    let (bytes, left) = after_integer(block, 7)?;
    left.get(bytes..)
}

/// Section 5.1, for integers that need no more than one byte after the prefix.
fn after_integer(block: &[u8], prefix_bits: u32) -> Option<(usize, &[u8])> {
    let (&first, left) = block.split_first()?;
    let prefix_max = (1 << prefix_bits) - 1;
    let prefix = first & prefix_max;
    if prefix < prefix_max {
        return Some((usize::from(prefix), left));
    }
    let (&more, left) = left.split_first()?;
    (more < 0x80).then_some((usize::from(prefix) + usize::from(more), left))
}

/// RFC 9113, section 8.2.1: no space around a value. The codec has checked everything else.
fn are_values_legal(fields: &HeaderMap) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    fields.values().map(HeaderValue::as_bytes).all(|value| !is_space(value.first()) && !is_space(value.last()))
}

/// RFC 9113, section 8.3.1: a Host that names another authority makes the request malformed.
fn is_host_legal(authority: Option<&str>, fields: &HeaderMap) -> bool {
    match (authority, fields.get(HOST)) {
        (Some(authority), Some(host)) => host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()),
        _ => true,
    }
}

fn due_bytes(fields: &HeaderMap) -> Result<Option<u64>, ()> {
    let mut values = fields.get_all(CONTENT_LENGTH).iter();
    let Some(first) = values.next() else { return Ok(None) };
    if values.any(|other| other != first) {
        return Err(());
    }
    frame::parse_u64(first.as_bytes()).map(Some).map_err(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_neutral_if_it_only_names_entries_or_says_literals_that_are_not_kept() {
        let long = [b"\x0f\x2b\x7f\x01".as_slice(), &[b'u'; 128]].concat();
        for block in [b"".as_slice(), b"\x83\x86\xbe\xff\x00", b"\x04\x02/x\x88", b"\x00\x02te\x08trailers", &long] {
            assert!(is_neutral(block), "{block:x?}");
        }
        let long_integer = [0xff, 0x80, 0x01];
        let changes_the_table = [b"\x83\x44\x02/x".as_slice(), b"\x20\x83", b"\x3f\xe1\x1f", b"\x40\x01a\x01b"];
        let breaks_off = [b"\x04\x03/x".as_slice(), b"\x00", b"\x0f", b"\xff", &long_integer, &long[..100]];
        for block in changes_the_table.into_iter().chain(breaks_off) {
            assert!(!is_neutral(block), "{block:x?}");
        }
        assert!(!is_neutral(&[0x83; BLOCK_BYTES_MAX + 1]));
    }

    #[test]
    fn the_oldest_of_what_is_known_makes_room_and_everything_can_be_forgotten() {
        let mut known = KnownHeads::default();
        let head = Head::new(Pseudo::default(), HeaderMap::new());
        for byte in 0..=BLOCKS_MAX as u8 {
            known.learn(Box::new([byte]), &head);
        }
        assert!(known.get(&[0]).is_none());
        assert!((1..=BLOCKS_MAX as u8).all(|byte| known.get(&[byte]).is_some()));
        known.forget();
        assert!((0..=BLOCKS_MAX as u8).all(|byte| known.get(&[byte]).is_none()));
    }
}
