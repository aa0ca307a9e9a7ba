//! What holds for every query that is let through, however an instance reads it. The property tests call it with queries
//! that they make up, a target of `tests/fuzz` with those that reach new code.

use std::collections::BTreeSet;

use bearerd_policy::{QueryRefused, RecordRule};

use crate::reader::{self, Reading, Splitting};

/// A rule and, said once more by hand, what it means.
pub(crate) struct Sample {
    pub(crate) condition: &'static str,
    /// The condition taken apart: all of these, each a list of alternatives.
    pub(crate) groups: &'static [&'static [&'static str]],
    /// Empty: every field.
    pub(crate) fields: &'static [&'static str],
}

impl Sample {
    pub(crate) fn rule(&self) -> RecordRule {
        let fields: BTreeSet<String> = self.fields.iter().map(|name| (*name).to_owned()).collect();
        RecordRule::compile(self.condition, (!fields.is_empty()).then_some(&fields), LIMIT_MAX).unwrap()
    }

    pub(crate) fn permits(&self, field: &str) -> bool {
        !field.contains('.') && (self.fields.is_empty() || self.fields.contains(&field))
    }

    /// A caller may name every field of the condition.
    pub(crate) fn is_open_about_itself(&self) -> bool {
        ["active", "category"].into_iter().all(|field| !self.condition.contains(field) || self.permits(field))
    }
}

impl std::fmt::Debug for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.condition, self.fields)
    }
}

/// P-12: no drift between what was checked and what an instance reads, and a second rewriting changes nothing.
pub(crate) fn check_query(sample: &Sample, query: &str) {
    let rule = sample.rule();
    let rewritten = match rule.rewrite(Some(query)) {
        Ok(rewritten) => rewritten,
        Err(refused) => return assert!(refused.to_string().len() < REFUSAL_BYTES_MAX, "{refused}"),
    };
    check_parameters(sample, &rewritten);
    let parameters = Splitting::Plain.parameters(&rewritten);
    check_encoded_query(sample, &parameters[0].1);
    match rule.rewrite(Some(&rewritten)) {
        Ok(again) => assert_eq!(again, rewritten),
        Err(QueryRefused::FieldNotPermitted(_)) => assert!(!sample.is_open_about_itself()),
        // The caller's terms are counted, and now the rule's are among them.
        Err(other) if other.to_string().ends_with("more than 100 terms") => {
            assert!(parameters[0].1.split('^').count() > 100, "{rewritten}");
        }
        Err(other) => panic!("{other}: {rewritten}"),
    }
}

/// Whatever compiles is one plain set, and names its fields.
pub(crate) fn check_condition(condition: &str, fields: Option<&BTreeSet<String>>) {
    let rule = match RecordRule::compile(condition, fields, LIMIT_MAX) {
        Ok(rule) => rule,
        Err(fault) => return assert!(fault.to_string().len() < REFUSAL_BYTES_MAX, "{fault}"),
    };
    let rewritten = rule.rewrite(None).unwrap();
    let parameters = Splitting::Plain.parameters(&rewritten);
    for splitting in Splitting::ALL {
        assert_eq!(splitting.parameters(&rewritten), parameters);
    }
    let reading = reader::read(&parameters[0].1, |_, _| false);
    assert_eq!((reading.sets.len(), reading.order.len()), (1, 0));
    let named: BTreeSet<&str> = rule.fields_named().collect();
    for condition in reading.sets.iter().flatten().flatten() {
        assert!(reader::fields_of(condition).iter().all(|field| named.contains(&**field)), "{condition}");
    }
}

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

/// Greatest limit of every sample.
pub(crate) const LIMIT_MAX: u32 = 1_000;

pub(crate) const SAMPLES: [Sample; 4] = [
    Sample {
        condition: "category=network^active=true",
        groups: &[&["category=network"], &["active=true"]],
        fields: &["number", "short_description", "priority", "state", "caller_id", "opened_at"],
    },
    Sample {
        condition: "category=network^ORcategory=hardware^active=true",
        groups: &[&["category=network", "category=hardware"], &["active=true"]],
        fields: &[],
    },
    Sample {
        condition: "active=true^category=network^ORcategory=hardware",
        groups: &[&["active=true"], &["category=network", "category=hardware"]],
        fields: &["number", "short_description", "priority", "active", "category"],
    },
    Sample { condition: "active=true", groups: &[&["active=true"]], fields: &["active"] },
];

/// A refusal quotes an excerpt, not the query.
const REFUSAL_BYTES_MAX: usize = 700;

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
