//! `check-machines PROBES` and `measure-machine FOLDER PROBES`: whether machines of a handler can run on this node, and what
//! one costs it. The handler's options come on stdin, as they come with a task; the answer is a line of JSON.
//!
//! PROBES is the folder that keeps what is known of KVM, FOLDER one for the machine alone.

use std::io::{self, Read};
use std::path::Path;

use cofferdam_vm::measure;
use cofferdam_vm::probe;
use cofferdam_vm::vmm::Accelerator;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::json;

use crate::options::Options;

pub const CHECK: &str = "check-machines";
pub const MEASURE: &str = "measure-machine";
const LONGEST_OPTIONS: u64 = 1 << 20;

pub fn check(argv: &[String]) -> Result<(), String> {
    let [probes] = argv else { return Err(format!("usage: {CHECK} PROBES < OPTIONS")) };
    let options = options()?;
    let found = run(probe::look(&options.vm, Path::new(probes)))?.map_err(|error| error.to_string())?;
    println!(
        "{}",
        json!({
            "kvm": found.accelerator == Accelerator::Kvm,
            "obstacle": found.obstacle,
            "overheadMiB": options.vm.guest_memory.saturating_add(options.vm.monitor_memory),
        })
    );
    Ok(())
}

pub fn measure(argv: &[String]) -> Result<(), String> {
    let [folder, probes] = argv else {
        return Err(format!("usage: {MEASURE} FOLDER PROBES < OPTIONS"));
    };
    let options = options()?;
    let measuring = measure::cost(&options.vm, Path::new(folder), Path::new(probes));
    let cost = run(measuring)?.map_err(|error| error.to_string())?;
    println!(
        "{}",
        json!({
            "kvm": cost.accelerator == Accelerator::Kvm,
            "guestKiB": cost.guest,
            "monitorKiB": cost.monitor,
            "shimKiB": cost.caller,
            "guestMiBConfigured": options.vm.guest_memory,
            "monitorMiBConfigured": options.vm.monitor_memory,
        })
    );
    Ok(())
}

fn options() -> Result<Options, String> {
    let mut bytes = Vec::new();
    let read = io::stdin().take(LONGEST_OPTIONS).read_to_end(&mut bytes);
    read.map_err(|error| format!("read the options: {error}"))?;
    let any = Any::parse_from_bytes(&bytes).map_err(|error| format!("read the options: {error}"))?;
    Options::from_any(Some(&any)).map_err(|error| error.to_string())
}

fn run<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(|error| format!("start: {error}"))?.block_on(work))
}
