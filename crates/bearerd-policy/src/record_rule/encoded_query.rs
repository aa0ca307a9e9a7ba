//! The encoded queries that a record rule admits: the part of ServiceNow's language that can be read in one way only.
//!
//! ```text
//! query     = [ sets ] *( order ) ; joined by "^"
//! sets      = set *( "^NQ" set )
//! set       = condition *( "^" condition / "^OR" condition )
//! condition = field operator value
//! order     = ( "ORDERBY" / "ORDERBYDESC" / "GROUPBY" ) field
//! field     = a-z *79( a-z / 0-9 / "_" )
//! ```
//!
//! An instance reads the operator right after the field. Fields are lower-case, keywords and operators are not: that
//! is what keeps them apart, here as there.

use std::fmt;

use super::Excerpt;

/// A parsed encoded query. It prints as it was read, but for the spelling of operators.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct EncodedQuery<'a> {
    /// Records of any set; none: every record.
    pub(super) sets: Vec<Set<'a>>,
    pub(super) order: Vec<Order<'a>>,
}

/// Groups of alternatives that must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Set<'a> {
    pub(super) groups: Vec<Group<'a>>,
}

/// A condition and the alternatives that `^OR` attaches to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group<'a>(Vec<Condition<'a>>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition<'a> {
    pub(super) field: &'a str,
    operator: Operator,
    /// Empty where the operator takes none.
    pub(super) value: &'a str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order<'a> {
    keyword: &'static str,
    field: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    Like,
    NotLike,
    StartsWith,
    EndsWith,
    In,
    NotIn,
    Between,
    IsEmpty,
    IsNotEmpty,
}

/// Why a text is not an encoded query that a record rule admits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodedQueryFault {
    #[error("it is longer than {QUERY_BYTES_MAX} bytes")]
    TooLong,
    #[error("it holds more than {TERMS_MAX} terms")]
    TooManyTerms,
    #[error("it holds more than {SETS_MAX} sets (^NQ)")]
    TooManySets,
    #[error("there is nothing before, after or between two '^'")]
    EmptyTerm,
    #[error("it or one of its sets begins with {0}, which has no condition before it")]
    NothingBefore(&'static str),
    #[error("{0} comes after the order; conditions come first")]
    AfterOrder(Excerpt),
    #[error("{0} does not begin with the plain name of a field: 1 to 80 of a-z, 0-9 and '_', a letter first")]
    Field(Excerpt),
    #[error("{0} reaches into another table; fields are named without dots")]
    DotWalk(Excerpt),
    #[error(
        "{0} has no operator that is admitted; those are = != > >= < <= LIKE, NOT LIKE, STARTSWITH, ENDSWITH, IN, \
         NOT IN, BETWEEN, ISEMPTY, ISNOTEMPTY"
    )]
    Operator(Excerpt),
    #[error("the condition on {0} has no value; ISEMPTY and ISNOTEMPTY say that a field is or is not empty")]
    NoValue(Excerpt),
    #[error("the condition on {0} has a value after an operator that takes none")]
    NeedlessValue(Excerpt),
    #[error("the condition on {0} is not BETWEENlow@high")]
    Between(Excerpt),
    #[error("the value for {0} holds a control character, a look-alike of '^', or one of & ; # %")]
    Character(Excerpt),
    #[error("the value for {0} holds javascript:, which would run on the instance")]
    Script(Excerpt),
    #[error("the value for {0} could be read as another operator: it begins with or holds one of = < > !")]
    AmbiguousValue(Excerpt),
}

impl<'a> EncodedQuery<'a> {
    /// # Errors
    /// The first [`EncodedQueryFault`] found, from the left.
    pub(super) fn parse(text: &'a str) -> Result<Self, EncodedQueryFault> {
        let mut query = Self::default();
        if text.is_empty() {
            return Ok(query);
        }
        if text.len() > QUERY_BYTES_MAX {
            return Err(EncodedQueryFault::TooLong);
        }
        // ServiceNow's own client for Python joins nothing and an order to `^ORDERBYsys_id`.
        let text = text.strip_prefix('^').filter(|rest| Order::split(rest).is_some()).unwrap_or(text);
        for (index, term) in text.split('^').enumerate() {
            if index == TERMS_MAX {
                return Err(EncodedQueryFault::TooManyTerms);
            }
            query.read(term)?;
        }
        Ok(query)
    }

    /// Every field that is named anywhere, in order.
    pub(super) fn fields(&self) -> impl Iterator<Item = &'a str> {
        let in_conditions =
            self.sets.iter().flat_map(|set| set.conditions().map(|condition| condition.field));
        in_conditions.chain(self.order.iter().map(|order| order.field))
    }

    fn read(&mut self, term: &'a str) -> Result<(), EncodedQueryFault> {
        if term.is_empty() {
            return Err(EncodedQueryFault::EmptyTerm);
        }
        // Before `OR`, of which `ORDERBY` is a longer form.
        if let Some((keyword, field)) = Order::split(term) {
            let field = plain_field(field).ok_or_else(|| EncodedQueryFault::Field(Excerpt::of(term)))?;
            self.order.push(Order { keyword, field });
            return Ok(());
        }
        if !self.order.is_empty() {
            return Err(EncodedQueryFault::AfterOrder(Excerpt::of(term)));
        }
        if let Some(rest) = term.strip_prefix("NQ") {
            if self.sets.is_empty() {
                return Err(EncodedQueryFault::NothingBefore("NQ"));
            }
            if self.sets.len() == SETS_MAX {
                return Err(EncodedQueryFault::TooManySets);
            }
            self.sets.push(Set { groups: vec![Group(vec![Condition::parse(rest)?])] });
            return Ok(());
        }
        if let Some(rest) = term.strip_prefix("OR") {
            let group = self.sets.last_mut().and_then(|set| set.groups.last_mut());
            group.ok_or(EncodedQueryFault::NothingBefore("OR"))?.0.push(Condition::parse(rest)?);
            return Ok(());
        }
        let group = Group(vec![Condition::parse(term)?]);
        match self.sets.last_mut() {
            Some(set) => set.groups.push(group),
            None => self.sets.push(Set { groups: vec![group] }),
        }
        Ok(())
    }
}

impl<'a> Set<'a> {
    pub(super) fn conditions(&self) -> impl Iterator<Item = &Condition<'a>> {
        self.groups.iter().flat_map(|group| &group.0)
    }
}

impl<'a> Condition<'a> {
    fn parse(term: &'a str) -> Result<Self, EncodedQueryFault> {
        let field_len = term.bytes().take_while(|byte| is_field_byte(*byte)).count();
        let (field, rest) = term.split_at(field_len);
        let Some(field) = plain_field(field) else { return Err(EncodedQueryFault::Field(Excerpt::of(term))) };
        if rest.starts_with('.') {
            return Err(EncodedQueryFault::DotWalk(Excerpt::of(term)));
        }
        let Some((operator, value)) = Operator::split(rest) else {
            return Err(EncodedQueryFault::Operator(Excerpt::of(term)));
        };
        operator.check_value(field, value)?;
        Ok(Self { field, operator, value })
    }
}

impl<'a> Order<'a> {
    fn split(term: &'a str) -> Option<(&'static str, &'a str)> {
        // The longer before its prefix.
        ["ORDERBYDESC", "ORDERBY", "GROUPBY"]
            .into_iter()
            .find_map(|keyword| Some((keyword, term.strip_prefix(keyword)?)))
    }
}

impl Operator {
    /// Each spelling that is read, the longer before its prefix; the first of an operator's is the one written.
    const SPELLINGS: [(&'static str, Self); 17] = [
        ("!=", Self::NotEqual),
        (">=", Self::GreaterOrEqual),
        ("<=", Self::LessOrEqual),
        ("=", Self::Equal),
        (">", Self::Greater),
        ("<", Self::Less),
        ("NOT LIKE", Self::NotLike),
        ("NOTLIKE", Self::NotLike),
        ("NOT IN", Self::NotIn),
        ("NOTIN", Self::NotIn),
        ("ISNOTEMPTY", Self::IsNotEmpty),
        ("ISEMPTY", Self::IsEmpty),
        ("STARTSWITH", Self::StartsWith),
        ("ENDSWITH", Self::EndsWith),
        ("BETWEEN", Self::Between),
        ("LIKE", Self::Like),
        ("IN", Self::In),
    ];

    fn split(text: &str) -> Option<(Self, &str)> {
        // Not admitted, and begins with one that is.
        if text.starts_with("INSTANCEOF") {
            return None;
        }
        Self::SPELLINGS
            .into_iter()
            .find_map(|(spelling, operator)| Some((operator, text.strip_prefix(spelling)?)))
    }

    fn spelling(self) -> &'static str {
        Self::SPELLINGS
            .into_iter()
            .find_map(|(spelling, operator)| (operator == self).then_some(spelling))
            .expect("every operator has a spelling")
    }

    fn takes_value(self) -> bool {
        !matches!(self, Self::IsEmpty | Self::IsNotEmpty)
    }

    /// The operator is made of letters.
    fn is_word(self) -> bool {
        self.spelling().starts_with(|first: char| first.is_ascii_uppercase())
    }

    fn check_value(self, field: &str, value: &str) -> Result<(), EncodedQueryFault> {
        let fault = |make: fn(Excerpt) -> EncodedQueryFault| Err(make(Excerpt::of(field)));
        if !self.takes_value() {
            return if value.is_empty() { Ok(()) } else { fault(EncodedQueryFault::NeedlessValue) };
        }
        if value.is_empty() {
            return fault(EncodedQueryFault::NoValue);
        }
        if value.chars().any(is_dangerous) {
            return fault(EncodedQueryFault::Character);
        }
        if holds_script(value) {
            return fault(EncodedQueryFault::Script);
        }
        // `a>` and `=1`, or `a>=` and `1`? `origINal=x`: is that `orig` or `origINal`?
        let ambiguous = if self.is_word() {
            value.contains(['=', '<', '>'])
        } else {
            value.starts_with(['=', '<', '>', '!'])
        };
        if ambiguous {
            return fault(EncodedQueryFault::AmbiguousValue);
        }
        let bounds = || value.split_once('@').filter(|(low, high)| !low.is_empty() && !high.is_empty());
        if self == Self::Between && bounds().is_none_or(|(_, high)| high.contains('@')) {
            return fault(EncodedQueryFault::Between);
        }
        Ok(())
    }
}

impl fmt::Display for Group<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, condition) in self.0.iter().enumerate() {
            let join = if index == 0 { "" } else { "^OR" };
            write!(f, "{join}{}{}{}", condition.field, condition.operator.spelling(), condition.value)?;
        }
        Ok(())
    }
}

impl fmt::Display for Order<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.keyword, self.field)
    }
}

/// The name of a field of the table itself. ServiceNow's own are lower-case.
pub(super) fn is_plain_field(text: &str) -> bool {
    (1..=FIELD_BYTES_MAX).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(is_field_byte)
}

fn plain_field(text: &str) -> Option<&str> {
    is_plain_field(text).then_some(text)
}

fn is_field_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'
}

/// No encoding makes these safe: an instance, or what stands before it, that decodes before it splits, or twice, would
/// read a further parameter, the end of the query, or an escaped `^`. The look-alikes become a `^` where text is
/// normalised or squeezed into an older character set.
fn is_dangerous(character: char) -> bool {
    character.is_control()
        || matches!(character, '&' | ';' | '#' | '%')
        || matches!(character, '\u{2c4}' | '\u{2c6}' | '\u{2303}' | '\u{ff3e}')
}

/// `javascript:` in any case, however wide its letters are, and whatever stands between them.
fn holds_script(value: &str) -> bool {
    let narrow = value.chars().map(|character| match character {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(character) - 0xfee0).unwrap_or(character),
        other => other,
    });
    // Some letters outside of ASCII have one inside for a capital: `ſ`, `ı`.
    let letters: String = narrow
        .flat_map(char::to_uppercase)
        .filter(|character| character.is_ascii_uppercase() || *character == ':')
        .collect();
    letters.contains("JAVASCRIPT:")
}

/// What the proxy door takes of a request target by default.
const QUERY_BYTES_MAX: usize = 8 * 1024;
/// A term is a condition in the database's statement. Ten times what the longest breadcrumb of a list shows.
const TERMS_MAX: usize = 100;
/// The rule goes into each.
const SETS_MAX: usize = 10;
/// ServiceNow's own limit on a column's name.
const FIELD_BYTES_MAX: usize = 80;
