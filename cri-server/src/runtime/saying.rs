//! What shims found out on this node and left for whoever asks, a line for the options that they were started with.
//!
//! Beside the shims' sockets: `said-FINGERPRINT`, of the options as the shim was sent them. The daemon shows the words and
//! does not know what they mean.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::handler::Handler;
use super::launcher::SOCKETS;

const LONGEST: u64 = 1024;

/// The line of a shim of this handler, if one has left any. `state` is the daemon's state folder.
#[must_use]
pub fn said(state: &Path, handler: &Handler) -> Option<String> {
    let options = handler.options.as_ref()?;
    let path = state.join(SOCKETS).join(format!("said-{:016x}", fingerprint(&options.value)));
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(LONGEST).read_to_end(&mut bytes).ok()?;
    let line: String =
        String::from_utf8_lossy(&bytes).lines().next()?.chars().filter(|c| !c.is_control()).collect();
    (!line.is_empty()).then_some(line)
}

/// FNV-1a, as the shim has it.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::handler::RuntimeConfig;

    #[test]
    fn the_line_of_a_handlers_own_options_is_shown_and_no_other() {
        let state = tempfile::tempdir().unwrap();
        let handler = |text: &str| {
            let config: RuntimeConfig = toml::from_str(text).unwrap();
            Handler::new("vm", &config, Path::new("/x")).unwrap()
        };
        let one = handler("type = \"io.containerd.cofferdam.v1\"\nisolation = \"vm\"");
        let other = handler("type = \"io.containerd.cofferdam.v1\"");
        assert_eq!(said(state.path(), &one), None);
        let folder = state.path().join(SOCKETS);
        std::fs::create_dir(&folder).unwrap();
        let name = format!("said-{:016x}", fingerprint(&one.options.as_ref().unwrap().value));
        std::fs::write(folder.join(name), "it \u{1b}boots\nmore").unwrap();
        assert_eq!(said(state.path(), &one).as_deref(), Some("it boots"));
        assert_eq!(said(state.path(), &other), None);
    }

    #[test]
    fn the_fingerprint_is_the_known_one() {
        assert_eq!(fingerprint(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fingerprint(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
