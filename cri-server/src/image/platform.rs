//! Chooses the image for this node from an index.
//!
//! Invariant: what is chosen can run here: the system, the processor and its variant fit. Among several, the most specific
//! one that every such processor runs wins; the index's order decides the rest.

use super::manifest::{Platform, RawDescriptor};

/// This node's platform.
pub(super) fn host() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", ""),
        "aarch64" => ("arm64", "v8"),
        "arm" => ("arm", "v7"),
        "x86" => ("386", ""),
        "powerpc64" => ("ppc64le", ""),
        other => (other, ""),
    };
    Platform { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: variant.to_owned() }
}

/// How well an image for `offered` suits the node `host`, the smaller the better; `None` when it does not run.
pub(super) fn rank(host: &Platform, offered: &Platform) -> Option<u32> {
    if offered.os != host.os {
        return None;
    }
    let architecture = match offered.architecture.as_str() {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "armhf" => "arm",
        other => other,
    };
    let variant = offered.variant.as_str();
    match (host.architecture.as_str(), architecture) {
        ("amd64", "amd64") => match variant {
            "" | "v1" => Some(0),
            "v2" if amd64_level() >= 2 => Some(1),
            "v3" if amd64_level() >= 3 => Some(2),
            _ => None,
        },
        ("arm64", "arm64") => match variant {
            "" | "v8" | "8" | "v8.0" => Some(0),
            _ => None,
        },
        // Most 64-bit processors run 32-bit programs; better than nothing.
        ("arm64", "arm") => arm_variant(variant, 8).map(|rank| 10 + rank),
        ("arm", "arm") => arm_variant(variant, host.variant.trim_start_matches('v').parse().unwrap_or(7)),
        (host, offered) if host == offered => Some(0),
        _ => None,
    }
}

/// The nearest variant not above ours; none given means 7.
fn arm_variant(variant: &str, ours: u32) -> Option<u32> {
    let version = if variant.is_empty() { 7 } else { variant.trim_start_matches('v').parse().ok()? };
    (version >= 5).then(|| ours.checked_sub(version)).flatten()
}

#[cfg(target_arch = "x86_64")]
fn amd64_level() -> u32 {
    let second = is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("popcnt");
    let third = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("movbe");
    if second && third { 3 } else { 1 + u32::from(second) }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_level() -> u32 {
    1
}

/// The entry for `host`, if there is one. Entries without a platform come last: single images are often listed so.
pub(super) fn choose<'a>(host: &Platform, entries: &'a [RawDescriptor]) -> Option<&'a RawDescriptor> {
    let ranked = entries.iter().filter_map(|entry| {
        let rank = match &entry.platform {
            Some(platform) => rank(host, platform)?,
            None => 100,
        };
        Some((rank, entry))
    });
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, entry)| entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Digest;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Platform { os: next(), architecture: next(), variant: next() }
    }

    #[test]
    fn the_best_fitting_image_is_chosen() {
        let table = [
            ("linux/amd64", vec!["windows/amd64", "linux/arm64", "linux/amd64"], Some(2)),
            ("linux/amd64", vec!["linux/amd64/v9", "linux/amd64/v1"], Some(1)),
            ("linux/amd64", vec!["linux/arm64", "unknown/unknown"], None),
            ("linux/arm64/v8", vec!["linux/arm/v7", "linux/arm64"], Some(1)),
            ("linux/arm64/v8", vec!["linux/arm/v5", "linux/arm/v7"], Some(1)),
            ("linux/arm/v7", vec!["linux/arm/v5", "linux/arm/v6", "linux/arm64/v8"], Some(1)),
            ("linux/arm/v6", vec!["linux/arm/v7", "linux/arm/v6"], Some(1)),
            ("linux/riscv64", vec!["linux/amd64", "linux/riscv64"], Some(1)),
            ("linux/amd64", vec!["linux/arm64", ""], Some(1)),
        ];
        for (host, offered, expected) in table {
            let entries: Vec<RawDescriptor> = offered
                .iter()
                .map(|text| RawDescriptor {
                    media_type: String::new(),
                    digest: Digest::sha256(text.as_bytes()),
                    size: 1,
                    platform: (!text.is_empty()).then(|| platform(text)),
                    annotations: Default::default(),
                })
                .collect();
            let chosen = choose(&platform(host), &entries).map(|entry| entry.digest.clone());
            assert_eq!(chosen, expected.map(|n: usize| entries[n].digest.clone()), "{host} from {offered:?}");
        }
    }
}
