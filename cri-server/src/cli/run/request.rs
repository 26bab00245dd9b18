//! What `run` asks of the daemon, made of the command line. Pure.

use std::io;
use std::path::Path;

use cofferdam_proto::cri;

use crate::model::SandboxId;

/// What kubelets ask to be hidden and protected in a container that is not privileged.
const MASKED: [&str; 9] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Pods of this command stand apart from the kubelet's.
pub(super) const NAMESPACE: &str = "cofferdam";
/// Where `rm` finds the folder of a pod's log.
pub(in crate::cli) const LOG_FOLDER: &str = "cofferdam.io/log-folder";
/// The file in it.
pub(super) const LOG: &str = "0.log";
const LONGEST_NAME: usize = 63;

/// A pod with one container.
#[derive(Clone, Debug, Default)]
pub(super) struct Request {
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) image_id: String,
    /// As the user wrote it.
    pub(super) image: String,
    pub(super) command: Vec<String>,
    pub(super) env: Vec<cri::KeyValue>,
    pub(super) mounts: Vec<cri::Mount>,
    pub(super) ports: Vec<cri::PortMapping>,
    pub(super) host_network: bool,
    pub(super) handler: String,
}

impl Request {
    /// The pod; its logs go to `log_folder`.
    pub(super) fn pod(&self, log_folder: &str) -> cri::PodSandboxConfig {
        let context = cri::LinuxSandboxSecurityContext {
            namespace_options: Some(self.namespaces()),
            seccomp: Some(cri::SecurityProfile::default()),
            ..Default::default()
        };
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: self.name.clone(),
                uid: self.uid.clone(),
                namespace: NAMESPACE.to_owned(),
                attempt: 0,
            }),
            // The node's UTS namespace is shared along with its network.
            hostname: if self.host_network { String::new() } else { self.name.clone() },
            log_directory: log_folder.to_owned(),
            port_mappings: self.ports.clone(),
            annotations: [(LOG_FOLDER.to_owned(), log_folder.to_owned())].into(),
            linux: Some(cri::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() }),
            ..Default::default()
        }
    }

    /// Its container.
    pub(super) fn container(&self) -> cri::ContainerConfig {
        let context = cri::LinuxContainerSecurityContext {
            namespace_options: Some(self.namespaces()),
            seccomp: Some(cri::SecurityProfile::default()),
            masked_paths: MASKED.map(str::to_owned).into(),
            readonly_paths: READ_ONLY.map(str::to_owned).into(),
            ..Default::default()
        };
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: self.name.clone(), attempt: 0 }),
            image: Some(cri::ImageSpec {
                image: self.image_id.clone(),
                user_specified_image: self.image.clone(),
                ..Default::default()
            }),
            args: self.command.clone(),
            envs: self.env.clone(),
            mounts: self.mounts.clone(),
            log_path: LOG.to_owned(),
            linux: Some(cri::LinuxContainerConfig { security_context: Some(context), ..Default::default() }),
            ..Default::default()
        }
    }

    fn namespaces(&self) -> cri::NamespaceOption {
        let network = if self.host_network { cri::NamespaceMode::Node } else { cri::NamespaceMode::Pod };
        cri::NamespaceOption {
            network: network.into(),
            pid: cri::NamespaceMode::Container.into(),
            ..Default::default()
        }
    }
}

/// A new pod's uid, in the form of Kubernetes.
pub(super) fn uid() -> io::Result<String> {
    let id = SandboxId::generate()?;
    let hex = id.as_str();
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32]))
}

/// A name made of the image's last part and the uid.
pub(super) fn name_for(image: &str, uid: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    let plain = last.split(['@', ':']).next().unwrap_or(last).to_ascii_lowercase();
    let plain: String = plain.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let plain = plain.trim_matches('-');
    let plain = if plain.is_empty() { "pod" } else { plain };
    let plain: String = plain.chars().take(LONGEST_NAME - 5).collect();
    format!("{plain}-{}", &uid[..4])
}

/// A name that can be a host's.
pub(super) fn name(text: &str) -> Result<String, &'static str> {
    let of_host = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = !text.is_empty()
        && text.len() <= LONGEST_NAME
        && text.chars().all(of_host)
        && !text.starts_with('-')
        && !text.ends_with('-');
    good.then(|| text.to_owned())
        .ok_or("expected up to 63 small letters, digits and hyphens, no hyphen first or last")
}

/// `[IP:]HOST:CONTAINER[/PROTOCOL]`
pub(super) fn port(text: &str) -> Result<cri::PortMapping, &'static str> {
    const WRONG: &str = "expected [IP:]HOST:CONTAINER[/tcp|udp|sctp], as 8080:80";
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => cri::Protocol::Tcp,
        "udp" => cri::Protocol::Udp,
        "sctp" => cri::Protocol::Sctp,
        _ => return Err(WRONG),
    };
    let (rest, container) = ports.rsplit_once(':').ok_or(WRONG)?;
    let (ip, host) = rest.rsplit_once(':').unwrap_or(("", rest));
    let ip = ip.trim_start_matches('[').trim_end_matches(']');
    if !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err() {
        return Err(WRONG);
    }
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).map(i32::from).ok_or(WRONG);
    Ok(cri::PortMapping {
        protocol: protocol.into(),
        container_port: number(container)?,
        host_port: number(host)?,
        host_ip: ip.to_owned(),
    })
}

/// `NAME=VALUE`, or `NAME` with its value here.
pub(super) fn variable(text: &str) -> Result<cri::KeyValue, String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, value.to_owned()),
        None => {
            (text, std::env::var(text).map_err(|_| format!("{text} is not set here; write {text}=VALUE"))?)
        }
    };
    if key.is_empty() {
        return Err("expected NAME=VALUE".to_owned());
    }
    Ok(cri::KeyValue { key: key.to_owned(), value: value.into_bytes() })
}

/// `SOURCE:TARGET[:ro]`
pub(super) fn mount(text: &str) -> Result<cri::Mount, String> {
    let wrong = || "expected SOURCE:TARGET[:ro|rw], as /srv/www:/www:ro".to_owned();
    let mut parts = text.split(':');
    let (source, target) = (parts.next().unwrap_or_default(), parts.next().ok_or_else(wrong)?);
    let readonly = match (parts.next(), parts.next()) {
        (None | Some("rw"), None) => false,
        (Some("ro"), None) => true,
        _ => return Err(wrong()),
    };
    if source.is_empty() || !target.starts_with('/') {
        return Err(wrong());
    }
    let host_path = std::fs::canonicalize(Path::new(source)).map_err(|error| format!("{source}: {error}"))?;
    let host_path = host_path.into_os_string().into_string().map_err(|_| wrong())?;
    Ok(cri::Mount { container_path: target.to_owned(), host_path, readonly, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_with_address_and_protocol() {
        let table = [
            ("8080:80", ("", 8080, 80, 0)),
            ("53:5353/udp", ("", 53, 5353, 1)),
            ("127.0.0.1:1:2/sctp", ("127.0.0.1", 1, 2, 2)),
            ("[::1]:1:2", ("::1", 1, 2, 0)),
        ];
        for (text, expected) in table {
            let port = port(text).unwrap();
            let found = (port.host_ip.as_str(), port.host_port, port.container_port, port.protocol);
            assert_eq!(found, expected, "{text}");
        }
        for text in ["", "80", "0:80", "80:0", "x:80", "80:65536", "80:80/icmp", "host:80:80"] {
            assert!(port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn mounts_are_of_what_exists() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().to_str().unwrap();
        assert!(!mount(&format!("{source}:/x")).unwrap().readonly);
        let mount_ro = mount(&format!("{source}/.:/x:ro")).unwrap();
        assert_eq!((mount_ro.container_path.as_str(), mount_ro.readonly), ("/x", true));
        assert!(!mount_ro.host_path.ends_with('.'));
        for text in ["", "/x", ":/x", "/etc:x", "/etc:/x:rx", "/etc:/x:ro:ro", "/does/not/exist:/x"] {
            assert!(mount(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_names_of_hosts() {
        let uid = uid().unwrap();
        assert_eq!(uid.len(), 36);
        for image in ["r:5000/a/Busy_Box:1.0", "nginx@sha256:00", "---", &"x".repeat(200)] {
            let name_made = name_for(image, &uid);
            assert!(name(&name_made).is_ok(), "{name_made}");
        }
        assert!(name_for("r:5000/a/Busy_Box:1.0", &uid).starts_with("busy-box-"));
        for text in ["", "-a", "a-", "A", "a.b", "a/b"] {
            assert!(name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_variable_needs_a_name_and_a_value() {
        let variable_set = variable("A=b=c").unwrap();
        assert_eq!((variable_set.key.as_str(), variable_set.value.as_slice()), ("A", b"b=c".as_slice()));
        assert_eq!(variable("A=").unwrap().value, b"");
        assert!(variable("=x").is_err());
        assert!(variable("COFFERDAM_NO_SUCH_VARIABLE").is_err());
    }

    #[test]
    fn the_nodes_network_takes_no_hostname() {
        let mut request = Request { name: "web".to_owned(), ..Default::default() };
        assert_eq!(request.pod("/l").hostname, "web");
        request.host_network = true;
        let pod = request.pod("/l");
        let options = pod.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
        assert_eq!((pod.hostname.as_str(), options.network()), ("", cri::NamespaceMode::Node));
    }
}
