//! `log-writer`
use crate::error::ShimError;
pub fn main(_argv: &[String]) -> Result<(), ShimError> { Err(ShimError::Unsupported("log-writer")) }
