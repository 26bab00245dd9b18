//! Objects by identifier, found by the whole identifier or by a prefix that only one of them has.
//!
//! Readers hold the lock for a look-up or for copying the handles, never while they wait.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

/// Why an identifier names nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error("no {kind} {id:?}")]
    NotFound { kind: &'static str, id: String },
    #[error("{id:?} is the beginning of more than one {kind}'s id")]
    Ambiguous { kind: &'static str, id: String },
}

/// The index of one kind of objects.
#[derive(Debug)]
pub struct Index<T> {
    kind: &'static str,
    all: RwLock<BTreeMap<String, Arc<T>>>,
}

impl<T> Index<T> {
    /// An empty index; `kind` is the word for its objects in errors.
    #[must_use]
    pub fn new(kind: &'static str) -> Self {
        Self { kind, all: RwLock::default() }
    }

    /// Adds an object, or replaces the one with this identifier.
    pub fn insert(&self, id: &str, object: Arc<T>) {
        self.all.write().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), object);
    }

    /// Takes an object out; an absent one is no error.
    pub fn remove(&self, id: &str) {
        self.all.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// All objects, in the order of their identifiers.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<T>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The object whose identifier is `id` or alone begins with it.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn find(&self, id: &str) -> Result<Arc<T>, LookupError> {
        let missing = || LookupError::NotFound { kind: self.kind, id: id.to_owned() };
        if id.is_empty() {
            return Err(missing());
        }
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let from = (Bound::Included(id), Bound::Unbounded);
        let mut matches = all.range::<str, _>(from).take_while(|(key, _)| key.starts_with(id));
        let (key, object) = matches.next().ok_or_else(missing)?;
        if key.len() != id.len() && matches.next().is_some() {
            return Err(LookupError::Ambiguous { kind: self.kind, id: id.to_owned() });
        }
        Ok(Arc::clone(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_finds_only_what_it_names_alone() {
        let index = Index::new("pod");
        for id in ["aa1", "aa2", "b", "bc"] {
            index.insert(id, Arc::new(id));
        }
        assert_eq!(*index.find("aa1").unwrap(), "aa1");
        assert_eq!(*index.find("b").unwrap(), "b");
        assert_eq!(*index.find("bc").unwrap(), "bc");
        assert!(matches!(index.find("aa"), Err(LookupError::Ambiguous { .. })));
        for id in ["", "c", "aa3"] {
            assert!(matches!(index.find(id), Err(LookupError::NotFound { .. })), "{id}");
        }
    }
}
