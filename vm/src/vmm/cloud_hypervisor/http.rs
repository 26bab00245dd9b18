//! Cloud Hypervisor's API: HTTP/1.1 over one connection, one request at a time, descriptors beside the request.
//!
//! Invariant: the monitor is not trusted: answers are bounded in length and time, and after a request that was given up
//! there is none.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::agent::plain;
use crate::sys::rights;
use crate::vmm::MonitorError;

const ROOT: &str = "/api/v1/";
const LONGEST_LINE: u64 = 8 << 10;
const LONGEST_BODY: usize = 256 << 10;
const MOST_HEADERS: usize = 64;
/// No words of the monitor's are longer in an error of ours.
const LONGEST_WORDS: usize = 500;
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Api {
    /// Held for the length of a request: an answer bears no name.
    connection: Mutex<Connection>,
}

#[derive(Debug)]
struct Connection {
    stream: BufReader<UnixStream>,
    /// A request was given up in the middle; what comes next could be its answer.
    lost: bool,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Api {
    pub fn new(stream: UnixStream) -> Self {
        Api { connection: Mutex::new(Connection { stream: BufReader::new(stream), lost: false }) }
    }

    /// Asks for something.
    ///
    /// # Errors
    /// When the monitor refuses, answers too late or too much, or is gone.
    pub async fn get(&self, operation: &'static str, endpoint: &str) -> Result<Value, MonitorError> {
        self.exchange(operation, "GET", endpoint, None, &[]).await
    }

    /// Has something done. `passed` goes with the request.
    ///
    /// # Errors
    /// As above.
    pub async fn put(
        &self,
        operation: &'static str,
        endpoint: &str,
        body: Option<&Value>,
        passed: &[BorrowedFd<'_>],
    ) -> Result<Value, MonitorError> {
        self.exchange(operation, "PUT", endpoint, body, passed).await
    }

    async fn exchange(
        &self,
        operation: &'static str,
        method: &str,
        endpoint: &str,
        body: Option<&Value>,
        passed: &[BorrowedFd<'_>],
    ) -> Result<Value, MonitorError> {
        let mut connection = self.connection.lock().await;
        let talk = |source| MonitorError::Talk { operation, source };
        if connection.lost {
            return Err(talk(io::Error::other("an earlier request was given up")));
        }
        connection.lost = true;
        let request = request(method, endpoint, body);
        let work = async {
            rights::send(connection.stream.get_mut(), &request, passed).await?;
            connection.answer().await
        };
        let answer = timeout(PATIENCE, work).await.map_err(|_| MonitorError::Silent { operation })?;
        let answer = answer.map_err(talk)?;
        connection.lost = false;
        match answer.status {
            200..=299 if answer.body.is_empty() => Ok(Value::Null),
            200..=299 => serde_json::from_slice(&answer.body).map_err(|error| talk(error.into())),
            status => Err(MonitorError::Refused { operation, words: words(status, &answer.body) }),
        }
    }
}

fn request(method: &str, endpoint: &str, body: Option<&Value>) -> Vec<u8> {
    let head =
        format!("{method} {ROOT}{endpoint} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n");
    match body.map(Value::to_string) {
        None => format!("{head}\r\n"),
        Some(text) => {
            format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}", text.len())
        }
    }
    .into_bytes()
}

/// The chain of errors that newer versions answer, or the text of older ones.
fn words(status: u16, body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Vec<String>>(body) {
        Ok(chain) => chain.join(": "),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let text: String = plain(text.trim()).chars().take(LONGEST_WORDS).collect();
    if text.is_empty() { format!("status {status}") } else { format!("{text} (status {status})") }
}

impl Connection {
    async fn answer(&mut self) -> io::Result<Answer> {
        let first = self.line().await?;
        let mut parts = first.splitn(3, ' ');
        let (version, status) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let status = match (version, status.parse()) {
            ("HTTP/1.1" | "HTTP/1.0", Ok(status)) => status,
            _ => return Err(io::Error::other("the answer is no HTTP")),
        };
        let mut length = 0;
        for _ in 0..MOST_HEADERS {
            let line = self.line().await?;
            if line.is_empty() {
                return self.body(status, length).await;
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().map_err(io::Error::other)?;
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(io::Error::other("the answer's length is not told"));
            }
        }
        Err(io::Error::other("the answer has too many headers"))
    }

    async fn body(&mut self, status: u16, length: usize) -> io::Result<Answer> {
        if length > LONGEST_BODY {
            return Err(io::Error::other("the answer is too long"));
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok(Answer { status, body })
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line.last() != Some(&b'\n') {
            return Err(io::Error::other("a line of the answer is too long"));
        }
        String::from_utf8(line).map(|line| line.trim_end().to_owned()).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    async fn against(answer: &str) -> Result<Value, MonitorError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer.as_bytes()).await.unwrap();
        let api = Api::new(ours);
        let outcome = api.get("ask", "vmm.ping").await;
        let mut asked = vec![0; 23];
        theirs.read_exact(&mut asked).await.unwrap();
        assert_eq!(asked, b"GET /api/v1/vmm.ping HT");
        outcome
    }

    #[tokio::test]
    async fn answers_with_and_without_a_body_are_read() {
        let answer = "HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 13\r\n\r\n{\"version\":1}";
        assert_eq!(against(answer).await.unwrap()["version"], 1);
        assert_eq!(against("HTTP/1.1 204 \r\nConnection: keep-alive\r\n\r\n").await.unwrap(), Value::Null);
    }

    #[tokio::test]
    async fn refusals_are_told_in_the_monitors_words() {
        let body = r#"["Error from API","VM is not created"]"#;
        let answer = format!("HTTP/1.1 404 \r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let words = against(&answer).await.unwrap_err().to_string();
        assert!(words.contains("Error from API: VM is not created (status 404)"), "{words}");
        let words =
            against("HTTP/1.1 500 \r\nContent-Length: 4\r\n\r\n\u{1b}[2J").await.unwrap_err().to_string();
        assert!(words.contains("status 500") && !words.contains('\u{1b}'), "{words}");
    }

    #[tokio::test]
    async fn garbage_and_floods_are_no_answers() {
        let headers = "a: b\r\n".repeat(MOST_HEADERS + 1);
        let long = "x".repeat(usize::try_from(LONGEST_LINE).unwrap() + 1);
        for answer in [
            "nonsense\r\n\r\n".to_owned(),
            format!("HTTP/1.1 200 OK\r\n{headers}\r\n"),
            format!("HTTP/1.1 200 {long}\r\n"),
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        ] {
            let refused = against(&answer).await;
            assert!(matches!(refused, Err(MonitorError::Talk { .. })), "{refused:?}");
        }
    }

    #[tokio::test]
    async fn after_a_request_that_was_given_up_there_is_none() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let api = Api::new(ours);
        theirs.write_all(b"nonsense\r\n").await.unwrap();
        assert!(api.get("ask", "vmm.ping").await.is_err());
        let again = api.get("ask", "vmm.ping").await.unwrap_err();
        assert!(again.to_string().contains("given up"), "{again}");
    }
}
