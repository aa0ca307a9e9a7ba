//! Access records: what each proxied call was, one JSON line a call, on a rolling file or on standard output.
//!
//! A call must cost its worker next to nothing here. [`AccessWriter::record`] copies a record of fixed size into a batch of the
//! worker's own: no lock, no allocation, no system call. A full batch goes into a bounded queue, and an empty one comes back.
//! One thread, the scribe, formats and writes.
//!
//! `record` holds what is known of a call, in `text` that is safe in a line whatever its bytes were (P-23) → `queue` has the
//! batches and their bound → `scribe` makes a `line` of each record, its time by `timestamp`, and puts them into a `sink`:
//! standard output, or a `rolling_file`. `docs/access-records.md` is the reference for who reads the lines.
//!
//! # Nothing is lost unseen
//!
//! Every record given is, in the end, counted once: as written, or as dropped. A sink that fails, or takes nothing, is tried
//! again for ever; what that does to the calls is [`OnStall`]'s to say. Access records are not an audit trail: they are not
//! fsynced, and a crash loses those not yet written.
//!
//! Deliberately absent: HTTP, a clock, and hash chains (the audit of control acts is a later step).

mod line;
mod log;
mod metrics;
mod queue;
mod record;
mod rolling_file;
mod scribe;
mod settings;
mod sink;
mod text;
mod timestamp;

pub use log::{AccessError, AccessLog};
pub use metrics::AccessMetrics;
pub use queue::AccessWriter;
pub use record::{AccessRecord, HttpVersion};
pub use settings::{AccessSettings, AccessSettingsError, OnStall, SinkKind};
pub use text::Text;
