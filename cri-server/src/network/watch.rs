//! The folder of network configurations. Owns which network is the default: the first configuration in lexical order.
//!
//! The folder is looked at when the answer is needed, not by a thread: inotify tells in one read that nothing changed;
//! where it cannot (no folder yet, symbolic links, no instances left) names, sizes and times are compared. So a file
//! that was there before a pod was asked for is always seen. Invariant: a broken file never replaces a loaded network.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::conf::{self, ConfError, NetworkList};

/// The most that one configuration may hold.
const SIZE_LIMIT: u64 = 1 << 20;

/// The default network at this moment.
#[derive(Debug, Clone)]
pub(super) enum Selection {
    /// No configuration: the built-in bridge serves.
    None,
    /// This one.
    Loaded {
        list: Arc<NetworkList>,
        source: PathBuf,
        /// Why something newer is not in use.
        warning: Option<String>,
    },
    /// There is a configuration, but it cannot be used, and none was loaded before.
    Broken { problem: String },
}

/// The folder.
#[derive(Debug)]
pub(super) struct ConfDir {
    dir: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    inotify: Option<OwnedFd>,
    /// Whether inotify tells of every change.
    trusted: bool,
    /// Of the folder and its configurations, when last read.
    fingerprint: Option<Vec<Print>>,
    selection: Selection,
}

/// Enough of a file to tell that it changed.
#[derive(Debug, PartialEq, Eq)]
struct Print {
    name: OsString,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    link: bool,
}

impl ConfDir {
    pub(super) fn new(dir: PathBuf) -> Self {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
            .inspect_err(|error| tracing::warn!(%error, "no inotify: the CNI folder is compared on each use"))
            .ok();
        let seen = Seen { inotify, trusted: false, fingerprint: None, selection: Selection::None };
        Self { dir, seen: Mutex::new(seen) }
    }

    /// The default network now.
    pub(super) fn current(&self) -> Selection {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.refresh(&self.dir);
        seen.selection.clone()
    }
}

impl Seen {
    fn refresh(&mut self, dir: &Path) {
        let told = self.drain();
        // The folder itself may have been replaced from above, of which inotify says nothing.
        let same_folder = || {
            let before = self.fingerprint.as_ref().and_then(|prints| prints.first());
            fs::metadata(dir)
                .is_ok_and(|now| before.is_some_and(|b| (b.device, b.inode) == (now.dev(), now.ino())))
        };
        if self.trusted && !told && same_folder() {
            return;
        }
        // Watch first, then read: what changes in between is told next time.
        let watched = self.watch(dir);
        match fingerprint(dir) {
            Ok(prints) => {
                self.trusted = watched && prints.iter().all(|print| !print.link);
                if self.fingerprint.as_ref() != Some(&prints) || told {
                    self.reload(dir, &prints);
                }
                self.fingerprint = Some(prints);
            }
            Err(error) => {
                self.trusted = false;
                self.fingerprint = None;
                if error.kind() == io::ErrorKind::NotFound {
                    self.selection = Selection::None;
                } else {
                    self.keep_good(format!("cannot read the CNI folder {}: {error}", dir.display()));
                }
            }
        }
    }

    /// Reads away what inotify has to say; true when it said anything.
    fn drain(&self) -> bool {
        let Some(fd) = &self.inotify else { return false };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(fd, &mut buffer);
        let mut told = false;
        while reader.next().is_ok() {
            told = true;
        }
        told
    }

    fn watch(&self, dir: &Path) -> bool {
        let changes = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        self.inotify.as_ref().is_some_and(|fd| inotify::add_watch(fd, dir, changes).is_ok())
    }

    fn reload(&mut self, dir: &Path, prints: &[Print]) {
        // The first print is the folder's own.
        let Some(first) = prints.get(1) else {
            self.selection = Selection::None;
            return;
        };
        let source = dir.join(&first.name);
        match load(dir, &source) {
            Ok(list) => {
                tracing::info!(network = list.name, file = %source.display(), version = %list.version,
                    "CNI network loaded");
                self.selection = Selection::Loaded { list: Arc::new(list), source, warning: None };
            }
            Err(problem) => {
                let problem = format!("the CNI configuration {} cannot be used: {problem}", source.display());
                self.keep_good(problem);
            }
        }
    }

    fn keep_good(&mut self, problem: String) {
        tracing::warn!(problem, "CNI configuration not loaded");
        match &mut self.selection {
            Selection::Loaded { warning, .. } => *warning = Some(problem),
            other => *other = Selection::Broken { problem },
        }
    }
}

/// The folder, then its configurations in lexical order.
fn fingerprint(dir: &Path) -> io::Result<Vec<Print>> {
    let folder = fs::metadata(dir)?;
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if !path.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json") {
            continue;
        }
        let link = entry.file_type()?.is_symlink();
        // A dangling link and a file that is just being removed are no configurations.
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.is_file() {
            files.push(print(entry.file_name(), &meta, link));
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    // Its time changes with every temporary file; only its identity counts.
    let own = Print { size: 0, modified: (0, 0), ..print(OsString::new(), &folder, false) };
    Ok(std::iter::once(own).chain(files).collect())
}

fn print(name: OsString, meta: &fs::Metadata, link: bool) -> Print {
    let modified = (meta.mtime(), meta.mtime_nsec());
    Print { name, device: meta.dev(), inode: meta.ino(), size: meta.size(), modified, link }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("{0}")]
    Read(io::Error),
    #[error("it is larger than {SIZE_LIMIT} bytes")]
    TooLarge,
    #[error("{0}{detail}", detail = json_detail(.0))]
    Conf(ConfError),
    #[error("{}: {error}", path.display())]
    Part { path: PathBuf, error: Box<LoadError> },
}

/// The parser's own words, which [`ConfError`] leaves to its source.
fn json_detail(error: &ConfError) -> String {
    std::error::Error::source(error).map(|source| format!(" ({source})")).unwrap_or_default()
}

fn load(dir: &Path, path: &Path) -> Result<NetworkList, LoadError> {
    let mut list = conf::parse(&read(path)?).map_err(LoadError::Conf)?;
    if !list.inlined_only {
        append_parts(&dir.join(&list.name), &mut list)?;
    }
    if list.plugins.is_empty() { Err(LoadError::Conf(ConfError::NoPlugins)) } else { Ok(list) }
}

/// Since 1.1.0 a folder named after the network may hold further plugins of its chain, one a file.
fn append_parts(folder: &Path, list: &mut NetworkList) -> Result<(), LoadError> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "conf" || e == "json"))
        .collect();
    paths.sort();
    for path in paths {
        let plugin = read(&path)
            .and_then(|text| conf::parse_plugin(list.plugins.len(), &text).map_err(LoadError::Conf))
            .map_err(|error| LoadError::Part { path: path.clone(), error: Box::new(error) })?;
        list.plugins.push(plugin);
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let mut text = Vec::new();
    let file = File::open(path).map_err(LoadError::Read)?;
    file.take(SIZE_LIMIT + 1).read_to_end(&mut text).map_err(LoadError::Read)?;
    if text.len() as u64 > SIZE_LIMIT { Err(LoadError::TooLarge) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflist(name: &str) -> String {
        format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"bridge"}}]}}"#)
    }

    fn name(dir: &ConfDir) -> String {
        match dir.current() {
            Selection::None => "none".to_owned(),
            Selection::Broken { .. } => "broken".to_owned(),
            Selection::Loaded { list, warning: None, .. } => list.name.clone(),
            Selection::Loaded { list, .. } => format!("{} with a warning", list.name),
        }
    }

    #[test]
    fn changes_are_seen_on_the_next_use() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("net.d");
        let dir = ConfDir::new(path.clone());
        assert_eq!(name(&dir), "none", "no folder yet");
        fs::create_dir(&path).unwrap();
        assert_eq!(name(&dir), "none");
        fs::write(path.join("20-b.conflist"), conflist("b")).unwrap();
        fs::write(path.join("05-note.txt"), "x").unwrap();
        assert_eq!(name(&dir), "b");
        fs::write(path.join("10-a.conf"), conflist("a")).unwrap();
        assert_eq!(name(&dir), "a");
        fs::write(path.join("10-a.conf"), conflist("c")).unwrap();
        assert_eq!(name(&dir), "c", "same name, same size");
        fs::remove_file(path.join("10-a.conf")).unwrap();
        assert_eq!(name(&dir), "b");
        fs::remove_dir_all(&path).unwrap();
        assert_eq!(name(&dir), "none");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("1.json"), conflist("again")).unwrap();
        assert_eq!(name(&dir), "again");
    }

    #[test]
    fn a_replaced_folder_is_noticed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("cni/net.d");
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("1.conf"), conflist("old")).unwrap();
        let dir = ConfDir::new(path.clone());
        assert_eq!(name(&dir), "old");
        fs::rename(temp.path().join("cni"), temp.path().join("before")).unwrap();
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("1.conf"), conflist("new")).unwrap();
        assert_eq!(name(&dir), "new");
    }

    #[test]
    fn a_linked_file_may_change_behind_its_link() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("net.d");
        fs::create_dir(&path).unwrap();
        fs::write(temp.path().join("real"), conflist("one")).unwrap();
        std::os::unix::fs::symlink("../real", path.join("1.conf")).unwrap();
        let dir = ConfDir::new(path);
        assert_eq!(name(&dir), "one");
        fs::write(temp.path().join("real"), conflist("three")).unwrap();
        assert_eq!(name(&dir), "three");
    }

    #[test]
    fn a_broken_file_keeps_the_loaded_network_and_is_told() {
        let temp = tempfile::tempdir().unwrap();
        let dir = ConfDir::new(temp.path().to_owned());
        let file = temp.path().join("1.conflist");
        fs::write(&file, "{").unwrap();
        let Selection::Broken { problem } = dir.current() else { panic!("broken was loaded") };
        assert!(problem.contains("1.conflist") && problem.contains("EOF"), "{problem}");
        fs::write(&file, conflist("good")).unwrap();
        assert_eq!(name(&dir), "good");
        fs::write(&file, r#"{"cniVersion":"0.2.0","name":"n","type":"x"}"#).unwrap();
        assert_eq!(name(&dir), "good with a warning");
        fs::write(&file, conflist("better")).unwrap();
        assert_eq!(name(&dir), "better");
    }

    #[test]
    fn parts_from_the_networks_folder_extend_the_chain() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("n")).unwrap();
        fs::write(temp.path().join("n/10-portmap.conf"), r#"{"type":"portmap"}"#).unwrap();
        fs::write(temp.path().join("1.conflist"), conflist("n")).unwrap();
        let Selection::Loaded { list, .. } = ConfDir::new(temp.path().to_owned()).current() else { panic!() };
        let kinds: Vec<_> = list.plugins.iter().map(|plugin| plugin.kind.as_str()).collect();
        assert_eq!(kinds, ["bridge", "portmap"]);
    }

    #[test]
    fn too_large_a_file_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("1.conf"), vec![b' '; (SIZE_LIMIT + 1) as usize]).unwrap();
        assert_eq!(name(&ConfDir::new(temp.path().to_owned())), "broken");
    }
}
