//! Finds and runs the program a user asked for, and says in known words why that fails.
//!
//! The words are the ones that users of other runtimes search for, so a missing program looks the same everywhere.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::SFlag;
use nix::unistd::{AccessFlags, access, execve};

use super::{Failure, FailureKind};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file that `name` stands for, in the file system the process is in now.
pub fn find(name: &str, env: &[String]) -> Result<PathBuf, Failure> {
    if name.is_empty() {
        return Err(Failure::new(FailureKind::Spec, "exec: the command is empty"));
    }
    if name.contains('/') {
        return check(Path::new(name)).map(|()| PathBuf::from(name)).map_err(|errno| named(name, errno));
    }
    let path = env.iter().rev().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut refused = None;
    for folder in path.split(':') {
        let candidate = Path::new(if folder.is_empty() { "." } else { folder }).join(name);
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::EACCES) => refused = Some(Errno::EACCES),
            Err(_) => {}
        }
    }
    Err(match refused {
        Some(errno) => named(name, errno),
        None => Failure::new(
            FailureKind::ExecutableNotFound,
            format!("exec: {name:?}: executable file not found in $PATH"),
        ),
    })
}

fn check(path: &Path) -> nix::Result<()> {
    let stat = nix::sys::stat::stat(path)?;
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => Err(Errno::EISDIR),
        _ => access(path, AccessFlags::X_OK),
    }
}

fn named(name: &str, errno: Errno) -> Failure {
    let (kind, words) = match errno {
        Errno::ENOENT | Errno::ENOTDIR => {
            let words = format!("exec: {name:?}: stat {name}: no such file or directory");
            (FailureKind::ExecutableNotFound, words)
        }
        Errno::EACCES | Errno::EPERM => {
            (FailureKind::ExecutableNotPermitted, format!("exec: {name:?}: permission denied"))
        }
        Errno::EISDIR => (FailureKind::ExecutableNotPermitted, format!("exec: {name:?}: is a directory")),
        other => (FailureKind::ExecutableInvalid, format!("exec: {name:?}: {}", other.desc().to_lowercase())),
    };
    Failure::new(kind, words)
}

/// Becomes the program. Returns only to say why not.
pub fn run(path: &Path, args: &[String], env: &[String]) -> Failure {
    let words =
        |all: &[String]| all.iter().map(|s| CString::new(s.as_bytes())).collect::<Result<Vec<_>, _>>();
    let (Ok(file), Ok(args), Ok(env)) = (CString::new(path.as_os_str().as_bytes()), words(args), words(env))
    else {
        return Failure::new(FailureKind::Spec, "exec: an argument or variable holds a NUL byte");
    };
    // An ignored signal stays ignored in the program. Rust ignores SIGPIPE at the start (`yes | head` would never end),
    // a shell SIGINT and SIGQUIT in what it starts in the background.
    crate::sys::default_signals();
    let Err(errno) = execve(&file, &args, &env);
    let name = path.display();
    match errno {
        // The file was there a moment ago, so it is its interpreter that is missing.
        Errno::ENOENT => Failure::new(
            FailureKind::ExecutableNotFound,
            format!(
                "exec {name}: no such file or directory (the interpreter or the loader it names is missing)"
            ),
        ),
        Errno::EACCES => {
            Failure::new(FailureKind::ExecutableNotPermitted, format!("exec {name}: permission denied"))
        }
        Errno::ENOEXEC => {
            Failure::new(FailureKind::ExecutableInvalid, format!("exec {name}: exec format error"))
        }
        other => Failure::new(
            FailureKind::ExecutableInvalid,
            format!("exec {name}: {}", other.desc().to_lowercase()),
        ),
    }
}

/// The current environment in the form that [`run`] takes.
pub fn environment() -> Vec<String> {
    let text = |s: &OsStr| s.to_string_lossy().into_owned();
    std::env::vars_os().map(|(k, v)| format!("{}={}", text(&k), text(&v))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_told_in_the_usual_words() {
        let failure = find("nosuch", &["PATH=/bin:/usr/bin".into()]).unwrap_err();
        assert_eq!(failure.kind, FailureKind::ExecutableNotFound);
        assert_eq!(failure.message, "exec: \"nosuch\": executable file not found in $PATH");
        let failure = find("/no/such", &[]).unwrap_err();
        assert_eq!(failure.message, "exec: \"/no/such\": stat /no/such: no such file or directory");
    }

    #[test]
    fn a_folder_is_no_program_and_the_last_path_counts() {
        assert_eq!(find("/tmp", &[]).unwrap_err().kind, FailureKind::ExecutableNotPermitted);
        assert!(find("sh", &["PATH=/nowhere".into(), "PATH=/bin".into()]).is_ok());
    }
}
