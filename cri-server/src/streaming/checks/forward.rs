//! Port-forward: streams and their headers become connections.

use std::collections::HashSet;

use super::super::remote::pairing::{Half, Pair, Pairing};
use super::super::spdy::Headers;

/// The input is a line for each stream: `name=value` and commas.
pub fn check(bytes: &[u8]) {
    let mut pairing = Pairing::default();
    let mut streams: Vec<Half> = Vec::new();
    let mut paired = HashSet::new();
    for (number, line) in (0u32..).zip(bytes.split(|byte| *byte == b'\n').take(200)) {
        let line = String::from_utf8_lossy(line);
        let headers: Headers = line.split(',').filter_map(|pair| pair.split_once('=')).collect();
        let Some(half) = Half::of(&headers, 2 * number + 1) else { continue };
        assert!(half.port != 0 && half.request_id.len() <= 128);
        streams.push(half.clone());
        let Some(Pair { port, request_id, data, error }) = pairing.add(half, streams.len() - 1) else {
            continue;
        };
        for (stream, is_error) in [(data, false), (error, true)] {
            assert_eq!(streams[stream], Half { port, request_id: request_id.clone(), is_error });
            assert!(paired.insert(stream), "stream {stream} has two connections");
        }
    }
    assert!(pairing.waiting().all(|stream| !paired.contains(stream)));
    pairing.retain(|_| false);
    assert_eq!(pairing.waiting().count(), 0);
}
