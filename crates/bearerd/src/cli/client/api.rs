//! The admin API as a client sees it: one request, one answer, problems turned into [`CliError`].

use std::{fmt, time::Duration};

use bearerd_admin::wire::{Items, Problem};
use bearerd_model::{InstanceOrigin, SecretText};
use bearerd_net::{ConnectError, Connector, EgressSettings, FetchError, FetchLimits, Fetched, fetch};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};
use http_body_util::Full;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    ClientOptions,
    error::{CliError, Exit},
    input,
};

/// A way to one bearerd's admin API.
pub(crate) struct AdminApi {
    connector: Connector,
    origin: InstanceOrigin,
    /// `Bearer …`, marked sensitive.
    authorization: HeaderValue,
}

/// What the API answered to a request that was done.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) body: Value,
    pub(crate) created: bool,
}

/// Whether a PUT may change what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    CreateOnly,
    CreateOrChange,
}

impl AdminApi {
    /// # Errors
    /// Key, URL or CA file are missing or unusable.
    pub(crate) fn from_options(options: &ClientOptions) -> Result<Self, CliError> {
        let key = match (&options.admin_key.0, &options.admin_key_file) {
            (Some(key), _) => key.clone(),
            (None, Some(path)) => input::secret_file(path, "the admin key")?,
            (None, None) => {
                return Err(CliError::new(
                    Exit::Refused,
                    "admin_key_missing",
                    "there is no admin key",
                    "Set BEARERD_ADMIN_KEY to the key that `bearerd init` printed, or give --admin-key-file FILE.",
                ));
            }
        };
        Self::new(&options.admin_url, &key, options.admin_ca_file.as_deref())
    }

    /// # Errors
    /// URL or CA file are unusable.
    pub(crate) fn new(
        url: &str,
        key: &SecretText,
        ca_file: Option<&std::path::Path>,
    ) -> Result<Self, CliError> {
        let origin = origin_of(url)?;
        let connector = Connector::new(&EgressSettings {
            ca_file: ca_file.map(std::path::Path::to_owned),
            // The admin API lives where the operator says; private networks are the usual place.
            allow_private_instances: ["0.0.0.0/0", "::/0"]
                .iter()
                .filter_map(|net| net.parse().ok())
                .collect(),
            ..EgressSettings::default()
        })
        .map_err(|error| {
            let what = match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            CliError::usage(
                what,
                "Give --admin-ca-file a readable PEM file with the authority's certificate.",
            )
        })?;
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", key.expose())).map_err(|_| {
            CliError::usage("the admin key holds characters that no key has", "Copy the key again.")
        })?;
        authorization.set_sensitive(true);
        Ok(Self { connector, origin, authorization })
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Reply, CliError> {
        self.send(Method::GET, path, None, Vec::new()).await
    }

    /// All entries of a list, whatever number of parts it comes in.
    pub(crate) async fn list(&self, path: &str) -> Result<Vec<Value>, CliError> {
        let mut all = Vec::new();
        let mut next = format!("{path}?limit={PART}");
        loop {
            let part: Items<Value> = read(&self.get(&next).await?.body)?;
            all.extend(part.items);
            for id in part.damaged {
                all.push(serde_json::json!({ "id": id, "damaged": true }));
            }
            match part.next {
                Some(cursor) => next = format!("{path}?limit={PART}&cursor={cursor}"),
                None => return Ok(all),
            }
        }
    }

    pub(crate) async fn put(&self, path: &str, put: Put, body: &impl Serialize) -> Result<Reply, CliError> {
        let condition = match put {
            Put::CreateOnly => vec![(header::IF_NONE_MATCH, HeaderValue::from_static("*"))],
            Put::CreateOrChange => Vec::new(),
        };
        self.send(Method::PUT, path, Some(to_json(body)?), condition).await
    }

    pub(crate) async fn post(&self, path: &str, body: &impl Serialize) -> Result<Reply, CliError> {
        self.send(Method::POST, path, Some(to_json(body)?), Vec::new()).await
    }

    /// POST without a body.
    pub(crate) async fn act(&self, path: &str) -> Result<Reply, CliError> {
        self.send(Method::POST, path, None, Vec::new()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<Reply, CliError> {
        self.send(Method::DELETE, path, None, Vec::new()).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        conditions: Vec<(HeaderName, HeaderValue)>,
    ) -> Result<Reply, CliError> {
        let mut headers: HeaderMap = conditions.into_iter().collect();
        headers.insert(header::AUTHORIZATION, self.authorization.clone());
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        if body.is_some() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let mut request =
            Request::builder().method(method).uri(path).body(Full::new(body.unwrap_or_default())).map_err(
                |_| CliError::usage(format!("{path} is no path"), "Report this: it is a fault in bearerd."),
            )?;
        *request.headers_mut() = headers;
        let limits =
            FetchLimits { total: ANSWER_TIMEOUT, body_bytes_max: ANSWER_BYTES_MAX, ..FetchLimits::default() };
        let answer = fetch(&self.connector, &self.origin, request, limits)
            .await
            .map_err(|error| self.unreachable(&error))?;
        self.reply(&answer)
    }

    fn reply(&self, answer: &Fetched) -> Result<Reply, CliError> {
        let created = answer.status == http::StatusCode::CREATED;
        if answer.status == http::StatusCode::NO_CONTENT {
            return Ok(Reply { body: Value::Null, created });
        }
        if answer.status.is_success() {
            return match serde_json::from_slice(&answer.body) {
                Ok(body) => Ok(Reply { body, created }),
                Err(_) => Err(self.stranger(answer.status)),
            };
        }
        match serde_json::from_slice::<Problem>(&answer.body) {
            Ok(problem) => Err(CliError::from_problem(problem)),
            Err(_) => Err(self.stranger(answer.status)),
        }
    }

    /// Something answered that does not speak as bearerd's admin API does.
    fn stranger(&self, status: http::StatusCode) -> CliError {
        let what = format!(
            "what answers at {} (status {}) is not bearerd's admin API",
            self.origin,
            status.as_u16()
        );
        CliError::new(
            Exit::Unreachable,
            "not_admin_api",
            what,
            "Set BEARERD_ADMIN_URL to where admin.listen is.",
        )
    }

    fn unreachable(&self, error: &FetchError) -> CliError {
        let origin = &self.origin;
        let (what, fix) = match error {
            FetchError::NotSent(ConnectError::Tls { .. }) => (
                format!("the admin API at {origin} cannot be trusted: {}", error.reason()),
                "Give --admin-ca-file (or BEARERD_ADMIN_CA_FILE) the authority that issued its certificate.",
            ),
            FetchError::NotSent(ConnectError::AddressRefused { address, .. }) => (
                format!("{origin} leads to {address}, which only its literal address may be used for"),
                "Write the address itself into BEARERD_ADMIN_URL, such as http://127.0.0.1:8082.",
            ),
            FetchError::NotSent(_) => (
                format!("the admin API at {origin} cannot be reached: {}", error.reason()),
                "Start it with `bearerd serve`, or set BEARERD_ADMIN_URL to where it listens.",
            ),
            _ => (
                format!("the admin API at {origin} was asked, but did not answer: {}", error.reason()),
                "Look whether it was done (list or show) before you repeat it.",
            ),
        };
        CliError::new(Exit::Unreachable, "admin_api_unreachable", what, fix)
    }
}

impl fmt::Debug for AdminApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminApi").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// Reads an answer as the type that it should be.
pub(crate) fn read<T: DeserializeOwned>(body: &Value) -> Result<T, CliError> {
    T::deserialize(body).map_err(|error| {
        let what = format!("the admin API's answer has another shape than this version expects ({error})");
        CliError::new(
            Exit::Failed,
            "answer_unexpected",
            what,
            "Use the bearerd of the same version as the daemon.",
        )
    })
}

fn to_json(body: &impl Serialize) -> Result<Bytes, CliError> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|error| {
        CliError::usage(
            format!("the request cannot be written: {error}"),
            "Report this: it is a fault in bearerd.",
        )
    })
}

fn origin_of(url: &str) -> Result<InstanceOrigin, CliError> {
    // http is for literal loopback addresses, and this name is what people type for one.
    let literal = url.trim().replacen("http://localhost", "http://127.0.0.1", 1);
    InstanceOrigin::parse(&literal).map_err(|_| {
        CliError::usage(
            format!("{url:?} is not an address of the admin API"),
            "Write https://HOST:PORT without a path, or http:// with a loopback address: http://127.0.0.1:8082.",
        )
    })
}

/// Entries asked for at once: as many as the API gives.
const PART: usize = 200;
/// Above the longest act: a test call waits for a token and then for the instance.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(2);
/// 200 entries of some KB each.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
