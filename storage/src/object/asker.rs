//! Who asks a store: a helper thread, or a caller of the blocking interface. It owns what a request needs besides the
//! request: its share of the retry tokens, randomness, a clock, and the list of what was asked (for counters and bills).

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    mem, thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::retry::Quota;
use crate::Timestamp;

/// One per thread; nothing of it is shared.
#[derive(Debug)]
pub struct Asker {
    pub(super) quota: Quota,
    random: Random,
    asked: Vec<Asked>,
}

/// The kinds of requests to S3, as they are priced and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Request {
    /// A read.
    Get,
    /// A read of the metadata alone.
    Head,
    /// A write.
    Put,
    /// A removal.
    Delete,
}

/// List price of a GET or HEAD, in billionths of a dollar: $0.40 per million (S3 Standard, us-east-1, 2025).
pub const GET_NANODOLLARS: u64 = 400;
/// List price of a PUT: $5.00 per million.
pub const PUT_NANODOLLARS: u64 = 5_000;
/// List price of a DELETE: it is free.
pub const DELETE_NANODOLLARS: u64 = 0;

/// One request to S3, whatever came of it; an operation that is tried three times has asked three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What kind.
    pub request: Request,
    /// The status of the answer; `None` where none came, or not all of it.
    pub status: Option<u16>,
    /// From the signing to the last byte of the answer.
    pub took: Duration,
}

/// Numbers that nobody can guess or repeat: a keyed hash (SipHash, the standard library's, keyed by the operating
/// system's randomness) of a counter.
#[derive(Debug)]
struct Random {
    key: RandomState,
    count: u64,
}

impl Asker {
    /// One of `shares` threads that share the process's retry tokens.
    ///
    /// # Panics
    /// When `shares` is 0.
    #[must_use]
    pub fn new(shares: u32) -> Self {
        Self { quota: Quota::share(shares), random: Random { key: RandomState::new(), count: 0 }, asked: Vec::new() }
    }

    /// What was asked since the last call.
    pub fn take_asked(&mut self) -> Vec<Asked> {
        mem::take(&mut self.asked)
    }

    pub(super) fn note(&mut self, asked: Asked) {
        self.asked.push(asked);
    }

    pub(super) fn random_u32(&mut self) -> u32 {
        (self.random.next() >> 32) as u32
    }

    /// Sixteen bytes that no other request has, on any machine.
    pub(super) fn unique(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.random.next().to_le_bytes());
        bytes[8..].copy_from_slice(&self.random.next().to_le_bytes());
        bytes
    }

    /// The same as 32 hex digits.
    pub(super) fn unique_hex(&mut self) -> String {
        format!("{:032x}", u128::from_le_bytes(self.unique()))
    }

    /// The wall clock. A helper thread is a shell; what it decides with this takes it as an argument.
    pub(super) fn now() -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn wait(wait: Duration) {
        thread::sleep(wait);
    }
}

impl Random {
    fn next(&mut self) -> u64 {
        self.count += 1;
        self.key.hash_one(self.count)
    }
}

impl Request {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Get, Self::Head, Self::Put, Self::Delete];

    /// What one costs, in billionths of a dollar.
    #[must_use]
    pub const fn nanodollars(self) -> u64 {
        match self {
            Self::Get | Self::Head => GET_NANODOLLARS,
            Self::Put => PUT_NANODOLLARS,
            Self::Delete => DELETE_NANODOLLARS,
        }
    }

    /// The label `op` of metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Head => "head",
            Self::Put => "put",
            Self::Delete => "delete",
        }
    }
}

/// As in HTTP.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_requests_have_the_same_number_whoever_asks() {
        let mut askers = [Asker::new(1), Asker::new(1)];
        let mut seen = HashSet::new();
        for _ in 0..1000 {
            assert!(askers.iter_mut().all(|asker| seen.insert(asker.unique_hex())));
        }
    }

    #[test]
    fn a_million_puts_cost_five_dollars_and_a_million_gets_forty_cents() {
        assert_eq!(Request::Put.nanodollars() * 1_000_000, 5_000_000_000);
        assert_eq!(Request::Get.nanodollars() * 1_000_000, 400_000_000);
    }
}
