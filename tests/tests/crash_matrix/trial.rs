//! One trial: a life with a death or a failure in it, on a node that is as clean afterwards as it was before.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_failpoints::Place;
use cofferdam_tests::fixtures::archive::{self, Form};
use cofferdam_tests::fixtures::catalog;
use cofferdam_tests::fixtures::image::{Config, Image};
use cofferdam_tests::fixtures::layer::Layer;
use cofferdam_tests::harness::crash::failpoint_binaries;
use cofferdam_tests::harness::{Node, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::life::{Life, Tolerance, Until};
use crate::plan::{Before, Case, Mode, Net};

/// Failures of calls in one life before it is given up.
const MOST_FAILURES: u32 = 12;
const IMPORTED: &str = "registry.example/imported:1";

/// A node with what every life on it uses.
pub struct Stage {
    pub node: Node,
    image: String,
    archive: PathBuf,
    /// Holds the criu that the daemon finds.
    _programs: tempfile::TempDir,
}

/// The built-in bridge's own plugin, as an operator configures it.
const CONFLIST: &str = r#"{"cniVersion":"1.1.0","name":"crash","plugins":[
    {"type":"cofferdam-bridge","bridge":"cni-crash0","isGateway":true,"ipMasq":true,"hairpinMode":true,
     "ipam":{"type":"host-local","dataDir":"@DIR@/ipam","ranges":[[{"subnet":"10.88.7.0/24"}]]},
     "capabilities":{"portMappings":true}}]}"#;

impl Stage {
    pub async fn start(net: Net) -> Option<Self> {
        let binaries = failpoint_binaries();
        let programs = tempfile::tempdir().expect("no temp folder");
        let mut builder = Node::builder();
        if net == Net::Plugin {
            let folder = format!("bin_dirs = [{:?}]", binaries.display().to_string());
            builder = builder.cni("10-crash.conflist", CONFLIST).config("network", &folder);
        }
        let node = builder.binaries(binaries).env("PATH", &with_criu(programs.path())).start().await?;
        let extra = Layer::new().file("etc/extra", "a second layer\n").dir("var/extra");
        let config = Config { env: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".into()], ..Config::default() };
        let image = Image::new().layer(catalog::base_layer().unwrap()).layer(extra).config(config);
        let image = node.registry.push("crash", "1", &image.build().unwrap());
        let other = Image::new().layer(Layer::new().file("imported", "text\n")).build().unwrap();
        let path = node.dir().join("imported.tar");
        archive::write(&path, Form::Oci, &[(vec![IMPORTED.into()], &other)]).unwrap();
        Some(Self { node, image, archive: path, _programs: programs })
    }

    fn life(&self, case: &Case) -> Life {
        let name = case.point.name;
        let of_shim = matches!(case.point.place, Place::Shim | Place::Child);
        // One that has written down how its container ended has nothing more to lose but output.
        let settled = ["shim.exit.written", "shim.exit.rest_killed"].contains(&name);
        let done =
            ["shim.exit.drained", "shim.exit.told", "shim.delete.", "shim.shutdown.", "shim.server.ending"];
        let done = done.iter().any(|begin| name.starts_with(begin));
        let before =
            matches!(case.before, Before::ShimOf(_)) || case.with.is_some_and(|w| w.contains("shim."));
        let tolerance = Tolerance {
            shims_die: before || of_shim && !settled && !done,
            output_ends: settled,
            starts_fail: case.mode == Mode::Error || case.with.is_some(),
        };
        Life::new(&self.node, &self.image, (&self.archive, IMPORTED), tolerance, case.nth.is_multiple_of(2))
    }
}

/// A criu that does nothing, first in PATH: the steps around it are tried, whether or not this kernel can do its own.
fn with_criu(folder: &Path) -> String {
    use std::os::unix::fs::PermissionsExt;
    let program = folder.join("criu");
    std::fs::write(&program, "#!/bin/sh\nexit 0\n").expect("cannot write criu");
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("cannot write criu");
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default())
}

/// Runs the case; panics with what is wrong.
pub async fn run(stage: &mut Stage, case: &Case) {
    stage.node.stop().await;
    let bridges = ["cft0"].map(str::to_owned);
    let links = stage.node.netns.links();
    assert!(
        !links.iter().any(|link| bridges.contains(link)),
        "a bridge is left by a daemon that ended: {links:?}"
    );
    let mut life = stage.life(case);
    prepare(stage, case, &mut life).await;
    stage.node.arm(&orders(case));
    stage.node.begin();
    let mut driver = Driver { stage, case, failures: 0, died: false };
    driver.drive(&mut life).await;
    driver.reach(&mut life).await;
    let Driver { died, .. } = driver;
    let must_die = case.mode == Mode::Both
        || case.mode == Mode::Kill
            && (case.point.place == Place::Daemon
                || case.point.place == Place::Plugin && case.net == Net::Builtin);
    assert_eq!(died, must_die, "whether the daemon died");
    for pod in &life.pods {
        stage.node.remember(pod);
    }
    stage.node.assert_clean().await;
}

fn orders(case: &Case) -> String {
    let action = match case.mode {
        Mode::Kill => "kill",
        Mode::Error => "error",
        Mode::Both => "stop",
    };
    let with = case.with.map(|with| format!(";{with}")).unwrap_or_default();
    format!("{}={action}@{}{with}", case.point.name, case.nth)
}

/// Brings the node to where the case begins: without a daemon.
async fn prepare(stage: &mut Stage, case: &Case, life: &mut Life) {
    let until = match case.before {
        Before::Nothing => return,
        Before::DeathAt(point) => {
            stage.node.arm(&format!("{point}=kill"));
            stage.node.begin();
            let went = if stage.node.serves().await { life.go(Until::Gone).await } else { Ok(()) };
            let node = &mut stage.node;
            let died = eventually(Duration::from_secs(2), async || node.ended().is_some()).await;
            assert!(died, "the daemon did not die at {point}: {went:?}");
            return;
        }
        Before::LostLayer => Until::Pulled,
        Before::Death | Before::ShimOf(_) | Before::StaleLease => Until::Running,
    };
    stage.node.disarm();
    stage.node.begin();
    assert!(stage.node.serves().await);
    life.go(until).await.expect("a life without faults fails");
    let shim = match case.before {
        Before::ShimOf("") => life.pods.last().map(|pod| shim_of(&stage.node, pod)),
        Before::ShimOf(name) => Some(shim_of(&stage.node, &container_of(&stage.node, name).await)),
        _ => None,
    };
    stage.node.kill9();
    if let Some(pid) = shim {
        kill(pid, Signal::SIGKILL).expect("cannot kill the shim");
    }
    match case.before {
        Before::LostLayer => {
            let layers =
                std::fs::read_dir(stage.node.dir().join("root/layers")).expect("no layers").flatten();
            let layer = layers.map(|entry| entry.path()).next().expect("no layer");
            std::fs::remove_dir_all(layer).expect("cannot remove a layer");
        }
        Before::StaleLease => add_lease(&stage.node.dir().join("state/cni/networks/cofferdam/leases")),
        _ => {}
    }
}

async fn container_of(node: &Node, name: &str) -> String {
    let all = node.cri.list(None).await.expect("ListContainers failed");
    let found = all.into_iter().find(|one| one.metadata.as_ref().is_some_and(|m| m.name == name));
    found.expect("no such container").id
}

fn shim_of(node: &Node, id: &str) -> Pid {
    let state = node.dir().join("state");
    let file = ["sandboxes", "containers"].map(|kind| state.join(kind).join(id).join("shim.pid"));
    let text = file.iter().find_map(|path| std::fs::read_to_string(path).ok()).expect("no shim.pid");
    Pid::from_raw(text.trim().parse().expect("no pid"))
}

/// A lease that no pod has: what a lost record leaves.
fn add_lease(book: &Path) {
    let text = std::fs::read(book).expect("no book of leases");
    let mut value: serde_json::Value = serde_json::from_slice(&text).expect("no book of leases");
    let leases = value["leases"].as_array_mut().expect("no leases");
    let mut stale = leases.first().expect("no lease").clone();
    stale["ip"] = "10.88.7.222".into();
    let holder = stale.as_object_mut().expect("no lease");
    for (key, value) in holder.iter_mut() {
        if key.to_lowercase().starts_with("container") {
            *value = "0123456789abcdef".into();
        }
    }
    leases.push(stale);
    std::fs::write(book, value.to_string()).expect("cannot write the leases");
}

struct Driver<'a> {
    stage: &'a mut Stage,
    case: &'a Case,
    failures: u32,
    died: bool,
}

impl Driver<'_> {
    fn acted(&self) -> Option<i32> {
        self.stage.node.passed(self.case.point.name).1
    }

    /// Drives the life to its end, whoever dies meanwhile.
    async fn drive(&mut self, life: &mut Life) {
        loop {
            if !self.stage.node.serves().await {
                self.start_again().await;
            }
            let Err(status) = self.go(life).await else { return };
            if self.dies(&status).await {
                continue;
            }
            self.failures += 1;
            assert!(self.failures <= MOST_FAILURES, "it does not get on: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether the daemon is dead or about to be: its connections break before it can be waited for.
    async fn dies(&mut self, status: &tonic::Status) -> bool {
        let broken = std::error::Error::source(status).is_some() || status.code() == tonic::Code::Unavailable;
        let patience = Duration::from_millis(if broken { 1000 } else { 0 });
        let node = &mut self.stage.node;
        eventually(patience, async || node.ended().is_some()).await
    }

    /// The life, with somebody who kills both when the shim stops at the point.
    async fn go(&mut self, life: &mut Life) -> Result<(), tonic::Status> {
        if self.case.mode != Mode::Both || self.died {
            return life.go(Until::Gone).await;
        }
        let stopped = async {
            loop {
                if let Some(pid) = self.acted() {
                    return pid;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let pid = tokio::select! {
            went = life.go(Until::Gone) => return went,
            pid = stopped => pid,
        };
        self.kill_both(pid).await;
        Err(tonic::Status::unavailable("killed"))
    }

    async fn kill_both(&mut self, pid: i32) {
        self.stage.node.kill9();
        // It may have been killed by whoever cleans up meanwhile.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        self.start_again().await;
    }

    async fn start_again(&mut self) {
        assert!(
            self.acted().is_some(),
            "the daemon died before the point:\n{}",
            self.stage.node.daemon_log()
        );
        self.died = true;
        self.stage.node.disarm();
        self.stage.node.restart().await;
    }

    /// What happens beside or after the life, up to the daemon's own end.
    async fn reach(&mut self, life: &mut Life) {
        let name = self.case.point.name;
        let node = &mut self.stage.node;
        let mut late = eventually(Duration::from_secs(2), async || node.passed(name).1.is_some()).await;
        if late && self.case.mode == Mode::Both && !self.died {
            let pid = self.acted().expect("it acted");
            self.kill_both(pid).await;
        }
        let node = &mut self.stage.node;
        if !late {
            let status = node.terminate().await;
            late = node.passed(name).1.is_some();
            self.died |= status.is_some_and(|status| !status.success());
            node.disarm();
            node.begin();
            assert!(node.serves().await);
        } else if self.case.mode == Mode::Kill && self.case.point.place == Place::Daemon {
            // The death follows the mark at once.
            let dead = eventually(Duration::from_secs(2), async || node.ended().is_some()).await;
            if dead {
                self.start_again().await;
            }
        }
        assert!(
            late,
            "the point was passed {} times, and never the {}.",
            self.stage.node.passed(name).0,
            self.case.nth
        );
        life.go(Until::Gone).await.expect("nothing is left to do, and it fails");
    }
}
