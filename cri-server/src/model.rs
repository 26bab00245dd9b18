//! Identifiers of the domain, parsed once at the edge; inside they are trusted.

use std::fmt;
use std::io::Read;

use serde::{Deserialize, Serialize};

/// Why a text is no identifier.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a {kind}: expected 1 to 64 characters of a-z, 0-9 and '-'")]
pub struct IdError {
    kind: &'static str,
    text: String,
}

/// 32 random bytes as 64 hexadecimal digits, the form that users of other runtimes know.
fn random_hex() -> std::io::Result<String> {
    let mut bytes = [0u8; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// A new random identifier of 64 hexadecimal digits.
            ///
            /// # Errors
            /// When the kernel gives no randomness.
            pub fn generate() -> std::io::Result<Self> {
                random_hex().map(Self)
            }

            /// The identifier a caller named.
            ///
            /// # Errors
            /// When `text` could not have come from [`Self::generate`]; it is used in paths.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                let valid = (1..=64).contains(&text.len())
                    && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
                if valid { Ok(Self(text.to_owned())) } else { Err(IdError { kind: $kind, text: text.to_owned() }) }
            }

            /// The identifier's text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

identifier!(
    /// Names one pod sandbox.
    SandboxId,
    "sandbox id"
);
identifier!(
    /// Names one container.
    ContainerId,
    "container id"
);
