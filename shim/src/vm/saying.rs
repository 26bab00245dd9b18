//! What is found out about machines on this node, for the daemon's `info`: one line for the options that say what machines
//! are to be, beside the sockets, replaced by whoever finds out more. The daemon reads it by the same name.

use std::fs;
use std::path::Path;

use cofferdam_vm::agent::plain;
use cofferdam_vm::machine::Machine;
use protobuf::well_known_types::any::Any;

use crate::error::ShimError;

const LONGEST: usize = 400;

/// Leaves the line. Nobody depends on it, so a failure to write it is let go.
pub fn leave(folder: &Path, options: Option<&Any>, outcome: Result<&Machine, &ShimError>) {
    let Some(options) = options else { return };
    let words = match outcome {
        Ok(machine) => format!(
            "{} has booted under {}, its agent is reached over {}",
            machine.monitor().name(),
            machine.accelerator(),
            machine.wire()
        ),
        Err(error) => format!("the last machine did not start: {error}"),
    };
    let words: String = plain(&words).chars().take(LONGEST).collect();
    let name = format!("said-{:016x}", fingerprint(&options.value));
    let beside = folder.join(format!(".{name}.{}", std::process::id()));
    if fs::write(&beside, words + "\n").and_then(|()| fs::rename(&beside, folder.join(name))).is_err() {
        drop(fs::remove_file(beside));
    }
}

/// FNV-1a, as the daemon has it.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_in_one_line_under_the_options_name() {
        let folder = tempfile::tempdir().unwrap();
        let options = Any { value: b"a".to_vec(), ..Any::default() };
        let error = ShimError::Invalid(format!("no\nKVM {}", "x".repeat(2000)));
        leave(folder.path(), Some(&options), Err(&error));
        let text = fs::read_to_string(folder.path().join("said-af63dc4c8601ec8c")).unwrap();
        assert!(
            text.contains("did not start") && text.contains("no KVM") && text.len() <= LONGEST + 1,
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
