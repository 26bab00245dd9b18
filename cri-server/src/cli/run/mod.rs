//! `cofferdam run`: a command in a new pod, with its output here, and nothing left of it afterwards.
//!
//! Invariant: from the first call that makes something on, every way out but `-d` and `--rm=false` passes the clean-up: the
//! end of the command, an error, SIGINT, SIGTERM and SIGHUP. A call that makes something is never abandoned.

mod request;
mod session;

use std::process::ExitCode;

use clap::ArgAction;
use cofferdam_proto::admin::PullImageRequest;
use cofferdam_proto::cri;

use super::client::Client;
use super::error::CliError;
use super::pull;
use super::signals::Signals;
pub(super) use request::LOG_FOLDER;
use request::{NAMESPACE, Request, name_for};
use session::Session;
pub(super) use session::{log_folders, remove_folder, remove_pod};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum PullPolicy {
    Missing,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Net {
    Pod,
    Host,
}

#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// Removes the pod when the command has ended
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, value_name = "BOOL",
          default_value_t = true, default_missing_value = "true")]
    rm: bool,
    /// The name of pod and container [default: made of the image's]
    #[arg(long, value_parser = request::name)]
    name: Option<String>,
    /// When the image is pulled
    #[arg(long, value_enum, default_value_t = PullPolicy::Missing)]
    pull: PullPolicy,
    /// Forwards a port of the node: [IP:]HOST:CONTAINER[/PROTOCOL]
    #[arg(short, long, value_name = "PORTS", value_parser = request::port)]
    publish: Vec<cri::PortMapping>,
    /// Sets a variable; NAME alone takes its value from here
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = request::variable)]
    env: Vec<cri::KeyValue>,
    /// Mounts a file or folder of the node: SOURCE:TARGET[:ro]
    #[arg(short, long, value_name = "MOUNT", value_parser = request::mount)]
    volume: Vec<cri::Mount>,
    /// The pod's network: its own, or the node's
    #[arg(long, value_enum, default_value_t = Net::Pod)]
    net: Net,
    /// The runtime handler [default: the daemon's]
    #[arg(long, value_name = "HANDLER")]
    runtime: Option<String>,
    /// Prints the ids of pod and container and leaves them running
    #[arg(short, long)]
    detach: bool,
    /// The image
    image: String,
    /// What to run instead of the image's command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) command: Vec<String>,
}

impl Run {
    pub(super) async fn run(self, client: &mut Client) -> Result<ExitCode, CliError> {
        let mut signals = Signals::watch()?;
        let image = tokio::select! {
            image = self.image(client) => image?,
            // The daemon finishes the pull; of a pod there is nothing yet.
            code = signals.next() => return Ok(ExitCode::from(code)),
        };
        let uid = request::uid().map_err(CliError::Setup)?;
        let name = self.name.clone().unwrap_or_else(|| name_for(&self.image, &uid));
        let taken = |pod: &cri::PodSandbox| {
            pod.metadata.as_ref().is_some_and(|m| m.name == name && m.namespace == NAMESPACE)
        };
        if client.pods().await?.iter().any(taken) {
            let text =
                format!("there is a pod {name} already; choose another --name, or `cofferdam rm {name}`");
            return Err(CliError::Refused(text));
        }
        let request = Request {
            uid,
            name,
            image_id: image.id,
            image: self.image,
            command: self.command,
            env: self.env,
            mounts: self.volume,
            ports: self.publish,
            host_network: self.net == Net::Host,
            handler: self.runtime.unwrap_or_default(),
        };
        let mut session = Session::new(client, request);
        session.run(self.detach, self.rm, &mut signals).await
    }

    async fn image(&self, client: &mut Client) -> Result<cri::Image, CliError> {
        let spec = cri::ImageSpec { image: self.image.clone(), ..Default::default() };
        let request = cri::ImageStatusRequest { image: Some(spec), verbose: false };
        let present = client.images.image_status(request.clone()).await?.into_inner().image;
        match (self.pull, present) {
            (PullPolicy::Missing | PullPolicy::Never, Some(image)) => return Ok(image),
            (PullPolicy::Never, None) => {
                let text = format!("{} is not on this node; pull it, or leave out --pull never", self.image);
                return Err(CliError::Refused(text));
            }
            (PullPolicy::Missing, None) | (PullPolicy::Always, _) => {}
        }
        let pull = PullImageRequest { image: self.image.clone(), ..Default::default() };
        pull::pull(client, pull, false).await?;
        let image = client.images.image_status(request).await?.into_inner().image;
        image.ok_or_else(|| CliError::Refused(format!("{} was removed right after its pull", self.image)))
    }
}
