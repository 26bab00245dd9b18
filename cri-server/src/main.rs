//! `cofferdam`: the daemon and the operator's commands in one binary.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cofferdam::cli::run(cofferdam::cli::Arguments::parse())
}
