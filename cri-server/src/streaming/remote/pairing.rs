//! Which two SPDY streams make one forwarded connection: pure decisions on headers.
//!
//! Invariant: a connection has one data and one error stream of the same port and the same name; what comes twice is
//! given back to nobody, so it is dropped and thereby reset.

use std::collections::HashMap;

use super::super::spdy::Headers;

const LONGEST_REQUEST_ID: usize = 128;

/// What a stream's headers say that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Half {
    pub port: u16,
    pub request_id: String,
    pub is_error: bool,
}

impl Half {
    /// Reads the headers of stream `id`; nothing if no connection can be meant.
    pub fn of(headers: &Headers, id: u32) -> Option<Self> {
        let is_error = match headers.get("streamtype")? {
            "error" => true,
            "data" => false,
            _ => return None,
        };
        let port = headers.get("port")?.parse().ok().filter(|port| *port != 0)?;
        let request_id = match headers.get("requestid") {
            Some(id) if id.len() > LONGEST_REQUEST_ID => return None,
            Some(id) => id.to_owned(),
            // Old clients count on the order: the error stream, then at once the data stream.
            None if is_error => id.to_string(),
            None => id.saturating_sub(2).to_string(),
        };
        Some(Self { port, request_id, is_error })
    }
}

/// Both streams of one connection.
#[derive(Debug, PartialEq, Eq)]
pub struct Pair<S> {
    pub port: u16,
    pub request_id: String,
    pub data: S,
    pub error: S,
}

/// The halves that wait for their other half, each with its stream.
#[derive(Debug)]
pub struct Pairing<S> {
    halves: HashMap<(u16, String), (bool, S)>,
}

impl<S> Default for Pairing<S> {
    fn default() -> Self {
        Self { halves: HashMap::new() }
    }
}

impl<S> Pairing<S> {
    /// The connection that `stream` completes, if it does.
    pub fn add(&mut self, half: Half, stream: S) -> Option<Pair<S>> {
        let Half { port, request_id, is_error } = half;
        let key = (port, request_id);
        let Some((was_error, other)) = self.halves.remove(&key) else {
            self.halves.insert(key, (is_error, stream));
            return None;
        };
        if was_error == is_error {
            // The same half twice: the first one stays.
            self.halves.insert(key, (was_error, other));
            return None;
        }
        let (data, error) = if is_error { (other, stream) } else { (stream, other) };
        let (port, request_id) = key;
        Some(Pair { port, request_id, data, error })
    }

    pub fn waiting(&self) -> impl Iterator<Item = &S> {
        self.halves.values().map(|(_, stream)| stream)
    }

    pub fn retain(&mut self, keep: impl Fn(&S) -> bool) {
        self.halves.retain(|_, (_, stream)| keep(stream));
    }
}
