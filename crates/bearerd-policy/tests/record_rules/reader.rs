//! Reads queries the way a tolerant instance may: never refuses, takes what it gets.

/// Where parameters end, and when they are decoded.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Splitting {
    /// Split at `&`, decode.
    Plain,
    /// Split at `;` too, decode.
    SemicolonsToo,
    /// Decode the whole, split at `&` and `;`; what follows `#` or NUL is lost.
    DecodeFirst,
    /// Split at `&`, decode, decode what came out once more.
    DecodeTwice,
}

impl Splitting {
    pub(crate) const ALL: [Self; 4] =
        [Self::Plain, Self::SemicolonsToo, Self::DecodeFirst, Self::DecodeTwice];

    /// Names and values.
    pub(crate) fn parameters(self, query: &str) -> Vec<(String, String)> {
        let pairs = |text: &str, separators: &[char], decode: fn(&str) -> String| -> Vec<_> {
            let parts = text.split(separators).filter(|part| !part.is_empty());
            let pairs = parts.map(|part| part.split_once('=').unwrap_or((part, "")));
            pairs.map(|(name, value)| (decode(name), decode(value))).collect()
        };
        match self {
            Self::Plain => pairs(query, &['&'], decode),
            Self::SemicolonsToo => pairs(query, &['&', ';'], decode),
            Self::DecodeFirst => {
                let decoded = decode(query);
                let kept = decoded.split(['#', '\0']).next().unwrap_or_default();
                pairs(kept, &['&', ';'], str::to_owned)
            }
            Self::DecodeTwice => pairs(query, &['&'], |text| decode(&decode(text))),
        }
    }
}

/// As forms are decoded; what is malformed stays as it is.
pub(crate) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let escaped = text.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (bytes[at], escaped) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 2;
            }
            (b'+', _) => decoded.push(b' '),
            (byte, _) => decoded.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// An encoded query taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Sets of groups of alternatives.
    pub(crate) sets: Vec<Vec<Vec<String>>>,
    pub(crate) order: Vec<String>,
}

/// Splits at `^`; `NQ` begins a set, `OR` binds to the condition before it, `EQ` ends all. A condition for which
/// `drops` holds (told the condition, and whether `OR` stood before it) is gone before anything binds to it.
pub(crate) fn read(text: &str, drops: impl Fn(&str, bool) -> bool) -> Reading {
    let mut reading = Reading { sets: vec![vec![]], order: vec![] };
    for term in text.split('^') {
        if term == "EQ" {
            break;
        }
        if term.starts_with("ORDERBY") || term.starts_with("GROUPBY") {
            reading.order.push(term.to_owned());
            continue;
        }
        let (is_new_set, term) = term.strip_prefix("NQ").map_or((false, term), |rest| (true, rest));
        let (is_alternative, term) = term.strip_prefix("OR").map_or((false, term), |rest| (true, rest));
        if is_new_set {
            reading.sets.push(vec![]);
        }
        if drops(term, is_alternative) {
            continue;
        }
        let set = reading.sets.last_mut().unwrap();
        match set.last_mut() {
            Some(group) if is_alternative => group.push(term.to_owned()),
            _ => set.push(vec![term.to_owned()]),
        }
    }
    reading
}

/// What may be taken for the field of a condition: all before the first character that is in no field's name, and all
/// before the first `=`, `<` or `>`, if that could be a name to one who does not care for case.
pub(crate) fn fields_of(condition: &str) -> Vec<String> {
    let in_name = |character: char| {
        character.is_ascii_lowercase() || character.is_ascii_digit() || "_.".contains(character)
    };
    let end = condition.find(|character| !in_name(character)).unwrap_or(condition.len());
    let mut fields = vec![condition[..end].to_owned()];
    if let Some((before, _)) = condition.split_once(['=', '<', '>']) {
        let name = before.to_ascii_lowercase();
        if name.chars().all(in_name) {
            fields.push(name);
        }
    }
    fields
}

#[test]
fn the_reader_reads() {
    assert_eq!(decode("a%5eb+c%2B%zz%"), "a^b c+%zz%");
    let reading = read("a=1^ORb=2^c=3^NQd=4^ORDERBYe^EQ^f=5", |_, _| false);
    assert_eq!(reading.sets, [vec![vec!["a=1", "b=2"], vec!["c=3"]], vec![vec!["d=4"]]]);
    assert_eq!(reading.order, ["ORDERBYe"]);
    let careless = read("a=1^b=2^ORc=3", |term, _| term == "b=2");
    assert_eq!(careless.sets, [[["a=1", "c=3"]]]);
    assert_eq!(fields_of("origINal=x"), ["orig", "original"]);
    assert_eq!(fields_of("a.b!=x"), ["a.b"]);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let query = "a=1%26b=2;c=3%2523";
    assert_eq!(Splitting::Plain.parameters(query), [pair("a", "1&b=2;c=3%23")]);
    assert_eq!(Splitting::SemicolonsToo.parameters(query), [pair("a", "1&b=2"), pair("c", "3%23")]);
    let three = [pair("a", "1"), pair("b", "2"), pair("c", "3%23")];
    assert_eq!(Splitting::DecodeFirst.parameters(query), three);
    assert_eq!(Splitting::DecodeTwice.parameters(query), [pair("a", "1&b=2;c=3#")]);
}
