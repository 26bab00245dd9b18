//! A plugin for a folder of plugins: takes the socket that it is started with, and writes what it is told into the
//! file that its configuration names.

use std::io::Write;

use cofferdam_proto::nri::{self, Event};
use cofferdam_tests::fakes::nri::{Answer, Behaviour, Plugin};
use prost::Message;
use tokio::net::UnixStream;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let variable = |name: &str| std::env::var(name).map_err(std::io::Error::other);
    let (name, index) = (variable("NRI_PLUGIN_NAME")?, variable("NRI_PLUGIN_IDX")?);
    let number = variable("NRI_PLUGIN_SOCKET")?;
    let socket = cofferdam_tests::harness::inherited(number.parse().map_err(std::io::Error::other)?);
    let stream = std::os::unix::net::UnixStream::from(socket);
    stream.set_nonblocking(true)?;
    let known = format!("{index} {name} {number}");
    let behaviour = Behaviour::new(&index, "another-name", &[Event::CreateContainer])
        .on("Configure", move |payload| {
            let request = nri::ConfigureRequest::decode(payload).unwrap_or_default();
            let line = format!("configured {known} {} {}\n", request.runtime_name, std::process::id());
            // Without the file the test finds nothing, and says so.
            let file = std::fs::File::options().create(true).append(true).open(request.config.trim());
            let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
            Answer::Empty
        })
        .on("CreateContainer", |_| {
            let entry = nri::KeyValue { key: "FOLDER".into(), value: "yes".into() };
            Answer::adjust(nri::ContainerAdjustment { env: vec![entry], ..Default::default() })
        });
    let _plugin = Plugin::begin(UnixStream::from_std(stream)?, &behaviour).await?;
    // It does not end by itself, not even with its connection.
    std::future::pending().await
}
