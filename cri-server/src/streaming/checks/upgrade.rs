//! The negotiation: a method and headers, as a client writes them.

use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::super::remote::negotiate::{Agreed, Refusal, command, forward};

/// The input is a method, then lines of `name: value`; what HTTP would not let through is left out.
pub fn check(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let Ok(method) = Method::from_bytes(lines.next().unwrap_or_default()) else { return };
    let mut headers = HeaderMap::new();
    for line in lines.take(64) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    judge(command(&method, &headers), &headers, bytes.len());
    judge(forward(&method, &headers), &headers, bytes.len());
}

fn judge<P>(answer: Result<Agreed<P>, Refusal>, asked: &HeaderMap, length: usize) {
    match answer {
        Ok(Agreed { headers, .. }) => {
            assert_eq!(headers[CONNECTION], "Upgrade");
            for name in ["sec-websocket-protocol", "x-stream-protocol-version"] {
                let Some(chosen) = headers.get(name) else { continue };
                let lists = asked.get_all(name).iter().filter_map(|value| value.to_str().ok());
                let words: Vec<&str> = lists.flat_map(|list| list.split(',')).map(str::trim).collect();
                // Whoever asks for nothing is told what there is.
                let silent = words.iter().all(|word| word.is_empty());
                let offers = words.iter().any(|word| chosen == word);
                assert!(offers || silent, "{chosen:?} was not asked for");
            }
            let accepted = headers.get(SEC_WEBSOCKET_ACCEPT).map(HeaderValue::len);
            assert!(accepted.is_none_or(|length| length == 28));
            assert!(accepted.is_some() || !headers.contains_key(SEC_WEBSOCKET_PROTOCOL));
        }
        Err(Refusal { status, body, .. }) => {
            assert!(status.is_client_error());
            assert!(body.ends_with('\n') && body.len() <= 2 * length + 512, "{} bytes", body.len());
        }
    }
}
