//! What Cloud Hypervisor's API takes, as far as this project uses it: the record that our requests are checked against.
//!
//! Written down from the API's description and the handlers of its HTTP server (version 0.3.0 of the API, August 2026). What is
//! not listed is refused, so that a misspelt field is found; the real one would pass over it in silence.

use serde_json::Value;

/// What a value has to be.
#[derive(Clone, Copy)]
pub enum Kind {
    /// At least so much.
    Integer(u64),
    Text,
    Flag,
    OneOf(&'static [&'static str]),
    Object(&'static [Field]),
    List(&'static [Field]),
}

#[derive(Clone, Copy)]
pub struct Field {
    name: &'static str,
    kind: Kind,
    required: bool,
}

const fn must(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, required: true }
}

const fn may(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, required: false }
}

/// What a machine has to be like for a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    NoMachine,
    Machine,
    /// One that was booted.
    Booted,
}

pub struct Endpoint {
    pub method: &'static str,
    pub name: &'static str,
    /// None where a body is refused.
    pub body: Option<&'static [Field]>,
    /// How many descriptors come beside it, at most.
    pub descriptors: usize,
    pub needs: Needs,
}

const DISK: &[Field] = &[
    may("id", Kind::Text),
    must("path", Kind::Text),
    may("readonly", Kind::Flag),
    may("direct", Kind::Flag),
    may("num_queues", Kind::Integer(1)),
    may("queue_size", Kind::Integer(3)),
    may("serial", Kind::Text),
    may("image_type", Kind::OneOf(&["FixedVhd", "Qcow2", "Raw", "Vhdx", "Unknown"])),
];

const NET: &[Field] = &[
    may("id", Kind::Text),
    may("tap", Kind::Text),
    may("mac", Kind::Text),
    may("mtu", Kind::Integer(0)),
    may("num_queues", Kind::Integer(2)),
    may("queue_size", Kind::Integer(1)),
];

const FS: &[Field] = &[
    may("id", Kind::Text),
    must("tag", Kind::Text),
    must("socket", Kind::Text),
    must("num_queues", Kind::Integer(1)),
    must("queue_size", Kind::Integer(1)),
];

const OUTPUT: &[Field] = &[
    must("mode", Kind::OneOf(&["Off", "Pty", "Tty", "File", "Socket", "Null"])),
    may("file", Kind::Text),
    may("socket", Kind::Text),
];

const MACHINE: &[Field] = &[
    may("cpus", Kind::Object(&[must("boot_vcpus", Kind::Integer(1)), must("max_vcpus", Kind::Integer(1))])),
    may("memory", Kind::Object(&[must("size", Kind::Integer(1)), may("shared", Kind::Flag)])),
    must(
        "payload",
        Kind::Object(&[
            may("firmware", Kind::Text),
            may("kernel", Kind::Text),
            may("cmdline", Kind::Text),
            may("initramfs", Kind::Text),
        ]),
    ),
    may("disks", Kind::List(DISK)),
    may("net", Kind::List(NET)),
    may("rng", Kind::Object(&[must("src", Kind::Text)])),
    may("balloon", Kind::Object(&[must("size", Kind::Integer(0)), may("deflate_on_oom", Kind::Flag)])),
    may("fs", Kind::List(FS)),
    may("serial", Kind::Object(OUTPUT)),
    may("console", Kind::Object(OUTPUT)),
    may("vsock", Kind::Object(&[must("cid", Kind::Integer(3)), must("socket", Kind::Text)])),
    may("landlock_enable", Kind::Flag),
    may(
        "landlock_rules",
        Kind::List(&[must("path", Kind::Text), must("access", Kind::OneOf(&["r", "w", "rw"]))]),
    ),
];

const RESIZE: &[Field] = &[
    may("desired_vcpus", Kind::Integer(1)),
    may("desired_ram", Kind::Integer(0)),
    may("desired_balloon", Kind::Integer(0)),
];

const fn put(name: &'static str, body: Option<&'static [Field]>, needs: Needs) -> Endpoint {
    Endpoint { method: "PUT", name, body, descriptors: 0, needs }
}

pub const ENDPOINTS: &[Endpoint] = &[
    Endpoint { method: "GET", name: "vmm.ping", body: None, descriptors: 0, needs: Needs::Nothing },
    Endpoint { method: "GET", name: "vm.info", body: None, descriptors: 0, needs: Needs::Machine },
    put("vm.create", Some(MACHINE), Needs::NoMachine),
    put("vm.boot", None, Needs::Machine),
    put("vm.pause", None, Needs::Booted),
    put("vm.resume", None, Needs::Booted),
    put("vm.resize", Some(RESIZE), Needs::Machine),
    put("vm.add-disk", Some(DISK), Needs::Machine),
    put("vm.add-fs", Some(FS), Needs::Machine),
    Endpoint { method: "PUT", name: "vm.add-net", body: Some(NET), descriptors: 8, needs: Needs::Machine },
    put("vm.shutdown", None, Needs::Booted),
    put("vmm.shutdown", None, Needs::Nothing),
];

/// What is wrong with a body, if anything is.
pub fn check(value: &Value, fields: &[Field]) -> Result<(), String> {
    let object = value.as_object().ok_or("it is no object")?;
    for name in object.keys() {
        if !fields.iter().any(|field| field.name == name) {
            return Err(format!("unknown field {name}"));
        }
    }
    for field in fields {
        match object.get(field.name) {
            None if field.required => return Err(format!("missing field {}", field.name)),
            None => {}
            Some(value) => check_one(value, field.kind).map_err(|why| format!("{}: {why}", field.name))?,
        }
    }
    Ok(())
}

fn check_one(value: &Value, kind: Kind) -> Result<(), String> {
    let fits = match kind {
        Kind::Integer(least) => value.as_u64().is_some_and(|number| number >= least),
        Kind::Text => value.is_string(),
        Kind::Flag => value.is_boolean(),
        Kind::OneOf(words) => value.as_str().is_some_and(|text| words.contains(&text)),
        Kind::Object(fields) => return check(value, fields),
        Kind::List(fields) => {
            let list = value.as_array().ok_or("it is no list")?;
            return list.iter().try_for_each(|one| check(one, fields));
        }
    };
    if fits { Ok(()) } else { Err(format!("{value} does not fit")) }
}
