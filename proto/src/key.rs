//! A key: a bucket and a name within it, checked once where it enters and carried with its hash from there on.
//!
//! ```text
//!   message ──KeyRef::in_message──▶ KeyRef<'_>  borrowed from the message, Copy: enough for a hit
//!                                      │ to_key()
//!                                      ▼
//!                                    Key        owned, one buffer, cheap to clone: crosses cores and waits
//! ```

use std::{
    fmt,
    hash::{Hash, Hasher},
};

use bytes::Bytes;

use crate::{
    fields::{self, Field},
    limits::{BUCKET_BYTES_MAX, KEY_BYTES_MAX},
    placement::{KeyHash, bucket_hash, key_hash_in},
};

/// A legal bucket and key, borrowed. Carries the hash that places it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRef<'a> {
    hash: KeyHash,
    bucket: &'a [u8],
    name: &'a [u8],
}

/// A legal bucket, borrowed: what the keys of one batch have in common is checked and hashed once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket<'a> {
    hash: u64,
    bytes: &'a [u8],
}

/// A legal bucket and key, owned in one buffer: cloning it counts a reference, nothing is copied.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    hash: KeyHash,
    /// The bucket and then the name, without anything between.
    bytes: Bytes,
    bucket_bytes: u8,
}

/// Why a bucket and key, or the message that should hold them, were refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// The bucket has no bytes or more than [`BUCKET_BYTES_MAX`].
    BucketLength {
        /// Bytes found.
        found: usize,
    },
    /// The bucket has a character outside `[A-Za-z0-9-]`.
    BucketCharacter {
        /// The first such byte.
        found: u8,
        /// Where it stands, from 0.
        index: usize,
    },
    /// The key has no bytes or more than [`KEY_BYTES_MAX`].
    KeyLength {
        /// Bytes found.
        found: usize,
    },
    /// The message is not protobuf.
    Malformed,
}

impl<'a> Bucket<'a> {
    /// Checks a bucket. O(bytes).
    ///
    /// # Errors
    /// A length outside 1 to [`BUCKET_BYTES_MAX`], or a character that is not allowed.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, KeyError> {
        if bytes.is_empty() || bytes.len() > BUCKET_BYTES_MAX {
            return Err(KeyError::BucketLength { found: bytes.len() });
        }
        if let Some(index) = bytes.iter().position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'-') {
            return Err(KeyError::BucketCharacter { found: bytes[index], index });
        }
        Ok(Self { hash: bucket_hash(bytes), bytes })
    }

    /// A key of this bucket. O(bytes).
    ///
    /// # Errors
    /// A length outside 1 to [`KEY_BYTES_MAX`].
    pub fn key(self, name: &'a [u8]) -> Result<KeyRef<'a>, KeyError> {
        if name.is_empty() || name.len() > KEY_BYTES_MAX {
            return Err(KeyError::KeyLength { found: name.len() });
        }
        Ok(KeyRef { hash: key_hash_in(self.hash, name), bucket: self.bytes, name })
    }
}

impl<'a> KeyRef<'a> {
    /// Checks a bucket and a key and computes their hash. O(bytes).
    ///
    /// # Errors
    /// Lengths outside 1 to [`BUCKET_BYTES_MAX`] and 1 to [`KEY_BYTES_MAX`], or a character not allowed in a bucket.
    pub fn parse(bucket: &'a [u8], name: &'a [u8]) -> Result<Self, KeyError> {
        Bucket::parse(bucket)?.key(name)
    }

    /// Finds the bucket and key of a Get, Put or Delete without decoding the rest: fields 1 and 2 in each of them.
    ///
    /// As protobuf demands, fields may stand in any order and the last of several wins. O(fields), whatever the
    /// size of a value.
    ///
    /// # Errors
    /// As [`KeyRef::parse`], and [`KeyError::Malformed`] where the message is not protobuf.
    pub fn in_message(message: &'a [u8]) -> Result<Self, KeyError> {
        let [name, bucket] = key_fields(message).ok_or(KeyError::Malformed)?;
        Self::parse(bucket, name)
    }

    /// The hash that places this key.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        self.hash
    }

    /// The bucket, which is ASCII.
    #[must_use]
    pub fn bucket(&self) -> &'a str {
        std::str::from_utf8(self.bucket).expect("checked to be ASCII")
    }

    /// The same as bytes, which costs nothing.
    #[must_use]
    pub fn bucket_bytes(&self) -> &'a [u8] {
        self.bucket
    }

    /// The key within its bucket: any bytes.
    #[must_use]
    pub fn name(&self) -> &'a [u8] {
        self.name
    }

    /// An owned copy: one allocation.
    #[must_use]
    pub fn to_key(&self) -> Key {
        let mut bytes = Vec::with_capacity(self.bucket.len() + self.name.len());
        bytes.extend_from_slice(self.bucket);
        bytes.extend_from_slice(self.name);
        let bucket_bytes = u8::try_from(self.bucket.len()).expect("at most BUCKET_BYTES_MAX");
        Key { hash: self.hash, bytes: Bytes::from(bytes), bucket_bytes }
    }
}

const _: () = assert!(BUCKET_BYTES_MAX <= u8::MAX as usize);

impl Key {
    /// The same key, borrowed.
    #[must_use]
    pub fn as_ref(&self) -> KeyRef<'_> {
        let (bucket, name) = self.bytes.split_at(usize::from(self.bucket_bytes));
        KeyRef { hash: self.hash, bucket, name }
    }

    /// The hash that places this key.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        self.hash
    }

    /// The bucket.
    #[must_use]
    pub fn bucket(&self) -> &str {
        self.as_ref().bucket()
    }

    /// The key within its bucket.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.as_ref().name
    }
}

impl Hash for KeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// `bucket/name`, bytes that are not printable ASCII escaped.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bucket(), self.name().escape_ascii())
    }
}

/// Names field, found, allowed, as the interface promises.
impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BucketLength { found } => {
                write!(f, "bucket has {found} characters; 1 to {BUCKET_BYTES_MAX} are allowed")
            }
            Self::BucketCharacter { found, index } => write!(
                f,
                "bucket has '{}' at position {index}; letters, digits and '-' are allowed",
                found.escape_ascii()
            ),
            Self::KeyLength { found } => write!(f, "key has {found} bytes; 1 to {KEY_BYTES_MAX} are allowed"),
            Self::Malformed => f.write_str("the message is not a legal protobuf message"),
        }
    }
}

impl std::error::Error for KeyError {}

/// Fields 1 and 2 of a message, empty where absent; `None` if it is not protobuf.
fn key_fields(message: &[u8]) -> Option<[&[u8]; 2]> {
    let mut key_fields: [&[u8]; 2] = [&[], &[]];
    for field in fields::of(message) {
        let Field { number, bytes } = field.ok()?;
        if let 1 | 2 = number {
            key_fields[number as usize - 1] = bytes?;
        }
    }
    Some(key_fields)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::{cache_server::PutRequest, placement::key_hash};

    #[test]
    fn a_key_in_a_put_is_found_without_decoding_its_value() {
        let message = PutRequest {
            key: Bytes::from_static(b"name\xff"),
            bucket: "default".into(),
            value: Bytes::from(vec![7; 100_000]),
            ttl_ms: 5,
            if_version: "v".into(),
            if_absent: true,
            ..Default::default()
        }
        .encode_to_vec();
        let key = KeyRef::in_message(&message).unwrap();
        assert_eq!((key.bucket(), key.name()), ("default", &b"name\xff"[..]));
        assert_eq!(key.hash(), key_hash(b"default", b"name\xff"));
    }

    #[test]
    fn the_last_of_several_equal_fields_wins() {
        let message = b"\x0a\x01a\x12\x01b\x0a\x01c";
        assert_eq!(KeyRef::in_message(message).unwrap(), KeyRef::parse(b"b", b"c").unwrap());
    }

    #[test]
    fn a_message_cut_anywhere_is_malformed_or_lacks_a_field() {
        let message = b"\x12\x03abc\x0a\x04name\x18\x96\x01";
        assert!(KeyRef::in_message(message).is_ok());
        for end in 0..message.len() {
            let cut = KeyRef::in_message(&message[..end]);
            let whole_fields = end == 11; // bucket and key are there, the number after them is not begun
            assert_eq!(cut.is_ok(), whole_fields, "cut at {end}: {cut:?}");
        }
    }

    #[test]
    fn lengths_and_characters_outside_the_contract_are_refused_with_what_is_allowed() {
        let long = vec![b'x'; 1025];
        let cases: [(&[u8], &[u8], &str); 6] = [
            (b"", b"k", "bucket has 0 characters; 1 to 63 are allowed"),
            (&long[..64], b"k", "bucket has 64 characters; 1 to 63 are allowed"),
            (b"a_b", b"k", "bucket has '_' at position 1; letters, digits and '-' are allowed"),
            (b"b\xc3\xa4", b"k", "bucket has '\\xc3' at position 1; letters, digits and '-' are allowed"),
            (b"b", b"", "key has 0 bytes; 1 to 1024 are allowed"),
            (b"b", &long, "key has 1025 bytes; 1 to 1024 are allowed"),
        ];
        for (bucket, name, text) in cases {
            assert_eq!(KeyRef::parse(bucket, name).unwrap_err().to_string(), text);
        }
        assert!(KeyRef::parse(&long[..63], &long[..1024]).is_ok());
        assert!(KeyRef::parse(b"AZaz09-", b"\0").is_ok());
    }

    #[test]
    fn an_owned_key_equals_its_source_and_keeps_bucket_and_name_apart() {
        let one = KeyRef::parse(b"a", b"bc").unwrap().to_key();
        let other = KeyRef::parse(b"ab", b"c").unwrap().to_key();
        assert_ne!(one, other);
        assert_eq!(one.as_ref(), KeyRef::parse(b"a", b"bc").unwrap());
        assert_eq!(one.to_string(), "a/bc");
    }
}
