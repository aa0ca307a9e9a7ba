//! Decodes the chunked transfer coding (RFC 9112 §7.1) of an answer, strictly: a size is hex digits and nothing else, lines
//! end in CR LF. Extensions and trailers are read and dropped. No I/O.

use bytes::{Buf, Bytes, BytesMut};

/// Where in the coding a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunked {
    state: State,
    /// Bytes of the line under way, or of all trailers.
    line_len: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Digits of a size so far, and their value.
    Size(u8, u64),
    Extension(u64),
    /// The LF that ends the size's line.
    SizeEnd(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// In the trailer section; so many bytes of the line under way, of which the last is a CR or not.
    Trailer {
        len: usize,
        cr: bool,
    },
    Ended,
    /// The bytes are not in the coding, which whoever asks for more is told.
    Broken,
}

/// The bytes are not in the chunked coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer's chunks are malformed")]
pub(crate) struct ChunkFault;

impl Default for Chunked {
    fn default() -> Self {
        Self { state: State::Size(0, 0), line_len: 0 }
    }
}

impl Chunked {
    pub(crate) fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Takes the next piece of data out of `buffer`, and everything around it. `None`: more bytes are needed, or the body
    /// has [ended](Self::is_ended).
    pub(crate) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, ChunkFault> {
        while !buffer.is_empty() && !matches!(self.state, State::Ended | State::Broken) {
            if let State::Data(left) = self.state {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                let left = left - here as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data(left) };
                return Ok(Some(buffer.split_to(here).freeze()));
            }
            let byte = buffer.get_u8();
            self.state = self.after(byte).unwrap_or(State::Broken);
        }
        if self.state == State::Broken { Err(ChunkFault) } else { Ok(None) }
    }

    /// After the last data of a chunk: takes what is already here of the coding around it, so that an end that has
    /// arrived is seen. What is wrong there, [`Self::next`] says: the data before it is good.
    pub(crate) fn settle(&mut self, buffer: &mut BytesMut) {
        while !buffer.is_empty() && !matches!(self.state, State::Ended | State::Broken | State::Data(_)) {
            let byte = buffer.get_u8();
            self.state = self.after(byte).unwrap_or(State::Broken);
        }
    }

    fn after(&mut self, byte: u8) -> Result<State, ChunkFault> {
        if !matches!(self.state, State::DataCr | State::DataLf) {
            self.line_len += 1;
            if self.line_len > LINE_BYTES_MAX {
                return Err(ChunkFault);
            }
        }
        let next = match (self.state, byte) {
            (State::Size(digits, value), byte) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                if digits >= DIGITS_MAX {
                    return Err(ChunkFault);
                }
                State::Size(digits + 1, value << 4 | digit)
            }
            (State::Size(1.., value), b';') => State::Extension(value),
            (State::Size(1.., value) | State::Extension(value), b'\r') => State::SizeEnd(value),
            (State::Extension(value), byte) if byte == b'\t' || (b' '..=b'~').contains(&byte) => {
                State::Extension(value)
            }
            (State::SizeEnd(0), b'\n') => State::Trailer { len: 0, cr: false },
            (State::SizeEnd(size), b'\n') => {
                self.line_len = 0;
                State::Data(size)
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size(0, 0),
            (State::Trailer { len: 0, cr: true }, b'\n') => State::Ended,
            (State::Trailer { cr: true, .. }, b'\n') => State::Trailer { len: 0, cr: false },
            (State::Trailer { len, cr: false }, b'\r') => State::Trailer { len, cr: true },
            (State::Trailer { len, cr: false }, byte) if byte != b'\n' => {
                State::Trailer { len: len + 1, cr: false }
            }
            _ => return Err(ChunkFault),
        };
        Ok(next)
    }
}

/// A size of 2⁶⁰ bytes is longer than any answer.
const DIGITS_MAX: u8 = 15;
/// Of a size with its extensions, or of all trailers together.
const LINE_BYTES_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;
    use crate::fuzzing;

    /// What is decoded, and whether it ended; what follows the end.
    fn decoded(bytes: &[u8], piece: usize) -> Result<(Vec<u8>, bool, Vec<u8>), ChunkFault> {
        let (mut chunked, mut buffer, mut data) = (Chunked::default(), BytesMut::new(), Vec::new());
        for piece in bytes.chunks(piece.max(1)) {
            buffer.extend_from_slice(piece);
            while let Some(found) = chunked.next(&mut buffer)? {
                data.extend_from_slice(&found);
                chunked.settle(&mut buffer);
            }
        }
        Ok((data, chunked.is_ended(), buffer.to_vec()))
    }

    #[track_caller]
    fn check(text: &str, expected: Option<(&str, bool, &str)>) {
        for piece in [1, 2, 3, text.len()] {
            let found = decoded(text.as_bytes(), piece).ok();
            let expected = expected
                .map(|(data, ended, rest)| (data.as_bytes().to_vec(), ended, rest.as_bytes().to_vec()));
            assert_eq!(found, expected, "{text:?} in pieces of {piece}");
        }
    }

    /// P-05.
    #[test]
    fn the_coding_is_read_strictly() {
        check("3\r\nabc\r\n0\r\n\r\n", Some(("abc", true, "")));
        check(
            "3;x=\"y\"\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-T: 1\r\nY: 2\r\n\r\nHTTP/1.1",
            Some(("abc0123456789", true, "HTTP/1.1")),
        );
        check("000000000000003\r\nabc\r\n", Some(("abc", false, "")));
        check("3\r\nab", Some(("ab", false, "")));
        for bad in [
            "\r\n",
            "3\nabc",
            "3 \r\nabc\r\n",
            " 3\r\nabc",
            "+3\r\nabc",
            "0x3\r\nabc",
            "-1\r\n",
            "3\r\nabcd\r\n",
            "3\r\nabc\n",
            "g\r\n",
            "0000000000000003\r\nabc",
            "3;\n\r\nabc",
            "3;\u{7f}\r\nabc",
            "0\r\n\n",
            "0\r\nX: 1\n\r\n",
            "0\r\nX\r1\r\n\r\n",
            "3\r\r\nabc",
        ] {
            check(bad, None);
        }
        let long = format!("3;{}\r\nabc", "x".repeat(LINE_BYTES_MAX));
        assert!(decoded(long.as_bytes(), 100).is_err());
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            chunks in collection::vec(collection::vec(any::<u8>(), 1..50), 0..8), piece in 1_usize..40,
        ) {
            let mut encoded = Vec::new();
            for chunk in &chunks {
                encoded.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                encoded.extend(chunk);
                encoded.extend(b"\r\n");
            }
            encoded.extend(b"0\r\n\r\nrest");
            let (data, ended, rest) = decoded(&encoded, piece).unwrap();
            prop_assert_eq!(data, chunks.concat());
            prop_assert!(ended);
            // What came in a later piece is not read here.
            prop_assert!(b"rest".ends_with(&rest) || rest.ends_with(b"rest") || b"rest".starts_with(&rest));
        }

        #[test]
        fn any_bytes_in_any_pieces_decode_alike(
            bytes in collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'2'), any::<u8>()], 0..60),
            piece in 1_u8..20,
        ) {
            fuzzing::chunked(&[&[piece], &bytes[..]].concat());
        }
    }
}
