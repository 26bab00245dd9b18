//! The options of a runtime handler, as they arrive in `CreateTaskRequest.options`.
//!
//! The daemon sends `runtimeoptions.v1.Options` with a JSON body; containerd's own runc options are understood as far
//! as they have a meaning here. An unknown key is an error: a setting that is silently ignored is worse than none.

use std::fs;
use std::path::PathBuf;

use cofferdam_vm::Isolation;
use cofferdam_vm::config::VmConfig;
use protobuf::CodedInputStream;
use protobuf::well_known_types::any::Any;
use serde::{Deserialize, Serialize};

use crate::error::ShimError;

pub const DEFAULT_LOG_MAX_LINE: usize = 16384;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// `""` or `"vm"`.
    pub isolation: String,
    /// An external OCI runtime in place of the built-in one.
    pub binary: Option<PathBuf>,
    pub systemd_cgroup: bool,
    /// Whether the built-in runtime gives processes SELinux labels, or refuses them.
    pub selinux: bool,
    /// The machines of `isolation = "vm"`.
    pub vm: VmConfig,
    /// Longest text in one record of the container's log, in bytes.
    pub log_max_line: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            isolation: String::new(),
            binary: None,
            systemd_cgroup: false,
            selinux: false,
            vm: VmConfig::default(),
            log_max_line: DEFAULT_LOG_MAX_LINE,
        }
    }
}

impl Options {
    pub fn from_any(any: Option<&Any>) -> Result<Self, ShimError> {
        let Some(any) = any else { return Ok(Options::default()) };
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        let options = match name {
            "" if any.value.is_empty() => Options::default(),
            "runtimeoptions.v1.Options" => Self::from_runtime_options(&any.value)?,
            "containerd.runc.v1.Options" | "runc.v1.Options" => Self::from_runc_options(&any.value)?,
            other => {
                return Err(ShimError::Invalid(format!("task options of type {other:?} are not understood")));
            }
        };
        options.isolation()?;
        if options.log_max_line == 0 {
            return Err(ShimError::Invalid("log_max_line must be at least 1".into()));
        }
        Ok(options)
    }

    pub fn isolation(&self) -> Result<Isolation, ShimError> {
        Ok(self.isolation.parse()?)
    }

    fn from_runtime_options(bytes: &[u8]) -> Result<Self, ShimError> {
        let (mut path, mut body) = (String::new(), Vec::new());
        for (number, value) in fields(bytes)? {
            match (number, value) {
                (2, Field::Bytes(b)) => path = String::from_utf8_lossy(&b).into_owned(),
                (3, Field::Bytes(b)) => body = b,
                _ => {}
            }
        }
        if body.is_empty() && !path.is_empty() {
            body = fs::read(&path).map_err(ShimError::path("read the options file", path))?;
        }
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Options::default());
        }
        serde_json::from_slice(&body).map_err(|e| ShimError::Invalid(format!("task options: {e}")))
    }

    fn from_runc_options(bytes: &[u8]) -> Result<Self, ShimError> {
        let mut options = Options::default();
        for (number, value) in fields(bytes)? {
            match (number, value) {
                (6, Field::Bytes(b)) if !b.is_empty() => {
                    options.binary = Some(PathBuf::from(String::from_utf8_lossy(&b).into_owned()));
                }
                (9, Field::Number(n)) => options.systemd_cgroup = n != 0,
                _ => {}
            }
        }
        Ok(options)
    }
}

enum Field {
    Bytes(Vec<u8>),
    Number(u64),
}

/// The fields of a small protobuf message whose generated type this binary does not carry.
fn fields(bytes: &[u8]) -> Result<Vec<(u32, Field)>, ShimError> {
    let malformed = |e: protobuf::Error| ShimError::Invalid(format!("task options: {e}"));
    let mut input = CodedInputStream::from_bytes(bytes);
    let mut found = Vec::new();
    while let Some(tag) = input.read_raw_tag_or_eof().map_err(malformed)? {
        let field = match tag & 7 {
            0 => Field::Number(input.read_raw_varint64().map_err(malformed)?),
            2 => Field::Bytes(input.read_bytes().map_err(malformed)?),
            kind => {
                return Err(ShimError::Invalid(format!("task options: wire type {kind} is not expected")));
            }
        };
        found.push((tag >> 3, field));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime_options(json: &str) -> Any {
        let mut value = vec![0x1a, u8::try_from(json.len()).unwrap()];
        value.extend_from_slice(json.as_bytes());
        Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Any::default() }
    }

    #[test]
    fn absent_options_are_the_defaults() {
        assert_eq!(Options::from_any(None).unwrap(), Options::default());
        assert_eq!(Options::from_any(Some(&Any::default())).unwrap(), Options::default());
    }

    #[test]
    fn json_keys_are_read_and_unknown_ones_refused() {
        let any = runtime_options(r#"{"binary":"/usr/bin/crun","log_max_line":99}"#);
        let options = Options::from_any(Some(&any)).unwrap();
        assert_eq!((options.binary, options.log_max_line), (Some("/usr/bin/crun".into()), 99));
        let error = Options::from_any(Some(&runtime_options(r#"{"binry":"x"}"#))).unwrap_err();
        assert!(error.to_string().contains("binry"), "{error}");
    }

    #[test]
    fn a_virtual_machine_has_its_own_keys_and_other_isolations_are_refused() {
        let any = runtime_options(r#"{"isolation":"vm","vm":{"memory":99}}"#);
        let options = Options::from_any(Some(&any)).unwrap();
        assert_eq!((options.isolation().unwrap(), options.vm.memory), (Isolation::Vm, 99));
        let error = Options::from_any(Some(&runtime_options(r#"{"isolation":"kata"}"#))).unwrap_err();
        assert!(matches!(error, ShimError::Isolation(_)), "{error}");
    }

    #[test]
    fn runc_options_keep_their_meaning() {
        let value = vec![0x32, 4, b'c', b'r', b'u', b'n', 0x48, 1];
        let any = Any { type_url: "containerd.runc.v1.Options".into(), value, ..Any::default() };
        let options = Options::from_any(Some(&any)).unwrap();
        assert_eq!((options.binary, options.systemd_cgroup), (Some("crun".into()), true));
    }
}
