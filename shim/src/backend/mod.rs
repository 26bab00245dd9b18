//! The OCI runtime behind one trait, and the short-lived child that calls it.
//!
//! Invariant: everything here but the types runs in the child process only. libcontainer changes the working
//! directory and other properties of its process, so two containers are never made in one process.

mod cgroup_mount;
mod console;
mod detail;
mod device_filter;
mod executable;
mod external;
mod idmap;
mod join;
mod layers;
mod null;
mod oci;
mod probe;
mod rootfs;
mod spec;
mod staging;
mod workdir;

use std::fmt;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use nix::sys::signal::SigSet;
use serde::{Deserialize, Serialize};

pub use console::{bind_in_folder, connect_in_folder};

use crate::sys::{self, SharedFd};
use crate::wire::{CreateOrder, Created, ExecOrder, Order, Report, TaskOrder};

/// The first argument of the re-executed shim that makes it the child.
pub const CHILD_COMMAND: &str = "runtime-child";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// What the user asked to run is not there.
    ExecutableNotFound,
    /// It is there and may not be run.
    ExecutableNotPermitted,
    /// It is there and is no program.
    ExecutableInvalid,
    Spec,
    Rootfs,
    Runtime,
}

impl FailureKind {
    pub fn is_about_the_executable(self) -> bool {
        matches!(
            self,
            FailureKind::ExecutableNotFound
                | FailureKind::ExecutableNotPermitted
                | FailureKind::ExecutableInvalid
        )
    }
}

/// Why a container or a process could not be made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Failure { kind, message: message.into() }
    }

    /// For `map_err`: what was being done, and every cause below.
    pub fn because<E: std::error::Error>(kind: FailureKind, doing: &str) -> impl FnOnce(E) -> Self {
        move |error| Failure::new(kind, format!("{doing}: {}", chain(&error)))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// An error and its causes in one line, without saying the same twice.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

/// The child's end of the conversation with the shim.
#[derive(Debug, Clone, Copy)]
pub struct Reporter(SharedFd);

impl Reporter {
    pub fn send(self, report: &Report) {
        if let Ok(mut line) = serde_json::to_vec(report) {
            line.push(b'\n');
            // When the shim is gone there is nobody left to tell; the container's fate is decided by `delete`.
            drop(self.0.write_all(&line));
        }
    }

    pub fn warn(self, text: impl Into<String>) {
        self.send(&Report::Warning(text.into()));
    }
}

/// One way of making containers.
pub trait OciRuntime {
    fn create(&self, order: &CreateOrder, bundle: &Path) -> Result<Created, Failure>;
    fn start(&self, order: &TaskOrder) -> Result<(), Failure>;
    fn exec(&self, order: &ExecOrder) -> Result<i32, Failure>;
    fn delete(&self, order: &TaskOrder) -> Result<(), Failure>;
}

fn runtime_for(options: &crate::options::Options, reporter: Reporter) -> Box<dyn OciRuntime> {
    match &options.binary {
        Some(binary) => Box::new(external::Binary::new(binary, options.systemd_cgroup, reporter)),
        None => Box::new(oci::Libcontainer::new(options.systemd_cgroup, reporter)),
    }
}

/// Runs one order and ends. The exit status says nothing that the reports do not say better.
pub fn child_main(argv: &[String]) -> ExitCode {
    // The container must not inherit a signal mask, whoever started this process.
    let _ = SigSet::all().thread_unblock();
    let Some(socket) = argv.first().and_then(|n| n.parse().ok()).and_then(|n| sys::adopt(n).ok()) else {
        eprintln!("this command is for the shim's own use");
        return ExitCode::FAILURE;
    };
    let (reporter, order) = match take_order(socket) {
        Ok(taken) => taken,
        Err(error) => {
            eprintln!("read the order: {error}");
            return ExitCode::FAILURE;
        }
    };
    detail::report_errors_to(reporter);
    match carry_out(&order, reporter) {
        Ok(report) => {
            reporter.send(&report);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            reporter.send(&Report::Failed(failure));
            ExitCode::FAILURE
        }
    }
}

fn take_order(socket: OwnedFd) -> std::io::Result<(Reporter, Order)> {
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    let mut line = Vec::new();
    let reading = std::fs::File::from(socket.try_clone()?);
    BufReader::new(reading).read_until(b'\n', &mut line)?;
    let order = serde_json::from_slice(&line)?;
    let reporter = Reporter(SharedFd::of(&socket));
    // Kept open on purpose until the process, or the program that takes its place, ends.
    std::mem::forget(socket);
    Ok((reporter, order))
}

fn carry_out(order: &Order, reporter: Reporter) -> Result<Report, Failure> {
    match order {
        Order::Create(order) => {
            let runtime = runtime_for(&order.options, reporter);
            let prepared = spec::prepare(&order.bundle, reporter)?;
            let place = rootfs::mount(order, &prepared.spec)?;
            let on_host = place == rootfs::Place::Host;
            let made = spec::finish(prepared, order, place, reporter)
                .and_then(|bundle| runtime.create(order, &bundle));
            match made {
                Ok(created) => Ok(Report::Created(Created { mounted_on_host: on_host, ..created })),
                Err(failure) => {
                    if on_host {
                        rootfs::unmount(&order.bundle.join("rootfs"));
                    }
                    Err(failure)
                }
            }
        }
        Order::Start(order) => runtime_for(&order.options, reporter).start(order).map(|()| Report::Done),
        Order::Exec(order) => runtime_for(&order.options, reporter).exec(order).map(Report::Executed),
        Order::Delete(order) => runtime_for(&order.options, reporter).delete(order).map(|()| Report::Done),
    }
}

pub use layers::main as mount_layers;
pub use oci::notify_start;
pub use probe::main as probe_user_namespaces;
pub use rootfs::unmount as unmount_rootfs;
