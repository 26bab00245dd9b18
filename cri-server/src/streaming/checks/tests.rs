//! The corpus and changes to it, so that every build meets what the fuzzer once found. The changes are the same in
//! every run: a failure can be repeated.

use std::path::{Path, PathBuf};

use super::bench::Choices;
use super::{ALL, run};

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
}

#[test]
fn every_check_has_a_target_and_a_corpus_that_holds() {
    for (name, check) in ALL {
        let target = format!("fuzz/fuzz_targets/{name}.rs");
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(&target).exists(), "{target}");
        let files = corpus(name);
        assert!(!files.is_empty(), "the corpus of {name} is empty");
        for (path, bytes) in files {
            println!("{}", path.display());
            check(&bytes);
        }
    }
}

/// Changes bytes, takes some out, doubles some, and puts the end of another input behind.
fn change(choices: &mut Choices, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..1 + choices.below(4) {
        let at = choices.below(bytes.len().max(1)).min(bytes.len());
        let end = (at + 1 + choices.below(16)).min(bytes.len());
        match choices.below(5) {
            0 => bytes[at..end].iter_mut().for_each(|byte| *byte = choices.below(256) as u8),
            1 => bytes[at..end].iter_mut().take(1).for_each(|byte| *byte ^= 1 << choices.below(8)),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => {
                bytes.truncate(at);
                bytes.extend_from_slice(&other[choices.below(other.len().max(1)).min(other.len())..]);
            }
        }
    }
    bytes.truncate(4096);
}

#[test]
fn changed_inputs_hold_too() {
    const ROUNDS: u8 = 12;
    for (name, _) in ALL {
        let files = corpus(name);
        for (number, (_, bytes)) in files.iter().enumerate() {
            for round in 0..ROUNDS {
                let (mut choices, _) = Choices::of(&[round.wrapping_mul(37).wrapping_add(number as u8)]);
                let other = &files[choices.below(files.len())].1;
                let mut changed = bytes.clone();
                change(&mut choices, &mut changed, other);
                run(name, &changed);
            }
        }
    }
}
