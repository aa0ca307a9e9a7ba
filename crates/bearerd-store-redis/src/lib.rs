//! The shared backend: Redis or Valkey
