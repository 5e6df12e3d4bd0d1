//! The cache node. What it does: `milena_core::node`; its settings: `milena_core::config`.

use std::{process::ExitCode, thread};

use clap::Parser as _;
use milena_core::{config::Config, node};
use milena_net::{settings::EXIT_REFUSED, shutdown::Shutdown};

fn main() -> ExitCode {
    let machine_cores = thread::available_parallelism().map_or(1, usize::from);
    let settings = match Config::parse().settings(machine_cores) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("milena-cache: {error}");
            return ExitCode::from(EXIT_REFUSED);
        }
    };
    settings.log.start();
    // First of all, so that a signal during the start ends in a clean stop too.
    let shutdown = Shutdown::new(node::stage_limits(settings.drain));
    let shutdown = shutdown.and_then(|shutdown| shutdown.begin_on_signals().map(|()| shutdown));
    let started = match shutdown {
        Ok(shutdown) => node::start(&settings, &shutdown).map_err(|error| error.to_string()),
        Err(error) => Err(format!("cannot wait for signals: {error}")),
    };
    match started {
        Ok(running) => ExitCode::from(running.wait().exit_code()),
        Err(text) => {
            eprintln!("milena-cache: {text}");
            ExitCode::FAILURE
        }
    }
}
