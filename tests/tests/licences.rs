//! Every crate that is linked has a licence that this project can be shipped under.

use std::process::Command;

use serde_json::Value;

/// What may come in. An expression with OR is allowed when one side is, one with AND when both are.
const ALLOWED: [&str; 13] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "MIT",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "CC0-1.0",
    "Unlicense",
    "Unicode-3.0",
    "CDLA-Permissive-2.0",
    // File by file, without effect on ours: pathrs, which libcontainer needs.
    "MPL-2.0",
];

/// Crates that name a file instead of a licence: read by a person.
const READ: [(&str, &str); 1] = [("rust-criu", "MIT")];

fn licence(package: &Value) -> Option<&str> {
    let read = READ.iter().find(|(name, _)| package["name"] == *name).map(|(_, licence)| *licence);
    package["license"].as_str().or(read)
}

fn allowed(expression: &str) -> bool {
    let expression = expression.trim().replace('/', " OR ");
    let bare = expression.replace(['(', ')'], "");
    bare.split(" AND ").all(|all| all.split(" OR ").any(|one| ALLOWED.contains(&one.trim())))
}

#[test]
fn expressions_are_read() {
    for good in ["MIT", "MIT OR GPL-3.0", "MIT/Apache-2.0", "(MIT OR Apache-2.0) AND Unicode-3.0"] {
        assert!(allowed(good), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-2.0", "", "LGPL-2.1"] {
        assert!(!allowed(bad), "{bad}");
    }
}

#[test]
fn every_crate_has_an_allowed_licence() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 50, "only {} packages: is this the whole workspace?", packages.len());
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !licence(package).is_some_and(allowed))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["license"]))
        .collect();
    assert!(refused.is_empty(), "licences that are not allowed:\n{}", refused.join("\n"));
}
