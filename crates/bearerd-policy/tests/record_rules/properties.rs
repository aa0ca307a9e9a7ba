//! What holds for every query that is let through, however an instance reads it.

use std::collections::BTreeSet;

use bearerd_policy::{QueryRefused, RecordRule};
use proptest::{prelude::*, sample, strategy::ValueTree as _, test_runner::TestRunner};

use crate::{
    LIMIT_MAX, SAMPLES, Sample, queries,
    reader::{self, Reading, Splitting},
};

/// Names of the parameters, each once.
fn check_parameters(sample: &Sample, rewritten: &str) {
    let parameters = Splitting::Plain.parameters(rewritten);
    for splitting in Splitting::ALL {
        let again = splitting.parameters(rewritten);
        let as_read: Vec<_> = match splitting {
            // A `+` that the caller's own value holds is a blank to one who decodes twice: still a value.
            Splitting::DecodeTwice => {
                parameters.iter().map(|(name, value)| (name.clone(), value.replace('+', " "))).collect()
            }
            _ => parameters.clone(),
        };
        assert_eq!(again, as_read, "{splitting:?}: {rewritten}");
    }
    let names: BTreeSet<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.len(), parameters.len(), "{rewritten}");
    assert!(names.iter().all(|name| KNOWN.contains(name)), "{rewritten}");
    let value =
        |name: &str| parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let limit: u32 = value("sysparm_limit").unwrap().parse().unwrap();
    assert!((1..=LIMIT_MAX).contains(&limit), "{rewritten}");
    assert_eq!(value("sysparm_suppress_pagination_header"), Some("true"), "{rewritten}");
    match value("sysparm_fields") {
        Some(fields) => assert!(fields.split(',').all(|field| sample.permits(field)), "{rewritten}"),
        None => assert!(sample.fields.is_empty(), "{rewritten}"),
    }
}

fn check_encoded_query(sample: &Sample, query: &str) {
    let is_own = |term: &str| sample.groups.iter().any(|group| group.contains(&term));
    // One that keeps everything, one that drops what is not the rule's but keeps the alternatives, and one that drops
    // all that is not the rule's.
    let careful = reader::read(query, |_, _| false);
    let careless = reader::read(query, |term, is_alternative| !is_alternative && !is_own(term));
    let deaf = reader::read(query, |term, _| !is_own(term));
    for reading in [&careful, &careless, &deaf] {
        assert_eq!(reading.sets.len(), careful.sets.len());
        for set in &reading.sets {
            let stands = sample.groups.iter().zip(set).all(|(own, read)| own == read);
            assert!(stands && set.len() >= sample.groups.len(), "{reading:?}");
        }
    }
    check_fields(sample, &careful);
    for text in [query.to_owned(), reader::decode(query)] {
        assert!(!text.to_lowercase().contains("javascript:"), "{query}");
        assert!(!text.chars().any(char::is_control), "{query}");
        assert!(!text.contains("^^") && !text.contains("^EQ"), "{query}");
    }
}

/// What is not the rule itself, or the one copy of its last condition, names permitted fields only.
fn check_fields(sample: &Sample, reading: &Reading) {
    for set in &reading.sets {
        let given = &set[sample.groups.len()..];
        let is_spare = given.first().is_some_and(|group| sample.groups.last().unwrap() == group);
        for condition in given.iter().skip(usize::from(is_spare)).flatten() {
            let fields = reader::fields_of(condition);
            assert!(fields.iter().all(|field| sample.permits(field)), "{condition}: {reading:?}");
        }
    }
    for order in &reading.order {
        let field = order.trim_start_matches(|character: char| character.is_ascii_uppercase());
        assert!(sample.permits(field), "{order}: {reading:?}");
    }
}

const KNOWN: [&str; 8] = [
    "sysparm_query",
    "sysparm_fields",
    "sysparm_limit",
    "sysparm_offset",
    "sysparm_display_value",
    "sysparm_exclude_reference_link",
    "sysparm_no_count",
    "sysparm_suppress_pagination_header",
];

fn sample() -> impl Strategy<Value = &'static Sample> {
    sample::select((0..SAMPLES.len()).collect::<Vec<_>>()).prop_map(|index| &SAMPLES[index])
}

impl std::fmt::Debug for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.condition, self.fields)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// P-12: no drift between what was checked and what an instance reads.
    #[test]
    fn whatever_is_accepted_stays_within_the_rule(sample in sample(), query in queries::any_query()) {
        let Ok(rewritten) = sample.rule().rewrite(Some(&query)) else { return Ok(()) };
        check_parameters(sample, &rewritten);
        let parameters = Splitting::Plain.parameters(&rewritten);
        check_encoded_query(sample, &parameters[0].1);
    }

    #[test]
    fn a_second_rewriting_changes_nothing(sample in sample(), query in queries::any_query()) {
        let rule = sample.rule();
        let Ok(rewritten) = rule.rewrite(Some(&query)) else { return Ok(()) };
        match rule.rewrite(Some(&rewritten)) {
            Ok(again) => prop_assert_eq!(again, rewritten),
            Err(QueryRefused::FieldNotPermitted(_)) => prop_assert!(!sample.is_open_about_itself()),
            Err(other) => prop_assert!(false, "{}: {}", other, rewritten),
        }
    }

    #[test]
    fn whatever_compiles_is_one_plain_set(condition in queries::encoded_query(0.1)) {
        let Ok(rule) = RecordRule::compile(&condition, None, LIMIT_MAX) else { return Ok(()) };
        let rewritten = rule.rewrite(None).unwrap();
        let parameters = Splitting::Plain.parameters(&rewritten);
        for splitting in Splitting::ALL {
            prop_assert_eq!(&splitting.parameters(&rewritten), &parameters);
        }
        let reading = reader::read(&parameters[0].1, |_, _| false);
        prop_assert_eq!((reading.sets.len(), reading.order.len()), (1, 0));
        let named: BTreeSet<&str> = rule.fields_named().collect();
        for condition in reading.sets.iter().flatten().flatten() {
            prop_assert!(reader::fields_of(condition).iter().all(|field| named.contains(&**field)), "{}", condition);
        }
    }

    #[test]
    fn any_text_is_rewritten_or_refused(text in ".{0,200}", sample in sample()) {
        let rule = sample.rule();
        for query in [text.clone(), format!("sysparm_query={text}"), format!("sysparm_fields={text}&{text}")] {
            if let Err(refused) = rule.rewrite(Some(&query)) {
                prop_assert!(refused.to_string().len() < 700);
            }
        }
        if let Err(fault) = RecordRule::compile(&text, Some(&BTreeSet::from([text.clone()])), LIMIT_MAX) {
            prop_assert!(fault.to_string().len() < 700);
        }
    }

    #[test]
    fn any_bytes_that_are_encoded_are_rewritten_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let escaped = queries::escape(&bytes, |_| false);
        let _ = SAMPLES[1].rule().rewrite(Some(&format!("sysparm_query={escaped}")));
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
