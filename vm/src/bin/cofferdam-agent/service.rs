//! The agent's own service.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use cofferdam_proto::agent as proto;
use cofferdam_vm::agent::{BUNDLES, SHM, VERSION};
use cofferdam_vm::share::GUEST_ROOT;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::thread::{ClockId, Timespec};
use rustix::time::clock_settime;
use ttrpc::r#async::TtrpcContext;

use crate::{hardware, network, sys};

/// The answer to PowerOff is under way when the machine ends.
const LAST_ANSWER: Duration = Duration::from_millis(20);
const NANOSECONDS: i64 = 1_000_000_000;

pub struct Service;

fn failed(error: impl std::fmt::Display) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INTERNAL, error.to_string()))
}

fn invalid(words: String) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, words))
}

/// Names become parts of paths.
fn checked(id: &str) -> ttrpc::Result<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
    if id.is_empty() || id.starts_with('.') || id.len() > 128 || !id.chars().all(plain) {
        return Err(invalid(format!("{id:?} is not usable as a name")));
    }
    Ok(id)
}

#[async_trait]
impl proto::Agent for Service {
    async fn hello(&self, _: &TtrpcContext, _: proto::HelloRequest) -> ttrpc::Result<proto::HelloResponse> {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        Ok(proto::HelloResponse { version: VERSION, kernel_release: release, ..Default::default() })
    }

    async fn set_up(&self, _: &TtrpcContext, r: proto::SetUpRequest) -> ttrpc::Result<proto::SetUpResponse> {
        let time = Timespec { tv_sec: r.time / NANOSECONDS, tv_nsec: r.time % NANOSECONDS };
        clock_settime(ClockId::Realtime, time).map_err(failed)?;
        rustix::system::sethostname(r.hostname.as_bytes()).map_err(failed)?;
        mount_shm(r.shm_size).map_err(failed)?;
        network::set_up(&r.interfaces, &r.routes).map_err(failed)?;
        Ok(proto::SetUpResponse::new())
    }

    async fn put_bundle(
        &self,
        _: &TtrpcContext,
        r: proto::PutBundleRequest,
    ) -> ttrpc::Result<proto::PutBundleResponse> {
        let bundle = Path::new(BUNDLES).join(checked(&r.id)?);
        let made = fs::create_dir_all(bundle.join("rootfs"))
            .and_then(|()| fs::write(bundle.join("config.json"), &r.config));
        made.map_err(failed)?;
        Ok(proto::PutBundleResponse { path: bundle.to_string_lossy().into_owned(), ..Default::default() })
    }

    async fn remove_bundle(
        &self,
        _: &TtrpcContext,
        r: proto::RemoveBundleRequest,
    ) -> ttrpc::Result<proto::RemoveBundleResponse> {
        let id = checked(&r.id)?;
        let bundle = Path::new(BUNDLES).join(id);
        unmount_below(&bundle).map_err(failed)?;
        // The host takes them away next; what is still mounted here would keep them busy.
        unmount_below(&Path::new(GUEST_ROOT).join(id)).map_err(failed)?;
        match fs::remove_dir_all(bundle) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(proto::RemoveBundleResponse::new()),
        }
    }

    async fn hardware(
        &self,
        _: &TtrpcContext,
        _: proto::HardwareRequest,
    ) -> ttrpc::Result<proto::HardwareResponse> {
        hardware::look().map_err(failed)
    }

    async fn power_off(
        &self,
        _: &TtrpcContext,
        _: proto::PowerOffRequest,
    ) -> ttrpc::Result<proto::PowerOffResponse> {
        std::thread::spawn(|| {
            std::thread::sleep(LAST_ANSWER);
            sys::power_off();
        });
        Ok(proto::PowerOffResponse::new())
    }
}

/// The pod's own /dev/shm, which its containers share.
fn mount_shm(size: u64) -> io::Result<()> {
    let data = if size == 0 { "mode=1777".to_owned() } else { format!("mode=1777,size={size}") };
    let data = std::ffi::CString::new(data)?;
    fs::create_dir_all(SHM)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("shm", SHM, "tmpfs", flags, data.as_c_str())?)
}

fn unmount_below(folder: &Path) -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    // The last one lies on top of those before it.
    let points: Vec<PathBuf> = points.filter(|point| point.starts_with(folder)).collect();
    for point in points.iter().rev() {
        match unmount(point, UnmountFlags::DETACH) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
