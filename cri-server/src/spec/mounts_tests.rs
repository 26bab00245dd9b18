//! The rules of [`super`], read from the mounts that come out.

use super::super::fixture::MadeUpHost;
use super::*;

const PLAIN: MountPolicy =
    MountPolicy { privileged: false, readonly_rootfs: false, recursive_readonly: true, users: None };

fn request(host: &str, container: &str) -> cri::Mount {
    cri::Mount { host_path: host.to_owned(), container_path: container.to_owned(), ..Default::default() }
}

fn files() -> SandboxFiles {
    SandboxFiles {
        shm: Some("/s/shm".into()),
        resolv_conf: Some("/s/resolv.conf".into()),
        hostname: Some("/s/hostname".into()),
        hosts: Some("/s/hosts".into()),
    }
}

fn build(requests: &[cri::Mount], policy: MountPolicy) -> Result<Mounts, SpecError> {
    for_container(requests, &files(), policy, &MadeUpHost::default())
}

fn at<'a>(mounts: &'a Mounts, destination: &str) -> &'a Mount {
    mounts.list.iter().find(|mount| mount.destination() == Path::new(destination)).unwrap()
}

fn options(mounts: &Mounts, destination: &str) -> String {
    at(mounts, destination).options().clone().unwrap().join(",")
}

#[test]
fn a_plain_container_has_the_usual_mounts_in_order() {
    let mounts = build(&[], PLAIN).unwrap();
    let order: Vec<_> = mounts.list.iter().map(|mount| mount.destination().display().to_string()).collect();
    let expected = [
        "/proc",
        "/dev",
        "/sys",
        "/dev/pts",
        "/dev/mqueue",
        "/etc/hostname",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/dev/shm",
        "/sys/fs/cgroup",
    ];
    assert_eq!(order, expected);
    assert_eq!(at(&mounts, "/dev/shm").source().as_deref(), Some(Path::new("/s/shm")));
    assert!(options(&mounts, "/sys").ends_with("ro") && options(&mounts, "/sys/fs/cgroup").ends_with("ro"));
    assert_eq!(options(&mounts, "/etc/hosts"), "rbind,rprivate,rw");
    assert_eq!(mounts.rootfs_propagation, None);
}

#[test]
fn privilege_and_a_readonly_root_change_the_defaults() {
    let privileged = build(&[], MountPolicy { privileged: true, ..PLAIN }).unwrap();
    assert!(options(&privileged, "/sys").ends_with("rw"));
    assert!(options(&privileged, "/sys/fs/cgroup").ends_with("rw"));
    let readonly = build(&[], MountPolicy { readonly_rootfs: true, ..PLAIN }).unwrap();
    assert_eq!(options(&readonly, "/etc/resolv.conf"), "rbind,rprivate,ro");
    assert_eq!(options(&readonly, "/dev/shm"), "rbind,rprivate,rw");
}

#[test]
fn a_request_takes_the_place_of_a_default() {
    let requests =
        [request("/k/hosts", "/etc/hosts"), request("/k/shm", "/dev/shm/"), request("/a", "/d//e/./f")];
    let mounts = build(&requests, PLAIN).unwrap();
    assert_eq!(at(&mounts, "/etc/hosts").source().as_deref(), Some(Path::new("/k/hosts")));
    assert_eq!(at(&mounts, "/dev/shm").source().as_deref(), Some(Path::new("/k/shm")));
    assert_eq!(mounts.list.len(), 11);
    let whole_dev = build(&[request("/dev", "/dev")], PLAIN).unwrap();
    assert!(!whole_dev.list.iter().any(|mount| mount.destination().starts_with("/dev/pts")));
    assert_eq!(at(&whole_dev, "/dev/shm").source().as_deref(), Some(Path::new("/s/shm")));
    assert_eq!(at(&whole_dev, "/dev").typ().as_deref(), Some("bind"));
    let twice = build(&[request("/one", "/x"), request("/two", "/x")], PLAIN).unwrap();
    assert_eq!(at(&twice, "/x").source().as_deref(), Some(Path::new("/two")));
}

#[test]
fn deeper_mounts_come_later() {
    let mounts =
        build(&[request("/1", "/a/b/c"), request("/2", "/a"), request("/3", "/a/b")], PLAIN).unwrap();
    let own: Vec<_> =
        mounts.list.iter().map(|m| m.destination().clone()).filter(|path| path.starts_with("/a")).collect();
    assert_eq!(own, [PathBuf::from("/a"), "/a/b".into(), "/a/b/c".into()]);
}

#[test]
fn propagation_needs_a_host_mount_that_offers_it() {
    let with = |host: &str, propagation: MountPropagation| {
        let request = cri::Mount { propagation: propagation as i32, ..request(host, "/x") };
        build(&[request], PLAIN)
    };
    let slave = with("/shared/x", MountPropagation::PropagationHostToContainer).unwrap();
    assert_eq!(options(&slave, "/x"), "rbind,rslave,rw");
    assert_eq!(slave.rootfs_propagation.as_deref(), Some("rslave"));
    let shared = with("/shared/x", MountPropagation::PropagationBidirectional).unwrap();
    assert_eq!(options(&shared, "/x"), "rbind,rshared,rw");
    assert_eq!(shared.rootfs_propagation.as_deref(), Some("rshared"));
    for asked in [MountPropagation::PropagationHostToContainer, MountPropagation::PropagationBidirectional] {
        assert!(matches!(with("/private", asked), Err(SpecError::Propagation { .. })), "{asked:?}");
    }
}

#[test]
fn readonly_goes_as_deep_as_asked() {
    let readonly = cri::Mount { readonly: true, ..request("/x", "/x") };
    assert_eq!(options(&build(std::slice::from_ref(&readonly), PLAIN).unwrap(), "/x"), "rbind,rprivate,ro");
    let deep = cri::Mount { recursive_read_only: true, ..readonly };
    assert_eq!(options(&build(std::slice::from_ref(&deep), PLAIN).unwrap(), "/x"), "rbind,rprivate,rro");
    let unable = MountPolicy { recursive_readonly: false, ..PLAIN };
    assert!(matches!(build(std::slice::from_ref(&deep), unable), Err(SpecError::Unavailable { .. })));
    let writable = cri::Mount { readonly: false, ..deep.clone() };
    assert!(matches!(build(&[writable], PLAIN), Err(SpecError::Invalid { .. })));
    let open = cri::Mount { propagation: 1, host_path: "/shared".to_owned(), ..deep };
    assert!(matches!(build(&[open], PLAIN), Err(SpecError::Invalid { .. })));
}

#[test]
fn behind_a_user_namespace_files_are_shown_as_the_pods() {
    let ids = vec![cri::IdMapping { host_id: 70_000, container_id: 0, length: 65_536 }];
    let users = cri::UserNamespace { mode: 0, uids: ids.clone(), gids: ids.clone() };
    let options = cri::NamespaceOption { userns_options: Some(users), ..Default::default() };
    let policy = MountPolicy { users: UserNamespace::of(&options).unwrap(), ..PLAIN };
    let volume = cri::Mount { uid_mappings: ids.clone(), gid_mappings: ids.clone(), ..request("/x", "/x") };
    let mounts = build(&[volume, request("/y", "/y")], policy).unwrap();
    for (place, mapped) in
        [("/etc/hosts", true), ("/etc/resolv.conf", true), ("/dev/shm", false), ("/x", true), ("/y", false)]
    {
        let maps = at(&mounts, place).uid_mappings();
        assert_eq!(maps.as_ref().map(|maps| maps[0].host_id()), mapped.then_some(70_000), "{place}");
    }
    let open = cri::Mount { propagation: 2, ..request("/shared", "/z") };
    assert!(matches!(build(&[open], policy), Err(SpecError::Invalid { .. })));
    let half = cri::Mount { uid_mappings: ids, ..request("/x", "/x") };
    assert!(matches!(build(&[half], PLAIN), Err(SpecError::Invalid { .. })));
}

#[test]
fn places_that_are_none_are_refused() {
    for bad in [request("/x", "rel"), request("rel", "/x"), request("/x", "/a/../b"), request("/x", "/")] {
        assert!(matches!(build(&[bad], PLAIN), Err(SpecError::Invalid { .. })));
    }
}
