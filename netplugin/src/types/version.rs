//! CNI specification versions: which are spoken, and what each of them brought.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A version of the CNI specification that this crate reads and writes, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum CniVersion {
    #[serde(rename = "0.3.1")]
    V0_3_1,
    #[serde(rename = "0.4.0")]
    V0_4_0,
    #[serde(rename = "1.0.0")]
    V1_0_0,
    #[default]
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl CniVersion {
    /// Every version spoken, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    pub const LATEST: Self = Self::V1_1_0;

    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version with exactly this text, if it is spoken.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.as_str() == text)
    }

    /// CHECK came with 0.4.0.
    pub fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }

    /// GC and STATUS came with 1.1.0.
    pub fn has_gc_and_status(self) -> bool {
        self >= Self::V1_1_0
    }

    /// Before 1.0.0 each address of a result names its IP version.
    pub(crate) fn names_ip_version(self) -> bool {
        self < Self::V1_0_0
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The answer to VERSION.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionInfo {
    /// Free text: a foreign plugin may speak versions that this crate does not.
    pub cni_version: String,
    #[serde(default)]
    pub supported_versions: Vec<String>,
}

impl VersionInfo {
    /// What this plugin answers to a request made in `cni_version`.
    pub fn of_this_plugin(cni_version: &str) -> Self {
        Self {
            cni_version: cni_version.to_owned(),
            supported_versions: CniVersion::ALL.iter().map(|v| v.as_str().to_owned()).collect(),
        }
    }
}
