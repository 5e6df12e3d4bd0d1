//! What the log's tests share: seeds, and bytes as text.

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
