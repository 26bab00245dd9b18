//! `cofferdam info`: whether the node is ready, why not, and what is under way.

use std::fmt::Write as _;
use std::time::Duration;

use cofferdam_proto::cri;
use serde_json::{Value, json};

use super::client::Client;
use super::error::CliError;
use super::output::{self, Format, FormatOption};
use super::text::{duration, short_id, size};

#[derive(Debug, clap::Args)]
pub(super) struct Info {
    #[command(flatten)]
    output: FormatOption,
}

impl Info {
    pub(super) async fn run(self, client: &mut Client) -> Result<(), CliError> {
        let version = client.runtime.version(cri::VersionRequest::default()).await?.into_inner();
        let answer = client.runtime.status(cri::StatusRequest { verbose: true }).await?.into_inner();
        let conditions = answer.status.unwrap_or_default().conditions;
        let info: Value = serde_json::from_str(answer.info.get("info").map_or("{}", String::as_str))?;
        match self.output.format {
            Format::Table => output::print(&text(&version, &conditions, &info)),
            Format::Json => output::json(&json!({
                "version": version,
                "conditions": conditions,
                "runtimeHandlers": answer.runtime_handlers,
                "features": answer.features,
                "info": info,
            })),
        }
    }
}

fn text(version: &cri::VersionResponse, conditions: &[cri::RuntimeCondition], info: &Value) -> String {
    let mut text = String::new();
    let mut put = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<18}{value}");
    };
    put(
        "Version",
        format!("{} {}, CRI {}", version.runtime_name, version.runtime_version, version.runtime_api_version),
    );
    for condition in conditions {
        put(&condition.r#type, state(condition));
    }
    put("Network", network(&info["network"]));
    put(
        "Cgroups",
        format!("{}, {}", word(&info["cgroupDriver"]).to_lowercase(), layout(&info["cgroupLayout"])),
    );
    put("Metrics", metrics(&info["metrics"]));
    put("Pods", format!("{}, containers {}", number(&info["pods"]), number(&info["containers"])));
    put("Socket", word(&info["config"]["socket"]));
    put("Root", word(&info["config"]["root"]));
    put("State", word(&info["config"]["state"]));
    section(&mut text, "Runtime handlers", list(&info["handlers"]).map(handler));
    section(&mut text, "Preflight", list(&info["preflight"]).map(finding));
    let under_way = list(&info["operations"]).map(operation).chain(list(&info["pulls"]).map(pull));
    section(&mut text, "Under way", under_way);
    section(&mut text, "Lost or damaged", list(&info["notices"]).map(|notice| word(&notice["text"])));
    section(&mut text, "Upkeep", upkeep(info));
    text
}

fn section(text: &mut String, title: &str, lines: impl Iterator<Item = String>) {
    let lines: Vec<String> = lines.collect();
    let _ = writeln!(text, "{title}{}", if lines.is_empty() { ": nothing" } else { "" });
    for line in lines {
        let _ = writeln!(text, "  {line}");
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn state(condition: &cri::RuntimeCondition) -> String {
    let parts = [if condition.status { "yes" } else { "no" }, &condition.reason, &condition.message];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
}

fn network(network: &Value) -> String {
    match (network["error"].as_str(), network["configuration"].as_str()) {
        (Some(error), _) => format!("not ready: {error}"),
        (None, Some(file)) => format!("{} ({file})", word(&network["name"])),
        (None, None) => format!("{} (built in)", word(&network["name"])),
    }
}

fn metrics(metrics: &Value) -> String {
    match (metrics["at"].as_str(), metrics["not"].as_str()) {
        (Some(address), _) => format!("http://{address}/metrics"),
        (None, Some(why)) => format!("not served: {why}"),
        (None, None) => "off".to_owned(),
    }
}

fn pull(pull: &Value) -> String {
    let age = duration(Duration::from_secs(number(&pull["age"]["secs"])));
    let image = word(&pull["image"]);
    if number(&pull["layers"]) == 0 {
        return format!("pull {image}: looking at the manifest, for {age}");
    }
    let [done, layers] = [&pull["layersDone"], &pull["layers"]].map(number);
    let [received, total] = [&pull["receivedBytes"], &pull["totalBytes"]].map(|bytes| size(number(bytes)));
    format!("pull {image}: {done} of {layers} layers, {received} of {total}, for {age}")
}

/// The last sweep and the last look at what is stored.
fn upkeep(info: &Value) -> impl Iterator<Item = String> {
    let mut lines = Vec::new();
    let sweep = &info["sweep"];
    if let Some(at) = sweep["at"].as_u64() {
        let removed = sweep["removed"].as_object().into_iter().flatten();
        let removed: Vec<_> = removed.map(|(kind, count)| format!("{} {kind}", number(count))).collect();
        let removed = if removed.is_empty() { "nothing".to_owned() } else { removed.join(", ") };
        lines.push(format!("swept {} ago: removed {removed}", since(at)));
        lines.extend(list(&sweep["failures"]).map(|failure| {
            let name = failure["name"].as_str().map_or(String::new(), |name| format!(" {name}"));
            format!("not removed: {}{name}: {}", word(&failure["kind"]), word(&failure["error"]))
        }));
    }
    let look = &info["verification"];
    if let Some(at) = look["at"].as_u64() {
        let found = &look["found"];
        let [blobs, layers] = [&found["blobs"], &found["layers"]].map(number);
        let damaged = list(&found["damaged"]).count();
        lines.push(format!("verified {} ago: {blobs} blobs, {layers} layers, {damaged} damaged", since(at)));
    }
    if look["running"].as_bool() == Some(true) {
        lines.push("verifying what is stored".to_owned());
    }
    lines.into_iter()
}

fn since(at: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    duration(Duration::from_secs(now.map_or(0, |now| now.as_secs().saturating_sub(at))))
}

fn layout(value: &Value) -> String {
    word(value).to_lowercase()
}

fn handler(handler: &Value) -> String {
    let isolation = match handler["isolation"].as_str() {
        None | Some("") => String::new(),
        Some(isolation) => {
            let said = handler["said"].as_str().unwrap_or("nothing of it has started on this node yet");
            format!(", isolation {isolation}: {said}")
        }
    };
    let shim = handler["error"].as_str().map(|error| format!("unusable: {error}"));
    let means = match (handler["kvm"].as_bool(), handler["obstacle"].as_str()) {
        (Some(true), _) => ", by KVM".to_owned(),
        (Some(false), why) => format!(", by EMULATION, which is slow: {}", why.unwrap_or("KVM is not there")),
        (None, _) => String::new(),
    };
    let overhead = handler["overheadMiB"].as_u64();
    let overhead = overhead.map(|mib| format!(", overhead of a pod {mib}Mi")).unwrap_or_default();
    let shim = shim.unwrap_or_else(|| word(&handler["shim"]));
    format!("{}: {shim}{isolation}{overhead}{means}", word(&handler["name"]))
}

fn finding(finding: &Value) -> String {
    let mut line =
        format!("{}: {}: {}", word(&finding["severity"]), word(&finding["what"]), word(&finding["why"]));
    if let Some(fix) = finding["fix"].as_str().filter(|fix| !fix.is_empty()) {
        let _ = write!(line, "; {fix}");
    }
    line
}

fn operation(operation: &Value) -> String {
    let time = |name: &str| duration(Duration::from_secs(number(&operation[name]["secs"])));
    let shown = |key: String| {
        let looks_like_an_id = key.len() == 64 && key.bytes().all(|b| b.is_ascii_hexdigit());
        if looks_like_an_id { short_id(&key) } else { key }
    };
    let mut line = format!("{} {}", word(&operation["operation"]), shown(word(&operation["key"])));
    if operation["id"].is_string() {
        let _ = write!(line, " ({})", shown(word(&operation["id"])));
    }
    let _ = write!(line, ": {}, for {}", word(&operation["stage"]), time("stageAge"));
    if operation["overdue"].as_bool() == Some(true) {
        let _ = write!(line, ", OVERDUE: should take {} at most", time("deadline"));
    }
    let _ = write!(line, "; {} in all", time("age"));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_tells_its_reason_and_what_to_do() {
        let mut condition =
            cri::RuntimeCondition { r#type: "RuntimeReady".to_owned(), status: true, ..Default::default() };
        assert_eq!(state(&condition), "yes");
        condition.status = false;
        condition.reason = "ShimMissing".to_owned();
        condition.message = "install it".to_owned();
        assert_eq!(state(&condition), "no: ShimMissing: install it");
    }

    #[test]
    fn a_handler_says_what_its_pods_run_by() {
        let emulated = json!({"name": "vm", "shim": "/s", "isolation": "vm", "kvm": false,
            "obstacle": "/dev/kvm: gone", "overheadMiB": 256});
        let told = handler(&emulated);
        assert!(
            told.contains("EMULATION")
                && told.contains("/dev/kvm: gone")
                && told.contains(", overhead of a pod 256Mi, by"),
            "{told}"
        );
        let unusable = json!({"name": "vm", "shim": "/s", "isolation": "vm", "error": "no KVM"});
        assert!(handler(&unusable).starts_with("vm: unusable: no KVM"), "{}", handler(&unusable));
        let plain = json!({"name": "c", "shim": "/s", "isolation": ""});
        assert_eq!(handler(&plain), "c: /s");
    }

    #[test]
    fn an_operation_tells_its_stage_and_age() {
        let mut value = json!({"operation": "run", "key": "default/web", "id": "ab".repeat(32), "stage": "network",
            "age": {"secs": 125, "nanos": 0}, "stageAge": {"secs": 70, "nanos": 0},
            "deadline": {"secs": 60, "nanos": 0}, "overdue": false});
        let told = operation(&value);
        assert!(told.starts_with("run default/web (abab") && !told.contains("OVERDUE"), "{told}");
        assert!(told.contains("network, for ") && told.ends_with("2 minutes in all"), "{told}");
        value["overdue"] = true.into();
        assert!(operation(&value).contains("OVERDUE: should take "), "{}", operation(&value));
    }

    #[test]
    fn an_answer_without_details_is_shown_all_the_same() {
        let text = text(&cri::VersionResponse::default(), &[], &json!({}));
        assert!(text.contains("Under way: nothing"), "{text}");
    }
}
