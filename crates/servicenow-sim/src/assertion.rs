//! Assertions of the JWT bearer grant (RFC 7523): which client they are for, which user they name, and whether they
//! are signed, fresh and not used before.

use std::collections::HashMap;

use aws_lc_rs::{hmac, signature};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;

use crate::clock::SimTime;
use crate::settings::{ClientSettings, JwtVerifier};
use crate::token_endpoint::Refusal;
use crate::world::World;

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(rename = "iss")]
    _iss: String,
    aud: Audience,
    sub: String,
    exp: u64,
    nbf: Option<u64>,
    iat: Option<u64>,
    jti: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn client_id(self) -> Option<String> {
        match self {
            Self::One(one) => Some(one),
            Self::Many(many) => many.into_iter().next(),
        }
    }
}

/// The `jti` values seen, each until its assertion expires.
#[derive(Debug, Default)]
pub(crate) struct SeenAssertions(HashMap<String, SimTime>);

impl SeenAssertions {
    /// `false` if this one was seen before.
    fn first_use(&mut self, jti: String, until: SimTime, now: SimTime) -> bool {
        if self.0.len() >= SEEN_MAX {
            self.0.retain(|_, expires_at| *expires_at > now);
        }
        if self.0.len() >= SEEN_MAX {
            return false;
        }
        self.0.insert(jti, until).is_none()
    }
}

/// Client id and user name of a good assertion.
pub(crate) fn accept(world: &mut World, text: &str, now: SimTime) -> Result<(String, String), Refusal> {
    let malformed = Refusal::grant("assertion_malformed");
    let (signed, signature) = text.rsplit_once('.').ok_or(malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(malformed)?;
    let header: Header = decode(header).ok_or(malformed)?;
    let claims: Claims = decode(claims).ok_or(malformed)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| malformed)?;
    let client_id = claims.aud.client_id().ok_or(malformed)?;
    let client = world.clients.get(&client_id).ok_or(Refusal::grant("assertion_audience_unknown"))?;
    verify(client, &header, signed.as_bytes(), &signature)?;
    let skew = world.behaviour.assertion_skew_s;
    let now_s = now.as_secs();
    if now_s >= claims.exp.saturating_add(skew) {
        return Err(Refusal::grant("assertion_expired"));
    }
    if claims.nbf.or(claims.iat).is_some_and(|from| from > now_s.saturating_add(skew)) {
        return Err(Refusal::grant("assertion_not_yet_valid"));
    }
    let user = world
        .user_with(&client.jwt_user_field, &claims.sub)
        .ok_or(Refusal::grant("assertion_user_unknown"))?;
    if let Some(jti) = claims.jti {
        let until = SimTime::from_secs(claims.exp.saturating_add(skew));
        let mark = format!("{client_id}\n{jti}");
        if !world.seen_assertions.first_use(mark, until, now) {
            return Err(Refusal::grant("assertion_replayed"));
        }
    }
    Ok((client_id, user))
}

fn decode<T: for<'de> Deserialize<'de>>(part: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

fn verify(client: &ClientSettings, header: &Header, signed: &[u8], signature: &[u8]) -> Result<(), Refusal> {
    let mut candidates = client.jwt_verifiers.iter().filter(|verifier| {
        verifier.algorithm == header.alg && (header.kid.is_none() || verifier.kid == header.kid)
    });
    let verifier = candidates.next().ok_or(Refusal::grant("assertion_key_unknown"))?;
    if is_signed(verifier, signed, signature) {
        Ok(())
    } else {
        Err(Refusal::grant("assertion_signature_wrong"))
    }
}

fn is_signed(verifier: &JwtVerifier, signed: &[u8], signature: &[u8]) -> bool {
    let shared = |algorithm| {
        let key = hmac::Key::new(algorithm, verifier.key.as_bytes());
        hmac::verify(&key, signed, signature).is_ok()
    };
    let public = |algorithm: &'static dyn signature::VerificationAlgorithm| {
        let Some(key) = public_key_der(&verifier.key) else { return false };
        signature::UnparsedPublicKey::new(algorithm, key).verify(signed, signature).is_ok()
    };
    match verifier.algorithm.as_str() {
        "HS256" => shared(hmac::HMAC_SHA256),
        "HS384" => shared(hmac::HMAC_SHA384),
        "HS512" => shared(hmac::HMAC_SHA512),
        "RS256" => public(&signature::RSA_PKCS1_2048_8192_SHA256),
        "RS384" => public(&signature::RSA_PKCS1_2048_8192_SHA384),
        "RS512" => public(&signature::RSA_PKCS1_2048_8192_SHA512),
        "ES256" => public(&signature::ECDSA_P256_SHA256_FIXED),
        "ES384" => public(&signature::ECDSA_P384_SHA384_FIXED),
        "ES512" => public(&signature::ECDSA_P521_SHA512_FIXED),
        _ => false,
    }
}

/// `SubjectPublicKeyInfo` out of a PEM block.
fn public_key_der(pem: &str) -> Option<Vec<u8>> {
    let (_, rest) = pem.split_once("-----BEGIN PUBLIC KEY-----")?;
    let (body, _) = rest.split_once("-----END PUBLIC KEY-----")?;
    let base64: String = body.chars().filter(|character| !character.is_ascii_whitespace()).collect();
    STANDARD.decode(base64).ok()
}

/// `jti` values remembered; past it further assertions with a `jti` are refused until some expire.
const SEEN_MAX: usize = 100_000;
