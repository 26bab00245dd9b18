//! Finds devices in the folders of vendors' files.

use std::fs::{self, File as FsFile};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::error::CdiError;
use super::file::{Edits, File, parse};
use super::name::DeviceName;

/// No vendor's file is longer; those of big machines have some hundred kilobytes.
const MAX_BYTES: u64 = 4 << 20;
/// No folder has more files.
const MAX_FILES: usize = 512;

/// A file that can be used, and which folder it is from.
struct Found {
    path: PathBuf,
    folder: usize,
    file: File,
}

#[derive(Default)]
struct Files {
    found: Vec<Found>,
    broken: Vec<(PathBuf, String)>,
}

/// The edits for these devices, in order; those of a whole file come before the first of its devices. Blocks.
///
/// # Errors
/// When a device is not defined, or twice in the same folder.
pub fn resolve(folders: &[PathBuf], names: &[DeviceName]) -> Result<Vec<Edits>, CdiError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    if folders.is_empty() {
        return Err(CdiError::Off);
    }
    let files = Files::read(folders);
    let (mut edits, mut used) = (Vec::new(), Vec::new());
    for name in names {
        let (at, device) = files.find(name)?;
        if !used.contains(&at) {
            used.push(at);
            edits.push(files.found[at].file.container_edits.clone());
        }
        edits.push(device.clone());
    }
    Ok(edits)
}

impl Files {
    fn read(folders: &[PathBuf]) -> Self {
        let mut files = Self::default();
        for (number, folder) in folders.iter().enumerate() {
            for path in files.list(folder) {
                match read(&path) {
                    Ok(file) => files.found.push(Found { path, folder: number, file }),
                    Err(why) => {
                        tracing::warn!(file = %path.display(), why, "a CDI file cannot be used");
                        files.broken.push((path, why));
                    }
                }
            }
        }
        files
    }

    fn list(&mut self, folder: &Path) -> Vec<PathBuf> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                self.broken.push((folder.to_owned(), error.to_string()));
                return Vec::new();
            }
        };
        let named = |path: &PathBuf| is_yaml(path).is_some();
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(named).collect();
        paths.sort();
        if paths.len() > MAX_FILES {
            self.broken
                .push((folder.to_owned(), format!("only {MAX_FILES} of its {} files are read", paths.len())));
            paths.truncate(MAX_FILES);
        }
        paths
    }

    /// The file that defines a device, and the device's edits: the last folder wins.
    fn find(&self, name: &DeviceName) -> Result<(usize, &Edits), CdiError> {
        let of_kind = self.found.iter().enumerate().filter(|(_, found)| found.file.kind == name.kind);
        let mut all: Vec<_> = of_kind
            .filter_map(|(at, found)| {
                let device = found.file.devices.iter().find(|device| device.name == name.device)?;
                Some((found.folder, at, &device.container_edits))
            })
            .collect();
        let last = all.iter().map(|(folder, ..)| *folder).max();
        all.retain(|(folder, ..)| Some(*folder) == last);
        match all.as_slice() {
            [] => Err(CdiError::Unknown { name: name.to_string(), broken: self.broken.clone() }),
            [(_, at, edits)] => Ok((*at, *edits)),
            several => Err(CdiError::Conflict {
                name: name.to_string(),
                files: several.iter().map(|(_, at, _)| self.found[*at].path.clone()).collect(),
            }),
        }
    }
}

/// Whether a file's name says that it is YAML; none for a file that is not CDI's.
fn is_yaml(path: &Path) -> Option<bool> {
    match path.extension()?.to_str()? {
        "json" => Some(false),
        "yaml" | "yml" => Some(true),
        _ => None,
    }
}

fn read(path: &Path) -> Result<File, String> {
    // Without O_NONBLOCK a pipe that somebody left there would hold the container up for ever.
    let file = FsFile::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = file.map_err(|error| error.to_string())?;
    if !file.metadata().is_ok_and(|data| data.is_file()) {
        return Err("it is no regular file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    parse(&bytes, is_yaml(path) == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, device: &str, value: &str) {
        let text = format!(
            r#"{{"cdiVersion":"0.3.0","kind":"v.com/c","containerEdits":{{"env":["FILE={name}"]}},
            "devices":[{{"name":"{device}","containerEdits":{{"env":["DEVICE={value}"]}}}}]}}"#
        );
        fs::write(folder.join(name), text).unwrap();
    }

    fn env(folders: &[PathBuf], names: &[&str]) -> Result<Vec<String>, CdiError> {
        let names: Vec<_> = names.iter().map(|name| DeviceName::parse(name).unwrap()).collect();
        Ok(resolve(folders, &names)?.into_iter().flat_map(|edits| edits.env).collect())
    }

    #[test]
    fn the_last_folder_wins_and_one_folder_must_not_contradict_itself() {
        let (low, high) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folders = [low.path().to_owned(), high.path().to_owned(), "/nonexistent".into()];
        write(low.path(), "a.json", "d", "low");
        write(low.path(), "b.json", "e", "only");
        assert_eq!(
            env(&folders, &["v.com/c=d", "v.com/c=e"]).unwrap(),
            ["FILE=a.json", "DEVICE=low", "FILE=b.json", "DEVICE=only"]
        );
        write(high.path(), "c.json", "d", "high");
        assert_eq!(env(&folders, &["v.com/c=d"]).unwrap(), ["FILE=c.json", "DEVICE=high"]);
        write(high.path(), "d.json", "d", "other");
        assert!(
            matches!(env(&folders, &["v.com/c=d"]), Err(CdiError::Conflict { files, .. }) if files.len() == 2)
        );
        assert_eq!(env(&folders, &["v.com/c=e"]).unwrap().len(), 2, "other devices are not touched");
        assert!(matches!(env(&[], &["v.com/c=e"]), Err(CdiError::Off)));
    }

    #[test]
    fn a_broken_file_is_named_where_a_device_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let folders = [folder.path().to_owned()];
        write(folder.path(), "good.json", "d", "1");
        fs::write(folder.path().join("bad.yaml"), "cdiVersion: [").unwrap();
        fs::write(folder.path().join("large.json"), vec![b' '; (4 << 20) + 1]).unwrap();
        fs::create_dir(folder.path().join("folder.json")).unwrap();
        let pipe = folder.path().join("pipe.json");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(env(&folders, &["v.com/c=d"]).is_ok());
        let error = env(&folders, &["v.com/c=x"]).unwrap_err().to_string();
        for part in
            ["v.com/c=x", "bad.yaml", "large.json cannot be used: it has more", "pipe.json", "folder.json"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
