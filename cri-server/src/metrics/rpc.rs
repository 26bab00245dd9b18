//! How long calls take.

use std::time::Instant;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

/// Seconds. Most calls take milliseconds, a start tenths, a stop its grace period, a pull minutes.
const BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// The methods that there are, sorted: a caller may name what it likes.
const METHODS: [&str; 45] = [
    "Attach",
    "CheckpointContainer",
    "ContainerStats",
    "ContainerStatus",
    "CreateContainer",
    "DiskUsage",
    "Exec",
    "ExecSync",
    "ExportImages",
    "GetContainerEvents",
    "ImageFsInfo",
    "ImageStatus",
    "ImportImages",
    "ListContainerStats",
    "ListContainers",
    "ListImages",
    "ListMetricDescriptors",
    "ListPodSandbox",
    "ListPodSandboxMetrics",
    "ListPodSandboxStats",
    "PodSandboxStats",
    "PodSandboxStatus",
    "PortForward",
    "Prune",
    "PullImage",
    "RemoveContainer",
    "RemoveImage",
    "RemovePodSandbox",
    "ReopenContainerLog",
    "RunPodSandbox",
    "RuntimeConfig",
    "StartContainer",
    "Status",
    "StopContainer",
    "StopPodSandbox",
    "StreamContainerStats",
    "StreamContainers",
    "StreamImages",
    "StreamPodSandboxMetrics",
    "StreamPodSandboxStats",
    "StreamPodSandboxes",
    "UpdateContainerResources",
    "UpdatePodSandboxResources",
    "UpdateRuntimeConfig",
    "Version",
];
/// The method of every other call.
const OTHER: &str = "other";
const CANCELLED: i32 = 1;

type Labels = [(&'static str, &'static str); 2];
type Seconds = Family<Labels, Histogram, fn() -> Histogram>;

/// Times of calls by method and code.
#[derive(Clone, Debug)]
pub struct RpcSeconds(Seconds);

impl Default for RpcSeconds {
    fn default() -> Self {
        Self(Family::new_with_constructor(histogram))
    }
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl RpcSeconds {
    pub(super) fn family(&self) -> Seconds {
        self.0.clone()
    }

    /// A call of `path`, such as `/runtime.v1.RuntimeService/Version`, begins.
    #[must_use]
    pub fn begin(&self, path: &str) -> Timer {
        let named = path.rsplit('/').next().unwrap_or_default();
        let method = METHODS.binary_search(&named).map_or(OTHER, |at| METHODS[at]);
        Timer { seconds: self.0.clone(), method, since: Instant::now(), code: CANCELLED }
    }
}

/// A call under way. Dropped without an answer, as when the caller goes away, it counts as cancelled.
pub struct Timer {
    seconds: Seconds,
    method: &'static str,
    since: Instant,
    code: i32,
}

impl Timer {
    /// The call was answered with this gRPC code.
    pub fn answered(mut self, code: i32) {
        self.code = code;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let labels = [("method", self.method), ("code", name(self.code))];
        self.seconds.get_or_create_owned(&labels).observe(self.since.elapsed().as_secs_f64());
    }
}

/// As other gRPC servers' metrics write the codes.
fn name(code: i32) -> &'static str {
    match code {
        0 => "OK",
        1 => "Canceled",
        2 => "Unknown",
        3 => "InvalidArgument",
        4 => "DeadlineExceeded",
        5 => "NotFound",
        6 => "AlreadyExists",
        7 => "PermissionDenied",
        8 => "ResourceExhausted",
        9 => "FailedPrecondition",
        10 => "Aborted",
        11 => "OutOfRange",
        12 => "Unimplemented",
        13 => "Internal",
        14 => "Unavailable",
        15 => "DataLoss",
        16 => "Unauthenticated",
        _ => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_method_and_code() {
        let seconds = RpcSeconds::default();
        seconds.begin("/runtime.v1.RuntimeService/Version").answered(0);
        seconds.begin("/runtime.v1.RuntimeService/Version").answered(0);
        drop(seconds.begin("/runtime.v1.RuntimeService/StopContainer"));
        for invented in ["/a/b", "/runtime.v1.RuntimeService/Version1", ""] {
            seconds.begin(invented).answered(12);
        }
        let (mut registry, mut text) = (prometheus_client::registry::Registry::default(), String::new());
        registry.register("calls", "Calls", seconds.family());
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let mut counts: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("calls_count")).collect();
        counts.sort_unstable();
        let expected = [
            r#"{method="StopContainer",code="Canceled"} 1"#,
            r#"{method="Version",code="OK"} 2"#,
            r#"{method="other",code="Unimplemented"} 3"#,
        ];
        assert_eq!(counts, expected);
    }

    #[test]
    fn every_method_is_known() {
        let texts = [
            include_str!("../../../proto/proto/cri.proto"),
            include_str!("../../../proto/proto/admin.proto"),
        ];
        let lines = texts.iter().flat_map(|text| text.lines());
        let mut methods: Vec<&str> =
            lines.filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next()).collect();
        methods.sort_unstable();
        methods.dedup();
        assert_eq!(methods, METHODS);
    }
}
