//! Every maximum that a client can meet, with the relations that must hold between them.

/// Longest bucket name in characters, which are bytes: `[A-Za-z0-9-]`.
pub const BUCKET_BYTES_MAX: usize = 63;

/// Longest key in bytes, as S3's own.
pub const KEY_BYTES_MAX: usize = 1024;

/// Largest value in bytes unless a setting says otherwise.
pub const VALUE_BYTES_MAX_DEFAULT: usize = 5 << 20;

/// The most that a setting may allow for a value, in bytes.
pub const VALUE_BYTES_MAX: usize = 64 << 20;

/// What a message may hold beyond key, bucket and value, in bytes: tags, lengths, the numbers of a Put, a
/// version of up to 1 KiB, and room for fields that are yet to come.
pub const MESSAGE_OVERHEAD_BYTES_MAX: usize = 8 << 10;

/// The largest legal gRPC message in bytes for values of at most `value_bytes_max`; more is refused
/// before it is buffered.
#[must_use]
pub const fn message_bytes_max(value_bytes_max: usize) -> usize {
    value_bytes_max + KEY_BYTES_MAX + BUCKET_BYTES_MAX + MESSAGE_OVERHEAD_BYTES_MAX
}

/// Entries of one batch.
pub const BATCH_ENTRIES_MAX: usize = 1_000;

/// The largest answer to a BatchGet in bytes, unless one value alone may be larger.
pub const BATCH_ANSWER_BYTES_MAX: usize = 16 << 20;

/// The largest answer to a BatchGet in bytes where values have at most `value_bytes_max`: a batch of one key is
/// always answered, as a Get would be. A BatchPut is bounded as every other request, by [`message_bytes_max`].
#[must_use]
pub const fn batch_answer_bytes_max(value_bytes_max: usize) -> usize {
    let one_bytes_max = message_bytes_max(value_bytes_max);
    if one_bytes_max > BATCH_ANSWER_BYTES_MAX { one_bytes_max } else { BATCH_ANSWER_BYTES_MAX }
}

/// Slots in a topology, dead or alive.
pub const SLOTS_MAX: usize = 65_536;

/// Cores of one node.
pub const CORES_MAX: usize = 256;

/// Virtual shards that keys are spread over before they are given to cores; fixed for ever, so that a
/// node with another number of cores finds its keys by moving whole runs.
pub const VIRTUAL_SHARDS: u32 = 1024;

// A message's length is a 32-bit number on the wire, and flow control windows are 31-bit ones.
const _: () = assert!(message_bytes_max(VALUE_BYTES_MAX) < (1 << 31));
const _: () = assert!(VALUE_BYTES_MAX_DEFAULT <= VALUE_BYTES_MAX);
const _: () = assert!(batch_answer_bytes_max(VALUE_BYTES_MAX) < (1 << 31));
const _: () = assert!(batch_answer_bytes_max(VALUE_BYTES_MAX_DEFAULT) == BATCH_ANSWER_BYTES_MAX);
// As many of the longest keys as are allowed fit a request, unless values are set to be small.
const _: () = assert!(BATCH_ENTRIES_MAX * (KEY_BYTES_MAX + 4) <= message_bytes_max(VALUE_BYTES_MAX_DEFAULT));
const _: () = assert!(KEY_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(CORES_MAX <= VIRTUAL_SHARDS as usize);
