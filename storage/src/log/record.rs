//! One record of the log: an entry, the news that there is none any more, or that the store knows of a change.
//!
//! ```text
//! 0          4           8          16         24           32           36       38           39            40
//! ├ checksum ┼ value_len ┼ sequence ┼ key_hash ┼ expires_ms ┼ believed_s ┼ shape ┼ bucket_len ┼ version_len ┤
//!                                                                            bits 0–10  name_len
//! 40 ─ bucket, name, version, value, zeros to a multiple of 16 ─             bits 11–14 kind
//!                                                                            bit 15     there may be an older record
//! kind   what is used             what it says
//! 1 put          all              the store has this entry
//! 2 tombstone    origin           records of this hash with a sequence below `origin` are dead
//! 3 dirty put    all              the key has this entry, and the store does not know yet
//! 4 dirty delete bucket, name     the key has none, and the store does not know yet; dead is what is older of its hash
//! 5 mark         origin           the store has the dirty changes of this hash with a sequence below `origin`
//! ```
//! Version 1, little-endian. `expires_ms` is since the Unix epoch, 0 = never; in a tombstone and a mark it is `origin`,
//! and bucket, name, version and value are empty: they speak of a hash. What is not used is zero.
//! `believed_s` is until when this *copy* is believed, in whole seconds since the epoch; all ones = for ever.
//! `checksum` is CRC-32C (RFC 3720, section 12.1) over every byte that follows it, the zeros included.
//!
//! A record is valid if and only if the lengths are within their limits and fit the bytes at hand, the kind is known,
//! what is unused is zero, and the checksum holds. Sixteen zeros are padding: nothing follows in this block.

use bytes::{BufMut as _, Bytes, BytesMut};
use milena_proto::{
    key::KeyRef,
    limits::{BUCKET_BYTES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX},
    placement::KeyHash,
};

use crate::{Entry, Timestamp, Version};

/// Bytes of a record before its key.
pub(super) const HEADER_BYTES: usize = 40;

/// Records begin at multiples of this, so that an offset needs four bits less.
pub(super) const UNIT_BYTES: usize = 16;

/// Longest version that the log keeps; an entry with a longer one is read through.
pub(super) const VERSION_BYTES_MAX: usize = u8::MAX as usize;

/// What a record has at most besides its value.
pub(super) const OVERHEAD_BYTES_MAX: usize =
    HEADER_BYTES + BUCKET_BYTES_MAX + KEY_BYTES_MAX + VERSION_BYTES_MAX + UNIT_BYTES;

/// A copy that is believed for ever.
const FOR_EVER_S: u32 = u32::MAX;

const NAME_LEN_BITS: u32 = 11;
const NAME_LEN_MASK: u16 = (1 << NAME_LEN_BITS) - 1;
const KIND_MASK: u16 = 0xF;
const HAS_OLDER: u16 = 1 << 15;

const _: () = assert!(KEY_BYTES_MAX <= NAME_LEN_MASK as usize);
const _: () = assert!(BUCKET_BYTES_MAX <= u8::MAX as usize);
const _: () = assert!(VALUE_BYTES_MAX <= u32::MAX as usize / 2);

/// The number of a record: of two records of a key, the higher is the truth. Counts from 1 within a log.
pub(super) type Sequence = u64;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body<'a> {
    /// The key has this value.
    Put {
        bucket: &'a [u8],
        name: &'a [u8],
        version: &'a [u8],
        value: &'a [u8],
        /// `None` = never.
        expires: Option<Timestamp>,
        /// In whole seconds; `None` = for ever.
        believed_until_s: Option<u32>,
        /// When it was written, an older record of the key may have been in the log.
        has_older: bool,
        /// When it was written, the store did not have it.
        is_dirty: bool,
    },
    /// Records of this hash with a sequence below `origin` are dead.
    Tombstone { origin: Sequence },
    /// The key has no value, and the store did not know when this was written.
    DirtyDelete { bucket: &'a [u8], name: &'a [u8] },
    /// The store has the dirty changes of this hash with a sequence below `origin`.
    Mark { origin: Sequence },
}

/// The kind of a record, in its header and in footers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Put = 1,
    Tombstone = 2,
    DirtyPut = 3,
    DirtyDelete = 4,
    Mark = 5,
}

impl Kind {
    /// The kind with this number, if there is one.
    pub(super) fn of(number: u64) -> Option<Self> {
        Some(match number {
            1 => Self::Put,
            2 => Self::Tombstone,
            3 => Self::DirtyPut,
            4 => Self::DirtyDelete,
            5 => Self::Mark,
            _ => return None,
        })
    }

    /// Whether the record has an entry.
    pub(super) fn is_put(self) -> bool {
        matches!(self, Self::Put | Self::DirtyPut)
    }

    /// Whether the record is a change that the store did not have when it was written.
    pub(super) fn is_dirty(self) -> bool {
        matches!(self, Self::DirtyPut | Self::DirtyDelete)
    }
}

/// A record, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) sequence: Sequence,
    pub(super) key_hash: KeyHash,
    pub(super) body: Body<'a>,
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    /// Zeros: the rest of the block is empty.
    Padding,
    /// The lengths are plausible, and the record needs this many bytes.
    Truncated { record_bytes: usize },
    /// Not a header, or fewer bytes than one.
    Malformed,
    /// A header, but the bytes are not those that were written.
    Checksum,
}

/// The lengths in a header, checked against their limits, and nothing else.
#[derive(Clone, Copy, Debug)]
struct Lengths {
    bucket: usize,
    name: usize,
    version: usize,
    value: usize,
    kind: Kind,
}

impl Lengths {
    fn record_bytes(self) -> usize {
        (HEADER_BYTES + self.bucket + self.name + self.version + self.value).next_multiple_of(UNIT_BYTES)
    }

    fn decode(header: &[u8; HEADER_BYTES]) -> Option<Self> {
        let shape = u16_at(header, 36);
        let kind = Kind::of(u64::from((shape >> NAME_LEN_BITS) & KIND_MASK))?;
        let lengths = Self {
            bucket: usize::from(header[38]),
            name: usize::from(shape & NAME_LEN_MASK),
            version: usize::from(header[39]),
            value: u32_at(header, 4) as usize,
            kind,
        };
        let has_key = (1..=BUCKET_BYTES_MAX).contains(&lengths.bucket) && (1..=KEY_BYTES_MAX).contains(&lengths.name);
        let is_without_entry =
            lengths.version + lengths.value == 0 && u32_at(header, 32) == 0 && shape & HAS_OLDER == 0;
        let is_legal = match kind {
            Kind::Put | Kind::DirtyPut => has_key && lengths.version >= 1 && lengths.value <= VALUE_BYTES_MAX,
            Kind::DirtyDelete => has_key && is_without_entry && u64_at(header, 24) == 0,
            Kind::Tombstone | Kind::Mark => lengths.bucket + lengths.name == 0 && is_without_entry,
        };
        is_legal.then_some(lengths)
    }
}

impl<'a> Record<'a> {
    /// A record of an entry. The caller has checked the length of the version.
    pub(super) fn put(
        sequence: Sequence,
        key: KeyRef<'a>,
        entry: &'a Entry,
        believed_until: Option<Timestamp>,
        has_older: bool,
    ) -> Self {
        let body = Body::Put {
            bucket: key.bucket().as_bytes(),
            name: key.name(),
            version: entry.version.as_str().as_bytes(),
            value: &entry.value,
            expires: entry.expires,
            believed_until_s: believed_until.map(whole_seconds),
            has_older,
            is_dirty: false,
        };
        Self { sequence, key_hash: key.hash(), body }
    }

    /// A record of an entry that the store does not have. What is older of its hash may be another key's, which nobody
    /// looks at while this one waits, so it always says that there may be something.
    pub(super) fn dirty_put(
        sequence: Sequence,
        key: KeyRef<'a>,
        entry: &'a Entry,
        believed_until: Option<Timestamp>,
    ) -> Self {
        let mut record = Self::put(sequence, key, entry, believed_until, true);
        if let Body::Put { is_dirty, .. } = &mut record.body {
            *is_dirty = true;
        }
        record
    }

    /// A record of a delete that the store does not know of.
    pub(super) fn dirty_delete(sequence: Sequence, key: KeyRef<'a>) -> Self {
        let body = Body::DirtyDelete { bucket: key.bucket().as_bytes(), name: key.name() };
        Self { sequence, key_hash: key.hash(), body }
    }

    pub(super) fn kind(&self) -> Kind {
        match self.body {
            Body::Put { is_dirty: false, .. } => Kind::Put,
            Body::Put { is_dirty: true, .. } => Kind::DirtyPut,
            Body::Tombstone { .. } => Kind::Tombstone,
            Body::DirtyDelete { .. } => Kind::DirtyDelete,
            Body::Mark { .. } => Kind::Mark,
        }
    }

    /// Whether it is a record of `key`, as opposed to one of its hash.
    pub(super) fn is_of(&self, key: KeyRef<'_>) -> bool {
        match self.body {
            Body::Put { bucket, name, .. } | Body::DirtyDelete { bucket, name } => {
                name == key.name() && bucket == key.bucket().as_bytes()
            }
            Body::Tombstone { .. } | Body::Mark { .. } => false,
        }
    }

    /// Bytes of the record, a multiple of [`UNIT_BYTES`].
    pub(super) fn bytes(&self) -> usize {
        self.lengths().record_bytes()
    }

    /// Appends the record to `target`. O(bytes).
    pub(super) fn encode(&self, target: &mut BytesMut) {
        let start = target.len();
        let lengths = self.lengths();
        let (expires, believed_s, shape) = self.fields(lengths);
        target.reserve(lengths.record_bytes());
        target.put_u32_le(0); // The checksum, once the rest is in place.
        target.put_u32_le(u32::try_from(lengths.value).expect("at most VALUE_BYTES_MAX"));
        target.put_u64_le(self.sequence);
        target.put_u64_le(self.key_hash);
        target.put_u64_le(expires);
        target.put_u32_le(believed_s);
        target.put_u16_le(shape);
        target.put_u8(u8::try_from(lengths.bucket).expect("at most BUCKET_BYTES_MAX"));
        target.put_u8(u8::try_from(lengths.version).expect("at most VERSION_BYTES_MAX"));
        match self.body {
            Body::Put { bucket, name, version, value, .. } => {
                [bucket, name, version, value].into_iter().for_each(|part| target.extend_from_slice(part));
            }
            Body::DirtyDelete { bucket, name } => {
                [bucket, name].into_iter().for_each(|part| target.extend_from_slice(part));
            }
            Body::Tombstone { .. } | Body::Mark { .. } => {}
        }
        target.put_bytes(0, start + lengths.record_bytes() - target.len());

        let checksum = crc32c::crc32c(&target[start + 4..]);
        target[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
        debug_assert!(Record::decode(&target[start..]).is_ok_and(|(record, _)| record == *self));
    }

    /// The record at the start of `bytes`, and how many of them it is. Reads nothing beyond them, whatever they hold.
    pub(super) fn decode(bytes: &'a [u8]) -> Result<(Self, usize), Invalid> {
        let (record, record_bytes) = Self::parse(bytes)?;
        if crc32c::crc32c(&bytes[4..record_bytes]) != u32_at(bytes, 0) {
            return Err(Invalid::Checksum);
        }
        Ok((record, record_bytes))
    }

    /// The same for bytes whose checksum was looked at before, or which never left memory. O(1).
    pub(super) fn parse(bytes: &'a [u8]) -> Result<(Self, usize), Invalid> {
        // Sequences begin with 1, so that no record begins with a unit of zeros; and padding may be a single unit.
        if bytes.first_chunk() == Some(&[0; UNIT_BYTES]) {
            return Err(Invalid::Padding);
        }
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(Invalid::Malformed)?;
        let lengths = Lengths::decode(header).ok_or(Invalid::Malformed)?;
        let record_bytes = lengths.record_bytes();
        let record = bytes.get(..record_bytes).ok_or(Invalid::Truncated { record_bytes })?;
        let (sequence, key_hash) = (u64_at(header, 8), u64_at(header, 16));
        Ok((Self { sequence, key_hash, body: body(header, lengths, record) }, record_bytes))
    }

    fn lengths(&self) -> Lengths {
        let (bucket, name, version, value) = match self.body {
            Body::Put { bucket, name, version, value, .. } => (bucket.len(), name.len(), version.len(), value.len()),
            Body::DirtyDelete { bucket, name } => (bucket.len(), name.len(), 0, 0),
            Body::Tombstone { .. } | Body::Mark { .. } => (0, 0, 0, 0),
        };
        Lengths { bucket, name, version, value, kind: self.kind() }
    }

    /// `expires_ms`, `believed_s`, `shape`.
    fn fields(&self, lengths: Lengths) -> (u64, u32, u16) {
        let name = u16::try_from(lengths.name).expect("at most KEY_BYTES_MAX");
        let shape = (lengths.kind as u16) << NAME_LEN_BITS | name;
        match self.body {
            Body::Put { expires, believed_until_s, has_older, .. } => {
                let older = if has_older { HAS_OLDER } else { 0 };
                let believed_s = believed_until_s.unwrap_or(FOR_EVER_S);
                // Zero says "never"; a life that ended at the epoch has ended at 1 as well.
                let expires_ms = expires.map_or(0, |expires| expires.0.max(1));
                (expires_ms, believed_s, shape | older)
            }
            Body::DirtyDelete { .. } => (0, 0, shape),
            Body::Tombstone { origin } | Body::Mark { origin } => (origin, 0, shape),
        }
    }
}

fn body<'a>(header: &[u8; HEADER_BYTES], lengths: Lengths, record: &'a [u8]) -> Body<'a> {
    let (bucket, rest) = record[HEADER_BYTES..].split_at(lengths.bucket);
    let (name, rest) = rest.split_at(lengths.name);
    let (version, rest) = rest.split_at(lengths.version);
    let (expires_ms, believed_s) = (u64_at(header, 24), u32_at(header, 32));
    match lengths.kind {
        Kind::Tombstone => Body::Tombstone { origin: expires_ms },
        Kind::Mark => Body::Mark { origin: expires_ms },
        Kind::DirtyDelete => Body::DirtyDelete { bucket, name },
        Kind::Put | Kind::DirtyPut => Body::Put {
            bucket,
            name,
            version,
            value: &rest[..lengths.value],
            expires: (expires_ms != 0).then_some(Timestamp(expires_ms)),
            believed_until_s: (believed_s != FOR_EVER_S).then_some(believed_s),
            has_older: u16_at(header, 36) & HAS_OLDER != 0,
            is_dirty: lengths.kind == Kind::DirtyPut,
        },
    }
}

/// The entry of a put, its version and value as parts of `record`, which it was decoded from; `None` for a version that
/// is none.
pub(super) fn entry_in(record: &Bytes, body: &Body<'_>) -> Option<Entry> {
    let Body::Put { version, value, expires, .. } = *body else { return None };
    let version = Version::new(record.slice_ref(version))?;
    Some(Entry { value: record.slice_ref(value), version, expires })
}

/// Rounded down, and below the number that says "for ever".
fn whole_seconds(until: Timestamp) -> u32 {
    u32::try_from(until.0 / 1000).unwrap_or(FOR_EVER_S).min(FOR_EVER_S - 1)
}

pub(super) fn u16_at(bytes: &[u8], start: usize) -> u16 {
    u16::from_le_bytes(bytes[start..start + 2].try_into().expect("two bytes"))
}

pub(super) fn u32_at(bytes: &[u8], start: usize) -> u32 {
    u32::from_le_bytes(bytes[start..start + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_at(bytes: &[u8], start: usize) -> u64 {
    u64::from_le_bytes(bytes[start..start + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::testing::{Random, hex, seeds};

    fn put() -> Record<'static> {
        let body = Body::Put {
            bucket: b"default",
            name: b"name",
            version: b"v1",
            value: b"value",
            expires: Some(Timestamp(1_700_000_000_123)),
            believed_until_s: Some(1_700_000_000),
            has_older: true,
            is_dirty: false,
        };
        Record { sequence: 7, key_hash: 0x1122_3344_5566_7788, body }
    }

    fn dirty_put() -> Record<'static> {
        let mut record = put();
        let Body::Put { is_dirty, .. } = &mut record.body else { unreachable!("it is a put") };
        *is_dirty = true;
        record
    }

    fn dirty_delete() -> Record<'static> {
        let body = Body::DirtyDelete { bucket: b"default", name: b"name" };
        Record { sequence: 10, key_hash: 0x1122_3344_5566_7788, body }
    }

    fn mark() -> Record<'static> {
        Record { sequence: 12, key_hash: 0x0102_0304_0506_0708, body: Body::Mark { origin: 11 } }
    }

    fn one_of_each_kind() -> [Record<'static>; 5] {
        [put(), tombstone(), dirty_put(), dirty_delete(), mark()]
    }

    fn tombstone() -> Record<'static> {
        Record { sequence: 9, key_hash: 0x0102_0304_0506_0708, body: Body::Tombstone { origin: 8 } }
    }

    fn encoded(record: Record<'_>) -> BytesMut {
        let mut bytes = BytesMut::new();
        record.encode(&mut bytes);
        bytes
    }

    #[test]
    fn a_put_has_the_golden_bytes_of_version_1() {
        let bytes = encoded(put());
        assert_eq!(hex(&bytes), PUT_GOLDEN.replace([' ', '\n'], ""));
    }

    #[test]
    fn a_tombstone_has_the_golden_bytes_of_version_1() {
        assert_eq!(hex(&encoded(tombstone())), TOMBSTONE_GOLDEN.replace([' ', '\n'], ""));
    }

    #[test]
    fn dirty_records_and_marks_have_the_golden_bytes_of_version_1() {
        let golden = [DIRTY_PUT_GOLDEN, DIRTY_DELETE_GOLDEN, MARK_GOLDEN];
        for (record, golden) in [dirty_put(), dirty_delete(), mark()].into_iter().zip(golden) {
            assert_eq!(hex(&encoded(record)), golden.replace([' ', '\n'], ""), "{:?}", record.kind());
        }
    }

    const PUT_GOLDEN: &str = "\
        e9cf37a105000000070000000000000088776655443322117b68e5cf8b010000
        00f153650488070264656661756c746e616d65763176616c7565000000000000
    ";
    const DIRTY_PUT_GOLDEN: &str = "\
        dc48835005000000070000000000000088776655443322117b68e5cf8b010000
        00f153650498070264656661756c746e616d65763176616c7565000000000000
    ";
    const DIRTY_DELETE_GOLDEN: &str = "\
        2cd6b449000000000a0000000000000088776655443322110000000000000000
        000000000420070064656661756c746e616d6500000000000000000000000000
    ";
    const MARK_GOLDEN: &str = "\
        9b108b36000000000c0000000000000008070605040302010b00000000000000
        00000000002800000000000000000000
    ";
    const TOMBSTONE_GOLDEN: &str = "\
        1b59cc1300000000090000000000000008070605040302010800000000000000
        00000000001000000000000000000000
    ";

    #[test]
    fn what_was_encoded_is_what_is_decoded() {
        for record in one_of_each_kind() {
            let bytes = encoded(record);
            assert_eq!(Record::decode(&bytes), Ok((record, bytes.len())));
            assert_eq!(bytes.len(), record.bytes());
        }
    }

    #[test]
    fn a_record_cut_anywhere_says_what_it_needs_or_that_it_is_none() {
        for record in one_of_each_kind() {
            let bytes = encoded(record);
            for end in 0..bytes.len() {
                let expected = if end < HEADER_BYTES {
                    Invalid::Malformed
                } else {
                    Invalid::Truncated { record_bytes: bytes.len() }
                };
                assert_eq!(Record::decode(&bytes[..end]), Err(expected), "cut at {end}");
            }
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        for record in one_of_each_kind() {
            let mut bytes = encoded(record);
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(Record::decode(&bytes).is_err(), "bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn zeros_are_padding() {
        assert_eq!(Record::decode(&[0; 64]), Err(Invalid::Padding));
        let mut at_the_end_of_a_block = vec![0; UNIT_BYTES];
        at_the_end_of_a_block.extend_from_slice(&encoded(put()));
        assert_eq!(Record::decode(&at_the_end_of_a_block), Err(Invalid::Padding));
        assert_eq!(Record::decode(&[0; UNIT_BYTES]), Err(Invalid::Padding));
    }

    #[test]
    fn arbitrary_bytes_are_refused_and_never_read_beyond() {
        for seed in seeds(200) {
            let mut random = Random(seed);
            let mut bytes = encoded(put()).to_vec();
            for _ in 0..200 {
                // Half of them begin as a record, so that lengths are plausible now and then.
                match random.below(4) {
                    0 => bytes = (0..random.below(200)).map(|_| random.next() as u8).collect(),
                    1 => bytes = encoded(one_of_each_kind()[random.below(5) as usize]).to_vec(),
                    _ => {}
                }
                for _ in 0..random.below(4) {
                    if !bytes.is_empty() {
                        let index = random.below(bytes.len() as u64) as usize;
                        bytes[index] = random.next() as u8;
                    }
                }
                if let Ok((record, record_bytes)) = Record::decode(&bytes) {
                    assert_eq!(encoded(record), bytes[..record_bytes], "MILENA_SEED={seed}");
                }
            }
        }
    }

    #[test]
    fn a_record_whose_kind_does_not_fit_the_rest_is_malformed() {
        for record in one_of_each_kind() {
            let bytes = encoded(record);
            for number in (0..=KIND_MASK).filter(|number| *number != record.kind() as u16) {
                let mut bytes = bytes.clone();
                let shape = u16_at(&bytes, 36) & !(KIND_MASK << NAME_LEN_BITS) | number << NAME_LEN_BITS;
                bytes[36..38].copy_from_slice(&shape.to_le_bytes());
                let checksum = crc32c::crc32c(&bytes[4..]);
                bytes[..4].copy_from_slice(&checksum.to_le_bytes());
                // The two that have an entry look alike, and the two that have a hash alone.
                let is_alike = |other: Kind| match other {
                    Kind::Put | Kind::DirtyPut => record.kind().is_put(),
                    Kind::Tombstone | Kind::Mark => matches!(record.kind(), Kind::Tombstone | Kind::Mark),
                    Kind::DirtyDelete => false,
                };
                let is_legal = Kind::of(u64::from(number)).is_some_and(is_alike);
                assert_eq!(Record::decode(&bytes).is_ok(), is_legal, "{:?} as {number}", record.kind());
            }
        }
    }

    #[test]
    fn an_entry_in_a_record_shares_its_bytes() {
        let bytes = encoded(put()).freeze();
        let (record, _) = Record::decode(&bytes).unwrap();
        let entry = entry_in(&bytes, &record.body).unwrap();
        assert_eq!((&entry.value[..], entry.version.as_str()), (&b"value"[..], "v1"));
        assert!(bytes.as_ptr_range().contains(&entry.value.as_ptr()));
        assert_eq!(entry.expires, Some(Timestamp(1_700_000_000_123)));
    }

    #[test]
    fn the_end_of_time_does_not_become_for_ever() {
        assert_eq!(whole_seconds(Timestamp(u64::MAX)), FOR_EVER_S - 1);
    }
}
