//! Makes token strings: opaque ones, or JWTs signed with a key made at start (`/api/now/oauth/jwks`).

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::behaviour::TokenFormat;
use crate::clock::SimTime;
use crate::secrets;
use crate::tokens::{Mint, TokenOwner};

/// The key that signs JWT access tokens.
#[derive(Debug)]
pub(crate) struct TokenKey {
    pair: EcdsaKeyPair,
    kid: String,
}

impl TokenKey {
    pub(crate) fn generate() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        let pair = pair.expect("the crypto library makes P-256 keys");
        Self { pair, kid: secrets::random_hex32() }
    }

    /// The public key as a JWK set (RFC 7517).
    pub(crate) fn jwks(&self) -> serde_json::Value {
        // Uncompressed point: 0x04, x, y.
        let point = self.pair.public_key().as_ref();
        let (x, y) = point.get(1..65).unwrap_or(&[0; 64]).split_at(32);
        json!({"keys": [{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.kid,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)}]})
    }
}

/// Makes the token strings of one grant.
pub(crate) struct TokenMinter {
    pub(crate) format: TokenFormat,
    pub(crate) key: Arc<TokenKey>,
    pub(crate) issuer: String,
    pub(crate) now: SimTime,
}

impl TokenMinter {
    pub(crate) fn mint(&self, mint: Mint<'_>) -> String {
        match (mint, self.format) {
            (Mint::Access { owner, expires_at }, TokenFormat::Jwt) => self.jwt(owner, expires_at),
            (Mint::Access { .. } | Mint::Refresh, _) => secrets::opaque_token(),
        }
    }

    fn jwt(&self, owner: &TokenOwner, expires_at: SimTime) -> String {
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": self.key.kid});
        let claims = json!({
            "iss": self.issuer, "aud": owner.client_id, "sub": owner.user_name, "jti": secrets::random_hex32(),
            "iat": self.now.as_secs(), "exp": expires_at.as_secs(), "scope": "useraccount",
            "instance": "x".repeat(JWT_PADDING_CHARS),
        });
        let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.key.pair.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = signature.expect("signing with an own P-256 key");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Brings a JWT to about 1.5 KB, the size of those with a few custom claims.
const JWT_PADDING_CHARS: usize = 750;
