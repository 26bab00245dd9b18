//! What looks after the daemon: health checks, and a supervisor that speaks systemd's protocol.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use cofferdam_tests::harness::{Node, eventually};
use cofferdam_tests::powercut::Disk;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const NAMES: [&str; 3] = ["", "runtime.v1.RuntimeService", "runtime.v1.ImageService"];

fn request(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

#[tokio::test]
async fn health_is_told_until_the_end_and_who_watches_is_let_go() {
    let Some(mut node) = Node::builder().start().await else { return };
    let mut health = HealthClient::new(node.cri.channel());
    for name in NAMES {
        let answer = health.check(request(name)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{name:?}");
    }
    assert_eq!(health.check(request("nobody")).await.unwrap_err().code(), Code::NotFound);
    let mut watched = health.watch(request(NAMES[1])).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let begun = Instant::now();
    let (told, ()) = tokio::join!(
        async {
            let told = watched.message().await.unwrap().map(|answer| answer.status());
            (told, watched.message().await)
        },
        node.stop()
    );
    assert_eq!(told.0, Some(ServingStatus::NotServing));
    assert!(matches!(told.1, Ok(None) | Err(_)), "{:?}", told.1);
    assert!(begun.elapsed() < Duration::from_secs(5), "who watches held it up: {:?}", begun.elapsed());
}

/// Plays the supervisor.
struct Supervisor {
    socket: UnixDatagram,
    _folder: tempfile::TempDir,
}

impl Supervisor {
    fn new() -> (Self, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        (Self { socket, _folder: folder }, path.display().to_string())
    }

    /// All that was said since the last time.
    fn heard(&self) -> Vec<String> {
        let mut heard = Vec::new();
        let mut buffer = [0; 512];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            heard.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
        }
        heard
    }

    async fn hears(&self, word: &str, limit: Duration) -> bool {
        eventually(limit, async || self.heard().iter().any(|line| line == word)).await
    }
}

const BEAT: &str = "WATCHDOG=1";

fn freeze(folder: &Path, how: &str) {
    let status = std::process::Command::new("fsfreeze").arg(how).arg(folder).status();
    assert!(status.unwrap().success(), "fsfreeze {how}");
}

#[tokio::test]
async fn a_supervisor_hears_of_each_step_and_of_life_only_while_there_is_some() {
    let (supervisor, path) = Supervisor::new();
    let mut disk = Disk::ext4(128);
    let at = disk.image();
    let builder = Node::builder()
        .place("root", move |root| cofferdam_tests::powercut::mount(&at, root))
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "3000000");
    let Some(mut node) = builder.start().await else { return };
    let image = node.base_image().await;
    let first = supervisor.heard();
    assert!(first.iter().any(|line| line == "READY=1"), "{first:?}");
    assert!(supervisor.hears(BEAT, Duration::from_secs(5)).await, "no beat");
    // A full disk is no reason to be killed, but a store that does not come back is.
    let root = node.dir().join("root");
    freeze(&root, "-f");
    let cri = node.cri.clone();
    let config = node.pod("waits");
    let waiting = tokio::spawn(async move { cri.run_pod(&config, "").await });
    tokio::time::sleep(Duration::from_secs(3)).await;
    supervisor.heard();
    let beat = supervisor.hears(BEAT, Duration::from_secs(4)).await;
    let listed = node.cri.list_pods(None).await;
    freeze(&root, "-u");
    assert!(!beat, "a beat while the store stands still");
    listed.unwrap();
    let pod = waiting.await.unwrap().unwrap();
    assert!(supervisor.hears(BEAT, Duration::from_secs(5)).await, "no beat although all works again");
    // No process that the daemon starts takes itself for the supervised one.
    let shim = cofferdam_tests::soak::shim_of(&pod).expect("the pod has no shim");
    let environment = std::fs::read(format!("/proc/{shim}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(!environment.contains("NOTIFY_SOCKET") && !environment.contains("WATCHDOG"), "{environment}");
    node.cri.destroy_pod(&pod).await.unwrap();
    node.cri.remove_image(&image).await.unwrap();
    node.assert_clean().await;
    supervisor.heard();
    node.stop().await;
    let last = supervisor.heard();
    assert!(last.iter().any(|line| line == "STOPPING=1"), "{last:?}");
    drop(node);
    disk.unmount();
}
