//! Generates the Rust types of the wire contracts, without a protoc binary.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    if std::env::var_os("CARGO_FEATURE_CRI").is_some() {
        let descriptors = protox::compile(["proto/cri.proto", "proto/admin.proto"], ["proto"])?;
        tonic_prost_build::configure()
            // The daemon stores what the kubelet asked for, and the operator's commands print it.
            .message_attribute(".runtime.v1", "#[derive(serde::Serialize, serde::Deserialize)]")
            .message_attribute(".runtime.v1", "#[serde(default, rename_all = \"camelCase\")]")
            .compile_fds(descriptors)?;
    }
    if std::env::var_os("CARGO_FEATURE_NRI").is_some() {
        let descriptors = protox::compile(["proto/nri.proto", "proto/ttrpc.proto"], ["proto"])?;
        // Messages alone: the calls travel over a connection of NRI's own.
        tonic_prost_build::configure().build_client(false).build_server(false).compile_fds(descriptors)?;
    }
    for (feature, name) in [("CARGO_FEATURE_SHIM", "shim"), ("CARGO_FEATURE_AGENT", "agent")] {
        if std::env::var_os(feature).is_some() {
            ttrpc_service(name)?;
        }
    }
    Ok(())
}

fn ttrpc_service(name: &str) -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join(name);
    std::fs::create_dir_all(&out)?;
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs([format!("proto/{name}.proto")])
        .include("proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize { async_all: true, gen_mod: false, ..Default::default() })
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
        .run()?;
    for file in [format!("{name}.rs"), format!("{name}_ttrpc.rs")] {
        // Nothing in them is unsafe; without the permission the compiler proves it.
        let path = out.join(file);
        let text = std::fs::read_to_string(&path)?;
        std::fs::write(&path, text.replace("#![allow(unsafe_code)]\n", ""))?;
    }
    // The generated files begin with inner attributes, which `include!` refuses; as modules they are fine.
    std::fs::write(out.join("mod.rs"), format!("pub mod {name};\npub mod {name}_ttrpc;\n"))?;
    Ok(())
}
