//! Images that come and go beside the pods: each is whole or absent, and a removal takes what nobody else has.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::kubelet::until_answered;
use super::random::Random;
use crate::client::Cri;
use crate::fixtures::catalog;
use crate::fixtures::image::Image;
use crate::fixtures::layer::Layer;
use crate::harness::Node;

#[derive(Debug, Default)]
struct Counts {
    pulls: AtomicUsize,
    removals: AtomicUsize,
}

/// The references, and what was done with them.
pub struct Images {
    references: Vec<String>,
    counts: Arc<Counts>,
}

impl Images {
    /// Some share layers, with each other and with the image that pods run.
    pub fn push(node: &Node) -> Self {
        let mut references = Vec::new();
        for number in 0..4_u8 {
            let text = vec![b'a' + number; 300_000];
            let own = Layer::new().dir("own").file("own/text", text);
            let shared = Layer::new().dir("shared").file("shared/text", [b's' + number / 2; 100_000]);
            let base = catalog::base_layer().unwrap_or_else(|error| panic!("{error}"));
            let image = Image::new().layer(base).layer(shared).layer(own).build();
            let image = image.unwrap_or_else(|error| panic!("{error}"));
            references.push(node.registry.push(&format!("soak{number}"), "1", &image));
        }
        Self { references, counts: Arc::default() }
    }

    pub fn counts(&self) -> String {
        let count = |number: &AtomicUsize| number.load(Ordering::Relaxed);
        format!("{} pulls, {} removals", count(&self.counts.pulls), count(&self.counts.removals))
    }

    /// A few pulls and removals, one after the other; two callers at times.
    pub fn round(&self, cri: Cri, mut random: Random) -> impl Future<Output = Result<(), String>> + use<> {
        let (references, counts) = (self.references.clone(), Arc::clone(&self.counts));
        async move {
            for _ in 0..random.below(5) {
                let name = random.pick(&references).clone();
                let told = |what: &str, status: tonic::Status| format!("{what} {name}: {status:?}");
                if random.once_in(3) {
                    until_answered(async || cri.remove_image(&name).await)
                        .await
                        .map_err(|status| told("RemoveImage", status))?;
                    counts.removals.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                let (one, other) = tokio::join!(
                    until_answered(async || cri.pull(&name, None).await),
                    until_answered(async || cri.pull(&name, None).await),
                );
                let (one, other) = (
                    one.map_err(|status| told("PullImage", status))?,
                    other.map_err(|status| told("PullImage", status))?,
                );
                if one != other {
                    return Err(format!("two pulls of {name} gave {one} and {other}"));
                }
                let listed = until_answered(async || cri.image_status(&name).await).await;
                if !matches!(&listed, Ok(Some(image)) if image.id == one) {
                    return Err(format!("{name} was pulled and is {listed:?}"));
                }
                counts.pulls.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }
    }
}
