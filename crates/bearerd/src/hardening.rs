//! Keeps secrets out of core files and away from debuggers of the same user (S-10).

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tracing::warn;

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
