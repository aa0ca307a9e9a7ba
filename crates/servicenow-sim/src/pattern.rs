//! Files of any size that nobody has to hold: their bytes follow from their positions, so that a lost, doubled or
//! swapped piece shows.

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

/// The bytes of the pattern from position `start` on.
pub fn pattern(start: u64, length: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(length + 16);
    let mut word = start / 8;
    let skipped = usize::try_from(start % 8).unwrap_or_default();
    while bytes.len() < length + skipped {
        bytes.extend_from_slice(&word.wrapping_mul(SPREAD).to_le_bytes());
        word += 1;
    }
    bytes.freeze().slice(skipped..skipped + length)
}

/// Odd, so that no two words of the pattern are the same.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
const PREFIX_CHUNKED: &str = "5eedf11e000000000000";
const PREFIX_SIZED: &str = "5eedf11e000000000001";
const BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_the_pattern_fit_together() {
        let whole = pattern(0, 1_000);
        for start in 0..40 {
            for length in [0, 1, 7, 8, 9, 64] {
                let piece = pattern(u64::try_from(start).unwrap(), length);
                assert_eq!(piece, whole.slice(start..start + length), "{start} {length}");
            }
        }
        assert_ne!(whole.slice(0..8), whole.slice(8..16));
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
