//! What of a pod goes to plugins: `CNI_ARGS` and, for the capabilities that a plugin declares, `runtimeConfig`. Pure.
//!
//! Invariant: a plugin that declares no capability gets no `runtimeConfig`; one that declares a capability gets it only
//! when the pod has something to say about it. Specification: the CNI conventions document.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::attachment::PodAttachment;
use super::error::NetworkError;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// The bounds that Kubernetes sets, in bits per second.
const LEAST_RATE: u64 = 1_000;
const MOST_RATE: u64 = 1_000_000_000_000_000;
/// Bits. Segments of 64 KiB must fit, or nothing passes at low rates.
const LEAST_BURST: u64 = 8 * 64 * 1024;
/// The bandwidth plugin keeps bytes in 32 bits.
const MOST_BURST: u64 = u32::MAX as u64;

/// `runtimeConfig` for a plugin with these capabilities.
pub(super) fn runtime_config(
    declared: &BTreeSet<String>,
    pod: &PodAttachment,
    pod_cidr: &[String],
) -> Result<Map<String, Value>, NetworkError> {
    let mut config = Map::new();
    for capability in declared {
        if let Some(value) = value(capability, pod, pod_cidr)? {
            config.insert(capability.clone(), value);
        }
    }
    Ok(config)
}

fn value(capability: &str, pod: &PodAttachment, pod_cidr: &[String]) -> Result<Option<Value>, NetworkError> {
    let some = |there: bool, value: Value| there.then_some(value);
    Ok(match capability {
        "portMappings" => some(!pod.port_mappings.is_empty(), json!(pod.port_mappings)),
        "bandwidth" => bandwidth(pod)?,
        "ipRanges" => some(!pod_cidr.is_empty(), ip_ranges(pod_cidr)),
        "dns" => some(pod.dns != super::Dns::default(), json!(pod.dns)),
        "ips" => some(!pod.ips.is_empty(), json!(pod.ips)),
        "mac" => pod.mac.as_ref().map(|mac| json!(mac)),
        "aliases" => some(!pod.name.is_empty(), json!([pod.name])),
        "cgroupPath" => some(!pod.cgroup_parent.is_empty(), json!(pod.cgroup_parent)),
        // The name under which containerd hands annotations to plugins; some read them there.
        "io.kubernetes.cri.pod-annotations" => some(!pod.annotations.is_empty(), json!(pod.annotations)),
        _ => None,
    })
}

/// One set of ranges for each family.
fn ip_ranges(pod_cidr: &[String]) -> Value {
    pod_cidr.iter().map(|cidr| json!([{ "subnet": cidr }])).collect()
}

/// Whether the pod asks for a limit.
pub(super) fn limits_bandwidth(pod: &PodAttachment) -> bool {
    [INGRESS, EGRESS].iter().any(|annotation| pod.annotations.contains_key(*annotation))
}

fn bandwidth(pod: &PodAttachment) -> Result<Option<Value>, NetworkError> {
    let mut limits = Map::new();
    for (annotation, rate_key, burst_key) in
        [(INGRESS, "ingressRate", "ingressBurst"), (EGRESS, "egressRate", "egressBurst")]
    {
        let Some(text) = pod.annotations.get(annotation) else { continue };
        let rate = rate(text).map_err(|problem| NetworkError::Annotation {
            key: annotation,
            value: text.clone(),
            problem,
        })?;
        // A tenth of a second at full rate: short answers are not delayed, and the limit still holds for seconds.
        let burst = (rate / 10).clamp(LEAST_BURST, MOST_BURST);
        limits.insert(rate_key.to_owned(), json!(rate));
        limits.insert(burst_key.to_owned(), json!(burst));
    }
    Ok((!limits.is_empty()).then_some(Value::Object(limits)))
}

/// Bits per second of a Kubernetes quantity: `10M`, `1.5Gi`, `2e6`, `100000`.
fn rate(text: &str) -> Result<u64, &'static str> {
    const NO_QUANTITY: &str = "expected a quantity such as 10M";
    let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, suffix) = text.split_at(digits);
    let factor = match suffix {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024f64,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        exponent => {
            let power = exponent.strip_prefix(['e', 'E']).ok_or(NO_QUANTITY)?;
            10f64.powi(power.parse::<i8>().map_err(|_| NO_QUANTITY)?.into())
        }
    };
    let bits = number.parse::<f64>().map_err(|_| NO_QUANTITY)? * factor;
    if bits < LEAST_RATE as f64 {
        return Err("it is less than 1k, at which nothing works");
    }
    if bits > MOST_RATE as f64 {
        return Err("it is more than 1P");
    }
    Ok(bits as u64)
}

/// `CNI_ARGS`, with the keys that plugins for Kubernetes expect.
pub(super) fn args(pod: &PodAttachment) -> String {
    let pairs = [
        ("K8S_POD_NAMESPACE", pod.namespace.as_str()),
        ("K8S_POD_NAME", &pod.name),
        ("K8S_POD_INFRA_CONTAINER_ID", pod.sandbox_id.as_str()),
        ("K8S_POD_UID", &pod.uid),
    ];
    let mut args = "IgnoreUnknown=1".to_owned();
    for (key, value) in pairs {
        // A separator in a value would forge another key.
        let clean: String = value.chars().filter(|c| !matches!(c, ';' | '=' | '\0')).collect();
        args.push_str(&format!(";{key}={clean}"));
    }
    args
}

#[cfg(test)]
mod tests {
    use super::super::{Dns, PortMapping, Protocol};
    use super::*;
    use crate::model::SandboxId;

    fn pod() -> PodAttachment {
        let mut pod = PodAttachment::new(SandboxId::parse("abc").unwrap(), "/x".into());
        pod.name = "web".to_owned();
        pod.namespace = "shop".to_owned();
        pod.uid = "u-1".to_owned();
        pod
    }

    fn declared(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn rates_are_quantities_in_bits() {
        for (text, bits) in [
            ("1000", 1_000),
            ("10M", 10_000_000),
            ("1.5M", 1_500_000),
            ("1Gi", 1 << 30),
            ("500k", 500_000),
            ("2e6", 2_000_000),
            ("1E6", 1_000_000),
            ("1P", MOST_RATE),
            ("2000000m", 2_000),
        ] {
            assert_eq!(rate(text), Ok(bits), "{text}");
        }
        for text in ["", "M", "10X", "ten", "-5M", "1..2M", "1e", "999", "2P", "10 M", "1e99", "NaN", "inf"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_declared_capabilities_are_passed() {
        let mut pod = pod();
        pod.port_mappings = vec![PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: "127.0.0.1".to_owned(),
        }];
        pod.dns = Dns { servers: vec!["10.0.0.10".to_owned()], ..Dns::default() };
        pod.annotations.insert(INGRESS.to_owned(), "10M".to_owned());
        let cidr = ["10.1.0.0/24".to_owned(), "fd00::/64".to_owned()];

        assert!(runtime_config(&declared(&[]), &pod, &cidr).unwrap().is_empty());
        let config = runtime_config(&declared(&["portMappings", "mac", "unheard-of"]), &pod, &cidr).unwrap();
        assert_eq!(
            Value::Object(config),
            json!({"portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}]})
        );
        let config = runtime_config(&declared(&["bandwidth", "ipRanges", "dns"]), &pod, &cidr).unwrap();
        assert_eq!(
            Value::Object(config),
            json!({
                "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": 1_000_000},
                "ipRanges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]],
                "dns": {"servers": ["10.0.0.10"]},
            })
        );
    }

    #[test]
    fn bursts_stay_within_what_the_kernel_can_shape() {
        for (text, burst) in [("1k", LEAST_BURST), ("100M", 10_000_000), ("1P", MOST_BURST)] {
            let mut pod = pod();
            pod.annotations.insert(EGRESS.to_owned(), text.to_owned());
            let limits = bandwidth(&pod).unwrap().unwrap();
            assert_eq!(limits["egressBurst"], json!(burst), "{text}");
            assert!(limits.get("ingressRate").is_none());
        }
    }

    #[test]
    fn a_wrong_bandwidth_names_its_annotation() {
        let mut pod = pod();
        pod.annotations.insert(EGRESS.to_owned(), "fast".to_owned());
        let message = runtime_config(&declared(&["bandwidth"]), &pod, &[]).unwrap_err().to_string();
        assert!(message.contains(EGRESS) && message.contains("fast"), "{message}");
    }

    #[test]
    fn arguments_cannot_be_forged() {
        let mut pod = pod();
        pod.name = "a;K8S_POD_UID=0".to_owned();
        assert_eq!(
            args(&pod),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=aK8S_POD_UID0;K8S_POD_INFRA_CONTAINER_ID=abc;\
             K8S_POD_UID=u-1"
        );
    }
}
