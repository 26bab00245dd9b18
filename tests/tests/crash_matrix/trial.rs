//! One trial: a life with a death or a failure in it, on a node that is as clean afterwards as it was before.

use std::time::Duration;

use cofferdam_failpoints::Place;
use cofferdam_tests::fixtures::archive::{self, Form};
use cofferdam_tests::fixtures::artifact::artifact;
use cofferdam_tests::fixtures::catalog;
use cofferdam_tests::fixtures::checkpoint;
use cofferdam_tests::fixtures::image::{Config, Image};
use cofferdam_tests::fixtures::layer::Layer;
use cofferdam_tests::harness::crash::failpoint_binaries;
use cofferdam_tests::harness::{Node, eventually, microvm};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::life::{Besides, Life, Material, Tolerance, Until};
use crate::plan::{Before, Case, Mode, Net, is_restore};
use crate::prelude;

/// Failures of calls in one life before it is given up.
const MOST_FAILURES: u32 = 12;
const IMPORTED: &str = "registry.example/imported:1";

/// Takes criu's place, as far as the steps around it go. A dump has nothing in it. A restored process is any that is where the
/// waiting one is: found by its cgroup, which criu is in as well; stopped.
const CRIU: &str = r#"
[ "$1" = restore ] || exit 0
while [ $# -gt 0 ]; do [ "$1" = --pidfile ] && pidfile=$2; shift; done
own=$(cat /proc/self/cgroup)
for folder in /proc/[0-9]*; do
    pid=${folder#/proc/}
    [ "$pid" = $$ ] || [ "$pid" = $PPID ] && continue
    [ "$(cat "$folder/cgroup" 2>/dev/null)" = "$own" ] && model=$pid && break
done
nsenter --mount="/proc/$model/ns/mnt" --net="/proc/$model/ns/net" \
    /bin/sh -c 'kill -STOP $$; exec sleep 100000' </dev/null >/dev/null 2>&1 &
echo $! > "$pidfile"
until grep -q '^State:.T' "/proc/$!/status"; do sleep 0.01; done
"#;

/// A node with what every life on it uses.
pub struct Stage {
    pub node: Node,
    pub material: Material,
    /// Holds the criu that the daemon finds.
    _programs: tempfile::TempDir,
    /// What machines boot.
    _machine: Option<tempfile::TempDir>,
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
        let mut machine = None;
        if net == Net::Machine {
            let folder = microvm::image()?;
            builder = microvm::builder(folder.path());
            machine = Some(folder);
        }
        let path = checkpoint::fake_criu(programs.path(), CRIU).unwrap();
        let node = builder.binaries(binaries).env("PATH", &path).start().await?;
        let extra = Layer::new().file("etc/extra", "a second layer\n").dir("var/extra");
        let config = Config { env: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".into()], ..Config::default() };
        let image = Image::new().layer(catalog::base_layer().unwrap()).layer(extra).config(config);
        let image = node.registry.push("crash", "1", &image.build().unwrap());
        let other = Image::new().layer(Layer::new().file("imported", "text\n")).build().unwrap();
        let path = node.dir().join("imported.tar");
        archive::write(&path, Form::Oci, &[(vec![IMPORTED.into()], &other)]).unwrap();
        let taken = node.dir().join("taken.tar");
        let log = b"2026-01-01T00:00:00.000000000Z stdout F 1\n";
        checkpoint::plausible(&taken, &image, &[("container.log", log)]).unwrap();
        let file = artifact(&[(Some("model"), "weights")]).unwrap();
        let artifact = node.registry.push("crash-model", "1", &file);
        let material =
            Material { artifact, image, archive: path, imported: IMPORTED.into(), checkpoint: taken };
        Some(Self { node, material, _programs: programs, _machine: machine })
    }

    fn life(&self, case: &Case) -> Life {
        let name = case.point.name;
        let of_shim = matches!(case.point.place, Place::Shim | Place::Child);
        // One that has written down how its container ended has nothing more to lose but output.
        let settled = ["shim.exit.written", "shim.exit.rest_killed"].contains(&name);
        let done =
            ["shim.exit.drained", "shim.exit.told", "shim.delete.", "shim.shutdown.", "shim.server.ending"];
        let done = done.iter().any(|begin| name.starts_with(begin));
        // What ends while there is no daemon, under a shim that hangs, has nobody to note its exit.
        let before = matches!(case.before, Before::ShimOf(_) | Before::HungShimOf(_))
            || case.with.is_some_and(|w| w.contains("shim."));
        let tolerance = Tolerance {
            shims_die: before || of_shim && !settled && !done,
            output_ends: settled,
            starts_fail: case.mode == Mode::Error
                || case.with.is_some()
                || matches!(case.before, Before::Damaged(_)),
        };
        let besides = match name {
            _ if case.net == Net::Machine => Besides::Machine,
            name if is_restore(name) => Besides::Restores,
            name if name.starts_with("stream.") => Besides::Streams,
            name if name.starts_with("image.artifact.") => Besides::Artifact,
            _ => Besides::Nothing,
        };
        Life::new(&self.node, &self.material, tolerance, besides, case.nth.is_multiple_of(2))
    }
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
    prelude::prepare(stage, case.before, &mut life).await;
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
    prelude::clear_away(stage);
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
