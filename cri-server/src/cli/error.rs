//! What can go wrong in a command, in words that say what to do.
//!
//! Invariant: an answer of the daemon becomes one sentence; codes and details of gRPC are never shown.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tonic::{Code, Status};

use super::remote::RemoteError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error(
        "no daemon answers at {}; start it with `cofferdam serve`, or name its socket with --socket",
        .socket.display()
    )]
    NotRunning { socket: PathBuf },
    #[error("{} is open to root only; run the command as root", .socket.display())]
    Denied { socket: PathBuf },
    #[error("connect to {}", .socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    #[error("{}", sentence(.0))]
    Call(Box<Status>),
    #[error("there is no {kind} {wanted:?}; `cofferdam {list}` lists what there is")]
    NotFound { kind: &'static str, wanted: String, list: &'static str },
    #[error("{wanted:?} may be any of: {}; write more of the id", .candidates.join(", "))]
    Ambiguous { wanted: String, candidates: Vec<String> },
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Usage(String),
    #[error("{operation} {}", .path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("write the output")]
    Output(#[source] io::Error),
    #[error("read the input")]
    Input(#[source] io::Error),
    #[error("the local connection was broken off")]
    Local(#[source] io::Error),
    #[error("listen at {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error("output as JSON")]
    Json(#[from] serde_json::Error),
    #[error("the default configuration has no form in TOML")]
    Toml(#[from] toml::ser::Error),
    #[error("this command cannot begin")]
    Setup(#[source] io::Error),
    #[error("{count} of {of} failed")]
    Several { count: usize, of: usize },
    #[error(transparent)]
    Daemon(Box<dyn Error + Send + Sync>),
}

impl CliError {
    /// Whether the reader of our output has gone.
    pub(super) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

/// The result of a command that does the same for several things and goes on after a failure.
pub(super) fn all(mut failures: Vec<CliError>, of: usize) -> Result<(), CliError> {
    match (failures.len(), of) {
        (0, _) => Ok(()),
        (1, 1) => failures.pop().map_or(Ok(()), Err),
        (count, of) => {
            for failure in failures {
                eprintln!("cofferdam: {}", crate::report::chain(&failure));
            }
            Err(CliError::Several { count, of })
        }
    }
}

/// The daemon's words, and what a person can do about them.
fn sentence(status: &Status) -> String {
    let words: Vec<&str> = status.message().split_whitespace().collect();
    let words = words.join(" ");
    let words = if words.is_empty() { format!("{:?}", status.code()) } else { words };
    match status.code() {
        Code::Unauthenticated => {
            format!("{words}; log in with `cofferdam pull --creds USER:PASSWORD`, or check the credentials")
        }
        Code::ResourceExhausted => {
            format!("{words}; make room, `cofferdam rmi` removes images that are not used")
        }
        // The connection broke: the daemon's own refusals carry its words.
        Code::Unavailable | Code::Unknown | Code::Internal if is_lost(status) => {
            "the daemon went away; see its log and start it again, pods run on".to_owned()
        }
        Code::Unavailable => format!("{words}; try again later"),
        Code::DeadlineExceeded => {
            format!("{words}; it may still be under way, `cofferdam info` shows what is")
        }
        _ => words,
    }
}

/// The exit code that shells know for a command that is not there (127) or cannot be executed (126), if the daemon's
/// refusal is that. Runtimes tell it in words alone.
pub(super) fn not_runnable(words: &str) -> Option<u8> {
    const NOT_FOUND: u8 = 127;
    const NOT_EXECUTABLE: u8 = 126;
    let words = words.to_ascii_lowercase();
    let has = |signs: &[&str]| signs.iter().any(|sign| words.contains(sign));
    if !has(&["exec: ", "executable"]) {
        return None;
    }
    if has(&["not found", "no such file", "enoent"]) {
        Some(NOT_FOUND)
    } else if has(&["permission denied", "eacces", "exec format error"]) {
        Some(NOT_EXECUTABLE)
    } else {
        None
    }
}

/// Whether it was the connection that failed, and not the daemon that refused.
pub(super) fn is_lost(status: &Status) -> bool {
    const SIGNS: [&str; 7] = [
        "transport error",
        "h2 protocol error",
        "error trying to connect",
        "connection closed",
        "Connection refused",
        "Connection reset",
        "No such file or directory",
    ];
    SIGNS.iter().any(|sign| status.message().starts_with(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_sentence_that_says_what_to_do() {
        let text = CliError::from(Status::unauthenticated("registry r\n refuses  the password")).to_string();
        assert!(text.starts_with("registry r refuses the password; log in"), "{text}");
        let text = CliError::from(Status::not_found("no container x")).to_string();
        assert_eq!(text, "no container x");
        for lost in
            [Status::unknown("transport error"), Status::unavailable("Connection refused (os error 111)")]
        {
            let text = CliError::from(lost).to_string();
            assert!(text.contains("went away"), "{text}");
        }
        let text = CliError::from(Status::unavailable("registry r: Connection refused")).to_string();
        assert_eq!(text, "registry r: Connection refused; try again later");
    }

    #[test]
    fn a_command_that_cannot_be_run_has_the_code_of_shells() {
        let table = [
            ("Create: exec: \"/no\": stat /no: no such file or directory", Some(127)),
            ("exec: \"x\": executable file not found in $PATH", Some(127)),
            ("Create: exec: \"/etc/passwd\": permission denied", Some(126)),
            ("mount /x: no such file or directory", None),
            ("open /dev/null: permission denied", None),
        ];
        for (words, code) in table {
            assert_eq!(not_runnable(words), code, "{words}");
        }
    }

    #[test]
    fn a_missing_daemon_is_named_with_its_socket() {
        let text = CliError::NotRunning { socket: "/run/x.sock".into() }.to_string();
        assert!(text.contains("/run/x.sock") && text.contains("cofferdam serve"), "{text}");
    }
}
