//! The PROXY protocol's binary header, version 2 (haproxy's `doc/proxy-protocol.txt` §2.2): a proxy says for whom it
//! connects, before anything else. The parser does no I/O and takes untrusted bytes.
//!
//! Deliberately absent: version 1 (text, without a stated length), and any meaning of the TLVs: their framing is checked,
//! what they say is not believed, CRC-32C among it (TCP has its own checksum).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Begins every header. It is no beginning of HTTP or TLS.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED_BYTES: usize = 16;
/// Largest header. With addresses alone it has 28, 52 or 232 bytes; the TLVs of load balancers, the subject of a client
/// certificate among them, take some hundred more.
pub const PROXY_HEADER_BYTES_MAX: usize = FIXED_BYTES + 1024;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeader {
    /// The proxy speaks for itself: a health check.
    Local,
    /// The proxy speaks for the caller at this address.
    For(SocketAddr),
    /// The proxy speaks for somebody who has no address: one on a unix socket, or of a kind it does not know.
    ForUnknown,
}

/// Where the bytes so far lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeaderProgress {
    /// They begin a header; so many bytes in all show more of it. Always more than there are, and never more than
    /// [`PROXY_HEADER_BYTES_MAX`].
    Needs(usize),
    /// They are a header, to the byte.
    Whole(ProxyHeader),
}

/// Why bytes are not a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyHeaderFault {
    #[error("the connection does not begin with a PROXY protocol header, version 2")]
    Signature,
    #[error("the PROXY protocol header is the text one, version 1; only version 2 is read")]
    TextVersion,
    #[error("the PROXY protocol header has a version or command that is not known")]
    Command,
    #[error("the PROXY protocol header is for another protocol than TCP")]
    Family,
    #[error("the PROXY protocol header is longer than {PROXY_HEADER_BYTES_MAX} bytes")]
    TooLong,
    #[error("the PROXY protocol header is malformed")]
    Malformed,
}

/// Reads a header from its beginning.
///
/// # Errors
/// [`ProxyHeaderFault`]; no further bytes would change it.
pub fn parse_proxy_header(bytes: &[u8]) -> Result<ProxyHeaderProgress, ProxyHeaderFault> {
    let begun = bytes.len().min(SIGNATURE.len());
    if bytes[..begun] != SIGNATURE[..begun] {
        let text = bytes.starts_with(b"PROXY ");
        return Err(if text { ProxyHeaderFault::TextVersion } else { ProxyHeaderFault::Signature });
    }
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED_BYTES>() else {
        return Ok(ProxyHeaderProgress::Needs(FIXED_BYTES));
    };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let total = FIXED_BYTES + length;
    if total > PROXY_HEADER_BYTES_MAX {
        return Err(ProxyHeaderFault::TooLong);
    }
    match rest.len() {
        there if there < length => return Ok(ProxyHeaderProgress::Needs(total)),
        there if there > length => return Err(ProxyHeaderFault::Malformed),
        _ => {}
    }
    let header = match command {
        // §2.2: what follows is skipped, whatever it is.
        0x20 => ProxyHeader::Local,
        0x21 => announced(family, rest)?,
        _ => return Err(ProxyHeaderFault::Command),
    };
    Ok(ProxyHeaderProgress::Whole(header))
}

fn announced(family: u8, rest: &[u8]) -> Result<ProxyHeader, ProxyHeaderFault> {
    const MALFORMED: ProxyHeaderFault = ProxyHeaderFault::Malformed;
    let (header, tlvs) = match family {
        0x00 => return Ok(ProxyHeader::ForUnknown),
        // Source and destination address, source and destination port.
        0x11 => {
            let (block, tlvs) = rest.split_first_chunk::<12>().ok_or(MALFORMED)?;
            let [a, b, c, d, _, _, _, _, high, low, _, _] = *block;
            (for_caller(Ipv4Addr::new(a, b, c, d).into(), [high, low]), tlvs)
        }
        0x21 => {
            let (block, tlvs) = rest.split_first_chunk::<36>().ok_or(MALFORMED)?;
            let (source, rest) = block.split_first_chunk::<16>().ok_or(MALFORMED)?;
            (for_caller(Ipv6Addr::from(*source).into(), [rest[16], rest[17]]), tlvs)
        }
        // Two paths of 108 bytes.
        0x31 => {
            let (_, tlvs) = rest.split_first_chunk::<216>().ok_or(MALFORMED)?;
            (ProxyHeader::ForUnknown, tlvs)
        }
        _ => return Err(ProxyHeaderFault::Family),
    };
    check_tlvs(tlvs).map(|()| header)
}

fn for_caller(address: IpAddr, port: [u8; 2]) -> ProxyHeader {
    ProxyHeader::For(SocketAddr::new(address.to_canonical(), u16::from_be_bytes(port)))
}

/// Type, length in two bytes, value; up to the header's last byte.
fn check_tlvs(mut tlvs: &[u8]) -> Result<(), ProxyHeaderFault> {
    while let Some(([_, high, low], rest)) = tlvs.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        tlvs = rest.get(length..).ok_or(ProxyHeaderFault::Malformed)?;
    }
    if tlvs.is_empty() { Ok(()) } else { Err(ProxyHeaderFault::Malformed) }
}

/// Why no header came from a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadHeaderError {
    #[error(transparent)]
    Fault(#[from] ProxyHeaderFault),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Takes a header off `stream`, and not a byte more. Waits as long as the peer does.
pub(crate) async fn read_header(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<ProxyHeader, ReadHeaderError> {
    let mut bytes = Vec::with_capacity(64);
    loop {
        match parse_proxy_header(&bytes)? {
            ProxyHeaderProgress::Whole(header) => return Ok(header),
            ProxyHeaderProgress::Needs(total) => {
                let filled = bytes.len();
                bytes.resize(total, 0);
                stream.read_exact(&mut bytes[filled..]).await?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing;

    /// A header of `command` and `family` with `rest` behind it.
    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    fn tcp4(tlvs: &[u8]) -> Vec<u8> {
        let block = [192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 0x01, 0xbb];
        header(0x21, 0x11, &[&block, tlvs].concat())
    }

    fn tcp6(source: &str) -> Vec<u8> {
        let source: Ipv6Addr = source.parse().unwrap();
        header(0x21, 0x21, &[&source.octets()[..], &[0; 16], &[0, 80, 1, 0xbb]].concat())
    }

    #[track_caller]
    fn check(bytes: &[u8], expected: Result<ProxyHeader, ProxyHeaderFault>) {
        assert_eq!(parse_proxy_header(bytes), expected.map(ProxyHeaderProgress::Whole), "{bytes:02x?}");
    }

    fn caller(text: &str) -> ProxyHeader {
        ProxyHeader::For(text.parse().unwrap())
    }

    #[test]
    fn a_header_names_the_caller_or_nobody() {
        check(&tcp4(b""), Ok(caller("192.0.2.7:12345")));
        check(&tcp6("2001:db8::7"), Ok(caller("[2001:db8::7]:80")));
        check(&tcp6("::ffff:192.0.2.7"), Ok(caller("192.0.2.7:80"))); // what an IPv4 rule must match
        check(&header(0x20, 0x00, b""), Ok(ProxyHeader::Local));
        check(&header(0x20, 0xff, b"whatever"), Ok(ProxyHeader::Local));
        check(&header(0x21, 0x00, b""), Ok(ProxyHeader::ForUnknown));
        check(&header(0x21, 0x31, &[b'/'; 216]), Ok(ProxyHeader::ForUnknown));
    }

    #[test]
    fn tlvs_are_framed_and_not_believed() {
        check(&tcp4(&[0x04, 0, 0]), Ok(caller("192.0.2.7:12345"))); // no-op
        check(&tcp4(&[0x01, 0, 2, b'h', b'2', 0xea, 0, 1, 9]), Ok(caller("192.0.2.7:12345")));
        for cut in [&[0x01][..], &[0x01, 0], &[0x01, 0, 1], &[0x01, 0, 2, b'h'], &[0x01, 0xff, 0xff, 1]] {
            check(&tcp4(cut), Err(ProxyHeaderFault::Malformed));
        }
    }

    #[test]
    fn what_is_no_header_is_named() {
        use ProxyHeaderFault::{Command, Family, Malformed, Signature, TextVersion, TooLong};
        for (bytes, fault) in [
            (b"GET / HTTP/1.1\r\n".to_vec(), Signature),
            (b"\x16\x03\x01\x02\0\x01".to_vec(), Signature), // TLS
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n".to_vec(), TextVersion),
            (b"PROXY UNKNOWN\r\n".to_vec(), TextVersion),
            (header(0x11, 0x11, &[0; 12]), Command), // version 1 in binary
            (header(0x22, 0x11, &[0; 12]), Command),
            (header(0x31, 0x11, &[0; 12]), Command),
            (header(0x21, 0x12, &[0; 12]), Family), // UDP
            (header(0x21, 0x22, &[0; 36]), Family),
            (header(0x21, 0x32, &[0; 216]), Family),
            (header(0x21, 0x41, &[0; 12]), Family),
            (header(0x21, 0x11, &[0; 11]), Malformed), // shorter than its addresses
            (header(0x21, 0x21, &[0; 35]), Malformed),
            (header(0x21, 0x31, &[0; 215]), Malformed),
            (header(0x20, 0x00, &[0; 1025]), TooLong),
            ([&tcp4(b"")[..], b"G"].concat(), Malformed), // not to the byte
        ] {
            check(&bytes, Err(fault));
        }
        let longest = tcp4(&[&[0x04, 0x03, 0xf1][..], &[0; 1009]].concat());
        assert_eq!(longest.len(), PROXY_HEADER_BYTES_MAX);
        check(&longest, Ok(caller("192.0.2.7:12345")));
        // Refused by its length alone, before a byte of it is waited for.
        check(&header(0x21, 0x11, &[0; 2000])[..FIXED_BYTES], Err(TooLong));
    }

    /// Not a byte more than the header is taken: what follows is TLS's or HTTP's.
    #[tokio::test]
    async fn a_header_is_taken_off_the_stream() {
        let bytes = [&tcp4(&[0x04, 0, 1, 0])[..], b"GET /"].concat();
        let mut stream = &bytes[..];
        let header = read_header(&mut stream).await.unwrap();
        assert_eq!((header, stream), (caller("192.0.2.7:12345"), &b"GET /"[..]));
        for cut in 0..tcp4(b"").len() {
            let error = read_header(&mut &tcp4(b"")[..cut]).await.unwrap_err();
            assert!(matches!(error, ReadHeaderError::Io(_)), "{cut}: {error:?}");
        }
    }

    proptest! {
        /// Untrusted bytes neither panic nor make us wait for more than the limit; each step asks for more than it had.
        #[test]
        fn any_bytes_lead_somewhere(
            start in prop_oneof![Just(vec![]), Just(SIGNATURE.to_vec()), Just(tcp4(b""))],
            rest in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            fuzzing::proxy_header(&[start, rest].concat());
        }

        /// A header is whole at its last byte, and before that only ever incomplete.
        #[test]
        fn a_header_grows_to_its_end(
            command in 0x20_u8..=0x21, family in prop_oneof![Just(0x00_u8), Just(0x11), Just(0x21), Just(0x31)],
            tail in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let addresses = match family { 0x11 => 12, 0x21 => 36, 0x31 => 216, _ => 0 };
            let length = u16::try_from(tail.len()).unwrap().to_be_bytes();
            let tlv = [&[0xe0][..], &length, &tail].concat();
            let bytes = header(command, family, &[&vec![7; addresses][..], &tlv].concat());
            fuzzing::proxy_header(&bytes);
            prop_assert!(matches!(parse_proxy_header(&bytes), Ok(ProxyHeaderProgress::Whole(_))));
        }
    }
}
