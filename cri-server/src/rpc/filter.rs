//! What the CRI's filters select: labels must all be there with their values.

use std::collections::HashMap;

/// Whether `labels` has everything that `selector` asks for.
pub(super) fn labels_match(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether `id` is the wanted one: an empty wish wants all, a prefix those that begin with it.
pub(super) fn id_matches(wanted: &str, id: &str) -> bool {
    id.starts_with(wanted)
}
