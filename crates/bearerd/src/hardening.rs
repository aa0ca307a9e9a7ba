//! What the process asks of the system at start: no core files, no debuggers of the same user (S-10), small pages, and as
//! many descriptors as it may have.

use rustix::{
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
    thread::disable_transparent_huge_pages,
};
use tracing::{info, warn};

/// No core files, no attaching. A system that refuses is told of and borne: neither is needed to serve.
pub(crate) fn apply() {
    let no_core = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, no_core) {
        warn!(%error, "core files could not be switched off");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warn!(%error, "the process could not be made undumpable");
    }
}

/// Memory in pages of 4 KiB: the heap is small, and the allocator's large pages would round it up to twice that. A system
/// that cannot is borne: memory is all that it costs.
pub(crate) fn keep_pages_small() {
    let _ = disable_transparent_huge_pages(true);
}

/// Raises the soft limit on descriptors to the hard one: each caller and each instance connection takes one, and the
/// usual soft limit of 1024 would let a thousand silent sockets keep everyone else out.
pub(crate) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        Ok(()) => info!(
            "descriptors: up to {}",
            limit.maximum.map_or("any number".to_owned(), |max| max.to_string())
        ),
        Err(error) => warn!(%error, "the limit on descriptors could not be raised"),
    }
}
