//! Generated queries of callers: from honest ones to those that try everything at once.

use std::fmt::Write as _;

use proptest::{collection::vec, option, prelude::*, sample::select};

/// The query of a request target, hostile in about half of the cases.
pub(crate) fn any_query() -> impl Strategy<Value = String> {
    let hostile = option::weighted(0.15, select(HOSTILE_PARAMETERS));
    (encoded_query(0.05), spelling(), parameters(), hostile, any::<bool>()).prop_map(
        |(query, spelling, mut parameters, hostile, first)| {
            let mine = format!("sysparm_query={}", spelling.write(&query));
            parameters.insert(if first { 0 } else { parameters.len() }, mine);
            parameters.extend(hostile.map(str::to_owned));
            parameters.join("&")
        },
    )
}

/// Conditions that every reader understands, on the fields of the first sample.
pub(crate) fn honest_encoded_query() -> impl Strategy<Value = String> {
    let condition = (select(FIELDS), select(OPERATORS), select(WORDS)).prop_map(condition);
    let join = select(&["^", "^", "^OR", "^NQ"][..]);
    let order = option::of((select(&["^ORDERBY", "^ORDERBYDESC"][..]), select(FIELDS)));
    (condition.clone(), vec((join, condition), 0..5), order).prop_map(|(first, more, order)| {
        let mut query = first;
        query.extend(more.into_iter().flat_map(|(join, condition)| [join.to_owned(), condition]));
        query.extend(order.into_iter().flat_map(|(keyword, field)| [keyword, field]));
        query
    })
}

/// Decoded; each piece is hostile with this probability.
pub(crate) fn encoded_query(hostile: f64) -> impl Strategy<Value = String> {
    let honest = select(&["^", "^", "^OR", "^NQ"][..]);
    let field = prop_oneof![12 => select(FIELDS), 2 => select(OTHER_FIELDS)];
    let value = prop_oneof![
        12 => select(WORDS).prop_map(str::to_owned),
        1 => "[ -~]{1,12}",
        1 => "\\PC{1,6}",
        1 => select(FRAGMENTS).prop_map(|fragment| format!("x{fragment}")),
    ];
    let condition = (field, select(OPERATORS), value).prop_map(condition);
    let piece = move |honest: BoxedStrategy<String>| {
        (honest, option::weighted(hostile, select(FRAGMENTS)))
            .prop_map(|(honest, hostile)| hostile.map_or(honest, str::to_owned))
    };
    let join = piece(honest.prop_map(str::to_owned).boxed());
    let condition = piece(condition.boxed());
    let order = (select(&["^ORDERBY", "^ORDERBYDESC", "^GROUPBY"][..]), select(FIELDS));
    (condition.clone(), vec((join, condition), 0..6), option::of(order)).prop_map(|(first, more, order)| {
        let mut query = first;
        query.extend(more.into_iter().flat_map(|(join, condition)| [join, condition]));
        query.extend(order.into_iter().flat_map(|(keyword, field)| [keyword, field]));
        query
    })
}

fn condition((field, operator, value): (&str, &str, impl AsRef<str>)) -> String {
    match operator {
        "ISEMPTY" | "ISNOTEMPTY" => format!("{field}{operator}"),
        "BETWEEN" => format!("{field}BETWEEN{}@zz", value.as_ref().replace("l@", "l ")),
        _ => format!("{field}{operator}{}", value.as_ref()),
    }
}

/// Other parameters, each as a client would send it.
fn parameters() -> impl Strategy<Value = Vec<String>> {
    let sometimes = |name: &'static str, values: &'static [&'static str]| {
        option::weighted(0.25, select(values)).prop_map(move |value| Some(format!("{name}={}", value?)))
    };
    let flags: &[&str] = &["true", "false"];
    (
        sometimes("sysparm_fields", &["number", "number,short_description", "number%2Cpriority", "active"]),
        sometimes("sysparm_limit", &["1", "3", "100", "1000"]),
        sometimes("sysparm_offset", &["0", "2", "50"]),
        sometimes("sysparm_display_value", &["true", "false", "all"]),
        sometimes("sysparm_exclude_reference_link", flags),
        sometimes("sysparm_no_count", flags),
        sometimes("sysparm_suppress_pagination_header", flags),
    )
        .prop_map(|(a, b, c, d, e, f, g)| [a, b, c, d, e, f, g].into_iter().flatten().collect())
}

/// How a client writes a value into a query.
#[derive(Debug, Clone, Copy)]
enum Spelling {
    /// All but unreserved characters and `=` percent-encoded.
    Usual,
    /// The same, blanks as `+`.
    Form,
    /// Everything, in lower-case digits.
    Everything,
    Nothing,
    Twice,
}

fn spelling() -> impl Strategy<Value = Spelling> {
    prop_oneof![
        6 => Just(Spelling::Usual),
        2 => Just(Spelling::Form),
        1 => Just(Spelling::Everything),
        1 => Just(Spelling::Nothing),
        1 => Just(Spelling::Twice),
    ]
}

impl Spelling {
    fn write(self, text: &str) -> String {
        match self {
            Self::Usual => {
                escape(text.as_bytes(), |byte| byte.is_ascii_alphanumeric() || b"-._~=".contains(&byte))
            }
            Self::Form => Self::Usual.write(text).replace("%20", "+"),
            Self::Everything => escape(text.as_bytes(), |_| false),
            Self::Nothing => text.to_owned(),
            Self::Twice => Self::Usual.write(&Self::Usual.write(text)),
        }
    }
}

/// Percent-encodes every byte but the plain ones.
pub(crate) fn escape(bytes: &[u8], is_plain: impl Fn(u8) -> bool) -> String {
    let mut escaped = String::new();
    for byte in bytes {
        if is_plain(*byte) {
            escaped.push(char::from(*byte));
        } else {
            write!(escaped, "%{byte:02x}").unwrap();
        }
    }
    escaped
}

const FIELDS: &[&str] = &["number", "short_description", "priority", "state", "caller_id", "opened_at"];
const OTHER_FIELDS: &[&str] =
    &["active", "category", "work_notes", "description", "sys_id", "nonsense", "caller_id.user_name", "orig"];
const OPERATORS: &[&str] = &[
    "=",
    "=",
    "=",
    "!=",
    ">",
    ">=",
    "<",
    "<=",
    "LIKE",
    "LIKE",
    "NOT LIKE",
    "STARTSWITH",
    "ENDSWITH",
    "IN",
    "NOT IN",
    "BETWEEN",
    "ISEMPTY",
    "ISNOTEMPTY",
];
/// Values; those of the simulator's rows that must stay hidden among them.
const WORDS: &[&str] = &[
    "1",
    "2",
    "3",
    "INC",
    "INC0000004",
    "printer",
    "PRINTER",
    "1,2",
    "true",
    "false",
    "network",
    "software",
    "zqoutside",
    "zqhidden",
    "2026-01-01 00:00:00",
    "abel@example.com",
    "Grüße",
    "x",
];
/// What breaks out of a careless filter.
const FRAGMENTS: &[&str] = &[
    "^NQ",
    "^NQactive=false",
    "^NQsys_idISNOTEMPTY",
    "NQactive=false",
    "^OR",
    "^ORactive=false",
    "^ORsys_idISNOTEMPTY",
    "ORactive=false",
    "^^",
    "^^NQactive=false",
    "^",
    "^EQ",
    "^EQ^",
    "EQ",
    "^NQEQ",
    "ORDERBYwork_notes",
    "^ORDERBYDESCcategory",
    "^GROUPBYwork_notes",
    "nonsense=1^ORactive=false",
    "nonsense=1^ORactive=true^ORactive=false",
    "caller_id.active=true",
    "^ORDERBYcaller_id.user_name",
    "=javascript:gs.getUserID()",
    "=JavaScript: gs.getUserName()",
    "=java\u{200b}script:x",
    "%5ENQactive=false",
    "%255ENQactive=false",
    "%5E%4E%51active%3Dfalse",
    "%26sysparm_query=active=false",
    "&sysparm_query=active=false",
    "&sysparm_fields=work_notes",
    ";sysparm_fields=work_notes",
    "&active=false",
    "#",
    "\u{ff3e}NQactive\u{ff1d}false",
    "\u{2c6}ORactive=false",
    "\u{0}",
    "%00",
    "\r\n",
    "@",
    "BETWEEN@",
    "INal=x",
    "123TEXTQUERY321=zqoutside",
    "GOTOwork_notes=z",
    "SUBQUERYsys_id,caller_id,incident^active=false^ENDSUBQUERY",
    "RLQUERYincident.parent,>=1,m2m^active=false^ENDRLQUERY",
    "JOINincident.caller_id=sys_user.sys_id!active=true",
    "IR_OR_QUERY=zqoutside",
    "$work_notesLIKEzqhidden",
    "work_notesLIKEzqhidden",
    "descriptionSTARTSWITHzq",
    "ANYTHING",
    "SAMEASwork_notes",
    "numberSAMEASwork_notes",
    "=a=b",
    "+",
    " ",
];
const HOSTILE_PARAMETERS: &[&str] = &[
    "sysparm_query=active=false",
    "sysparm_query=",
    "SYSPARM_QUERY=active=false",
    "sysparm%5Fquery=active=false",
    "sysparm_fields=work_notes",
    "sysparm_fields=",
    "sysparm_fields=number,caller_id.user_name",
    "sysparm_fields=number,work_notes",
    "Sysparm_Fields=work_notes",
    "sysparm_limit=1001",
    "sysparm_limit=-1",
    "sysparm_limit=0",
    "sysparm_offset=-1",
    "sysparm_tiny=0123456789abcdef",
    "sysparm_view=ess",
    "sysparm_query_category=x",
    "sysparm_query_no_domain=true",
    "sysparm_group_by=work_notes",
    "active=false",
    "work_notes=zqhidden",
    "x;sysparm_query=active=false",
    "sysparm_limit=1;sysparm_fields=work_notes",
    "sysparm_offset=0%26sysparm_fields=work_notes",
    "sysparm_no_count=%ff",
    "sysparm_no_count=%",
    "",
    "=",
];
