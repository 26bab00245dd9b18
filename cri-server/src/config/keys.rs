//! Finds keys that the configuration does not have, and the nearest ones that it has.
//!
//! The known keys are those of the default configuration, written out.

use super::Config;
use crate::runtime::microvm;

/// The keys of a handler; those without a default are not in the default configuration.
const HANDLER_KEYS: [&str; 6] = ["type", "path", "isolation", "binary", "log_max_line", "options"];
/// The handler's table of machines.
const MACHINES: &str = "vm";

/// A key that means nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unknown {
    /// With its tables, as `image.registry_config`.
    pub key: String,
    pub nearest: Option<String>,
}

/// All unknown keys of a file.
pub(super) fn unknown(table: &toml::Table) -> Vec<Unknown> {
    let known = toml::Table::try_from(Config::default()).unwrap_or_default();
    let mut handler = table_of(&HANDLER_KEYS);
    handler.insert(MACHINES.to_owned(), toml::Value::Table(table_of(&microvm::KEYS)));
    let mut found = Vec::new();
    compare(table, &known, "", &mut found, &mut |key, value, found| {
        if key != "runtimes" {
            return false;
        }
        for (name, handler_value) in value.as_table().into_iter().flatten() {
            if let Some(table) = handler_value.as_table() {
                // A foreign shim's options are the shim's own.
                let prefix = format!("runtimes.{name}.");
                compare(table, &handler, &prefix, found, &mut |key, _, _| key.ends_with(".options"));
            }
        }
        true
    });
    found
}

fn table_of(keys: &[&str]) -> toml::Table {
    keys.iter().map(|key| ((*key).to_owned(), toml::Value::Boolean(true))).collect()
}

/// Answers whether it took the key upon itself.
type Special<'a> = dyn FnMut(&str, &toml::Value, &mut Vec<Unknown>) -> bool + 'a;

fn compare(
    table: &toml::Table,
    known: &toml::Table,
    prefix: &str,
    found: &mut Vec<Unknown>,
    special: &mut Special<'_>,
) {
    for (key, value) in table {
        let path = format!("{prefix}{key}");
        if special(&path, value, found) {
            continue;
        }
        match (value, known.get(key)) {
            (_, None) => {
                let nearest = nearest(key, known.keys()).map(|n| format!("{prefix}{n}"));
                found.push(Unknown { key: path, nearest });
            }
            (toml::Value::Table(inner), Some(toml::Value::Table(known))) => {
                compare(inner, known, &format!("{path}."), found, special);
            }
            (_, Some(_)) => {}
        }
    }
}

/// The known key that is fewest edits away, when it is near enough to be meant.
fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    known
        .map(|candidate| (distance(key, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(key.len()) / 2)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The edit distance of Levenshtein, over bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substitution = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
