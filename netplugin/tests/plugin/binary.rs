//! The binary as a runtime sees it: environment and standard input in, JSON and an exit code out.

use crate::host::{Host, Ns};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};

/// Exit code, and what was printed: nothing is null.
fn plugin(env: &[(&str, &str)], stdin: &str) -> (bool, Value) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cofferdam-bridge"))
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // A plugin that refuses its environment does not read its input.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let json = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
    (output.status.success(), json)
}

fn code(env: &[(&str, &str)], stdin: &str) -> u64 {
    let (success, answer) = plugin(env, stdin);
    assert!(!success, "{answer}");
    assert!(answer["msg"].as_str().is_some_and(|m| !m.is_empty()), "{answer}");
    answer["code"].as_u64().unwrap()
}

const CONF: &str = r#"{"cniVersion":"1.1.0","name":"net","type":"cofferdam-bridge",
    "ipam":{"subnet":"10.99.0.0/24","dataDir":"/nonexistent/cofferdam-test"}}"#;

#[test]
fn version_lists_what_is_spoken() {
    let (success, answer) = plugin(&[("CNI_COMMAND", "VERSION")], r#"{"cniVersion":"0.4.0"}"#);
    assert!(success);
    let spoken = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    assert_eq!(answer, json!({ "cniVersion": "0.4.0", "supportedVersions": spoken }));
}

#[test]
fn wrong_calls_get_the_codes_of_the_specification() {
    let env = |command, id, ifname| {
        [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", id),
            ("CNI_IFNAME", ifname),
            ("CNI_NETNS", "/nonexistent"),
        ]
    };
    let good = env("ADD", "one", "eth0");
    assert_eq!(code(&good, CONF), 3, "a namespace that is not there");
    assert_eq!(code(&[], CONF), 4, "no command");
    assert_eq!(code(&[("CNI_COMMAND", "ADD")], CONF), 4, "no container");
    assert_eq!(code(&env("FLY", "one", "eth0"), CONF), 4, "unknown command");
    assert_eq!(code(&env("ADD", "../one", "eth0"), CONF), 4, "hostile container id");
    assert_eq!(code(&env("DEL", "one", "eth0/../x"), CONF), 4, "hostile interface name");
    assert_eq!(code(&good, "{"), 6);
    assert_eq!(code(&good, &CONF.replace("10.99.0.0/24", "10.99.0.0/99")), 6);
    assert_eq!(code(&good, &CONF.replace("1.1.0", "9.9.9")), 1);
    assert_eq!(code(&good, &CONF.replace("1.1.0", "")), 1);
    assert_eq!(code(&good, &CONF.replace("\"net\"", "\"../net\"")), 7);
    assert_eq!(code(&good, &CONF.replace("\"ipam\":{", "\"ipam\":{\"type\":\"dhcp\",")), 2);
    assert_eq!(code(&good, &CONF.replace("\"name\"", "\"mtu\":70000,\"name\"")), 7);
    assert_eq!(code(&good, &CONF.replace("\"name\"", "\"bridge\":\"a/b\",\"name\"")), 7);
    assert_eq!(code(&env("GC", "", ""), CONF), 7, "GC without the list of valid attachments");
    assert_eq!(code(&env("GC", "", ""), &CONF.replace("1.1.0", "1.0.0")), 1);
    assert_eq!(code(&env("STATUS", "", ""), &CONF.replace("1.1.0", "0.4.0")), 1);
    assert_eq!(code(&env("CHECK", "one", "eth0"), &CONF.replace("1.1.0", "0.3.1")), 1);
    assert_eq!(code(&env("CHECK", "one", "eth0"), CONF), 7, "CHECK without prevResult");
    let bad_args = [&good[..], &[("CNI_ARGS", "nonsense")]].concat();
    assert_eq!(code(&bad_args, CONF), 4);
}

#[test]
fn privileged_a_whole_life_in_every_version() {
    let host = Host::dual();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Ns::bare();
        let path = pod.path();
        let mut conf = serde_json::to_value(&host.conf).unwrap();
        conf["cniVersion"] = version.into();
        let call = |command: &str, conf: &Value| {
            let env = [
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", "one"),
                ("CNI_IFNAME", "eth0"),
                ("CNI_NETNS", path.to_str().unwrap()),
                ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web;IP=10.99.0.50"),
            ];
            host.ns.run(|| plugin(&env, &conf.to_string()))
        };
        let (success, result) = call("ADD", &conf);
        assert!(success, "{result}");
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0]["address"], "10.99.0.50/24");
        assert_eq!(result["interfaces"][2]["sandbox"], path.to_str().unwrap());
        conf["prevResult"] = result;
        if version != "0.3.1" {
            assert_eq!(call("CHECK", &conf), (true, Value::Null), "{version}");
            pod.shell("ip addr flush dev eth0");
            let (success, error) = call("CHECK", &conf);
            assert!(!success);
            assert_eq!((error["code"].as_u64(), error["cniVersion"].as_str()), (Some(104), Some(version)));
        }
        assert_eq!(call("DEL", &conf), (true, Value::Null));
        assert_eq!(call("DEL", &conf), (true, Value::Null));
        if version == "1.1.0" {
            assert_eq!(call("STATUS", &conf), (true, Value::Null));
            conf["cni.dev/valid-attachments"] = json!([]);
            assert_eq!(call("GC", &conf), (true, Value::Null));
        }
    }
    assert_eq!(host.ruleset(), "", "GC left rules");
    host.assert_clean();
}
