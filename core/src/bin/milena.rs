//! The operator's tool. What it can do: `milena_core::tool`.

use std::process::ExitCode;

use clap::Parser as _;
use milena_core::tool::Tool;

fn main() -> ExitCode {
    match Tool::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("milena: {error}");
            error.exit_code()
        }
    }
}
