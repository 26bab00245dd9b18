//! Plugins of a folder: found, and started with a socket that is connected already.
//!
//! A plugin's file is called `NN-name`; its configuration is `NN-name.conf` or `name.conf` in the other folder. The
//! process ends with its connection; where the daemon dies, the kernel ends it: see `cofferdam nri-launch`.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::io::FdFlags;
use rustix::process::Signal;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::config::Config;
use super::error::NriError;
use super::plugin::Identity;

/// What tells a plugin who it is and which descriptor its socket is.
const NAME: &str = "NRI_PLUGIN_NAME";
const INDEX: &str = "NRI_PLUGIN_IDX";
const SOCKET: &str = "NRI_PLUGIN_SOCKET";
/// The descriptor that plugins of other runtimes get too.
const DESCRIPTOR: i32 = 3;
/// The most that a configuration may hold: it travels in a message.
const MAX_CONFIG: u64 = 1 << 20;
/// How a WebAssembly module begins.
const WASM: [u8; 4] = *b"\0asm";
/// The hidden command that turns into a plugin.
pub const COMMAND: &str = "nri-launch";

/// A plugin of the folder.
#[derive(Debug)]
pub struct Installed {
    pub identity: Identity,
    pub path: PathBuf,
    pub config: String,
}

/// The plugins of the folder, in order. What cannot be one is told in the log.
///
/// # Errors
/// When the folder is there but cannot be read.
pub fn installed(config: &Config) -> Result<Vec<Installed>, NriError> {
    let folder = Path::new(&config.plugin_path);
    if config.plugin_path.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |source| NriError::Folder { operation: "read", path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let executable = |meta: fs::Metadata| meta.is_file() && meta.permissions().mode() & 0o111 != 0;
        if !fs::metadata(&path).is_ok_and(executable) {
            continue;
        }
        match one(config, &path) {
            Ok(plugin) => found.push(plugin),
            Err(why) => tracing::error!(path = %path.display(), why, "no NRI plugin"),
        }
    }
    found.sort_by_key(|plugin| plugin.identity.name());
    Ok(found)
}

fn one(config: &Config, path: &Path) -> Result<Installed, String> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (index, base) = name.split_once('-').ok_or("its name is not NN-name")?;
    let identity = Identity::new(index, base).map_err(|error| error.to_string())?;
    let mut first = [0; WASM.len()];
    let read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut first));
    if read.is_ok() && first == WASM {
        return Err("WebAssembly plugins are not supported".to_owned());
    }
    let config = read_config(&config.plugin_config_path, &identity)?;
    Ok(Installed { identity, path: path.to_owned(), config })
}

fn read_config(folder: &Path, identity: &Identity) -> Result<String, String> {
    for name in [identity.name(), identity.base.clone()] {
        let path = folder.join(format!("{name}.conf"));
        let failed = |error: std::io::Error| format!("its configuration {}: {error}", path.display());
        let file = match fs::File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            file => file.map_err(failed)?,
        };
        let mut text = String::new();
        file.take(MAX_CONFIG + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_CONFIG {
            return Err(format!("its configuration {} is longer than {MAX_CONFIG} bytes", path.display()));
        }
        return Ok(text);
    }
    Ok(String::new())
}

/// Starts a plugin through [`become_plugin`]. To be called from the daemon's main thread, with whose end the kernel
/// ends the plugin.
///
/// # Errors
/// When there is no socket or no process to be had.
pub fn start(own_exe: &Path, plugin: &Installed) -> std::io::Result<(UnixStream, Child)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let child = Command::new(own_exe)
        .arg(COMMAND)
        .arg(&plugin.path)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()))
        .env(NAME, &plugin.identity.base)
        .env(INDEX, &plugin.identity.index)
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::inherit())
        .stderr(Stdio::inherit())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    Ok((UnixStream::from_std(ours)?, child))
}

/// Turns this process, which [`start`] made, into the plugin: its standard input is the socket, which plugins look for
/// at another descriptor.
///
/// # Errors
/// When the plugin cannot be executed.
pub fn become_plugin(path: &Path) -> std::io::Error {
    let prepared = || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        let socket = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), DESCRIPTOR)?;
        rustix::io::fcntl_setfd(&socket, FdFlags::empty())?;
        Ok::<_, rustix::io::Errno>(socket)
    };
    match prepared() {
        Ok(socket) => {
            let number = std::os::fd::AsRawFd::as_raw_fd(&socket).to_string();
            std::process::Command::new(path).env(SOCKET, number).stdin(Stdio::null()).exec()
        }
        Err(error) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_found_in_order_with_their_configurations() {
        let folder = tempfile::tempdir().unwrap();
        let (plugins, conf) = (folder.path().join("plugins"), folder.path().join("conf"));
        fs::create_dir_all(plugins.join("30-folder")).unwrap();
        fs::create_dir(&conf).unwrap();
        let add = |name: &str, mode: u32, bytes: &[u8]| {
            fs::write(plugins.join(name), bytes).unwrap();
            fs::set_permissions(plugins.join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        add("20-b", 0o755, b"#!/bin/sh\n");
        add("10-a", 0o755, b"#!/bin/sh\n");
        add("40-no-plugin", 0o644, b"");
        add("nonsense", 0o755, b"");
        add("50-wasm", 0o755, b"\0asm\x01\0\0\0");
        fs::write(conf.join("a.conf"), "general").unwrap();
        fs::write(conf.join("10-a.conf"), "special").unwrap();
        fs::write(conf.join("b.conf"), "of b").unwrap();
        let config = Config {
            plugin_path: plugins.display().to_string(),
            plugin_config_path: conf,
            ..Config::default()
        };
        let found = installed(&config).unwrap();
        let found: Vec<_> = found.iter().map(|p| (p.identity.name(), p.config.as_str())).collect();
        assert_eq!(found, [("10-a".to_owned(), "special"), ("20-b".to_owned(), "of b")]);
        let absent = Config { plugin_path: "/no/such/folder".to_owned(), ..Config::default() };
        assert!(installed(&absent).unwrap().is_empty());
    }
}
