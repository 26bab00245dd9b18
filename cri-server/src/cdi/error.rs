//! Why a container cannot have a CDI device.

use std::path::PathBuf;

use crate::spec::SpecError;

/// Why a container cannot have a CDI device.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    #[error("CDI device {name:?} is not valid: {why}")]
    Name { name: String, why: &'static str },
    #[error("CDI device {name:?} is unknown{}", broken_files(.broken))]
    Unknown { name: String, broken: Vec<(PathBuf, String)> },
    #[error("CDI device {name:?} is defined more than once: {}", paths(.files))]
    Conflict { name: String, files: Vec<PathBuf> },
    #[error("CDI devices are turned off: cdi.spec_dirs is empty")]
    Off,
    #[error("CDI: {what} of {path:?} {why}")]
    Edit { what: &'static str, path: String, why: &'static str },
    #[error("CDI: {0} cannot be given by this runtime")]
    Unsupported(&'static str),
    #[error("CDI device node {path:?} on the host")]
    Host { path: PathBuf, source: std::io::Error },
    #[error("CDI")]
    Spec(#[from] SpecError),
}

/// A few words on files that might have defined it.
fn broken_files(broken: &[(PathBuf, String)]) -> String {
    const SHOWN: usize = 5;
    let one = |(path, why): &(PathBuf, String)| format!("; {} cannot be used: {why}", path.display());
    broken.iter().take(SHOWN).map(one).collect()
}

fn paths(files: &[PathBuf]) -> String {
    files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
