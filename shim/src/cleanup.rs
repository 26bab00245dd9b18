//! `delete`: what is called when the server is gone. Ends the container and removes what it left.
//!
//! Works from the files of the bundle alone; every step is done whatever became of the ones before.

use cofferdam_failpoints::failpoint;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use containerd_shim_protos::api::DeleteResponse;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use oci_spec::runtime::Spec;
use protobuf::{Message, MessageField};

use crate::args::Args;
use crate::backend::{delete_left, unmount_rootfs};
use crate::bootstrap::socket_path;
use crate::bundle::Bundle;
use crate::cgroup::{CgroupPaths, kill, systemd};
use crate::error::ShimError;
use crate::options::Options;
use crate::publish::to_timestamp;
use crate::sys::{self, Forked};
use crate::task::state::Exit;
use crate::task::{Record, log};
use crate::wire::{Created, TaskOrder};

const TRIES: u32 = 300;
const KILLED: u32 = 137;
/// The file that says that the hooks after the end have run, or were about to.
const HOOKS_RAN: &str = "poststop";

pub fn delete(args: &Args) -> Result<(), ShimError> {
    let folder = std::env::current_dir().map_err(ShimError::io("find the bundle"))?;
    let bundle = Bundle::new(args.bundle.clone().unwrap_or(folder));
    end_server(&bundle, &args.id);
    failpoint!("shim.cleanup.server_ended");
    let record: Option<Record> = bundle.read_json("task.json").ok();
    let (created, options) = record.map(|record| (record.created, record.options)).unzip();
    let cgroups = created.as_ref().map_or_else(|| cgroups_of_spec(&bundle, &args.id), |c| c.cgroups.clone());
    remove_cgroups(&cgroups, &bundle);
    if created.is_none() {
        remove_making(&bundle, &args.id);
    }
    failpoint!("shim.cleanup.cgroups_removed");
    // Where nothing tells whether it was mounted on the host: to unmount what is no mount point changes nothing.
    if created.as_ref().is_none_or(|created| created.mounted_on_host) {
        unmount_rootfs(&bundle.rootfs());
    }
    if let (Some(created), Some(options)) = (&created, options.flatten()) {
        delete_by_runtime(&bundle, &args.id, created, options);
    }
    drop(fs::remove_dir_all(bundle.runtime_root()));
    failpoint!("shim.cleanup.state_removed");
    drop(fs::remove_file(socket_path(bundle.path(), &args.id, None)));
    if let Ok(address) = fs::read_to_string(bundle.join("address")) {
        drop(fs::remove_file(address.trim_start_matches("unix://")));
    }
    failpoint!("shim.cleanup.socket_removed");
    let unknown = || {
        let pid = created.as_ref().map(|c| c.pid).unwrap_or_default();
        Exit { pid, status: KILLED, at: log::now() }
    };
    let exit: Exit = bundle.read_json("exit.json").unwrap_or_else(|_| unknown());
    let mut response = DeleteResponse::new();
    response.pid = exit.pid.cast_unsigned();
    response.exit_status = exit.status;
    response.exited_at = MessageField::some(to_timestamp(exit.at));
    let bytes = response.write_to_bytes().map_err(|e| ShimError::io("encode the answer")(e.into()))?;
    std::io::stdout().write_all(&bytes).map_err(ShimError::io("print the answer"))
}

/// Whether the OCI runtime's deletion is still to be done. An external runtime may be asked again, hooks may not run
/// again: that they do is noted before, for whoever comes next.
pub fn may_delete(bundle: &Bundle, options: &Options) -> bool {
    if options.binary.is_some() {
        return true;
    }
    let noted = bundle.join(HOOKS_RAN).exists();
    !noted
        && bundle.write(HOOKS_RAN, b"").inspect_err(|e| bundle.warn(&format!("note the hooks: {e}"))).is_ok()
}

/// What the server would have had a child do: hooks after the end, an external runtime's own clean-up. In a process of
/// its own, which is left to itself when it takes too long, for the answer is waited for.
fn delete_by_runtime(bundle: &Bundle, id: &str, created: &Created, options: Options) {
    if !created.delete_by_child || !may_delete(bundle, &options) {
        return;
    }
    let order = TaskOrder { id: id.to_owned(), bundle: bundle.path().to_owned(), options, restored: None };
    let child = match sys::fork() {
        Ok(Forked::Parent(child)) => child,
        Ok(Forked::Child) => {
            if let Err(error) = delete_left(&order) {
                bundle.warn(&format!("delete: {error}"));
            }
            sys::exit_now(0)
        }
        Err(errno) => return bundle.warn(&format!("delete: start a process for it: {errno}")),
    };
    for _ in 0..TRIES {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => sleep(Duration::from_millis(10)),
            _ => return,
        }
    }
    bundle.warn("delete: the hooks, or the OCI runtime, take too long and are left to themselves");
}

/// Undoes a creation whose child could not: what is known of it is what the specification says. `mounts`: whether
/// the root file system was for it to mount.
pub fn undo_creation(bundle: &Bundle, id: &str, mounts: bool) {
    remove_cgroups(&cgroups_of_spec(bundle, id), bundle);
    remove_making(bundle, id);
    if mounts {
        unmount_rootfs(&bundle.rootfs());
    }
    drop(fs::remove_dir_all(bundle.runtime_root()));
}

/// A server may still be there: its caller died before it knew the address, or it hangs.
fn end_server(bundle: &Bundle, id: &str) {
    let Some(pid) = fs::read_to_string(bundle.join("shim.pid")).ok().and_then(|text| text.parse().ok())
    else {
        return;
    };
    // The number may be another process's by now; a process that has ended has no command line.
    let serves = || {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).any(|word| word == id.as_bytes())
    };
    for _ in 0..TRIES {
        if !serves() {
            return;
        }
        if let Err(error) = sys::kill(pid, libc::SIGKILL) {
            return bundle.warn(&format!("kill the server {pid}: {error}"));
        }
        sleep(Duration::from_millis(10));
    }
    bundle.warn(&format!("the server {pid} does not die"));
}

/// Where the container's processes must be if its creation was cut off before the shim noted it down.
fn cgroups_of_spec(bundle: &Bundle, id: &str) -> CgroupPaths {
    cgroups_named(bundle, &path_of_spec(bundle, id))
}

fn path_of_spec(bundle: &Bundle, id: &str) -> PathBuf {
    let spec: Option<Spec> = bundle.read_json("config.json").ok();
    let path = spec.as_ref().and_then(|spec| spec.linux().as_ref()?.cgroups_path().clone());
    path.unwrap_or_else(|| id.into())
}

fn cgroups_named(bundle: &Bundle, path: &Path) -> CgroupPaths {
    CgroupPaths::named(path).unwrap_or_else(|error| {
        bundle.warn(&format!("find the container's cgroups: {error}"));
        CgroupPaths::default()
    })
}

/// Removes what a creation that was cut off has left beside the container's cgroup.
fn remove_making(bundle: &Bundle, id: &str) {
    remove_cgroups(&cgroups_named(bundle, &systemd::making(&path_of_spec(bundle, id))), bundle);
}

fn remove_cgroups(cgroups: &CgroupPaths, bundle: &Bundle) {
    for _ in 0..TRIES {
        // Every hierarchy: a process that was being put into them may have reached some only.
        for folder in cgroups.folders() {
            if let Err(error) = kill::signal_folder(folder, cgroups.is_v2(), libc::SIGKILL) {
                bundle.warn(&format!("kill what the container left: {error}"));
            }
        }
        match kill::remove(cgroups) {
            Ok(true) => return,
            Ok(false) => sleep(Duration::from_millis(10)),
            Err(error) => return bundle.warn(&format!("remove the cgroups: {error}")),
        }
    }
    bundle.warn("the cgroups are still occupied and stay behind");
}
