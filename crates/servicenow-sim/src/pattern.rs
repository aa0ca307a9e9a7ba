//! Files of any size that nobody has to hold: their bytes follow from their positions, so that a lost, doubled or
//! swapped piece shows.

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};

/// An attachment whose content is the pattern, made while it is sent: `GET /api/now/attachment/{sys_id}/file`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneratedFile {
    /// At most 4 GiB.
    pub bytes: u64,
    /// The answer has a `Content-Length`; otherwise it is chunked, as ServiceNow's are.
    pub sized: bool,
}

impl GeneratedFile {
    /// The `sys_id` that stands for this file.
    pub fn sys_id(self) -> String {
        let prefix = if self.sized { PREFIX_SIZED } else { PREFIX_CHUNKED };
        format!("{prefix}{:012x}", self.bytes.min(BYTES_MAX))
    }

    pub(crate) fn of_sys_id(sys_id: &str) -> Option<Self> {
        let (sized, digits) = match sys_id.strip_prefix(PREFIX_SIZED) {
            Some(digits) => (true, digits),
            None => (false, sys_id.strip_prefix(PREFIX_CHUNKED)?),
        };
        if digits.len() != 12 {
            return None;
        }
        let bytes = u64::from_str_radix(digits, 16).ok()?;
        (bytes <= BYTES_MAX).then_some(Self { bytes, sized })
    }
}

/// The bytes of the pattern from position `start` on. It is made of blocks of 64 KiB, the same but for their numbers in
/// the first eight bytes.
pub fn pattern(start: u64, length: usize) -> Bytes {
    let (mut number, skipped) = (start / BLOCK_BYTES, start % BLOCK_BYTES);
    let skipped = usize::try_from(skipped).unwrap_or_default();
    let mut bytes = BytesMut::with_capacity(length + skipped + BLOCK.len());
    while bytes.len() < length + skipped {
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&BLOCK[8..]);
        number += 1;
    }
    bytes.freeze().slice(skipped..skipped + length)
}

const BLOCK_BYTES: u64 = 64 * 1024;
static BLOCK: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..BLOCK_BYTES / 8).flat_map(|word| word.wrapping_mul(SPREAD).to_le_bytes()).collect());
/// Odd, so that no two words of a block are the same.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
const PREFIX_CHUNKED: &str = "5eedf11e000000000000";
const PREFIX_SIZED: &str = "5eedf11e000000000001";
const BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_the_pattern_fit_together() {
        let block = usize::try_from(BLOCK_BYTES).unwrap();
        let whole = pattern(0, 4 * block);
        for start in [0, 1, 8, 9, block - 1, block, block + 1, 2 * block - 8] {
            for length in [0, 1, 7, 8, 9, block - 1, block, block + 9] {
                let piece = pattern(u64::try_from(start).unwrap(), length);
                assert!(piece == whole.slice(start..start + length), "{start} {length}");
            }
        }
        let words: std::collections::HashSet<&[u8]> = whole[8..block].chunks(8).collect();
        assert_eq!(words.len(), block / 8 - 1);
        assert_ne!(whole.slice(..block), whole.slice(block..2 * block));
    }

    #[test]
    fn names_stand_for_files() {
        for file in [
            GeneratedFile { bytes: 0, sized: false },
            GeneratedFile { bytes: 1_234, sized: true },
            GeneratedFile { bytes: BYTES_MAX, sized: false },
        ] {
            assert_eq!(file.sys_id().len(), 32);
            assert_eq!(GeneratedFile::of_sys_id(&file.sys_id()), Some(file));
        }
        for wrong in ["", "5eedf11e000000000000", "5eedf11e000000000000ffffffffffff", &"0".repeat(32)] {
            assert_eq!(GeneratedFile::of_sys_id(wrong), None, "{wrong}");
        }
    }
}
