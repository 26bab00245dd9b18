//! Runtime handlers: the names that pods ask for, and the shim and options behind each.
//! A [`Handler`] is complete: nothing below it reads configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use protobuf::well_known_types::any::Any;
use rustix::fs::{Access, access};
use serde::{Deserialize, Serialize};

use super::bootstrap::{Dialect, ShimKind};
use super::error::RuntimeError;
use super::microvm::MicroVm;
use super::options::{self, OwnOptions};

/// The type of our own shim.
pub const OWN_TYPE: &str = "io.containerd.cofferdam.v1";
/// The executable of our own shim.
pub const OWN_BINARY: &str = "containerd-shim-cofferdam-v1";
const RUNC_BINARY: &str = "containerd-shim-runc-v2";

/// `[runtimes.NAME]` of the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeConfig {
    /// `io.containerd.X.vN`, served by `containerd-shim-X-vN`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The shim's executable, instead of a search by type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// `""` for namespaces, `"vm"` for a microVM; own shim only.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub isolation: String,
    /// The machines of `isolation = "vm"`.
    #[serde(default, skip_serializing_if = "MicroVm::is_empty")]
    pub vm: MicroVm,
    /// An external OCI runtime; own and runc's shim only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<String>,
    /// Whether cgroups are made by systemd. No key of the file: it follows from `cgroup_driver`.
    #[serde(skip)]
    pub systemd_cgroup: bool,
    /// Whether SELinux labels are given. No key of the file: it follows from `selinux`.
    #[serde(skip)]
    pub selinux: bool,
    /// The longest line of a container's log before it is split; own shim only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_max_line: Option<u32>,
    /// Options of a foreign shim.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub options: toml::Table,
}

/// A handler that cannot be built from its configuration.
#[derive(Debug, thiserror::Error)]
#[error("runtimes.{name}: {reason}")]
pub struct HandlerError {
    /// The handler.
    pub name: String,
    /// What is wrong, in words.
    pub reason: String,
}

/// A pod asks for a handler that is not configured.
#[derive(Debug, thiserror::Error)]
#[error("runtime handler {name:?} is not configured; there are: {}", .known.join(", "))]
pub struct UnknownHandler {
    /// The name asked for.
    pub name: String,
    /// The names there are.
    pub known: Vec<String>,
}

/// One way of running containers.
#[derive(Debug)]
pub struct Handler {
    /// The name pods ask for.
    pub name: String,
    /// Whose shim it is.
    pub kind: ShimKind,
    /// `""` or `"vm"`.
    pub isolation: String,
    /// What the shim is told in `start` and Create.
    pub options: Option<Any>,
    /// Whether cgroups are made by systemd.
    pub systemd_cgroup: bool,
    /// Whether our own OCI runtime makes the containers: the shim's built-in one.
    pub built_in_runtime: bool,
    /// The executable's path, or its name when it is searched.
    binary: PathBuf,
    search: Vec<PathBuf>,
    /// Set by the first start that succeeded.
    dialect: OnceLock<Dialect>,
}

impl Handler {
    /// Builds a handler; `own_exe` is the daemon's executable, beside which shims are looked for first.
    ///
    /// # Errors
    /// When the configuration contradicts itself, with the reason.
    pub fn new(name: &str, config: &RuntimeConfig, own_exe: &Path) -> Result<Self, HandlerError> {
        let fail = |reason: String| HandlerError { name: name.to_owned(), reason };
        let binary = shim_binary(config).map_err(fail)?;
        let kind = shim_kind(config, &binary);
        check_keys(config, kind).map_err(fail)?;
        let options = handler_options(config, kind).map_err(|reason| fail(format!("options: {reason}")))?;
        let mut search: Vec<PathBuf> = own_exe.parent().map(Path::to_owned).into_iter().collect();
        search.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
        Ok(Self {
            name: name.to_owned(),
            kind,
            isolation: config.isolation.clone(),
            options,
            systemd_cgroup: config.systemd_cgroup,
            built_in_runtime: kind == ShimKind::Own && config.binary.is_none(),
            binary,
            search,
            dialect: OnceLock::new(),
        })
    }

    /// Where the shim's executable is now.
    ///
    /// # Errors
    /// When it is nowhere; the text is fit for the node's status.
    pub fn check(&self) -> Result<PathBuf, RuntimeError> {
        if self.binary.is_absolute() {
            return if is_executable(&self.binary) {
                Ok(self.binary.clone())
            } else {
                Err(self.missing(&[]))
            };
        }
        let found =
            self.search.iter().map(|folder| folder.join(&self.binary)).find(|path| is_executable(path));
        found.ok_or_else(|| self.missing(&self.search))
    }

    /// Whether its shim is known to show layers and volumes with mapped owners.
    #[must_use]
    pub fn maps_owners(&self) -> bool {
        self.kind == ShimKind::Own && self.isolation.is_empty()
    }

    fn missing(&self, searched: &[PathBuf]) -> RuntimeError {
        let searched = match searched {
            [] => vec!["that place".to_owned()],
            folders => folders.iter().map(|folder| folder.display().to_string()).collect(),
        };
        RuntimeError::ShimMissing { handler: self.name.clone(), binary: self.binary.clone(), searched }
    }

    /// The input that the shim is known to understand; ours needs no trial.
    pub(super) fn dialect(&self) -> Option<Dialect> {
        if self.kind == ShimKind::Own { Some(Dialect::Bootstrap) } else { self.dialect.get().copied() }
    }

    pub(super) fn remember(&self, dialect: Dialect) {
        // Two first starts beside each other learn the same.
        let _ = self.dialect.set(dialect);
    }
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && access(path, Access::EXEC_OK).is_ok()
}

/// The path, or the name that a type stands for.
fn shim_binary(config: &RuntimeConfig) -> Result<PathBuf, String> {
    match (&config.path, &config.kind) {
        (Some(path), _) if path.is_absolute() => Ok(path.clone()),
        (Some(path), _) => Err(format!("path {} must be absolute", path.display())),
        (None, Some(kind)) => binary_of_type(kind)
            .ok_or_else(|| format!("type {kind:?} is not of the form io.containerd.NAME.vN")),
        (None, None) => Err("one of type and path is needed".to_owned()),
    }
}

/// `io.containerd.NAME.vN` is served by `containerd-shim-NAME-vN`.
fn binary_of_type(kind: &str) -> Option<PathBuf> {
    let parts: Vec<&str> = kind.split('.').collect();
    let well_formed = parts.len() >= 3
        && parts.iter().all(|part| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
    let [.., name, version] = parts.as_slice() else { return None };
    well_formed.then(|| PathBuf::from(format!("containerd-shim-{name}-{version}")))
}

fn shim_kind(config: &RuntimeConfig, binary: &Path) -> ShimKind {
    match (config.kind.as_deref(), binary.file_name().and_then(|name| name.to_str())) {
        (Some(OWN_TYPE), _) | (None, Some(OWN_BINARY)) => ShimKind::Own,
        (Some("io.containerd.runc.v2"), _) | (None, Some(RUNC_BINARY)) => ShimKind::Runc,
        _ => ShimKind::Foreign,
    }
}

/// Refuses keys that this kind of shim would silently ignore.
fn check_keys(config: &RuntimeConfig, kind: ShimKind) -> Result<(), String> {
    if !matches!(config.isolation.as_str(), "" | "vm") {
        return Err(format!("isolation {:?} must be \"\" or \"vm\"", config.isolation));
    }
    if config.isolation.is_empty() && !config.vm.is_empty() {
        return Err("vm belongs to isolation = \"vm\"".to_owned());
    }
    if config.log_max_line == Some(0) {
        return Err("log_max_line must be at least 1".to_owned());
    }
    if kind != ShimKind::Own && (!config.isolation.is_empty() || config.log_max_line.is_some()) {
        return Err(format!("isolation and log_max_line belong to type {OWN_TYPE:?}"));
    }
    if kind == ShimKind::Foreign && config.binary.is_some() {
        return Err("binary is unknown to this shim: set its own keys in options".to_owned());
    }
    if kind == ShimKind::Own && !config.options.is_empty() {
        return Err("options are for other shims: set isolation, binary beside type".to_owned());
    }
    Ok(())
}

fn handler_options(config: &RuntimeConfig, kind: ShimKind) -> Result<Option<Any>, String> {
    match kind {
        ShimKind::Own => OwnOptions {
            isolation: config.isolation.clone(),
            vm: config.vm.clone(),
            binary: config.binary.clone().unwrap_or_default(),
            systemd_cgroup: config.systemd_cgroup,
            selinux: config.selinux,
            log_max_line: config.log_max_line,
        }
        .into_any()
        .map(Some),
        ShimKind::Runc => {
            options::runc(&config.options, config.binary.as_deref(), config.systemd_cgroup).map(Some)
        }
        ShimKind::Foreign => options::generic(&config.options),
    }
}

/// All handlers of the node.
#[derive(Debug)]
pub struct HandlerTable {
    handlers: BTreeMap<String, Handler>,
    default: String,
}

impl HandlerTable {
    /// Builds every handler; a shim that is not installed is no error here, see [`Handler::check`].
    ///
    /// # Errors
    /// All contradictions at once, so that an operator mends them in one go.
    pub fn from_config(
        runtimes: &BTreeMap<String, RuntimeConfig>,
        default: &str,
        own_exe: &Path,
    ) -> Result<Self, Vec<HandlerError>> {
        let mut handlers = BTreeMap::new();
        let mut errors = Vec::new();
        for (name, config) in runtimes {
            match Handler::new(name, config, own_exe) {
                Ok(handler) => drop(handlers.insert(name.clone(), handler)),
                Err(error) => errors.push(error),
            }
        }
        if !runtimes.contains_key(default) {
            let reason = "default_runtime names it, but it is not configured".to_owned();
            errors.push(HandlerError { name: default.to_owned(), reason });
        }
        if errors.is_empty() { Ok(Self { handlers, default: default.to_owned() }) } else { Err(errors) }
    }

    /// The handlers of a node that configures none: our shim, without and with a microVM.
    #[must_use]
    pub fn built_in() -> BTreeMap<String, RuntimeConfig> {
        let own = RuntimeConfig { kind: Some(OWN_TYPE.to_owned()), ..Default::default() };
        let vm = RuntimeConfig { isolation: "vm".to_owned(), ..own.clone() };
        BTreeMap::from([("cofferdam".to_owned(), own), ("vm".to_owned(), vm)])
    }

    /// The handler of a pod; the empty name is the default.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn handler(&self, name: &str) -> Result<&Handler, UnknownHandler> {
        let key = if name.is_empty() { &self.default } else { name };
        self.handlers.get(key).ok_or_else(|| UnknownHandler {
            name: name.to_owned(),
            known: self.handlers.keys().cloned().collect(),
        })
    }

    /// The name of the default handler.
    #[must_use]
    pub fn default_name(&self) -> &str {
        &self.default
    }

    /// All handlers, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Handler> {
        self.handlers.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> RuntimeConfig {
        toml::from_str(text).unwrap()
    }

    fn refused(text: &str) -> String {
        Handler::new("x", &config(text), Path::new("/bin/cofferdam")).unwrap_err().to_string()
    }

    #[test]
    fn types_name_binaries() {
        let table = [
            (OWN_TYPE, Some(OWN_BINARY)),
            ("io.containerd.runc.v2", Some(RUNC_BINARY)),
            ("io.containerd.kata-qemu.v2", Some("containerd-shim-kata-qemu-v2")),
            ("runc", None),
            ("io.containerd..v1", None),
            ("io.containerd.../x.v1", None),
        ];
        for (kind, binary) in table {
            assert_eq!(binary_of_type(kind), binary.map(PathBuf::from), "{kind}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(refused("").contains("one of type and path"));
        assert!(refused("path = \"shim\"").contains("absolute"));
        assert!(refused("type = \"io.containerd.cofferdam.v1\"\nisolation = \"jail\"").contains("isolation"));
        assert!(refused("type = \"io.containerd.runc.v2\"\nisolation = \"vm\"").contains("belong to"));
        assert!(refused("type = \"io.containerd.kata.v2\"\nbinary = \"/bin/x\"").contains("options"));
        assert!(refused("type = \"io.containerd.cofferdam.v1\"\n[options]\na = 1").contains("options"));
        assert!(refused("type = \"io.containerd.runc.v2\"\n[options]\nBinary = 1").contains("Binary"));
        for unknown in ["typ = \"x\"", "systemd_cgroup = true"] {
            assert!(toml::from_str::<RuntimeConfig>(unknown).is_err(), "{unknown}");
        }
    }

    #[test]
    fn own_options_are_json_in_generic_options() {
        let text = "type = \"io.containerd.cofferdam.v1\"\nisolation = \"vm\"\nbinary = \"crun\"";
        let handler = Handler::new("x", &config(text), Path::new("/bin/cofferdam")).unwrap();
        let any = handler.options.unwrap();
        assert_eq!(any.type_url, options::GENERIC_TYPE);
        let generic = <options::GenericOptions as prost::Message>::decode(any.value.as_slice()).unwrap();
        let own: OwnOptions = serde_json::from_slice(&generic.config_body).unwrap();
        assert_eq!((own.isolation.as_str(), own.binary.as_str()), ("vm", "crun"));
    }

    #[test]
    fn table_knows_its_names_and_reports_every_error() {
        let exe = Path::new("/bin/cofferdam");
        let table = HandlerTable::from_config(&HandlerTable::built_in(), "cofferdam", exe).unwrap();
        assert_eq!(table.handler("").unwrap().name, "cofferdam");
        assert_eq!(table.handler("vm").unwrap().isolation, "vm");
        assert_eq!(table.handler("nope").unwrap_err().known, ["cofferdam", "vm"]);
        let broken = BTreeMap::from([
            ("a".to_owned(), RuntimeConfig::default()),
            ("b".to_owned(), RuntimeConfig::default()),
        ]);
        assert_eq!(HandlerTable::from_config(&broken, "c", exe).unwrap_err().len(), 3);
    }

    #[test]
    fn shim_is_found_beside_the_daemon_and_missed_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let exe = folder.path().join("cofferdam");
        let missing = Handler::new("x", &config("type = \"io.containerd.zz-none.v1\""), &exe).unwrap();
        let text = missing.check().unwrap_err().to_string();
        assert!(
            text.contains("containerd-shim-zz-none-v1") && text.contains(folder.path().to_str().unwrap()),
            "{text}"
        );
        let shim = folder.path().join("containerd-shim-zz-none-v1");
        std::fs::write(&shim, "").unwrap();
        assert!(missing.check().is_err(), "not executable");
        std::fs::set_permissions(&shim, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(missing.check().unwrap(), shim);
    }
}
