//! The CNI binary: environment and standard input to a request, the answer to standard output. Decides nothing.

use cofferdam_netplugin::types::{
    Attachment, CniArgs, CniError, CniVersion, ErrorCode, NetConf, Request, VersionInfo,
};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// No configuration is that large; whoever sends more is not a runtime.
const STDIN_MAX: u64 = 16 * 1024 * 1024;

fn main() -> ExitCode {
    let (text, code) = match run() {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(error) => (serde_json::to_string(&error).unwrap_or_default(), ExitCode::FAILURE),
    };
    let written = if text.is_empty() { Ok(()) } else { writeln!(std::io::stdout(), "{text}") };
    if written.is_ok() { code } else { ExitCode::FAILURE }
}

fn run() -> Result<String, CniError> {
    let command = variable("CNI_COMMAND")?;
    let mut stdin = Vec::new();
    let read = std::io::stdin().take(STDIN_MAX).read_to_end(&mut stdin);
    read.map_err(|e| CniError::from_error(ErrorCode::Io, &e))?;
    if command == "VERSION" {
        return version(&stdin);
    }
    let config: NetConf = serde_json::from_slice(&stdin).map_err(|e| {
        CniError::new(ErrorCode::Decode, "the network configuration on standard input cannot be decoded")
            .with_details(e.to_string())
            .in_version(CniVersion::LATEST.as_str())
    })?;
    let version = config.cni_version.clone();
    dispatch(&command, config).map_err(|e| e.in_version(&version))
}

fn dispatch(command: &str, config: NetConf) -> Result<String, CniError> {
    match command {
        "ADD" => {
            let request = request(config, true)?;
            let result = cofferdam_netplugin::add(&request)?;
            let version = CniVersion::parse(&request.config.cni_version).unwrap_or_default();
            Ok(result.to_json(version).to_string())
        }
        "DEL" => cofferdam_netplugin::del(&request(config, false)?).map(|()| String::new()),
        "CHECK" => cofferdam_netplugin::check(&request(config, true)?).map(|()| String::new()),
        "GC" => {
            since_1_1(&config, "GC")?;
            let missing = || CniError::new(ErrorCode::InvalidConfig, "GC needs cni.dev/valid-attachments");
            let valid: Vec<Attachment> = config.valid_attachments.clone().ok_or_else(missing)?;
            cofferdam_netplugin::gc(&config, &valid).map(|()| String::new())
        }
        "STATUS" => {
            since_1_1(&config, "STATUS")?;
            cofferdam_netplugin::status(&config).map(|()| String::new())
        }
        other => {
            let msg = format!("CNI_COMMAND is {other:?}; ADD, DEL, CHECK, GC, STATUS and VERSION are known");
            Err(CniError::new(ErrorCode::InvalidEnvironment, msg))
        }
    }
}

fn since_1_1(config: &NetConf, command: &str) -> Result<(), CniError> {
    match CniVersion::parse(&config.cni_version) {
        Some(version) if !version.has_gc_and_status() => {
            let msg = format!("{command} needs CNI version 1.1.0, the configuration has {version}");
            Err(CniError::new(ErrorCode::IncompatibleVersion, msg))
        }
        _ => Ok(()),
    }
}

fn version(stdin: &[u8]) -> Result<String, CniError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Asked {
        cni_version: String,
    }
    let asked = serde_json::from_slice(stdin).map_or(String::new(), |asked: Asked| asked.cni_version);
    let spoken = CniVersion::parse(&asked).unwrap_or_default();
    let info = VersionInfo::of_this_plugin(spoken.as_str());
    serde_json::to_string(&info).map_err(|e| CniError::from_error(ErrorCode::Io, &e))
}

fn variable(name: &str) -> Result<String, CniError> {
    let wrong = |why: &str| CniError::new(ErrorCode::InvalidEnvironment, format!("{name} {why}"));
    match std::env::var(name) {
        Ok(value) if value.is_empty() => Err(wrong("is empty")),
        Ok(value) => Ok(value),
        Err(std::env::VarError::NotPresent) => Err(wrong("is not set")),
        Err(std::env::VarError::NotUnicode(_)) => Err(wrong("is not UTF-8")),
    }
}

fn request(config: NetConf, needs_netns: bool) -> Result<Request, CniError> {
    let netns = match std::env::var_os("CNI_NETNS") {
        Some(path) if !path.is_empty() => PathBuf::from(path),
        _ if needs_netns => {
            return Err(CniError::new(ErrorCode::InvalidEnvironment, "CNI_NETNS is not set"));
        }
        _ => PathBuf::new(),
    };
    let args = std::env::var("CNI_ARGS").unwrap_or_default();
    let args = CniArgs::parse(&args)
        .ok_or_else(|| CniError::new(ErrorCode::InvalidEnvironment, "CNI_ARGS is not KEY=VALUE;KEY=VALUE"))?;
    Ok(Request {
        container_id: variable("CNI_CONTAINERID")?,
        netns,
        ifname: variable("CNI_IFNAME")?,
        config,
        args,
    })
}
