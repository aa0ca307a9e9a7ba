//! The token request (RFC 6749 §4.1.3, §4.4.2, §6) with the client's authentication (§2.3.1).

use base64::{Engine, engine::general_purpose::STANDARD};
use bearerd_model::{AuthorizationCode, ClientSecret, PkceVerifier, RefreshToken, TokenEndpointAuth};
use url::form_urlencoded;
use zeroize::Zeroizing;

/// Who asks: our client as registered at the instance.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    pub id: &'a str,
    /// `None`: a public client.
    pub secret: Option<&'a ClientSecret>,
    pub auth: TokenEndpointAuth,
}

/// What is asked for. One variant per grant.
#[derive(Debug, Clone, Copy)]
pub enum TokenRequest<'a> {
    AuthorizationCode {
        code: &'a AuthorizationCode,
        /// Byte for byte as in the authorization request (O-15).
        redirect_uri: &'a str,
        verifier: Option<&'a PkceVerifier>,
    },
    RefreshToken(&'a RefreshToken),
    ClientCredentials {
        scopes: &'a [String],
    },
}

/// A request of the token or the revocation endpoint on the wire: always a POST of a form, never a query (O-34, O-40).
pub struct EncodedTokenRequest {
    /// `application/x-www-form-urlencoded`.
    pub body: Zeroizing<String>,
    /// The `Authorization` value, where the client authenticates by HTTP Basic.
    pub authorization: Option<Zeroizing<String>>,
}

impl TokenRequest<'_> {
    /// The client authenticates in exactly one way (O-34).
    pub fn encode(&self, client: Client<'_>) -> EncodedTokenRequest {
        let mut form = form_urlencoded::Serializer::new(String::new());
        match self {
            Self::AuthorizationCode { code, redirect_uri, verifier } => {
                form.append_pair("grant_type", "authorization_code");
                form.append_pair("code", code.expose());
                form.append_pair("redirect_uri", redirect_uri);
                if let Some(verifier) = verifier {
                    form.append_pair("code_verifier", verifier.expose());
                }
            }
            Self::RefreshToken(token) => {
                form.append_pair("grant_type", "refresh_token");
                form.append_pair("refresh_token", token.expose());
            }
            Self::ClientCredentials { scopes } => {
                form.append_pair("grant_type", "client_credentials");
                if !scopes.is_empty() {
                    form.append_pair("scope", &scopes.join(" "));
                }
            }
        }
        let authorization = authenticate(&mut form, client);
        EncodedTokenRequest { body: Zeroizing::new(form.finish()), authorization }
    }

    /// The grant's name, for logs and metrics.
    pub fn grant_type(&self) -> &'static str {
        match self {
            Self::AuthorizationCode { .. } => "authorization_code",
            Self::RefreshToken(_) => "refresh_token",
            Self::ClientCredentials { .. } => "client_credentials",
        }
    }
}

/// Adds the client's authentication to `form`, or gives the `Authorization` value that stands for it: exactly one way
/// (O-34).
pub(crate) fn authenticate(
    form: &mut form_urlencoded::Serializer<'_, String>,
    client: Client<'_>,
) -> Option<Zeroizing<String>> {
    if let (TokenEndpointAuth::Basic, Some(secret)) = (client.auth, client.secret) {
        return Some(basic(client.id, secret));
    }
    form.append_pair("client_id", client.id);
    if let Some(secret) = client.secret {
        form.append_pair("client_secret", secret.expose());
    }
    None
}

/// Each part is form-encoded before it is joined and base64-encoded (RFC 6749 §2.3.1).
fn basic(id: &str, secret: &ClientSecret) -> Zeroizing<String> {
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pair = Zeroizing::new(format!("{}:{}", encode(id), Zeroizing::new(encode(secret.expose())).as_str()));
    Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(
        request: TokenRequest<'_>,
        secret: Option<&str>,
        auth: TokenEndpointAuth,
    ) -> (String, Option<String>) {
        let secret = secret.map(|secret| ClientSecret::parse(secret.to_owned()).unwrap());
        let encoded = request.encode(Client { id: "our id", secret: secret.as_ref(), auth });
        (encoded.body.to_string(), encoded.authorization.map(|value| value.to_string()))
    }

    #[test]
    fn each_grant_has_its_form() {
        let code = AuthorizationCode::parse("c+/=".to_owned()).unwrap();
        let verifier = PkceVerifier::parse("v".repeat(43)).unwrap();
        let refresh = RefreshToken::parse("r".to_owned()).unwrap();
        let by_code = TokenRequest::AuthorizationCode {
            code: &code,
            redirect_uri: "https://b/cb",
            verifier: Some(&verifier),
        };
        let scopes = ["a".to_owned(), "b".to_owned()];
        for (request, expected) in [
            (
                by_code,
                format!(
                    "grant_type=authorization_code&code=c%2B%2F%3D&redirect_uri=https%3A%2F%2Fb%2Fcb&code_verifier={}\
                     &client_id=our+id&client_secret=s",
                    "v".repeat(43)
                ),
            ),
            (
                TokenRequest::RefreshToken(&refresh),
                "grant_type=refresh_token&refresh_token=r&client_id=our+id&client_secret=s".to_owned(),
            ),
            (
                TokenRequest::ClientCredentials { scopes: &scopes },
                "grant_type=client_credentials&scope=a+b&client_id=our+id&client_secret=s".to_owned(),
            ),
        ] {
            assert_eq!(encode(request, Some("s"), TokenEndpointAuth::Body), (expected, None));
        }
    }

    /// O-34: one method of client authentication, and secrets with awkward characters survive it.
    #[test]
    fn basic_replaces_the_body_parameters() {
        let request = TokenRequest::ClientCredentials { scopes: &[] };
        let (body, header) =
            encode(request, Some("p:w+d/ é".replace('é', "~").as_str()), TokenEndpointAuth::Basic);
        assert_eq!(body, "grant_type=client_credentials");
        let decoded = STANDARD.decode(header.unwrap().strip_prefix("Basic ").unwrap()).unwrap();
        assert_eq!(String::from_utf8(decoded).unwrap(), "our+id:p%3Aw%2Bd%2F+%7E");
        let (body, header) = encode(request, None, TokenEndpointAuth::Basic);
        assert_eq!((body.as_str(), header), ("grant_type=client_credentials&client_id=our+id", None));
    }

    proptest! {
        /// O-34, O-40: whatever id, secret and token hold, the server reads them back, once, by one method.
        #[test]
        fn every_value_arrives_as_it_is(
            id in "[ -~]{1,40}", secret in "[ -~]{1,40}", token in "[ -~]{1,80}", in_header in any::<bool>(),
        ) {
            let auth = if in_header { TokenEndpointAuth::Basic } else { TokenEndpointAuth::Body };
            let client_secret = ClientSecret::parse(secret.clone()).unwrap();
            let token_value = RefreshToken::parse(token.clone()).unwrap();
            let client = Client { id: &id, secret: Some(&client_secret), auth };
            let encoded = TokenRequest::RefreshToken(&token_value).encode(client);
            let form: Vec<(String, String)> =
                form_urlencoded::parse(encoded.body.as_bytes()).into_owned().collect();
            let values = |wanted: &str| -> Vec<String> {
                form.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.clone()).collect()
            };
            prop_assert_eq!(values("refresh_token"), vec![token]);
            if in_header {
                let header = encoded.authorization.unwrap();
                let pair = STANDARD.decode(header.strip_prefix("Basic ").unwrap()).unwrap();
                let pair = String::from_utf8(pair).unwrap();
                let decoded = |text: &str| {
                    let padded = format!("x={text}");
                    form_urlencoded::parse(padded.as_bytes()).next().unwrap().1.into_owned()
                };
                let (left, right) = pair.split_once(':').unwrap();
                prop_assert_eq!((decoded(left), decoded(right)), (id, secret));
                prop_assert!(values("client_id").is_empty() && values("client_secret").is_empty());
            } else {
                prop_assert!(encoded.authorization.is_none());
                prop_assert_eq!((values("client_id"), values("client_secret")), (vec![id], vec![secret]));
            }
        }
    }
}
