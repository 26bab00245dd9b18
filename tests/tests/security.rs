//! The security context of a container, each field read back from the kernel's own account in /proc.

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, Pod};
use tonic::Code;

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

/// What `keys` of /proc/self/status say in a container with this security context, a word for each.
async fn status(
    node: &Node,
    pod: &Pod,
    name: &str,
    keys: &str,
    change: impl FnOnce(&mut cri::LinuxContainerSecurityContext),
) -> String {
    let image = node.base_image().await;
    let script = format!("grep -E '^({keys}):' /proc/self/status | awk '{{print $2}}' | tr '\\n' ' '");
    let mut config = build::shell(name, &image, &script);
    change(build::security(&mut config));
    node.output(pod, config).await.trim().to_owned()
}

fn profile(kind: cri::security_profile::ProfileType, name: &str) -> cri::SecurityProfile {
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() }
}

/// The error with which a container of this security context is refused, at its creation or its start.
async fn refusal(
    node: &Node,
    pod: &Pod,
    name: &str,
    change: impl FnOnce(&mut cri::LinuxContainerSecurityContext),
) -> tonic::Status {
    let image = node.base_image().await;
    let mut config = build::shell(name, &image, "true");
    change(build::security(&mut config));
    node.cri.create(&pod.id, &pod.config, config).await.expect_err("it was made")
}

#[tokio::test]
async fn capabilities_are_given_kept_and_taken() {
    let node = Node::start().await;
    let pod = node.run_pod(&node.pod("capabilities")).await;
    let all = "CapPrm|CapEff|CapBnd|CapAmb";
    let usual = status(&node, &pod, "usual", all, |_| {}).await;
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD,
    // AUDIT_WRITE, SETFCAP; none ambient.
    assert_eq!(usual, "00000000a80425fb 00000000a80425fb 00000000a80425fb 0000000000000000");

    let ambient = status(&node, &pod, "ambient", all, |security| {
        security.run_as_user = Some(cri::Int64Value { value: 1000 });
        security.capabilities = Some(cri::Capability {
            drop_capabilities: strings(&["ALL"]),
            add_ambient_capabilities: strings(&["NET_BIND_SERVICE"]),
            ..Default::default()
        });
    })
    .await;
    let bind = "0000000000000400";
    assert_eq!(ambient, format!("{bind} {bind} {bind} {bind}"));

    // A user other than root has none in force, and may get back those of the bounding set only.
    let user = status(&node, &pod, "user", all, |security| {
        security.run_as_user = Some(cri::Int64Value { value: 1000 });
    })
    .await;
    assert!(user.starts_with("0000000000000000 0000000000000000 00000000a80425fb"), "{user}");

    let refused = refusal(&node, &pod, "unknown", |security| {
        let add_capabilities = strings(&["FLY"]);
        security.capabilities = Some(cri::Capability { add_capabilities, ..Default::default() });
    })
    .await;
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("FLY"), "{refused:?}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_privileged_container_has_what_the_daemon_has() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let mut config = node.pod("privileged");
    build::pod_security(&mut config).privileged = true;
    let pod = node.run_pod(&config).await;
    let script = "grep -E '^(CapEff|Seccomp):' /proc/self/status | awk '{print $2}'; [ -e /dev/kmsg ] && echo devices; \
                  mount -t tmpfs t /tmp && echo mounts; grep -c ' /proc/' /proc/self/mounts";
    let mut container = build::shell("main", &image, script);
    build::security(&mut container).privileged = true;
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    assert_eq!(node.output(&pod, container).await, format!("{own}\n0\ndevices\nmounts\n0\n"));
    node.destroy(&pod).await;

    let plain = node.run_pod(&node.pod("plain")).await;
    let refused = refusal(&node, &plain, "main", |security| security.privileged = true).await;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    node.destroy(&plain).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn seccomp_filters_the_container_and_its_execs() {
    use cri::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("seccomp")).await;
    let unconfined = status(&node, &pod, "unconfined", "Seccomp", |security| {
        security.seccomp = Some(profile(Unconfined, ""));
    });
    assert_eq!(unconfined.await, "0");

    // A namespace of its own is what most ways out of a container begin with.
    let mut default = build::shell("default", &image, "sleep 1000");
    build::security(&mut default).seccomp = Some(profile(RuntimeDefault, ""));
    let id = node.run_container(&pod, default).await;
    let script = "grep '^Seccomp:' /proc/self/status | awk '{print $2}'; unshare -U true 2>&1 | grep -c 'not permitted'";
    let told = node.cri.exec_sync(&id, &["sh", "-c", script], 20).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&told.stdout), "2\n1\n");

    let file = node.dir().join("no-mkdir.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW",
        "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}"#;
    std::fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    let mut own =
        build::shell("own", &image, "mkdir /x 2>&1 | grep -c 'No space left'; touch /y && echo touched");
    build::security(&mut own).seccomp = Some(profile(Localhost, &file));
    assert_eq!(node.output(&pod, own).await, "1\ntouched\n");

    #[allow(deprecated, reason = "what kubelets before 1.24 send")]
    let older = status(&node, &pod, "older", "Seccomp", |security| {
        security.seccomp_profile_path = format!("localhost/{file}");
    });
    assert_eq!(older.await, "2");
    for (name, path, text) in
        [("missing", "/no/such/profile.json", ""), ("broken", "", "{\"defaultAction\":7}")]
    {
        let broken = node.dir().join("broken.json");
        std::fs::write(&broken, text).unwrap();
        let path = if path.is_empty() { broken.display().to_string() } else { path.to_owned() };
        let refused =
            refusal(&node, &pod, name, |security| security.seccomp = Some(profile(Localhost, &path))).await;
        assert!(refused.message().contains(&path), "the file is named: {refused:?}");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn new_privileges_are_forbidden_where_asked() {
    let node = Node::start().await;
    let pod = node.run_pod(&node.pod("privileges")).await;
    for (name, forbidden, wanted) in [("free", false, "0"), ("held", true, "1")] {
        let told =
            status(&node, &pod, name, "NoNewPrivs", |security| security.no_new_privs = forbidden).await;
        assert_eq!(told, wanted);
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn groups_of_the_image_are_merged_or_left_out() {
    let node = Node::start().await;
    let image =
        node.registry.push("groups", "1", &cofferdam_tests::fixtures::catalog::opinionated().unwrap());
    node.cri.pull(&image, None).await.unwrap();
    let pod = node.run_pod(&node.pod("groups")).await;
    let script = "id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '";
    for (name, policy, wanted) in [
        ("merge", cri::SupplementalGroupsPolicy::Merge, "88 2000 3000 3001 "),
        ("strict", cri::SupplementalGroupsPolicy::Strict, "88 2000 "),
    ] {
        let mut config = build::shell(name, &image, script);
        let security = build::security(&mut config);
        security.run_as_username = "worker".into();
        security.supplemental_groups = vec![88];
        security.supplemental_groups_policy = policy.into();
        assert_eq!(node.output(&pod, config).await, wanted, "{name}");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn proc_is_unmasked_where_the_request_lists_nothing() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("proc")).await;
    let count = "grep -c ' /proc/' /proc/self/mounts; true";
    assert_eq!(node.output(&pod, build::shell("unmasked", &image, count)).await, "0\n");
    let mut masked = build::shell(
        "masked",
        &image,
        "grep ' /proc/' /proc/self/mounts | awk '{print $2, $3, substr($4,1,2)}'",
    );
    let security = build::security(&mut masked);
    security.masked_paths = strings(&["/proc/keys", "/proc/scsi", "/proc/no-such-file"]);
    security.readonly_paths = strings(&["/proc/sys", "/proc/bus"]);
    let said = node.output(&pod, masked).await;
    for line in ["/proc/keys devtmpfs", "/proc/scsi tmpfs ro", "/proc/sys proc ro", "/proc/bus proc ro"] {
        let missing = line.contains("keys") && !std::path::Path::new("/proc/keys").exists()
            || line.contains("scsi") && !std::path::Path::new("/proc/scsi").exists();
        assert!(
            missing || said.contains(line) || said.contains(&line.replace("devtmpfs", "tmpfs")),
            "{line}: {said}"
        );
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn what_this_kernel_does_not_have_is_refused_by_name() {
    use cri::security_profile::ProfileType::{Localhost, RuntimeDefault};
    let node = Node::start().await;
    let pod = node.run_pod(&node.pod("kernel")).await;
    if !std::path::Path::new("/sys/kernel/security/apparmor/profiles").exists() {
        for (name, kind, word) in [("default", RuntimeDefault, "RuntimeDefault"), ("own", Localhost, "mine")]
        {
            let refused =
                refusal(&node, &pod, name, |security| security.apparmor = Some(profile(kind, "mine"))).await;
            let said = refused.message();
            assert!(said.contains("AppArmor") && said.contains(word), "{refused:?}");
            assert_eq!(refused.code(), Code::FailedPrecondition);
        }
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_lower_oom_score_is_given_as_far_as_the_node_may() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("score")).await;
    for (name, asked) in [("likely", 500), ("unlikely", -998)] {
        let mut config = build::shell(name, &image, "cat /proc/self/oom_score_adj");
        config.linux.get_or_insert_default().resources.get_or_insert_default().oom_score_adj = asked;
        let given: i64 = node.output(&pod, config).await.trim().parse().unwrap();
        let own: i64 = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
        assert!(given == asked || asked < own && given == own, "asked {asked}, given {given}, own {own}");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}
