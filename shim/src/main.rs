//! `containerd-shim-cofferdam-v1`: one small process that owns a container.
//!
//! This file only chooses what the process is: the built-in pause, one of the bootstrap commands (`start`, `delete`),
//! the short-lived child that makes a container or an exec, the log writer, a trial of what the kernel can do, the builder of
//! the image of virtual machines, or their trial. Invariant: the long-lived server never
//! calls the OCI runtime itself, so it never holds that code's memory.
#![deny(unsafe_code)]

mod args;
mod backend;
mod bootstrap;
mod bundle;
mod cgroup;
mod cleanup;
mod error;
mod launch;
mod log_writer;
mod options;
mod pause;
mod publish;
mod reaper;
mod server;
mod service;
mod sys;
mod task;
mod tasks;
mod vm;
mod vm_image;
mod vm_trial;
mod wire;
mod work;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let argv: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    let name = argv.first().map(String::as_str).unwrap_or_default();
    if Path::new(name).file_name() == Some(OsStr::new("pause")) {
        return pause::run();
    }
    let outcome = match argv.get(1).map(String::as_str) {
        Some(backend::CHILD_COMMAND) => return backend::child_main(&argv[2..]),
        Some("log-writer") => log_writer::main(&argv[2..]).map_err(|e| e.to_string()),
        Some(vm_image::COMMAND) => vm_image::main(&argv[2..]),
        Some(vm_trial::CHECK) => vm_trial::check(&argv[2..]),
        Some(vm_trial::MEASURE) => vm_trial::measure(&argv[2..]),
        Some("mount-layers") => backend::mount_layers(&argv[2..]),
        Some("probe-user-namespaces") => backend::probe_user_namespaces(&argv[2..]),
        Some("-v" | "-version" | "--version") => {
            println!("containerd-shim-cofferdam-v1 {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ => shim_command(&argv[1..]),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("containerd-shim-cofferdam-v1: {message}");
            ExitCode::FAILURE
        }
    }
}

fn shim_command(argv: &[String]) -> Result<(), String> {
    let args = args::Args::parse(argv).map_err(|e| e.to_string())?;
    if args.info {
        return bootstrap::info().map_err(|e| e.to_string());
    }
    match args.action.as_str() {
        "start" => bootstrap::start(&args).map_err(|e| e.to_string()),
        "delete" => cleanup::delete(&args).map_err(|e| e.to_string()),
        "" => Err("an action is missing: start or delete".into()),
        other => Err(format!("the action {other:?} is not known: use start or delete")),
    }
}
