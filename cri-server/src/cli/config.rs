//! `cofferdam config`: the default configuration with a word on each key, and the check of a file.
//!
//! Invariant: what `config default` prints is read back as the default configuration.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use super::error::CliError;
use super::output;
use crate::config::{Config, DEFAULT_PATH, Overrides};
use crate::runtime::HandlerTable;

/// What each key is for. Tables are named, handlers share the words of `runtimes.*`.
const WORDS: [(&str, &str); 58] = [
    ("root", "Data that survives a reboot: images, layers, records, logs of `cofferdam run`."),
    ("state", "Data that does not: bundles, sockets, network namespaces."),
    ("socket", "Where the CRI is served; at most 107 bytes."),
    ("default_runtime", "The handler of pods that name none."),
    ("cgroup_driver", "Who makes cgroups: \"cgroupfs\" or \"systemd\". The kubelet is told."),
    (
        "selinux",
        "Tell pods apart by SELinux labels; false: the built-in runtime refuses a container with a label.",
    ),
    ("image", "Images: where they come from, and how large they may be."),
    ("image.registry_config", "A folder HOST/hosts.toml for each registry, as containerd's certs.d."),
    ("image.max_layer_bytes", "Unpacked bytes that one layer may have."),
    ("image.max_layer_entries", "Files, folders and links that one layer may have."),
    ("image.max_layers", "Layers that one image may have."),
    ("image.max_parallel_layers", "Layers fetched at the same time; 0: two for each processor, at most 4."),
    ("image.pinned", "References of images that are never removed."),
    ("image.credentials_for_mirrors", "Send the login of a registry to its mirrors as well."),
    ("network", "The pod network: the operator's CNI plugins, or the built-in bridge."),
    ("network.conf_dir", "Where CNI configurations lie; while there is none, the built-in bridge serves."),
    ("network.bin_dirs", "Where CNI plugins are looked for, in order."),
    ("network.subnets", "The subnets of the built-in bridge, at most one for IPv4 and one for IPv6."),
    ("network.bridge", "The name of the built-in bridge."),
    ("network.timeout_seconds", "Seconds that one CNI plugin may take for one command."),
    ("network.mtu", "The MTU of the built-in bridge in bytes; 0 leaves it to the kernel."),
    ("streaming", "Exec, attach and port-forward."),
    ("streaming.address", "Address and port; port 0 is any free one."),
    (
        "streaming.external_address",
        "Host and port that clients are told instead; \"\" is the address itself.",
    ),
    ("streaming.tls_cert", "PEM file of a certificate, read anew when it changes; \"\" is plain HTTP."),
    ("streaming.tls_key", "PEM file of the certificate's key."),
    ("cdi", "CDI devices: files in which vendors say what a device needs."),
    ("cdi.spec_dirs", "Where the files lie, read at every use; later folders win; none turns CDI off."),
    ("nri", "Plugins of the Node Resource Interface."),
    ("nri.socket", "Where plugins connect; \"\" turns it off."),
    ("nri.plugin_path", "The folder of plugins that the daemon starts, called NN-name; \"\" starts none."),
    ("nri.plugin_config_path", "The folder of their configurations, NN-name.conf or name.conf."),
    ("nri.registration_timeout", "Seconds until a plugin is registered, and again until it is synchronized."),
    ("nri.request_timeout", "Seconds for any other answer; a plugin that needs longer is let go."),
    ("nri.default_validator", "The built-in validator of what plugins adjust."),
    ("nri.default_validator.enable", "Whether it is asked."),
    ("nri.default_validator.reject_oci_hook_adjustment", "Refuse OCI hooks."),
    (
        "nri.default_validator.reject_runtime_default_seccomp_adjustment",
        "Refuse other seccomp policies than the runtime's default where the pod asks for that.",
    ),
    (
        "nri.default_validator.reject_unconfined_seccomp_adjustment",
        "Refuse seccomp policies where the pod asks for none.",
    ),
    (
        "nri.default_validator.reject_custom_seccomp_adjustment",
        "Refuse other seccomp policies than the pod's own.",
    ),
    ("nri.default_validator.reject_namespace_adjustment", "Refuse other namespaces."),
    ("nri.default_validator.reject_sysctl_adjustment", "Refuse sysctls."),
    (
        "nri.default_validator.required_plugins",
        "Plugins, with or without index, without which no container is created.",
    ),
    (
        "nri.default_validator.tolerate_missing_plugins_annotation",
        "The annotation by which a pod does without them.",
    ),
    ("shim", "How long shims may take."),
    ("shim.start_seconds", "Seconds until a shim that was started serves."),
    ("shim.task_seconds", "Seconds for what makes or starts a task."),
    ("maintenance", "Sweeps of what belongs to nobody, and looks at what is stored."),
    ("maintenance.sweep_seconds", "Seconds between sweeps; 0 sweeps at the daemon's start only."),
    ("maintenance.verify_seconds", "Seconds between looks at all blobs and layers; 0: never."),
    (
        "maintenance.verify_bytes_per_second",
        "Bytes that such a look reads in a second at the most; 0: as fast as it can.",
    ),
    (
        "metrics",
        "Metrics of the daemon for Prometheus, at /metrics; whoever reaches the address may read them.",
    ),
    ("metrics.address", "IP address and port, 0 for any free one; \"\" turns them off."),
    ("runtimes.*", "A runtime handler: the name that pods ask for, and the shim behind it."),
    ("runtimes.*.type", "The shim by its type, looked for beside cofferdam and in PATH."),
    ("runtimes.*.path", "The shim by its path."),
    ("runtimes.*.isolation", "\"\": namespaces; \"vm\": a microVM for each pod, see docs/microvm.md."),
    ("runtimes.*.options", "Options of a foreign shim."),
];
const WIDTH: usize = 100;

#[derive(Debug, clap::Args)]
pub(super) struct ConfigCommand {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Prints the default configuration, with a word on each key
    Default,
    /// Checks a configuration and its conf.d, and tells all that is wrong
    Check {
        /// The file [default: /etc/cofferdam/config.toml]
        file: Option<PathBuf>,
    },
}

impl ConfigCommand {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        match self.what {
            What::Default => {
                output::print(&commented(&Config::default_text()?))?;
                Ok(ExitCode::SUCCESS)
            }
            What::Check { file } => check(file),
        }
    }
}

fn check(file: Option<PathBuf>) -> Result<ExitCode, CliError> {
    let name = file.clone().unwrap_or_else(|| DEFAULT_PATH.into());
    let own_exe = std::env::current_exe().unwrap_or_default();
    let errors: Vec<String> = match Config::load(file.as_deref(), &Overrides::default()) {
        Err(errors) => errors.0.iter().map(ToString::to_string).collect(),
        Ok(config) => match HandlerTable::from_config(&config.runtimes, &config.default_runtime, &own_exe) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        },
    };
    if errors.is_empty() {
        let missing = if name.exists() { "" } else { " is not there: the defaults are in force," };
        output::line(&format!("{}{missing} no error", name.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    for error in &errors {
        eprintln!("{error}");
    }
    Ok(ExitCode::FAILURE)
}

/// `text` with a comment before each table and key.
fn commented(text: &str) -> String {
    let mut table = String::new();
    let mut done = String::from(
        "# The default configuration of cofferdam. Every key is optional; files in conf.d/*.toml beside this one are read\n\
         # after it. `cofferdam config check` tells what is wrong.\n\n",
    );
    for line in text.lines() {
        let key = if let Some(name) = line.strip_prefix('[') {
            table = general(name.trim_end_matches(']'));
            table.clone()
        } else {
            let key = line.split(" = ").next().unwrap_or_default();
            if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
        };
        for words in words(&key).map(wrapped).into_iter().flatten() {
            done.push_str(&format!("# {words}\n"));
        }
        done.push_str(&format!("{line}\n"));
    }
    done
}

/// The name under which the table's words are kept.
fn general(table: &str) -> String {
    let mut parts: Vec<&str> = table.split('.').collect();
    if parts[0] == "runtimes" && parts.len() > 1 {
        parts[1] = "*";
    }
    parts.join(".")
}

fn words(key: &str) -> Option<&'static str> {
    WORDS.iter().find(|(name, _)| *name == key).map(|(_, words)| *words)
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].len() + word.len() >= WIDTH {
            lines.push(word.to_owned());
        } else {
            let gap = if lines[last].is_empty() { "" } else { " " };
            lines[last].push_str(&format!("{gap}{word}"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_the_default_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        std::fs::write(&file, commented(&Config::default_text().unwrap())).unwrap();
        let read = Config::load(Some(&file), &Overrides::default()).unwrap();
        assert_eq!(toml::to_string(&read).unwrap(), Config::default_text().unwrap());
    }

    #[test]
    fn every_key_has_its_words() {
        let text = commented(&Config::default_text().unwrap());
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.windows(2) {
            let needs_words = !pair[1].starts_with('#') && !pair[1].is_empty();
            assert!(!needs_words || pair[0].starts_with('#'), "{} has no words", pair[1]);
        }
    }
}
