//! Reads along with an HTTP/2 connection and weighs what its caller sends: a frame that moves nothing forward (an empty
//! DATA, a SETTINGS, a PING, a PRIORITY, a reset) must be paid for by calls and bytes that do (P-22). The parser bounds
//! memory; this bounds the time that one connection can cost. It never changes a byte.

/// Follows the frames of one connection (RFC 9113 §4.1), from its first byte.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FrameGuard {
    /// Bytes of the preface (RFC 9113 §3.4) or of a payload to pass over.
    skip: u32,
    head: [u8; HEAD_BYTES],
    head_len: usize,
    /// Frames that the connection may still send for nothing.
    credit: u32,
    /// A head has begun, and the frame that ends it has not (RFC 9113 §4.3).
    in_head: bool,
    /// There has been a whole frame.
    has_begun: bool,
}

impl Default for FrameGuard {
    fn default() -> Self {
        Self {
            skip: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            head_len: 0,
            credit: CREDIT_MAX,
            in_head: false,
            has_begun: false,
        }
    }
}

impl FrameGuard {
    /// Takes the next bytes of the connection, in order.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_exhausted() {
            if self.skip > 0 {
                let here = bytes.len().min(self.skip as usize);
                self.skip -= u32::try_from(here).unwrap_or(self.skip);
                bytes = &bytes[here..];
                continue;
            }
            let here = bytes.len().min(HEAD_BYTES - self.head_len);
            self.head[self.head_len..self.head_len + here].copy_from_slice(&bytes[..here]);
            self.head_len += here;
            bytes = &bytes[here..];
            if self.head_len == HEAD_BYTES {
                self.head_len = 0;
                self.frame();
            }
        }
    }

    /// A call was answered, or `bytes` of answers went out.
    pub(crate) fn earn(&mut self, frames: u32) {
        self.credit = self.credit.saturating_add(frames).min(CREDIT_MAX);
    }

    /// The caller has sent more for nothing than any client does: its connection is closed.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.credit == 0
    }

    /// The caller has said something, to its end: its SETTINGS (RFC 9113 §3.4).
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun && self.skip == 0
    }

    /// A head has begun, and not come to its end.
    pub(crate) fn is_in_head(&self) -> bool {
        self.in_head || (self.skip > 0 && matches!(self.head[3], HEADERS | CONTINUATION)) || self.head_len > 0
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn credit(&self) -> u32 {
        self.credit
    }

    fn frame(&mut self) {
        let [high, middle, low, kind, flags, ..] = self.head;
        self.skip = u32::from_be_bytes([0, high, middle, low]);
        self.has_begun = true;
        if matches!(kind, HEADERS | CONTINUATION) {
            self.in_head = flags & END_HEADERS == 0;
        }
        if kind == DATA && flags & PADDED == 0 {
            // A stream of tiny frames costs, a body does not; nor does padding move anything forward.
            self.earn(self.skip / DATA_BYTES_PER_FRAME);
        }
        self.credit = self.credit.saturating_sub(1);
    }
}

/// Of a frame.
const HEAD_BYTES: usize = 9;
/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`
const PREFACE_BYTES: u32 = 24;
/// The type of a DATA frame.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// Of those two (RFC 9113 §6.2, §6.10).
const END_HEADERS: u8 = 0x4;
/// Of a DATA frame (RFC 9113 §6.1).
const PADDED: u8 = 0x8;
/// A body in frames of at least this size pays for itself.
const DATA_BYTES_PER_FRAME: u32 = 256;
/// More than a client sends before its first answer: 100 streams with their windows and priorities.
const CREDIT_MAX: u32 = 2_000;
/// What one answered call pays for: its HEADERS, its windows, and some.
pub(crate) const FRAMES_PER_CALL: u32 = 20;
/// What is earned each second, so that keep-alive pings and settings of a quiet connection never add up.
pub(crate) const FRAMES_PER_SECOND: u32 = 20;
/// Bytes of answers that pay for one frame: clients open their windows at least this wide at a time.
pub(crate) const ANSWER_BYTES_PER_FRAME: u64 = 1_024;

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;
    use crate::fuzzing;

    fn frame(kind: u8, len: u32) -> Vec<u8> {
        let [_, high, middle, low] = len.to_be_bytes();
        let mut frame = vec![high, middle, low, kind, 0, 0, 0, 0, 1];
        frame.resize(HEAD_BYTES + len as usize, b'x');
        frame
    }

    fn preface() -> Vec<u8> {
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()
    }

    /// P-22.
    #[test]
    fn frames_for_nothing_end_the_connection() {
        for (kind, len) in
            [(0, 0), (2, 5), (3, 4), (4, 0), (4, 36), (6, 8), (8, 4), (9, 100), (0xfa, 0), (1, 20)]
        {
            let mut guard = FrameGuard::default();
            guard.feed(&preface());
            let sent = (0..CREDIT_MAX).take_while(|_| {
                guard.feed(&frame(kind, len));
                !guard.is_exhausted()
            });
            assert_eq!(sent.count() + 1, CREDIT_MAX as usize, "kind {kind}, {len} bytes");
        }
        let mut guard = FrameGuard::default();
        guard.feed(&preface());
        let mut padded = frame(DATA, 1_024);
        padded[4] = PADDED;
        (0..CREDIT_MAX).for_each(|_| guard.feed(&padded));
        assert!(guard.is_exhausted(), "padding");
    }

    #[test]
    fn a_head_under_way_is_known() {
        let mut guard = FrameGuard::default();
        guard.feed(&preface());
        let with_flags = |kind: u8, flags: u8| {
            let mut frame = frame(kind, 20);
            frame[4] = flags;
            frame
        };
        for (bytes, expected) in [
            (&frame(4, 0)[..], false),
            (&frame(0, 100)[..50], false),
            (&frame(0, 100)[50..], false),
            (&with_flags(1, 4)[..3], true),
            (&with_flags(1, 4)[3..12], true),
            (&with_flags(1, 4)[12..], false),
            (&with_flags(1, 0), true),
            (&with_flags(9, 0), true),
            (&with_flags(9, 4), false),
        ] {
            guard.feed(bytes);
            assert_eq!(guard.is_in_head(), expected, "after {bytes:?}");
        }
    }

    #[test]
    fn bodies_and_answered_calls_pay() {
        let mut guard = FrameGuard::default();
        guard.feed(&preface());
        for _ in 0..CREDIT_MAX * 2 {
            guard.feed(&frame(DATA, 1_024));
            guard.feed(&frame(8, 4));
        }
        for _ in 0..CREDIT_MAX * 2 {
            guard.feed(&frame(1, 60));
            guard.feed(&frame(8, 4));
            guard.earn(FRAMES_PER_CALL);
        }
        assert!(!guard.is_exhausted());
        for _ in 0..CREDIT_MAX * 2 {
            guard.feed(&frame(DATA, 1));
        }
        assert!(guard.is_exhausted(), "a byte a frame is a flood");
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_weigh_the_same(
            bytes in collection::vec(any::<u8>(), 0..3_000), size in 1_u8..50,
        ) {
            fuzzing::frames(&[&[size], &bytes[..]].concat());
        }
    }
}
