//! Which addresses an instance may live at (P-14). Pure: the connector resolves, asks here, and dials the very address
//! that was checked, so that a second DNS answer cannot lead elsewhere.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// What an address is for, by the special-purpose registries (RFC 6890, IANA as of 2026-11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressKind {
    /// Globally routed unicast.
    Public,
    /// 127.0.0.0/8, `::1`.
    Loopback,
    /// RFC 1918, unique local (`fc00::/7`) and the deprecated site-local `fec0::/10`.
    Private,
    /// 169.254.0.0/16 (cloud metadata services live here), `fe80::/10`.
    LinkLocal,
    /// Carrier-grade NAT, 100.64.0.0/10 (RFC 6598).
    CarrierNat,
    /// An IPv6 form of an IPv4 address: mapped, compatible, NAT64, 6to4, Teredo. It would get round the
    /// IPv4 rules.
    Translated,
    /// `0.0.0.0/8`, `::`. Linux connects them to loopback.
    Unspecified,
    /// Multicast and broadcast.
    Multicast,
    /// Documentation, benchmarking, discard-only and protocol assignments.
    Documentation,
    /// Everything else that is not for use: 240.0.0.0/4, IPv6 outside `2000::/3`.
    Reserved,
}

impl AddressKind {
    /// The kind of `address`.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            [0, ..] => Self::Unspecified,
            [127, ..] => Self::Loopback,
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Self::Private,
            [169, 254, ..] => Self::LinkLocal,
            [100, 64..=127, ..] => Self::CarrierNat,
            [224..=239, ..] | [255, 255, 255, 255] => Self::Multicast,
            // 6to4 relay anycast (RFC 7526, deprecated).
            [192, 88, 99, _] => Self::Translated,
            [192, 0, 0 | 2, _] | [198, 51, 100, _] | [203, 0, 113, _] | [198, 18 | 19, ..] => {
                Self::Documentation
            }
            [240..=255, ..] => Self::Reserved,
            _ => Self::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Self::Unspecified,
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::Loopback,
            // ::/96 compatible, ::ffff:0:0/96 mapped, ::ffff:0:0:0/96 SIIT, 64:ff9b::/96 and 64:ff9b:1::/48 NAT64,
            // 2001::/32 Teredo, 2002::/16 6to4.
            [0, 0, 0, 0, 0, 0 | 0xffff, ..]
            | [0, 0, 0, 0, 0xffff, 0, ..]
            | [0x64, 0xff9b, 0 | 1, ..]
            | [0x2001, 0, ..]
            | [0x2002, ..] => Self::Translated,
            [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Self::Private,
            [0xfe80..=0xfebf, ..] => Self::LinkLocal,
            [0xff00..=0xffff, ..] => Self::Multicast,
            // 2001:db8::/32 and 3fff::/20 documentation, the rest of 2001::/23 protocol assignments, ORCHID among them.
            [0x2001, 0x0db8 | 0x0001..=0x01ff, ..] | [0x3fff, 0..=0x0fff, ..] => Self::Documentation,
            [0x2000..=0x3fff, ..] => Self::Public,
            _ => Self::Reserved,
        }
    }
}

impl fmt::Display for AddressKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::LinkLocal => "link-local",
            Self::CarrierNat => "carrier-NAT",
            Self::Translated => "translated IPv4",
            Self::Unspecified => "unspecified",
            Self::Multicast => "multicast",
            Self::Documentation => "documentation",
            Self::Reserved => "reserved",
        })
    }
}

/// Whether the connector may dial `address` for an origin whose host is the literal address `origin`, or a name (`None`).
///
/// Loopback only for an origin that is itself a literal loopback address: no name and no network in
/// `allow_private_instances` opens it. Public addresses always. Every other kind only inside
/// `allow_private_instances`; on a network with DNS64, that is where `64:ff9b::/96` goes.
pub fn address_allowed(address: IpAddr, origin: Option<IpAddr>, allow_private_instances: &[IpNet]) -> bool {
    match AddressKind::of(address) {
        AddressKind::Public => true,
        AddressKind::Loopback => origin.is_some_and(|origin| origin.is_loopback()),
        // Nobody serves there, and on Linux connecting to 0.0.0.0 reaches loopback.
        AddressKind::Unspecified | AddressKind::Multicast => false,
        _ => !reaches_loopback(address) && allow_private_instances.iter().any(|net| net.contains(&address)),
    }
}

/// A translated form whose IPv4 part is this host: not opened by a network that covers the whole translation prefix.
fn reaches_loopback(address: IpAddr) -> bool {
    let IpAddr::V6(address) = address else { return false };
    if AddressKind::of_v6(address) != AddressKind::Translated {
        return false;
    }
    let [.., a, b] = address.segments();
    let [a0, a1] = a.to_be_bytes();
    let [b0, b1] = b.to_be_bytes();
    let embedded = Ipv4Addr::new(a0, a1, b0, b1);
    matches!(AddressKind::of_v4(embedded), AddressKind::Loopback | AddressKind::Unspecified)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn address(text: &str) -> IpAddr {
        text.parse().unwrap_or_else(|_| panic!("{text}"))
    }

    /// P-14: what each address is. Without a network of the operator's, only public ones are dialled.
    #[test]
    fn only_public_addresses_are_dialled_for_a_name() {
        use AddressKind::{
            CarrierNat, Documentation, LinkLocal, Loopback, Multicast, Private, Public, Reserved, Translated,
            Unspecified,
        };
        for (text, kind) in [
            ("149.96.0.1", Public), // ServiceNow's own
            ("1.1.1.1", Public),
            ("9.255.255.255", Public),
            ("11.0.0.0", Public),
            ("100.63.255.255", Public),
            ("100.128.0.0", Public),
            ("126.255.255.255", Public),
            ("128.0.0.0", Public),
            ("169.253.255.255", Public),
            ("172.15.255.255", Public),
            ("172.32.0.0", Public),
            ("192.167.255.255", Public),
            ("198.17.255.255", Public),
            ("198.20.0.0", Public),
            ("223.255.255.255", Public),
            ("2600:1f18::1", Public),
            ("2a00:1450:4001::1", Public),
            ("2001:200::1", Public), // the first behind 2001::/23
            ("127.0.0.1", Loopback),
            ("127.255.255.254", Loopback),
            ("::1", Loopback),
            ("10.0.0.0", Private),
            ("10.255.255.255", Private),
            ("172.16.0.1", Private),
            ("172.31.255.255", Private),
            ("192.168.1.1", Private),
            ("fc00::1", Private),
            ("fd00:ec2::254", Private), // metadata service over IPv6
            ("fec0::1", Private),
            ("169.254.169.254", LinkLocal), // metadata service
            ("169.254.0.1", LinkLocal),
            ("fe80::1", LinkLocal),
            ("febf::1", LinkLocal),
            ("100.64.0.1", CarrierNat),
            ("100.100.100.200", CarrierNat), // metadata service of a cloud
            ("100.127.255.255", CarrierNat),
            ("::ffff:127.0.0.1", Translated),
            ("::ffff:10.0.0.1", Translated),
            ("::ffff:8.8.8.8", Translated),
            ("::127.0.0.1", Translated),
            ("::2", Translated),
            ("::ffff:0:127.0.0.1", Translated),
            ("64:ff9b::7f00:1", Translated),
            ("64:ff9b::8.8.8.8", Translated),
            ("64:ff9b:1::10.0.0.1", Translated),
            ("2001::1", Translated),       // Teredo
            ("2002:7f00:1::", Translated), // 6to4 of 127.0.0.1
            ("192.88.99.1", Translated),
            ("0.0.0.0", Unspecified),
            ("0.1.2.3", Unspecified),
            ("::", Unspecified),
            ("224.0.0.1", Multicast),
            ("239.255.255.255", Multicast),
            ("255.255.255.255", Multicast),
            ("ff02::1", Multicast),
            ("ff0e::1", Multicast),
            ("192.0.0.1", Documentation),
            ("192.0.2.1", Documentation),
            ("198.18.0.1", Documentation),
            ("198.19.255.255", Documentation),
            ("198.51.100.1", Documentation),
            ("203.0.113.1", Documentation),
            ("2001:db8::1", Documentation),
            ("2001:20::1", Documentation),
            ("3fff::1", Documentation),
            ("240.0.0.1", Reserved),
            ("255.255.255.254", Reserved),
            ("100::1", Reserved),
            ("4000::1", Reserved),
            ("5f00::1", Reserved),
        ] {
            assert_eq!(AddressKind::of(address(text)), kind, "{text}");
            assert_eq!(address_allowed(address(text), None, &[]), kind == Public, "{text}");
        }
    }

    #[test]
    fn a_network_of_the_operators_opens_what_is_inside() {
        for (network, text, allowed) in [
            ("10.1.0.0/16", "10.1.2.3", true),
            ("10.1.0.0/16", "10.2.2.3", false),
            ("169.254.169.0/24", "169.254.169.254", true),
            ("100.64.0.0/10", "100.64.0.1", true),
            ("198.18.0.0/15", "198.18.0.1", true),
            ("fd00::/8", "fd12::1", true),
            ("10.0.0.0/8", "::ffff:10.0.0.1", false), // another address, however similar
            ("::ffff:10.0.0.0/104", "::ffff:10.0.0.1", true),
            ("64:ff9b::/96", "64:ff9b::8.8.8.8", true),
            ("64:ff9b::/96", "64:ff9b::127.0.0.1", false),
            ("::/0", "::ffff:127.0.0.1", false),
            ("::/0", "::", false),
            ("0.0.0.0/0", "0.0.0.0", false),
            ("0.0.0.0/0", "127.0.0.1", false),
            ("0.0.0.0/0", "224.0.0.1", false),
            ("::/0", "::1", false),
        ] {
            let networks = [network.parse().unwrap()];
            assert_eq!(address_allowed(address(text), None, &networks), allowed, "{text} in {network}");
        }
    }

    #[test]
    fn loopback_is_for_literal_loopback_origins() {
        for (origin, text, allowed) in [
            (Some("127.0.0.1"), "127.0.0.1", true),
            (Some("::1"), "::1", true),
            (Some("10.0.0.1"), "127.0.0.1", false),
            (Some("8.8.8.8"), "127.0.0.1", false),
            (Some("::ffff:127.0.0.1"), "::ffff:127.0.0.1", false),
            (Some("127.0.0.1"), "10.0.0.1", false),
            (None, "127.0.0.1", false),
        ] {
            assert_eq!(
                address_allowed(address(text), origin.map(address), &[]),
                allowed,
                "{origin:?} {text}"
            );
        }
    }
}
