//! The caller's address from the header `Forwarded` (RFC 7239), as far as trusted proxies vouch for it. Pure; takes
//! untrusted bytes. `X-Forwarded-For` is not read: it has no grammar to be strict about.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Why `Forwarded` does not say who calls. Whoever decides by the caller's address refuses the call then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardedFault {
    #[error("the proxy sent no Forwarded header")]
    Missing,
    #[error("the Forwarded header is malformed")]
    Malformed,
    /// `for=unknown`, `for=_hidden`, or an element without `for`.
    #[error("the Forwarded header hides the caller's address")]
    Hidden,
}

/// Whether `address` is that of a proxy whose word counts.
pub(crate) fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// The caller's address: of the hops, read from the nearest to the farthest, the first that is not a trusted proxy; the
/// farthest where all are. `values` are the header's lines in their order; `peer` is who sent them, `None` for a
/// trusted proxy on a unix socket. Of an untrusted peer nothing is read: it is the caller.
///
/// Everything is parsed, also what stands beyond the hop that decides, so that no line can change how the next one reads.
///
/// # Errors
/// [`ForwardedFault`]; the address is not known.
pub fn forwarded_for<'a>(
    values: impl Iterator<Item = &'a [u8]>,
    trusted: &[IpNet],
    peer: Option<IpAddr>,
) -> Result<Option<IpAddr>, ForwardedFault> {
    let peer = peer.map(|peer| peer.to_canonical());
    if let Some(peer) = peer.filter(|peer| !is_trusted(*peer, trusted)) {
        return Ok(Some(peer));
    }
    // The last hop that is not trusted decides; where there is none, the first.
    let mut decided: Option<Hop> = None;
    for value in values {
        let mut elements = Elements { rest: value };
        while let Some(hop) = elements.next()? {
            let trusted_hop = matches!(hop, Hop::At(address) if is_trusted(address, trusted));
            if decided.is_none() || !trusted_hop {
                decided = Some(hop);
            }
        }
    }
    match decided {
        None => Err(ForwardedFault::Missing),
        Some(Hop::Hidden) => Err(ForwardedFault::Hidden),
        Some(Hop::At(address)) => Ok(Some(address)),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hop {
    At(IpAddr),
    Hidden,
}

/// `Forwarded = 1#forwarded-element` (RFC 7239 §4).
struct Elements<'a> {
    rest: &'a [u8],
}

impl<'a> Elements<'a> {
    /// The next element's hop. Empty list members do not count (RFC 9110 §5.6.1.2).
    fn next(&mut self) -> Result<Option<Hop>, ForwardedFault> {
        self.skip_blanks();
        while self.take(b',') {
            self.skip_blanks();
        }
        if self.rest.is_empty() { Ok(None) } else { self.element().map(Some) }
    }

    /// `[ forwarded-pair ] *( ";" [ forwarded-pair ] )`, up to its comma or the end.
    fn element(&mut self) -> Result<Hop, ForwardedFault> {
        let mut hop = None;
        loop {
            if !matches!(self.rest.first(), None | Some(b',' | b';')) {
                let (name, value) = self.pair()?;
                // RFC 7239 §4: no parameter more than once.
                if name.eq_ignore_ascii_case(b"for") && hop.replace(Hop::of(value)?).is_some() {
                    return Err(ForwardedFault::Malformed);
                }
            }
            self.skip_blanks();
            if !self.take(b';') {
                break;
            }
            self.skip_blanks();
        }
        if !self.rest.is_empty() && !self.take(b',') {
            return Err(ForwardedFault::Malformed);
        }
        Ok(hop.unwrap_or(Hop::Hidden))
    }

    /// `token "=" ( token / quoted-string )`; of a quoted string what stands between the quotes, as it stands.
    fn pair(&mut self) -> Result<(&'a [u8], &'a [u8]), ForwardedFault> {
        let name = self.token()?;
        if !self.take(b'=') {
            return Err(ForwardedFault::Malformed);
        }
        let value = if self.take(b'"') { self.quoted()? } else { self.token()? };
        Ok((name, value))
    }

    /// `1*tchar` (RFC 9110 §5.6.2).
    fn token(&mut self) -> Result<&'a [u8], ForwardedFault> {
        let is_tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        let end = self.rest.iter().position(|byte| !is_tchar(byte)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        if token.is_empty() { Err(ForwardedFault::Malformed) } else { Ok(token) }
    }

    /// Up to the closing quote, which is taken too (RFC 9110 §5.6.4).
    fn quoted(&mut self) -> Result<&'a [u8], ForwardedFault> {
        let (whole, mut at) = (self.rest, 0);
        loop {
            match *whole.get(at).ok_or(ForwardedFault::Malformed)? {
                b'"' => break,
                b'\\' => at += 2,
                b'\t' | b' '..=b'~' | 0x80.. => at += 1,
                _ => return Err(ForwardedFault::Malformed),
            }
        }
        self.rest = &whole[at + 1..];
        Ok(&whole[..at])
    }

    fn take(&mut self, byte: u8) -> bool {
        match self.rest.split_first() {
            Some((first, rest)) if *first == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }
}

impl Hop {
    /// `node` (RFC 7239 §6). No escape is looked through: an address needs none.
    fn of(node: &[u8]) -> Result<Self, ForwardedFault> {
        let malformed = ForwardedFault::Malformed;
        let node = str::from_utf8(node).map_err(|_| malformed)?;
        let (name, port) = match node.rsplit_once(':') {
            // The last colon of an IPv6 address is inside its brackets.
            Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
            _ => (node, None),
        };
        if !port.is_none_or(is_port) {
            return Err(malformed);
        }
        if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let address: Ipv6Addr = address.parse().map_err(|_| malformed)?;
            return Ok(Self::At(IpAddr::V6(address).to_canonical()));
        }
        if name.eq_ignore_ascii_case("unknown") || name.strip_prefix('_').is_some_and(is_obfuscated) {
            return Ok(Self::Hidden);
        }
        let address: Ipv4Addr = name.parse().map_err(|_| malformed)?;
        Ok(Self::At(address.into()))
    }
}

/// `1*5DIGIT / obfport`
fn is_port(text: &str) -> bool {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    digits || text.strip_prefix('_').is_some_and(is_obfuscated)
}

/// What follows the underscore of a name that stands for an address.
fn is_obfuscated(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing;

    /// Trusts 10.0.0.0/8 and `fd00::/8`.
    fn judge(values: &[&str], peer: Option<&str>) -> Result<Option<IpAddr>, ForwardedFault> {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap());
        let peer = peer.map(|peer| peer.parse().unwrap());
        forwarded_for(values.iter().map(|value| value.as_bytes()), &trusted, peer)
    }

    #[track_caller]
    fn check(values: &[&str], expected: Result<&str, ForwardedFault>) {
        let expected = expected.map(|text| Some(text.parse().unwrap()));
        assert_eq!(judge(values, Some("10.0.0.1")), expected, "{values:?}");
        assert_eq!(judge(values, None), expected, "{values:?} on a unix socket");
    }

    #[test]
    fn the_nearest_hop_that_is_no_proxy_calls() {
        check(&["for=192.0.2.7"], Ok("192.0.2.7"));
        check(&["for=192.0.2.7, for=10.0.0.2"], Ok("192.0.2.7"));
        check(&["for=192.0.2.7", "for=10.0.0.2"], Ok("192.0.2.7"));
        check(&["for=192.0.2.9, for=192.0.2.7"], Ok("192.0.2.7")); // what a caller writes itself does not count
        check(&["for=10.9.9.9", "for=192.0.2.7, for=10.0.0.2", "for=10.0.0.3"], Ok("192.0.2.7"));
        check(&["for=_hidden, for=unknown, for=192.0.2.7"], Ok("192.0.2.7"));
        check(&["for=10.0.0.5, for=10.0.0.2"], Ok("10.0.0.5")); // a caller among the proxies
        check(&[r#"for="[2001:db8::7]:443";proto=https;by="[fd00::1]""#], Ok("2001:db8::7"));
        check(&[r#"for="[::ffff:192.0.2.7]""#], Ok("192.0.2.7"));
        check(&[r#"For="192.0.2.7:47011" ; HOST="a,b;for=1.1.1.1\"""#], Ok("192.0.2.7"));
        check(&[", ,for=192.0.2.7;,"], Ok("192.0.2.7"));
        check(&[r#"for="192.0.2.7:_port""#], Ok("192.0.2.7"));
    }

    #[test]
    fn who_is_no_proxy_speaks_for_itself() {
        for values in [&[][..], &["for=192.0.2.9"], &["for=10.0.0.9"], &["broken\""]] {
            assert_eq!(judge(values, Some("192.0.2.7")), Ok(Some("192.0.2.7".parse().unwrap())));
            assert_eq!(judge(values, Some("::ffff:192.0.2.7")), Ok(Some("192.0.2.7".parse().unwrap())));
        }
        assert!(judge(&["for=192.0.2.7"], Some("::ffff:10.0.0.1")).unwrap() == Some([192, 0, 2, 7].into()));
    }

    #[test]
    fn a_proxy_that_does_not_say_who_calls_leaves_it_open() {
        use ForwardedFault::{Hidden, Malformed, Missing};
        for (values, fault) in [
            (&[][..], Missing),
            (&[""], Missing),
            (&[" , "], Missing),
            (&["for=unknown"], Hidden),
            (&["for=UnKnown"], Hidden),
            (&["for=_hidden"], Hidden),
            (&[r#"for="_a.b-c:80""#], Hidden),
            (&["proto=https"], Hidden),
            (&["for=192.0.2.7, proto=https"], Hidden), // the nearest hop has no address, so no other counts
            (&["for=192.0.2.7, for=_hidden, for=10.0.0.2"], Hidden),
            (&["for=192.0.2.7;for=192.0.2.8"], Malformed),
            (&["for=192.0.2.7 for=192.0.2.8"], Malformed),
            (&["for"], Malformed),
            (&["for="], Malformed),
            (&["=192.0.2.7"], Malformed),
            (&["for =192.0.2.7"], Malformed),
            (&["for= 192.0.2.7"], Malformed),
            (&["for=192.0.2"], Malformed),
            (&["for=192.0.2.007"], Malformed),
            (&["for=0x7f000001"], Malformed),
            (&["for=example.com"], Malformed),
            (&["for=192.0.2.7:80"], Malformed), // a colon wants quotes
            (&["for=[2001:db8::7]"], Malformed),
            (&[r#"for="2001:db8::7""#], Malformed), // IPv6 wants brackets
            (&[r#"for="[192.0.2.7]""#], Malformed),
            (&[r#"for="[fe80::1%eth0]""#], Malformed),
            (&[r#"for="[2001:db8::7]x""#], Malformed),
            (&[r#"for="192.0.2.7:""#], Malformed),
            (&[r#"for="192.0.2.7:123456""#], Malformed),
            (&[r#"for="192.0.2\.7""#], Malformed), // no escape is looked through
            (&[r#"for="192.0.2.7"#], Malformed),
            (&["for=_"], Malformed),
            (&["for=192.0.2.7, for=\"\x01\""], Malformed),
            (&["for=\"", "for=192.0.2.7"], Malformed), // a line of a caller's own does not swallow the next
            (&["192.0.2.7"], Malformed),               // X-Forwarded-For under another name
        ] {
            assert_eq!(judge(values, Some("10.0.0.1")), Err(fault), "{values:?}");
        }
    }

    /// A hop, as it is written and as it is understood.
    fn hop() -> impl Strategy<Value = (String, Option<IpAddr>)> {
        let trusted = any::<[u8; 3]>().prop_map(|[a, b, c]| IpAddr::from([10, a, b, c]));
        let v4 = any::<[u8; 4]>().prop_map(IpAddr::from);
        let v6 = any::<[u8; 16]>().prop_map(IpAddr::from);
        prop_oneof![
            1 => Just(("for=unknown".to_owned(), None)),
            1 => Just(("proto=http".to_owned(), None)),
            6 => prop_oneof![trusted, v4, v6].prop_map(|address| match address {
                IpAddr::V4(v4) => (format!("by=x;for={v4}"), Some(address)),
                IpAddr::V6(v6) => (format!("for=\"[{v6}]:1\""), Some(address.to_canonical())),
            }),
        ]
    }

    proptest! {
        /// The rule as RFC 7239 is used: from the right, past trusted hops.
        #[test]
        fn it_reads_as_from_right_to_left(
            hops in prop::collection::vec(hop(), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let trusted = ["10.0.0.0/8".parse().unwrap()];
            let mut expected = Err(ForwardedFault::Missing);
            for (_, address) in hops.iter().rev() {
                expected = address.map(Some).ok_or(ForwardedFault::Hidden);
                if !address.is_some_and(|address| is_trusted(address, &trusted)) {
                    break;
                }
            }
            let written: Vec<&str> = hops.iter().map(|(text, _)| text.as_str()).collect();
            let (first, second) = written.split_at(cut.index(written.len()));
            let lines = [first.join(", "), second.join(",")];
            fuzzing::forwarded(lines.join("\n").as_bytes());
            let found = forwarded_for(lines.iter().map(String::as_bytes), &trusted, None);
            prop_assert_eq!(found, expected, "{:?}", lines);
        }

        /// Untrusted bytes never panic, and what a trusted proxy appends on a line of its own decides, or nothing does.
        #[test]
        fn no_bytes_of_a_callers_name_another(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            fuzzing::forwarded(&bytes);
        }
    }
}
