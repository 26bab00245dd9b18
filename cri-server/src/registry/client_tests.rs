//! Tables for client.
