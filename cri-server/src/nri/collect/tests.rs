//! How the wishes of several plugins come together, and when they cannot.

use cofferdam_proto::nri::{self, Field};

use super::*;
use crate::nri::error::NriError;

fn creation() -> Creation {
    Creation::new(nri::Container {
        id: "c1".to_owned(),
        env: vec!["PATH=/bin".to_owned(), "HOME=/".to_owned()],
        ..Default::default()
    })
}

fn adjust(adjust: nri::ContainerAdjustment) -> nri::CreateContainerResponse {
    nri::CreateContainerResponse { adjust: Some(adjust), ..Default::default() }
}

fn variable_of(key: &str, value: &str) -> nri::CreateContainerResponse {
    let entry = nri::KeyValue { key: key.to_owned(), value: value.to_owned() };
    adjust(nri::ContainerAdjustment { env: vec![entry], ..Default::default() })
}

fn quota(value: i64) -> nri::LinuxResources {
    let cpu = nri::LinuxCpu { quota: Some(nri::OptionalInt64 { value }), ..Default::default() };
    nri::LinuxResources { cpu: Some(cpu), ..Default::default() }
}

fn update(container: &str, value: i64, ignore_failure: bool) -> nri::ContainerUpdate {
    nri::ContainerUpdate {
        container_id: container.to_owned(),
        linux: Some(nri::LinuxContainerUpdate { resources: Some(quota(value)) }),
        ignore_failure,
    }
}

#[test]
fn the_next_plugin_sees_what_the_last_one_set() {
    let mut creation = creation();
    creation.add("00-a", variable_of("A", "1")).unwrap();
    creation.add("10-b", variable_of("PATH", "/usr/bin")).unwrap();
    assert_eq!(creation.container.env, ["HOME=/", "A=1", "PATH=/usr/bin"]);
    assert_eq!(creation.owners.of("c1", Field::Env, "A"), Some("00-a"));
    assert_eq!(creation.owners.of("c1", Field::Env, "PATH"), Some("10-b"));
}

#[test]
fn two_plugins_that_set_one_field_are_named() {
    let mut creation = creation();
    creation.add("00-a", variable_of("A", "1")).unwrap();
    let error = creation.add("10-b", variable_of("A", "1")).unwrap_err();
    assert_eq!(error.to_string(), "NRI plugins 00-a and 10-b both set Env \"A\"");
    let linux = nri::LinuxContainerAdjustment { resources: Some(quota(5)), ..Default::default() };
    let wanted = || nri::ContainerAdjustment { linux: Some(linux.clone()), ..Default::default() };
    creation.add("00-a", adjust(wanted())).unwrap();
    let error = creation.add("10-b", adjust(wanted())).unwrap_err();
    assert_eq!(error.to_string(), "NRI plugins 00-a and 10-b both set CPUQuota");
}

#[test]
fn who_clears_a_field_may_set_it_and_nobody_else() {
    let mut creation = creation();
    creation.add("00-a", variable_of("A", "1")).unwrap();
    let mut both = variable_of("-A", "");
    both.adjust.as_mut().unwrap().env.extend(variable_of("A", "2").adjust.unwrap().env);
    creation.add("10-b", both).unwrap();
    assert_eq!(creation.container.env, ["PATH=/bin", "HOME=/", "A=2"]);
    assert!(matches!(creation.add("20-c", variable_of("A", "3")), Err(NriError::Conflict { .. })));
    creation.add("20-c", variable_of("-A", "")).unwrap();
    assert_eq!(creation.container.env, ["PATH=/bin", "HOME=/"]);
    assert_eq!(creation.adjust.env, [nri::KeyValue { key: "-A".to_owned(), value: String::new() }]);
}

#[test]
fn mounts_are_replaced_by_destination_and_removed_by_a_dash() {
    let mount = |destination: &str, source: &str| nri::Mount {
        destination: destination.to_owned(),
        source: source.to_owned(),
        ..Default::default()
    };
    let wanted = |mounts| adjust(nri::ContainerAdjustment { mounts, ..Default::default() });
    let mut creation = creation();
    creation.container.mounts = vec![mount("/data", "/a"), mount("/keep", "/k")];
    creation.add("00-a", wanted(vec![mount("-/data", ""), mount("/data", "/b")])).unwrap();
    assert_eq!(creation.container.mounts, [mount("/keep", "/k"), mount("/data", "/b")]);
    assert_eq!(creation.adjust.mounts, [mount("/data", "/b")]);
    creation.add("10-b", wanted(vec![mount("-/keep", "")])).unwrap();
    assert_eq!(creation.container.mounts, [mount("/data", "/b")]);
    assert!(matches!(creation.add("20-c", wanted(vec![mount("-", "")])), Err(NriError::Invalid { .. })));
}

#[test]
fn hooks_of_several_plugins_add_up() {
    let hook = |path: &str| nri::Hook { path: path.to_owned(), ..Default::default() };
    let wanted = |path: &str| {
        let hooks = nri::Hooks { poststop: vec![hook(path)], ..Default::default() };
        adjust(nri::ContainerAdjustment { hooks: Some(hooks), ..Default::default() })
    };
    let mut creation = creation();
    creation.add("00-a", wanted("/a")).unwrap();
    creation.add("10-b", wanted("/b")).unwrap();
    assert_eq!(creation.adjust.hooks.unwrap().poststop, [hook("/a"), hook("/b")]);
    assert_eq!(creation.owners.of("c1", Field::OciHooks, ""), Some("00-a,10-b"));
}

#[test]
fn updates_of_one_container_are_one_and_conflicts_may_be_ignored() {
    let mut owners = Owners::default();
    let mut updates = Updates::default();
    updates.add(&mut owners, "00-a", vec![update("c2", 5, false)], Vec::new()).unwrap();
    updates.add(&mut owners, "10-b", vec![update("c2", 6, true), update("c3", 7, true)], Vec::new()).unwrap();
    assert_eq!(updates.updates, [update("c2", 5, false), update("c3", 7, true)]);
    let error = updates.add(&mut owners, "10-b", vec![update("c2", 6, false)], Vec::new());
    assert!(matches!(error, Err(NriError::Conflict { .. })));
    assert_eq!(updates.take("c3"), Some(update("c3", 7, true)));
    assert_eq!(updates.take("c3"), None);
}

#[test]
fn a_container_being_created_is_adjusted_not_updated() {
    let answer = nri::CreateContainerResponse { update: vec![update("c1", 5, true)], ..Default::default() };
    assert!(matches!(creation().add("00-a", answer), Err(NriError::Invalid { .. })));
}

#[test]
fn arguments_can_be_taken_over() {
    let wanted = |args: &[&str]| {
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        adjust(nri::ContainerAdjustment { args, ..Default::default() })
    };
    let mut creation = creation();
    creation.add("00-a", wanted(&["a"])).unwrap();
    assert!(creation.add("10-b", wanted(&["b"])).is_err());
    creation.add("10-b", wanted(&["", "b", "c"])).unwrap();
    assert_eq!(creation.adjust.args, ["b", "c"]);
}

#[test]
fn validators_learn_who_set_and_who_cleared() {
    let mut owners = Owners::default();
    owners.claim("c1", Field::Env, "A", "00-a").unwrap();
    owners.claim("c1", Field::Args, "", "00-a").unwrap();
    owners.claim("c1", Field::Env, "B", "00-a").unwrap();
    owners.clear("c1", Field::Env, "B", "10-b");
    owners.clear("c1", Field::Env, "C", "10-b");
    let wire = owners.to_wire();
    let fields = &wire.owners["c1"];
    assert_eq!(fields.simple[&(Field::Args as i32)], "00-a");
    let env = &fields.compound[&(Field::Env as i32)].owners;
    assert_eq!((env["A"].as_str(), env["B"].as_str()), ("00-a", "-10-b"));
    assert!(!env.contains_key("C"), "what nobody has set was cleared: {env:?}");
}
