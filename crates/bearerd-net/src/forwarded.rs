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
