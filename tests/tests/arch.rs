//! The shape of the code: what good.md asks for and a machine can check. Needs no root.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cofferdam_tests::harness::workspace;

const CRATES: [&str; 6] = ["proto", "cri-server", "shim", "netplugin", "vm", "tests"];
const LONGEST: usize = 800;

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for name in CRATES {
        sources(&workspace().join(name), &mut found);
    }
    assert!(found.len() > 20, "the workspace's sources are not found: {found:?}");
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        (path.strip_prefix(workspace()).unwrap().to_owned(), text)
    };
    found.into_iter().map(read).filter(|(_, text)| !text.starts_with("// @generated")).collect()
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<_> = all_sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//! ") || text.starts_with("//! (under construction)"))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "these files do not begin with //! and a purpose: {silent:#?}");
}

#[test]
fn no_file_is_too_long() {
    let long: Vec<_> = all_sources()
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LONGEST)
        .collect();
    assert!(long.is_empty(), "over {LONGEST} lines; split by phase: {long:#?}");
}

#[test]
fn unsafe_code_lives_in_sys_only() {
    let wrong: Vec<_> = all_sources()
        .into_iter()
        .filter(|(path, _)| path.file_name().is_none_or(|name| name != "sys.rs"))
        .filter(|(path, _)| !path.iter().any(|part| part == "sys"))
        .filter(|(_, text)| text.lines().any(|line| unsafe_block(line.trim_start())))
        .map(|(path, _)| path)
        .collect();
    assert!(wrong.is_empty(), "unsafe belongs into sys.rs or sys/: {wrong:#?}");
}

fn unsafe_block(line: &str) -> bool {
    // Put together here, so that this file does not hold what it looks for.
    let words = ["{", "fn ", "impl "].map(|next| ["unsafe", next].join(" "));
    !line.starts_with("//") && words.iter().any(|word| line.contains(word.as_str()))
}

/// The modules of cri-server in the order in which lib.rs declares them: the lowest first.
fn module_order(lib: &str) -> Vec<&str> {
    lib.lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .collect()
}

#[test]
fn modules_of_the_daemon_use_only_those_above_them() {
    let lib = std::fs::read_to_string(workspace().join("cri-server/src/lib.rs")).unwrap();
    let order = module_order(&lib);
    assert!(order.len() > 5, "lib.rs declares hardly any module: {order:?}");
    let place: BTreeMap<&str, usize> = order.iter().enumerate().map(|(at, name)| (*name, at)).collect();
    let mut wrong = Vec::new();
    for (path, text) in all_sources() {
        let Ok(inside) = path.strip_prefix("cri-server/src") else { continue };
        let first = inside.iter().next().unwrap().to_string_lossy();
        let Some(own) = place.get(first.trim_end_matches(".rs")) else { continue };
        for used in uses(&text) {
            if place.get(used.as_str()).is_some_and(|at| at > own) {
                wrong.push(format!("{} uses crate::{used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "a module uses only those above it in lib.rs: {wrong:#?}");
}

/// The modules that a file names as `crate::MODULE`.
fn uses(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut found: Vec<String> = Vec::new();
    for line in code {
        for (at, prefix) in line.match_indices("crate::") {
            let rest = &line[at + prefix.len()..];
            let word: String =
                rest.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
            if !found.contains(&word) {
                found.push(word);
            }
        }
    }
    found
}

/// Which crates of ours each crate may depend on. Tests of the daemon use the fixtures of `tests`, which knows the wire only.
const ALLOWED: [(&str, &[&str]); 7] = [
    ("tests/failpoints", &[]),
    ("proto", &[]),
    ("netplugin", &["cofferdam-failpoints"]),
    ("vm", &["cofferdam-proto"]),
    ("shim", &["cofferdam-failpoints", "cofferdam-proto", "cofferdam-vm"]),
    ("cri-server", &["cofferdam-failpoints", "cofferdam-proto", "cofferdam-netplugin"]),
    (
        "tests",
        &[
            "cofferdam",
            "cofferdam-failpoints",
            "cofferdam-proto",
            "cofferdam-netplugin",
            "cofferdam-shim",
            "cofferdam-vm",
        ],
    ),
];

#[test]
fn crates_depend_in_one_direction() {
    let mut wrong = Vec::new();
    for (name, allowed) in ALLOWED {
        let text = std::fs::read_to_string(workspace().join(name).join("Cargo.toml")).unwrap();
        let package = text.lines().find_map(|line| line.strip_prefix("name = ")).unwrap().trim_matches('"');
        let mut section = "";
        for line in text.lines() {
            if line.starts_with('[') {
                section = line;
            }
            let word = line.split(['.', ' ', '=']).next().unwrap_or_default();
            let ours = word == "cofferdam" || word.starts_with("cofferdam-");
            let fixtures = section == "[dev-dependencies]" && word == "cofferdam-tests";
            if ours && word != package && !fixtures && !allowed.contains(&word) {
                wrong.push(format!("{name} depends on {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "forbidden edges between crates: {wrong:#?}");
}

/// The failpoints in the sources: name, and whether an error can be returned there.
fn failpoints() -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for (path, text) in all_sources() {
        if path.starts_with("tests") || path.is_symlink() {
            continue;
        }
        for (at, call) in text.match_indices("failpoint!(") {
            let arguments = text[at + call.len()..].split(')').next().unwrap_or_default();
            let name =
                arguments.split('"').nth(1).unwrap_or_else(|| panic!("{}: {arguments}", path.display()));
            found.push((name.to_owned(), !arguments.contains("infallible")));
        }
    }
    found.sort();
    found
}

#[test]
fn the_list_of_failpoints_is_that_of_the_sources() {
    let mut listed: Vec<_> =
        cofferdam_failpoints::POINTS.iter().map(|p| (p.name.to_owned(), p.fails)).collect();
    listed.sort();
    let found = failpoints();
    let once: std::collections::BTreeSet<_> = found.iter().map(|(name, _)| name).collect();
    assert_eq!(once.len(), found.len(), "a name is used twice");
    let missing: Vec<_> = found.iter().filter(|point| !listed.contains(point)).collect();
    let gone: Vec<_> = listed.iter().filter(|point| !found.contains(point)).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "not listed so: {missing:?}; not in the sources: {gone:?}"
    );
}

/// Failpoints are nobody's default, and no crate asks another one for them but by its own feature.
#[test]
fn failpoints_are_asked_for_by_name_only() {
    for name in CRATES {
        let text = std::fs::read_to_string(workspace().join(name).join("Cargo.toml")).unwrap();
        let asks = |line: &&str| ["armed\"", "failpoints\""].iter().any(|word| line.contains(word));
        let allowed = |line: &str| {
            ["failpoints = [", "required-features = ", "name = "].iter().any(|start| line.starts_with(start))
        };
        let wrong: Vec<_> = text.lines().filter(asks).filter(|line| !allowed(line)).collect();
        assert!(wrong.is_empty(), "{name}: {wrong:?}");
    }
}
