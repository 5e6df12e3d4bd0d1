//! What a key holds: a value, its version, and how long it lives.

use std::fmt;

use bytes::Bytes;

/// Milliseconds since the Unix epoch, UTC. An argument wherever it matters; only the shells read a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The moment `ms` milliseconds later, at most the end of time.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// Which of a key's values this is: opaque, equal only to itself. S3's ETag without its quotes where S3 answered.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Version(Bytes);

/// Longest version in bytes; ETags are 32 to 40.
pub const VERSION_BYTES_MAX: usize = 1024;

impl Version {
    /// A version of these bytes, or `None` unless they are 1 to [`VERSION_BYTES_MAX`] printable ASCII characters.
    ///
    /// Anything else could not travel in an HTTP header, which is where versions come from and go to.
    #[must_use]
    pub fn new(text: Bytes) -> Option<Self> {
        let is_legal = (1..=VERSION_BYTES_MAX).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic);
        is_legal.then_some(Self(text))
    }

    /// A version whose bytes were one before: memory hands out what it was given.
    pub(crate) fn checked_before(text: Bytes) -> Self {
        debug_assert!(Self::new(text.clone()).is_some());
        Self(text)
    }

    /// The version as bytes, which costs nothing.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The version as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("checked to be ASCII")
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A value with its version and its life. Cloning counts references; the value is never copied.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The bytes, possibly none.
    pub value: Bytes,
    /// Which value this is.
    pub version: Version,
    /// When the value ends, in every tier; `None` = never. Not to be confused with how long a cached *copy* is believed.
    pub expires: Option<Timestamp>,
}

impl Entry {
    /// Whether the value's life has ended at `now`.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({} bytes, version {:?}, expires {:?})", self.value.len(), self.version, self.expires)
    }
}
