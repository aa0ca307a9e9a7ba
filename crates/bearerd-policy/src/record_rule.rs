//! Record rules. No condition is understood yet, so none compiles and a rule that has one opens nothing.

use std::{collections::BTreeSet, convert::Infallible};

/// A compiled record rule.
#[derive(Debug)]
pub struct RecordRule(Infallible);

/// Why a record rule is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordRuleFault {
    #[error("record rules are not understood by this version")]
    NotUnderstood,
}

/// Why a query is not forwarded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryRefused {}

impl RecordRule {
    /// # Errors
    /// Always.
    pub fn compile(_: &str, _: Option<&BTreeSet<String>>, _: u32) -> Result<Self, RecordRuleFault> {
        Err(RecordRuleFault::NotUnderstood)
    }

    pub fn fields_named(&self) -> impl Iterator<Item = &str> {
        match self.0 {}
        #[expect(unreachable_code, reason = "names the type")]
        std::iter::empty()
    }

    /// # Errors
    /// Never: there is no such rule.
    pub fn rewrite(&self, _: Option<&str>) -> Result<String, QueryRefused> {
        match self.0 {}
    }
}
