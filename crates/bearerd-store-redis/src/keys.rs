//! The names of all keys; the table is in the crate's documentation.

use bearerd_store::{Kind, RecordKey};

/// Makes names that begin with one prefix.
pub(crate) struct Keys {
    pub(crate) prefix: String,
}

impl Keys {
    pub(crate) fn record(&self, key: &RecordKey) -> String {
        let RecordKey { kind, id } = key;
        match kind {
            Kind::Connection => format!("{}:{{{id}}}:connection", self.prefix),
            kind => self.control(&format!("r:{}:{id}", kind.name())),
        }
    }

    /// Of the write `write_id` of this record.
    pub(crate) fn receipt(&self, key: &RecordKey, write_id: u64) -> String {
        format!("{}:{{{}}}:w:{write_id:016x}", self.prefix, tag(key))
    }

    pub(crate) fn index(&self, kind: Kind) -> String {
        self.control(&format!("i:{}", kind.name()))
    }

    pub(crate) fn due(&self, kind: Kind) -> String {
        self.control(&format!("due:{}", kind.name()))
    }

    pub(crate) fn expiries(&self) -> String {
        self.control("x")
    }

    pub(crate) fn log(&self) -> String {
        self.control("log")
    }

    pub(crate) fn unsettled(&self) -> String {
        self.control("u")
    }

    pub(crate) fn tokens(&self) -> String {
        self.control("t")
    }

    fn control(&self, name: &str) -> String {
        format!("{}:{{{CONTROL}}}:{name}", self.prefix)
    }
}

/// What is between the braces of a record's key.
pub(crate) fn tag(key: &RecordKey) -> &str {
    match key.kind {
        Kind::Connection => &key.id,
        _ => CONTROL,
    }
}

/// The tag of all keys but those of one connection.
pub(crate) const CONTROL: &str = "c";
