//! `cofferdam vm`: what pods in virtual machines need on the node.
//!
//! The image is made by the shim, whose code runs in it; this only finds the kernel's files. The shim also boots the machine
//! that is measured.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Subcommand;
use serde::Deserialize;

use super::error::CliError;
use super::output;
use crate::config::{Config, Overrides};
use crate::runtime::{Handler, OWN_TYPE, RuntimeConfig, measure};

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
    /// Boots a machine, measures what it costs the node, and says which overhead a RuntimeClass should name
    Overhead(Overhead),
}

#[derive(Debug, clap::Args)]
struct Overhead {
    /// The configuration file [default: /etc/cofferdam/config.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The handler whose machines are measured
    #[arg(long, value_name = "NAME", default_value = "vm")]
    handler: String,
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
        let build = match self.command {
            Which::BuildImage(build) => build,
            Which::Overhead(overhead) => return overhead.run(),
        };
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

/// As `measure-machine` of the shim tells it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cost {
    kvm: bool,
    #[serde(rename = "guestKiB")]
    guest: u64,
    #[serde(rename = "monitorKiB")]
    monitor: u64,
    #[serde(rename = "shimKiB")]
    shim: u64,
    #[serde(rename = "guestMiBConfigured")]
    guest_configured: u64,
    #[serde(rename = "monitorMiBConfigured")]
    monitor_configured: u64,
}

impl Overhead {
    fn run(self) -> Result<ExitCode, CliError> {
        let failed = |words: String| CliError::Daemon(words.into());
        let config = Config::load(self.config.as_deref(), &Overrides::default())
            .map_err(|error| failed(error.to_string()))?;
        let own = std::env::current_exe().map_err(|error| failed(format!("find this program: {error}")))?;
        let Some(runtime) = config.runtimes.get(&self.handler).filter(|one| !one.isolation.is_empty()) else {
            return Err(CliError::Usage(format!("{:?} is no handler with isolation = \"vm\"", self.handler)));
        };
        let handler =
            Handler::new(&self.handler, runtime, &own).map_err(|error| failed(error.to_string()))?;
        let folder = tempfile::Builder::new().prefix("cofferdam-vm-").tempdir();
        let folder = folder.map_err(|error| failed(format!("make a folder: {error}")))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let measured = runtime.map_err(CliError::Setup)?.block_on(measure(&handler, folder.path()));
        let cost: Cost = serde_json::from_str(&measured.map_err(failed)?)?;
        output::print(&cost.text())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Cost {
    /// The overhead to name, in MiB: what was measured and a quarter for what grows, but not less than what the
    /// configuration sets aside.
    fn overhead(&self) -> u64 {
        let measured = (self.guest + self.monitor + self.shim).div_ceil(1024);
        (measured + measured / 4).max(self.guest_configured + self.monitor_configured).next_multiple_of(16)
    }

    fn text(&self) -> String {
        let mib = |kib: u64| kib.div_ceil(1024);
        let mut text = format!(
            "Guest's own system  {} MiB (guest_memory = {})\nMonitor, virtiofsd  {} MiB (monitor_memory = {})\n\
             Shim                {} MiB\nRuns by             {}\n\noverhead:\n  podFixed: {{memory: {}Mi, cpu: 100m}}\n",
            mib(self.guest),
            self.guest_configured,
            mib(self.monitor),
            self.monitor_configured,
            mib(self.shim),
            if self.kvm { "KVM" } else { "emulation" },
            self.overhead(),
        );
        for (key, measured, configured) in [
            ("guest_memory", mib(self.guest), self.guest_configured),
            ("monitor_memory", mib(self.monitor), self.monitor_configured),
        ] {
            if measured > configured && (self.kvm || key == "guest_memory") {
                text.push_str(&format!("\n{key} should be {} at least.\n", measured.next_multiple_of(16)));
            }
        }
        text
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
    fn the_overhead_is_measured_and_not_below_what_is_set_aside() {
        let mut cost = Cost {
            kvm: true,
            guest: 60 << 10,
            monitor: 40 << 10,
            shim: 4 << 10,
            guest_configured: 96,
            monitor_configured: 160,
        };
        assert_eq!(cost.overhead(), 256);
        assert!(
            cost.text().contains("memory: 256Mi") && !cost.text().contains("should be"),
            "{}",
            cost.text()
        );
        (cost.guest, cost.monitor) = (130 << 10, 200 << 10);
        assert_eq!(cost.overhead(), 432, "334 and a quarter, in whole 16 MiB");
        let text = cost.text();
        assert!(text.contains("guest_memory should be 144") && text.contains("monitor_memory should be 208"));
    }

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
