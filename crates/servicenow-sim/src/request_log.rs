//! The latest requests, byte for byte as they reached the instance: what a test of a proxy wants to see.

use std::collections::VecDeque;

use serde::Serialize;

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
    /// In order of arrival, names in lower case.
    pub headers: Vec<(String, String)>,
    /// First 4 KiB of the body as text; `None` while it is being read.
    pub body: Option<String>,
    pub body_bytes: usize,
    /// `None` while it is being answered, or if the connection was cut.
    pub status: Option<u16>,
}

impl RequestRecord {
    /// First value of the header; the name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Debug, Default)]
pub(crate) struct RequestLog {
    records: VecDeque<RequestRecord>,
    last_seq: u64,
}

impl RequestLog {
    /// Takes the next request; its `seq` is set here.
    pub(crate) fn push(&mut self, mut record: RequestRecord, records_max: usize) -> u64 {
        self.last_seq += 1;
        record.seq = self.last_seq;
        self.records.push_back(record);
        while self.records.len() > records_max.min(RECORDS_MAX) {
            self.records.pop_front();
        }
        self.last_seq
    }

    pub(crate) fn note_body(&mut self, seq: u64, body: &[u8]) {
        if let Some(record) = self.find(seq) {
            record.body = Some(String::from_utf8_lossy(&body[..body.len().min(BODY_BYTES_MAX)]).into_owned());
            record.body_bytes = body.len();
        }
    }

    pub(crate) fn note_status(&mut self, seq: u64, status: u16) {
        if let Some(record) = self.find(seq) {
            record.status = Some(status);
        }
    }

    pub(crate) fn list(&self) -> Vec<RequestRecord> {
        self.records.iter().cloned().collect()
    }

    pub(crate) fn clear(&mut self) {
        self.records.clear();
    }

    fn find(&mut self, seq: u64) -> Option<&mut RequestRecord> {
        let first = self.records.front()?.seq;
        self.records.get_mut(usize::try_from(seq.checked_sub(first)?).ok()?)
    }
}

/// Whatever `request_log_max` says.
const RECORDS_MAX: usize = 10_000;
const BODY_BYTES_MAX: usize = 4_096;
