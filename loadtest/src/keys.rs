//! Which keys are asked for, and what they are called.
//!
//! ```text
//!   uniform, zipf:S, hotspot:K,O     rank ──Scatter──▶ id      the hot keys lie anywhere, not where loading began
//!   latest:S                         newest id - rank          what was written last is asked for most
//!
//!   id 0x2a ──▶ "key-000000000000002a"    KEY_BYTES, for every id
//! ```
//! Pure; the same seed draws the same keys.

use std::{fmt, str::FromStr};

use crate::{
    random::{Random, mix},
    zipf::Zipf,
};

/// The number of a key within the population, from 0.
pub type KeyId = u64;

/// Length of each key's name in bytes.
pub const KEY_BYTES: usize = 20;

/// The exponent where none is written: YCSB's.
const EXPONENT: f64 = 0.99;

/// How often which key is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeyDist {
    /// Each as often as any other.
    Uniform,
    /// Rank k with a share of k to the power of minus this, exactly.
    Zipf(f64),
    /// The same over how new a key is.
    Latest(f64),
    /// A share of the keys gets a share of the operations.
    Hotspot {
        /// Above 0, below 1.
        keys_share: f64,
        /// From 0 to 1.
        ops_share: f64,
    },
}

/// A distribution that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDistError(String);

impl FromStr for KeyDist {
    type Err = KeyDistError;

    fn from_str(text: &str) -> Result<Self, KeyDistError> {
        let error = || KeyDistError(text.to_owned());
        let (name, argument) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
        let exponent = || match argument {
            None => Ok(EXPONENT),
            Some(text) => number(text).filter(|exponent| *exponent > 0.0).ok_or_else(error),
        };
        match name {
            "uniform" if argument.is_none() => Ok(Self::Uniform),
            "zipf" | "zipfian" => Ok(Self::Zipf(exponent()?)),
            "latest" => Ok(Self::Latest(exponent()?)),
            "hotspot" => {
                let (keys, ops) = argument.unwrap_or("0.2,0.8").split_once(',').ok_or_else(error)?;
                let keys_share = number(keys).filter(|share| *share > 0.0 && *share < 1.0).ok_or_else(error)?;
                let ops_share = number(ops).filter(|share| (0.0..=1.0).contains(share)).ok_or_else(error)?;
                Ok(Self::Hotspot { keys_share, ops_share })
            }
            _ => Err(error()),
        }
    }
}

impl fmt::Display for KeyDist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf(exponent) => write!(f, "zipf:{exponent}"),
            Self::Latest(exponent) => write!(f, "latest:{exponent}"),
            Self::Hotspot { keys_share, ops_share } => write!(f, "hotspot:{keys_share},{ops_share}"),
        }
    }
}

impl fmt::Display for KeyDistError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(found) = self;
        write!(f, "{found}: uniform, zipf:EXPONENT, latest:EXPONENT or hotspot:KEYS_SHARE,OPS_SHARE is expected")
    }
}

impl std::error::Error for KeyDistError {}

/// A population and how it is drawn from.
#[derive(Clone, Debug)]
pub struct Keys {
    count: u64,
    dist: KeyDist,
    zipf: Option<Zipf>,
    scatter: Scatter,
}

impl Keys {
    /// Keys 0 to `count` - 1, which is not 0, scattered by `seed`.
    #[must_use]
    pub fn new(count: u64, dist: KeyDist, seed: u64) -> Self {
        let zipf = match dist {
            KeyDist::Zipf(exponent) | KeyDist::Latest(exponent) => Some(Zipf::new(count, exponent)),
            KeyDist::Uniform | KeyDist::Hotspot { .. } => None,
        };
        Self { count, dist, zipf, scatter: Scatter::new(count, seed) }
    }

    /// How many there are at the beginning.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// A key, when there are `written` of them: ids 0 to `written` - 1. O(1).
    pub fn draw(&self, written: u64, random: &mut Random) -> KeyId {
        match self.dist {
            KeyDist::Uniform => random.below(self.count),
            KeyDist::Zipf(_) => self.scatter.place(self.zipf_rank(random)),
            KeyDist::Latest(_) => (written - 1).saturating_sub(self.zipf_rank(random)),
            KeyDist::Hotspot { keys_share, ops_share } => {
                let hot = ((self.count as f64 * keys_share) as u64).clamp(1, self.count);
                let is_hot = hot == self.count || random.share() < ops_share;
                let rank = if is_hot { random.below(hot) } else { hot + random.below(self.count - hot) };
                self.scatter.place(rank)
            }
        }
    }

    /// The key at `index` of a walk over all of them that looks like chance and begins anew after the last.
    #[must_use]
    pub fn walk(&self, index: u64) -> KeyId {
        self.scatter.place(index % self.count)
    }

    /// From 0.
    fn zipf_rank(&self, random: &mut Random) -> u64 {
        self.zipf.expect("made for this distribution").rank(random) - 1
    }
}

/// The name of a key.
#[must_use]
pub fn name(id: KeyId) -> [u8; KEY_BYTES] {
    let mut name = *b"key-0000000000000000";
    for (index, letter) in name[4..].iter_mut().enumerate() {
        let digit = (id >> (60 - 4 * index)) & 0xF;
        *letter = b"0123456789abcdef"[digit as usize];
    }
    name
}

/// A bijection of 0 to `count` - 1 that looks like chance.
///
/// Four rounds of a Feistel network over the next even number of bits, walked until the walk is back inside (Black and
/// Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002): at most four walks on average.
#[derive(Clone, Copy, Debug)]
struct Scatter {
    count: u64,
    half_bits: u32,
    seed: u64,
}

impl Scatter {
    fn new(count: u64, seed: u64) -> Self {
        assert!(count > 0, "no keys");
        let bits = 64 - (count - 1).leading_zeros();
        Self { count, half_bits: bits.div_ceil(2).max(1), seed: mix(seed) }
    }

    fn place(&self, rank: u64) -> u64 {
        debug_assert!(rank < self.count);
        let mut place = self.permute(rank);
        while place >= self.count {
            place = self.permute(place);
        }
        place
    }

    fn permute(&self, number: u64) -> u64 {
        let mask = (1_u64 << self.half_bits) - 1;
        let (mut left, mut right) = (number >> self.half_bits, number & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (mix(right ^ self.seed ^ (round << 56)) & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn shares(text: &str, count: u64, draws: u32) -> Vec<f64> {
        let keys = Keys::new(count, text.parse().unwrap(), 5);
        let mut random = Random::new(5, 0);
        let mut counts = vec![0_u32; count as usize];
        for _ in 0..draws {
            counts[keys.draw(count, &mut random) as usize] += 1;
        }
        counts.iter().map(|found| f64::from(*found) / f64::from(draws)).collect()
    }

    #[test]
    fn scattering_loses_no_key_and_doubles_none() {
        for count in [1, 2, 3, 4, 5, 1000, 1024, 1025] {
            let scatter = Scatter::new(count, 9);
            let places: HashSet<u64> = (0..count).map(|rank| scatter.place(rank)).collect();
            assert_eq!(places.len() as u64, count);
            assert!(places.iter().all(|place| *place < count));
        }
    }

    #[test]
    fn neighbours_in_rank_are_scattered_and_another_seed_scatters_otherwise() {
        let scatter = Scatter::new(1_000_000, 1);
        let near = (0..1000).filter(|rank| scatter.place(*rank).abs_diff(scatter.place(rank + 1)) < 1000);
        assert!(near.count() < 20);
        let other = Scatter::new(1_000_000, 2);
        assert!((0..1000).filter(|rank| scatter.place(*rank) == other.place(*rank)).count() < 5);
    }

    #[test]
    fn the_hottest_key_of_zipf_has_its_share_and_a_place_anywhere() {
        let shares = shares("zipf:0.99", 1000, 200_000);
        let hottest = shares.iter().copied().fold(0.0, f64::max);
        assert!((0.120..0.138).contains(&hottest), "{hottest}"); // 1 / (the sum of k^-0.99 to 1000) = 0.129
        assert!(shares[0] < 0.1, "rank 1 is not id 0 with this seed");
    }

    #[test]
    fn a_hot_spot_gets_its_share_of_the_operations() {
        let mut shares = shares("hotspot:0.1,0.7", 1000, 200_000);
        shares.sort_by(f64::total_cmp);
        let hot: f64 = shares[900..].iter().sum();
        assert!((0.68..0.72).contains(&hot), "{hot}");
    }

    #[test]
    fn the_latest_keys_are_asked_for_most_also_when_more_are_written() {
        let keys = Keys::new(1000, KeyDist::Latest(0.99), 1);
        let mut random = Random::new(1, 0);
        let draws: Vec<u64> = (0..10_000).map(|_| keys.draw(5000, &mut random)).collect();
        assert!(draws.iter().all(|id| (4000..5000).contains(id)));
        assert!(draws.iter().filter(|id| **id == 4999).count() > 1000);
    }

    #[test]
    fn names_are_distinct_and_of_one_length() {
        assert_eq!(&name(0x2a), b"key-000000000000002a");
        assert_eq!(&name(u64::MAX), b"key-ffffffffffffffff");
    }

    #[test]
    fn distributions_are_read_as_they_are_written_and_others_refused() {
        for text in ["uniform", "zipf:0.99", "latest:1.2", "hotspot:0.2,0.8"] {
            assert_eq!(text.parse::<KeyDist>().unwrap().to_string(), text);
        }
        assert_eq!("zipf".parse(), Ok(KeyDist::Zipf(0.99)));
        for text in ["", "zipf:", "zipf:-1", "zipf:nan", "uniform:1", "hotspot:0.2", "hotspot:0,1", "pareto"] {
            let error = text.parse::<KeyDist>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text}: ")), "{error}");
        }
    }
}
