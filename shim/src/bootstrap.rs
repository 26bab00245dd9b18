//! `start`: opens the socket, leaves the server behind and says where it listens.
//!
//! The server is a fork of this process, so it pays for no second exec. Invariant: when the address is printed the
//! socket accepts, and everything inherited from the caller is closed in the server.

use cofferdam_failpoints::failpoint;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, IsTerminal, PipeReader, PipeWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use cofferdam_proto::shim::{NEWEST_PROTOCOL, OLDEST_PROTOCOL, PROTOCOLS_VARIABLE};
use cofferdam_vm::Isolation;
use containerd_shim_protos::bootstrap_api::BootstrapParams;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use nix::unistd::Pid;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde::Deserialize;

use crate::args::Args;
use crate::bundle::Bundle;
use crate::error::ShimError;
use crate::options::Options;
use crate::server::{self, Setup};
use crate::sys::{self, Forked};
use crate::vm::{self, Membership};

/// Socket addresses hold 107 bytes; a longer bundle path gets a socket elsewhere.
const LONGEST_SOCKET_PATH: usize = 100;
const LONGEST_NAME: usize = "vm-0123456789abcdef.sock".len();
const SHORT_SOCKETS: &str = "/run/cofferdam-shim";
const STDIN_LIMIT: u64 = 1 << 20;

/// What the caller told on stdin, as far as it matters here.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Params {
    #[serde(alias = "containerdTtrpcAddress")]
    containerd_ttrpc_address: String,
    #[serde(alias = "socketDir")]
    socket_dir: Option<String>,
    /// The handler's, when they are told so early.
    #[serde(skip)]
    options: Option<Any>,
}

pub fn start(args: &Args) -> Result<(), ShimError> {
    sys::close_from(3);
    let folder = std::env::current_dir().map_err(ShimError::io("find the bundle"))?;
    let bundle = Bundle::new(args.bundle.clone().unwrap_or(folder));
    let params = parse_params(&read_stdin(), &args.id);
    let protocol = agreed(&env(PROTOCOLS_VARIABLE))?;
    let options = Options::from_any(params.options.as_ref())?;
    let mut vm = None;
    let socket = match options.isolation()? {
        Isolation::Namespaces => socket_path(bundle.path(), &args.id, params.socket_dir.as_deref()),
        Isolation::Vm => {
            let folder = socket_folder(params.socket_dir.as_deref());
            let pod = match Membership::of(&bundle)? {
                Membership::Container(pod) => {
                    return join_pod(&vm::socket(&folder, &args.namespace, &pod), &pod, protocol);
                }
                Membership::Pod => &args.id,
            };
            vm = Some(folder.clone());
            vm::socket(&folder, &args.namespace, pod)
        }
    };
    let listener = listen(&socket)?;
    failpoint!("shim.start.listening");
    let address = format!("unix://{}", socket.display());
    bundle.write("address", address.as_bytes()).map_err(|error| {
        drop(fs::remove_file(&socket));
        ShimError::path("write", bundle.join("address"))(error)
    })?;
    failpoint!("shim.start.address_written");
    let events = [params.containerd_ttrpc_address, env("TTRPC_ADDRESS")].into_iter().find(|a| !a.is_empty());
    let setup = Setup {
        namespace: args.namespace.clone(),
        events: events.unwrap_or_default(),
        bundle: bundle.clone(),
        vm,
    };
    let (noted, note) = io::pipe().map_err(ShimError::io("make a pipe"))?;
    match sys::fork().map_err(|e| ShimError::io("fork the server")(e.into()))? {
        Forked::Child => {
            drop(note);
            let begun = await_note(noted).and_then(|()| leave_the_caller(&bundle));
            let status = match begun.and_then(|()| server::serve(setup, listener)) {
                Ok(()) => 0,
                Err(error) => {
                    bundle.warn(&format!("the server ended: {error}"));
                    1
                }
            };
            failpoint!("shim.server.ending", infallible);
            drop(fs::remove_file(&socket));
            sys::exit_now(status)
        }
        Forked::Parent(pid) => introduce(&bundle, pid, note, (&address, protocol)).inspect_err(|_| {
            // A caller that does not hear of the server, because it died, cannot end it either.
            let _ = sys::kill(pid.as_raw(), libc::SIGKILL);
            drop(fs::remove_file(&socket));
        }),
    }
}

/// All containers of a pod in a virtual machine have its shim.
fn join_pod(socket: &Path, pod: &str, protocol: Option<u32>) -> Result<(), ShimError> {
    if let Err(error) = UnixStream::connect(socket) {
        return Err(ShimError::Invalid(format!("the shim of pod {pod} is not there: {error}")));
    }
    answer(&format!("unix://{}", socket.display()), protocol)
}

/// A server that is noted nowhere would be found by nobody: it ends when whoever was to note it died before.
fn await_note(mut noted: PipeReader) -> Result<(), ShimError> {
    noted.read_exact(&mut [0]).map_err(ShimError::io("wait for being noted"))
}

/// Notes who the server is, lets it begin, and tells the caller.
fn introduce(
    bundle: &Bundle,
    pid: Pid,
    mut note: PipeWriter,
    (address, protocol): (&str, Option<u32>),
) -> Result<(), ShimError> {
    failpoint!("shim.start.forked");
    bundle
        .write("shim.pid", pid.to_string().as_bytes())
        .map_err(ShimError::path("write", bundle.join("shim.pid")))?;
    note.write_all(&[0]).map_err(ShimError::io("let the server begin"))?;
    failpoint!("shim.start.pid_written");
    answer(address, protocol)?;
    failpoint!("shim.start.answered", infallible);
    Ok(())
}

/// `-info`: what containerd asks before it shows a runtime to its users.
pub fn info() -> Result<(), ShimError> {
    let mut info = RuntimeInfo::new();
    info.name = "io.containerd.cofferdam.v1".to_owned();
    info.version = MessageField::some(RuntimeVersion {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..RuntimeVersion::default()
    });
    let bytes = info.write_to_bytes().map_err(|e| ShimError::io("encode the information")(e.into()))?;
    io::stdout().write_all(&bytes).map_err(ShimError::io("print the information"))
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// The version of what is Cofferdam's own in this shim that serves a daemon which speaks `oldest-newest`. Other callers,
/// and daemons of before, say nothing and hear nothing.
fn agreed(spoken: &str) -> Result<Option<u32>, ShimError> {
    if spoken.is_empty() {
        return Ok(None);
    }
    let range =
        spoken.split_once('-').and_then(|(a, b)| Some((a.parse::<u32>().ok()?, b.parse::<u32>().ok()?)));
    let (oldest, newest) = range.ok_or_else(|| {
        ShimError::Invalid(format!("{PROTOCOLS_VARIABLE} is {spoken:?}, not OLDEST-NEWEST"))
    })?;
    let agreed = newest.min(NEWEST_PROTOCOL);
    if agreed >= oldest.max(OLDEST_PROTOCOL) {
        return Ok(Some(agreed));
    }
    Err(ShimError::Invalid(format!(
        "the daemon speaks the protocols {spoken} of Cofferdam's shims, this one {OLDEST_PROTOCOL}-{NEWEST_PROTOCOL}: \
         install the two of one version"
    )))
}

/// A bare address is what every version of containerd reads; a caller that names a newer version gets the new form.
fn answer(address: &str, protocol: Option<u32>) -> Result<(), ShimError> {
    let newest: u32 = env("MAX_SHIM_VERSION").parse().unwrap_or(2);
    let text = if newest >= 3 {
        let own = protocol.map(|version| format!(",\"cofferdam\":{version}")).unwrap_or_default();
        format!("{{\"version\":3,\"address\":\"{address}\",\"protocol\":\"ttrpc\"{own}}}")
    } else {
        address.to_owned()
    };
    io::stdout().write_all(text.as_bytes()).map_err(ShimError::io("print the address"))
}

fn read_stdin() -> Vec<u8> {
    let stdin = io::stdin();
    let mut bytes = Vec::new();
    if !stdin.is_terminal() {
        // A caller that closed its end early has said what it had to say.
        drop(stdin.take(STDIN_LIMIT).read_to_end(&mut bytes));
    }
    bytes
}

/// Understands both forms of the newer parameters; older callers send the task's options, which come again at Create.
fn parse_params(bytes: &[u8], id: &str) -> Params {
    if bytes.first() == Some(&b'{') {
        return serde_json::from_slice(bytes).unwrap_or_default();
    }
    match BootstrapParams::parse_from_bytes(bytes) {
        // An Any parses as parameters too, but then the first field holds a type and not our id.
        Ok(params) if params.instance_id == id => Params {
            containerd_ttrpc_address: params.containerd_ttrpc_address.clone(),
            socket_dir: params.socket_dir.clone(),
            options: params.extensions.iter().find_map(|extension| extension.value.as_ref().cloned()),
        },
        _ => Params { options: legacy_options(bytes), ..Params::default() },
    }
}

/// Callers of before those parameters send the options alone.
fn legacy_options(bytes: &[u8]) -> Option<Any> {
    Any::parse_from_bytes(bytes).ok().filter(|any| any.type_url.ends_with(".Options"))
}

pub fn socket_path(bundle: &Path, id: &str, preferred: Option<&str>) -> PathBuf {
    let beside = bundle.join("shim.sock");
    if beside.as_os_str().len() <= LONGEST_SOCKET_PATH {
        return beside;
    }
    let mut hasher = DefaultHasher::new();
    (bundle, id).hash(&mut hasher);
    socket_folder(preferred).join(format!("{:016x}.sock", hasher.finish()))
}

/// Where sockets of short names fit.
fn socket_folder(preferred: Option<&str>) -> PathBuf {
    match preferred {
        Some(folder) if !folder.is_empty() && folder.len() + LONGEST_NAME < LONGEST_SOCKET_PATH => {
            folder.into()
        }
        _ => SHORT_SOCKETS.into(),
    }
}

fn listen(path: &Path) -> Result<UnixListener, ShimError> {
    if let Some(folder) = path.parent().filter(|f| !f.exists()) {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(ShimError::path("make the folder", folder))?;
    }
    if path.exists() {
        if UnixStream::connect(path).is_ok() {
            return Err(ShimError::Exists(format!("a shim that listens on {}", path.display())));
        }
        fs::remove_file(path).map_err(ShimError::path("remove the stale socket", path))?;
    }
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = bound.map_err(ShimError::path("listen on", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(ShimError::path("protect", path))?;
    Ok(listener)
}

/// Gives up the caller's session and streams, so that the server lives on whatever happens to the caller.
fn leave_the_caller(bundle: &Bundle) -> Result<(), ShimError> {
    let failed = || ShimError::io("leave the caller");
    nix::unistd::setsid().map_err(|e| failed()(e.into()))?;
    failpoint!("shim.server.alone");
    let null = fs::File::options().read(true).write(true).open("/dev/null").map_err(failed())?;
    nix::unistd::dup2_stdin(&null).map_err(|e| failed()(e.into()))?;
    nix::unistd::dup2_stdout(&null).map_err(|e| failed()(e.into()))?;
    nix::unistd::dup2_stderr(&null).map_err(|e| failed()(e.into()))?;
    std::env::set_current_dir(bundle.path()).map_err(failed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_come_as_protobuf_or_json_or_not_at_all() {
        let mut params = BootstrapParams::new();
        params.instance_id = "c1".into();
        params.containerd_ttrpc_address = "/run/x.ttrpc".into();
        let bytes = params.write_to_bytes().unwrap();
        assert_eq!(parse_params(&bytes, "c1").containerd_ttrpc_address, "/run/x.ttrpc");
        assert_eq!(parse_params(&bytes, "other"), Params::default());
        let json = br#"{"containerdTtrpcAddress":"/run/y","socketDir":"/s"}"#;
        assert_eq!(parse_params(json, "c1").socket_dir.as_deref(), Some("/s"));
        assert_eq!(parse_params(b"", "c1"), Params::default());
    }

    #[test]
    fn the_newest_protocol_that_both_speak_is_agreed_on() {
        assert_eq!(agreed("").unwrap(), None);
        assert_eq!(agreed(&format!("1-{NEWEST_PROTOCOL}")).unwrap(), Some(NEWEST_PROTOCOL));
        assert_eq!(agreed("1-1").unwrap(), Some(1));
        assert_eq!(agreed("1-99").unwrap(), Some(NEWEST_PROTOCOL));
        let newer = format!("{}-99", NEWEST_PROTOCOL + 1);
        assert!(agreed(&newer).unwrap_err().to_string().contains("install the two of one version"));
        for wrong in ["x", "1", "2-1", "0-0"] {
            agreed(wrong).unwrap_err();
        }
    }

    #[test]
    fn long_bundles_get_a_short_socket() {
        assert_eq!(socket_path(Path::new("/b"), "i", None), Path::new("/b/shim.sock"));
        let long = format!("/{}", "x".repeat(120));
        let path = socket_path(Path::new(&long), "i", None);
        assert!(path.starts_with(SHORT_SOCKETS) && path.as_os_str().len() < 60, "{path:?}");
        assert!(socket_path(Path::new(&long), "i", Some("/run/s")).starts_with("/run/s"));
    }
}
