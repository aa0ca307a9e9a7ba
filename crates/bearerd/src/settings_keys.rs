//! The names of all settings, read from the documented settings file, so that an unknown one can be answered with
//! the nearest known one.

/// `config/bearerd.toml`: every setting, with its default where it has one.
pub(crate) const REFERENCE: &str = include_str!("../../../config/bearerd.toml");

/// Every setting's full name, such as `proxy.tls.key_file`, as the file has them in order.
pub(crate) fn known() -> Vec<String> {
    let mut section = String::new();
    let mut keys = Vec::new();
    for line in REFERENCE.lines() {
        let line = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if let Some((name, _)) = line.split_once(" = ") {
            let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            if is_name && !name.is_empty() {
                keys.push(if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") });
            }
        }
    }
    keys
}

/// Every section's full name, such as `proxy.tls`.
pub(crate) fn sections() -> Vec<String> {
    let known = known();
    let mut sections: Vec<String> = known
        .iter()
        .filter_map(|name| name.rsplit_once('.'))
        .map(|(section, _)| section.to_owned())
        .collect();
    sections.dedup();
    sections
}

/// The one of the `known` names that `unknown` was most likely meant to be: the one it is a slip of the hand away from,
/// else the one with most letter pairs in common, so that a wrong word beside a right one (`body_typo`) leads to the right
/// one. Of equals, the first in the file.
pub(crate) fn nearest(unknown: &str, known: Vec<String>) -> String {
    let edits = |name: &&String| strsim::damerau_levenshtein(name, unknown);
    if let Some(meant) = known.iter().min_by_key(edits).filter(|name| edits(name) <= SLIP_EDITS_MAX) {
        return meant.clone();
    }
    let by_likeness = |a: &String, b: &String| likeness(a, unknown).total_cmp(&likeness(b, unknown));
    known.into_iter().rev().max_by(by_likeness).unwrap_or_default()
}

/// 0 to 1: letter pairs that the names have in common, or, at a discount, the last parts of the names (right name, wrong
/// section).
fn likeness(known: &str, unknown: &str) -> f64 {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let part = 0.9 * strsim::sorensen_dice(&last(known), &last(unknown));
    strsim::sorensen_dice(known, unknown).max(part)
}

/// Letters left out, added, changed or swapped by mistake: more of them make another name.
const SLIP_EDITS_MAX: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_file_names_every_section() {
        let known = known();
        for name in
            ["master_key", "store", "proxy.listen", "proxy.tls.key_file", "redis.password", "process.log"]
        {
            assert!(known.iter().any(|known| known == name), "{name}");
        }
        assert!(known.iter().all(|name| !name.contains(' ')));
    }

    #[test]
    fn the_nearest_name_is_offered() {
        for (unknown, expected) in [
            ("proxy.lisen", "proxy.listen"),
            ("proxy.worker", "proxy.workers"),
            ("masterkey", "master_key"),
            ("confirm", "connect.confirm"),
            ("redis.uri", "redis.url"),
            ("proxy.body_typo", "proxy.body_idle_timeout_s"),
            ("proxy.table.body_typo", "proxy.table.body_bytes_max"),
            ("proxy.tabel.body_bytes_max", "proxy.table.body_bytes_max"),
            ("proxy.first_byte_timeout_s", "proxy.table.first_byte_timeout_s"),
            ("proxy.table_body_bytes_max", "proxy.table.body_bytes_max"),
            ("proxy_body_idle", "proxy.body_idle_timeout_s"), // BEARERD__PROXY_BODY_IDLE
            ("proxy.wrokers", "proxy.workers"),
        ] {
            assert_eq!(nearest(unknown, known()), expected);
        }
        for (unknown, expected) in
            [("proxi", "proxy"), ("proxy.tsl", "proxy.tls"), ("proxy.statistics", "proxy.stats")]
        {
            assert_eq!(nearest(unknown, sections()), expected);
        }
    }
}
