//! The edge of the CRI: decodes requests, calls the domain, encodes answers.

pub mod stats;
