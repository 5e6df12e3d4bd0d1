//! What the log's tests share: seeds, bytes as text, and keys that look like one.

use milena_proto::key::{Key, KeyRef};

/// splitmix64: enough for tests, and the same everywhere.
#[derive(Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        milena_proto::placement::mix64(self.0)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The seeds of a random test: `count` of them, or the one in MILENA_SEED.
pub(super) fn seeds(count: u64) -> impl Iterator<Item = u64> {
    match std::env::var("MILENA_SEED") {
        Ok(text) => {
            let seed: u64 = text.parse().expect("MILENA_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..count,
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const PRIME_1: u64 = 0x9E37_79B1_85EB_CA87;
const PRIME_2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const PRIME_3: u64 = 0x1656_67B1_9E37_79F9;
const PRIME_5: u64 = 0x27D4_EB2F_1656_67C5;

/// Two keys of the bucket `default` with the same 64-bit hash, as somebody could make them who knows XXH64: of 64 bytes
/// the second half undoes in one lane what the first half does to it.
pub(super) fn keys_with_equal_hashes() -> [Key; 2] {
    let seed = xxh64_of_seven(b"default");
    let lane = |input: u64| round(seed.wrapping_add(PRIME_1).wrapping_add(PRIME_2), input);
    let inputs = [u64::from_le_bytes(*b"collide1"), u64::from_le_bytes(*b"collide2")];
    let difference = lane(inputs[0]).wrapping_sub(lane(inputs[1]));
    // By Newton: each step doubles the bits that are right, and of an odd number three are its own inverse's.
    let inverse =
        (0..5).fold(PRIME_2, |inverse, _| inverse.wrapping_mul(2_u64.wrapping_sub(PRIME_2.wrapping_mul(inverse))));
    let undoing = [0, difference.wrapping_mul(inverse)];
    let keys = [0, 1].map(|index| {
        let mut name = [b'.'; 64];
        name[..8].copy_from_slice(&inputs[index].to_le_bytes());
        name[32..40].copy_from_slice(&undoing[index].to_le_bytes());
        KeyRef::parse(b"default", &name).expect("64 bytes").to_key()
    });
    assert!(keys[0] != keys[1] && keys[0].hash() == keys[1].hash());
    keys
}

fn round(lane: u64, input: u64) -> u64 {
    lane.wrapping_add(input.wrapping_mul(PRIME_2)).rotate_left(31).wrapping_mul(PRIME_1)
}

/// XXH64 with seed 0, of this length alone.
fn xxh64_of_seven(bytes: &[u8; 7]) -> u64 {
    let (word, rest) = bytes.split_first_chunk::<4>().expect("seven bytes");
    let mut hash = PRIME_5.wrapping_add(7);
    hash ^= u64::from(u32::from_le_bytes(*word)).wrapping_mul(PRIME_1);
    hash = hash.rotate_left(23).wrapping_mul(PRIME_2).wrapping_add(PRIME_3);
    for &byte in rest {
        hash ^= u64::from(byte).wrapping_mul(PRIME_5);
        hash = hash.rotate_left(11).wrapping_mul(PRIME_1);
    }
    hash = (hash ^ hash >> 33).wrapping_mul(PRIME_2);
    hash = (hash ^ hash >> 29).wrapping_mul(PRIME_3);
    hash ^ hash >> 32
}
