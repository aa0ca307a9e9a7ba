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
