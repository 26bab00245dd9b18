//! The OCI runtime behind one trait, and the short-lived child that calls it.
//!
//! Invariant: everything here but the types runs in the child process only. libcontainer changes the working
//! directory and other properties of its process, so two containers are never made in one process.

mod cgroup_mount;
mod console;
mod criu;
mod detail;
mod device_filter;
mod enter;
mod executable;
mod external;
mod guard;
mod idmap;
mod join;
mod late;
mod layers;
mod null;
mod oci;
mod probe;
mod propagation;
mod rootfs;
mod selinux;
mod spec;
mod staging;
mod workdir;

use cofferdam_failpoints::failpoint;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use nix::sys::signal::SigSet;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

pub use console::{bind_in_folder, connect_in_folder};

use crate::cgroup::systemd::{self, Visit};
use crate::options::Options;
use crate::sys::{self, SharedFd};
use crate::wire::{CreateOrder, Created, ExecOrder, Order, Report, TaskOrder};
use spec::Fitted;

/// The first argument of the re-executed shim that makes it the child.
pub const CHILD_COMMAND: &str = "runtime-child";

/// No message of a report is longer.
const LONGEST_MESSAGE: usize = 4096;

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
    /// criu is not there, or cannot do it here.
    Checkpoint,
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
        Failure { kind, message: clip(message.into()) }
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

/// Failures that tests inject, in builds for tests only.
#[cfg(feature = "failpoints")]
impl From<cofferdam_failpoints::Injected> for Failure {
    fn from(injected: cofferdam_failpoints::Injected) -> Self {
        Failure::new(FailureKind::Runtime, injected.to_string())
    }
}

/// Messages repeat what the user wrote, however long that was.
fn clip(mut text: String) -> String {
    if text.len() > LONGEST_MESSAGE {
        let end = (0..=LONGEST_MESSAGE).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
        text.push('…');
    }
    text
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
        self.send(&Report::Warning(clip(text.into())));
    }
}

/// One way of making containers.
pub trait OciRuntime {
    /// `visit` ends as soon as the container's first process is there.
    fn create(&self, order: &CreateOrder, fitted: &Fitted, visit: &Visit) -> Result<Created, Failure>;
    fn start(&self, order: &TaskOrder) -> Result<(), Failure>;
    fn exec(&self, order: &ExecOrder) -> Result<i32, Failure>;
    fn delete(&self, order: &TaskOrder) -> Result<(), Failure>;
}

fn runtime_for(options: &Options, bundle: &Path, reporter: Reporter) -> Box<dyn OciRuntime> {
    let spec = || Spec::load(bundle.join("config.json")).ok();
    // Only the external ones do as they are told; ours goes by the path.
    let systemd = options.systemd_cgroup
        && (options.binary.is_none() || spec().is_none_or(|spec| plain_path(&spec).is_none()));
    match &options.binary {
        Some(binary) => Box::new(external::Binary::new(binary, systemd, reporter)),
        None => Box::new(oci::Libcontainer::new(systemd, reporter)),
    }
}

/// Runs one order and ends. The exit status says nothing that the reports do not say better.
pub fn child_main(argv: &[String]) -> ExitCode {
    // The container must not inherit a signal mask, whoever started this process.
    let _ = SigSet::all().thread_unblock();
    let number = |at: usize| argv.get(at).and_then(|n| n.parse().ok());
    let (Some(Ok(socket)), Some(shim)) = (number(0).map(sys::adopt), number(1)) else {
        eprintln!("this command is for the shim's own use");
        return ExitCode::FAILURE;
    };
    let (reporter, order) = match keep_apart(shim).and_then(|()| take_order(socket)) {
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

/// Deletes what a dead server left, in a process that was forked for nothing else. What the runtime and hooks say goes
/// nowhere: the standard output is for the answer.
pub fn delete_left(order: &TaskOrder) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::because(FailureKind::Runtime, "leave the standard streams")(e);
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").map_err(failed)?;
    let left = nix::unistd::dup2_stdin(&null)
        .and_then(|()| nix::unistd::dup2_stdout(&null))
        .and_then(|()| nix::unistd::dup2_stderr(&null));
    left.map_err(|errno| failed(errno.into()))?;
    let null = OwnedFd::from(null);
    runtime_for(&order.options, &order.bundle, Reporter(SharedFd::of(&null))).delete(order)
}

/// Before anything else: nothing this process starts gets its descriptors, nobody whose namespaces it enters may look
/// into it, and it does not go on making a container for a shim that is dead.
fn keep_apart(shim: i32) -> std::io::Result<()> {
    sys::die_with(shim)?;
    sys::forbid_looking_in()?;
    sys::close_on_exec_from(3)
}

fn take_order(socket: OwnedFd) -> std::io::Result<(Reporter, Order)> {
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
            let runtime = runtime_for(&order.options, &order.bundle, reporter);
            let prepared = spec::prepare(&order.bundle, reporter)?;
            failpoint!("shim.child.spec_read");
            let visit = join_scope(order, &prepared.spec)?;
            let place = rootfs::mount(order, &prepared.spec)?;
            failpoint!("shim.child.rootfs_mounted", infallible);
            let on_host = place == rootfs::Place::Host;
            let made = spec::finish(prepared, order, place)
                .and_then(|fitted| runtime.create(order, &fitted, &visit));
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
        Order::Start(order) => {
            runtime_for(&order.options, &order.bundle, reporter).start(order).map(|()| Report::Done)
        }
        Order::Exec(order) => {
            runtime_for(&order.options, &order.bundle, reporter).exec(order).map(Report::Executed)
        }
        Order::Delete(order) => {
            runtime_for(&order.options, &order.bundle, reporter).delete(order).map(|()| Report::Done)
        }
        Order::Checkpoint(order) => criu::dump(order).map(|()| Report::Done),
        Order::Restore(order) => criu::restore(order, reporter).map(Report::Restored),
    }
}

/// Where systemd keeps the cgroups, a container is made inside of its pod's scope. A path in systemd's own form is for
/// the OCI runtime to understand, which then makes a scope for each container.
fn join_scope(order: &CreateOrder, spec: &Spec) -> Result<Visit, Failure> {
    if !order.options.systemd_cgroup {
        return Ok(Visit::default());
    }
    if let Some(path) = plain_path(spec) {
        return systemd::enter(path).map_err(Failure::because(FailureKind::Runtime, "join the pod's scope"));
    }
    if order.options.binary.is_none() && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let words =
            "a scope for each container needs cgroup v2: give a plain path below a scope, or a binary";
        return Err(Failure::new(FailureKind::Spec, words));
    }
    Ok(Visit::default())
}

/// The container's cgroup, when it is named by its path and not as a unit of systemd's.
fn plain_path(spec: &Spec) -> Option<&Path> {
    let path = spec.linux().as_ref()?.cgroups_path().as_ref()?;
    path.is_absolute().then_some(path.as_path())
}

pub use layers::main as mount_layers;
pub use oci::notify_start;
pub use probe::main as probe_user_namespaces;
pub use rootfs::unmount as unmount_rootfs;
