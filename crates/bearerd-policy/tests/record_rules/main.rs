//! Record rules against generated queries, most of them hostile: read back by a reader that knows nothing of the
//! parser, and answered by the simulator, which ignores conditions that it does not understand.

#![expect(clippy::unwrap_used, reason = "test code: clippy knows only #[test] functions as such")]

mod properties;
mod queries;
mod reader;
mod simulator;

use std::collections::BTreeSet;

use bearerd_policy::RecordRule;

/// A rule and, said once more by hand, what it means.
struct Sample {
    condition: &'static str,
    /// The condition taken apart: all of these, each a list of alternatives.
    groups: &'static [&'static [&'static str]],
    /// Empty: every field.
    fields: &'static [&'static str],
}

/// Greatest limit of every sample.
const LIMIT_MAX: u32 = 1_000;

const SAMPLES: [Sample; 4] = [
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

impl Sample {
    fn rule(&self) -> RecordRule {
        let fields: BTreeSet<String> = self.fields.iter().map(|name| (*name).to_owned()).collect();
        RecordRule::compile(self.condition, (!fields.is_empty()).then_some(&fields), LIMIT_MAX).unwrap()
    }

    fn permits(&self, field: &str) -> bool {
        !field.contains('.') && (self.fields.is_empty() || self.fields.contains(&field))
    }

    /// A caller may name every field of the condition.
    fn is_open_about_itself(&self) -> bool {
        ["active", "category"].into_iter().all(|field| !self.condition.contains(field) || self.permits(field))
    }
}
