//! The ways that need no machine: a socket pair, and a Unix socket in place of hybrid vsock.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn virtio_serial_is_a_socket_pair() {
    let (host, monitor) = serial().unwrap();
    assert_eq!((host.kind(), monitor.kernel_words()), (WireKind::VirtioSerial, None));
    let MonitorEnd::Serial(socket) = monitor else { panic!("{monitor:?}") };
    UnixStream::from(socket).write_all(b"up").unwrap();
    let mut word = [0; 2];
    host.connect().await.unwrap().read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"up");
}

#[tokio::test]
async fn over_hybrid_vsock_the_first_that_connects_is_the_only_one() {
    let folder = tempfile::tempdir().unwrap();
    // Longer than the name of a socket may be.
    let folder = folder.path().join("x".repeat(120));
    fs::create_dir_all(&folder).unwrap();
    let (host, monitor) = make(ChannelKind::Auto, MonitorKind::CloudHypervisor, &folder).unwrap();
    assert_eq!(monitor.kernel_words().unwrap(), "COFFERDAM_CHANNEL=vsock:1024");
    let path = folder.join("vsock_1024");
    let mut guest = crate::sys::socket::connect(&path).unwrap();
    let mut wire = host.connect().await.unwrap();
    assert!(!path.exists(), "others can still connect");
    wire.write_all(b"hello").await.unwrap();
    let mut word = [0; 5];
    guest.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"hello");
}

#[tokio::test]
async fn vsock_that_is_asked_for_and_not_there_is_an_error() {
    if Path::new("/dev/vhost-vsock").exists() {
        println!("skipped: this node has vhost-vsock");
        return;
    }
    let folder = Path::new("/");
    let refused = make(ChannelKind::Vsock, MonitorKind::Qemu, folder).unwrap_err();
    assert!(refused.to_string().contains("no vhost-vsock"), "{refused}");
    let (host, _) = make(ChannelKind::Auto, MonitorKind::Qemu, folder).unwrap();
    assert_eq!(host.kind(), WireKind::VirtioSerial);
}

#[tokio::test]
async fn a_guest_without_words_from_the_node_has_virtio_serial() {
    assert!(announce(None).unwrap().is_none());
    assert!(announce(Some("vsock:x")).is_err());
}
