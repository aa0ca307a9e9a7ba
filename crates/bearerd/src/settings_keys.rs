//! The names of all settings, read from the documented settings file, so that an unknown one can be answered with
//! the nearest known one.

use std::collections::BTreeSet;

/// `config/bearerd.toml`: every setting, with its default where it has one.
pub(crate) const REFERENCE: &str = include_str!("../../../config/bearerd.toml");

/// Every setting's full name, such as `proxy.tls.key_file`.
pub(crate) fn known() -> BTreeSet<String> {
    let mut section = String::new();
    let mut keys = BTreeSet::new();
    for line in REFERENCE.lines() {
        let line = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if let Some((name, _)) = line.split_once(" = ") {
            let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            if is_name && !name.is_empty() {
                keys.insert(if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") });
            }
        }
    }
    keys
}

/// The known name that `unknown` was most likely meant to be.
pub(crate) fn nearest(unknown: &str) -> String {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let distance = |known: &String| {
        let whole = strsim::damerau_levenshtein(known, unknown);
        let part = strsim::damerau_levenshtein(&last(known), &last(unknown)) + 2; // right name, wrong section
        whole.min(part)
    };
    known().into_iter().min_by_key(distance).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_file_names_every_section() {
        let known = known();
        for name in
            ["master_key", "store", "proxy.listen", "proxy.tls.key_file", "redis.password", "process.log"]
        {
            assert!(known.contains(name), "{name}");
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
        ] {
            assert_eq!(nearest(unknown), expected);
        }
    }
}
