//! What goes to stdout. A reader that has gone is an error like any other, never a panic.

use std::io::{self, Write};

use serde::Serialize;

use super::error::CliError;

/// For people or for programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    #[default]
    Table,
    Json,
}

/// The option `-o` of commands that list or show.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct FormatOption {
    /// How to show it
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value_t)]
    pub(super) format: Format,
}

/// Writes `text` as it is.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    bytes(&mut io::stdout().lock(), text.as_bytes())
}

/// Writes `text` and ends the line.
pub(super) fn line(text: &str) -> Result<(), CliError> {
    print(&format!("{text}\n"))
}

/// Writes bytes and flushes.
pub(super) fn bytes(to: &mut dyn Write, bytes: &[u8]) -> Result<(), CliError> {
    to.write_all(bytes).and_then(|()| to.flush()).map_err(CliError::Output)
}

/// Writes `value` as JSON for programs and patient people.
pub(super) fn json(value: &impl Serialize) -> Result<(), CliError> {
    line(&serde_json::to_string_pretty(value)?)
}
