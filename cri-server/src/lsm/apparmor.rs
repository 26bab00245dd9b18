//! AppArmor: the default profile of containers, which we load, and whether a named profile is loaded.
//!
//! Invariant: no container is made under a profile that the kernel does not have; without the check it would fail at its
//! start only, with the kernel's bare ENOENT. The policy language is described in apparmor.d(5), the compiler that turns it
//! into what the kernel takes is apparmor_parser(8): there is no other, so the daemon runs it, at start only.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The profile that serves as RuntimeDefault.
pub const DEFAULT_PROFILE: &str = "cofferdam-default";

const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
/// Compiling takes a tenth of a second; emulated machines are slower.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// The rules of [`DEFAULT_PROFILE`]. Everything is allowed but what a container has no business with: mounting, files of /proc and
/// /sys that speak for the whole machine, and processes of others. `deny` wins over what is allowed.
/// No file is included, so that a node without the abstractions of the distribution compiles it as well.
const RULES: &str = r"
  capability,
  file,
  network,
  unix,
  dbus,
  umount,
  deny mount,

  # The runtime, which is not confined, may signal; so may the containers of this profile each other.
  signal (receive) peer=unconfined,
  signal (send, receive) peer=@NAME@,
  ptrace (trace, read, tracedby, readby) peer=@NAME@,

  # /proc: only what belongs to a process, to the pod's network and to its IPC may be written.
  deny /proc/* w,
  deny /proc/{kcore,kmem,mem,sysrq-trigger} rwkl,
  deny /proc/{acpi,asound,bus,driver,dynamic_debug,fs,irq,scsi,tty}/** w,
  deny /proc/sys/{abi,crypto,debug,dev,user,vm}/** w,
  deny /proc/sys/fs/[^m]** w,
  deny /proc/sys/kernel/{[^ms]**,m[^s]**,s[^eh]**} w,

  # /sys: cgroups apart, nothing is written; firmware and policy are not read either.
  deny /sys/{block,bus,class,dev,devices,hypervisor,kernel,module,power}/** wkl,
  deny /sys/fs/[^c]** wkl,
  deny /sys/firmware/** rwkl,
  deny /sys/kernel/security/** rwkl,
";

/// Why a profile is not there.
#[derive(Debug, thiserror::Error)]
pub enum AppArmorError {
    #[error("apparmor_parser is not installed")]
    NoParser,
    #[error("{operation} apparmor_parser")]
    Run { operation: &'static str, source: io::Error },
    #[error("apparmor_parser refused the profile {name} ({status}): {words}")]
    Refused { name: &'static str, status: String, words: String },
    #[error("apparmor_parser did not end within {0:?}")]
    Late(Duration),
    #[error("read {LOADED}")]
    Profiles(#[source] io::Error),
}

/// Loads [`DEFAULT_PROFILE`], or replaces it by this version's. Blocks while the parser works.
///
/// # Errors
/// When there is no parser, or it refuses.
pub fn load_default() -> Result<(), AppArmorError> {
    let parser = parser(std::env::var_os("PATH")).ok_or(AppArmorError::NoParser)?;
    let failed = |operation| move |source| AppArmorError::Run { operation, source };
    let mut child = Command::new(parser)
        .args(["--replace", "--skip-cache"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed("start"))?;
    // The text is smaller than a pipe, so this cannot block; a parser that ends early says why on stderr.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text().as_bytes()));
    let status = wait(&mut child)?;
    let mut words = String::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(4096).read_to_string(&mut words).map_err(failed("read the words of"))?;
    }
    if !status.success() {
        let words = words.trim().to_owned();
        return Err(AppArmorError::Refused { name: DEFAULT_PROFILE, status: status.to_string(), words });
    }
    written.map_err(failed("write the profile to"))
}

/// Whether the kernel has a profile of this name. The default profile is loaded again if it went away, as it does when an
/// operator unloads all profiles.
///
/// # Errors
/// When the kernel's list cannot be read, or the default profile cannot be loaded again.
pub fn ensure_loaded(name: &str) -> Result<bool, AppArmorError> {
    let loaded = || std::fs::read_to_string(LOADED).map_err(AppArmorError::Profiles);
    if is_listed(&loaded()?, name) {
        return Ok(true);
    }
    if name != DEFAULT_PROFILE {
        return Ok(false);
    }
    load_default()?;
    Ok(is_listed(&loaded()?, name))
}

fn text() -> String {
    let rules = RULES.replace("@NAME@", DEFAULT_PROFILE);
    format!("profile {DEFAULT_PROFILE} flags=(attach_disconnected, mediate_deleted) {{{rules}}}\n")
}

/// Lines are `NAME (MODE)`; a name may hold spaces.
fn is_listed(profiles: &str, name: &str) -> bool {
    profiles.lines().any(|line| line.rsplit_once(" (").is_some_and(|(listed, _)| listed == name))
}

/// The parser; a daemon's PATH need not hold the system's folders.
fn parser(path: Option<OsString>) -> Option<PathBuf> {
    let folders = path.as_deref().map(std::env::split_paths).into_iter().flatten();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    folders.chain(system).map(|folder| folder.join("apparmor_parser")).find(|file| Path::is_file(file))
}

fn wait(child: &mut Child) -> Result<std::process::ExitStatus, AppArmorError> {
    let failed = |source| AppArmorError::Run { operation: "wait for", source };
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok(status);
        }
        std::thread::sleep(POLL);
    }
    child.kill().map_err(failed)?;
    child.wait().map_err(failed)?;
    Err(AppArmorError::Late(PATIENCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_found_by_its_whole_name() {
        let profiles = "cofferdam-default (enforce)\n/usr/bin/man (complain)\nwith space (kill)\n";
        for name in ["cofferdam-default", "/usr/bin/man", "with space"] {
            assert!(is_listed(profiles, name), "{name}");
        }
        for name in ["cofferdam", "cofferdam-default (enforce)", "man", ""] {
            assert!(!is_listed(profiles, name), "{name}");
        }
    }

    #[test]
    fn the_rules_speak_of_the_profile_itself() {
        let text = text();
        assert!(text.starts_with("profile cofferdam-default ") && text.ends_with("}\n"));
        assert!(text.contains("peer=cofferdam-default,") && !text.contains('@'));
        assert!(text.len() < 65536, "more than a pipe holds");
    }

    #[test]
    fn the_parser_is_looked_for_in_path_first() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("apparmor_parser");
        std::fs::write(&file, "").unwrap();
        assert_eq!(parser(Some(folder.path().as_os_str().to_owned())), Some(file));
    }
}
