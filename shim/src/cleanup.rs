//! `delete`: what is called when the server is gone. Ends the container and removes what it left.
//!
//! Works from the files of the bundle alone; every step is done whatever became of the ones before.

use cofferdam_failpoints::failpoint;
use std::fs;
use std::io::Write;
use std::thread::sleep;
use std::time::Duration;

use containerd_shim_protos::api::DeleteResponse;
use oci_spec::runtime::Spec;
use protobuf::{Message, MessageField};

use crate::args::Args;
use crate::backend::unmount_rootfs;
use crate::bootstrap::socket_path;
use crate::bundle::Bundle;
use crate::cgroup::{CgroupPaths, kill};
use crate::error::ShimError;
use crate::publish::to_timestamp;
use crate::sys;
use crate::task::log;
use crate::task::state::Exit;
use crate::wire::Created;

const TRIES: u32 = 300;
const KILLED: u32 = 137;

pub fn delete(args: &Args) -> Result<(), ShimError> {
    let folder = std::env::current_dir().map_err(ShimError::io("find the bundle"))?;
    let bundle = Bundle::new(args.bundle.clone().unwrap_or(folder));
    end_server(&bundle, &args.id);
    failpoint!("shim.cleanup.server_ended");
    let created: Option<Created> = bundle.read_json("task.json").ok();
    let cgroups = created.as_ref().map_or_else(|| cgroups_of_spec(&bundle, &args.id), |c| c.cgroups.clone());
    remove_cgroups(&cgroups, &bundle);
    failpoint!("shim.cleanup.cgroups_removed");
    // Where nothing tells whether it was mounted on the host: to unmount what is no mount point changes nothing.
    if created.as_ref().is_none_or(|created| created.mounted_on_host) {
        unmount_rootfs(&bundle.rootfs());
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
    let spec: Option<Spec> = bundle.read_json("config.json").ok();
    let path = spec.as_ref().and_then(|spec| spec.linux().as_ref()?.cgroups_path().clone());
    CgroupPaths::named(&path.unwrap_or_else(|| id.into())).unwrap_or_else(|error| {
        bundle.warn(&format!("find the container's cgroups: {error}"));
        CgroupPaths::default()
    })
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
