//! The pod CIDR that the kubelet last told. It tells only changes, so it is kept over a restart of the daemon.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::cache::write_whole;
use super::error::NetworkError;

/// One CIDR, or one of each family; none until the kubelet tells.
#[derive(Debug)]
pub(super) struct PodCidr {
    path: PathBuf,
    now: Mutex<Vec<String>>,
}

impl PodCidr {
    pub(super) fn load(path: PathBuf) -> Self {
        // Unreadable counts as never told: the kubelet tells at its own start.
        let now = std::fs::read_to_string(&path).ok().and_then(|text| parse(text.trim())).unwrap_or_default();
        Self { path, now: Mutex::new(now) }
    }

    pub(super) fn get(&self) -> Vec<String> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, text: &str) -> Result<(), NetworkError> {
        let told = if text.trim().is_empty() { Some(Vec::new()) } else { parse(text) };
        let told = told.ok_or_else(|| NetworkError::PodCidr { text: text.to_owned() })?;
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if *now != told {
            write_whole(&self.path, told.join(",").as_bytes())
                .map_err(|error| NetworkError::file("write", &self.path, error))?;
            *now = told;
        }
        Ok(())
    }
}

fn parse(text: &str) -> Option<Vec<String>> {
    let cidrs = text.split(',').map(|cidr| prefix(cidr.trim())).collect::<Option<Vec<_>>>()?;
    let families: Vec<bool> = cidrs.iter().map(|cidr| cidr.contains(':')).collect();
    matches!(families.as_slice(), [_] | [true, false] | [false, true]).then_some(cidrs)
}

fn prefix(text: &str) -> Option<String> {
    let (address, length) = text.split_once('/')?;
    let address: std::net::IpAddr = address.parse().ok()?;
    let length: u8 = length.parse().ok()?;
    (length <= if address.is_ipv4() { 32 } else { 128 }).then(|| format!("{address}/{length}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kubelet_told_outlives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cni/pod-cidr");
        let cidr = PodCidr::load(path.clone());
        assert!(cidr.get().is_empty());
        cidr.set("10.244.1.0/24, fd00:1::/64").unwrap();
        assert_eq!(PodCidr::load(path.clone()).get(), ["10.244.1.0/24", "fd00:1::/64"]);
        for wrong in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/8,10.1.0.0/16", "10.0.0.0/8,", "fd00::/200"]
        {
            assert!(cidr.set(wrong).is_err(), "{wrong}");
        }
        assert_eq!(cidr.get().len(), 2, "a wrong one changes nothing");
        cidr.set("").unwrap();
        assert!(PodCidr::load(path).get().is_empty());
    }
}
