//! Caller keys and policies: parse, compile, evaluate; pure
