//! Authorization codes (RFC 6749 §4.1.2): bound to the client, the redirect URI as it was requested, and the PKCE
//! challenge; good once, for about a minute.

use std::collections::HashMap;

use crate::clock::SimTime;
use crate::secrets;

/// What a code stands for.
#[derive(Clone, Debug)]
pub(crate) struct CodeGrant {
    pub(crate) client_id: String,
    pub(crate) user_name: String,
    /// As in the authorization request, byte for byte; `None` if it had none.
    pub(crate) redirect_uri: Option<String>,
    pub(crate) code_challenge: Option<String>,
    pub(crate) expires_at: SimTime,
}

/// What the token request says about the code.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CodeClaim<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) redirect_uri: Option<&'a str>,
    pub(crate) code_verifier: Option<&'a str>,
}

/// Why a code was not exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CodeRefusal {
    /// Never issued, or used before.
    Unknown,
    Expired,
    WrongClient,
    RedirectUriDiffers,
    VerifierMissing,
    VerifierWrong,
    /// A `code_verifier` for a code that was asked for without a challenge (RFC 9700 §4.8.2).
    VerifierUnexpected,
}

impl CodeRefusal {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unknown => "code_unknown",
            Self::Expired => "code_expired",
            Self::WrongClient => "code_wrong_client",
            Self::RedirectUriDiffers => "redirect_uri_differs",
            Self::VerifierMissing => "verifier_missing",
            Self::VerifierWrong => "verifier_wrong",
            Self::VerifierUnexpected => "verifier_unexpected",
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct CodeStore {
    codes: HashMap<String, CodeGrant>,
}

impl CodeStore {
    pub(crate) fn issue(&mut self, grant: CodeGrant, now: SimTime) -> String {
        if self.codes.len() >= CODES_MAX {
            self.codes.retain(|_, code| code.expires_at > now);
        }
        if self.codes.len() >= CODES_MAX {
            self.codes.clear();
        }
        let code = secrets::opaque_token();
        self.codes.insert(code.clone(), grant);
        code
    }

    /// Uses the code up, whether or not the claim is good.
    pub(crate) fn redeem(
        &mut self,
        code: &str,
        claim: CodeClaim<'_>,
        now: SimTime,
    ) -> Result<CodeGrant, CodeRefusal> {
        let grant = self.codes.remove(code).ok_or(CodeRefusal::Unknown)?;
        if now >= grant.expires_at {
            return Err(CodeRefusal::Expired);
        }
        if grant.client_id != claim.client_id {
            return Err(CodeRefusal::WrongClient);
        }
        if grant.redirect_uri.as_deref() != claim.redirect_uri {
            return Err(CodeRefusal::RedirectUriDiffers);
        }
        match (&grant.code_challenge, claim.code_verifier) {
            (None, Some(_)) => Err(CodeRefusal::VerifierUnexpected),
            (Some(_), None) => Err(CodeRefusal::VerifierMissing),
            (Some(challenge), Some(verifier)) if !secrets::same(challenge, &secrets::pkce_s256(verifier)) => {
                Err(CodeRefusal::VerifierWrong)
            }
            (None, None) | (Some(_), Some(_)) => Ok(grant),
        }
    }
}

/// Codes outstanding; past it, expired ones go first, then all.
const CODES_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    const START: SimTime = SimTime::from_secs(1_000);
    const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
    const HERE: &str = "http://127.0.0.1:1/cb";

    #[track_caller]
    fn check(challenge: Option<&str>, claim: CodeClaim<'_>, at: SimTime, expected: Option<CodeRefusal>) {
        let mut codes = CodeStore::default();
        let grant = CodeGrant {
            client_id: "c".to_owned(),
            user_name: "u".to_owned(),
            redirect_uri: Some(HERE.to_owned()),
            code_challenge: challenge.map(str::to_owned),
            expires_at: SimTime::from_secs(1_060),
        };
        let code = codes.issue(grant, START);
        assert_eq!(codes.redeem(&code, claim, at).err(), expected);
        assert_eq!(codes.redeem(&code, claim, at).err(), Some(CodeRefusal::Unknown), "a code is good once");
    }

    #[test]
    fn a_code_is_bound_to_everything_it_was_asked_for_with() {
        let plain = CodeClaim { client_id: "c", redirect_uri: Some(HERE), code_verifier: None };
        let proven = CodeClaim { code_verifier: Some(VERIFIER), ..plain };
        check(None, plain, START, None);
        check(None, plain, SimTime::from_secs(1_059), None);
        check(None, plain, SimTime::from_secs(1_060), Some(CodeRefusal::Expired));
        check(None, CodeClaim { client_id: "d", ..plain }, START, Some(CodeRefusal::WrongClient));
        check(None, CodeClaim { redirect_uri: None, ..plain }, START, Some(CodeRefusal::RedirectUriDiffers));
        let slash = "http://127.0.0.1:1/cb/";
        check(
            None,
            CodeClaim { redirect_uri: Some(slash), ..plain },
            START,
            Some(CodeRefusal::RedirectUriDiffers),
        );
        check(None, proven, START, Some(CodeRefusal::VerifierUnexpected));
        check(Some(CHALLENGE), proven, START, None);
        check(Some(CHALLENGE), plain, START, Some(CodeRefusal::VerifierMissing));
        let wrong = CodeClaim { code_verifier: Some("x"), ..plain };
        check(Some(CHALLENGE), wrong, START, Some(CodeRefusal::VerifierWrong));
    }
}
