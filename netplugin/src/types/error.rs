//! The error object of CNI and its codes: the one place where numbers are given to failures.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What went wrong, as CNI numbers it. Codes from 100 on are this plugin's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ErrorCode {
    IncompatibleVersion = 1,
    UnsupportedField = 2,
    /// The container is unknown: there is nothing to clean up.
    UnknownContainer = 3,
    InvalidEnvironment = 4,
    Io = 5,
    Decode = 6,
    InvalidConfig = 7,
    TryAgainLater = 11,
    /// STATUS: ADD would fail.
    NotAvailable = 50,
    /// STATUS: ADD would fail and existing attachments may suffer.
    LimitedConnectivity = 51,
    /// The kernel refused a netlink request.
    Kernel = 100,
    /// Every address of a range is taken, or the requested one is.
    NoAddress = 101,
    /// Another container holds the host port.
    HostPortTaken = 102,
    /// ADD for an interface that is already attached.
    AlreadyAttached = 103,
    /// CHECK found the attachment changed.
    CheckFailed = 104,
    /// The kernel lacks what the configuration needs.
    Unsupported = 105,
}

/// The error object that a plugin prints; also what this library's calls return.
///
/// `code` is a number, not an [`ErrorCode`], since foreign plugins have codes of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniError {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cni_version: String,
    pub code: u32,
    #[serde(default)]
    pub msg: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl CniError {
    pub fn new(code: ErrorCode, msg: impl Into<String>) -> Self {
        Self { cni_version: String::new(), code: code as u32, msg: msg.into(), details: String::new() }
    }

    /// The message is the error's own text, the details are the chain of its causes.
    pub fn from_error(code: ErrorCode, error: &dyn std::error::Error) -> Self {
        let mut details = String::new();
        let mut cause = error.source();
        while let Some(error) = cause {
            if !details.is_empty() {
                details.push_str(": ");
            }
            details.push_str(&error.to_string());
            cause = error.source();
        }
        Self { details, ..Self::new(code, error.to_string()) }
    }

    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The same error as an answer to a request made in `version`.
    pub fn in_version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.cni_version);
        self
    }

    pub fn is(&self, code: ErrorCode) -> bool {
        self.code == code as u32
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (CNI code {})", self.msg, self.code)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

impl std::error::Error for CniError {}
