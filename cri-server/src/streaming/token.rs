//! Tokens: what a URL of the streaming server is worth, once and for a short time.
//!
//! Invariant: a token is as good as a password, 32 bytes of the kernel's randomness; it is taken once, by its first
//! use or by its age, and no more than a bounded number wait.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// How long a token waits for its use. The kubelet's first request follows at once.
const LIFE: Duration = Duration::from_secs(60);
/// How many wait at most; the oldest goes first.
const MOST: usize = 1000;
/// The random bytes of one.
const BYTES: usize = 32;

/// The kernel gave no randomness.
#[derive(Debug, thiserror::Error)]
#[error("no randomness for a token")]
pub struct TokenError;

/// Tokens that wait for their use, each with what it is good for.
pub struct Tokens<T> {
    waiting: Mutex<Waiting<T>>,
    life: Duration,
    most: usize,
}

struct Waiting<T> {
    tickets: HashMap<String, T>,
    /// The oldest first; those that were used are still in here until their time.
    issued: VecDeque<(Instant, String)>,
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self::new(LIFE, MOST)
    }
}

impl<T> Tokens<T> {
    fn new(life: Duration, most: usize) -> Self {
        let waiting = Waiting { tickets: HashMap::new(), issued: VecDeque::new() };
        Self { waiting: Mutex::new(waiting), life, most }
    }

    /// A new token for `ticket`.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn issue(&self, ticket: T) -> Result<String, TokenError> {
        let mut bytes = [0; BYTES];
        let random = rustls::crypto::ring::default_provider().secure_random;
        random.fill(&mut bytes).map_err(|_| TokenError)?;
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.forget(self.life, self.most - 1);
        waiting.tickets.insert(token.clone(), ticket);
        waiting.issued.push_back((Instant::now(), token.clone()));
        Ok(token)
    }

    /// What `token` is good for, once, if `suits`; one that does not suit is as unknown as any other and stays.
    pub fn take(&self, token: &str, suits: impl FnOnce(&T) -> bool) -> Option<T> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.forget(self.life, self.most);
        if !suits(waiting.tickets.get(token)?) {
            return None;
        }
        waiting.tickets.remove(token)
    }
}

impl<T> Waiting<T> {
    fn forget(&mut self, life: Duration, most: usize) {
        while let Some((at, token)) = self.issued.front() {
            if at.elapsed() < life && self.issued.len() <= most {
                return;
            }
            self.tickets.remove(token);
            self.issued.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once() {
        let tokens = Tokens::default();
        let token = tokens.issue(7).unwrap();
        assert_eq!(token.len(), 43);
        assert_ne!(token, tokens.issue(8).unwrap());
        assert_eq!(tokens.take(&token, |_| false), None);
        assert_eq!(tokens.take(&token, |t| *t == 7), Some(7));
        assert_eq!(tokens.take(&token, |_| true), None);
        assert_eq!(tokens.take("", |_| true), None);
    }

    #[test]
    fn age_and_number_are_bounded() {
        let tokens = Tokens::new(Duration::from_millis(20), 1000);
        let token = tokens.issue(1).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(tokens.take(&token, |_| true), None);
        let tokens = Tokens::new(LIFE, 3);
        let issued: Vec<_> = (0..5).map(|n| tokens.issue(n).unwrap()).collect();
        let left: Vec<_> = issued.iter().map(|t| tokens.take(t, |_| true)).collect();
        assert_eq!(left, [None, None, Some(2), Some(3), Some(4)]);
    }
}
