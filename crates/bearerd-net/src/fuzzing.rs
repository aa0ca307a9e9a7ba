//! What holds for any bytes that are to say who calls. The property tests call these with bytes that they make up, the
//! targets of `tests/fuzz` with those that reach new code. A rule that does not hold panics.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::{
    ForwardedFault, PROXY_HEADER_BYTES_MAX, ProxyHeader, ProxyHeaderFault, ProxyHeaderProgress,
    forwarded_for, parse_proxy_header,
};

/// Nobody is made to wait for more than the limit, each step asks for more than there is, and a header is whole at its
/// last byte: not before, and not with one more.
pub fn proxy_header(bytes: &[u8]) {
    match parse_proxy_header(bytes) {
        Ok(ProxyHeaderProgress::Needs(total)) => {
            assert!(total > bytes.len() && total <= PROXY_HEADER_BYTES_MAX, "{total}");
        }
        Ok(ProxyHeaderProgress::Whole(header)) => {
            assert!(bytes.len() <= PROXY_HEADER_BYTES_MAX);
            for end in 0..bytes.len() {
                let step = parse_proxy_header(&bytes[..end]);
                let asks = matches!(step, Ok(ProxyHeaderProgress::Needs(total)) if total <= bytes.len());
                assert!(asks, "after {end} bytes: {step:?}");
            }
            let longer = parse_proxy_header(&[bytes, b"G"].concat());
            assert_eq!(longer, Err(ProxyHeaderFault::Malformed));
            if let ProxyHeader::For(caller) = header {
                check_caller(bytes, caller);
            }
        }
        Err(_) => {}
    }
}

/// The address stands where the specification says, in its plain form.
fn check_caller(bytes: &[u8], caller: SocketAddr) {
    let (address, port) = match bytes[13] {
        0x11 => {
            let octets: [u8; 4] = bytes[16..20].try_into().expect("four bytes");
            (IpAddr::from(octets), &bytes[24..26])
        }
        family => {
            assert_eq!(family, 0x21);
            let octets: [u8; 16] = bytes[16..32].try_into().expect("sixteen bytes");
            (IpAddr::from(octets), &bytes[48..50])
        }
    };
    assert_eq!(caller.ip(), address.to_canonical());
    assert_eq!(caller.port(), u16::from_be_bytes([port[0], port[1]]));
}

/// What a trusted proxy appends decides, or nothing does; and of anybody else nothing is believed. The bytes are the
/// header's lines, each ended by LF.
pub fn forwarded(bytes: &[u8]) {
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let trusted: [IpNet; 2] = [[10, 0, 0, 0].into(), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 0])]
        .map(|network: IpAddr| IpNet::new(network, 8).expect("8 is a prefix of both"));
    let (proxy, caller) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([192, 0, 2, 7]));
    let judge = |lines: &[&[u8]], peer| forwarded_for(lines.iter().copied(), &trusted, Some(peer));
    assert_eq!(judge(&lines, caller), Ok(Some(caller)));
    let found = judge(&lines, proxy);
    let is_malformed = found == Err(ForwardedFault::Malformed);
    assert_eq!(forwarded_for(lines.iter().copied(), &trusted, None), found);
    let with = |more: &'static [u8]| judge(&[&lines[..], &[more]].concat(), proxy);
    let unless_malformed = |other| if is_malformed { Err(ForwardedFault::Malformed) } else { other };
    assert_eq!(with(b"for=192.0.2.7"), unless_malformed(Ok(Some(caller))));
    assert_eq!(with(b"for=_hidden"), unless_malformed(Err(ForwardedFault::Hidden)));
    let named = if found == Err(ForwardedFault::Missing) { Ok(Some([10, 0, 0, 2].into())) } else { found };
    assert_eq!(with(b"for=10.0.0.2"), named);
    // Where each line is whole, one line of all says the same.
    let joined = lines.join(&b","[..]);
    assert!(is_malformed || judge(&[&joined], proxy) == found);
    if let Ok(Some(address)) = found {
        assert_eq!(address, address.to_canonical());
    }
}
