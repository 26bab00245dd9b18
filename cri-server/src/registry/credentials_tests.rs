//! Tables for credentials.
