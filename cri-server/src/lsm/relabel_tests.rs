//! The rules of [`super`], on real files.

use std::cell::Cell;
use std::os::unix::fs::symlink;

use super::*;

const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

fn label_of(path: &Path) -> Option<String> {
    let mut buffer = vec![0; LONGEST];
    let length = rustix::fs::lgetxattr(path, NAME, &mut buffer[..]).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).trim_end_matches('\0').to_owned())
}

fn volume() -> tempfile::TempDir {
    let outside = tempfile::tempdir().unwrap();
    let root = outside.path().join("volume");
    std::fs::create_dir_all(root.join("a/b/c")).unwrap();
    for file in ["x", "a/x", "a/b/c/x", "../outside"] {
        std::fs::write(root.join(file), "").unwrap();
    }
    symlink("../outside", root.join("link")).unwrap();
    symlink("..", root.join("a/up")).unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    outside
}

#[test]
fn folders_of_the_system_are_refused() {
    for path in ["/", "/etc", "/usr", "/proc/1", "/sys", "/dev/shm", "/var/lib", "relative", "/data/../etc"] {
        assert!(matches!(relabel(Path::new(path), LABEL, || false), Err(RelabelError::System(_))), "{path}");
    }
    for path in ["/etc/app", "/var/lib/kubelet/pods/u/volumes/v", "/home/app", "/systematic"] {
        assert!(!is_system(Path::new(path)), "{path}");
    }
}

/// Root may set the attribute on a kernel without SELinux as well, which keeps it as it is.
#[test]
fn privileged_a_volume_is_labelled_whole_and_once() {
    let outside = volume();
    let root = outside.path().join("volume");
    assert_eq!(relabel(&root, LABEL, || false).unwrap(), 10);
    for path in ["", "x", "a", "a/x", "a/b/c/x", "a/up", "link", "fifo"] {
        assert_eq!(label_of(&root.join(path)).as_deref(), Some(LABEL), "{path}");
    }
    assert_eq!(label_of(&outside.path().join("outside")), None);
    assert_eq!(relabel(&root, LABEL, || false).unwrap(), 0);
    assert_eq!(relabel(&root.join("x"), "system_u:object_r:other_t:s0", || false).unwrap(), 1);
}

#[test]
fn privileged_what_was_stopped_is_done_again() {
    let outside = volume();
    let root = outside.path().join("volume");
    let asked = Cell::new(0);
    let stop = || asked.replace(asked.get() + 1) == 3;
    assert!(matches!(relabel(&root, LABEL, stop), Err(RelabelError::Stopped(_))));
    assert_eq!(label_of(&root), None);
    assert_eq!(relabel(&root, LABEL, || false).unwrap(), 10);
}

#[test]
fn privileged_a_volume_of_many_files_and_folders_is_labelled_whole() {
    let outside = tempfile::tempdir().unwrap();
    let root = outside.path().join("volume");
    let deep: PathBuf = (0..100).map(|_| "d").collect();
    std::fs::create_dir_all(root.join(&deep)).unwrap();
    for number in 0..3000 {
        std::fs::write(root.join(format!("d/{number}")), "").unwrap();
    }
    assert_eq!(relabel(&root, LABEL, || false).unwrap(), 3101);
    for path in [deep, "d/0".into(), "d/2999".into()] {
        assert_eq!(label_of(&root.join(&path)).as_deref(), Some(LABEL), "{}", path.display());
    }
}

#[test]
fn privileged_a_volume_that_is_too_deep_is_refused_and_not_marked_as_done() {
    let outside = tempfile::tempdir().unwrap();
    let root = outside.path().join("volume");
    std::fs::create_dir_all(root.join((0..DEEPEST).map(|_| "d").collect::<PathBuf>())).unwrap();
    assert!(matches!(relabel(&root, LABEL, || false), Err(RelabelError::Deep { .. })));
    assert_eq!(label_of(&root), None);
}
