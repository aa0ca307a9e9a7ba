//! What is known of one call when it has ended.

use std::net::IpAddr;

use bearerd_model::UnixTime;

use crate::text::Text;

/// One call. Plain data of a fixed size. A text that is empty, and an option that is none, is not in the line; what a member
/// means to who reads the lines is in `docs/access-records.md`.
#[derive(Debug, Clone, Copy, Default)]
pub struct AccessRecord {
    pub started_at: UnixTime,
    pub request_id: Text<64>,
    /// The id of the caller key that was accepted, or that a refused one claims to be: the public part.
    pub caller_key: Text<16>,
    pub connection: Text<63>,
    /// Of the access token that went to the instance last.
    pub generation: Option<u64>,
    pub policy: Text<63>,
    /// Which rule of the policy opened the call, from 1.
    pub rule: Option<u16>,
    /// As policies name it.
    pub family: Text<84>,
    pub table: Text<80>,
    pub method: Text<16>,
    /// Zero: the caller left, or bearerd ended, before there was an answer.
    pub status: u16,
    /// The code of an answer that bearerd made, or why it cut one off.
    pub error: Option<&'static str>,
    /// What the instance's answer was taken for.
    pub instance_verdict: Option<&'static str>,
    /// Of the bodies, as they went over the caller's connection.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// The times are microseconds since the call began: until the policy had decided …
    pub decided_us: Option<u64>,
    /// … until the instance's first byte …
    pub first_byte_us: Option<u64>,
    /// … and until the end.
    pub total_us: u64,
    /// As the caller sent it (W3C Trace Context).
    pub traceparent: Text<55>,
    /// The instance's `X-Transaction-ID`.
    pub transaction_id: Text<64>,
    /// The caller's address.
    pub source: Option<IpAddr>,
    pub http: HttpVersion,
    /// Sent once more after the instance's 401.
    pub replayed: bool,
    /// The caller left before the end of its body or of the answer, or took nothing of it for too long.
    pub caller_left: bool,
}

/// What the caller speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HttpVersion {
    Http10,
    #[default]
    Http11,
    Http2,
}

impl HttpVersion {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Http10 => "1.0",
            Self::Http11 => "1.1",
            Self::Http2 => "2",
        }
    }
}

/// What a batch and the queue take up is a multiple of this.
const _: () = assert!(size_of::<AccessRecord>() <= 704);
