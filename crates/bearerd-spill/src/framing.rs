//! The bytes of a segment: written, read, and found again behind damage. Nothing here does I/O.
//!
//! ```text
//! header   0 ..  8   "bearspil"
//!          8 .. 12   format version, 1
//!         12 .. 20   check of the bytes before it
//! entry    0 ..  4   marker
//!          4 ..  8   length of the body
//!          8 .. 16   check of length and body
//!         16 ..      body: length of the id (1 byte), id, lineage, epoch (8 bytes each), sealed record
//! ```
//!
//! Numbers are big-endian. A check is the beginning of a SHA-256. It finds accidents, not attacks: of a record that
//! somebody wrote here, the seal tells.

use bearerd_crypto::{Sealed, sha256};
use bearerd_model::{ConnectionId, Epoch, GrantVersion};

use crate::SpillEntry;

/// What a segment holds.
#[derive(Debug, Default)]
pub(crate) struct Parsed {
    pub(crate) entries: Vec<ParsedEntry>,
    /// Entries that do not read although others follow. A stretch whose entries cannot be told apart counts as one, and
    /// so does a header.
    pub(crate) damaged: u64,
    /// Bytes at the end that are no entry.
    pub(crate) torn_bytes: u64,
}

#[derive(Debug)]
pub(crate) struct ParsedEntry {
    /// Where its frame begins, in bytes from the segment's beginning.
    pub(crate) at: u64,
    /// Length of its frame.
    pub(crate) bytes: u64,
    pub(crate) entry: SpillEntry,
}

/// A segment of a format that came after this one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NewerFormat(pub(crate) u32);

/// How every segment begins.
pub(crate) fn header() -> [u8; HEADER_BYTES] {
    header_of(FORMAT_VERSION)
}

/// The entry in its frame. `None`: its record is larger than any connection's.
pub(crate) fn encode(entry: &SpillEntry) -> Option<Vec<u8>> {
    let (id, sealed) = (entry.id.as_str(), entry.sealed.as_bytes());
    let body_bytes = BODY_BESIDE_BYTES + id.len() + sealed.len();
    let length = u32::try_from(body_bytes).ok().filter(|length| *length <= BODY_BYTES_MAX)?.to_be_bytes();
    let mut frame = Vec::with_capacity(FRAME_BYTES + body_bytes);
    frame.extend_from_slice(&MARKER);
    frame.extend_from_slice(&length);
    frame.extend_from_slice(&[0; CHECK_BYTES]);
    frame.push(u8::try_from(id.len()).expect("an id has at most 63 bytes"));
    frame.extend_from_slice(id.as_bytes());
    frame.extend_from_slice(&entry.version.lineage.0.to_be_bytes());
    frame.extend_from_slice(&entry.version.epoch.0.to_be_bytes());
    frame.extend_from_slice(sealed);
    let check = check(&[&length, &frame[FRAME_BYTES..]]);
    frame[CHECK_AT..FRAME_BYTES].copy_from_slice(&check);
    Some(frame)
}

/// Reads what can be read: the entries before a torn end, and those on both sides of damage.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed, NewerFormat> {
    let mut parsed = Parsed::default();
    let mut at = match bytes.first_chunk::<HEADER_BYTES>() {
        Some(header) => match format(header) {
            Some(FORMAT_VERSION) => HEADER_BYTES,
            Some(newer) => return Err(NewerFormat(newer)),
            None => 0,
        },
        None => 0,
    };
    while at < bytes.len() {
        if let Some((entry, length)) = decode(&bytes[at..]) {
            parsed.entries.push(ParsedEntry { at: at as u64, bytes: length as u64, entry });
            at += length;
            continue;
        }
        let Some(next) = (at + 1..bytes.len()).find(|next| decode(&bytes[*next..]).is_some()) else {
            parsed.torn_bytes = (bytes.len() - at) as u64;
            break;
        };
        let markers = bytes[at..next].windows(MARKER.len()).filter(|window| **window == MARKER).count();
        parsed.damaged += markers.max(1) as u64;
        at = next;
    }
    Ok(parsed)
}

/// The entry whose frame `bytes` begin with, and the length of that frame.
pub(crate) fn decode(bytes: &[u8]) -> Option<(SpillEntry, usize)> {
    let frame = bytes.first_chunk::<FRAME_BYTES>()?;
    if frame[..LENGTH_AT] != MARKER {
        return None;
    }
    let length: [u8; 4] = frame[LENGTH_AT..CHECK_AT].try_into().ok()?;
    let end = FRAME_BYTES.checked_add(usize::try_from(u32::from_be_bytes(length)).ok()?)?;
    let body = bytes.get(FRAME_BYTES..end)?;
    if check(&[&length, body]) != frame[CHECK_AT..] {
        return None;
    }
    let (id_bytes, rest) = body.split_first()?;
    let (id, rest) = rest.split_at_checked(usize::from(*id_bytes))?;
    let (lineage, rest) = rest.split_first_chunk::<8>()?;
    let (epoch, sealed) = rest.split_first_chunk::<8>()?;
    let id = ConnectionId::parse(std::str::from_utf8(id).ok()?).ok()?;
    let version = GrantVersion {
        lineage: Epoch(u64::from_be_bytes(*lineage)),
        epoch: Epoch(u64::from_be_bytes(*epoch)),
    };
    Some((SpillEntry { id, version, sealed: Sealed::from_bytes(sealed.to_vec()) }, end))
}

fn header_of(version: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..VERSION_AT].copy_from_slice(MAGIC);
    header[VERSION_AT..HEADER_CHECK_AT].copy_from_slice(&version.to_be_bytes());
    let check = check(&[&header[..HEADER_CHECK_AT]]);
    header[HEADER_CHECK_AT..].copy_from_slice(&check);
    header
}

/// `None` if it is no header.
fn format(header: &[u8; HEADER_BYTES]) -> Option<u32> {
    let version = u32::from_be_bytes(header[VERSION_AT..HEADER_CHECK_AT].try_into().ok()?);
    (header_of(version) == *header).then_some(version)
}

fn check(parts: &[&[u8]]) -> [u8; CHECK_BYTES] {
    *sha256(&parts.concat()).first_chunk().expect("a SHA-256 has 32 bytes")
}

const MAGIC: &[u8; 8] = b"bearspil";
const FORMAT_VERSION: u32 = 1;
const VERSION_AT: usize = MAGIC.len();
const HEADER_CHECK_AT: usize = VERSION_AT + 4;
pub(crate) const HEADER_BYTES: usize = HEADER_CHECK_AT + CHECK_BYTES;

/// Where to look for an entry behind damage. Not text, so that it stands in no id.
const MARKER: [u8; 4] = [0xb5, 0x1e, 0x57, 0xf1];
const LENGTH_AT: usize = MARKER.len();
const CHECK_AT: usize = LENGTH_AT + 4;
const CHECK_BYTES: usize = 8;
const FRAME_BYTES: usize = CHECK_AT + CHECK_BYTES;
/// The length of the id, and the version.
const BODY_BESIDE_BYTES: usize = 1 + 8 + 8;
/// A connection's record has a few KiB; tokens as large as servers have been seen to give make it tens.
const BODY_BYTES_MAX: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn entries() -> impl Strategy<Value = Vec<SpillEntry>> {
        let entry = ("[a-z0-9][a-z0-9_-]{0,62}", any::<[u64; 2]>(), vec(any::<u8>(), 0..200));
        vec(entry.prop_map(|(id, version, sealed)| entry_of(&id, version, sealed)), 1..8)
    }

    fn entry_of(id: &str, [lineage, epoch]: [u64; 2], sealed: Vec<u8>) -> SpillEntry {
        SpillEntry {
            id: ConnectionId::parse(id).unwrap(),
            version: GrantVersion { lineage: Epoch(lineage), epoch: Epoch(epoch) },
            sealed: Sealed::from_bytes(sealed),
        }
    }

    /// The segment, and where its entries end.
    fn segment(entries: &[SpillEntry]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = header().to_vec();
        let ends = entries.iter().map(|entry| {
            bytes.extend(encode(entry).unwrap());
            bytes.len()
        });
        let ends = ends.collect();
        (bytes, ends)
    }

    fn read(parsed: Parsed) -> Vec<SpillEntry> {
        parsed.entries.into_iter().map(|entry| entry.entry).collect()
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(entries in entries()) {
            let (bytes, ends) = segment(&entries);
            let parsed = parse(&bytes).unwrap();
            prop_assert_eq!((parsed.damaged, parsed.torn_bytes), (0, 0));
            let places: Vec<usize> =
                parsed.entries.iter().map(|entry| usize::try_from(entry.at + entry.bytes).unwrap()).collect();
            prop_assert_eq!(places, ends);
            prop_assert_eq!(read(parsed), entries);
        }

        /// I-12: cut anywhere, every entry that is whole is read, and the rest is told as torn.
        #[test]
        fn a_cut_costs_what_was_cut(entries in entries(), cut in any::<prop::sample::Index>()) {
            let (bytes, ends) = segment(&entries);
            let cut = cut.index(bytes.len());
            let parsed = parse(&bytes[..cut]).unwrap();
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let good = match whole {
                0 if cut < HEADER_BYTES => 0,
                0 => HEADER_BYTES,
                whole => ends[whole - 1],
            };
            prop_assert_eq!((parsed.damaged, parsed.torn_bytes), (0, (cut - good) as u64));
            prop_assert_eq!(read(parsed), &entries[..whole]);
        }

        /// Flipped bits cost the entry that they stand in, and no entry is read that was never written.
        #[test]
        fn a_flipped_byte_costs_one_entry(
            entries in entries(), at in any::<prop::sample::Index>(), flip in 1_u8..,
        ) {
            let (mut bytes, ends) = segment(&entries);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let parsed = parse(&bytes).unwrap();
            let hit = (at >= HEADER_BYTES).then(|| ends.iter().filter(|end| **end <= at).count());
            let last = hit == Some(entries.len() - 1);
            prop_assert_eq!(parsed.damaged, u64::from(!last));
            prop_assert_eq!(parsed.torn_bytes > 0, last);
            let mut left = entries;
            if let Some(hit) = hit {
                left.remove(hit);
            }
            prop_assert_eq!(read(parsed), left);
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in vec(any::<u8>(), 0..600)) {
            let noise = parse(&bytes).unwrap();
            prop_assert!(noise.entries.is_empty());
            prop_assert_eq!(noise.torn_bytes, bytes.len() as u64);
            prop_assert!(parse(&[&header(), &bytes[..]].concat()).unwrap().entries.is_empty());
            prop_assert!(decode(&[&MARKER, &bytes[..]].concat()).is_none());
        }
    }

    #[test]
    fn each_damaged_entry_counts() {
        let entries: Vec<SpillEntry> =
            (0..4).map(|number| entry_of(&format!("c{number}"), [1, 1], vec![7; 50])).collect();
        let (mut bytes, ends) = segment(&entries);
        bytes[ends[0] + 30] ^= 1;
        bytes[ends[1] + 30] ^= 1;
        let parsed = parse(&bytes).unwrap();
        assert_eq!((parsed.damaged, parsed.torn_bytes), (2, 0));
        assert_eq!(read(parsed), [entries[0].clone(), entries[3].clone()]);
    }

    /// A file that grew on disk before its content came there.
    #[test]
    fn zeros_at_the_end_are_torn() {
        let (mut bytes, _) = segment(&[entry_of("hr", [1, 2], vec![7; 50])]);
        bytes.resize(bytes.len() + 4_096, 0);
        let parsed = parse(&bytes).unwrap();
        assert_eq!((parsed.entries.len(), parsed.damaged, parsed.torn_bytes), (1, 0, 4_096));
    }

    #[test]
    fn a_newer_format_is_not_read() {
        assert_eq!(parse(&header_of(2)).unwrap_err(), NewerFormat(2));
        assert_eq!(parse(&header_of(0)).unwrap_err(), NewerFormat(0));
    }

    #[test]
    fn a_record_larger_than_any_is_refused() {
        let most = BODY_BYTES_MAX as usize - BODY_BESIDE_BYTES - 2;
        assert!(encode(&entry_of("hr", [1, 1], vec![7; most])).is_some());
        assert!(encode(&entry_of("hr", [1, 1], vec![7; most + 1])).is_none());
    }
}
