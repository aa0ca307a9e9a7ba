//! One module for each thing that a test needs beside the daemon.

pub(crate) mod browser;
pub(crate) mod certificates;
pub(crate) mod consent;
pub(crate) mod daemon;
pub(crate) mod deployment;
pub(crate) mod fault_proxy;
pub(crate) mod flood;
pub(crate) mod history;
pub(crate) mod http;
pub(crate) mod load;
pub(crate) mod process;
pub(crate) mod redis;
pub(crate) mod redis_cluster;
pub(crate) mod redis_sentinel;
pub(crate) mod runtime;
