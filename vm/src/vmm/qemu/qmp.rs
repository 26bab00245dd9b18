//! QMP: one JSON object a line, over one connection; commands one at a time.
//!
//! Invariant: QEMU is not trusted either, its guest may have taken it over: answers are bounded in length and time.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::sys::rights;
use crate::vmm::MonitorError;

const LONGEST_ANSWER: u64 = 256 << 10;
/// Events and greetings that may come before an answer.
const MOST_EVENTS: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Qmp {
    /// Held for the length of a command: an answer bears no name.
    connection: Mutex<Connection>,
}

#[derive(Debug)]
struct Connection {
    stream: BufReader<UnixStream>,
    negotiated: bool,
    /// A command was given up in the middle; what comes next could be its answer.
    lost: bool,
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    pub fn new(stream: UnixStream) -> Self {
        let stream = BufReader::new(stream);
        Qmp { connection: Mutex::new(Connection { stream, negotiated: false, lost: false }) }
    }

    /// Has the monitor do one thing.
    ///
    /// # Errors
    /// When it refuses, answers too late or too much, or is gone.
    pub async fn execute(
        &self,
        operation: &'static str,
        command: &str,
        arguments: Value,
    ) -> Result<Value, MonitorError> {
        self.execute_with(operation, command, arguments, &[]).await
    }

    /// The same, with descriptors for the monitor beside the command.
    ///
    /// # Errors
    /// As above.
    pub async fn execute_with(
        &self,
        operation: &'static str,
        command: &str,
        arguments: Value,
        passed: &[BorrowedFd<'_>],
    ) -> Result<Value, MonitorError> {
        let mut connection = self.connection.lock().await;
        let talk = |source| MonitorError::Talk { operation, source };
        if connection.lost {
            return Err(talk(io::Error::other("an earlier command was given up")));
        }
        connection.lost = true;
        let work = async {
            if !connection.negotiated {
                connection.exchange("qmp_capabilities", &json!({}), &[]).await?.map_err(io::Error::other)?;
                connection.negotiated = true;
            }
            connection.exchange(command, &arguments, passed).await
        };
        let outcome = timeout(PATIENCE, work).await.map_err(|_| MonitorError::Silent { operation })?;
        let answer = outcome.map_err(talk)?;
        connection.lost = false;
        answer.map_err(|words| MonitorError::Refused { operation, words })
    }
}

impl Connection {
    /// The inner error is the monitor's refusal.
    async fn exchange(
        &mut self,
        command: &str,
        arguments: &Value,
        passed: &[BorrowedFd<'_>],
    ) -> io::Result<Result<Value, String>> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        rights::send(self.stream.get_mut(), line.as_bytes(), passed).await?;
        for _ in 0..MOST_EVENTS {
            let mut line = Vec::new();
            let read = (&mut self.stream).take(LONGEST_ANSWER).read_until(b'\n', &mut line).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if line.last() != Some(&b'\n') {
                return Err(io::Error::other("the answer is too long"));
            }
            let message: Message = serde_json::from_slice(&line)?;
            match (message.value, message.error) {
                (Some(value), _) => return Ok(Ok(value)),
                (None, Some(refusal)) => return Ok(Err(refusal.desc)),
                (None, None) => {}
            }
        }
        Err(io::Error::other("events without end"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    async fn against(answers: &'static str) -> Result<Value, MonitorError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let qmp = Qmp::new(ours);
        let monitor = async move {
            theirs.write_all(answers.as_bytes()).await.unwrap();
            // Kept open until the other side is done.
            drop(theirs.read_to_end(&mut Vec::new()).await);
        };
        tokio::select! {
            answer = qmp.execute("pause", "stop", json!({})) => answer,
            () = monitor => panic!("the connection ended first"),
        }
    }

    #[tokio::test]
    async fn greetings_and_events_are_passed_over() {
        let answers = "{\"QMP\":{}}\n{\"return\":{}}\n{\"event\":\"STOP\"}\n{\"return\":7}\n";
        assert_eq!(against(answers).await.unwrap(), json!(7));
    }

    #[tokio::test]
    async fn refusals_and_garbage_are_told_apart() {
        let refused = against("{\"return\":{}}\n{\"error\":{\"class\":\"x\",\"desc\":\"no way\"}}\n").await;
        assert!(matches!(refused, Err(MonitorError::Refused { words, .. }) if words == "no way"));
        assert!(matches!(against("}{\n").await, Err(MonitorError::Talk { .. })));
    }

    #[tokio::test]
    async fn a_command_that_was_given_up_is_the_last() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let qmp = Qmp::new(ours);
        theirs.write_all(b"nonsense\n").await.unwrap();
        assert!(qmp.execute("pause", "stop", json!({})).await.is_err());
        theirs.write_all(b"{\"return\":{}}\n{\"return\":{}}\n").await.unwrap();
        let again = qmp.execute("pause", "stop", json!({})).await.unwrap_err();
        assert!(again.to_string().contains("given up"), "{again}");
    }
}
