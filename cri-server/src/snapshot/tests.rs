//! Layers made to hurt, and layers made as overlayfs wants them. Devices, owners and `trusted.*` attributes need root.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tar::{EntryType, Header};

use super::*;

/// Writes archives without the crate's own checks, which refuse what attackers write.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(mut self, kind: EntryType, path: &str, mode: u32, link: &str, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        let name = path.as_bytes();
        if name.len() > 100 {
            let mut long = name.to_vec();
            long.push(0);
            self = self.raw(EntryType::GNULongName, "././@LongLink", 0o644, "", &long);
        }
        header.as_old_mut().name[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        if link.len() > 100 {
            self = self.raw(EntryType::GNULongLink, "././@LongLink", 0o644, "", link.as_bytes());
        }
        let link = &link.as_bytes()[..link.len().min(100)];
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        self.push(header, data)
    }

    fn push(mut self, mut header: Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().div_ceil(512) * 512, 0);
        self
    }

    fn dir(self, path: &str, mode: u32) -> Self {
        self.raw(EntryType::Directory, path, mode, "", b"")
    }

    fn file(self, path: &str, data: &[u8]) -> Self {
        self.raw(EntryType::Regular, path, 0o644, "", data)
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(EntryType::Symlink, path, 0o777, target, b"")
    }

    fn hardlink(self, path: &str, target: &str) -> Self {
        self.raw(EntryType::Link, path, 0o644, target, b"")
    }

    fn device(self, kind: EntryType, path: &str, major: u32, minor: u32) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o620);
        header.set_uid(0);
        header.set_gid(5);
        header.set_mtime(1);
        header.set_size(0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.push(header, b"")
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let mut length = body + 1;
            while length != body + length.to_string().len() {
                length = body + length.to_string().len();
            }
            write!(data, "{length} {key}=").unwrap();
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(EntryType::XHeader, "PaxHeaders/x", 0o644, "", &data)
    }

    fn done(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

struct Node {
    root: tempfile::TempDir,
    snapshots: Arc<Snapshots>,
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        // Beside the store: what an escape would hit.
        fs::create_dir(root.path().join("outside")).unwrap();
        fs::write(root.path().join("outside/secret"), b"secret").unwrap();
        let snapshots = Snapshots::open(&root.path().join("node"), &Notices::default()).unwrap();
        Self { root, snapshots }
    }

    fn outside(&self) -> PathBuf {
        self.root.path().join("outside")
    }

    fn unpack_limited(
        &self,
        plain: &[u8],
        stream: Vec<u8>,
        limits: &Limits,
    ) -> Result<PathBuf, SnapshotError> {
        let digest = Digest::sha256(plain);
        let mut pieces: Vec<Bytes> = stream.chunks(7000).map(Bytes::copy_from_slice).rev().collect();
        self.snapshots.layers().unpack(&digest, &mut || Ok(pieces.pop()), limits)?;
        Ok(self.root.path().join("node/layers").join(digest.hex()).join("fs"))
    }

    fn unpack(&self, tar: Vec<u8>) -> Result<PathBuf, SnapshotError> {
        self.unpack_limited(&tar.clone(), tar, &Limits::default())
    }

    /// Nothing half-done is left, nothing outside has changed.
    fn check_clean(&self) {
        let left: Vec<_> = fs::read_dir(self.root.path().join("node/layers"))
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("tmp-"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(fs::read_dir(self.outside()).unwrap().count(), 1);
        assert_eq!(fs::read(self.outside().join("secret")).unwrap(), b"secret");
        assert_eq!(fs::metadata(self.outside().join("secret")).unwrap().nlink(), 1);
    }
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0u8; 8];
    rustix::fs::getxattr(path, tree::OPAQUE, &mut value).is_ok_and(|n| &value[..n] == b"y")
}

#[test]
fn privileged_paths_above_the_root_stay_inside() {
    let node = Node::new();
    let outside = node.outside().display().to_string();
    let tar = Tar::default()
        .file("../../../../escaped", b"1")
        .file(&format!("{outside}/absolute"), b"2")
        .file("a/../../b/../c", b"3")
        .done();
    let fs_root = node.unpack(tar).unwrap();
    assert_eq!(fs::read(fs_root.join("escaped")).unwrap(), b"1");
    assert_eq!(fs::read(fs_root.join(outside.trim_start_matches('/')).join("absolute")).unwrap(), b"2");
    assert_eq!(fs::read(fs_root.join("c")).unwrap(), b"3");
    node.check_clean();
}

#[test]
fn privileged_symlinks_lead_inside_the_layer_only() {
    let node = Node::new();
    let outside = node.outside().display().to_string();
    let tar = Tar::default()
        .symlink("absolute", &outside)
        .file("absolute/one", b"1")
        .symlink("up", "../../../../../../../../../..")
        .file(&format!("up{outside}/two"), b"2")
        .symlink("last", &format!("{outside}/secret"))
        .file("last", b"replaced")
        .symlink("dir", &outside)
        .dir("dir", 0o700)
        .file("dir/own", b"3")
        .done();
    let fs_root = node.unpack(tar).unwrap();
    let inside = fs_root.join(outside.trim_start_matches('/'));
    assert_eq!(fs::read(inside.join("one")).unwrap(), b"1");
    assert_eq!(fs::read(inside.join("two")).unwrap(), b"2");
    assert_eq!(fs::read(fs_root.join("last")).unwrap(), b"replaced");
    assert!(fs::symlink_metadata(fs_root.join("dir")).unwrap().is_dir());
    node.check_clean();
}

#[test]
fn privileged_symlink_loops_are_refused() {
    let node = Node::new();
    let tar = Tar::default().symlink("a", "b").symlink("b", "a").file("a/x", b"1").done();
    assert!(node.unpack(tar).is_err());
    node.check_clean();
}

#[test]
fn privileged_hardlinks_cannot_reach_outside() {
    let node = Node::new();
    let secret = node.outside().join("secret").display().to_string();
    let through = Tar::default().symlink("s", &secret).hardlink("h", "s").done();
    let fs_root = node.unpack(through).unwrap();
    // The link itself got a second name, not what it points at.
    assert!(fs::symlink_metadata(fs_root.join("h")).unwrap().is_symlink());
    for target in [secret.clone(), format!("../../../../../../..{secret}"), "nowhere".to_owned()] {
        let error = node.unpack(Tar::default().hardlink("h", &target).done()).unwrap_err();
        assert!(error.to_string().contains("does not hold"), "{error}");
    }
    let parent = node.outside().display().to_string();
    let tar = Tar::default().symlink("d", &parent).hardlink("h", "d/secret").done();
    assert!(node.unpack(tar).is_err());
    node.check_clean();
}

#[test]
fn privileged_devices_pipes_owners_and_modes_are_made() {
    let node = Node::new();
    let capability: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, b'\n', 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = Tar::default()
        .device(EntryType::Char, "null", 1, 3)
        .device(EntryType::Block, "disk", 8, 1)
        .device(EntryType::Fifo, "pipe", 0, 0)
        .raw(EntryType::Regular, "suid", 0o4755, "", b"x")
        .hardlink("again", "suid")
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.note", b"hello"),
            ("uid", b"3000000000"),
            ("mtime", b"1700000000.25"),
        ])
        .file("cap", b"c")
        .dir("sticky", 0o1777)
        .file("sticky/later", b"")
        .done();
    let fs_root = node.unpack(tar).unwrap();
    let meta = |name: &str| fs::symlink_metadata(fs_root.join(name)).unwrap();
    assert!(meta("null").file_type().is_char_device() && meta("null").rdev() == rustix::fs::makedev(1, 3));
    assert!(meta("disk").file_type().is_block_device() && meta("disk").gid() == 5);
    assert!(meta("pipe").file_type().is_fifo() && meta("pipe").mode() & 0o7777 == 0o620);
    assert_eq!(meta("suid").mode() & 0o7777, 0o4755);
    assert_eq!(meta("suid").ino(), meta("again").ino());
    assert_eq!(
        (meta("cap").uid(), meta("cap").mtime(), meta("cap").mtime_nsec()),
        (3_000_000_000, 1_700_000_000, 250_000_000)
    );
    assert_eq!((meta("sticky").mode() & 0o7777, meta("sticky").mtime()), (0o1777, 1_700_000_000));
    let mut value = [0u8; 64];
    let length = rustix::fs::getxattr(fs_root.join("cap"), "security.capability", &mut value).unwrap();
    assert_eq!(&value[..length], capability);
    assert_eq!(rustix::fs::getxattr(fs_root.join("cap"), "user.note", &mut value), Ok(5));
    assert!(rustix::fs::getxattr(fs_root.join("cap"), "trusted.overlay.redirect", &mut value).is_err());
    node.check_clean();
}

#[test]
fn privileged_whiteouts_hide_lower_layers_only() {
    let node = Node::new();
    let tar = Tar::default()
        .file("data/.wh.gone", b"")
        .dir("opaque", 0o755)
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"n")
        .file("own", b"o")
        .file(".wh.own", b"")
        .dir("owndir", 0o755)
        .file("owndir/x", b"x")
        .file(".wh.owndir", b"")
        .file(".wh.reborn", b"")
        .dir("reborn", 0o755)
        .file(".wh.implied", b"")
        .file("implied/x", b"x")
        .file(".wh.was-dir", b"")
        .file("was-dir", b"file now")
        .file(".wh..wh.plnk", b"")
        .done();
    let root = node.unpack(tar).unwrap();
    assert!(is_whiteout(&root.join("data/gone")));
    assert!(is_opaque(&root.join("opaque")) && root.join("opaque/new").exists());
    assert_eq!(fs::read(root.join("own")).unwrap(), b"o");
    assert!(is_opaque(&root.join("owndir")) && root.join("owndir/x").exists());
    assert!(is_opaque(&root.join("reborn")) && is_opaque(&root.join("implied")));
    assert_eq!(fs::read(root.join("was-dir")).unwrap(), b"file now");
    assert!(
        !fs::read_dir(&root).unwrap().any(|e| e.unwrap().file_name().to_string_lossy().starts_with(".wh."))
    );
    for bad in [".wh.", ".wh..", ".wh..."] {
        assert!(node.unpack(Tar::default().file(bad, b"").done()).is_err(), "{bad}");
    }
    node.check_clean();
}

#[test]
fn privileged_entries_replace_each_other() {
    let node = Node::new();
    let tar = Tar::default()
        .dir("d/sub/deep", 0o755)
        .file("d/sub/deep/f", b"1")
        .file("d", b"file now")
        .file("e", b"1")
        .file("e/below", b"2")
        .file("f", b"old")
        .hardlink("g", "f")
        .file("f", b"new")
        .done();
    let root = node.unpack(tar).unwrap();
    assert_eq!(fs::read(root.join("d")).unwrap(), b"file now");
    assert_eq!(fs::read(root.join("e/below")).unwrap(), b"2");
    assert_eq!(
        (fs::read(root.join("f")).unwrap(), fs::read(root.join("g")).unwrap()),
        (b"new".to_vec(), b"old".to_vec())
    );
}

#[test]
fn lying_and_damaged_archives_are_refused() {
    let node = Node::new();
    // Larger than any of these archives: of two reasons, the one that its thread finds first would be told.
    let limits = Limits { max_bytes: 8 << 20, max_entries: 10, ..Limits::default() };
    let refuse = |tar: Vec<u8>, text: &str| {
        let error = node.unpack_limited(&tar, tar.clone(), &limits).unwrap_err().to_string();
        assert!(error.contains(text), "{error}, not {text}");
        node.check_clean();
    };
    let sized = |size: u64| {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..3].copy_from_slice(b"big");
        for (set, value) in
            [(Header::set_uid as fn(&mut Header, u64), 0), (Header::set_gid, 0), (Header::set_mtime, 0)]
        {
            set(&mut header, value);
        }
        header.set_mode(0o644);
        header.set_entry_type(EntryType::Regular);
        header.set_size(size);
        Tar::default().push(header, b"short").0
    };
    refuse(sized(u64::MAX / 4), "unpacked bytes");
    refuse(sized(1 << 19), "middle of an entry");
    refuse(Tar::default().file("x", b"1").0[..700].to_vec(), "middle of an entry");
    refuse(vec![b'x'; 2048], "checksum");
    refuse((0..11).fold(Tar::default(), |t, n| t.file(&n.to_string(), b"")).done(), "10 entries");
    refuse(Tar::default().file(&"d/".repeat(600), b"").done(), "512 directories");
    refuse(Tar::default().file(&"n".repeat(5000), b"").done(), "bytes in a path");
    refuse(
        Tar::default().pax(&[("SCHILY.xattr.user.x", &[b'x'; 70_000])]).file("x", b"").done(),
        "extended attribute",
    );
    refuse(Tar::default().pax(&[("path", &vec![b'x'; 2 << 20])]).file("x", b"").done(), "PAX records");
    refuse(Tar::default().pax(&[("GNU.sparse.major", b"1")]).file("x", b"").done(), "sparse");
    refuse(Tar::default().raw(EntryType::GNUSparse, "x", 0o644, "", b"").done(), "sparse");
    refuse((0..100).fold(Tar::default(), |t, _| t.pax(&[("a", b"b")])).done(), "extension headers");
    refuse(Tar::default().raw(EntryType::new(b'D'), "x", 0o644, "", b"").done(), "not supported");
}

#[test]
fn a_bomb_ends_at_the_ratio() {
    let node = Node::new();
    let plain = Tar::default().file("zeros", &vec![0u8; 96 << 20]).done();
    let error = node.unpack_limited(
        &plain,
        gzip(&plain),
        &Limits { max_ratio: 50.try_into().unwrap(), ..Limits::default() },
    );
    assert!(
        matches!(error, Err(SnapshotError::Limit { what, .. }) if what.contains("compressed")),
        "{error:?}"
    );
    let limits = Limits { max_bytes: 1 << 20, ..Limits::default() };
    assert!(matches!(node.unpack_limited(&plain, gzip(&plain), &limits), Err(SnapshotError::Limit { .. })));
    node.check_clean();
}

#[test]
fn every_compression_gives_the_same_layer() {
    let node = Node::new();
    let plain = Tar::default().file("f", &[7u8; 700_000]).done();
    let two_members = [gzip(&plain[..1000]), gzip(&plain[1000..])].concat();
    for stream in [plain.clone(), gzip(&plain), two_members, zstd::encode_all(plain.as_slice(), 1).unwrap()] {
        let root = node.unpack_limited(&plain, stream, &Limits::default()).unwrap();
        assert_eq!(fs::read(root.join("f")).unwrap().len(), 700_000);
        node.snapshots.sweep(&HashSet::new()).remove();
        assert!(!root.exists());
    }
    for stream in [b"\xfd7zXZ\0rest".to_vec(), b"BZh91AY&SY".to_vec()] {
        let error = node.unpack_limited(&plain, stream, &Limits::default()).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("compressed with"));
    }
    let broken = gzip(&plain)[..500].to_vec();
    assert!(matches!(node.unpack_limited(&plain, broken, &Limits::default()), Err(SnapshotError::Stream(_))));
    node.check_clean();
}

#[test]
fn a_wrong_diff_id_or_a_failing_source_leaves_nothing() {
    let node = Node::new();
    let tar = Tar::default().file("f", b"1").done();
    let error = node.unpack_limited(b"other", tar.clone(), &Limits::default()).unwrap_err();
    assert!(matches!(error, SnapshotError::DiffId { .. }));
    let mut first = Some(Bytes::from(tar[..512].to_vec()));
    let mut source = || match first.take() {
        Some(piece) => Ok(Some(piece)),
        None => Err("connection lost".into()),
    };
    let digest = Digest::sha256(&tar);
    let error = node.snapshots.layers().unpack(&digest, &mut source, &Limits::default()).unwrap_err();
    assert!(
        matches!(&error, SnapshotError::Source(cause) if cause.to_string() == "connection lost"),
        "{error:?}"
    );
    assert!(node.snapshots.layers().list().is_empty());
    node.check_clean();
}

#[test]
fn privileged_a_tree_too_deep_for_recursion_is_removed() {
    let node = Node::new();
    // Each link starts where the last chain ended, so that paths stay short while the tree goes deep.
    let chain = "d/".repeat(200);
    let mut tar = Tar::default().dir(&chain, 0o755).symlink("l0", &chain);
    for n in 1..20 {
        tar = tar
            .dir(&format!("l{}/{chain}", n - 1), 0o755)
            .symlink(&format!("l{n}"), &format!("l{}/{chain}", n - 1));
    }
    let _ = node.unpack(tar.done());
    assert!(node.snapshots.sweep(&HashSet::new()).remove().is_empty());
    node.check_clean();
    let top = node.root.path().join("deep");
    fs::create_dir(&top).unwrap();
    let mut here = rustix::fs::open(&top, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&here, "x", rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
        here = tree::open_directory(here.as_fd(), b"x").unwrap();
    }
    layer::discard(&top).unwrap();
    assert!(!top.exists());
}

#[test]
fn what_a_crash_left_is_swept_at_start() {
    let node = Node::new();
    let kept = node.unpack(Tar::default().file("f", b"1").done()).unwrap();
    let layers = node.root.path().join("node/layers");
    fs::create_dir_all(layers.join("tmp-17/fs/etc")).unwrap();
    fs::create_dir_all(layers.join("ab".repeat(32)).join("fs")).unwrap();
    std::os::unix::fs::symlink("../layers/gone/fs", node.root.path().join("node/l/12345678")).unwrap();
    let again = Snapshots::open(&node.root.path().join("node"), &Notices::default()).unwrap();
    assert_eq!(again.layers().list().len(), 1);
    // The daemon's first sweep takes it away.
    let here = again.layers().list().into_iter().map(|(digest, _)| digest).collect();
    assert!(again.sweep(&here).remove().is_empty());
    assert!(kept.join("f").exists());
    assert_eq!(fs::read_dir(&layers).unwrap().count(), 1);
    assert_eq!(fs::read_dir(node.root.path().join("node/l")).unwrap().count(), 1);
}

#[test]
fn privileged_mounts_stack_layers_and_views_read_them_safely() {
    let node = Node::new();
    let outside = node.outside().display().to_string();
    let tars = [
        Tar::default()
            .dir("./", 0o751)
            .dir("tmp", 0o1777)
            .dir("etc", 0o755)
            .file("etc/passwd", b"root")
            .file("etc/old", b"x")
            .done(),
        Tar::default()
            .file("tmp/x", b"1")
            .file("etc/.wh.old", b"")
            .symlink("evil", &format!("{outside}/secret"))
            .done(),
        Tar::default()
            .file("etc/passwd", b"root and app")
            .symlink("etc/link", "/etc/passwd")
            .device(EntryType::Fifo, "pipe", 0, 0)
            .done(),
    ];
    let layers: Vec<Digest> = tars.iter().map(|tar| Digest::sha256(tar)).collect();
    for tar in tars {
        node.unpack(tar).unwrap();
    }
    node.snapshots.settle(&layers).unwrap();
    let view = node.snapshots.view(&layers).unwrap();
    let read = |path: &str| read_in_root(view.as_fd(), path, 100);
    assert_eq!(read("/etc/passwd").unwrap().unwrap(), b"root and app");
    assert_eq!(read("etc/link").unwrap().unwrap(), b"root and app");
    assert_eq!(read("/etc/old").unwrap(), None);
    assert_eq!(read("/evil").unwrap(), None);
    assert!(read("/pipe").is_err() && read("/etc").is_err());
    assert!(matches!(read_in_root(view.as_fd(), "/etc/passwd", 5), Err(SnapshotError::Unreadable { .. })));
    assert!(
        !fs::read_to_string("/proc/self/mounts").unwrap().contains(&node.root.path().display().to_string())
    );

    let id = ContainerId::parse("c1").unwrap();
    let mounts = node.snapshots.mounts(&layers, &id, None).unwrap();
    assert_eq!(mounts, node.snapshots.mounts(&layers, &id, None).unwrap());
    let home = node.root.path().join("node/containers/c1");
    assert_eq!(fs::metadata(home.join("upper")).unwrap().mode() & 0o7777, 0o751);
    let target = node.root.path().join("rootfs");
    fs::create_dir(&target).unwrap();
    let options = std::ffi::CString::new(mounts[0].options.join(",")).unwrap();
    rustix::mount::mount(
        "overlay",
        &target,
        "overlay",
        rustix::mount::MountFlags::empty(),
        options.as_c_str(),
    )
    .unwrap();
    let tmp_mode = fs::metadata(target.join("tmp")).unwrap().permissions().mode() & 0o7777;
    let has_old = target.join("etc/old").exists();
    fs::write(target.join("written"), vec![1u8; 8192]).unwrap();
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!((tmp_mode, has_old), (0o1777, false));
    let usage = node.snapshots.usage(&id).unwrap();
    // The root, what was written, and /tmp, which the second layer implies.
    assert!(usage.bytes >= 8192 && usage.inodes == 3, "{usage:?}");

    assert!(node.snapshots.sweep(&HashSet::new()).remove().is_empty());
    assert_eq!(node.snapshots.layers().list().len(), 3, "a container stands on them");
    node.snapshots.remove(&id).unwrap();
    node.snapshots.remove(&id).unwrap();
    assert!(node.snapshots.sweep(&HashSet::new()).remove().is_empty());
    assert!(node.snapshots.layers().list().is_empty() && !home.exists());
}

/// Modes that a container sees of `paths` when it stands on `layers`.
fn modes(node: &Node, id: &str, layers: &[Digest], paths: &[&str]) -> Vec<Option<u32>> {
    let mounts = node.snapshots.mounts(layers, &ContainerId::parse(id).unwrap(), None).unwrap();
    let target = node.root.path().join("rootfs");
    fs::create_dir_all(&target).unwrap();
    let options = std::ffi::CString::new(mounts[0].options.join(",")).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("overlay", &target, "overlay", flags, options.as_c_str()).unwrap();
    let mode = |path: &&str| fs::metadata(target.join(path)).ok().map(|m| m.mode() & 0o7777);
    let modes = paths.iter().map(mode).collect();
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::empty()).unwrap();
    modes
}

#[test]
fn privileged_a_shared_layer_imposes_no_modes_and_gets_none() {
    let node = Node::new();
    let base = |tmp: u32, deep: u32| {
        Tar::default().dir("./", 0o700 | tmp & 0o77).dir("tmp", tmp).dir("var", 0o711).dir("var/deep", deep)
    };
    let bases = [base(0o1777, 0o750), base(0o755, 0o2770)].map(|tar| tar.file("var/deep/low", b"1").done());
    let shared = Tar::default().file("tmp/x", b"1").file("var/deep/er/y", b"1").done();
    let above = Tar::default().file("tmp/z", b"1").done();
    let hides = Tar::default().file("tmp", b"a file").file("var/.wh.deep", b"").done();
    let fresh = Tar::default().file("var/deep/.wh..wh..opq", b"").file("var/deep/new", b"1").done();
    let digest = |tar: &Vec<u8>| Digest::sha256(tar);
    let [one, two] = bases.each_ref().map(digest);
    let [shared_id, above_id, hides_id, fresh_id] = [&shared, &above, &hides, &fresh].map(digest);
    let [first, second] = bases;
    for tar in [first, second, above, hides, fresh] {
        node.unpack(tar).unwrap();
    }
    let layer = node.unpack(shared).unwrap();
    let before = fs::metadata(layer.join("tmp")).unwrap().mode();
    for layers in [[&one, &shared_id], [&two, &shared_id]] {
        node.snapshots.settle(&layers.map(Digest::clone)).unwrap();
    }
    assert_eq!(fs::metadata(layer.join("tmp")).unwrap().mode(), before, "other images use it too");

    let paths = ["", "tmp", "var", "var/deep", "var/deep/er", "var/deep/low"];
    let seen = |id: &str, layers: &[&Digest]| {
        let layers: Vec<Digest> = layers.iter().map(|d| (*d).clone()).collect();
        modes(&node, id, &layers, &paths)
    };
    let file = Some(0o644);
    let (plain, of_one) = (Some(0o755), [Some(0o777), Some(0o1777), Some(0o711), Some(0o750)]);
    assert_eq!(seen("c1", &[&one, &shared_id]), [&of_one[..], &[plain, file]].concat());
    let of_two = [Some(0o755), Some(0o755), Some(0o711), Some(0o2770), plain, file];
    assert_eq!(seen("c2", &[&two, &shared_id]), of_two);
    assert_eq!(seen("c3", &[&one, &shared_id, &above_id]), [&of_one[..], &[plain, file]].concat());
    // What an upper layer hides stays hidden.
    let hidden = [Some(0o777), file, Some(0o711), None, None, None];
    assert_eq!(seen("c4", &[&one, &shared_id, &hides_id]), hidden);
    let opaque = [Some(0o777), Some(0o1777), Some(0o711), plain, None, None];
    assert_eq!(seen("c5", &[&one, &shared_id, &fresh_id]), opaque);
}

#[test]
fn too_many_layers_are_an_error_before_the_kernel_says_so() {
    let node = Node::new();
    let tars: Vec<_> = (0..300).map(|n| Tar::default().file(&n.to_string(), b"").done()).collect();
    let layers: Vec<Digest> = tars.iter().map(|tar| Digest::sha256(tar)).collect();
    for tar in tars {
        node.unpack(tar).unwrap();
    }
    let id = ContainerId::parse("c1").unwrap();
    assert!(matches!(
        node.snapshots.mounts(&layers, &id, None),
        Err(SnapshotError::TooManyLayers { count: 300, .. })
    ));
    assert!(node.snapshots.mounts(&layers[..40], &id, None).is_ok());
}
