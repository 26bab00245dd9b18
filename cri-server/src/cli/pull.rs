//! `cofferdam pull`: shows each layer as it comes, on stderr; the image's id goes to stdout.

use std::collections::HashMap;
use std::io::IsTerminal;

use cofferdam_proto::admin::pull_event::Event;
use cofferdam_proto::admin::{LayerProgress, LayerStage, PullDone, PullImageRequest};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::client::Client;
use super::error::CliError;
use super::output;
use super::text::{short_id, size};

#[derive(Debug, clap::Args)]
pub(super) struct Pull {
    /// A name, name:tag or name@digest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The login of the registry
    #[arg(long, value_name = "USER:PASSWORD", value_parser = login)]
    creds: Option<Login>,
    /// Shows no progress
    #[arg(short, long)]
    quiet: bool,
}

/// A user's name and password. Never shown.
#[derive(Clone)]
struct Login {
    username: String,
    password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login")
    }
}

fn login(text: &str) -> Result<Login, &'static str> {
    match text.split_once(':') {
        Some((user, password)) if !user.is_empty() => {
            Ok(Login { username: user.to_owned(), password: password.to_owned() })
        }
        _ => Err("expected USER:PASSWORD"),
    }
}

impl Pull {
    pub(super) async fn run(self, client: &mut Client) -> Result<(), CliError> {
        let mut request = PullImageRequest { image: self.image, ..Default::default() };
        if let Some(login) = self.creds {
            (request.username, request.password) = (login.username, login.password);
        }
        let done = pull(client, request, self.quiet).await?;
        output::line(&done.image_id)
    }
}

/// Pulls an image and shows how far it is.
pub(super) async fn pull(
    client: &mut Client,
    request: PullImageRequest,
    quiet: bool,
) -> Result<PullDone, CliError> {
    let name = request.image.clone();
    let mut events = client.admin.pull_image(request).await?.into_inner();
    let mut progress = if quiet { Progress::Silent } else { Progress::new() };
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Layer(layer)) => progress.layer(&layer),
            Some(Event::Done(done)) => {
                progress.done(&name, &done);
                return Ok(done);
            }
            None => {}
        }
    }
    Err(CliError::Refused(format!(
        "the daemon ended before {name} was pulled; pull it again, what came is kept"
    )))
}

/// How progress is shown.
enum Progress {
    Bars {
        all: MultiProgress,
        bars: HashMap<String, ProgressBar>,
    },
    /// For a log: a line for each layer that begins or ends a stage.
    Lines {
        stages: HashMap<String, LayerStage>,
    },
    Silent,
}

impl Progress {
    fn new() -> Self {
        if std::io::stderr().is_terminal() {
            Self::Bars { all: MultiProgress::new(), bars: HashMap::new() }
        } else {
            Self::Lines { stages: HashMap::new() }
        }
    }

    fn layer(&mut self, layer: &LayerProgress) {
        match self {
            Self::Bars { all, bars } => {
                let bar = bars
                    .entry(layer.digest.clone())
                    .or_insert_with(|| all.add(new_bar(&short_id(&layer.digest), layer.total_bytes)));
                show(bar, layer);
            }
            Self::Lines { stages } => {
                if stages.insert(layer.digest.clone(), layer.stage()) != Some(layer.stage()) {
                    eprintln!("{}: {}", short_id(&layer.digest), words(layer));
                }
            }
            Self::Silent => {}
        }
    }

    fn done(&self, name: &str, done: &PullDone) {
        if !matches!(self, Self::Silent) {
            eprintln!("{name}: pulled, {}", size(done.size_bytes));
        }
    }
}

fn new_bar(name: &str, bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes).with_prefix(name.to_owned());
    let style =
        ProgressStyle::with_template("{prefix} {msg:<22} [{bar:30}] {decimal_bytes}/{decimal_total_bytes}");
    match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

fn show(bar: &ProgressBar, layer: &LayerProgress) {
    let all_there = matches!(layer.stage(), LayerStage::LayerDone | LayerStage::LayerPresent);
    bar.set_message(stage_word(layer.stage()));
    bar.set_length(layer.total_bytes);
    bar.set_position(if all_there { layer.total_bytes } else { layer.received_bytes });
    if all_there {
        bar.abandon();
    }
}

fn stage_word(stage: LayerStage) -> &'static str {
    match stage {
        LayerStage::LayerWaiting => "waiting",
        LayerStage::LayerDownloading => "downloading",
        LayerStage::LayerUnpacking => "unpacking",
        LayerStage::LayerDone => "done",
        LayerStage::LayerPresent => "already here",
    }
}

fn words(layer: &LayerProgress) -> String {
    match layer.total_bytes {
        0 => stage_word(layer.stage()).to_owned(),
        bytes => format!("{}, {}", stage_word(layer.stage()), size(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_may_hold_colons_and_is_never_shown() {
        let login = login("user:pass:word").unwrap();
        assert_eq!((login.username.as_str(), login.password.as_str()), ("user", "pass:word"));
        assert!(!format!("{login:?}").contains("pass"));
        assert!(super::login("user").is_err() && super::login(":pass").is_err());
    }
}
