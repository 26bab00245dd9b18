//! `build-vm-image KERNEL MODULES OUTPUT`: makes the guest's image of a kernel's files, of the agent that lies beside this
//! program, and of this program itself.

use std::path::Path;

use cofferdam_vm::image::{self, Ingredients};

pub const COMMAND: &str = "build-vm-image";
const AGENT: &str = "cofferdam-agent";

pub fn main(argv: &[String]) -> Result<(), String> {
    let [kernel, modules, output] = argv else {
        return Err(format!("usage: {COMMAND} KERNEL MODULES OUTPUT"));
    };
    let own = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
    let from = Ingredients {
        kernel: kernel.into(),
        modules: modules.into(),
        agent: own.with_file_name(AGENT),
        runtime: own,
    };
    let made = image::build(&from, Path::new(output)).map_err(|error| error.to_string())?;
    println!("{}\n{}", made.kernel.display(), made.initramfs.display());
    Ok(())
}
