//! Which node and which core own a key. Pure: the same on every machine, in every version, for ever.
//!
//! ```text
//!   key, bucket ──XXH64──▶ kh ──┬─ jump over the slots, dead ones skipped by salted probes ──▶ slot (a node)
//!                               └─ mixed again, jump over 1,024 virtual shards ──▶ vshard ──▶ core
//! ```
//! Node and core are picked by *different* hashes of the key: jump's path for few buckets is a prefix of its path
//! for many, so with one hash the node's number would determine the core's and each node would use one core.
//!
//! Slots keep their number while their node is down, so a key moves only off the slot that died or back onto the
//! slot that returned, and two routers that know the same set of dead slots agree, whatever died first.
//!
//! Sources: jump: Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm", 2014. The mixer is
//! splitmix64's finaliser: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
//! Salted retries against weights: mcrouter's `WeightedCh3HashFunc`.

use xxhash_rust::xxh64::xxh64;

use crate::limits::VIRTUAL_SHARDS;

/// A key's hash for placement: XXH64 of the key, seeded with XXH64 of the bucket.
pub type KeyHash = u64;

/// The weight of a slot that owns its full share. A dead slot has weight 0.
pub const WEIGHT_FULL: u64 = 1 << 32;

/// Sets the core's hash apart from the node's.
const CORE: u64 = 0xA24B_AED4_963E_E407;

/// Sets the acceptance of a slot apart from its choice.
const ACCEPT: u64 = 0x9FB2_1C65_1E98_DF25;

/// The golden ratio's odd multiplier, splitmix64's increment.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Salted tries for a slot that is alive. With half the slots dead, all fail once in 2^64.
const PROBES_MAX: u64 = 64;

/// The weight of a slot with this share on the wire, where 0 is nothing and [`u32::MAX`] all that probe it.
#[must_use]
pub fn weight(share: u32) -> u64 {
    if share == u32::MAX { WEIGHT_FULL } else { share.into() }
}

/// The hash that places `key` of `bucket`.
#[must_use]
pub fn key_hash(bucket: &[u8], key: &[u8]) -> KeyHash {
    key_hash_in(bucket_hash(bucket), key)
}

/// What the hashes of all keys of `bucket` begin with.
#[must_use]
pub fn bucket_hash(bucket: &[u8]) -> u64 {
    xxh64(bucket, 0)
}

/// The hash that places `key` of the bucket with this [`bucket_hash`].
#[must_use]
pub fn key_hash_in(bucket_hash: u64, key: &[u8]) -> KeyHash {
    xxh64(key, bucket_hash)
}

/// The slot that owns a key with hash `hash`, or `None` when every slot has weight 0.
///
/// `weights` has one number for each slot, from 0 (dead) to [`WEIGHT_FULL`]. O(log slots) for each probe, and
/// 1 / (mean weight) probes on average.
#[must_use]
pub fn slot(hash: KeyHash, weights: &[u64]) -> Option<usize> {
    let slot_count = u32::try_from(weights.len()).expect("at most SLOTS_MAX slots");
    if slot_count == 0 {
        return None;
    }
    for probe in 0..PROBES_MAX {
        let slot = jump(salted(hash, probe), slot_count);
        if u64::from(acceptance(hash, slot)) < weights[slot as usize] {
            return Some(slot as usize);
        }
    }
    // As rare as it is, every router must answer alike.
    let live: Vec<usize> = (0..weights.len()).filter(|&slot| weights[slot] > 0).collect();
    let live_count = u32::try_from(live.len()).expect("no more than slots");
    (live_count > 0).then(|| live[jump(salted(hash, PROBES_MAX), live_count) as usize])
}

/// The virtual shard of a key, from 0 to [`VIRTUAL_SHARDS`] - 1.
#[must_use]
pub fn virtual_shard(hash: KeyHash) -> u32 {
    jump(mix64(hash ^ CORE), VIRTUAL_SHARDS)
}

/// The core, of `core_count`, that owns a key on its node: cores own runs of virtual shards that differ by at most one.
#[must_use]
pub fn core(hash: KeyHash, core_count: usize) -> usize {
    assert!(core_count >= 1);
    if core_count == 1 {
        return 0; // Only for speed.
    }
    virtual_shard(hash) as usize * core_count / VIRTUAL_SHARDS as usize
}

/// Jump consistent hash: a bucket from 0 to `bucket_count` - 1. O(log `bucket_count`).
#[must_use]
pub fn jump(mut key: u64, bucket_count: u32) -> u32 {
    assert!(bucket_count >= 1);
    let mut bucket = 0;
    let mut next = 0;
    while next < i64::from(bucket_count) {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "as the paper's figure 1 has it"
        )]
        let landed = ((bucket + 1) as f64 * ((1_i64 << 31) as f64 / ((key >> 33) + 1) as f64)) as i64;
        next = landed;
    }
    u32::try_from(bucket).expect("below bucket_count")
}

/// splitmix64's finaliser: every bit of the answer depends on every bit of `x`.
#[must_use]
pub const fn mix64(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn salted(hash: KeyHash, probe: u64) -> u64 {
    if probe == 0 { hash } else { mix64(hash.wrapping_add(probe.wrapping_mul(GOLDEN))) }
}

fn acceptance(hash: KeyHash, slot: u32) -> u32 {
    (mix64(hash ^ mix64(u64::from(slot).wrapping_add(ACCEPT))) >> 32) as u32
}
