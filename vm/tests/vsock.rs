//! A guest that announces itself over the kernel's vsock: only on a node that has vhost-vsock; `bench` says what else it needs.

mod bench;

use std::fs::File;

use bench::{Bench, PATIENCE};
use cofferdam_vm::channel::Purpose;
use cofferdam_vm::config::{ChannelKind, VmConfig};
use cofferdam_vm::wire::WireKind;
use tokio::io::AsyncReadExt;

/// More than one window of the channel holds, and within the longest message.
const LARGE: usize = 3 << 20;
/// Even in a machine that is emulated itself.
const BOOT_SECONDS: u32 = 1200;

#[tokio::test]
async fn a_guest_announces_itself_over_vsock_and_loses_nothing() {
    if let Err(error) = File::options().read(true).write(true).open("/dev/vhost-vsock") {
        println!("skipped: /dev/vhost-vsock: {error}");
        return;
    }
    let Some(mut bench) = Bench::new() else { return };
    bench.config = VmConfig { channel: ChannelKind::Auto, boot_seconds: BOOT_SECONDS, ..bench.config };
    let machine = bench.boot().await;
    assert_eq!(machine.wire(), WireKind::Vsock);
    println!("a guest with Linux {} over {}", machine.guest().kernel_release, machine.wire());
    for number in 0..3 {
        let config = vec![b'0' + number; LARGE];
        machine.agent().put_bundle(&format!("large-{number}"), config).await.unwrap();
    }
    let mut output = machine.channel().open(&Purpose::Output("x".into()), PATIENCE).await.unwrap();
    machine.monitor().kill();
    machine.ended().await;
    assert!(output.read(&mut [0; 8]).await.is_ok_and(|count| count == 0), "the stream does not end");
}
