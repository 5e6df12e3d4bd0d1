//! A workload that is drawn by chance, as the client's cores ask for it.

use bytes::Bytes;

use crate::{
    drive::Load,
    protocol::{Answer, Failure, Verb},
    random::Random,
    workload::{Draw, Op, Operation, Workload},
};

/// The stream of random numbers that is for values.
const VALUES: u64 = 1 << 33;

/// One core's share of a workload.
#[derive(Debug)]
pub struct Synthetic {
    draw: Draw,
    preloaded: u64,
    /// Random bytes that no compression makes smaller; every value is its beginning, which costs no copy.
    bytes: Bytes,
}

impl Synthetic {
    /// The share of core number `core` of `cores`, which has up to `inflight_max` requests in flight.
    #[must_use]
    pub fn new(workload: &Workload, core: usize, cores: usize, inflight_max: usize) -> Self {
        let mut random = Random::new(workload.seed, VALUES);
        let words = (workload.value_size.bytes_max() as usize).div_ceil(8);
        let bytes: Vec<u8> = (0..words).flat_map(|_| random.bits().to_le_bytes()).collect();
        let preloaded = if workload.is_preloaded { 0 } else { u64::MAX };
        Self { draw: Draw::new(workload, core, cores, inflight_max), preloaded, bytes: bytes.into() }
    }
}

impl Load for Synthetic {
    fn preload(&mut self) -> Option<Operation> {
        if self.preloaded == u64::MAX {
            return None;
        }
        let operation = self.draw.preload(self.preloaded);
        self.preloaded += 1;
        operation
    }

    fn next(&mut self, like: Option<Op>) -> Option<Operation> {
        let operation = self.draw.draw();
        Some(Operation { op: like.unwrap_or(operation.op), ..operation })
    }

    fn value(&mut self, operation: &Operation) -> Bytes {
        self.bytes.slice(..operation.value_bytes as usize)
    }

    fn answered(&mut self, _: Verb, _: &[Operation], _: &Result<Answer, Failure>) {}
}
