//! Tables for hosts.
