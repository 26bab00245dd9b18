//! Digests: the names of bytes by their content.
//!
//! Invariant: the text of a digest is a known algorithm, a colon and exactly its digits, so it is safe in URLs and,
//! split at the colon, in paths.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longer texts are cut in messages: they may come from anyone.
const MAX_SHOWN: usize = 300;

/// Why a text is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("{0:?} is no digest: expected algorithm:hexadecimal digits")]
    Form(String),
    #[error("the digest algorithm {0:?} is not supported; sha256 and sha512 are")]
    Algorithm(String),
    #[error("a {algorithm} digest has {expected} hexadecimal digits in lower case, {hex:?} has not")]
    Hex { algorithm: Algorithm, expected: usize, hex: String },
}

/// How a digest was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    /// The name used before the colon of a digest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of some bytes by their content.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    text: String,
}

impl Digest {
    /// Reads `algorithm:hex`.
    ///
    /// # Errors
    /// When the algorithm is unknown or the digits are not exactly its own.
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        let (name, hex) = text.split_once(':').ok_or_else(|| DigestError::Form(shown(text)))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            other => return Err(DigestError::Algorithm(shown(other))),
        };
        let expected = algorithm.hex_digits();
        let valid = hex.len() == expected && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !valid {
            return Err(DigestError::Hex { algorithm, expected, hex: shown(hex) });
        }
        Ok(Self { algorithm, text: text.to_owned() })
    }

    /// The digest of `bytes`.
    #[must_use]
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        match algorithm {
            Algorithm::Sha256 => Self::from_hash(algorithm, &sha2::Sha256::digest(bytes)),
            Algorithm::Sha512 => Self::from_hash(algorithm, &sha2::Sha512::digest(bytes)),
        }
    }

    /// The SHA-256 digest of `bytes`.
    #[must_use]
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::of(Algorithm::Sha256, bytes)
    }

    /// A digest from the finished state of a SHA-256 hasher.
    #[must_use]
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        Self::from_hash(Algorithm::Sha256, &hash)
    }

    /// A digest from the finished state of a SHA-512 hasher.
    #[must_use]
    pub fn from_sha512(hash: [u8; 64]) -> Self {
        Self::from_hash(Algorithm::Sha512, &hash)
    }

    fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Self {
        use fmt::Write as _;
        let mut text = format!("{algorithm}:");
        for byte in hash {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self { algorithm, text }
    }

    /// Which algorithm made it.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digits behind the colon.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.as_str().len() + 1..]
    }

    /// `algorithm:hex`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether `bytes` are the ones this digest names.
    #[must_use]
    pub fn matches(&self, bytes: &[u8]) -> bool {
        Self::of(self.algorithm, bytes) == *self
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.text
    }
}

/// A text from outside, cut to a length that fits into a message.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digests_are_checked_and_computed() {
        let empty = Digest::sha256(b"");
        assert_eq!(empty.as_str(), format!("sha256:{HEX}"));
        assert_eq!(empty.hex(), HEX);
        assert!(empty.matches(b"") && !empty.matches(b"x"));
        let long = Digest::of(Algorithm::Sha512, b"x");
        assert_eq!(Digest::parse(long.as_str()).unwrap(), long);
        assert_eq!(long.hex().len(), 128);
        for bad in
            [HEX, "sha256:", "sha512:abc", &format!("sha256:{}", HEX.to_uppercase()), "sha256:../../etc"]
        {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
    }
}
