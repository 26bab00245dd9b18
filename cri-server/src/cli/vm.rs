//! `cofferdam vm`: what pods in virtual machines need on the node.
//!
//! The image is made by the shim, whose code runs in it; this only finds the kernel's files.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Subcommand;

use super::error::CliError;
use crate::runtime::{Handler, OWN_TYPE, RuntimeConfig};

const PREFIX: &str = "vmlinuz-";

#[derive(Debug, clap::Args)]
pub(super) struct VmCommand {
    #[command(subcommand)]
    command: Which,
}

#[derive(Debug, Subcommand)]
enum Which {
    /// Makes the guest's kernel and initramfs of a kernel's files
    BuildImage(BuildImage),
}

#[derive(Debug, clap::Args)]
struct BuildImage {
    /// Where the kernel's package is unpacked (`dpkg -x`); / takes an installed one
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// The kernel's release, as `uname -r` tells it; needed when there are several
    #[arg(long, value_name = "RELEASE")]
    release: Option<String>,
    /// Where the two files are put
    #[arg(long, value_name = "DIR", default_value = "/usr/lib/cofferdam/vm")]
    output: PathBuf,
}

impl VmCommand {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let Which::BuildImage(build) = self.command;
        let (kernel, modules) =
            kernel_files(&build.root, build.release.as_deref()).map_err(CliError::Usage)?;
        let failed = |words: String| CliError::Daemon(words.into());
        let own = std::env::current_exe().map_err(|error| failed(format!("find this program: {error}")))?;
        let config = RuntimeConfig { kind: Some(OWN_TYPE.to_owned()), ..Default::default() };
        let shim = Handler::new("vm", &config, &own)
            .map_err(|error| failed(error.to_string()))?
            .check()
            .map_err(|error| failed(error.to_string()))?;
        let status = Command::new(&shim)
            .arg("build-vm-image")
            .args([&kernel, &modules, &build.output])
            .status()
            .map_err(|error| failed(format!("{}: {error}", shim.display())))?;
        // It has said on stderr what was wrong.
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The kernel and its modules below `root`.
fn kernel_files(root: &Path, release: Option<&str>) -> Result<(PathBuf, PathBuf), String> {
    let release = match release {
        Some(release) => release.to_owned(),
        None => only_release(&root.join("boot"))?,
    };
    let kernel = root.join("boot").join(format!("{PREFIX}{release}"));
    let folders = [root.join("lib/modules"), root.join("usr/lib/modules")];
    let modules = folders.iter().map(|folder| folder.join(&release)).find(|folder| folder.is_dir());
    if !kernel.is_file() {
        return Err(format!("there is no {}", kernel.display()));
    }
    let modules = modules.ok_or_else(|| format!("there is no {}", folders[0].join(&release).display()))?;
    Ok((kernel, modules))
}

fn only_release(boot: &Path) -> Result<String, String> {
    let entries = std::fs::read_dir(boot).map_err(|error| format!("{}: {error}", boot.display()))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut releases: Vec<String> =
        names.filter_map(|name| name.strip_prefix(PREFIX).map(str::to_owned)).collect();
    releases.sort_unstable();
    match releases.as_slice() {
        [] => Err(format!("there is no kernel in {}", boot.display())),
        [only] => Ok(only.clone()),
        several => Err(format!("name one with --release: {}", several.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_kernel_is_taken_and_one_of_several_has_to_be_named() {
        let root = tempfile::tempdir().unwrap();
        let make = |release: &str| {
            std::fs::create_dir_all(root.path().join("boot")).unwrap();
            std::fs::write(root.path().join("boot").join(format!("vmlinuz-{release}")), "k").unwrap();
            std::fs::create_dir_all(root.path().join("lib/modules").join(release)).unwrap();
        };
        assert!(kernel_files(root.path(), None).is_err());
        make("6.1");
        let (kernel, modules) = kernel_files(root.path(), None).unwrap();
        assert!(kernel.ends_with("boot/vmlinuz-6.1") && modules.ends_with("lib/modules/6.1"));
        make("6.12");
        assert!(kernel_files(root.path(), None).unwrap_err().contains("6.1, 6.12"));
        assert!(kernel_files(root.path(), Some("6.12")).unwrap().0.ends_with("vmlinuz-6.12"));
        assert!(kernel_files(root.path(), Some("7")).is_err());
    }
}
