//! What confines a process besides capabilities: seccomp, AppArmor, and the guarded paths of /proc. For SELinux see
//! [`super::selinux`].
//!
//! Invariant: a request that names a profile gets it or an error, never silently less.

use std::path::PathBuf;

use cofferdam_proto::cri::{self, security_profile::ProfileType};
use oci_spec::runtime::{Capabilities, LinuxSeccomp};

use super::Defaults;
use super::error::SpecError;
use super::seccomp;
use crate::node::Features;

/// What a container gets for which no seccomp profile is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeccompWhenUnset {
    Unconfined,
    RuntimeDefault,
}

/// Paths of /proc and /sys that tell about or steer the host, hidden by default.
pub const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];

/// Paths of /proc that are shown but not writable by default.
pub const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A profile by name, from the request's present or its deprecated field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    Unset,
    Unconfined,
    RuntimeDefault,
    Localhost(String),
}

impl Profile {
    /// The path of a localhost profile's file.
    #[must_use]
    pub fn localhost(&self) -> Option<PathBuf> {
        match self {
            Self::Localhost(name) => Some(PathBuf::from(name)),
            Self::Unset | Self::Unconfined | Self::RuntimeDefault => None,
        }
    }
}

/// Reads a profile; `old` is the deprecated text field that older clients fill.
///
/// # Errors
/// When the type is unknown or a localhost profile has no name.
pub fn profile(
    field: &'static str,
    new: Option<&cri::SecurityProfile>,
    old: &str,
) -> Result<Profile, SpecError> {
    let invalid = |value: &str, why| SpecError::Invalid { field, value: value.to_owned(), why };
    let localhost = |name: &str| match name.strip_prefix("localhost/").unwrap_or(name) {
        "" => Err(invalid(name, "a localhost profile needs a name")),
        name => Ok(Profile::Localhost(name.to_owned())),
    };
    if let Some(profile) = new {
        return match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::RuntimeDefault) => Ok(Profile::RuntimeDefault),
            Ok(ProfileType::Unconfined) => Ok(Profile::Unconfined),
            Ok(ProfileType::Localhost) => localhost(&profile.localhost_ref),
            Err(_) => Err(invalid(&profile.profile_type.to_string(), "no type of profile of the CRI")),
        };
    }
    match old {
        "" => Ok(Profile::Unset),
        "unconfined" => Ok(Profile::Unconfined),
        "runtime/default" | "docker/default" => Ok(Profile::RuntimeDefault),
        name if name.starts_with("localhost/") => localhost(name),
        other => Err(invalid(other, "no name of a profile")),
    }
}

/// The seccomp filter; `localhost` are the bytes of the file that a localhost profile names.
///
/// # Errors
/// When the node has no seccomp, or the file cannot be read as a profile.
pub fn seccomp_filter(
    profile: &Profile,
    held: &Capabilities,
    localhost: Option<&[u8]>,
    defaults: &Defaults,
    features: &Features,
) -> Result<Option<LinuxSeccomp>, SpecError> {
    let unavailable =
        |value: &str, why| SpecError::Unavailable { what: "seccomp profile", value: value.to_owned(), why };
    match (profile, defaults.seccomp_when_unset) {
        (Profile::Unconfined, _) | (Profile::Unset, SeccompWhenUnset::Unconfined) => Ok(None),
        // A default that the node cannot serve was not asked for by the user.
        (Profile::Unset, SeccompWhenUnset::RuntimeDefault) if !features.seccomp => Ok(None),
        (Profile::RuntimeDefault, _) if !features.seccomp => {
            Err(unavailable("RuntimeDefault", "the kernel has no seccomp filters"))
        }
        (Profile::Localhost(name), _) if !features.seccomp => {
            Err(unavailable(name, "the kernel has no seccomp filters"))
        }
        (Profile::RuntimeDefault, _) | (Profile::Unset, SeccompWhenUnset::RuntimeDefault) => {
            Ok(Some(seccomp::default_profile(held)))
        }
        (Profile::Localhost(name), _) => {
            let bytes = localhost.ok_or_else(|| unavailable(name, "its file could not be read"))?;
            serde_json::from_slice(bytes)
                .map(Some)
                .map_err(|source| SpecError::SeccompProfile { name: name.clone(), source })
        }
    }
}

/// The name of the AppArmor profile to run under.
///
/// # Errors
/// When a profile is asked for that this node cannot give.
pub fn apparmor(
    profile: &Profile,
    defaults: &Defaults,
    features: &Features,
) -> Result<Option<String>, SpecError> {
    let unavailable =
        |value: &str, why| SpecError::Unavailable { what: "AppArmor profile", value: value.to_owned(), why };
    let no_apparmor = "the kernel runs without AppArmor";
    match profile {
        Profile::Unconfined => Ok(None),
        Profile::Unset if !features.apparmor => Ok(None),
        Profile::RuntimeDefault if !features.apparmor => Err(unavailable("RuntimeDefault", no_apparmor)),
        Profile::Localhost(name) if !features.apparmor => Err(unavailable(name, no_apparmor)),
        Profile::Unset => Ok(defaults.apparmor_profile.clone()),
        Profile::RuntimeDefault => match &defaults.apparmor_profile {
            Some(name) => Ok(Some(name.clone())),
            None => Err(unavailable("RuntimeDefault", "the default profile is not loaded")),
        },
        Profile::Localhost(name) => Ok(Some(name.clone())),
    }
}

/// The masked and the read-only paths of a container.
#[must_use]
pub fn guarded_paths(
    security: &cri::LinuxContainerSecurityContext,
    defaults: &Defaults,
) -> (Vec<String>, Vec<String>) {
    let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    if security.privileged {
        return (Vec::new(), Vec::new());
    }
    if defaults.always_mask_proc {
        return (owned(&MASKED_PATHS), owned(&READONLY_PATHS));
    }
    // Empty lists are how the kubelet says `procMount: Unmasked`.
    (security.masked_paths.clone(), security.readonly_paths.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(profile_type: ProfileType, name: &str) -> cri::SecurityProfile {
        cri::SecurityProfile { profile_type: profile_type as i32, localhost_ref: name.to_owned() }
    }

    #[test]
    fn profiles_are_read_from_both_fields() {
        let new = |typ, name| profile("seccomp", Some(&typed(typ, name)), "ignored").unwrap();
        assert_eq!(new(ProfileType::RuntimeDefault, ""), Profile::RuntimeDefault);
        assert_eq!(new(ProfileType::Unconfined, ""), Profile::Unconfined);
        assert_eq!(new(ProfileType::Localhost, "/p.json"), Profile::Localhost("/p.json".to_owned()));
        let old = |text| profile("seccomp", None, text).ok();
        assert_eq!(old(""), Some(Profile::Unset));
        assert_eq!(old("runtime/default"), Some(Profile::RuntimeDefault));
        assert_eq!(old("localhost//p.json"), Some(Profile::Localhost("/p.json".to_owned())));
        assert_eq!(old("localhost/"), None);
        assert_eq!(old("whatever"), None);
        assert!(profile("seccomp", Some(&typed(ProfileType::Localhost, "")), "").is_err());
    }

    #[test]
    fn a_named_profile_is_given_or_refused() {
        let held = Capabilities::new();
        let defaults = Defaults::default();
        let with = Features { seccomp: true, ..Features::default() };
        let without = Features { seccomp: false, ..Features::default() };
        let filter = |profile: Profile, file: Option<&[u8]>, features: &Features| {
            seccomp_filter(&profile, &held, file, &defaults, features)
        };
        assert!(filter(Profile::Unset, None, &with).unwrap().is_none());
        assert!(filter(Profile::RuntimeDefault, None, &with).unwrap().is_some());
        assert!(filter(Profile::RuntimeDefault, None, &without).is_err());
        let own = br#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}"#;
        let localhost = || Profile::Localhost("/p.json".to_owned());
        assert_eq!(
            filter(localhost(), Some(own), &with).unwrap().unwrap().syscalls().as_ref().unwrap().len(),
            1
        );
        assert!(matches!(filter(localhost(), Some(b"{"), &with), Err(SpecError::SeccompProfile { .. })));
        assert!(matches!(filter(localhost(), None, &with), Err(SpecError::Unavailable { .. })));
        let strict = Defaults { seccomp_when_unset: SeccompWhenUnset::RuntimeDefault, ..Defaults::default() };
        assert!(seccomp_filter(&Profile::Unset, &held, None, &strict, &with).unwrap().is_some());
        assert!(seccomp_filter(&Profile::Unset, &held, None, &strict, &without).unwrap().is_none());
    }

    #[test]
    fn apparmor_is_given_or_refused() {
        let loaded =
            Defaults { apparmor_profile: Some("cofferdam-default".to_owned()), ..Defaults::default() };
        let with = Features { apparmor: true, ..Features::default() };
        let without = Features { apparmor: false, ..Features::default() };
        let localhost = Profile::Localhost("mine".to_owned());
        assert_eq!(apparmor(&Profile::Unset, &loaded, &without).unwrap(), None);
        assert_eq!(apparmor(&Profile::Unconfined, &loaded, &without).unwrap(), None);
        assert!(apparmor(&Profile::RuntimeDefault, &loaded, &without).is_err());
        assert!(apparmor(&localhost, &loaded, &without).is_err());
        assert_eq!(apparmor(&Profile::Unset, &loaded, &with).unwrap().as_deref(), Some("cofferdam-default"));
        assert_eq!(apparmor(&localhost, &loaded, &with).unwrap().as_deref(), Some("mine"));
        assert!(apparmor(&Profile::RuntimeDefault, &Defaults::default(), &with).is_err());
    }

    #[test]
    fn guarded_paths_are_the_requests() {
        let mut security = cri::LinuxContainerSecurityContext::default();
        let defaults = Defaults::default();
        assert_eq!(guarded_paths(&security, &defaults), (Vec::new(), Vec::new()));
        security.masked_paths = vec!["/proc/kcore".to_owned()];
        assert_eq!(guarded_paths(&security, &defaults).0, ["/proc/kcore"]);
        let strict = Defaults { always_mask_proc: true, ..Defaults::default() };
        assert_eq!(guarded_paths(&security, &strict).1, READONLY_PATHS);
        security.privileged = true;
        assert_eq!(guarded_paths(&security, &strict), (Vec::new(), Vec::new()));
    }
}
