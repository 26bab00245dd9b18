//! A file system that is damaged: its kernel refuses to read one folder or file. The daemon starts all the same, says what it
//! lost, and runs pods.

use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, leak};
use cofferdam_tests::powercut::{mount, unmount};

use crate::damage::notices;

const BLOCK: u64 = 4096;
/// Of an inode: a byte of the time of its last change. Its checksum does not fit any more then.
const CHANGED_AT: u64 = 0x0c;

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A disk with checksums in a file.
fn make_disk(image: &Path) {
    std::fs::File::create(image).unwrap().set_len(160 << 20).unwrap();
    let mut mkfs = Command::new("mkfs.ext4");
    run(mkfs.args(["-q", "-F", "-b", "4096", "-O", "metadata_csum,^has_journal"]).arg(image));
}

/// Breaks the inode at `path` of the disk, which is not mounted.
fn break_inode(image: &Path, path: &Path) {
    use std::os::unix::fs::FileExt;
    let said = run(Command::new("debugfs").arg("-R").arg(format!("imap /{}", path.display())).arg(image));
    let number = |word: &str| {
        let rest = said.split(word).nth(1).unwrap_or_else(|| panic!("debugfs says {said:?} of {path:?}"));
        let text: String = rest.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
            None => text.parse().unwrap(),
        }
    };
    let at = number("located at block ") * BLOCK + number("offset ") + CHANGED_AT;
    let disk = std::fs::File::options().read(true).write(true).open(image).unwrap();
    let mut byte = [0];
    disk.read_exact_at(&mut byte, at).unwrap();
    disk.write_all_at(&[byte[0] ^ 0xff], at).unwrap();
}

fn first(folder: &Path) -> PathBuf {
    let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect();
    all.sort();
    all.remove(0)
}

/// Whether containers of images can still be run, beside pods.
type Victim = (&'static str, bool, fn(&Path) -> PathBuf);

const VICTIMS: [Victim; 10] = [
    ("the owner's key", true, |root| root.join("owner")),
    ("the store", true, |root| root.join("metadata.redb")),
    ("the folder of writable layers", false, |root| root.join("containers")),
    ("a description of a layer", true, |root| first(&root.join("layers")).join("layer.json")),
    ("a layer", false, |root| first(&root.join("layers"))),
    ("a layer's alias", true, |root| first(&root.join("l"))),
    ("all layers", false, |root| root.join("layers")),
    ("a blob", false, |root| first(&root.join("content/blobs/sha256"))),
    ("all blobs", false, |root| root.join("content/blobs/sha256")),
    ("unfinished blobs", false, |root| root.join("content/ingest")),
];

/// Starts the daemon on a disk where one thing is broken; then a pod runs.
async fn starts_without(node: &mut Node, disk: &Path, (what, heals, path): Victim, image: &str) {
    let root = node.dir().join("root");
    let path = path(&root);
    unmount(&root);
    break_inode(disk, path.strip_prefix(&root).unwrap());
    mount(disk, &root);
    let refused = std::fs::symlink_metadata(&path).expect_err(what);
    assert_eq!(refused.raw_os_error(), Some(libc::EBADMSG), "{what}: {refused}");
    node.restart().await;
    let told = notices(node).await;
    assert!(told.contains("Bad message"), "{what}: {told:?}");
    let pod = node.run_pod(&node.pod("goes-on")).await;
    let pulled = node.cri.pull(image, None).await;
    if heals {
        pulled.unwrap_or_else(|status| panic!("{what}: {status:?}\n{}", node.daemon_log()));
        assert_eq!(node.output(&pod, build::shell("main", image, "echo runs")).await, "runs\n", "{what}");
    }
    node.destroy(&pod).await;
    node.stop().await;
}

#[tokio::test]
async fn one_broken_inode_keeps_no_daemon_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, disk) = (folder.path().join("whole"), folder.path().join("disk"));
    make_disk(&disk);
    let image = disk.clone();
    let Some(mut node) = Node::builder().place("root", move |at| mount(&image, at)).start().await else {
        return;
    };
    let image = node.base_image().await;
    // A writable layer of it has been there once.
    let pod = node.run_pod(&node.pod("first")).await;
    assert_eq!(node.output(&pod, build::shell("main", &image, "echo runs")).await, "runs\n");
    node.destroy(&pod).await;
    node.stop().await;
    let root = node.dir().join("root");
    unmount(&root);
    run(Command::new("cp").arg("--sparse=always").arg(&disk).arg(&whole));
    for victim in VICTIMS {
        // A file of its own, for a loop device lets go of one in its own time.
        let own = folder.path().join(victim.0.replace(' ', "-"));
        run(Command::new("cp").arg("--sparse=always").arg(&whole).arg(&own));
        mount(&own, &root);
        starts_without(&mut node, &own, victim, &image).await;
        unmount(&root);
    }
    assert!(leak::mounts(&root).is_empty());
}
