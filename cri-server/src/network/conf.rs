//! Network configurations as operators write them (CNI specification, section 1): text in, a typed list out. Pure.
//!
//! Invariant: a [`NetworkList`] that exists can be executed by us: its version is one that we speak, it has a valid name
//! and at least one plugin, and every plugin has a type that is a bare file name.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The versions of the CNI protocol that are spoken here, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Version {
    #[serde(rename = "0.3.0")]
    V0_3_0,
    #[serde(rename = "0.3.1")]
    V0_3_1,
    #[serde(rename = "0.4.0")]
    V0_4_0,
    #[serde(rename = "1.0.0")]
    V1_0_0,
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl Version {
    const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a text is no network configuration.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfError {
    #[error("it is not JSON")]
    Json(#[source] serde_json::Error),
    #[error("it is not a JSON object")]
    NoObject,
    #[error("{field:?} is missing or is not {expected}")]
    Field { field: &'static str, expected: &'static str },
    #[error(
        "the network name {0:?} is not valid: it begins with a letter or digit and has only those and . _ -"
    )]
    Name(String),
    #[error("plugin {index} has no usable \"type\": expected the file name of a plugin, found {found}")]
    Type { index: usize, found: String },
    #[error("\"plugins\" is empty")]
    NoPlugins,
    #[error(
        "CNI version {0} is too old: chaining and results began with 0.3.0; set \"cniVersion\" to 1.0.0 (or 0.3.1, \
         0.4.0, 1.1.0)"
    )]
    TooOld(String),
    #[error("CNI version {0} is not known; this runtime speaks 0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0")]
    Unknown(String),
}

/// One plugin of a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Plugin {
    /// The `type`: the plugin's file name.
    pub(super) kind: String,
    /// The capabilities that it declares as true.
    pub(super) capabilities: BTreeSet<String>,
    /// Its configuration as written, without the keys that the runtime sets.
    pub(super) conf: Map<String, Value>,
}

/// One network: plugins that are executed one after another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct NetworkList {
    pub(super) name: String,
    /// The version that is spoken with the plugins.
    pub(super) version: Version,
    /// All versions that the configuration allows and we speak, newest first; never empty.
    pub(super) candidates: Vec<Version>,
    pub(super) disable_check: bool,
    pub(super) disable_gc: bool,
    /// Whether plugins from the folder named after the network are left out.
    pub(super) inlined_only: bool,
    pub(super) plugins: Vec<Plugin>,
}

/// Reads the text of a `.conflist` or of a `.conf`; which of the two it is, its content tells.
pub(super) fn parse(text: &[u8]) -> Result<NetworkList, ConfError> {
    let value: Value = serde_json::from_slice(text).map_err(ConfError::Json)?;
    let Value::Object(object) = value else { return Err(ConfError::NoObject) };
    let name = name(&object)?;
    let candidates = versions(&object)?;
    let plugins = match object.get("plugins") {
        Some(Value::Array(plugins)) => plugins
            .iter()
            .enumerate()
            .map(|(index, value)| plugin(index, value))
            .collect::<Result<Vec<_>, _>>()?,
        Some(_) => return Err(ConfError::Field { field: "plugins", expected: "an array" }),
        // A single configuration is a chain of one.
        None => vec![plugin(0, &Value::Object(object.clone()))?],
    };
    let inlined_only = flag(&object, "loadOnlyInlinedPlugins")?;
    if plugins.is_empty() && inlined_only {
        return Err(ConfError::NoPlugins);
    }
    Ok(NetworkList {
        name,
        version: candidates[0],
        candidates,
        disable_check: flag(&object, "disableCheck")?,
        disable_gc: flag(&object, "disableGC")?,
        inlined_only,
        plugins,
    })
}

/// Reads a file of one plugin from the folder named after its network.
pub(super) fn parse_plugin(index: usize, text: &[u8]) -> Result<Plugin, ConfError> {
    plugin(index, &serde_json::from_slice(text).map_err(ConfError::Json)?)
}

fn name(object: &Map<String, Value>) -> Result<String, ConfError> {
    let name = object
        .get("name")
        .and_then(Value::as_str)
        .ok_or(ConfError::Field { field: "name", expected: "the network's name" })?;
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        Ok(name.to_owned())
    } else {
        Err(ConfError::Name(name.to_owned()))
    }
}

/// The versions that both the configuration and we speak, newest first.
fn versions(object: &Map<String, Value>) -> Result<Vec<Version>, ConfError> {
    let wrong = ConfError::Field { field: "cniVersions", expected: "an array of versions" };
    // A configuration without a version is of the time before there was one.
    let mut named = match object.get("cniVersion") {
        None if object.contains_key("cniVersions") => Vec::new(),
        None => vec!["0.1.0"],
        Some(Value::String(version)) => vec![version.as_str()],
        Some(_) => return Err(ConfError::Field { field: "cniVersion", expected: "a version" }),
    };
    match object.get("cniVersions") {
        None => {}
        Some(Value::Array(more)) => {
            for version in more {
                named.push(
                    version
                        .as_str()
                        .ok_or(ConfError::Field { field: "cniVersions", expected: "an array of versions" })?,
                );
            }
        }
        Some(_) => return Err(wrong),
    }
    let mut spoken: Vec<Version> = named.iter().filter_map(|text| Version::parse(text)).collect();
    spoken.sort_unstable_by(|a, b| b.cmp(a));
    spoken.dedup();
    if !spoken.is_empty() {
        return Ok(spoken);
    }
    let text = named.join(", ");
    let old = !named.is_empty() && named.iter().all(|v| matches!(*v, "" | "0.1.0" | "0.2.0"));
    Err(if old { ConfError::TooOld(text) } else { ConfError::Unknown(text) })
}

/// A flag; some configurations write it as a text.
fn flag(object: &Map<String, Value>, field: &'static str) -> Result<bool, ConfError> {
    match object.get(field) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(ConfError::Field { field, expected: "true or false" }),
    }
}

fn plugin(index: usize, value: &Value) -> Result<Plugin, ConfError> {
    let Value::Object(object) = value else {
        return Err(ConfError::Type { index, found: value.to_string() });
    };
    let found = object.get("type");
    let kind = found
        .and_then(Value::as_str)
        .filter(|kind| !kind.is_empty() && !kind.contains('/') && !matches!(*kind, "." | ".."))
        .ok_or_else(|| ConfError::Type { index, found: found.map_or("none".to_owned(), Value::to_string) })?;
    let capabilities = match object.get("capabilities") {
        None | Some(Value::Null) => BTreeSet::new(),
        Some(Value::Object(declared)) => declared
            .iter()
            .filter(|(_, on)| **on == Value::Bool(true))
            .map(|(name, _)| name.clone())
            .collect(),
        Some(_) => return Err(ConfError::Field { field: "capabilities", expected: "an object" }),
    };
    let mut conf = object.clone();
    for runtime_sets in ["name", "cniVersion", "cniVersions", "capabilities", "runtimeConfig", "prevResult"] {
        conf.remove(runtime_sets);
    }
    Ok(Plugin { kind: kind.to_owned(), capabilities, conf })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> NetworkList {
        parse(text.as_bytes()).unwrap()
    }

    fn refusal(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_conflist_keeps_its_chain_in_order() {
        let list = parsed(
            r#"{"cniVersion":"1.0.0","name":"pods","disableCheck":true,"plugins":[
                {"type":"bridge","bridge":"b0","capabilities":{"ips":true,"mac":false}},
                {"type":"portmap","capabilities":{"portMappings":true}}]}"#,
        );
        assert_eq!(list.version, Version::V1_0_0);
        assert!(list.disable_check && !list.disable_gc);
        let kinds: Vec<_> = list.plugins.iter().map(|p| p.kind.as_str()).collect();
        assert_eq!(kinds, ["bridge", "portmap"]);
        assert_eq!(list.plugins[0].capabilities.iter().collect::<Vec<_>>(), ["ips"]);
        assert_eq!(list.plugins[0].conf.get("bridge").and_then(Value::as_str), Some("b0"));
        assert!(!list.plugins[0].conf.contains_key("capabilities"));
    }

    #[test]
    fn a_single_conf_is_a_chain_of_one() {
        let list = parsed(r#"{"cniVersion":"0.3.1","name":"one","type":"ptp","mtu":1400}"#);
        assert_eq!(list.plugins.len(), 1);
        assert_eq!(list.plugins[0].kind, "ptp");
        assert!(!list.plugins[0].conf.contains_key("name"));
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        for (text, expected) in [
            (r#""cniVersion":"0.4.0""#, Version::V0_4_0),
            (r#""cniVersion":"0.4.0","cniVersions":["0.3.1","1.1.0"]"#, Version::V1_1_0),
            (r#""cniVersion":"9.0.0","cniVersions":["1.0.0"]"#, Version::V1_0_0),
            (r#""cniVersions":["0.2.0","1.0.0","2.0.0"]"#, Version::V1_0_0),
        ] {
            let list = parsed(&format!(r#"{{{text},"name":"n","plugins":[{{"type":"x"}}]}}"#));
            assert_eq!(list.version, expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_executed_is_refused_with_its_cause() {
        for (text, part) in [
            ("", "not JSON"),
            ("[]", "not a JSON object"),
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"x"}]}"#, "name"),
            (r#"{"cniVersion":"1.0.0","name":"../x","plugins":[{"type":"x"}]}"#, "not valid"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":{}}"#, "an array"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a/b"}]}"#, "plugin 0"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"},{}]}"#, "plugin 1"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[3]}"#, "plugin 0"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[],"loadOnlyInlinedPlugins":true}"#, "empty"),
            (r#"{"cniVersion":"0.2.0","name":"n","type":"x"}"#, "too old"),
            (r#"{"name":"n","type":"x"}"#, "too old"),
            (r#"{"cniVersion":"1.7.0","name":"n","type":"x"}"#, "1.7.0 is not known"),
            (r#"{"cniVersion":1,"name":"n","type":"x"}"#, "cniVersion"),
            (r#"{"cniVersion":"1.0.0","cniVersions":"1.1.0","name":"n","type":"x"}"#, "cniVersions"),
            (r#"{"cniVersion":"1.0.0","name":"n","type":"x","disableCheck":4}"#, "disableCheck"),
            (r#"{"cniVersion":"1.0.0","name":"n","type":"x","capabilities":[]}"#, "capabilities"),
        ] {
            let found = refusal(text);
            assert!(found.contains(part), "{text}: {found}");
        }
    }
}
