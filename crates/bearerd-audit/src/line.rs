//! A record as one line of JSON. The texts need no escaping, so the line is put together by hand, in a fixed array and mostly
//! by copies of fixed length: a fifth of the time that `serde_json` takes (`examples/record-cost.rs`).

use std::{io::Write, net::IpAddr};

use crate::{
    record::AccessRecord,
    text::{Text, is_harmless},
    timestamp::TimestampText,
};

/// Writes lines; remembers the last time's text.
#[derive(Debug)]
pub(crate) struct Lines {
    time: TimestampText,
    line: Line,
}

impl Default for Lines {
    fn default() -> Self {
        Self { time: TimestampText::default(), line: Line { bytes: [0; LINE_SPACE_BYTES], len: 0 } }
    }
}

impl Lines {
    /// Appends the record's line to `out`. The members, their order and their names are a promise: `docs/access-records.md`.
    pub(crate) fn append(&mut self, record: &AccessRecord, out: &mut Vec<u8>) {
        let line = &mut self.line;
        line.len = 0;
        line.fixed(b"{\"time\":\"");
        line.fixed(&self.time.of(record.started_at));
        line.fixed(b"\"");
        line.text(b",\"request_id\":\"", &record.request_id);
        line.text(b",\"caller_key\":\"", &record.caller_key);
        line.text(b",\"connection\":\"", &record.connection);
        line.number_if(b",\"generation\":", record.generation);
        line.text(b",\"policy\":\"", &record.policy);
        line.number_if(b",\"rule\":", record.rule.map(u64::from));
        line.text(b",\"family\":\"", &record.family);
        line.text(b",\"table\":\"", &record.table);
        line.text(b",\"method\":\"", &record.method);
        line.number(b",\"status\":", record.status.into());
        line.word(b",\"error\":\"", record.error.unwrap_or_default());
        line.word(b",\"instance_verdict\":\"", record.instance_verdict.unwrap_or_default());
        line.number(b",\"bytes_in\":", record.bytes_in);
        line.number(b",\"bytes_out\":", record.bytes_out);
        line.number_if(b",\"decided_us\":", record.decided_us);
        line.number_if(b",\"first_byte_us\":", record.first_byte_us);
        line.number(b",\"total_us\":", record.total_us);
        line.text(b",\"traceparent\":\"", &record.traceparent);
        line.text(b",\"transaction_id\":\"", &record.transaction_id);
        if let Some(source) = record.source {
            line.address(b",\"source\":\"", source);
        }
        line.word(b",\"http\":\"", record.http.name());
        if record.replayed {
            line.fixed(b",\"replayed\":true");
        }
        if record.caller_left {
            line.fixed(b",\"caller_left\":true");
        }
        line.fixed(b"}\n");
        out.extend_from_slice(&line.bytes[..line.len.min(LINE_SPACE_BYTES)]);
    }
}

/// The line being put together. It has room for the longest, so that its end is never met.
#[derive(Debug)]
struct Line {
    bytes: [u8; LINE_SPACE_BYTES],
    len: usize,
}

impl Line {
    fn fixed<const M: usize>(&mut self, bytes: &[u8; M]) {
        self.padded(bytes, M);
    }

    /// Copies all of `bytes`, of which the first `len` count: a copy whose length the compiler knows.
    fn padded<const M: usize>(&mut self, bytes: &[u8; M], len: usize) {
        if let Some(place) = self.bytes.get_mut(self.len..self.len + M) {
            place.copy_from_slice(bytes);
            self.len += len;
        }
    }

    fn text<const M: usize, const N: usize>(&mut self, name: &[u8; M], text: &Text<N>) {
        if !text.is_empty() {
            self.fixed(name);
            let (bytes, len) = text.padded();
            self.padded(bytes, len);
            self.fixed(b"\"");
        }
    }

    /// A word of the code's own; nothing but the compiler has looked at it, so its bytes are.
    fn word<const M: usize>(&mut self, name: &[u8; M], word: &str) {
        if !word.is_empty() {
            self.fixed(name);
            let len = word.len().min(WORD_BYTES_MAX);
            if let Some(place) = self.bytes.get_mut(self.len..self.len + len) {
                for (to, from) in place.iter_mut().zip(word.bytes()) {
                    *to = if is_harmless(from) { from } else { b'?' };
                }
                self.len += len;
            }
            self.fixed(b"\"");
        }
    }

    fn number_if<const M: usize>(&mut self, name: &[u8; M], number: Option<u64>) {
        if let Some(number) = number {
            self.number(name, number);
        }
    }

    fn number<const M: usize>(&mut self, name: &[u8; M], number: u64) {
        self.fixed(name);
        self.decimal(number);
    }

    fn decimal(&mut self, number: u64) {
        let len = number.checked_ilog10().map_or(1, |log| log as usize + 1);
        if let Some(place) = self.bytes.get_mut(self.len..self.len + len) {
            let mut left = number;
            for digit in place.iter_mut().rev() {
                *digit = b'0' + (left % 10) as u8;
                left /= 10;
            }
            self.len += len;
        }
    }

    /// An IPv4 address that came mapped into IPv6 is shown as what it is.
    fn address<const M: usize>(&mut self, name: &[u8; M], address: IpAddr) {
        self.fixed(name);
        match address.to_canonical() {
            IpAddr::V4(address) => {
                let [first, rest @ ..] = address.octets();
                self.decimal(first.into());
                for octet in rest {
                    self.fixed(b".");
                    self.decimal(octet.into());
                }
            }
            IpAddr::V6(address) => {
                let mut place = self.bytes.get_mut(self.len..).unwrap_or_default();
                let before = place.len();
                drop(write!(place, "{address}")); // it fits
                self.len += before - place.len();
            }
        }
        self.fixed(b"\"");
    }
}

/// The longest line: every member at its longest; the test `the_longest_line` says how much that is.
pub(crate) const LINE_BYTES_MAX: usize = 1_216;
/// … and the longest copy behind its end.
const LINE_SPACE_BYTES: usize = LINE_BYTES_MAX + 128;
/// Longer than every code and verdict.
const WORD_BYTES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use bearerd_model::UnixTime;
    use proptest::{collection::vec, prelude::*};
    use serde_json::{Value, json};

    use super::*;
    use crate::record::HttpVersion;

    fn line(record: &AccessRecord) -> String {
        let mut out = Vec::new();
        Lines::default().append(record, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn full() -> AccessRecord {
        AccessRecord {
            started_at: UnixTime::from_millis(1_795_894_042_042),
            request_id: Text::new("7f3k2m9q-00000001"),
            caller_key: Text::new("k3y1d0000000"),
            connection: Text::new("hr-prod"),
            generation: Some(7),
            policy: Text::new("hr-readers"),
            rule: Some(1),
            family: Text::new("table"),
            table: Text::new("incident"),
            method: Text::new("GET"),
            status: 503,
            error: Some("instance_asleep"),
            instance_verdict: Some("queue_full"),
            bytes_in: 0,
            bytes_out: 1_024,
            decided_us: Some(31),
            first_byte_us: Some(48_211),
            total_us: 48_377,
            traceparent: Text::new("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            transaction_id: Text::new("5d2c1f7a8b3e"),
            source: Some([10, 1, 200, 0].into()),
            http: HttpVersion::Http11,
            replayed: true,
            caller_left: true,
        }
    }

    /// The members' names and order are promised to who reads the lines; the documentation shows this line.
    #[test]
    fn a_line_is_as_documented() {
        let expected = concat!(
            r#"{"time":"2026-11-28T19:27:22.042Z","request_id":"7f3k2m9q-00000001","caller_key":"k3y1d0000000","#,
            r#""connection":"hr-prod","generation":7,"policy":"hr-readers","rule":1,"family":"table","#,
            r#""table":"incident","method":"GET","status":503,"error":"instance_asleep","#,
            r#""instance_verdict":"queue_full","bytes_in":0,"bytes_out":1024,"decided_us":31,"first_byte_us":48211,"#,
            r#""total_us":48377,"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01","#,
            r#""transaction_id":"5d2c1f7a8b3e","source":"10.1.200.0","http":"1.1","replayed":true,"#,
            r#""caller_left":true}"#,
            "\n"
        );
        assert_eq!(line(&full()), expected);
        let documented = include_str!("../../../docs/access-records.md");
        assert!(documented.contains(expected.trim_end()), "the documentation shows another line");
        let members: Value = serde_json::from_str(expected).unwrap();
        for name in members.as_object().unwrap().keys() {
            assert!(documented.contains(&format!("| `{name}` |")), "{name} is not documented");
        }
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let expected = concat!(
            r#"{"time":"1970-01-01T00:00:00.000Z","status":0,"bytes_in":0,"bytes_out":0,"total_us":0,"http":"1.1"}"#,
            "\n"
        );
        assert_eq!(line(&AccessRecord::default()), expected);
    }

    #[test]
    fn addresses_are_shown_as_what_they_are() {
        for (source, expected) in
            [("255.255.255.255", "255.255.255.255"), ("::1", "::1"), ("::ffff:10.0.0.9", "10.0.0.9")]
        {
            let record = AccessRecord { source: Some(source.parse().unwrap()), ..AccessRecord::default() };
            let value: Value = serde_json::from_str(&line(&record)).unwrap();
            assert_eq!(value["source"], expected);
        }
    }

    /// Every member at its longest fits into what is reserved, so that the buffer never grows.
    #[test]
    fn the_longest_line() {
        let long: &'static str =
            "wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww";
        let record = AccessRecord {
            started_at: UnixTime::from_millis(u64::MAX),
            request_id: Text::new(long),
            caller_key: Text::new(long),
            connection: Text::new(long),
            generation: Some(u64::MAX),
            policy: Text::new(long),
            rule: Some(u16::MAX),
            family: Text::new(long),
            table: Text::new(long),
            method: Text::new(long),
            status: u16::MAX,
            error: Some(long),
            instance_verdict: Some(long),
            bytes_in: u64::MAX,
            bytes_out: u64::MAX,
            decided_us: Some(u64::MAX),
            first_byte_us: Some(u64::MAX),
            total_us: u64::MAX,
            traceparent: Text::new(long),
            transaction_id: Text::new(long),
            source: Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap()),
            http: HttpVersion::Http11,
            replayed: true,
            caller_left: true,
        };
        let length = line(&record).len();
        assert!((LINE_BYTES_MAX - 128..=LINE_BYTES_MAX).contains(&length), "{length}");
    }

    proptest! {
        /// P-23: one call is one line and one object with the members that the record has, whatever anybody sent.
        #[test]
        fn every_line_is_one_object(
            bytes in vec(vec(any::<u8>(), 0..100), 8),
            numbers in any::<[u64; 6]>(),
            word in ".{0,80}",
            source in any::<Option<std::net::IpAddr>>(),
            flags in any::<[bool; 3]>(),
        ) {
            let word: &'static str = Box::leak(word.into_boxed_str());
            let record = AccessRecord {
                started_at: UnixTime::from_millis(numbers[0]),
                request_id: Text::from_bytes(&bytes[0]),
                caller_key: Text::from_bytes(&bytes[1]),
                connection: Text::from_bytes(&bytes[2]),
                generation: flags[0].then_some(numbers[1]),
                policy: Text::from_bytes(&bytes[3]),
                family: Text::new(word),
                table: Text::from_bytes(&bytes[4]),
                method: Text::from_bytes(&bytes[5]),
                error: flags[0].then_some(word),
                instance_verdict: Some(word),
                bytes_in: numbers[2],
                bytes_out: numbers[3],
                first_byte_us: flags[1].then_some(numbers[4]),
                total_us: numbers[5],
                traceparent: Text::from_bytes(&bytes[6]),
                transaction_id: Text::from_bytes(&bytes[7]),
                source,
                replayed: flags[1],
                caller_left: flags[2],
                ..AccessRecord::default()
            };
            let line = line(&record);
            prop_assert!(line.len() <= LINE_BYTES_MAX);
            let is_one_line = line.strip_suffix('\n').is_some_and(|line| line.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            prop_assert!(is_one_line, "{:?}", line);
            let value: Value = serde_json::from_str(&line).unwrap();
            let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
            prop_assert_eq!(text("request_id"), record.request_id.as_str());
            prop_assert_eq!(text("caller_key"), record.caller_key.as_str());
            prop_assert_eq!(text("connection"), record.connection.as_str());
            prop_assert_eq!(text("policy"), record.policy.as_str());
            prop_assert_eq!(text("table"), record.table.as_str());
            prop_assert_eq!(text("method"), record.method.as_str());
            prop_assert_eq!(text("traceparent"), record.traceparent.as_str());
            prop_assert_eq!(text("transaction_id"), record.transaction_id.as_str());
            let same = source.map(|source| source.to_canonical().to_string()).unwrap_or_default();
            prop_assert_eq!(text("source"), same);
            prop_assert_eq!(&value["bytes_in"], &json!(numbers[2]));
            prop_assert_eq!(&value["bytes_out"], &json!(numbers[3]));
            prop_assert_eq!(&value["total_us"], &json!(numbers[5]));
            prop_assert_eq!(value["generation"].as_u64(), record.generation);
            prop_assert_eq!(value["first_byte_us"].as_u64(), record.first_byte_us);
            prop_assert_eq!(value["replayed"].as_bool().unwrap_or_default(), flags[1]);
            prop_assert_eq!(value["caller_left"].as_bool().unwrap_or_default(), flags[2]);
        }
    }
}
