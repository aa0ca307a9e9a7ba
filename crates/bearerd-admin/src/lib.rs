//! Door 3, operators: admin API, health, metrics
