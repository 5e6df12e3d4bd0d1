//! The superblock: the file that says what the other files of a log are.
//!
//! ```text
//! 0       8         12         16       24              32              36     38           40       64
//! ├ magic ┼ version ┼ checksum ┼ log_id ┼ segment_bytes ┼ segment_count ┼ core ┼ core_count ┼ zeros ┤
//! ```
//! Little-endian. `checksum` is CRC-32C over the 64 bytes with its own four as zeros. `log_id` is a random number that
//! every header and footer repeats, so that nothing left behind by another log is taken for this one's.

use std::fmt;

use bytes::{BufMut as _, BytesMut};

use super::{
    record::{UNIT_BYTES, u16_at, u32_at, u64_at},
    segment::{BLOCK_BYTES, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENTS_MAX},
};

/// The format of all files of a log: superblock, segments, index. Another version is another log, and starts empty.
pub(super) const FORMAT_VERSION: u32 = 1;

/// Bytes of the file.
pub(super) const SUPERBLOCK_BYTES: usize = 64;

const MAGIC: [u8; 8] = *b"MILLOG\r\n";

const _: () = assert!(SUPERBLOCK_BYTES.is_multiple_of(UNIT_BYTES));

/// What a log is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) log_id: u64,
    /// A multiple of [`BLOCK_BYTES`] from [`SEGMENT_BYTES_MIN`] to [`SEGMENT_BYTES_MAX`].
    pub(super) segment_bytes: u64,
    /// 1 to [`SEGMENTS_MAX`].
    pub(super) segment_count: u32,
    /// Whose log it is, of how many.
    pub(super) core: u16,
    pub(super) core_count: u16,
}

/// Why bytes are not a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperblockError {
    /// Fewer bytes than one, another magic, a checksum that does not hold, or figures out of their ranges.
    Damaged,
    /// Written by another version of the format.
    Version(u32),
}

impl Superblock {
    pub(super) fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = head(MAGIC, self.log_id);
        bytes.put_u64_le(self.segment_bytes);
        bytes.put_u32_le(self.segment_count);
        bytes.put_u16_le(self.core);
        bytes.put_u16_le(self.core_count);
        sealed_with_checksum(bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, SuperblockError> {
        let bytes: &[u8; SUPERBLOCK_BYTES] = bytes.first_chunk().ok_or(SuperblockError::Damaged)?;
        if bytes[..8] != MAGIC {
            return Err(SuperblockError::Damaged);
        }
        // First of all: another version may have its checksum elsewhere.
        let version = u32_at(bytes, 8);
        if version != FORMAT_VERSION {
            return Err(SuperblockError::Version(version));
        }
        let superblock = Self {
            log_id: u64_at(bytes, 16),
            segment_bytes: u64_at(bytes, 24),
            segment_count: u32_at(bytes, 32),
            core: u16_at(bytes, 36),
            core_count: u16_at(bytes, 38),
        };
        let is_legal = checksum_holds(bytes)
            && (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&superblock.segment_bytes)
            && superblock.segment_bytes.is_multiple_of(BLOCK_BYTES as u64)
            && (1..=SEGMENTS_MAX).contains(&superblock.segment_count)
            && superblock.core < superblock.core_count;
        if is_legal { Ok(superblock) } else { Err(SuperblockError::Damaged) }
    }
}

/// Where the 64-byte heads of all files have their checksum.
const CHECKSUM_START: usize = 12;

/// The beginning of the 64-byte head of a file, or of a part of one: what it is, and of which log.
pub(super) fn head(magic: [u8; 8], log_id: u64) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(SUPERBLOCK_BYTES);
    bytes.put_slice(&magic);
    bytes.put_u32_le(FORMAT_VERSION);
    bytes.put_u32_le(0); // The checksum, once the rest is in place.
    bytes.put_u64_le(log_id);
    bytes
}

/// Whether these are a head of this kind and of our version, as it was written.
pub(super) fn is_head(bytes: &[u8; SUPERBLOCK_BYTES], magic: [u8; 8]) -> bool {
    bytes[..8] == magic && u32_at(bytes, 8) == FORMAT_VERSION && checksum_holds(bytes)
}

/// Fills up with zeros to 64 bytes, and puts the checksum in its place.
pub(super) fn sealed_with_checksum(mut bytes: BytesMut) -> [u8; SUPERBLOCK_BYTES] {
    assert!(bytes.len() <= SUPERBLOCK_BYTES);
    bytes.resize(SUPERBLOCK_BYTES, 0);
    let checksum = crc32c::crc32c(&bytes);
    bytes[CHECKSUM_START..CHECKSUM_START + 4].copy_from_slice(&checksum.to_le_bytes());
    bytes[..].try_into().expect("resized to it")
}

/// Whether the checksum of a 64-byte head holds.
pub(super) fn checksum_holds(bytes: &[u8; SUPERBLOCK_BYTES]) -> bool {
    let mut zeroed = *bytes;
    zeroed[CHECKSUM_START..CHECKSUM_START + 4].fill(0);
    crc32c::crc32c(&zeroed) == u32_at(bytes, CHECKSUM_START)
}

impl fmt::Display for SuperblockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged => f.write_str("its superblock is damaged"),
            Self::Version(version) => {
                write!(f, "it has format version {version}, and this program knows {FORMAT_VERSION}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::testing::{Random, hex, seeds};

    fn superblock() -> Superblock {
        let log_id = 0x1122_3344_5566_7788;
        Superblock { log_id, segment_bytes: 64 << 20, segment_count: 256, core: 1, core_count: 2 }
    }

    #[test]
    fn a_superblock_has_the_golden_bytes_of_version_1() {
        assert_eq!(hex(&superblock().encode()), GOLDEN.replace([' ', '\n'], ""));
    }

    const GOLDEN: &str = "\
        4d494c4c4f470d0a010000009a1d2df388776655443322110000000400000000
        0001000001000200000000000000000000000000000000000000000000000000
    ";

    #[test]
    fn what_was_encoded_is_what_is_decoded() {
        assert_eq!(Superblock::decode(&superblock().encode()), Ok(superblock()));
    }

    #[test]
    fn a_superblock_cut_or_flipped_anywhere_is_refused() {
        let mut bytes = superblock().encode();
        for end in 0..bytes.len() {
            assert_eq!(Superblock::decode(&bytes[..end]), Err(SuperblockError::Damaged));
        }
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = superblock().encode();
        bytes[8] = 9;
        assert_eq!(Superblock::decode(&bytes), Err(SuperblockError::Version(9)));
    }

    #[test]
    fn figures_out_of_range_are_refused_though_the_checksum_holds() {
        let bad = [
            Superblock { segment_bytes: SEGMENT_BYTES_MIN + 1, ..superblock() },
            Superblock { segment_bytes: u64::MAX, ..superblock() },
            Superblock { segment_count: 0, ..superblock() },
            Superblock { segment_count: u32::MAX, ..superblock() },
            Superblock { core: 2, ..superblock() },
        ];
        for bad in bad {
            assert_eq!(Superblock::decode(&bad.encode()), Err(SuperblockError::Damaged), "{bad:?}");
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused() {
        for seed in seeds(100) {
            let mut random = Random(seed);
            let bytes: Vec<u8> = (0..random.below(100)).map(|_| random.next() as u8).collect();
            assert!(Superblock::decode(&bytes).is_err(), "MILENA_SEED={seed}");
        }
    }
}
