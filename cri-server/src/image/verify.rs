//! Looks again at what is stored: blobs against their digests, layers against their manifests.
//!
//! Invariant: it takes no lock that a pull or a container's creation waits for, reads no faster than it may, and at the lowest
//! priority. What is damaged is out of use before anybody is told; who asks for its image then gets it made whole
//! from what is stored, or pulls it again.

use cofferdam_failpoints::failpoint;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::ImageService;
use super::error::ImageError;
use crate::registry::Digest;
use crate::snapshot::Verdict;

/// A pause shorter than this is put off until it is worth one.
const WORTH_A_PAUSE: Duration = Duration::from_millis(20);
/// What a thread has that yields to all others; the kernel's I/O priority follows it. See ionice(1).
const LOWEST: i32 = 19;

/// Something that was not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// `blob` or `layer`, and its digest.
    pub what: String,
    pub why: String,
}

/// What one look at everything found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    pub blobs: usize,
    pub layers: usize,
    /// Layers of an older version, which nothing can be compared with.
    pub unknown: usize,
    pub bytes: u64,
    pub damaged: Vec<Damage>,
    /// Images that were made whole again from what is stored.
    pub repaired: Vec<String>,
    /// What could not be looked at.
    pub failures: Vec<String>,
}

/// How a look is taken.
#[derive(Clone, Debug)]
pub struct Look {
    /// Bytes read in a second at the most; 0 for no bound.
    pub rate: u64,
    /// Ends it.
    pub stop: CancellationToken,
}

/// Holds reading back to a rate.
struct Pacer {
    look: Look,
    since: Instant,
    bytes: u64,
}

impl Pacer {
    fn pace(&mut self, bytes: u64) -> io::Result<()> {
        if self.look.stop.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.bytes += bytes;
        if self.look.rate > 0 {
            #[allow(clippy::cast_precision_loss)]
            let due = Duration::from_secs_f64(self.bytes as f64 / self.look.rate as f64);
            let early = due.saturating_sub(self.since.elapsed());
            if early > WORTH_A_PAUSE {
                std::thread::sleep(early.min(Duration::from_secs(1)));
            }
        }
        Ok(())
    }
}

impl ImageService {
    /// Looks at every blob and layer; what is damaged goes out of use, and its images are made whole where that can be done
    /// without a registry.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub async fn verify(self: &Arc<Self>, look: Look) -> Result<Verified, ImageError> {
        let (service, pacer) = (Arc::clone(self), Pacer { look, since: Instant::now(), bytes: 0 });
        let (answer, answered) = tokio::sync::oneshot::channel();
        // A thread of its own, for its priority goes with it.
        let work = move || {
            // On Linux this is of the thread alone. Without the right to it, the rate has to do.
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), LOWEST);
            // Nobody waits any more when the daemon ends.
            let _ = answer.send(service.look_at_all(pacer));
        };
        let thread = std::thread::Builder::new().name("verify".to_owned()).spawn(work);
        let thread = thread.map_err(ImageError::io("start a thread in", &self.root))?;
        let found = answered.await.map_err(|_| ImageError::Interrupted("the look at what is stored"));
        // It has answered: this waits for nothing.
        let _ = thread.join();
        let mut found = found?;
        if !found.damaged.is_empty() {
            self.break_images().await;
            failpoint!("image.verify.broken", infallible);
            found.repaired = self.repair().await;
        }
        Ok(found)
    }

    fn look_at_all(&self, mut pacer: Pacer) -> Verified {
        let mut found = Verified::default();
        for (digest, _) in self.content.list() {
            match self.content.verify(&digest, &mut |bytes| pacer.pace(bytes)) {
                Ok(None) => {}
                Ok(Some(true)) => found.blobs += 1,
                Ok(Some(false)) => {
                    found.blobs += 1;
                    self.blob_is_damaged(&digest, &mut found);
                }
                Err(_) if pacer.look.stop.is_cancelled() => return found,
                Err(error) => found.failures.push(format!("blob {digest}: {error}")),
            }
        }
        for (digest, _) in self.snapshots.layers().list() {
            match self.snapshots.layers().verify(&digest, &mut |bytes| pacer.pace(bytes)) {
                Ok(None) => found.unknown += 1,
                Ok(Some(Verdict::Whole)) => found.layers += 1,
                Ok(Some(Verdict::Damaged(why))) => {
                    found.layers += 1;
                    self.layer_is_damaged(&digest, why, &mut found);
                }
                Err(_) if pacer.look.stop.is_cancelled() => return found,
                Err(error) => found.failures.push(format!("layer {digest}: {error}")),
            }
        }
        found.bytes = pacer.bytes;
        found
    }

    fn blob_is_damaged(&self, digest: &Digest, found: &mut Verified) {
        let why = "its bytes have another digest, or are gone".to_owned();
        self.notices.add(format!("blob {digest} is damaged: {why}; it is removed"));
        if let Err(error) = self.content.remove(digest) {
            found.failures.push(crate::report::chain(&error));
        }
        failpoint!("image.verify.blob_removed", infallible);
        found.damaged.push(Damage { what: format!("blob {digest}"), why });
    }

    fn layer_is_damaged(&self, digest: &Digest, why: String, found: &mut Verified) {
        match self.snapshots.set_aside(digest) {
            Ok(containers) => {
                let on_it: Vec<_> = containers.iter().map(|id| id.as_str()).collect();
                let on_it = if on_it.is_empty() {
                    String::new()
                } else {
                    format!("; containers stand on it: {}", on_it.join(", "))
                };
                self.notices.add(format!("layer {digest} is damaged: {why}; it is set aside{on_it}"));
            }
            Err(error) => found.failures.push(crate::report::chain(&error)),
        }
        found.damaged.push(Damage { what: format!("layer {digest}"), why });
    }
}
