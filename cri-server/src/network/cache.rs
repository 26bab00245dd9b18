//! What each sandbox was attached with. Owns `<state>/cni/results`; a file is either whole or absent.
//!
//! The record is written before the first ADD (without a result) and removed after the last DEL.

use cofferdam_failpoints::failpoint;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::attachment::PodAttachment;
use super::conf::NetworkList;
use super::error::NetworkError;
use crate::model::SandboxId;

const FORMAT: u32 = 1;
/// The suffix of a record that is being written.
const UNFINISHED: &str = "new";

/// Who attached the sandbox, with the configuration of that moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Provider {
    /// The operator's plugins.
    Cni { list: NetworkList },
    /// The built-in bridge, with the plugin configuration that it was given.
    Builtin { conf: Map<String, Value> },
}

/// One attachment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) provider: Provider,
    pub(super) interface: String,
    pub(super) pod: PodAttachment,
    pub(super) pod_cidr: Vec<String>,
    /// The result of the whole chain; `None` while ADD has not succeeded.
    pub(super) result: Option<Value>,
}

#[derive(Serialize, Deserialize)]
struct Versioned<R> {
    format: u32,
    #[serde(flatten)]
    record: R,
}

/// The folder of records.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Opens the folder, which may not be there yet, and removes what a killed daemon was writing in it.
    pub(super) fn new(dir: PathBuf) -> Self {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|suffix| suffix == UNFINISHED)
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::warn!(path = %path.display(), %error, "an unfinished record stays");
            }
        }
        Self { dir }
    }

    fn path(&self, id: &SandboxId) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    /// The record of a sandbox, if it has one.
    pub(super) fn load(&self, id: &SandboxId) -> Result<Option<Record>, NetworkError> {
        let path = self.path(id);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(NetworkError::file("read", &path, error)),
        };
        let read: Versioned<Record> =
            serde_json::from_slice(&text).map_err(|error| NetworkError::file("understand", &path, error))?;
        if read.format != FORMAT {
            let error = io::Error::other(format!("it has format {}, known is {FORMAT}", read.format));
            return Err(NetworkError::file("understand", &path, error));
        }
        Ok(Some(read.record))
    }

    /// Writes or replaces the record of its sandbox.
    pub(super) fn store(&self, record: &Record) -> Result<(), NetworkError> {
        let path = self.path(&record.pod.sandbox_id);
        let text = serde_json::to_vec(&Versioned { format: FORMAT, record })
            .map_err(|error| NetworkError::file("write", &path, error))?;
        write_whole(&path, &text).map_err(|error| NetworkError::file("write", &path, error))
    }

    /// Forgets a sandbox.
    pub(super) fn remove(&self, id: &SandboxId) -> Result<(), NetworkError> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(NetworkError::file("remove", &path, error))
            }
            _ => Ok(()),
        }
    }

    /// Renames a record that cannot be understood, for a person to look at.
    pub(super) fn put_aside(&self, id: &SandboxId) -> Result<(), NetworkError> {
        let path = self.path(id);
        fs::rename(&path, path.with_extension("damaged"))
            .map_err(|error| NetworkError::file("put aside", &path, error))
    }

    /// The sandboxes that have records.
    pub(super) fn list(&self) -> Result<Vec<SandboxId>, NetworkError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(NetworkError::file("list", &self.dir, error)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| NetworkError::file("list", &self.dir, error))?;
            let name = entry.file_name();
            ids.extend(
                name.to_str().and_then(|n| n.strip_suffix(".json")).and_then(|n| SandboxId::parse(n).ok()),
            );
        }
        Ok(ids)
    }
}

/// Replaces a file in one step: after a crash it has the old content or the new one.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or_else(|| io::Error::other("it has no parent folder"))?;
    fs::create_dir_all(dir)?;
    // One writer per record: the sandbox's operation lock. The name cannot be a record's, it lacks the suffix.
    let temporary = path.with_extension(UNFINISHED);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        failpoint!("network.record.written");
        file.sync_all()
    });
    let renamed = written.and_then(|()| fs::rename(&temporary, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    renamed?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &SandboxId) -> Record {
        let list = super::super::conf::parse(
            br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"x","capabilities":{"dns":true}}]}"#,
        )
        .unwrap();
        Record {
            provider: Provider::Cni { list },
            interface: "eth0".to_owned(),
            pod: PodAttachment::new(id.clone(), "/run/netns/a".into()),
            pod_cidr: vec!["10.0.0.0/24".to_owned()],
            result: Some(serde_json::json!({"ips": []})),
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_stored() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().join("results"));
        let id = SandboxId::parse("s1").unwrap();
        assert_eq!(cache.load(&id).unwrap(), None);
        assert!(cache.list().unwrap().is_empty());
        cache.store(&record(&id)).unwrap();
        assert_eq!(cache.load(&id).unwrap(), Some(record(&id)));
        assert_eq!(cache.list().unwrap(), std::slice::from_ref(&id));
        assert_eq!(fs::read_dir(dir.path().join("results")).unwrap().count(), 1, "no temporary file is left");
        cache.remove(&id).unwrap();
        cache.remove(&id).unwrap();
        assert_eq!(cache.load(&id).unwrap(), None);
        fs::write(dir.path().join("results/s2.new"), "half").unwrap();
        drop(Cache::new(dir.path().join("results")));
        assert_eq!(
            fs::read_dir(dir.path().join("results")).unwrap().count(),
            0,
            "an unfinished record is left"
        );
    }

    #[test]
    fn a_damaged_record_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().to_owned());
        for text in ["{", r#"{"format":1}"#] {
            fs::write(dir.path().join("s1.json"), text).unwrap();
            let error = cache.load(&SandboxId::parse("s1").unwrap()).unwrap_err();
            assert!(error.to_string().contains("s1.json"), "{error}");
        }
    }
}
