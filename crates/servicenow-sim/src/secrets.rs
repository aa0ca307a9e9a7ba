//! Random values, digests and comparisons: everything that needs the crypto library, and nothing that decides.

use aws_lc_rs::{constant_time, digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// 86 characters of base64url: what ServiceNow's opaque tokens look like.
pub(crate) fn opaque_token() -> String {
    URL_SAFE_NO_PAD.encode(random::<64>())
}

/// 32 random hexadecimal digits: a `sys_id`, a `JSESSIONID`, a transaction id.
pub(crate) fn random_hex32() -> String {
    hex(&random::<16>())
}

/// A `sys_id` that is the same in every run.
pub(crate) fn sys_id_for(name: &str) -> String {
    hex(&digest::digest(&digest::SHA256, name.as_bytes()).as_ref()[..16])
}

/// `S256(verifier)` of RFC 7636 §4.2.
pub(crate) fn pkce_s256(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, verifier.as_bytes()))
}

pub(crate) fn same(left: &str, right: &str) -> bool {
    constant_time::verify_slices_are_equal(left.as_bytes(), right.as_bytes()).is_ok()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

/// SHA-256 of what comes in pieces.
pub(crate) struct Sha256(digest::Context);

impl Sha256 {
    pub(crate) fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> String {
        hex(self.0.finish().as_ref())
    }
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        assert_eq!(opaque_token().len(), 86);
        assert_eq!(random_hex32().len(), 32);
        assert_eq!(sys_id_for("a"), sys_id_for("a"));
        assert_ne!(sys_id_for("a"), sys_id_for("b"));
    }

    #[test]
    fn pkce_example_of_rfc_7636_appendix_b() {
        assert_eq!(
            pkce_s256("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
        );
    }
}
