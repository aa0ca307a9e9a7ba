//! The latest requests, byte for byte as they reached the instance: what a test of a proxy wants to see.

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Serialize, Serializer};

use crate::clock::SimTime;

/// One request as it arrived. Secrets are shown: they are a simulator's.
#[derive(Serialize, Clone, Debug)]
pub struct RequestRecord {
    /// Counts up from 1.
    pub seq: u64,
    pub at: SimTime,
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    pub version: String,
    /// Counts up from 1 with each connection accepted.
    pub connection: u64,
    /// Counts up from 1 with each request on the connection.
    pub request_on_connection: u64,
    pub is_tls: bool,
    /// SHA-256 of the client's certificate in DER, hexadecimal.
    pub client_certificate: Option<String>,
    /// The bytes from the request line to the empty line as they arrived; base64 in JSON. `None` on HTTP/2.
    #[serde(serialize_with = "base64_of")]
    pub raw_head: Option<Bytes>,
    /// What a strict reader finds wrong with the head.
    pub findings: Vec<&'static str>,
    /// In order of arrival, names in lower case.
    pub headers: Vec<(String, String)>,
    /// First 4 KiB of the body as text; `None` while it is being read, and if it was not read whole.
    pub body: Option<String>,
    /// So far.
    pub body_bytes: u64,
    /// Of the whole body, hexadecimal.
    pub body_sha256: Option<String>,
    /// After a chunked body, names in lower case.
    pub trailers: Vec<(String, String)>,
    /// User name that the credentials belong to.
    pub user: Option<String>,
    /// `None` while it is being answered, or if the connection was cut.
    pub status: Option<u16>,
}

impl RequestRecord {
    /// First value of the header; the name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The lines of the head as they arrived, without their CRLF; other unprintable bytes are escaped. Empty on
    /// HTTP/2.
    pub fn raw_lines(&self) -> Vec<String> {
        let head = self.raw_head.as_deref().unwrap_or_default();
        let text = head.escape_ascii().to_string();
        text.split(r"\r\n").filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    fn weight(&self) -> usize {
        let lengths = self.headers.iter().map(|(name, value)| name.len() + value.len());
        lengths.sum::<usize>() + self.target.len() + self.raw_head.as_ref().map_or(0, Bytes::len)
    }
}

#[expect(clippy::ref_option, reason = "serde gives the field as it is")]
fn base64_of<S: Serializer>(bytes: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
    bytes.as_ref().map(|bytes| STANDARD.encode(bytes)).serialize(serializer)
}

/// What is known of a request's body when it has ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct BodyFacts {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    pub(crate) trailers: Vec<(String, String)>,
}

/// Something that arrived and was not one well-formed request.
#[derive(Serialize, Clone, Debug)]
pub struct MalformedRequest {
    pub connection: u64,
    pub findings: Vec<&'static str>,
    /// Its head, unprintable bytes escaped; empty if its body is what is wrong.
    pub head: String,
}

/// The latest malformed requests.
#[derive(Debug, Default)]
pub(crate) struct MalformedLog(VecDeque<MalformedRequest>);

impl MalformedLog {
    pub(crate) fn push(&mut self, connection: u64, findings: Vec<&'static str>, head: &[u8]) {
        let head = head[..head.len().min(BODY_BYTES_MAX)].escape_ascii().to_string();
        self.0.push_back(MalformedRequest { connection, findings, head });
        if self.0.len() > MALFORMED_MAX {
            self.0.pop_front();
        }
    }

    pub(crate) fn list(&self) -> Vec<MalformedRequest> {
        self.0.iter().cloned().collect()
    }
}

#[derive(Debug, Default)]
pub(crate) struct RequestLog {
    records: VecDeque<RequestRecord>,
    weight: usize,
    last_seq: u64,
}

impl RequestLog {
    /// Takes the next request; its `seq` is set here.
    pub(crate) fn push(&mut self, mut record: RequestRecord, records_max: usize) -> u64 {
        self.last_seq += 1;
        record.seq = self.last_seq;
        self.weight += record.weight();
        self.records.push_back(record);
        while self.records.len() > records_max.min(RECORDS_MAX) || self.weight > WEIGHT_MAX {
            let Some(oldest) = self.records.pop_front() else { break };
            self.weight -= oldest.weight();
        }
        self.last_seq
    }

    /// So much of the body has arrived.
    pub(crate) fn note_progress(&mut self, seq: u64, bytes: u64) {
        if let Some(record) = self.find(seq) {
            record.body_bytes = bytes;
        }
    }

    /// The body has ended; `start` is as much of it as is at hand.
    pub(crate) fn note_body(&mut self, seq: u64, start: &[u8], facts: BodyFacts) {
        if let Some(record) = self.find(seq) {
            record.body =
                Some(String::from_utf8_lossy(&start[..start.len().min(BODY_BYTES_MAX)]).into_owned());
            record.body_bytes = facts.bytes;
            record.body_sha256 = Some(facts.sha256);
            record.trailers = facts.trailers;
        }
    }

    pub(crate) fn note_answer(&mut self, seq: u64, status: u16, user: Option<&str>) {
        if let Some(record) = self.find(seq) {
            record.status = Some(status);
            record.user = user.map(str::to_owned);
        }
    }

    pub(crate) fn list(&self) -> Vec<RequestRecord> {
        self.records.iter().cloned().collect()
    }

    pub(crate) fn clear(&mut self) {
        self.records.clear();
        self.weight = 0;
    }

    fn find(&mut self, seq: u64) -> Option<&mut RequestRecord> {
        let first = self.records.front()?.seq;
        self.records.get_mut(usize::try_from(seq.checked_sub(first)?).ok()?)
    }
}

/// Whatever `request_log_max` says.
const RECORDS_MAX: usize = 10_000;
/// Heads and targets of all records together.
const WEIGHT_MAX: usize = 64 * 1024 * 1024;
const MALFORMED_MAX: usize = 100;
const BODY_BYTES_MAX: usize = 4_096;
