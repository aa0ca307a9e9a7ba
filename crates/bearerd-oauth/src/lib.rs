//! OAuth messages as values: requests built, replies parsed; no I/O
