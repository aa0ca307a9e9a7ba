//! A caller's query, or a rule's condition. The first byte chooses which, and under which rule.

#![no_main]

#[path = "../../../crates/bearerd-policy/tests/record_rules/invariants.rs"]
mod invariants;
#[path = "../../../crates/bearerd-policy/tests/record_rules/reader.rs"]
mod reader;

use std::fmt::Write as _;

use invariants::{SAMPLES, check_condition, check_query};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let sample = &SAMPLES[usize::from(*first) % SAMPLES.len()];
    match first / 4 % 3 {
        0 => check_query(sample, text),
        1 => check_query(sample, &format!("sysparm_query={}", escaped(text))),
        _ => check_condition(text, None),
    }
});

/// So that what the fuzzer makes up is the encoded query itself.
fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        write!(escaped, "%{byte:02X}").expect("writing to a string does not fail");
        escaped
    })
}
