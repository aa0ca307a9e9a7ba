//! Encoded queries (`active=true^priority<=2^ORDERBYDESCnumber`) as values. Parsing never fails: what is no condition
//! is kept as [`Condition::Invalid`], since the instance ignores it by default.

/// A parsed encoded query: groups joined by `^NQ`, and the order of the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query {
    /// Rows of any group; none = every row.
    pub(crate) groups: Vec<Group>,
    pub(crate) order: Vec<Order>,
}

/// Alternatives that must all hold: `a^ORb^c` is `(a or b) and c`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) all: Vec<Vec<Condition>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Test {
        field: String,
        operator: Operator,
        value: String,
    },
    /// No field, no operator, or one the simulator does not know.
    Invalid,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) field: String,
    pub(crate) descending: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
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
    IsEmpty,
    IsNotEmpty,
    EmptyString,
    Anything,
    Between,
    SameAs,
    NotSameAs,
}

/// Longer spellings come before their prefixes.
const OPERATORS: [(&str, Operator); 23] = [
    ("!=", Operator::NotEqual),
    (">=", Operator::GreaterOrEqual),
    ("<=", Operator::LessOrEqual),
    ("=", Operator::Equal),
    (">", Operator::Greater),
    ("<", Operator::Less),
    ("ISNOTEMPTY", Operator::IsNotEmpty),
    ("ISEMPTY", Operator::IsEmpty),
    ("EMPTYSTRING", Operator::EmptyString),
    ("ANYTHING", Operator::Anything),
    ("NOT LIKE", Operator::NotLike),
    ("NOTLIKE", Operator::NotLike),
    ("DOES NOT CONTAIN", Operator::NotLike),
    ("CONTAINS", Operator::Like),
    ("LIKE", Operator::Like),
    ("STARTSWITH", Operator::StartsWith),
    ("ENDSWITH", Operator::EndsWith),
    ("NOT IN", Operator::NotIn),
    ("NOTIN", Operator::NotIn),
    ("IN", Operator::In),
    ("BETWEEN", Operator::Between),
    ("NSAMEAS", Operator::NotSameAs),
    ("SAMEAS", Operator::SameAs),
];

impl Query {
    /// Parses an encoded query, decoded from the URL.
    pub(crate) fn parse(text: &str) -> Self {
        let mut query = Self::default();
        let mut group = Group::default();
        for term in terms(text) {
            if term == "EQ" || term.is_empty() || term.starts_with("GROUPBY") {
                continue;
            }
            if let Some(field) = term.strip_prefix("ORDERBYDESC") {
                query.order.push(Order { field: field.to_owned(), descending: true });
            } else if let Some(field) = term.strip_prefix("ORDERBY") {
                query.order.push(Order { field: field.to_owned(), descending: false });
            } else if let Some(rest) = term.strip_prefix("NQ") {
                query.close(std::mem::take(&mut group));
                group.and(rest);
            } else if let Some(rest) = term.strip_prefix("OR") {
                group.or(rest);
            } else {
                group.and(&term);
            }
        }
        query.close(group);
        query
    }

    /// Adds a condition that every group must meet, as a bare `field=value` parameter does.
    pub(crate) fn require(&mut self, field: &str, value: &str) {
        if self.groups.is_empty() {
            self.groups.push(Group::default());
        }
        for group in &mut self.groups {
            let test = Condition::Test {
                field: field.to_owned(),
                operator: Operator::Equal,
                value: value.to_owned(),
            };
            group.all.push(vec![test]);
        }
    }

    fn close(&mut self, group: Group) {
        if !group.all.is_empty() {
            self.groups.push(group);
        }
    }
}

impl Group {
    fn and(&mut self, term: &str) {
        self.all.push(vec![Condition::parse(term)]);
    }

    fn or(&mut self, term: &str) {
        match self.all.last_mut() {
            Some(alternatives) => alternatives.push(Condition::parse(term)),
            None => self.and(term),
        }
    }
}

impl Condition {
    fn parse(term: &str) -> Self {
        let field_end = term.find(|character: char| !is_field_character(character)).unwrap_or(term.len());
        let (field, rest) = term.split_at(field_end);
        let known = OPERATORS.iter().find_map(|(spelling, operator)| {
            rest.strip_prefix(spelling).map(|value| (*operator, value.to_owned()))
        });
        match known {
            Some((operator, value)) if !field.is_empty() => {
                Self::Test { field: field.to_owned(), operator, value }
            }
            _ => Self::Invalid,
        }
    }
}

fn is_field_character(character: char) -> bool {
    character.is_ascii_lowercase() || character.is_ascii_digit() || character == '_' || character == '.'
}

/// Splits at `^`; `^^` is a caret that belongs to the text.
fn terms(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '^' && characters.next_if_eq(&'^').is_none() {
            if terms.len() >= TERMS_MAX {
                break;
            }
            terms.push(String::new());
        } else if let Some(term) = terms.last_mut() {
            term.push(character);
        }
    }
    terms
}

/// Terms of one query; what follows is ignored.
const TERMS_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn test(field: &str, operator: Operator, value: &str) -> Condition {
        Condition::Test { field: field.to_owned(), operator, value: value.to_owned() }
    }

    #[test]
    fn operators_are_told_apart() {
        for (term, expected) in [
            ("active=true", test("active", Operator::Equal, "true")),
            ("state!=6", test("state", Operator::NotEqual, "6")),
            ("priority>=2", test("priority", Operator::GreaterOrEqual, "2")),
            ("priority>2", test("priority", Operator::Greater, "2")),
            ("priority<=2", test("priority", Operator::LessOrEqual, "2")),
            ("priority<2", test("priority", Operator::Less, "2")),
            ("short_descriptionLIKEmail", test("short_description", Operator::Like, "mail")),
            ("short_descriptionNOT LIKEmail", test("short_description", Operator::NotLike, "mail")),
            ("numberSTARTSWITHINC", test("number", Operator::StartsWith, "INC")),
            ("numberENDSWITH1", test("number", Operator::EndsWith, "1")),
            ("stateIN1,2", test("state", Operator::In, "1,2")),
            ("stateNOT IN1,2", test("state", Operator::NotIn, "1,2")),
            ("assigned_toISEMPTY", test("assigned_to", Operator::IsEmpty, "")),
            ("assigned_toISNOTEMPTY", test("assigned_to", Operator::IsNotEmpty, "")),
            ("priorityBETWEEN1@3", test("priority", Operator::Between, "1@3")),
            ("opened_bySAMEAScaller_id", test("opened_by", Operator::SameAs, "caller_id")),
            ("opened_byNSAMEAScaller_id", test("opened_by", Operator::NotSameAs, "caller_id")),
            ("caller_id.department.name=IT", test("caller_id.department.name", Operator::Equal, "IT")),
            (
                "assigned_to=javascript:gs.getUserID()",
                test("assigned_to", Operator::Equal, "javascript:gs.getUserID()"),
            ),
            ("=x", Condition::Invalid),
            ("field", Condition::Invalid),
            ("fieldFROBx", Condition::Invalid),
            ("123TEXTQUERY321=x", Condition::Invalid),
        ] {
            assert_eq!(Condition::parse(term), expected, "{term}");
        }
    }

    #[test]
    fn or_binds_to_the_condition_before_it() {
        let a = test("a", Operator::Equal, "1");
        let b = test("b", Operator::Equal, "2");
        let c = test("c", Operator::Equal, "3");
        let query = Query::parse("a=1^ORb=2^c=3");
        assert_eq!(query.groups, [Group { all: vec![vec![a.clone(), b.clone()], vec![c.clone()]] }]);
        let query = Query::parse("a=1^NQb=2^c=3^EQ");
        assert_eq!(query.groups, [Group { all: vec![vec![a]] }, Group { all: vec![vec![b], vec![c]] }]);
    }

    #[test]
    fn order_is_no_or() {
        let query = Query::parse("a=1^ORDERBYnumber^ORDERBYDESCsys_created_on");
        let order = |field: &str, descending| Order { field: field.to_owned(), descending };
        assert_eq!(query.order, [order("number", false), order("sys_created_on", true)]);
        assert_eq!(query.groups.len(), 1);
        assert_eq!(Query::parse(""), Query::default());
        assert_eq!(Query::parse("ORDERBYnumber").groups, []);
    }

    #[test]
    fn double_caret_is_text() {
        let query = Query::parse("a=x^^y^b=1");
        assert_eq!(query.groups[0].all[0], [test("a", Operator::Equal, "x^y")]);
        assert_eq!(query.groups[0].all.len(), 2);
    }

    #[test]
    fn bare_parameters_bind_every_group() {
        let mut query = Query::parse("a=1^NQb=2");
        query.require("c", "3");
        assert!(query.groups.iter().all(|group| group.all.len() == 2));
        let mut empty = Query::default();
        empty.require("c", "3");
        assert_eq!(empty.groups.len(), 1);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,400}") {
            Query::parse(&text);
        }

        #[test]
        fn parsing_never_panics_on_likely_pieces(pieces in prop::collection::vec(
            prop::sample::select(vec![
                "^", "^^", "OR", "NQ", "EQ", "ORDERBY", "DESC", "GROUPBY", "number", "caller_id.name", "=", "!=", ">",
                "LIKE", "NOT LIKE", "IN", "ISEMPTY", "BETWEEN", "@", ",", "javascript:gs.", "é", "\u{0}", " ",
            ]), 0..40)) {
            let query = Query::parse(&pieces.concat());
            prop_assert!(query.groups.iter().all(|group| group.all.iter().all(|any| !any.is_empty())));
        }

        #[test]
        fn a_condition_survives_the_company_it_keeps(value in "[a-z0-9 ]{0,20}") {
            let query = Query::parse(&format!("number={value}^ORDERBYnumber^active=true"));
            prop_assert_eq!(&query.groups[0].all[0][0], &test("number", Operator::Equal, &value));
        }
    }
}
