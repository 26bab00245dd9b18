//! Plans and their undoing, on folders that look like cgroups.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

struct Made {
    folder: tempfile::TempDir,
}

impl Made {
    fn new(files: &[(&str, &str)]) -> Self {
        let made = Made { folder: tempfile::tempdir().unwrap() };
        for (file, text) in files {
            fs::write(made.path().join(file), text).unwrap();
        }
        made
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// All controllers in one folder.
    fn v1(&self) -> CgroupPaths {
        let names = ["cpu", "cpuset", "memory", "pids", "blkio"];
        let v1 = names.iter().map(|name| ((*name).to_owned(), self.path().to_owned())).collect();
        CgroupPaths { v1, unified: None }
    }

    fn v2(&self) -> CgroupPaths {
        CgroupPaths { unified: Some(self.path().to_owned()), ..CgroupPaths::default() }
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path().join(file)).unwrap()
    }
}

fn texts(changes: &[Change]) -> Vec<(String, String)> {
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    changes.iter().map(|change| (name(&change.path), change.text.clone())).collect()
}

fn plan(paths: &CgroupPaths, json: &str) -> Vec<(String, String)> {
    let resources = serde_json::from_str(json).unwrap();
    let changes = match &paths.unified {
        Some(folder) if paths.is_v2() => unified::plan(folder, &resources),
        _ => legacy::plan(paths, &resources),
    };
    texts(&changes.unwrap())
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn only_what_is_asked_for_is_written() {
    let made = Made::new(&[]);
    let json = r#"{"cpu":{"shares":512,"quota":50000,"period":100000},"pids":{"limit":9}}"#;
    let expected = [
        ("cpu.shares", "512"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "50000"),
        ("pids.max", "9"),
    ];
    assert_eq!(plan(&made.v1(), json), pairs(&expected));
    assert_eq!(plan(&made.v1(), "{}"), []);
    assert_eq!(plan(&made.v2(), "{}"), []);
    assert_eq!(plan(&made.v1(), r#"{"cpu":{},"memory":{}}"#), []);
}

#[test]
fn v2_has_its_own_files_and_scales() {
    let made = Made::new(&[("memory.swap.max", "max"), ("cpu.max", "max 50000")]);
    let json = r#"{"memory":{"limit":100,"swap":150},"cpu":{"quota":-1,"shares":1024},
        "hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#;
    let expected = [
        ("memory.swap.max", "50"),
        ("memory.max", "100"),
        ("cpu.weight", "100"),
        ("cpu.max", "max 50000"),
        ("hugetlb.2MB.max", "0"),
    ];
    assert_eq!(plan(&made.v2(), json), pairs(&expected));
}

#[test]
fn v2_gives_unified_keys_the_last_word() {
    let made = Made::new(&[]);
    let json = r#"{"memory":{"limit":100},"unified":{"memory.max":"70"}}"#;
    assert_eq!(plan(&made.v2(), json), pairs(&[("memory.max", "70")]));
    let climbing = serde_json::from_str(r#"{"unified":{"../x":"1"}}"#).unwrap();
    assert!(unified::plan(made.path(), &climbing).is_err());
    let on_v1 = serde_json::from_str(r#"{"unified":{"memory.high":"1"}}"#).unwrap();
    assert!(legacy::plan(&made.v1(), &on_v1).is_err());
}

#[test]
fn memory_never_crosses_memory_and_swap() {
    let both = "memory.memsw.limit_in_bytes";
    let made = Made::new(&[(both, "200")]);
    let up = plan(&made.v1(), r#"{"memory":{"limit":300,"swap":400}}"#);
    assert_eq!(up, pairs(&[(both, "400"), ("memory.limit_in_bytes", "300")]));
    let down = plan(&made.v1(), r#"{"memory":{"limit":50,"swap":60}}"#);
    assert_eq!(down, pairs(&[("memory.limit_in_bytes", "50"), (both, "60")]));
    let free = plan(&made.v1(), r#"{"memory":{"limit":-1}}"#);
    assert_eq!(free, pairs(&[(both, "-1"), ("memory.limit_in_bytes", "-1")]));
    let without = Made::new(&[]);
    let plain = plan(&without.v1(), r#"{"memory":{"limit":50,"swap":50}}"#);
    assert_eq!(plain, pairs(&[("memory.limit_in_bytes", "50")]), "nothing counts swap here");
}

#[test]
fn bandwidth_takes_the_lesser_way() {
    let (period, quota) = ("cpu.cfs_period_us", "cpu.cfs_quota_us");
    let made = Made::new(&[(period, "100000"), (quota, "50000")]);
    // Period first would be half a processor turned into five.
    let smaller = plan(&made.v1(), r#"{"cpu":{"quota":1000,"period":10000}}"#);
    assert_eq!(smaller, pairs(&[(quota, "1000"), (period, "10000")]));
    let larger = plan(&made.v1(), r#"{"cpu":{"quota":200000,"period":500000}}"#);
    assert_eq!(larger, pairs(&[(period, "500000"), (quota, "200000")]));
}

#[test]
fn a_refused_file_undoes_those_before_it() {
    let made = Made::new(&[("memory.max", "max\n"), ("cpu.weight", "100\n"), ("memory.current", "5\n")]);
    // A folder takes no text.
    fs::create_dir(made.path().join("pids.max")).unwrap();
    let json = br#"{"memory":{"limit":10},"cpu":{"shares":2},"pids":{"limit":3}}"#;
    let error = update(&made.v2(), json).unwrap_err();
    assert!(error.to_string().contains("pids.max"), "{error}");
    assert_eq!((made.read("memory.max"), made.read("cpu.weight")), ("max".into(), "100".into()));
}

#[test]
fn v2_refuses_a_limit_that_would_kill() {
    let made = Made::new(&[("memory.max", "max\n"), ("memory.current", "5000\n")]);
    let error = update(&made.v2(), br#"{"memory":{"limit":4000}}"#).unwrap_err();
    assert!(matches!(error, ShimError::Limit(_)), "{error}");
    assert_eq!(made.read("memory.max"), "max\n");
}

#[test]
fn an_idle_group_has_no_weight() {
    let made = Made::new(&[]);
    let json = r#"{"cpu":{"shares":512,"idle":1}}"#;
    assert_eq!(plan(&made.v1(), json), pairs(&[("cpu.idle", "1")]));
    assert_eq!(plan(&made.v2(), json), pairs(&[("cpu.idle", "1")]));
}
