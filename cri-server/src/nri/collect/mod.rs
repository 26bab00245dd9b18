//! What the plugins want together: their answers merged in their order, pure functions on messages.
//!
//! Invariant: no field is set by two plugins. A plugin may take away what an earlier one set, and then set it itself.

mod adjustment;
mod owners;
mod resources;
mod update;

pub use adjustment::Creation;
pub use owners::Owners;
pub use resources::overlay;
pub use update::Updates;

/// The key of an entry, and whether the plugin wants it gone: those keys begin with "-".
pub fn removal(key: &str) -> (&str, bool) {
    match key.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (key, false),
    }
}

/// The name of a variable of "NAME=value".
pub fn variable(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

#[cfg(test)]
mod tests;
