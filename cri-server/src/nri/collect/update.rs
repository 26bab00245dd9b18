//! The changes to containers that exist, and those that have to go.

use cofferdam_proto::nri;

use super::resources::{self, Claim};
use super::Owners;
use crate::nri::error::NriError;

/// What plugins want changed in answer to one request.
#[derive(Debug, Default)]
pub struct Updates {
    /// One for each container, in the order in which plugins named them.
    pub updates: Vec<nri::ContainerUpdate>,
    pub evictions: Vec<nri::ContainerEviction>,
}

impl Updates {
    /// Adds what `plugin` wants.
    ///
    /// # Errors
    /// When another plugin wants the same field of the same container, unless its failure is to be ignored.
    pub fn add(
        &mut self,
        owners: &mut Owners,
        plugin: &str,
        updates: Vec<nri::ContainerUpdate>,
        evictions: Vec<nri::ContainerEviction>,
    ) -> Result<(), NriError> {
        for update in updates {
            let ignore = update.ignore_failure;
            match self.merge(owners, plugin, update) {
                Err(error) if ignore => {
                    tracing::warn!(plugin, error = %error, "an update is ignored, as its plugin allows");
                }
                merged => merged?,
            }
        }
        self.evictions.extend(evictions);
        Ok(())
    }

    fn merge(
        &mut self,
        owners: &mut Owners,
        plugin: &str,
        update: nri::ContainerUpdate,
    ) -> Result<(), NriError> {
        let known = self.updates.iter().position(|known| known.container_id == update.container_id);
        let mut merged = match known {
            Some(at) => self.updates[at].clone(),
            None => nri::ContainerUpdate {
                container_id: update.container_id.clone(),
                linux: Some(nri::LinuxContainerUpdate::default()),
                ignore_failure: true,
            },
        };
        merged.ignore_failure &= update.ignore_failure;
        if let Some(wanted) = update.linux.as_ref().and_then(|linux| linux.resources.as_ref()) {
            let linux = merged.linux.get_or_insert_default();
            // On a copy: an update that fails leaves no owner behind.
            let mut claimed = owners.clone();
            let mut claim = Claim { owners: &mut claimed, container: &update.container_id, plugin };
            resources::merge(&mut claim, wanted, linux.resources.get_or_insert_default())?;
            *owners = claimed;
        }
        match known {
            Some(at) => self.updates[at] = merged,
            None => self.updates.push(merged),
        }
        Ok(())
    }

    /// What is wanted so far of one container.
    #[must_use]
    pub fn of(&self, container: &str) -> Option<nri::LinuxResources> {
        let update = self.updates.iter().find(|update| update.container_id == container)?;
        update.linux.as_ref()?.resources.clone()
    }

    /// Takes out the update of one container.
    pub fn take(&mut self, container: &str) -> Option<nri::ContainerUpdate> {
        let at = self.updates.iter().position(|update| update.container_id == container)?;
        Some(self.updates.remove(at))
    }
}
