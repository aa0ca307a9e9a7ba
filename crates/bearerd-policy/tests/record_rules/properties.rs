//! Queries of all kinds, and what holds for each.

use std::collections::BTreeSet;

use proptest::{prelude::*, sample, strategy::ValueTree as _, test_runner::TestRunner};

use crate::{
    invariants::{SAMPLES, Sample, check_condition, check_query},
    queries,
};

fn sample() -> impl Strategy<Value = &'static Sample> {
    sample::select((0..SAMPLES.len()).collect::<Vec<_>>()).prop_map(|index| &SAMPLES[index])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// P-12.
    #[test]
    fn whatever_is_accepted_stays_within_the_rule(sample in sample(), query in queries::any_query()) {
        check_query(sample, &query);
    }

    #[test]
    fn whatever_compiles_is_one_plain_set(condition in queries::encoded_query(0.1)) {
        check_condition(&condition, None);
    }

    #[test]
    fn any_text_is_rewritten_or_refused(text in ".{0,200}", sample in sample()) {
        for query in [text.clone(), format!("sysparm_query={text}"), format!("sysparm_fields={text}&{text}")] {
            check_query(sample, &query);
        }
        check_condition(&text, Some(&BTreeSet::from([text.clone()])));
    }

    #[test]
    fn any_bytes_that_are_encoded_are_rewritten_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let escaped = queries::escape(&bytes, |_| false);
        check_query(&SAMPLES[1], &format!("sysparm_query={escaped}"));
    }
}

/// Otherwise the properties above would speak of nothing.
#[test]
fn the_queries_are_of_both_kinds() {
    let mut runner = TestRunner::deterministic();
    let (mut accepted, mut refused) = (0, BTreeSet::new());
    for _ in 0..2_000 {
        let query = queries::any_query().new_tree(&mut runner).unwrap().current();
        match SAMPLES[0].rule().rewrite(Some(&query)) {
            Ok(_) => accepted += 1,
            Err(refusal) => {
                let debug = format!("{refusal:?}");
                refused.insert(debug.split('"').next().unwrap_or_default().to_owned());
            }
        }
    }
    println!("accepted {accepted} of 2000; refusals: {refused:#?}");
    assert!((500..1_500).contains(&accepted), "{accepted}");
    assert!(refused.len() >= 15, "{refused:?}");
}
