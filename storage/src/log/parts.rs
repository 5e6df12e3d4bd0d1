//! The log's parts for whoever measures them alone: a record written and read back, a key looked for in the index.
//!
//! ```text
//!   key, entry ── encode ──▶ bytes of a record ── decode ──▶ checked       record.rs
//!   hash ─────── candidates ──▶ places to look at                          index.rs
//! ```
//! Compiled with the feature `parts` only, which the benches ask for. Nothing here is a way to use the log.

use bytes::BytesMut;
use milena_proto::{key::KeyRef, placement::KeyHash};

use super::{
    index::{Index, Place},
    record::{Record, UNIT_BYTES},
};
use crate::Entry;

/// Appends the record of `entry` under `key` to `target`, as a Put of an entry that the store has. O(bytes).
pub fn encode(key: KeyRef<'_>, entry: &Entry, target: &mut BytesMut) {
    Record::put(1, key, entry, None, false).encode(target);
}

/// Checks the record at the start of `bytes` and says how long it is, in bytes; `None` if it is none. O(bytes).
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<usize> {
    Record::decode(bytes).ok().map(|(_, record_bytes)| record_bytes)
}

/// An index of places that nobody wrote to.
pub struct Probes {
    index: Index,
    found: Vec<Place>,
}

impl Probes {
    /// An index that has `hashes`, each at another place, in a log planned for as many records.
    ///
    /// # Panics
    /// With more places than a segment has.
    #[must_use]
    pub fn new(hashes: impl ExactSizeIterator<Item = KeyHash>) -> Self {
        const FIRST_OFFSET: u32 = 4096;
        let mut index = Index::new(hashes.len() as u64 * 1024);
        for (number, hash) in hashes.enumerate() {
            let units = u32::try_from(number * UNIT_BYTES).expect("within a segment");
            index.insert(hash, Place::new(1, FIRST_OFFSET + units, UNIT_BYTES));
        }
        Self { index, found: Vec::new() }
    }

    /// How many places may hold the key with this hash: what a Get looks at before it reads. O(1).
    pub fn candidates(&mut self, hash: KeyHash) -> usize {
        self.index.candidates(hash, &mut self.found);
        self.found.len()
    }
}

impl std::fmt::Debug for Probes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Probes({} keys)", self.index.len())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::Version;

    #[test]
    fn what_is_encoded_is_decoded_and_a_changed_byte_is_noticed() {
        let key = KeyRef::parse(b"b", b"k").unwrap();
        let version = Version::new(Bytes::from_static(b"v")).unwrap();
        let entry = Entry { value: Bytes::from_static(b"value"), version, expires: None };
        let mut bytes = BytesMut::new();
        encode(key, &entry, &mut bytes);
        assert_eq!(decode(&bytes), Some(bytes.len()));
        bytes[20] ^= 1;
        assert_eq!(decode(&bytes), None);
    }

    #[test]
    fn every_key_of_the_index_has_a_place_to_look_at() {
        let hashes = (0..10_000_u64).map(milena_proto::placement::mix64).collect::<Vec<_>>();
        let mut probes = Probes::new(hashes.iter().copied());
        assert!(hashes.iter().all(|hash| probes.candidates(*hash) >= 1));
    }
}
