//! A program in Cloud Hypervisor's place: it takes the API's socket as the real one does, checks each request against the
//! contract, answers and refuses like the real one, and plays the part of a guest whose agent announces itself.
//!
//! It tells what it saw on its standard error, a line of JSON for each request. The file `trick` in the machine's folder
//! makes it misbehave.

use std::fs;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use serde_json::{Value, json};

use crate::contract::{self, ENDPOINTS, Needs};
use crate::guest;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Created,
    Running,
    Paused,
    Shutdown,
}

struct Double {
    machine: Option<(State, Value)>,
    /// Cards, disks, and connections to virtiofsd.
    open: Vec<OwnedFd>,
    guest: Option<std::thread::JoinHandle<()>>,
    trick: Option<String>,
}

struct Request {
    method: String,
    path: String,
    body: Option<Vec<u8>>,
    passed: Vec<OwnedFd>,
}

/// Status and body.
type Answer = (u16, Option<Value>);

fn refusal(status: u16, words: &str) -> Answer {
    (status, Some(json!(["Error from API", words])))
}

pub fn main(arguments: &[String]) {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ["--api-socket", socket, "--seccomp", "true"] = words[..] else { panic!("started with {words:?}") };
    let number = socket.strip_prefix("fd=").unwrap().parse().unwrap();
    report(&json!({ "started": confinement() }));
    let listener = listener(number);
    let (stream, _) = listener.accept().unwrap();
    let mut double = Double { machine: None, open: Vec::new(), guest: None, trick: None };
    let mut rest = Vec::new();
    while let Some(request) = read(&stream, &mut rest) {
        let (status, body) = double.take(&request);
        let name = request.path.rsplit('/').next().unwrap_or_default();
        let sent = request.body.as_deref().map(|body| serde_json::from_slice(body).unwrap_or(Value::Null));
        report(&json!({ "request": name, "status": status, "body": sent, "passed": request.passed.len() }));
        answer(&stream, status, body.as_ref(), double.trick.as_deref());
        if name == "vmm.shutdown" {
            return;
        }
    }
}

fn report(line: &Value) {
    eprintln!("{line}");
}

/// A copy of what this process was started with.
fn listener(number: i32) -> UnixListener {
    let own = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    pidfd_getfd(own, number, PidfdGetfdFlags::empty()).unwrap().into()
}

/// How this process is kept apart.
fn confinement() -> Value {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim_matches([':', '\t', ' ']).to_owned())
    };
    let cards = fs::read_to_string("/proc/self/net/dev").unwrap().lines().count() - 2;
    json!({ "capabilities": field("CapEff"), "privileges": field("NoNewPrivs"), "cards": cards })
}

/// One request, with the descriptors that came with it.
fn read(stream: &UnixStream, rest: &mut Vec<u8>) -> Option<Request> {
    let mut passed = Vec::new();
    let end = loop {
        if let Some(at) = rest.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        receive(stream, rest, &mut passed)?;
    };
    let head = String::from_utf8(rest[..end].to_vec()).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length: Option<usize> = length.map(|text| text.parse().unwrap());
    while rest.len() < end + length.unwrap_or(0) {
        receive(stream, rest, &mut passed)?;
    }
    let body: Vec<u8> = rest.drain(..end + length.unwrap_or(0)).skip(end).collect();
    let mut words = head.lines().next().unwrap().split(' ');
    let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    assert_eq!(words.next(), Some("HTTP/1.1"));
    Some(Request { method, path, body: length.map(|_| body), passed })
}

fn receive(stream: &UnixStream, rest: &mut Vec<u8>, passed: &mut Vec<OwnedFd>) -> Option<()> {
    let mut buffer = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(stream, &mut [IoSliceMut::new(&mut buffer)], &mut beside, RecvFlags::empty()).unwrap();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            passed.extend(descriptors);
        }
    }
    rest.extend(&buffer[..got.bytes]);
    (got.bytes > 0).then_some(())
}

fn answer(mut stream: &UnixStream, status: u16, body: Option<&Value>, trick: Option<&str>) {
    let text = body.map(Value::to_string).unwrap_or_default();
    let head = format!("HTTP/1.1 {status} \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n");
    let whole = match (trick, text.len()) {
        (Some("garbage"), _) => "\u{1b}[2J no HTTP\r\n\r\n".to_owned(),
        (Some("endless"), _) => format!("{head}Content-Length: 99999999\r\n\r\n"),
        (_, 0) => format!("{head}\r\n"),
        (_, length) => {
            format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{text}")
        }
    };
    // Whoever asked may be gone.
    drop(stream.write_all(whole.as_bytes()));
}

impl Double {
    fn take(&mut self, request: &Request) -> Answer {
        let Some(name) = request.path.strip_prefix("/api/v1/") else { return refusal(404, "Not Found") };
        let Some(endpoint) = ENDPOINTS.iter().find(|endpoint| endpoint.name == name) else {
            return refusal(404, "Not Found");
        };
        if endpoint.method != request.method || endpoint.descriptors < request.passed.len() {
            return refusal(400, "Bad Request");
        }
        let body = match (endpoint.body, &request.body) {
            (None, None) => Value::Null,
            (Some(fields), Some(text)) => match serde_json::from_slice(text) {
                Ok(body) => match contract::check(&body, fields) {
                    Ok(()) => body,
                    Err(why) => return refusal(400, &format!("Failed to deserialize JSON: {why}")),
                },
                Err(error) => return refusal(400, &error.to_string()),
            },
            _ => return refusal(400, "Bad Request"),
        };
        let state = self.machine.as_ref().map(|(state, _)| *state);
        match (endpoint.needs, state) {
            (Needs::NoMachine, Some(_)) => return refusal(500, "VM is already created"),
            (Needs::Machine, None) => return refusal(404, "VM is not created"),
            (Needs::Booted, None | Some(State::Created | State::Shutdown)) => {
                return refusal(500, "VM is not running");
            }
            _ => {}
        }
        self.obey(name, body, request)
    }

    fn obey(&mut self, name: &str, body: Value, request: &Request) -> Answer {
        match name {
            "vmm.ping" => {
                (200, Some(json!({ "version": "double", "pid": std::process::id(), "features": ["kvm"] })))
            }
            "vm.info" => {
                let (state, config) = self.machine.as_ref().unwrap();
                (200, Some(json!({ "state": format!("{state:?}"), "config": config })))
            }
            "vm.create" => {
                self.machine = Some((State::Created, body));
                (204, None)
            }
            "vm.boot" => self.boot(),
            "vm.pause" => self.pass(State::Running, State::Paused),
            "vm.resume" => self.pass(State::Paused, State::Running),
            "vm.shutdown" => {
                self.machine.as_mut().unwrap().0 = State::Shutdown;
                (204, None)
            }
            "vm.resize" => self.resize(&body),
            "vm.add-disk" => {
                self.add("disks", body, |disk| Some(fs::File::open(text(&disk["path"])).map(OwnedFd::from)))
            }
            "vm.add-fs" => {
                self.add("fs", body, |fs| Some(UnixStream::connect(text(&fs["socket"])).map(OwnedFd::from)))
            }
            "vm.add-net" => {
                for passed in &request.passed {
                    self.open.push(passed.as_fd().try_clone_to_owned().unwrap());
                }
                let wants = body["num_queues"].as_u64().unwrap_or(2) / 2;
                if wants != request.passed.len() as u64 {
                    return refusal(400, "the number of queues does not fit the number of descriptors");
                }
                self.add("net", body, |_| None)
            }
            _ => (204, None),
        }
    }

    fn pass(&mut self, from: State, to: State) -> Answer {
        let state = &mut self.machine.as_mut().unwrap().0;
        if *state != from {
            return refusal(500, "Invalid VM state transition");
        }
        *state = to;
        (204, None)
    }

    fn resize(&self, body: &Value) -> Answer {
        let config = &self.machine.as_ref().unwrap().1;
        match (config.get("balloon"), body["desired_balloon"].as_u64()) {
            (None, Some(_)) => refusal(500, "Failed to update the balloon: there is none"),
            (Some(_), Some(size)) if size > config["memory"]["size"].as_u64().unwrap() => {
                refusal(500, "the balloon is larger than the memory")
            }
            _ => (204, None),
        }
    }

    /// Before the boot a device becomes part of the configuration; after it, the machine has it at once.
    fn add(
        &mut self,
        list: &str,
        body: Value,
        open: impl Fn(&Value) -> Option<io::Result<OwnedFd>>,
    ) -> Answer {
        let (state, config) = self.machine.as_mut().unwrap();
        let id = body["id"].as_str().map(str::to_owned);
        let taken = |one: &Value| id.is_some() && one["id"].as_str() == id.as_deref();
        if config[list].as_array().is_some_and(|all| all.iter().any(taken)) {
            return refusal(409, "Identifier is not unique");
        }
        if *state != State::Created {
            match open(&body) {
                Some(Ok(opened)) => self.open.push(opened),
                Some(Err(error)) => return refusal(500, &format!("Cannot open: {error}")),
                None => {}
            }
        }
        if config[list].is_null() {
            config[list] = json!([]);
        }
        let count = config[list].as_array().unwrap().len();
        config[list].as_array_mut().unwrap().push(body);
        match state {
            State::Created => (204, None),
            _ => {
                let id = id.unwrap_or_else(|| format!("_{list}{count}"));
                (200, Some(json!({ "id": id, "bdf": format!("0000:00:{:02x}.0", count + 5) })))
            }
        }
    }

    /// Opens all that the machine is made of, as the real one does, then lets a guest run.
    fn boot(&mut self) -> Answer {
        let (state, config) = self.machine.as_mut().unwrap();
        if *state != State::Created {
            return refusal(500, "VM is already created");
        }
        for path in [&config["payload"]["kernel"], &config["payload"]["initramfs"]] {
            if let Err(error) = fs::File::open(text(path)) {
                return refusal(500, &format!("Cannot open {path}: {error}"));
            }
        }
        if config["memory"]["shared"] != json!(true) {
            return refusal(400, "Using vhost-user requires shared memory or huge pages");
        }
        for share in config["fs"].as_array().into_iter().flatten() {
            match UnixStream::connect(text(&share["socket"])) {
                Ok(connected) => self.open.push(connected.into()),
                Err(error) => {
                    return refusal(500, &format!("Cannot connect to {}: {error}", share["socket"]));
                }
            }
        }
        let socket = text(&config["vsock"]["socket"]);
        let _listener = UnixListener::bind(&socket).unwrap();
        let mut console = fs::File::create(text(&config["serial"]["file"])).unwrap();
        console.write_all(b"the guest's kernel begins\n").unwrap();
        self.trick = trick(&socket);
        let line = config["payload"]["cmdline"].as_str().unwrap().to_owned();
        match self.trick.as_deref() {
            Some("no boot") => return refusal(500, "Cannot create a vCPU: no KVM"),
            Some("wrong state") => return (204, None),
            Some("silent guest") => {}
            _ => self.guest = Some(guest::announce(&socket, &line)),
        }
        *state = State::Running;
        (204, None)
    }
}

fn text(value: &Value) -> PathBuf {
    value.as_str().unwrap_or_default().into()
}

fn trick(socket: &Path) -> Option<String> {
    let mut text = String::new();
    fs::File::open(socket.with_file_name("trick")).ok()?.read_to_string(&mut text).ok()?;
    Some(text)
}
