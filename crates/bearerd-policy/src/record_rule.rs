//! Record rules: which records and which fields of a table a caller may read. The caller's query is parsed in a small
//! grammar, checked, and built anew with the rule inside. What is not understood for certain is refused: an instance
//! ignores a condition that it does not understand, and a rule that is ignored protects nothing. For people:
//! `docs/record-rules.md`.

mod encoded_query;
mod excerpt;
mod parameters;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

pub use encoded_query::EncodedQueryFault;
use encoded_query::{EncodedQuery, Set, is_plain_field};
pub use excerpt::Excerpt;
use parameters::{Parameter, Parameters, QueryBuilder};

/// A compiled record rule: a condition that every record meets, and the fields that may be seen.
#[derive(Debug, Clone)]
pub struct RecordRule {
    /// The condition: texts like `a` or `a^ORb`, at least one, all of which must hold.
    groups: Vec<String>,
    /// `None`: every field, but never one of another table.
    fields: Option<BTreeSet<String>>,
    /// Fields of the condition and of `fields`.
    fields_named: BTreeSet<String>,
    limit_max: u32,
}

/// Why a record rule is not accepted. For the operator who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordRuleFault {
    #[error("the condition is empty; a rule for every record is a rule without a condition on records")]
    NoCondition,
    #[error("the condition is longer than {CONDITION_BYTES_MAX} bytes")]
    ConditionTooLong,
    #[error("the condition holds more than {CONDITIONS_MAX} conditions")]
    TooManyConditions,
    #[error("the condition: {0}")]
    Condition(#[source] EncodedQueryFault),
    #[error("the condition holds ^NQ; a rule is one set of conditions, alternatives are joined by ^OR")]
    SeveralSets,
    #[error("the condition holds ORDERBY or GROUPBY; a rule says which records, not in what order")]
    Ordered,
    #[error(
        "the value for {field} could be read in two ways: it is NULL, begins or ends with white space, or holds \
         one of = < > ! * +"
    )]
    AmbiguousValue { field: Excerpt },
    #[error("`fields` is empty, so nothing could be read")]
    NoFields,
    #[error("`fields` holds more than {FIELDS_MAX} names")]
    TooManyFields,
    #[error(
        "{0} in `fields` is not the name of a field: 1 to 80 of a-z, 0-9 and '_', a letter first, no dots"
    )]
    FieldName(Excerpt),
    #[error("the greatest limit is not between 1 and {LIMIT_MAX_GREATEST}")]
    LimitMax,
}

/// Why a caller's query is not let through. For the caller: says nothing of the rule's condition, and names no field
/// that the caller did not name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryRefused {
    #[error("the query is longer than {} bytes", parameters::QUERY_BYTES_MAX)]
    TooLong,
    #[error("the query is too long together with what the record rule adds to it")]
    TooLongWithRule,
    #[error("the query holds a character that must be percent-encoded, or ';'")]
    RawCharacter,
    #[error("the query holds a '%' that is not followed by two hexadecimal digits")]
    PercentEscape,
    #[error("the query is not UTF-8 once it is percent-decoded")]
    NotUtf8,
    #[error("the query is not name=value pairs joined by '&'")]
    NotPairs,
    #[error("the parameter {0} is not among those that a record rule lets through")]
    ParameterUnknown(Excerpt),
    #[error("the parameter {0} is not let through: conditions on fields belong into sysparm_query")]
    BareField(Excerpt),
    #[error("the parameter {0} must be written in lower case")]
    ParameterCase(&'static str),
    #[error("the parameter {0} is there twice")]
    ParameterTwice(&'static str),
    #[error("the parameter {parameter} must be {expected}")]
    ParameterValue { parameter: &'static str, expected: &'static str },
    /// Refused, not lowered: a client that pages takes a page shorter than its limit for the last one.
    #[error("the parameter sysparm_limit must be a number between 1 and {max}")]
    Limit { max: u32 },
    #[error("{0} in sysparm_fields is not a plain field name: no dots, 1 to 80 of a-z, 0-9 and '_'")]
    FieldName(Excerpt),
    #[error("the field {0} is not among those that the record rule permits")]
    FieldNotPermitted(Excerpt),
    #[error("sysparm_query: {0}")]
    EncodedQuery(#[from] EncodedQueryFault),
}

impl RecordRule {
    /// # Errors
    /// The first [`RecordRuleFault`] found: condition, then fields, then limit.
    pub fn compile(
        condition: &str,
        fields: Option<&BTreeSet<String>>,
        limit_max: u32,
    ) -> Result<Self, RecordRuleFault> {
        let set = parse_condition(condition)?;
        if let Some(fields) = fields {
            check_fields(fields)?;
        }
        if !(1..=LIMIT_MAX_GREATEST).contains(&limit_max) {
            return Err(RecordRuleFault::LimitMax);
        }
        let in_condition = set.conditions().map(|condition| condition.field.to_owned());
        Ok(Self {
            groups: set.groups.iter().map(ToString::to_string).collect(),
            fields: fields.cloned(),
            fields_named: in_condition.chain(fields.into_iter().flatten().cloned()).collect(),
            limit_max,
        })
    }

    /// Every field that the rule names, in its condition or as permitted, each once. One that the table does not
    /// have makes a condition invalid, and an instance ignores those: check them against `sys_dictionary`.
    pub fn fields_named(&self) -> impl Iterator<Item = &str> {
        self.fields_named.iter().map(String::as_str)
    }

    /// Takes the raw query of a request target, without its `?`, and gives the one that goes to the instance.
    ///
    /// # Errors
    /// [`QueryRefused`] if the query is not understood for certain, or names what the rule does not permit.
    pub fn rewrite(&self, query: Option<&str>) -> Result<String, QueryRefused> {
        let given = Parameters::parse(query.unwrap_or_default())?;
        let mut target = QueryBuilder::default();
        target.add(Parameter::Query, &self.bound_query(given.get(Parameter::Query))?);
        if let Some(fields) = self.shown_fields(given.get(Parameter::Fields))? {
            target.add(Parameter::Fields, &fields);
        }
        target.add(Parameter::Limit, &self.limit(given.get(Parameter::Limit))?.to_string());
        if let Some(offset) = given.get(Parameter::Offset) {
            target.add(Parameter::Offset, &parse_offset(offset)?.to_string());
        }
        for parameter in [Parameter::DisplayValue, Parameter::ExcludeReferenceLink, Parameter::NoCount] {
            if let Some(choice) = given.choice(parameter)? {
                target.add(parameter, choice);
            }
        }
        // Whatever the caller chose: the instance's `Link` header quotes this query, and with it the condition.
        given.choice(Parameter::SuppressPaginationHeader)?;
        target.add(Parameter::SuppressPaginationHeader, "true");
        target.finish().ok_or(QueryRefused::TooLongWithRule)
    }

    /// The caller's encoded query with the rule in every set.
    fn bound_query(&self, given: Option<&str>) -> Result<String, QueryRefused> {
        let query = EncodedQuery::parse(given.unwrap_or_default())?;
        for field in query.fields() {
            self.check_permitted(field)?;
        }
        let mut bound = match query.sets.as_slice() {
            [] => self.bind(&Set::default()),
            sets => sets.iter().map(|set| self.bind(set)).collect::<Vec<_>>().join(NEW_SET),
        };
        for order in &query.order {
            bound.push('^');
            bound.push_str(&order.to_string());
        }
        Ok(bound)
    }

    /// The rule comes first: whatever an instance cuts off at the end, it is not the rule. The caller's first term
    /// begins with the name of a field ([`EncodedQuery::parse`]), so it is a further condition and no alternative to
    /// the rule's last one.
    ///
    /// A caller's `^OR` is an alternative to the condition before it. An instance drops a condition that it finds
    /// invalid; should it drop first and attach then, the `^OR` of a set whose first conditions are invalid would
    /// find the rule before it. So the rule's last condition stands there once more, to be spoilt in its place.
    fn bind(&self, set: &Set<'_>) -> String {
        let given: Vec<String> = set.groups.iter().map(ToString::to_string).collect();
        let spare = self.groups.last();
        // A query that went through here before holds the rule already: it does not grow with each page.
        let own = given.strip_prefix(self.groups.as_slice()).unwrap_or(&given);
        let own = own.iter().skip_while(|group| Some(*group) == spare);
        let spare = spare.filter(|_| own.clone().any(|group| group.contains(ALTERNATIVE)));
        let all: Vec<&str> = self.groups.iter().chain(spare).chain(own).map(String::as_str).collect();
        all.join("^")
    }

    /// What `sysparm_fields` becomes; `None`: every field. In the caller's order, each once.
    fn shown_fields(&self, given: Option<&str>) -> Result<Option<String>, QueryRefused> {
        let Some(given) = given else {
            return Ok(self
                .fields
                .as_ref()
                .map(|fields| fields.iter().map(String::as_str).collect::<Vec<_>>().join(",")));
        };
        let mut shown: Vec<&str> = Vec::new();
        for name in given.split(',').map(|name| name.trim_matches(' ')) {
            if !is_plain_field(name) {
                return Err(QueryRefused::FieldName(Excerpt::of(name)));
            }
            self.check_permitted(name)?;
            if !shown.contains(&name) {
                shown.push(name);
            }
        }
        Ok(Some(shown.join(",")))
    }

    fn limit(&self, given: Option<&str>) -> Result<u32, QueryRefused> {
        let Some(given) = given else { return Ok(self.limit_max) };
        parse_number(given)
            .filter(|limit| (1..=self.limit_max).contains(limit))
            .ok_or(QueryRefused::Limit { max: self.limit_max })
    }

    fn check_permitted(&self, field: &str) -> Result<(), QueryRefused> {
        match &self.fields {
            Some(fields) if !fields.contains(field) => {
                Err(QueryRefused::FieldNotPermitted(Excerpt::of(field)))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// The condition as the one set of conditions that it is, each readable in one way only.
fn parse_condition(text: &str) -> Result<Set<'_>, RecordRuleFault> {
    if text.is_empty() {
        return Err(RecordRuleFault::NoCondition);
    }
    if text.len() > CONDITION_BYTES_MAX {
        return Err(RecordRuleFault::ConditionTooLong);
    }
    let query = EncodedQuery::parse(text).map_err(RecordRuleFault::Condition)?;
    if !query.order.is_empty() {
        return Err(RecordRuleFault::Ordered);
    }
    let mut sets = query.sets.into_iter();
    let (Some(set), None) = (sets.next(), sets.next()) else { return Err(RecordRuleFault::SeveralSets) };
    if set.conditions().count() > CONDITIONS_MAX {
        return Err(RecordRuleFault::TooManyConditions);
    }
    let ambiguous = set.conditions().find(|condition| is_ambiguous(condition.value));
    if let Some(condition) = ambiguous {
        return Err(RecordRuleFault::AmbiguousValue { field: Excerpt::of(condition.field) });
    }
    Ok(set)
}

/// A caller's condition that is misread selects other records within the rule; a rule's own would void the rule. So
/// its values are without anything that is an operator somewhere (`*` is an old one), that a reader trims, that turns
/// into a blank where a query is decoded twice, or that stands for no value.
fn is_ambiguous(value: &str) -> bool {
    value == "NULL" || value.trim() != value || value.contains(['=', '<', '>', '!', '*', '+'])
}

fn check_fields(fields: &BTreeSet<String>) -> Result<(), RecordRuleFault> {
    match fields.len() {
        0 => return Err(RecordRuleFault::NoFields),
        1..=FIELDS_MAX => {}
        _ => return Err(RecordRuleFault::TooManyFields),
    }
    match fields.iter().find(|name| !is_plain_field(name)) {
        Some(name) => Err(RecordRuleFault::FieldName(Excerpt::of(name))),
        None => Ok(()),
    }
}

fn parse_offset(given: &str) -> Result<u32, QueryRefused> {
    parse_number(given).filter(|offset| *offset <= OFFSET_MAX).ok_or(QueryRefused::ParameterValue {
        parameter: Parameter::Offset.name(),
        expected: "a number between 0 and 1000000000",
    })
}

/// Digits and nothing else; `u32::from_str` would take a sign.
fn parse_number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

const NEW_SET: &str = "^NQ";
const ALTERNATIVE: &str = "^OR";
/// It goes into each set of a caller's query, twice where the set has alternatives.
const CONDITION_BYTES_MAX: usize = 1024;
/// With [`encoded_query`]'s bounds: at most 500 conditions reach the instance.
const CONDITIONS_MAX: usize = 20;
/// With 80 bytes a name, half of what [`parameters`] lets go out.
const FIELDS_MAX: usize = 100;
/// What an instance answers at most to a list without a limit.
const LIMIT_MAX_GREATEST: u32 = 10_000;
/// More records than any table holds that can be paged through.
const OFFSET_MAX: u32 = 1_000_000_000;
