//! hyper and rustls plumbing: the connector that dials instances, the one-shot client for token and user calls, the
//! listeners of the three doors. No policy and no tokens here.
