//! Batches as they stand in their messages, not decoded: how many entries there are, and each of them, borrowed.
//!
//! ```text
//!   BatchGet, BatchDelete   ├ 1 bucket ┤├ 2 key ┤├ 2 key ┤ …      the bucket may stand behind its keys
//!   BatchPut                ├ 1 entry ┤├ 1 entry ┤ …              each a Put, with a bucket of its own
//!   every answer            ├ 1 result ┤├ 1 result ┤ …
//! ```
//! Entries are counted before anything is made of them: two bytes of a message are an entry, and what is decoded from
//! them is a hundred times as large.

use std::{fmt, ops::Deref};

use crate::{
    fields::{self, Field},
    key::{Bucket, KeyError, KeyRef},
    limits::BATCH_ENTRIES_MAX,
};

/// Field numbers of [`BatchKeys`].
pub const BUCKET_FIELD: u32 = 1;
/// See [`BUCKET_FIELD`].
pub const KEY_FIELD: u32 = 2;
/// Where a BatchPut has its entries and every answer its results.
pub const ENTRY_FIELD: u32 = 1;

/// The keys of a BatchGet or BatchDelete.
#[derive(Clone, Debug)]
pub struct BatchKeys<'a> {
    message: &'a [u8],
    bucket: Result<Bucket<'a>, KeyError>,
    count: usize,
}

/// The entries of a BatchPut, or the results of any batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchEntries<'a> {
    message: &'a [u8],
    count: usize,
}

/// What stands before an entry: its field's number and its length.
#[derive(Clone, Copy, Debug)]
pub struct EntryHead {
    bytes: [u8; ENTRY_HEAD_BYTES_MAX],
    count: usize,
}

/// One byte for a number below 16, and a varint for lengths of up to 32 bits
/// (<https://protobuf.dev/programming-guides/encoding/>).
const ENTRY_HEAD_BYTES_MAX: usize = 6;

/// Why a batch is refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchError {
    /// More than [`BATCH_ENTRIES_MAX`] entries.
    TooManyEntries {
        /// Entries found.
        found: usize,
    },
    /// One of the keys to be read is not legal.
    Key {
        /// Which, from 0.
        index: usize,
        /// Why.
        error: KeyError,
    },
    /// The message is not protobuf.
    Malformed,
}

impl<'a> BatchKeys<'a> {
    /// Finds the bucket and counts the keys. O(keys); allocates nothing.
    ///
    /// # Errors
    /// The message is not protobuf, or has too many keys. What is wrong with the bucket is said of every key.
    pub fn in_message(message: &'a [u8]) -> Result<Self, BatchError> {
        let (mut bucket, mut count) = (&[][..], 0);
        for field in fields::of(message) {
            let Field { number, bytes } = field.map_err(|_| BatchError::Malformed)?;
            match number {
                BUCKET_FIELD => bucket = bytes.ok_or(BatchError::Malformed)?,
                KEY_FIELD => count += bytes.map(|_| 1).ok_or(BatchError::Malformed)?,
                _ => {}
            }
        }
        check_count(count)?;
        Ok(Self { message, bucket: Bucket::parse(bucket), count })
    }

    /// How many keys there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The keys in their order, each with what is wrong with it.
    pub fn keys(&self) -> impl Iterator<Item = Result<KeyRef<'a>, KeyError>> + use<'a> {
        let bucket = self.bucket.clone();
        payloads(self.message, KEY_FIELD).map(move |name| match &bucket {
            Ok(bucket) => bucket.key(name),
            Err(error) => Err(error.clone()),
        })
    }
}

impl<'a> BatchEntries<'a> {
    /// Counts the entries. O(entries), whatever their size; allocates nothing.
    ///
    /// # Errors
    /// The message is not protobuf, or has too many entries.
    pub fn in_message(message: &'a [u8]) -> Result<Self, BatchError> {
        let mut count = 0;
        for field in fields::of(message) {
            let Field { number, bytes } = field.map_err(|_| BatchError::Malformed)?;
            if number == ENTRY_FIELD {
                count += bytes.map(|_| 1).ok_or(BatchError::Malformed)?;
            }
        }
        check_count(count)?;
        Ok(Self { message, count })
    }

    /// How many entries there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The entries in their order: messages, of which nothing has been checked.
    pub fn entries(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        payloads(self.message, ENTRY_FIELD)
    }
}

/// What stands before an entry of `entry_bytes` in field `number`, which is at most 15.
#[must_use]
pub fn entry_head(number: u32, entry_bytes: usize) -> EntryHead {
    const LENGTH_DELIMITED: u32 = 2;
    debug_assert!((1..16).contains(&number));
    let mut head = EntryHead { bytes: [0; ENTRY_HEAD_BYTES_MAX], count: 1 };
    head.bytes[0] = (number << 3 | LENGTH_DELIMITED) as u8;
    let mut length = u32::try_from(entry_bytes).expect("a message's length has 32 bits");
    while length >= 0x80 {
        head.bytes[head.count] = (length & 0x7f) as u8 | 0x80;
        head.count += 1;
        length >>= 7;
    }
    head.bytes[head.count] = length as u8;
    head.count += 1;
    head
}

impl Deref for EntryHead {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.count]
    }
}

fn check_count(found: usize) -> Result<(), BatchError> {
    if found <= BATCH_ENTRIES_MAX { Ok(()) } else { Err(BatchError::TooManyEntries { found }) }
}

/// What stands in the fields `wanted` of a message that has been walked before.
fn payloads(message: &[u8], wanted: u32) -> impl Iterator<Item = &[u8]> {
    fields::of(message)
        .map_while(Result::ok)
        .filter(move |field| field.number == wanted)
        .filter_map(|field| field.bytes)
}

/// Names field, found, allowed, as the interface promises.
impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyEntries { found } => {
                write!(f, "the batch has {found} entries; at most {BATCH_ENTRIES_MAX} are allowed")
            }
            Self::Key { index, error } => write!(f, "keys[{index}]: {error}"),
            Self::Malformed => KeyError::Malformed.fmt(f),
        }
    }
}

impl std::error::Error for BatchError {}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message as _;

    use super::*;
    use crate::cache_server::{BatchGetRequest, BatchPutRequest, PutRequest};

    fn gets(bucket: &str, keys: &[&'static str]) -> Vec<u8> {
        let keys = keys.iter().map(|key| Bytes::from_static(key.as_bytes())).collect();
        BatchGetRequest { bucket: bucket.into(), keys }.encode_to_vec()
    }

    #[test]
    fn keys_come_in_their_order_also_when_their_bucket_stands_behind_them() {
        for message in [gets("b", &["x", "y", "x"]), b"\x12\x01x\x12\x01y\x0a\x01a\x12\x01x\x0a\x01b".to_vec()] {
            let batch = BatchKeys::in_message(&message).unwrap();
            let keys: Vec<_> = batch.keys().map(|key| key.unwrap().to_key().to_string()).collect();
            assert_eq!((batch.count(), keys), (3, vec!["b/x".into(), "b/y".into(), "b/x".into()]));
        }
    }

    #[test]
    fn what_is_wrong_with_a_key_is_said_of_it_and_what_is_wrong_with_the_bucket_of_all() {
        let long = "k".repeat(1025).leak();
        let message = gets("b", &["x", "", long]);
        let found: Vec<_> = BatchKeys::in_message(&message).unwrap().keys().map(Result::err).collect();
        let expected = [None, Some(KeyError::KeyLength { found: 0 }), Some(KeyError::KeyLength { found: 1025 })];
        assert_eq!(found, expected);
        let message = gets("b_", &["x", ""]);
        let wrong = KeyError::BucketCharacter { found: b'_', index: 1 };
        assert!(BatchKeys::in_message(&message).unwrap().keys().all(|key| key == Err(wrong.clone())));
    }

    #[test]
    fn entries_are_slices_of_their_message() {
        let put = |key: &'static str| PutRequest {
            key: Bytes::from_static(key.as_bytes()),
            bucket: "b".into(),
            value: vec![7; 100].into(),
            ..Default::default()
        };
        let message = BatchPutRequest { entries: vec![put("x"), PutRequest::default(), put("y")] }.encode_to_vec();
        let batch = BatchEntries::in_message(&message).unwrap();
        let names: Vec<_> = batch.entries().map(|entry| KeyRef::in_message(entry).ok().map(|key| key.name())).collect();
        assert_eq!((batch.count(), names), (3, vec![Some(&b"x"[..]), None, Some(b"y")]));
        assert!(batch.entries().all(|entry| message.as_ptr_range().contains(&entry.as_ptr()) || entry.is_empty()));
    }

    #[test]
    fn more_entries_than_are_allowed_are_refused_with_how_many_there_are() {
        let keys = |count: usize| b"\x12\x01k".repeat(count);
        assert_eq!(BatchKeys::in_message(&keys(1_000)).unwrap().count(), 1_000);
        let error = BatchKeys::in_message(&keys(1_001)).unwrap_err();
        assert_eq!(error.to_string(), "the batch has 1001 entries; at most 1000 are allowed");
        assert_eq!(BatchEntries::in_message(&b"\x0a\x00".repeat(1_000)).unwrap().count(), 1_000);
        let error = BatchEntries::in_message(&b"\x0a\x00".repeat(5_000)).unwrap_err();
        assert_eq!(error, BatchError::TooManyEntries { found: 5_000 });
    }

    #[test]
    fn heads_are_as_protobuf_has_them() {
        for length in [0, 1, 127, 128, 16_383, 16_384, 5 << 20, u32::MAX as usize] {
            let mut expected = Vec::new();
            prost::encoding::encode_key(KEY_FIELD, prost::encoding::WireType::LengthDelimited, &mut expected);
            prost::encoding::encode_varint(length as u64, &mut expected);
            assert_eq!(&*entry_head(KEY_FIELD, length), expected, "{length}");
        }
    }

    #[test]
    fn a_batch_of_nothing_has_no_entries_and_a_message_that_is_none_is_malformed() {
        assert_eq!(BatchKeys::in_message(b"").unwrap().keys().count(), 0);
        assert_eq!(BatchEntries::in_message(b"").unwrap().entries().count(), 0);
        for message in [&b"\x12\x05k"[..], b"\x10\x01", b"\x08\x01"] {
            assert_eq!(BatchKeys::in_message(message).unwrap_err(), BatchError::Malformed);
        }
        assert_eq!(BatchEntries::in_message(b"\x08\x01").unwrap_err(), BatchError::Malformed);
    }
}
