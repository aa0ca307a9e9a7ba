//! The methods that a policy can open, and sets of them.

/// A method of the Table API. What is not listed here is refused before any policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
}

impl Method {
    pub const ALL: [Self; 6] = [Self::Get, Self::Head, Self::Post, Self::Put, Self::Patch, Self::Delete];

    /// Exactly the upper-case names: methods are case-sensitive (RFC 9110 §9.1).
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }

    /// Safe in the sense of RFC 9110 §9.2.1: repeating it changes nothing.
    pub const fn is_safe(self) -> bool {
        matches!(self, Self::Get | Self::Head)
    }

    /// 0 … 5, in the order of [`Self::ALL`]: for tables.
    pub const fn index(self) -> usize {
        self as usize
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of methods, as a rule opens them.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Methods(u8);

impl Methods {
    /// Names that are no method open nothing. `GET` brings `HEAD`.
    pub fn from_names<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let bits = names.filter_map(Method::parse).fold(0, |bits, method| bits | method.bit());
        Self(if bits & Method::Get.bit() == 0 { bits } else { bits | Method::Head.bit() })
    }

    pub const fn contains(self, method: Method) -> bool {
        self.0 & method.bit() != 0
    }
}

impl std::fmt::Debug for Methods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let held = Method::ALL.into_iter().filter(|method| self.contains(*method));
        f.debug_set().entries(held.map(Method::name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn get_brings_head_and_nothing_else_does() {
        let set = |names: &[&str]| Methods::from_names(names.iter().copied());
        assert!(set(&["GET"]).contains(Method::Head));
        assert!(!set(&["HEAD"]).contains(Method::Get));
        assert!(!set(&["POST", "PUT", "PATCH", "DELETE"]).contains(Method::Head));
        assert_eq!(set(&["get", "TRACE", ""]), Methods::default());
        assert_eq!(format!("{:?}", set(&["GET", "PUT"])), r#"{"GET", "HEAD", "PUT"}"#);
    }
}
