//! A vendor's file, JSON or YAML, as typed values.
//!
//! Invariant: a value of [`File`] has passed every check that needs no host; unknown fields are errors, as the specification
//! asks, and so are fields that are younger than the version which the file names.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;

use super::name::{check_device, check_kind};

/// The versions there are, oldest first.
const VERSIONS: [&str; 8] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// A file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct File {
    cdi_version: String,
    pub kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    pub devices: Vec<Device>,
    /// Made once for a container that has any of the devices.
    #[serde(default)]
    pub container_edits: Edits,
}

/// One device.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    pub name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    pub container_edits: Edits,
}

/// What is changed in a container's spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Edits {
    pub env: Vec<String>,
    pub device_nodes: Vec<DeviceNode>,
    pub net_devices: Vec<serde_json::Value>,
    pub hooks: Vec<Hook>,
    pub mounts: Vec<Mount>,
    pub intel_rdt: Option<serde_json::Value>,
    pub additional_gids: Vec<u32>,
}

/// A device node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeviceNode {
    pub path: String,
    pub host_path: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub major: i64,
    pub minor: i64,
    pub file_mode: Option<u32>,
    pub permissions: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// A mount.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mount {
    pub host_path: String,
    pub container_path: String,
    pub options: Vec<String>,
    #[serde(rename = "type")]
    pub kind: String,
}

/// A hook.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hook {
    pub hook_name: String,
    pub path: String,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub timeout: Option<i64>,
}

/// Reads a file's bytes.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse(bytes: &[u8], yaml: bool) -> Result<File, String> {
    let file: File = if yaml {
        serde_norway::from_slice(bytes).map_err(|error| error.to_string())?
    } else {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())?
    };
    file.check()?;
    Ok(file)
}

impl File {
    fn check(&self) -> Result<(), String> {
        let text = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        let version = VERSIONS.iter().position(|known| *known == text);
        let version = version.ok_or_else(|| format!("version {text:?} of CDI is not known"))?;
        check_kind(&self.kind).map_err(|why| format!("kind {:?}: {why}", self.kind))?;
        if self.devices.is_empty() {
            return Err("it has no devices".to_owned());
        }
        let mut seen = HashSet::new();
        for device in &self.devices {
            let named = |why: &str| format!("device {:?}: {why}", device.name);
            check_device(&device.name).map_err(named)?;
            if !seen.insert(&device.name) {
                return Err(named("it is there twice"));
            }
            device.container_edits.check().map_err(|why| named(&why))?;
        }
        self.container_edits.check()?;
        match self.youngest() {
            (needed, what) if needed > version => {
                Err(format!("{what} came with version {}, the file names {text}", VERSIONS[needed]))
            }
            _ => Ok(()),
        }
    }

    /// The version that brought the youngest of what the file uses.
    fn youngest(&self) -> (usize, &'static str) {
        let all = || self.devices.iter().map(|device| &device.container_edits).chain([&self.container_edits]);
        let any = |used: &dyn Fn(&Edits) -> bool| all().any(used);
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        let digit = |device: &Device| device.name.starts_with(|c: char| c.is_ascii_digit());
        let annotated =
            !self.annotations.is_empty() || self.devices.iter().any(|d| !d.annotations.is_empty());
        let uses = [
            (7, "netDevices", any(&|e| !e.net_devices.is_empty())),
            (4, "intelRdt", any(&|e| e.intel_rdt.is_some())),
            (4, "additionalGids", any(&|e| !e.additional_gids.is_empty())),
            (3, "annotations", annotated),
            (3, "a dot in the class", class.contains('.')),
            (
                2,
                "hostPath of a device node",
                any(&|e| e.device_nodes.iter().any(|n| !n.host_path.is_empty())),
            ),
            (2, "a name that begins with a digit", self.devices.iter().any(digit)),
            (1, "type of a mount", any(&|e| e.mounts.iter().any(|m| !m.kind.is_empty()))),
        ];
        uses.into_iter().find(|(_, _, used)| *used).map_or((0, ""), |(version, what, _)| (version, what))
    }
}

fn check_env(env: &[String]) -> Result<(), String> {
    let bad = env.iter().find(|pair| pair.find('=').is_none_or(|at| at == 0) || pair.contains('\0'));
    bad.map_or(Ok(()), |pair| Err(format!("variable {pair:?} is not NAME=VALUE")))
}

fn check_path(what: &str, path: &str) -> Result<(), String> {
    let plain = path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|part| part == "..");
    if plain { Ok(()) } else { Err(format!("{what} {path:?} is not a plain absolute path")) }
}

impl Edits {
    fn check(&self) -> Result<(), String> {
        check_env(&self.env)?;
        self.device_nodes.iter().try_for_each(DeviceNode::check)?;
        self.mounts.iter().try_for_each(Mount::check)?;
        self.hooks.iter().try_for_each(Hook::check)
    }
}

impl DeviceNode {
    fn check(&self) -> Result<(), String> {
        check_path("device node", &self.path)?;
        if !self.host_path.is_empty() {
            check_path("device node", &self.host_path)?;
        }
        if !matches!(self.kind.as_str(), "" | "b" | "c" | "u" | "p") {
            return Err(format!("device node {:?} has type {:?}, not b, c, u or p", self.path, self.kind));
        }
        let known = self.permissions == "none" || self.permissions.chars().all(|c| "rwm".contains(c));
        if known { Ok(()) } else { Err(format!("permissions {:?} are not of \"rwm\"", self.permissions)) }
    }
}

impl Mount {
    /// Whether it shows a place of the host.
    pub fn is_bind(&self) -> bool {
        matches!(self.kind.as_str(), "" | "bind") || self.options.iter().any(|o| o == "bind" || o == "rbind")
    }

    fn check(&self) -> Result<(), String> {
        check_path("mount", &self.container_path)?;
        if self.is_bind() {
            check_path("mount of", &self.host_path)?;
        }
        Ok(())
    }
}

impl Hook {
    fn check(&self) -> Result<(), String> {
        const NAMES: [&str; 6] =
            ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
        if !NAMES.contains(&self.hook_name.as_str()) {
            return Err(format!("hook {:?} is not known", self.hook_name));
        }
        check_path("hook", &self.path)?;
        if self.timeout.is_some_and(|timeout| timeout <= 0) {
            return Err(format!("hook {:?} has no positive timeout", self.path));
        }
        check_env(&self.env)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: &str, edits: &str) -> Result<File, String> {
        let text = format!(
            r#"{{"cdiVersion":"{version}","kind":"v.com/c","devices":[{{"name":"d","containerEdits":{edits}}}]}}"#
        );
        parse(text.as_bytes(), false)
    }

    #[test]
    fn both_formats_say_the_same() {
        let yaml = "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: \"0\"\n  containerEdits:\n    \
                    deviceNodes:\n    - path: /dev/nvidia0\n      hostPath: /dev/nvidia1\ncontainerEdits:\n  env:\n  \
                    - A=b\n  hooks:\n  - hookName: createContainer\n    path: /usr/bin/hook\n    args: [hook, run]\n";
        let file = parse(yaml.as_bytes(), true).unwrap();
        assert_eq!(file.devices[0].container_edits.device_nodes[0].host_path, "/dev/nvidia1");
        assert_eq!(file.container_edits.hooks[0].args, ["hook", "run"]);
    }

    #[test]
    fn a_field_needs_the_version_that_brought_it() {
        for (edits, oldest) in [
            (r#"{"env":["A=b"]}"#, "0.3.0"),
            (r#"{"mounts":[{"hostPath":"/a","containerPath":"/b","type":"bind"}]}"#, "0.4.0"),
            (r#"{"deviceNodes":[{"path":"/dev/a","hostPath":"/dev/b"}]}"#, "0.5.0"),
            (r#"{"additionalGids":[5]}"#, "0.7.0"),
            (r#"{"netDevices":[{"hostInterfaceName":"a","name":"b"}]}"#, "1.1.0"),
        ] {
            let at = VERSIONS.iter().position(|version| *version == oldest).unwrap();
            assert!(file(oldest, edits).is_ok(), "{edits}");
            assert!(at == 0 || file(VERSIONS[at - 1], edits).is_err(), "{edits}");
        }
        assert!(file("0.2.0", "{}").is_err() && file("2.0.0", "{}").is_err());
    }

    #[test]
    fn what_is_not_as_it_should_be_is_refused() {
        for edits in [
            r#"{"unknown":1}"#,
            r#"{"env":["=b"]}"#,
            r#"{"env":["A"]}"#,
            r#"{"deviceNodes":[{"path":"dev/a"}]}"#,
            r#"{"deviceNodes":[{"path":"/dev/../a"}]}"#,
            r#"{"deviceNodes":[{"path":"/dev/a","type":"x"}]}"#,
            r#"{"deviceNodes":[{"path":"/dev/a","permissions":"x"}]}"#,
            r#"{"mounts":[{"hostPath":"a","containerPath":"/b"}]}"#,
            r#"{"mounts":[{"hostPath":"/a"}]}"#,
            r#"{"hooks":[{"hookName":"later","path":"/a"}]}"#,
            r#"{"hooks":[{"hookName":"prestart","path":"a"}]}"#,
            r#"{"hooks":[{"hookName":"prestart","path":"/a","timeout":0}]}"#,
        ] {
            assert!(file("1.0.0", edits).is_err(), "{edits}");
        }
        let twice = r#"{"cdiVersion":"1.0.0","kind":"v/c","devices":[{"name":"d","containerEdits":{}},{"name":"d","containerEdits":{}}]}"#;
        assert!(parse(twice.as_bytes(), false).is_err());
        assert!(parse(b"{}", false).is_err() && parse(b"", true).is_err() && parse(b"\xff", true).is_err());
        // A few bytes that stand for many: the parser gives up.
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        (1..12).for_each(|n| {
            let before = vec![format!("*a{}", n - 1); 10].join(",");
            bomb += &format!("a{n}: &a{n} [{before}]\n");
        });
        assert!(parse(bomb.as_bytes(), true).is_err());
    }
}
