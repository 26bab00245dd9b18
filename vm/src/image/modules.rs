//! The modules that the guest needs, and all that those need, in the order of their loading.
//!
//! What a module needs is read from the module itself, as packages carry no list of it before they are installed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{ImageError, compressed};

/// Without these nothing works.
const NEEDED: [&str; 4] = ["virtio_mmio", "virtio_console", "virtiofs", "virtio_net"];
/// With these it works better; those with a group are loaded where the machine has what they are for.
const WANTED: [(&str, &str); 5] = [
    ("virtio_balloon", ""),
    ("virtio_rng", ""),
    ("virtio_pci", PCI),
    ("virtio_blk", PCI),
    ("vmw_vsock_virtio_transport", VSOCK),
];
/// Devices on PCI, and so those that are added to a running machine.
pub const PCI: &str = "pci";
pub const VSOCK: &str = "vsock";

pub struct Module {
    pub file: String,
    /// When it is loaded; empty for always.
    pub group: &'static str,
    pub content: Vec<u8>,
}

/// The modules below `folder`, a kernel's own below `lib/modules`.
pub fn collect(folder: &Path) -> Result<Vec<Module>, ImageError> {
    let mut found = BTreeMap::new();
    index(&folder.join("kernel"), &mut found).map_err(ImageError::file("look through", folder))?;
    let builtin = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
    let builtin: Vec<String> = builtin.lines().map(|line| name_of(Path::new(line))).collect();
    let mut collection = Collection { folder, found, builtin, loaded: Vec::new(), modules: Vec::new() };
    for name in NEEDED {
        collection.add(name, "")?;
    }
    for (name, group) in WANTED {
        match collection.add(name, group) {
            Ok(()) | Err(ImageError::NoModule { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(collection.modules)
}

/// As the kernel names it: the file's name without its ending, and with underscores.
fn name_of(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.split(".ko").next().unwrap_or_default().replace('-', "_")
}

fn index(folder: &Path, found: &mut BTreeMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            index(&path, found)?;
        } else if entry.file_name().to_string_lossy().contains(".ko") {
            found.insert(name_of(&path), path);
        }
    }
    Ok(())
}

struct Collection<'a> {
    folder: &'a Path,
    found: BTreeMap<String, PathBuf>,
    builtin: Vec<String>,
    loaded: Vec<String>,
    modules: Vec<Module>,
}

impl Collection<'_> {
    /// What it needs comes first. One that is on its way already is not added again, so a circle ends.
    fn add(&mut self, name: &str, group: &'static str) -> Result<(), ImageError> {
        if self.loaded.iter().any(|loaded| loaded == name) {
            return Ok(());
        }
        let Some(path) = self.found.get(name).cloned() else {
            if self.builtin.iter().any(|builtin| builtin == name) {
                return Ok(());
            }
            return Err(ImageError::NoModule { folder: self.folder.to_owned(), name: name.to_owned() });
        };
        self.loaded.push(name.to_owned());
        let content = fs::read(&path).and_then(compressed::expand);
        let content = content.map_err(ImageError::file("read the module", &path))?;
        for needed in needs(&content) {
            self.add(&needed, group)?;
        }
        self.modules.push(Module { file: format!("{name}.ko"), group, content });
        Ok(())
    }
}

/// The names in the module's `depends` entry.
fn needs(content: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = content.windows(key.len()).position(|window| window == key) else { return Vec::new() };
    let rest = &content[at + key.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    let list = String::from_utf8_lossy(&rest[..end]).replace('-', "_");
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("kernel/drivers")).unwrap();
        for (file, depends) in modules {
            let content = format!("ELF\0license=GPL\0depends={depends}\0rest");
            fs::write(folder.path().join("kernel/drivers").join(file), content).unwrap();
        }
        fs::write(folder.path().join("modules.builtin"), "kernel/drivers/virtio-net.ko\n").unwrap();
        folder
    }

    #[test]
    fn what_a_module_needs_comes_before_it_once() {
        let folder = kernel(&[
            ("virtio.ko", "virtio-ring"),
            ("virtio-ring.ko", ""),
            ("virtio_mmio.ko", "virtio,virtio_ring"),
            ("virtio_console.ko", "virtio"),
            ("virtiofs.ko", "fuse,virtio"),
            ("fuse.ko", ""),
        ]);
        let files: Vec<_> = collect(folder.path()).unwrap().into_iter().map(|module| module.file).collect();
        let all =
            ["virtio_ring.ko", "virtio.ko", "virtio_mmio.ko", "virtio_console.ko", "fuse.ko", "virtiofs.ko"];
        assert_eq!(files, all);
    }

    #[test]
    fn what_a_module_needs_belongs_to_the_first_group_that_needs_it() {
        let folder = kernel(&[
            ("virtio_mmio.ko", "virtio"),
            ("virtio.ko", ""),
            ("virtio_console.ko", ""),
            ("virtiofs.ko", ""),
            ("virtio_pci.ko", "virtio,virtio_pci_modern_dev"),
            ("virtio_pci_modern_dev.ko", ""),
        ]);
        let modules = collect(folder.path()).unwrap();
        let group = |file: &str| modules.iter().find(|module| module.file == file).unwrap().group;
        assert_eq!(group("virtio.ko"), "");
        assert_eq!((group("virtio_pci.ko"), group("virtio_pci_modern_dev.ko")), (PCI, PCI));
    }

    #[test]
    fn a_module_that_is_missing_or_damaged_is_named() {
        let folder = kernel(&[("virtio_mmio.ko", "")]);
        let error = collect(folder.path()).err().unwrap();
        assert!(matches!(&error, ImageError::NoModule { name, .. } if name == "virtio_console"), "{error}");
        fs::write(folder.path().join("kernel/drivers/virtio_mmio.ko"), b"\xfd7zXZ\0torn").unwrap();
        let error = collect(folder.path()).err().unwrap();
        assert!(error.to_string().contains("virtio_mmio.ko"), "{error}");
    }

    #[test]
    fn compressed_modules_are_expanded_and_keep_their_needs() {
        let folder = kernel(&[
            ("virtio_mmio.ko", "virtio-ring"),
            ("virtio_console.ko", ""),
            ("virtiofs.ko", ""),
            ("virtio_ring.ko", ""),
        ]);
        let plain = folder.path().join("kernel/drivers/virtio_mmio.ko");
        let content = fs::read(&plain).unwrap();
        let mut packed = Vec::new();
        lzma_rs::xz_compress(&mut content.as_slice(), &mut packed).unwrap();
        fs::write(plain.with_extension("ko.xz"), packed).unwrap();
        fs::remove_file(plain).unwrap();
        let modules = collect(folder.path()).unwrap();
        assert_eq!([&modules[0].file, &modules[1].file], ["virtio_ring.ko", "virtio_mmio.ko"]);
        assert_eq!(modules[1].content, content);
    }
}
