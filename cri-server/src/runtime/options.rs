//! A handler's options as the `Any` that its shim expects, in `start` and in Create.
//!
//! runc's shim has a typed message; our own and all others take `runtimeoptions.v1.Options`, whose body is JSON for
//! ours and TOML for the others, as operators know it from other runtimes' configuration files.

use containerd_shim_protos::shim::oci;
use prost::Message as _;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use serde::{Deserialize, Serialize};

use super::microvm::MicroVm;

/// Where the generic options live.
pub const GENERIC_TYPE: &str = "runtimeoptions.v1.Options";
/// Where the options of runc's shim live.
pub const RUNC_TYPE: &str = "containerd.runc.v1.Options";

/// `runtimeoptions.v1.Options`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GenericOptions {
    /// What the body is.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// A file that the shim reads.
    #[prost(string, tag = "2")]
    pub config_path: String,
    /// The options themselves.
    #[prost(bytes = "vec", tag = "3")]
    pub config_body: Vec<u8>,
}

impl GenericOptions {
    fn into_any(self) -> Any {
        Any { type_url: GENERIC_TYPE.to_owned(), value: self.encode_to_vec(), ..Default::default() }
    }
}

/// The options of our own shim, as JSON.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnOptions {
    /// `""` or `"vm"`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub isolation: String,
    /// The machines of `"vm"`.
    #[serde(default, skip_serializing_if = "MicroVm::is_empty")]
    pub vm: MicroVm,
    /// An external OCI runtime.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub binary: String,
    /// Whether cgroups are made by systemd.
    #[serde(default)]
    pub systemd_cgroup: bool,
    /// Whether the built-in runtime gives processes SELinux labels, or refuses them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub selinux: bool,
    /// The longest line of the log before it is split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_max_line: Option<u32>,
}

impl OwnOptions {
    pub(super) fn into_any(self) -> Result<Any, String> {
        let config_body = serde_json::to_vec(&self).map_err(|e| e.to_string())?;
        Ok(GenericOptions { config_body, ..Default::default() }.into_any())
    }
}

/// The keys that operators know from containerd's configuration.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
struct RuncTable {
    no_pivot_root: bool,
    no_new_keyring: bool,
    shim_cgroup: String,
    io_uid: u32,
    io_gid: u32,
    binary_name: String,
    root: String,
    systemd_cgroup: bool,
    criu_image_path: String,
    criu_work_path: String,
}

/// The message of runc's shim.
pub(super) fn runc(table: &toml::Table, binary: Option<&str>, systemd_cgroup: bool) -> Result<Any, String> {
    let table: RuncTable = toml::Value::Table(table.clone()).try_into().map_err(|e| e.to_string())?;
    let options = oci::Options {
        no_pivot_root: table.no_pivot_root,
        no_new_keyring: table.no_new_keyring,
        shim_cgroup: table.shim_cgroup,
        io_uid: table.io_uid,
        io_gid: table.io_gid,
        binary_name: binary.map_or(table.binary_name, str::to_owned),
        root: table.root,
        systemd_cgroup: table.systemd_cgroup || systemd_cgroup,
        criu_image_path: table.criu_image_path,
        criu_work_path: table.criu_work_path,
        ..Default::default()
    };
    let value = options.write_to_bytes().map_err(|e| e.to_string())?;
    Ok(Any { type_url: RUNC_TYPE.to_owned(), value, ..Default::default() })
}

/// The generic message: `TypeUrl` and `ConfigPath` are taken out; without a path the rest is the body, as TOML.
pub(super) fn generic(table: &toml::Table) -> Result<Option<Any>, String> {
    if table.is_empty() {
        return Ok(None);
    }
    let mut rest = table.clone();
    let mut text = |key: &str| match rest.remove(key) {
        None => Ok(String::new()),
        Some(toml::Value::String(text)) => Ok(text),
        Some(_) => Err(format!("{key} must be a string")),
    };
    let (type_url, config_path) = (text("TypeUrl")?, text("ConfigPath")?);
    let config_body = match (config_path.is_empty(), rest.is_empty()) {
        (_, true) => Vec::new(),
        (true, false) => toml::to_string(&rest).map_err(|e| e.to_string())?.into_bytes(),
        (false, false) => {
            return Err("ConfigPath stands alone: the shim reads its options from that file".to_owned());
        }
    };
    Ok(Some(GenericOptions { type_url, config_path, config_body }.into_any()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> toml::Table {
        text.parse().unwrap()
    }

    #[test]
    fn runc_options_merge_the_handler_keys() {
        let any = runc(&table("BinaryName = \"a\"\nIoUid = 7"), Some("/usr/bin/crun"), true).unwrap();
        let options = oci::Options::parse_from_bytes(&any.value).unwrap();
        assert_eq!(any.type_url, RUNC_TYPE);
        assert_eq!(
            (options.binary_name.as_str(), options.systemd_cgroup, options.io_uid),
            ("/usr/bin/crun", true, 7)
        );
        assert!(runc(&table("Binary = 1"), None, false).unwrap_err().contains("Binary"));
    }

    #[test]
    fn generic_options_take_a_path_or_a_body() {
        let decode = |any: Option<Any>| GenericOptions::decode(any.unwrap().value.as_slice()).unwrap();
        let path = decode(generic(&table("TypeUrl = \"t\"\nConfigPath = \"/etc/k.toml\"")).unwrap());
        assert_eq!((path.type_url.as_str(), path.config_path.as_str()), ("t", "/etc/k.toml"));
        let body = decode(generic(&table("debug = true")).unwrap());
        assert_eq!(body.config_body, b"debug = true\n");
        assert!(generic(&table("ConfigPath = \"/x\"\ndebug = true")).is_err());
        assert!(generic(&table("ConfigPath = 1")).is_err());
        assert_eq!(generic(&toml::Table::new()).unwrap(), None);
    }
}
