//! A rule's record rule in force: how it rewrites queries, and at which instances it may be trusted.

use bearerd_model::{self as model, InstanceOrigin};

use crate::{QueryRefused, RecordRule, RecordRuleFault};

/// A record rule, with the instances where every field that it names was found.
#[derive(Debug)]
pub struct CompiledRecords {
    rule: RecordRule,
    /// Sorted.
    checked_at: Box<[InstanceOrigin]>,
}

impl CompiledRecords {
    pub(crate) fn compile(records: &model::RecordRule) -> Result<Self, RecordRuleFault> {
        Ok(Self { rule: compile(records)?, checked_at: records.checked_at.iter().cloned().collect() })
    }

    /// The caller's query, narrowed to what the rule opens.
    ///
    /// # Errors
    /// [`QueryRefused`] if the query says what the rule does not leave to callers.
    pub fn rewrite(&self, query: Option<&str>) -> Result<String, QueryRefused> {
        self.rule.rewrite(query)
    }

    /// ServiceNow ignores a condition on a field that it does not know: elsewhere a typo would open the whole table.
    pub(crate) fn is_checked_at(&self, instance: &InstanceOrigin) -> bool {
        self.checked_at.binary_search(instance).is_ok()
    }
}

/// A record rule as it is stored, compiled.
///
/// # Errors
/// What [`RecordRule::compile`] finds.
pub fn compile(records: &model::RecordRule) -> Result<RecordRule, RecordRuleFault> {
    RecordRule::compile(&records.condition, records.fields.as_ref(), records.limit_max)
}
