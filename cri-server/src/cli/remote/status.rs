//! How a command ended, as the error stream tells it: a `metav1.Status` in JSON.

use serde::Deserialize;

use super::RemoteError;

/// More is no status.
pub(super) const LONGEST: usize = 64 * 1024;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Outcome {
    Exited(u8),
    /// It did not run, or nobody knows what became of it; in the daemon's words.
    Failed(String),
}

#[derive(Deserialize)]
struct Document {
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    details: Details,
}

#[derive(Default, Deserialize)]
struct Details {
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Deserialize)]
struct Cause {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

/// Reads the error stream's data. Nothing at all means that the connection ended before the command.
pub(super) fn parse(bytes: &[u8]) -> Result<Outcome, RemoteError> {
    if bytes.is_empty() {
        return Err(RemoteError::Ended);
    }
    let unclear = || RemoteError::Status { words: String::from_utf8_lossy(bytes).into_owned() };
    let document: Document = serde_json::from_slice(bytes).map_err(|_| unclear())?;
    match (document.status.as_str(), document.reason.as_str()) {
        ("Success", _) => Ok(Outcome::Exited(0)),
        ("Failure", "NonZeroExitCode") => {
            let code = document.details.causes.iter().find(|cause| cause.reason == "ExitCode");
            let code: i64 = code.and_then(|cause| cause.message.parse().ok()).ok_or_else(unclear)?;
            Ok(Outcome::Exited(u8::try_from(code).unwrap_or(u8::MAX)))
        }
        ("Failure", _) => Ok(Outcome::Failed(document.message)),
        _ => Err(unclear()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_and_the_words_of_a_status_are_found() {
        let exit = |code: &str| {
            let text = format!(
                r#"{{"metadata":{{}},"status":"Failure","reason":"NonZeroExitCode","message":"m",
                    "details":{{"causes":[{{"reason":"ExitCode","message":"{code}"}}]}}}}"#
            );
            parse(text.as_bytes())
        };
        assert_eq!(parse(br#"{"metadata":{},"status":"Success"}"#).unwrap(), Outcome::Exited(0));
        assert_eq!(exit("3").unwrap(), Outcome::Exited(3));
        assert_eq!(exit("300").unwrap(), Outcome::Exited(255));
        assert!(exit("three").is_err());
        let text = br#"{"status":"Failure","reason":"InternalError","message":"no such file"}"#;
        assert_eq!(parse(text).unwrap(), Outcome::Failed("no such file".to_owned()));
    }

    #[test]
    fn a_session_without_last_words_was_cut_off() {
        assert!(matches!(parse(b""), Err(RemoteError::Ended)));
        assert!(matches!(parse(b"{\"status\":"), Err(RemoteError::Status { .. })));
        assert!(matches!(parse(br#"{"status":"Unknown"}"#), Err(RemoteError::Status { .. })));
    }
}
