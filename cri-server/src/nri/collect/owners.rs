//! Which plugin set which field of which container.

use std::collections::BTreeMap;

use cofferdam_proto::nri::{self, Field};

use crate::nri::error::NriError;

/// A field's owner, or who cleared it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    Set(String),
    Cleared(String),
}

/// The owners of all fields; the key is empty where a field has no entries.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    fields: BTreeMap<(String, i32, String), Owner>,
}

impl Owners {
    /// Makes `plugin` the owner.
    ///
    /// # Errors
    /// When another plugin is it, or has cleared the field.
    pub fn claim(&mut self, container: &str, field: Field, key: &str, plugin: &str) -> Result<(), NriError> {
        let place = (container.to_owned(), field as i32, key.to_owned());
        let other = match self.fields.get(&place) {
            Some(Owner::Set(other)) => Some(other),
            // Who cleared a field may set it.
            Some(Owner::Cleared(other)) if other != plugin => Some(other),
            Some(Owner::Cleared(_)) | None => None,
        };
        if let Some(other) = other {
            let field = if key.is_empty() {
                field.as_str_name().to_owned()
            } else {
                format!("{} {key:?}", field.as_str_name())
            };
            return Err(NriError::Conflict { one: other.clone(), other: plugin.to_owned(), field });
        }
        self.fields.insert(place, Owner::Set(plugin.to_owned()));
        Ok(())
    }

    /// Takes the field away from the plugin that has it; one that no plugin has set stays nobody's.
    pub fn clear(&mut self, container: &str, field: Field, key: &str, plugin: &str) {
        if let Some(owner) = self.fields.get_mut(&(container.to_owned(), field as i32, key.to_owned())) {
            *owner = Owner::Cleared(plugin.to_owned());
        }
    }

    /// Adds `plugin` to the owners of a field that several may share.
    pub fn join(&mut self, container: &str, field: Field, plugin: &str) {
        let place = (container.to_owned(), field as i32, String::new());
        let owner = match self.fields.get(&place) {
            Some(Owner::Set(others)) => format!("{others},{plugin}"),
            Some(Owner::Cleared(_)) | None => plugin.to_owned(),
        };
        self.fields.insert(place, Owner::Set(owner));
    }

    /// The owner of a field, where it has one.
    #[must_use]
    pub fn of(&self, container: &str, field: Field, key: &str) -> Option<&str> {
        match self.fields.get(&(container.to_owned(), field as i32, key.to_owned()))? {
            Owner::Set(plugin) => Some(plugin),
            Owner::Cleared(_) => None,
        }
    }

    /// The owners of a field's entries.
    pub fn of_entries(&self, container: &str, field: Field) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().filter_map(move |((id, number, key), owner)| match owner {
            Owner::Set(plugin) if id == container && *number == field as i32 => {
                Some((key.as_str(), plugin.as_str()))
            }
            Owner::Set(_) | Owner::Cleared(_) => None,
        })
    }

    /// As validators are told; one who cleared a field has a "-" before its name.
    #[must_use]
    pub fn to_wire(&self) -> nri::OwningPlugins {
        let mut out = nri::OwningPlugins::default();
        for ((container, field, key), owner) in &self.fields {
            let plugin = match owner {
                Owner::Set(plugin) => plugin.clone(),
                Owner::Cleared(plugin) => format!("-{plugin}"),
            };
            let fields = out.owners.entry(container.clone()).or_default();
            if key.is_empty() {
                fields.simple.insert(*field, plugin);
            } else {
                fields.compound.entry(*field).or_default().owners.insert(key.clone(), plugin);
            }
        }
        out
    }
}
