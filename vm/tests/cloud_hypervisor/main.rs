//! The driver of Cloud Hypervisor against its API as recorded in `contract`, spoken by a real process that is started and
//! confined like the real one. No guest boots here: that was not seen with the real one.
//!
//! This file is its own runner, as the same program has to be the double when it is started as the monitor.

mod contract;
mod double;
mod guest;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use cofferdam_vm::agent::GuestSetup;
use cofferdam_vm::boot::{BootError, Plan};
use cofferdam_vm::config::VmConfig;
use cofferdam_vm::machine::Machine;
use cofferdam_vm::share::Share;
use cofferdam_vm::sys::tap;
use cofferdam_vm::vmm::{Accelerator, MonitorError, Nic};
use cofferdam_vm::wire::WireKind;
use serde_json::Value;

const MIB: u64 = 1 << 20;

struct Bench {
    folder: tempfile::TempDir,
    config: VmConfig,
}

impl Bench {
    fn new(trick: Option<&str>) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, name).unwrap();
            path
        };
        // The name says which monitor it is.
        let monitor = folder.path().join("cloud-hypervisor");
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &monitor).unwrap();
        let config = VmConfig {
            monitor,
            kernel: file("kernel"),
            image: file("initramfs"),
            memory: 192,
            boot_seconds: 20,
            ..VmConfig::default()
        };
        let bench = Bench { folder, config };
        if let Some(trick) = trick {
            fs::create_dir_all(bench.pod()).unwrap();
            fs::write(bench.pod().join("trick"), trick).unwrap();
        }
        bench
    }

    fn pod(&self) -> PathBuf {
        self.folder.path().join("pod")
    }

    async fn start(&self, nics: Vec<Nic>) -> Result<Machine, BootError> {
        let place = |_| Ok(());
        let plan =
            Plan { config: self.config.clone(), accelerator: Accelerator::Kvm, folder: self.pod(), nics };
        let greeted = plan.prepare(&place)?.launch(&place).await?.greet().await?;
        greeted.set_up(&GuestSetup::default()).await
    }

    /// What the double told.
    fn told(&self) -> Vec<Value> {
        let log = fs::read_to_string(self.pod().join("monitor.log")).unwrap();
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn requests(&self) -> Vec<(String, u64)> {
        let all = self.told();
        let request = |line: &Value| Some((line["request"].as_str()?.to_owned(), line["status"].as_u64()?));
        all.iter().filter_map(request).collect()
    }

    fn body(&self, request: &str) -> Value {
        self.told().into_iter().rfind(|line| line["request"] == request).unwrap()["body"].take()
    }
}

fn card(number: u32) -> Nic {
    let tap = tap::make(&format!("cfvc{}", (std::process::id() + number) % 100_000)).unwrap();
    Nic { tap, mac: format!("02:00:00:00:88:{number:02x}") }
}

fn image(folder: &Path) -> File {
    let path = folder.join("image");
    fs::write(&path, [0; 512]).unwrap();
    File::open(path).unwrap()
}

async fn a_machine_is_made_as_the_contract_says() {
    let bench = Bench::new(None);
    let machine = bench.start(vec![card(1), card(2)]).await.unwrap();
    assert_eq!(machine.guest().kernel_release, guest::RELEASE);
    assert_eq!(machine.wire(), WireKind::HybridVsock);
    let expected = [
        ("vmm.ping", 200),
        ("vm.create", 204),
        ("vm.add-net", 204),
        ("vm.add-net", 204),
        ("vm.boot", 204),
        ("vm.info", 200),
    ];
    assert_eq!(bench.requests(), expected.map(|(name, status)| (name.to_owned(), status)));
    let started = &bench.told()[0]["started"];
    assert_eq!((&started["privileges"], &started["cards"]), (&"1".into(), &1.into()), "{started}");
    assert_eq!(started["capabilities"], "0000000000000000", "{started}");
    let create = bench.body("vm.create");
    assert_eq!(create["memory"]["size"], 192 * MIB);
    let line = create["payload"]["cmdline"].as_str().unwrap();
    assert!(line.contains("COFFERDAM_MODULES=pci,vsock COFFERDAM_CHANNEL=vsock:1024"), "{line}");
    assert_eq!(create["landlock_enable"] == Value::Bool(true), cofferdam_vm::sys::landlock::is_available());
    assert!(
        bench.told().iter().filter(|told| told["request"] == "vm.add-net").all(|told| told["passed"] == 1)
    );
    assert!(machine.monitor().console().await.contains("kernel begins"));
    // No name is left by which somebody else could come.
    for name in ["api.socket", "vsock_1024", "share.socket", "console"] {
        assert!(!bench.pod().join(name).exists(), "{name} is still there");
    }
    let pid = machine.monitor().pid();
    machine.stop().await;
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the monitor lives on");
    let requests = bench.requests();
    assert!(requests.contains(&("vmm.shutdown".to_owned(), 204)), "{requests:?}");
}

async fn a_running_machine_takes_disks_cards_and_shares() {
    let bench = Bench::new(None);
    let machine = bench.start(Vec::new()).await.unwrap();
    let monitor = machine.monitor();
    monitor.add_disk("layer-1", image(bench.folder.path()).into()).await.unwrap();
    let disk = bench.body("vm.add-disk");
    let path = disk["path"].as_str().unwrap();
    assert!(disk["readonly"] == true && disk["serial"] == "layer-1", "{disk}");
    assert!(!Path::new(path).exists(), "the disk is seen on the node: {path}");
    // The real one says 409; the first disk stays.
    let again = monitor.add_disk("layer-1", image(bench.folder.path()).into()).await.unwrap_err();
    assert!(matches!(&again, MonitorError::Refused { words, .. } if words.contains("409")), "{again}");
    let refused = monitor.add_disk("../x", image(bench.folder.path()).into()).await;
    assert!(matches!(refused, Err(MonitorError::Name { .. })), "{refused:?}");

    monitor.add_nic(card(3)).await.unwrap();
    let parts = bench.config.parts().unwrap();
    let (_second, socket) = Share::start(&parts.virtiofsd, &bench.pod().join("second"), None).unwrap();
    monitor.add_share("second", socket).await.unwrap();
    let (_third, socket) = Share::start(&parts.virtiofsd, &bench.folder.path().join("third"), None).unwrap();
    let refused = monitor.add_share("third", socket).await;
    assert!(matches!(refused, Err(MonitorError::Io { .. })), "{refused:?}");
    let statuses = bench.requests();
    for name in ["vm.add-disk", "vm.add-net", "vm.add-fs"] {
        assert!(statuses.contains(&(name.to_owned(), 200)), "{name}: {statuses:?}");
    }
    machine.stop().await;
}

async fn pausing_and_the_balloon_are_asked_for() {
    let bench = Bench::new(None);
    let machine = bench.start(Vec::new()).await.unwrap();
    let monitor = machine.monitor();
    monitor.pause().await.unwrap();
    let twice = monitor.pause().await.unwrap_err();
    assert!(twice.to_string().contains("state transition"), "{twice}");
    monitor.resume().await.unwrap();
    monitor.balloon(128 * MIB).await.unwrap();
    assert_eq!(bench.body("vm.resize")["desired_balloon"], 64 * MIB);
    assert!(monitor.capabilities().add_disk);
    monitor.kill();
    let reason = tokio::time::timeout(Duration::from_secs(10), machine.ended()).await.unwrap();
    assert!(reason.contains("ended"), "{reason}");
    let gone = monitor.pause().await;
    assert!(matches!(gone, Err(MonitorError::Talk { .. })), "{gone:?}");
}

async fn a_refusal_ends_everything_in_the_monitors_words() {
    for (trick, part) in
        [("no boot", "no KVM"), ("wrong state", "Created"), ("garbage", "no HTTP"), ("endless", "too long")]
    {
        let bench = Bench::new(Some(trick));
        let error = bench.start(vec![card(4)]).await.expect_err(trick).to_string();
        assert!(error.contains(part) && error.len() < 1000 && !error.contains('\u{1b}'), "{trick}: {error}");
        assert!(!is_left(&bench).await, "{trick}: something lives on");
    }
    let bench = Bench::new(None);
    fs::remove_file(&bench.config.monitor).unwrap();
    let absent = bench.start(Vec::new()).await.expect_err("it is not there").to_string();
    assert!(absent.contains("no monitor at"), "{absent}");
}

async fn a_guest_that_says_nothing_is_ended_with_its_console() {
    let mut bench = Bench::new(Some("silent guest"));
    bench.config.boot_seconds = 2;
    let error = bench.start(Vec::new()).await.expect_err("nobody announced itself").to_string();
    assert!(error.contains("no answer within 2 s") && error.contains("kernel begins"), "{error}");
    assert!(!is_left(&bench).await, "something lives on");
}

/// Whether a process of the machine is still left after a moment.
async fn is_left(bench: &Bench) -> bool {
    for _ in 0..100 {
        if !is_there(bench) {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

/// All of them have its folder in their arguments.
fn is_there(bench: &Bench) -> bool {
    let mark = bench.folder.path().to_string_lossy().into_owned();
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id()).any(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(&mark)
    })
}

/// Every request that is not as recorded is refused: the record itself is tried.
async fn the_contract_refuses_what_is_not_in_it() {
    let body = |name: &str| contract::ENDPOINTS.iter().find(|one| one.name == name).unwrap().body.unwrap();
    for (name, text, part) in [
        ("vm.add-disk", r#"{"path":"/x","read_only":true}"#, "unknown field read_only"),
        ("vm.add-fs", r#"{"tag":"a","socket":"/s","num_queues":1}"#, "missing field queue_size"),
        ("vm.create", r#"{"payload":{},"vsock":{"cid":2,"socket":"/s"}}"#, "vsock: cid"),
        ("vm.create", r#"{"payload":{},"serial":{"mode":"file"}}"#, "serial: mode"),
        ("vm.create", "[]", "no object"),
    ] {
        let why = contract::check(&serde_json::from_str(text).unwrap(), body(name)).unwrap_err();
        assert!(why.contains(part), "{text}: {why}");
    }
}

type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

macro_rules! tests {
    ($($name:ident),*) => { [$((stringify!($name), || Box::pin($name()))),*] };
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|word| word == "--api-socket") {
        return double::main(&arguments);
    }
    let all: [Test; 6] = tests![
        the_contract_refuses_what_is_not_in_it,
        a_machine_is_made_as_the_contract_says,
        a_running_machine_takes_disks_cards_and_shares,
        pausing_and_the_balloon_are_asked_for,
        a_refusal_ends_everything_in_the_monitors_words,
        a_guest_that_says_nothing_is_ended_with_its_console
    ];
    if arguments.iter().any(|word| word == "--list") {
        all.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let filters: Vec<&String> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/net/tun").exists();
    let mut passed = 0;
    for (name, test) in
        all.iter().filter(|(name, _)| filters.is_empty() || filters.iter().any(|f| name.contains(*f)))
    {
        if !can && !name.starts_with("the_contract") {
            println!("test {name} ... ok\nskipped: mount namespaces and taps need root");
            continue;
        }
        // A failure is a panic, which ends the program.
        print!("test {name} ... ");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
        println!("ok");
        passed += 1;
    }
    println!("\ntest result: ok. {passed} passed; 0 failed");
}
