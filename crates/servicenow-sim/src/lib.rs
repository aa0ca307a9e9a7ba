//! A ServiceNow that behaves as the real one, awkwardness included: an OAuth authorization server, the REST API over
//! tables in memory, and scripted failures down to the bytes. Every claim of the project is proved against it, and it ships as
//! `bearerd sim`. It depends on none of our other crates and listens where it is told (default: loopback, free port).
//!
//! ```no_run
//! # async fn demo() -> std::io::Result<()> {
//! use servicenow_sim::{Fault, FaultOn, FaultRule, Sim, SimSettings};
//! let sim = Sim::start(SimSettings::default()).await?;
//! sim.state().change_behaviour(|behaviour| behaviour.auto_approve = Some("abel.tuter".to_owned()));
//! sim.state().add_fault(FaultRule::new(FaultOn::Token, Fault::DropAfter).once());
//! println!("{}", sim.origin());
//! sim.stop().await;
//! # Ok(()) }
//! ```
//!
//! # Routes of the instance
//! | route | what |
//! |---|---|
//! | `GET`, `POST /oauth_auth.do` | sign-in and consent page (no script), or an immediate 302 with `auto_approve` |
//! | `POST /oauth_token.do` | `authorization_code`, `refresh_token`, `client_credentials`, `password`, JWT bearer |
//! | `GET`, `POST /oauth_revoke_token.do` | ends that token; no authentication |
//! | `GET /api/now/oauth/jwks` | key of JWT access tokens |
//! | `/api/now[/v1\|/v2]/table/{table}[/{sys_id}]` | GET, HEAD, POST, PUT, PATCH, DELETE; JSON and XML |
//! | `GET /api/now/stats/{table}` | `sysparm_count`, `_avg_fields`, `_sum_fields`, `_min_fields`, `_max_fields`, `_group_by`, `_having` |
//! | `/api/now/attachment…` | list, describe, upload (raw, multipart), download, delete |
//! | `/api/now/import/{staging}[/{sys_id}\|/insertMultiple]` | `imp_user` into `sys_user`, `u_incident_import` into `incident` |
//! | `/api/sn_sc/servicecatalog/…` | `catalogs`, `categories/{id}`, `items[/{id}]`, `items/{id}/order_now`, `add_to_cart`, `cart`, `cart/submit_order` |
//! | `GET /api/sn_km_api/knowledge/articles[/{id}]` | published `kb_knowledge` |
//! | `POST /api/now/batch` | carries out what its items say, `X-HTTP-Method-Override` included |
//! | `POST /api/now/tinyurl` | `sysparm_tiny` brings the URL's query back |
//!
//! `v1` and `v2` may follow `now`, `sn_sc` and `sn_km_api`.
//!
//! On `/api` these authenticate: Bearer, `?access_token=`, `x-sn-apikey` (header and query), Basic, session cookie.
//! Every answer sets six cookies and has an `X-Transaction-ID`. A request that was read takes effect even if its client
//! leaves. HTTP/1.1 and HTTP/2 (prior knowledge, or ALPN under [`SimSettings::tls`]).
//!
//! # What a test of a proxy sees
//! - [`RequestRecord`]: the head's bytes as they arrived, connection and request number, body length and SHA-256,
//!   trailers, the client's certificate, the user.
//! - [`Counters`]: a strict reader looks at every byte a second time. `malformed_requests` and `pipelined_requests` are 0
//!   if exactly one well-formed request after another arrived. It judges HTTP/2 by the decoded head only: what the
//!   `h2` crate refuses resets its stream and is not counted. `requests_to("batch")` and its like say what was
//!   reached, percent-encoded paths included; `left_early` and `cut_requests` that a client went away.
//! - [`GeneratedFile`]: attachments of up to 4 GiB made of [`pattern()`] while they are sent. Uploads to
//!   `/api/now/attachment/file` may have any size; over 16 MiB they are hashed and counted, not held.
//! - `echo_marker`: whose answer it is, and in `repeated_writes` whether a marked write happened twice.
//!
//! # Demo data (the default)
//! Client `bearerd-demo`, secret `demo-secret`, redirect URI `http://127.0.0.1:8081/oauth/callback`, application user
//! `svc.integration`. Users: `admin` (password `admin`), `svc.integration` (`svc`), `abel.tuter`, `beth.anglin`,
//! `david.loo`, `fred.luddy`, `bow.ruggeri`, `joe.employee` (`demo`). Tables: `task` with `incident` (80 rows),
//! `problem`, `change_request`, `sc_request`, `sc_req_item`; `kb_knowledge`, `sys_user`, `sys_user_role`,
//! `sys_user_has_role`, `sys_user_group`, `sys_user_grmember`, `cmn_department`, `cmdb_ci`, `sys_properties`,
//! `sc_catalog`, `sc_category`, `sc_cat_item`, `sc_cart`, `sc_cart_item`, `sys_import_set`, `sys_import_set_row` with
//! `imp_user` and `u_incident_import`, `sys_db_object`, `sys_dictionary`. Every `sys_id` is the same in every run.
//!
//! The dictionary has each field once, under the table that brings it: the fields of `incident` are those of
//! `nameINincident,task`, and `super_class.name` in `sys_db_object` leads from one to the other. Each table also has a row
//! with an empty `element`. `internal_type` and `reference` refer by name, so they come with a link unless excluded.
//!
//! # Switches ([`Behaviour`])
//! | switch | default | effect |
//! |---|---|---|
//! | `auto_approve` | none | this user consents at once |
//! | `state_required`, `state_plain_only` | true | a page instead of a redirect for a missing or odd `state` |
//! | `pkce` | `optional` | or `required`, `refused`; always demanded of public clients, always verified when sent |
//! | `deny_returns` | `error` | or `bare`: Deny leads to the redirect URI without parameters |
//! | `code_lifetime_s` | 60 | |
//! | `error_shape` | `flattened` | or `rfc6749`: the real reason, with its status |
//! | `refuse_basic_client_auth` | false | client credentials in the body only |
//! | `client_credentials_enabled`, `password_enabled` | true | the instance's properties |
//! | `assertion_skew_s` | 300 | clock skew of JWT bearer assertions |
//! | `access_token_lifetime_s` | 1,800 | a client record can have its own |
//! | `refresh_token_lifetime_s` | 8,640,000 | from consent, not moved by a refresh |
//! | `refresh_within_life` | `remaining` | or `renewed` (same token, full life), `new` (new access token) |
//! | `new_access_token_ends_old` | false | |
//! | `shared_tokens` | true | same client and user, same tokens; not under `rotation` |
//! | `fresh_grant_extends` | true | a grant other than refresh gives shared tokens a full life again |
//! | `rotation` | false | a new refresh token with each refresh |
//! | `rotation_previous_ok` | false | the previous refresh token re-answers the current pair |
//! | `rotation_previous_ok_s` | 0 | the same, for so many seconds after its replacement |
//! | `rotation_reuse_revokes` | true | an older one revokes the family |
//! | `rotation_extends_life` | false | each new refresh token has a full life |
//! | `token_format` | `opaque` | or `jwt`: signed, about 1.5 KB |
//! | `refresh_token_for_public_clients` | true | |
//! | `revoke_refresh_ends_access` | false | revoking a refresh token ends the access tokens of its family |
//! | `cookie_auth_after_expiry` | true | a session cookie authenticates when the token no longer does |
//! | `method_override` | true | `X-HTTP-Method-Override` changes the verb |
//! | `query_credentials`, `basic_auth` | true | |
//! | `invalid_query_returns_no_rows` | false | else invalid conditions are ignored |
//! | `acl_denials` | none | `[{"user", "table", "methods"}]`, `*` for any: 403 |
//! | `scope_denials` | none | texts; requests with an access token whose path contains one: 403 `Missing required api access scope` |
//! | `session_serialisation` | true | per `JSESSIONID`, `session_concurrency` (2) run, `session_queue` (10) wait, else 202; a session lives `session_idle_s` (300). Concurrency and queue are those at the session's start |
//! | `node_concurrency`, `node_queue` | 0 = off, 50 | `API_INT` semaphores, else 429 without a header |
//! | `rate_limit_per_hour` | 0 = off | per user, 429 with `Retry-After` and `X-RateLimit-*` |
//! | `connection_requests_max` | 0 = off | then `Connection: close`, on HTTP/2 GOAWAY |
//! | `connection_idle_ms` | 30,000 | an HTTP/1.1 connection that waits longer for a request is closed |
//! | `http2_streams_max` | 200 | at a time on one connection |
//! | `latency_ms` | 0 | every request takes at least this long |
//! | `asleep` | false | every route: 200 with an HTML page |
//! | `echo_marker` | false | REST answers carry `X-Sim-Marker` (the request's, or its `sysparm_sim_marker`) and `X-Sim-User` |
//! | `echo_bytes` | 0 = off | under `echo_marker`, good answers have a body of this length that repeats both |
//! | `public_origin` | own | origin of absolute links |
//! | `request_log_max` | 100 | requests kept for `last-requests`, at most 10,000 |
//!
//! # Faults ([`FaultRule`])
//! `{"on": "token|authorize|revoke|table|api|any", "path_contains", "method", "grant_type", "times": N|null, "after": N,
//! "probability", "fault": {"kind": …}}`. Waits add up; of the others the first rule that matches decides.
//!
//! | kind | members | effect happens | what the client sees |
//! |---|---|---|---|
//! | `delay_ms` | `ms`, `after_effect` | yes | a slow answer |
//! | `hold` | `gate`, `after_effect` | yes | nothing until `POST /__sim/release` |
//! | `status` | `status`, `body`, `headers`, `after_effect` | with `after_effect` | that answer |
//! | `drop_before`, `drop_after` | | no, yes | the connection is cut, on HTTP/2 the stream |
//! | `drop_connection` | | no | the connection is cut, with every HTTP/2 stream on it |
//! | `html` | `status` (200) | no | a page |
//! | `accepted_202` | | no | empty 202 |
//! | `unauthorized_401` | | no | 401 as for a wrong token (token route: flattened refusal) |
//! | `rate_limit_429` | `retry_after_s` (1) | no | 429 with headers and JSON |
//! | `queue_full_429` | | no | 429 without header or body |
//! | `broken_json` | | yes | 200, JSON followed by an error object |
//! | `cancelled_500` | | yes | 500 `Transaction cancelled` |
//! | `cut_body` | `after_bytes` (1) | yes | the body stops, the connection is cut |
//! | `slow_drip` | `chunk_bytes` (1), `interval_ms` (50) | yes | the body in pieces |
//! | `asleep` | | no | 200 with the hibernation page |
//! | `answer_early` | `status` (413), `close` | no | an answer before the body was read |
//! | `continue_late` | `ms`, `gate` | yes | `100 Continue` comes late |
//! | `slow_read` | `interval_ms` (50) | yes | its body is taken slowly |
//! | `informational` † | `status` (103), `count` (1) | yes | informational answers before the final one |
//! | `trailers` | `trailers` | yes | trailers after the body |
//! | `huge_header` | `bytes` (1 MiB) | yes | a header of this length |
//! | `length_and_chunked` † | | yes | `Content-Length` and `Transfer-Encoding` |
//! | `two_answers` † | | yes | a second answer right after the first |
//! | `bad_chunks` † | `flaw`: `not_hex`, `signed`, `too_large`, `too_long`, `bare_lf`, `no_end` | yes | chunks that are none |
//! | `ghost_body` † | `status` (304) | yes | a body where there is none |
//! | `raw` † | `text`, `close`, `after_effect` | with `after_effect` | these bytes |
//!
//! On HTTP/2 a cut body resets the stream, and so does what HTTP/2 cannot say (†). After †, and after `trailers` on HTTP/1.1,
//! the connection answers nothing more: it is closed, or further requests are counted in `requests_after_raw`.
//!
//! # Control routes (JSON, no authentication)
//! | route | body | what |
//! |---|---|---|
//! | `GET /__sim` | | lists these |
//! | `GET /__sim/counters`, `POST /__sim/counters/reset` | | [`Counters`] |
//! | `GET`, `PUT /__sim/behaviour` | RFC 7396 merge patch | [`Behaviour`]; `null` puts a default back |
//! | `GET`, `POST`, `DELETE /__sim/faults`, `DELETE /__sim/faults/{id}` | [`FaultRule`] | POST answers `{"id"}` |
//! | `POST /__sim/release` | `{"gate"}` or nothing | lets held requests go |
//! | `GET /__sim/last-requests?n=`, `DELETE …` | | [`RequestRecord`]s, oldest first |
//! | `GET /__sim/malformed` | | [`MalformedRequest`]s, oldest first |
//! | `GET /__sim/tokens` | | [`TokenFamily`]s, oldest first |
//! | `GET`, `DELETE /__sim/ledger` | | [`Ledger`]: every [`Exchange`], [`Revocation`]s, what each family has now |
//! | `POST /__sim/expire-tokens` | `{"which": "access\|refresh\|all", "user", "client_id"}` | default: every access token |
//! | `POST /__sim/revoke-user` | `{"user", "deactivate"}` | ends all tokens |
//! | `POST /__sim/revoke-client` | `{"client_id", "deactivate"}` | ends all tokens |
//! | `GET`, `POST /__sim/clients` | [`ClientSettings`] | POST adds or replaces |
//! | `POST /__sim/users` | [`UserSettings`] | adds or replaces |
//! | `GET`, `POST /__sim/clock` | `{"advance_s"}` | answers `{"now_ms"}` |
//!
//! # Cut of the code
//! `server`, `line` and `exchange` do the I/O. All else is values and plain functions over `world::World`: `tokens` (the
//! grants as a state machine), `ledger` (what was spent when), `query` and `evaluate` (encoded queries), `render` (records as JSON and XML), `faults`
//! (which request goes wrong), `raw` (answers as bytes), `strict` (the second look at what arrives). Absent: scripted REST,
//! SAML 2.0 bearer.

mod api;
mod assertion;
mod attachment_api;
mod attachments;
mod authorize;
mod batch_api;
mod behaviour;
mod body;
mod body_record;
mod catalog_api;
mod clock;
mod codes;
mod control;
mod counters;
mod demo;
mod directory;
mod evaluate;
mod exchange;
mod faults;
mod import_api;
mod knowledge_api;
mod ledger;
mod line;
mod marker;
mod message;
mod mint;
mod mishap;
mod pages;
mod pattern;
mod query;
mod rate;
mod raw;
mod render;
mod request_log;
mod secrets;
mod seed;
mod server;
mod sessions;
mod settings;
mod state;
mod stats_api;
mod strict;
mod table_api;
mod tables;
mod tiny_urls;
mod tls;
mod token_endpoint;
mod tokens;
mod wire;
mod world;

pub use behaviour::{AclDenial, Behaviour, DenyReturns, ErrorShape, Pkce, RefreshWithinLife, TokenFormat};
pub use clock::SimTime;
pub use counters::{Counters, EndpointCounters};
pub use faults::{ChunkFlaw, Fault, FaultOn, FaultRule, FaultStatus};
pub use ledger::{Exchange, ExchangeOutcome, Ledger, Revocation};
pub use pattern::{GeneratedFile, pattern};
pub use request_log::{MalformedRequest, RequestRecord};
pub use seed::SeedData;
pub use server::Sim;
pub use settings::{ClientSettings, JwtVerifier, SimSettings, SimTls, UserSettings};
pub use state::SimState;
pub use tables::{Field, FieldKind, Record, TableSchema};
pub use tokens::{FamilyStanding, TokenFamily, TokenOwner, TokenSelection, WhichTokens};
