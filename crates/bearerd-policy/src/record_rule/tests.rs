//! Each refusal and each rewriting by example; what holds for every query is in `tests/record_rules`.

use super::*;

/// Condition, permitted fields (`""`: every field), and a limit of 100.
fn rule(condition: &str, fields: &str) -> RecordRule {
    compile(condition, fields).unwrap()
}

fn compile(condition: &str, fields: &str) -> Result<RecordRule, RecordRuleFault> {
    let fields: BTreeSet<String> =
        fields.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    RecordRule::compile(condition, (!fields.is_empty()).then_some(&fields), 100)
}

fn open_rule() -> RecordRule {
    rule("active=true^category=network", "")
}

/// What the given encoded query becomes, decoded.
#[track_caller]
fn check_query(rule: &RecordRule, given: &str, expected: &str) {
    let rewritten = rule.rewrite(Some(&format!("sysparm_query={}", escaped(given)))).unwrap();
    let parameters = Parameters::parse(&rewritten).unwrap();
    assert_eq!(parameters.get(Parameter::Query), Some(expected), "{given}");
}

#[track_caller]
fn check_query_fault(given: &str, expected: &str) {
    let refused = open_rule().rewrite(Some(&format!("sysparm_query={}", escaped(given)))).unwrap_err();
    assert_eq!(refused.to_string(), format!("sysparm_query: {expected}"), "{given}");
}

#[track_caller]
fn check_rewritten(rule: &RecordRule, given: &str, expected: &str) {
    assert_eq!(rule.rewrite(Some(given)).unwrap(), expected, "{given}");
}

#[track_caller]
fn check_refused(rule: &RecordRule, given: &str, expected: &str) {
    assert_eq!(rule.rewrite(Some(given)).unwrap_err().to_string(), expected, "{given}");
}

fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |escaped, byte| format!("{escaped}%{byte:02x}"))
}

#[test]
fn the_rule_stands_first_in_every_set() {
    let open = open_rule();
    for (given, expected) in [
        ("", "active=true^category=network"),
        ("priority=1", "active=true^category=network^priority=1"),
        ("priority=1^state=2", "active=true^category=network^priority=1^state=2"),
        (
            "priority=1^NQstate=2",
            "active=true^category=network^priority=1^NQactive=true^category=network^state=2",
        ),
        ("ORDERBYnumber", "active=true^category=network^ORDERBYnumber"),
        ("^ORDERBYnumber", "active=true^category=network^ORDERBYnumber"),
        (
            "state=1^ORDERBYDESCnumber^ORDERBYstate^GROUPBYstate",
            "active=true^category=network^state=1^ORDERBYDESCnumber^ORDERBYstate^GROUPBYstate",
        ),
        // What it says already is not said again.
        ("active=true^category=network^state=1", "active=true^category=network^state=1"),
        ("active=true^state=1", "active=true^category=network^active=true^state=1"),
    ] {
        check_query(&open, given, expected);
    }
    let alternatives = rule("a=1^ORb=2", "");
    check_query(&alternatives, "c=3^NQd=4", "a=1^ORb=2^c=3^NQa=1^ORb=2^d=4");
}

/// As `docs/record-rules.md` shows them.
#[test]
fn the_documented_examples_hold() {
    let rule = rule("active=true^category=network", "number,priority,state");
    let rewritten = rule.rewrite(None).unwrap();
    let parameters = Parameters::parse(&rewritten).unwrap();
    assert_eq!(parameters.get(Parameter::Fields), Some("number,priority,state"));
    assert_eq!(parameters.get(Parameter::Limit), Some("100"));
    for (given, expected) in [
        ("", "active=true^category=network"),
        ("priority=1^ORDERBYnumber", "active=true^category=network^priority=1^ORDERBYnumber"),
        (
            "priority=1^NQstate=2",
            "active=true^category=network^priority=1^NQactive=true^category=network^state=2",
        ),
        ("priority=1^ORstate=2", "active=true^category=network^category=network^priority=1^ORstate=2"),
    ] {
        check_query(&rule, given, expected);
    }
    for refused in [
        "sysparm_query=category=software",
        "sysparm_query=priority=1^NQORDERBYnumber",
        "sysparm_limit=101",
        "sysparm_view=ess",
        "active=false",
    ] {
        assert!(rule.rewrite(Some(refused)).is_err(), "{refused}");
    }
}

/// An instance that drops `state=1` as invalid, and only then attaches `^ORnumber=x`, spoils the copy.
#[test]
fn a_copy_of_the_rule_stands_between_it_and_alternatives() {
    let open = open_rule();
    check_query(
        &open,
        "state=1^ORnumber=x^NQpriority=1",
        "active=true^category=network^category=network^state=1^ORnumber=x^NQactive=true^category=network^priority=1",
    );
    let alternatives = rule("a=1^ORb=2", "");
    check_query(&alternatives, "c=3^d=4^ORe=5", "a=1^ORb=2^a=1^ORb=2^c=3^d=4^ORe=5");
}

#[test]
fn operators_are_written_in_one_way() {
    let rule = rule("a=1", "");
    for term in [
        "b=1",
        "b!=1",
        "b>1",
        "b>=1",
        "b<1",
        "b<=1",
        "bLIKEx",
        "bNOT LIKEx",
        "bSTARTSWITHINC",
        "bENDSWITHx",
        "bIN1,2",
        "bININC1,INC2",
        "bNOT IN1,2",
        "bBETWEEN1@2",
        "bISEMPTY",
        "bISNOTEMPTY",
        "b=a=b",
        "b=2026-01-01 00:00:00",
        "b=x@example.com",
        "bLIKEhelp!",
        "b=Grüße 東京 🚀",
        "b=C:\\dir*'\"<>",
        "b=java script",
        "order_by=1",
        "nq=1",
        "or=1",
        "eq=1",
        "orderby=1",
    ] {
        check_query(&rule, term, &format!("a=1^{term}"));
    }
    check_query(&rule, "bNOTLIKEx^bNOTIN1,2", "a=1^bNOT LIKEx^bNOT IN1,2");
}

#[test]
fn what_is_no_encoded_query_is_refused() {
    let field = |term: &str| {
        let quoted = Excerpt::of(term);
        format!(
            "{quoted} does not begin with the plain name of a field: 1 to 80 of a-z, 0-9 and '_', a letter first"
        )
    };
    let empty = "there is nothing before, after or between two '^'";
    for text in
        ["^", "a=1^", "^a=1", "a=1^^b=2", "a=x^^y", "^^ORDERBYa", "a=1^^ORDERBYa", "^NQa=1^", "ORDERBYa^"]
    {
        check_query_fault(text, empty);
    }
    for (text, keyword) in [("ORa=1", "OR"), ("NQa=1", "NQ"), ("OR", "OR"), ("NQ", "NQ")] {
        let expected =
            format!("it or one of its sets begins with {keyword}, which has no condition before it");
        check_query_fault(text, &expected);
    }
    for text in [
        "EQ",
        "=1",
        "1a=1",
        "_a=1",
        "Active=true",
        " a=1",
        "$a=1",
        "123TEXTQUERY321=x",
        "IR_AND_QUERY=x",
        "GOTOnumber=1",
        "RLQUERYincident.parent,>=1",
        "SUBQUERYsys_id,caller_id,incident",
        "JOINtask.sys_id=incident.parent!a=1",
        "ORDERBY",
        "ORDERBYa.b",
        "ORDERBYDESCA",
        "GROUPBY",
        "ORDERBYa,b",
        "\u{ff41}=1",
        &format!("{}=1", "a".repeat(81)),
    ] {
        check_query_fault(text, &field(text));
    }
    check_query_fault("a=1^EQ", &field("EQ"));
    for (text, term) in [("a=1^NQ", ""), ("a=1^NQORb=1", "ORb=1"), ("a=1^OR", ""), ("a=1^ORNQb=1", "NQb=1")] {
        check_query_fault(text, &field(term));
    }
    check_query_fault(
        "caller_id.name=x",
        "\"caller_id.name=x\" reaches into another table; fields are named without dots",
    );
    check_query_fault("a=1^NQb=1^ORDERBYb^c=1", "\"c=1\" comes after the order; conditions come first");
    check_query_fault("ORDERBYb^NQc=1", "\"NQc=1\" comes after the order; conditions come first");
}

#[test]
fn an_operator_that_is_not_admitted_is_refused() {
    for term in [
        "a",
        "a 1",
        "a =1",
        "aFROB1",
        "aCONTAINSx",
        "aDOES NOT CONTAINx",
        "aSAMEASb",
        "aNSAMEASb",
        "aANYTHING",
        "aEMPTYSTRING",
        "aINSTANCEOFtask",
        "aDYNAMIC90d1",
        "aONToday@x@y",
        "aDATEPARTx",
        "aGT_FIELDb",
        "aVALCHANGES",
        "alike1",
        "a*x",
        "a%x",
        "a!*x",
        "a\u{ff1d}1",
        "a\u{0}=1",
        "aNOT  LIKEx",
        "aMATCH_RGXx",
    ] {
        let quoted = Excerpt::of(term);
        check_query_fault(
            term,
            &format!(
                "{quoted} has no operator that is admitted; those are = != > >= < <= LIKE, NOT LIKE, STARTSWITH, \
                 ENDSWITH, IN, NOT IN, BETWEEN, ISEMPTY, ISNOTEMPTY"
            ),
        );
    }
}

#[test]
fn a_value_that_reads_two_ways_is_refused() {
    let ambiguous =
        "the value for \"a\" could be read as another operator: it begins with or holds one of = < > !";
    for term in
        ["a==1", "a=>1", "a>>1", "a>==1", "a!==1", "a=!1", "a<>1", "aINal=x", "aLIKEx<y", "aENDSWITH>"]
    {
        check_query_fault(term, ambiguous);
    }
    let no_value =
        "the condition on \"a\" has no value; ISEMPTY and ISNOTEMPTY say that a field is or is not empty";
    for term in ["a=", "a!=", "aLIKE", "aIN", "aBETWEEN"] {
        check_query_fault(term, no_value);
    }
    for term in ["aISEMPTYx", "aISNOTEMPTY "] {
        check_query_fault(term, "the condition on \"a\" has a value after an operator that takes none");
    }
    for term in ["aBETWEEN1", "aBETWEEN@", "aBETWEEN1@", "aBETWEEN@2", "aBETWEEN1@2@3"] {
        check_query_fault(term, "the condition on \"a\" is not BETWEENlow@high");
    }
}

/// Of encoded twice, too: what is left after one decoding still holds a `%`.
#[test]
fn a_value_that_an_instance_could_take_apart_is_refused() {
    let character = "the value for \"a\" holds a control character, a look-alike of '^', or one of & ; # %";
    for value in [
        "x\0",
        "x\n",
        "\tx",
        "x\u{7f}",
        "x\u{85}",
        "x&sysparm_limit=1",
        "x;y",
        "x#",
        "100%",
        "x%5ENQactive=false",
        "%6aavascript:x",
        "x\u{ff3e}NQb=1",
        "x\u{2c6}NQb=1",
    ] {
        check_query_fault(&format!("a={value}"), character);
    }
    let script = "the value for \"a\" holds javascript:, which would run on the instance";
    for value in [
        "javascript:gs.getUserID()",
        "JavaScript:x",
        " javascript:x",
        "java script : x",
        "1@javascript:x",
        "java\u{200b}script:x",
        "java\u{a0}script\u{2003}:x",
        "\u{ff4a}avascript\u{ff1a}x",
        "java\u{17f}cr\u{131}pt:x",
        "ja'va\"script:x",
    ] {
        check_query_fault(&format!("a={value}"), script);
        check_query_fault(&format!("aIN1,{value}"), script);
    }
}

#[test]
fn a_query_has_bounds() {
    let terms = |count: usize| vec!["a=1"; count].join("^");
    assert!(open_rule().rewrite(Some(&format!("sysparm_query={}", terms(100)))).is_ok());
    check_query_fault(&terms(101), "it holds more than 100 terms");
    assert!(open_rule().rewrite(Some(&format!("sysparm_query={}", ["a=1"; 10].join("^NQ")))).is_ok());
    check_query_fault(&["a=1"; 11].join("^NQ"), "it holds more than 10 sets (^NQ)");
    let longest = format!("sysparm_query=a={}", "x".repeat(8_192 - "sysparm_query=a=".len()));
    assert!(open_rule().rewrite(Some(&longest)).is_ok());
    check_refused(&open_rule(), &format!("{longest}x"), "the query is longer than 8192 bytes");
    let long_rule = rule(&format!("a={}", "/".repeat(1_000)), "");
    let sets = format!("sysparm_query={}", ["a=1^ORb=1"; 10].join("^NQ"));
    check_refused(&long_rule, &sets, "the query is too long together with what the record rule adds to it");
}

#[test]
fn parameters_are_written_anew() {
    let open = rule("a=1", "");
    let end = "&sysparm_suppress_pagination_header=true";
    for (given, expected) in [
        ("", "sysparm_query=a%3D1&sysparm_limit=100"),
        ("sysparm_query=", "sysparm_query=a%3D1&sysparm_limit=100"),
        ("sysparm_query=b=1+2%2b3", "sysparm_query=a%3D1%5Eb%3D1%202%2B3&sysparm_limit=100"),
        ("sysparm_query=b=%C3%A4~-._", "sysparm_query=a%3D1%5Eb%3D%C3%A4~-._&sysparm_limit=100"),
        ("sysparm_limit=100", "sysparm_query=a%3D1&sysparm_limit=100"),
        ("sysparm_limit=1", "sysparm_query=a%3D1&sysparm_limit=1"),
        ("sysparm_limit=007", "sysparm_query=a%3D1&sysparm_limit=7"),
        ("%73ysparm_limit=%31", "sysparm_query=a%3D1&sysparm_limit=1"),
        (
            "sysparm_offset=1000000000&sysparm_limit=5",
            "sysparm_query=a%3D1&sysparm_limit=5&sysparm_offset=1000000000",
        ),
        (
            "sysparm_fields=number,state,number",
            "sysparm_query=a%3D1&sysparm_fields=number%2Cstate&sysparm_limit=100",
        ),
        (
            "sysparm_fields=number,+state",
            "sysparm_query=a%3D1&sysparm_fields=number%2Cstate&sysparm_limit=100",
        ),
        (
            "sysparm_no_count=true&sysparm_display_value=all&sysparm_exclude_reference_link=false",
            "sysparm_query=a%3D1&sysparm_limit=100&sysparm_display_value=all&\
             sysparm_exclude_reference_link=false&sysparm_no_count=true",
        ),
        // The header would tell the condition.
        ("sysparm_suppress_pagination_header=false", "sysparm_query=a%3D1&sysparm_limit=100"),
        ("sysparm_suppress_pagination_header=true", "sysparm_query=a%3D1&sysparm_limit=100"),
    ] {
        check_rewritten(&open, given, &format!("{expected}{end}"));
    }
    assert_eq!(open.rewrite(None), open.rewrite(Some("")));
    let narrow = rule("a=1", "state,number");
    let expected = format!("sysparm_query=a%3D1&sysparm_fields=number%2Cstate&sysparm_limit=100{end}");
    check_rewritten(&narrow, "", &expected);
    let expected = format!("sysparm_query=a%3D1&sysparm_fields=state&sysparm_limit=100{end}");
    check_rewritten(&narrow, "sysparm_fields=state", &expected);
}

#[test]
fn every_other_parameter_is_refused() {
    let rule = open_rule();
    for name in [
        "sysparm_tiny",
        "sysparm_view",
        "sysparm_query_category",
        "sysparm_query_no_domain",
        "sysparm_group_by",
        "sysparm_input_display_value",
        "SysParm_Having",
        "sysparm_",
        "sysparm_query[]",
        "sysparm_%2571uery",
    ] {
        let shown = name.replace("%25", "%");
        let expected =
            format!("the parameter \"{shown}\" is not among those that a record rule lets through");
        check_refused(&rule, &format!("{name}=x"), &expected);
    }
    for name in ["active", "caller_id.name", "", "access_token", "x-sn-apikey", "sysparm"] {
        let expected = format!(
            "the parameter \"{name}\" is not let through: conditions on fields belong into sysparm_query"
        );
        check_refused(&rule, &format!("{name}=x"), &expected);
    }
    let case = "the parameter sysparm_query must be written in lower case";
    check_refused(&rule, "SYSPARM_QUERY=a=1", case);
    check_refused(&rule, "sysparm_Query=a=1", case);
    let twice = "the parameter sysparm_query is there twice";
    check_refused(&rule, "sysparm_query=a=1&sysparm_query=a=1", twice);
    check_refused(&rule, "sysparm_query=a=1&sysparm_limit=1&sysparm%5fquery=", twice);
    let pairs = "the query is not name=value pairs joined by '&'";
    for query in [
        "&",
        "sysparm_query",
        "sysparm_query=a=1&",
        "&sysparm_query=a=1",
        "sysparm_limit=1&&sysparm_offset=1",
    ] {
        check_refused(&rule, query, pairs);
    }
    let raw = "the query holds a character that must be percent-encoded, or ';'";
    for query in [
        "sysparm_limit=1;sysparm_offset=1",
        "sysparm_limit=1#",
        "sysparm_query=a=ä",
        "sysparm_query=a=1 2",
        "\0",
    ] {
        check_refused(&rule, query, raw);
    }
    let escape = "the query holds a '%' that is not followed by two hexadecimal digits";
    for query in
        ["sysparm_query=a=%", "sysparm_query=a=%5", "sysparm_query=a=%u005E", "sysparm_query=a=%+1", "%zz=1"]
    {
        check_refused(&rule, query, escape);
    }
    for query in ["sysparm_query=a=%ff", "sysparm_query=a=%c0%de", "%ff=1"] {
        check_refused(&rule, query, "the query is not UTF-8 once it is percent-decoded");
    }
}

#[test]
fn numbers_and_words_are_checked() {
    let rule = open_rule();
    for limit in
        ["0", "101", "", "-1", "%2B5", "1.0", "1e1", "٣", "4294967296", "99999999999999999999", "all", "1%00"]
    {
        let query = format!("sysparm_limit={}", limit.replace('٣', "%D9%A3"));
        check_refused(&rule, &query, "the parameter sysparm_limit must be a number between 1 and 100");
    }
    for offset in ["1000000001", "-1", "", "x"] {
        let expected = "the parameter sysparm_offset must be a number between 0 and 1000000000";
        check_refused(&rule, &format!("sysparm_offset={offset}"), expected);
    }
    for value in ["", "TRUE", "yes", "all%00", "true,all"] {
        let expected = "the parameter sysparm_display_value must be true, false or all";
        check_refused(&rule, &format!("sysparm_display_value={value}"), expected);
    }
    for name in ["sysparm_exclude_reference_link", "sysparm_no_count", "sysparm_suppress_pagination_header"] {
        for value in ["", "all", "True", "1"] {
            let expected = format!("the parameter {name} must be true or false");
            check_refused(&rule, &format!("{name}={value}"), &expected);
        }
    }
}

#[test]
fn only_permitted_fields_are_named_anywhere() {
    let narrow = rule("active=true", "number,state");
    for query in [
        "sysparm_fields=number,active",
        "sysparm_query=active=true",
        "sysparm_query=number=1^ORactive=true",
        "sysparm_query=number=1^NQactive=true",
        "sysparm_query=ORDERBYactive",
        "sysparm_query=ORDERBYnumber^ORDERBYDESCactive",
        "sysparm_query=number=1^GROUPBYactive",
    ] {
        let expected = "the field \"active\" is not among those that the record rule permits";
        check_refused(&narrow, query, expected);
    }
    for (fields, name) in [
        ("number,caller_id.name", "caller_id.name"),
        ("number,", ""),
        ("", ""),
        ("number,,state", ""),
        ("*", "*"),
        ("Number", "Number"),
        ("number%09", "number\t"),
    ] {
        for rule in [&narrow, &open_rule()] {
            let expected = format!(
                "{} in sysparm_fields is not a plain field name: no dots, 1 to 80 of a-z, 0-9 and '_'",
                Excerpt::of(name)
            );
            check_refused(rule, &format!("sysparm_fields={fields}"), &expected);
        }
    }
    check_query(&narrow, "number=1^ORDERBYstate", "active=true^number=1^ORDERBYstate");
    let named = ["active", "number", "state"];
    assert!(narrow.fields_named().eq(named), "{:?}", narrow.fields_named().collect::<Vec<_>>());
}

/// The message is for the caller, who must learn nothing of the rule by it.
#[test]
fn a_refusal_is_short_and_tells_nothing_of_the_rule() {
    let rule = rule("u_secret=hush", "number,u_permitted");
    let long = "x".repeat(8_000);
    for query in [
        format!("{long}=1"),
        format!("sysparm_{long}=1"),
        format!("sysparm_query={long}"),
        format!("sysparm_query={long}=1"),
        format!("sysparm_fields={long}"),
        format!("sysparm_display_value={long}"),
        format!("sysparm_limit={long}"),
        "sysparm_query=u_other=1".to_owned(),
        "sysparm_query=ORDERBYnumber^number=1".to_owned(),
        "sysparm_query=number=%25".to_owned(),
        format!("sysparm_query={}", "%F0%9F%9A%80".repeat(600)),
    ] {
        let refused = rule.rewrite(Some(&query)).unwrap_err();
        for text in [refused.to_string(), format!("{refused:?}")] {
            assert!(text.len() < 700 && text.replace('…', "").is_ascii(), "{text}");
            assert!(!["secret", "hush", "u_permitted"].iter().any(|told| text.contains(told)), "{text}");
        }
    }
}

#[test]
fn a_rule_reads_in_one_way_only() {
    for condition in [
        "active=true",
        "active=true^ORstate=6^category=network",
        "numberSTARTSWITHINC",
        "stateNOT IN6,7",
        "opened_at>=2026-01-01 00:00:00",
        "priorityBETWEEN1@2",
        "assigned_toISNOTEMPTY",
    ] {
        check_query(&rule(condition, ""), "", condition);
    }
    check_query(&rule("aNOTLIKEx", ""), "", "aNOT LIKEx");
    for (condition, fault) in [
        ("", RecordRuleFault::NoCondition),
        (&*format!("a={}", "x".repeat(1_023)), RecordRuleFault::ConditionTooLong),
        (&*vec!["a=1"; 21].join("^"), RecordRuleFault::TooManyConditions),
        (&*vec!["a=1"; 21].join("^OR"), RecordRuleFault::TooManyConditions),
        ("a=1^NQb=1", RecordRuleFault::SeveralSets),
        ("a=1^ORDERBYa", RecordRuleFault::Ordered),
        ("ORDERBYa", RecordRuleFault::Ordered),
        ("a=1^GROUPBYb", RecordRuleFault::Ordered),
        ("a=1^^b=1", RecordRuleFault::Condition(EncodedQueryFault::EmptyTerm)),
        ("ORa=1", RecordRuleFault::Condition(EncodedQueryFault::NothingBefore("OR"))),
        ("a=1^EQ", RecordRuleFault::Condition(EncodedQueryFault::Field(Excerpt::of("EQ")))),
        ("a.b=1", RecordRuleFault::Condition(EncodedQueryFault::DotWalk(Excerpt::of("a.b=1")))),
        ("a=javascript:x", RecordRuleFault::Condition(EncodedQueryFault::Script(Excerpt::of("a")))),
        ("a=100%", RecordRuleFault::Condition(EncodedQueryFault::Character(Excerpt::of("a")))),
    ] {
        assert_eq!(compile(condition, "").unwrap_err(), fault, "{condition}");
    }
    for value in ["NULL", " x", "x ", "x\u{a0}", "a=b", "a<b", "a>b", "a!", "a*", "a+b"] {
        let fault = RecordRuleFault::AmbiguousValue { field: Excerpt::of("a") };
        assert_eq!(compile(&format!("b=1^ORa={value}"), "").unwrap_err(), fault, "{value}");
    }
}

#[test]
fn the_fields_and_the_limit_of_a_rule_have_bounds() {
    let many = |count: usize| -> BTreeSet<String> { (0..count).map(|n| format!("f{n}")).collect() };
    let fault = |fields: &BTreeSet<String>| RecordRule::compile("a=1", Some(fields), 1).err();
    assert_eq!(fault(&many(0)), Some(RecordRuleFault::NoFields));
    assert_eq!(fault(&many(100)), None);
    assert_eq!(fault(&many(101)), Some(RecordRuleFault::TooManyFields));
    for name in ["a.b", "A", "", "1a", "a b", "a,b", "ä", &"a".repeat(81)] {
        let fields = BTreeSet::from([name.to_owned()]);
        assert_eq!(fault(&fields), Some(RecordRuleFault::FieldName(Excerpt::of(name))), "{name}");
    }
    for (limit_max, accepted) in [(0, false), (1, true), (10_000, true), (10_001, false), (u32::MAX, false)] {
        assert_eq!(RecordRule::compile("a=1", None, limit_max).is_ok(), accepted, "{limit_max}");
    }
    // The greatest rule that there can be still goes out.
    let longest: BTreeSet<String> = (0..100).map(|n| format!("f{n:079}")).collect();
    let greatest = RecordRule::compile(&format!("a={}", "/".repeat(1_022)), Some(&longest), 10_000).unwrap();
    assert!(greatest.rewrite(None).is_ok());
}
