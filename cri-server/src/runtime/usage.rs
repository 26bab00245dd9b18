//! What a shim tells of a task's usage, for tasks whose processes are in no cgroup of the node.

use std::time::Duration;

use containerd_shim_protos::api;
use protobuf::well_known_types::any::Any;

use super::error::RuntimeError;
use super::shim::Shim;

impl Shim {
    /// The task's usage in containerd's messages, those of cgroup v1 or v2; nothing where the shim counts none.
    ///
    /// # Errors
    /// [`RuntimeError`] as the shim says.
    pub async fn usage_within(&self, deadline: Duration) -> Result<Option<Any>, RuntimeError> {
        let request = api::StatsRequest { id: self.id().to_owned(), ..Default::default() };
        let answer: api::StatsResponse = self.call("Stats", request, deadline).await?;
        Ok(answer.stats.into_option())
    }
}
