//! The guest's image: a kernel that boots fast, and an initramfs with the agent, the container code and the modules that
//! they need. Made from a kernel's files as a distribution's package has them, installed or only unpacked.
//!
//! ```text
//! OUTPUT/
//!   kernel        vmlinux or Image where the package's file gives it, else the file as it is
//!   initramfs     /init -> bin/cofferdam-agent, /bin/…, /modules/NAME.ko, /modules/order
//! ```

mod compressed;
mod cpio;
mod elf;
mod kernel;
mod modules;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::agent::RUNTIME;
use crate::architecture::Architecture;

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("{operation} {}: {source}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{}: {what}", path.display())]
    Program { path: PathBuf, what: &'static str },
    #[error("the kernel {} has no module {name}, and it is not built in", folder.display())]
    NoModule { folder: PathBuf, name: String },
    #[error("{} is made for {is}, the kernel for {wanted}", path.display())]
    Foreign { path: PathBuf, is: Architecture, wanted: Architecture },
    #[error("the kernel {}: {what}", path.display())]
    Kernel { path: PathBuf, what: &'static str },
}

impl ImageError {
    fn file(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| ImageError::File { operation, path, source }
    }
}

/// What an image is made of.
#[derive(Debug, Clone)]
pub struct Ingredients {
    /// `vmlinuz` or `vmlinux`.
    pub kernel: PathBuf,
    /// The kernel's folder below `lib/modules`.
    pub modules: PathBuf,
    /// Static `cofferdam-agent`.
    pub agent: PathBuf,
    /// Static `containerd-shim-cofferdam-v1`.
    pub runtime: PathBuf,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// In the order of their loading.
    pub modules: Vec<String>,
}

/// Makes the image in the folder `output`; each file appears whole or not at all.
///
/// # Errors
/// When an ingredient is missing or not what it must be.
pub fn build(from: &Ingredients, output: &Path) -> Result<Image, ImageError> {
    let (kernel, architecture) = kernel::unpack(&from.kernel)?;
    let modules = modules::collect(&from.modules)?;
    let mut archive = cpio::Archive::default();
    for folder in ["bin", "dev", "modules", "newroot"] {
        archive.folder(folder);
    }
    // What the kernel opens for the first process's standard streams.
    archive.device("dev/console", 5, 1);
    archive.file("bin/cofferdam-agent", &elf::load(&from.agent, architecture)?, 0o755);
    archive.file(RUNTIME.trim_start_matches('/'), &elf::load(&from.runtime, architecture)?, 0o755);
    archive.link("init", "bin/cofferdam-agent");
    let mut order = String::new();
    let mut names = Vec::new();
    for module in &modules {
        archive.file(&format!("modules/{}", module.file), &module.content, 0o644);
        order.push_str(format!("{} {}", module.file, module.group).trim_end());
        order.push('\n');
        names.push(module.file.clone());
    }
    archive.file("modules/order", order.as_bytes(), 0o644);
    fs::create_dir_all(output).map_err(ImageError::file("make the folder", output))?;
    let image = Image { kernel: output.join("kernel"), initramfs: output.join("initramfs"), modules: names };
    replace(&image.kernel, &kernel)?;
    replace(&image.initramfs, &archive.finish())?;
    Ok(image)
}

fn replace(path: &Path, content: &[u8]) -> Result<(), ImageError> {
    let beside = path.with_extension("new");
    fs::write(&beside, content).map_err(ImageError::file("write", &beside))?;
    fs::rename(&beside, path).map_err(ImageError::file("write", path))
}
