//! Changes a container's limits while it runs.
use crate::error::ShimError;
use super::CgroupPaths;
pub fn apply(_paths: &CgroupPaths, _json: &[u8]) -> Result<(), ShimError> { Err(ShimError::Unsupported("update")) }
