//! The load test program. What it can do: `milena_loadtest::program`; its flags: `milena_loadtest::arguments`.

use std::process::ExitCode;

use clap::Parser as _;
use milena_loadtest::arguments::Program;

fn main() -> ExitCode {
    match Program::parse().run() {
        Ok(ending) => ending.exit_code(),
        Err(error) => {
            eprintln!("milena-loadtest: {error}");
            error.exit_code()
        }
    }
}
