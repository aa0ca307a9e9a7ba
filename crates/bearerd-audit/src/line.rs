//! A record as one line of JSON. The texts need no escaping, so the line is put together by hand: a third of the time that
//! `serde_json` takes (`examples/record-cost.rs`).

use std::{io::Write, net::IpAddr};

use crate::{
    record::AccessRecord,
    text::{Text, is_harmless},
    timestamp::TimestampText,
};

/// Writes lines; remembers the last time's text.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    time: TimestampText,
}

impl Lines {
    /// Appends the record's line to `out`. The members, their order and their names are a promise: `docs/access-records.md`.
    pub(crate) fn append(&mut self, record: &AccessRecord, out: &mut Vec<u8>) {
        out.reserve(LINE_BYTES_MAX);
        out.extend_from_slice(b"{\"time\":\"");
        out.extend_from_slice(&self.time.of(record.started_at));
        out.push(b'"');
        text(out, b",\"request_id\":\"", &record.request_id);
        text(out, b",\"caller_key\":\"", &record.caller_key);
        text(out, b",\"connection\":\"", &record.connection);
        if let Some(generation) = record.generation {
            number(out, b",\"generation\":", generation);
        }
        text(out, b",\"policy\":\"", &record.policy);
        if let Some(rule) = record.rule {
            number(out, b",\"rule\":", rule.into());
        }
        text(out, b",\"family\":\"", &record.family);
        text(out, b",\"table\":\"", &record.table);
        text(out, b",\"method\":\"", &record.method);
        number(out, b",\"status\":", record.status.into());
        word(out, b",\"error\":\"", record.error.unwrap_or_default());
        word(out, b",\"instance_verdict\":\"", record.instance_verdict.unwrap_or_default());
        number(out, b",\"bytes_in\":", record.bytes_in);
        number(out, b",\"bytes_out\":", record.bytes_out);
        if let Some(micros) = record.decided_us {
            number(out, b",\"decided_us\":", micros);
        }
        if let Some(micros) = record.first_byte_us {
            number(out, b",\"first_byte_us\":", micros);
        }
        number(out, b",\"total_us\":", record.total_us);
        text(out, b",\"traceparent\":\"", &record.traceparent);
        text(out, b",\"transaction_id\":\"", &record.transaction_id);
        if let Some(source) = record.source {
            address(out, b",\"source\":\"", source);
        }
        word(out, b",\"http\":\"", record.http.name());
        if record.replayed {
            out.extend_from_slice(b",\"replayed\":true");
        }
        if record.caller_left {
            out.extend_from_slice(b",\"caller_left\":true");
        }
        out.extend_from_slice(b"}\n");
    }
}

fn text<const N: usize, const M: usize>(out: &mut Vec<u8>, name: &[u8; M], text: &Text<N>) {
    if !text.is_empty() {
        out.extend_from_slice(name);
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    }
}

/// A word of the code's own; nothing but the compiler has looked at it, so its bytes are.
fn word<const M: usize>(out: &mut Vec<u8>, name: &[u8; M], word: &str) {
    if !word.is_empty() {
        out.extend_from_slice(name);
        let cut = &word.as_bytes()[..word.len().min(WORD_BYTES_MAX)];
        out.extend(cut.iter().map(|byte| if is_harmless(*byte) { *byte } else { b'?' }));
        out.push(b'"');
    }
}

fn number<const M: usize>(out: &mut Vec<u8>, name: &[u8; M], number: u64) {
    out.extend_from_slice(name);
    decimal(out, number);
}

fn decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; U64_DIGITS_MAX];
    let mut start = U64_DIGITS_MAX;
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// An IPv4 address that came mapped into IPv6 is shown as what it is.
fn address<const M: usize>(out: &mut Vec<u8>, name: &[u8; M], address: IpAddr) {
    out.extend_from_slice(name);
    match address.to_canonical() {
        IpAddr::V4(address) => {
            for (index, part) in address.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                decimal(out, part.into());
            }
        }
        IpAddr::V6(address) => drop(write!(out, "{address}")), // a Vec takes everything
    }
    out.push(b'"');
}

/// The longest line: every member at its longest; the test `the_longest_line` says how much that is.
pub(crate) const LINE_BYTES_MAX: usize = 1_344;
/// Longer than every code and verdict.
const WORD_BYTES_MAX: usize = 64;
const U64_DIGITS_MAX: usize = 20;
