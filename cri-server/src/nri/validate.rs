//! The built-in validator: refuses kinds of adjustments that the operator does not want, and containers that a plugin
//! must have seen and has not.

use cofferdam_proto::cri::security_profile::ProfileType;
use cofferdam_proto::nri::{self, Field};

use super::collect::Creation;
use super::config::ValidatorConfig;
use super::plugin::Identity;

/// The annotation that names plugins which must see a pod's containers: a YAML list.
const REQUIRED: &str = "required-plugins.noderesource.dev";

/// Why the validator refuses; none where it does not.
#[must_use]
pub fn refusal(
    config: &ValidatorConfig,
    pod: &nri::PodSandbox,
    creation: &Creation,
    asked: &[Identity],
) -> Option<String> {
    if !config.enable {
        return None;
    }
    of_hooks(config, creation)
        .or_else(|| of_seccomp(config, creation))
        .or_else(|| of_entries(config.reject_namespace_adjustment, Field::Namespace, "namespaces", creation))
        .or_else(|| of_entries(config.reject_sysctl_adjustment, Field::Sysctl, "sysctls", creation))
        .or_else(|| of_missing(config, pod, &creation.container.name, asked).unwrap_or_else(Some))
}

fn of_hooks(config: &ValidatorConfig, creation: &Creation) -> Option<String> {
    let owner = creation.owners.of(&creation.container.id, Field::OciHooks, "")?;
    config.reject_oci_hook_adjustment.then(|| format!("{owner} adds OCI hooks"))
}

fn of_seccomp(config: &ValidatorConfig, creation: &Creation) -> Option<String> {
    let owner = creation.owners.of(&creation.container.id, Field::SeccompPolicy, "")?;
    let profile = creation.container.linux.as_ref().and_then(|linux| linux.seccomp_profile.as_ref());
    let kind = profile.map_or(ProfileType::Unconfined, |profile| {
        ProfileType::try_from(profile.profile_type).unwrap_or(ProfileType::Unconfined)
    });
    let (refused, kind) = match kind {
        ProfileType::Unconfined => (config.reject_unconfined_seccomp_adjustment, "unconfined"),
        ProfileType::RuntimeDefault => (config.reject_runtime_default_seccomp_adjustment, "runtime default"),
        ProfileType::Localhost => (config.reject_custom_seccomp_adjustment, "custom"),
    };
    refused.then(|| format!("{owner} adjusts the {kind} seccomp policy"))
}

fn of_entries(refused: bool, field: Field, what: &str, creation: &Creation) -> Option<String> {
    if !refused {
        return None;
    }
    let owners = creation.owners.of_entries(&creation.container.id, field);
    let owners: Vec<String> = owners.map(|(key, plugin)| format!("{plugin} ({key})")).collect();
    (!owners.is_empty()).then(|| format!("{what} are adjusted by {}", owners.join(", ")))
}

/// What an annotation says for one container: for it alone, or for the pod.
fn annotation<'a>(pod: &'a nri::PodSandbox, key: &str, container: &str) -> Option<&'a str> {
    let keys = [format!("{key}/container.{container}"), format!("{key}/pod"), key.to_owned()];
    keys.iter().find_map(|key| pod.annotations.get(key)).map(String::as_str)
}

fn of_missing(
    config: &ValidatorConfig,
    pod: &nri::PodSandbox,
    container: &str,
    asked: &[Identity],
) -> Result<Option<String>, String> {
    let tolerate = &config.tolerate_missing_plugins_annotation;
    if let Some(value) = Some(tolerate).filter(|t| !t.is_empty()).and_then(|t| annotation(pod, t, container)) {
        match value {
            "true" | "True" | "TRUE" | "t" | "T" | "1" => return Ok(None),
            "false" | "False" | "FALSE" | "f" | "F" | "0" => {}
            other => return Err(format!("the annotation {tolerate} is neither true nor false: {other:?}")),
        }
    }
    let mut required = config.required_plugins.clone();
    if let Some(list) = annotation(pod, REQUIRED, container) {
        let names = names(list).ok_or_else(|| format!("the annotation {REQUIRED} is no list: {list:?}"))?;
        required.extend(names);
    }
    let there = |name: &String| asked.iter().any(|plugin| plugin.base == *name || plugin.name() == *name);
    let missing: Vec<&str> = required.iter().filter(|name| !there(name)).map(String::as_str).collect();
    Ok((!missing.is_empty()).then(|| format!("required plugins are not there: {}", missing.join(", "))))
}

/// The names of a YAML list, in a line or one on each.
fn names(list: &str) -> Option<Vec<String>> {
    let list = list.trim();
    let plain = |name: &str| {
        let name = name.trim();
        let quoted = |mark| name.strip_prefix(mark).and_then(|rest| rest.strip_suffix(mark));
        quoted('"').or_else(|| quoted('\'')).unwrap_or(name).to_owned()
    };
    if list.is_empty() {
        return Some(Vec::new());
    }
    if let Some(inside) = list.strip_prefix('[') {
        let inside = inside.strip_suffix(']')?.trim().trim_end_matches(',');
        if inside.is_empty() {
            return Some(Vec::new());
        }
        return Some(inside.split(',').map(plain).collect()).filter(|names: &Vec<String>| all_named(names));
    }
    let lines = list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let names: Vec<String> =
        lines.map(|line| line.strip_prefix("- ").map(plain)).collect::<Option<_>>()?;
    Some(names).filter(|names| all_named(names))
}

fn all_named(names: &[String]) -> bool {
    names.iter().all(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn creation() -> Creation {
        Creation::new(nri::Container { id: "c1".to_owned(), name: "main".to_owned(), ..Default::default() })
    }

    fn pod(annotations: &[(&str, &str)]) -> nri::PodSandbox {
        let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        nri::PodSandbox { annotations, ..Default::default() }
    }

    #[test]
    fn what_the_operator_refuses_is_told_with_the_plugin() {
        let mut creation = creation();
        creation.owners.join("c1", Field::OciHooks, "10-hooks");
        creation.owners.claim("c1", Field::Sysctl, "net.x", "20-sysctl").unwrap();
        let refused = |config: &ValidatorConfig| refusal(config, &pod(&[]), &creation, &[]);
        let enable = ValidatorConfig { enable: true, ..Default::default() };
        assert_eq!(refused(&enable), None);
        let hooks = ValidatorConfig { reject_oci_hook_adjustment: true, ..enable.clone() };
        assert_eq!(refused(&hooks).unwrap(), "10-hooks adds OCI hooks");
        assert_eq!(refused(&ValidatorConfig { enable: false, ..hooks }), None);
        let sysctl = ValidatorConfig { reject_sysctl_adjustment: true, ..enable };
        assert_eq!(refused(&sysctl).unwrap(), "sysctls are adjusted by 20-sysctl (net.x)");
    }

    #[test]
    fn required_plugins_are_there_by_name_or_full_name() {
        let config = ValidatorConfig {
            enable: true,
            required_plugins: vec!["a".to_owned()],
            tolerate_missing_plugins_annotation: "no-plugins".to_owned(),
            ..Default::default()
        };
        let asked = [Identity::new("10", "a").unwrap(), Identity::new("20", "b").unwrap()];
        let refused = |annotations: &[(&str, &str)], asked: &[Identity]| {
            refusal(&config, &pod(annotations), &creation(), asked)
        };
        assert_eq!(refused(&[], &asked), None);
        assert!(refused(&[], &asked[1..]).is_some());
        assert_eq!(refused(&[("no-plugins/container.main", "true")], &[]), None);
        assert!(refused(&[("no-plugins/container.other", "true")], &[]).is_some());
        assert!(refused(&[("no-plugins", "maybe")], &asked).is_some());
        assert_eq!(refused(&[(REQUIRED, "[ \"20-b\", a ]")], &asked), None);
        assert_eq!(refused(&[(REQUIRED, "- 20-b\n- a\n")], &asked), None);
        assert!(refused(&[(REQUIRED, "[ c ]")], &asked).unwrap().ends_with(": c"));
        assert!(refused(&[(REQUIRED, "c")], &asked).unwrap().contains("no list"));
    }
}
