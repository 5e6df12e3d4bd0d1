//! The router as a program: reads its settings, starts, waits for a signal, and says how it ended.

use std::process::ExitCode;

use clap::Parser as _;
use milena_net::{cores, settings::EXIT_REFUSED};
use milena_router::{config::Config, server};

fn main() -> ExitCode {
    let config = match Config::try_parse() {
        Ok(config) => config,
        Err(error) if error.use_stderr() => return fail(EXIT_REFUSED, one_line(&error.to_string())),
        Err(asked) => {
            // --help or --version; who closed the pipe has seen enough.
            let _ = asked.print();
            return ExitCode::SUCCESS;
        }
    };
    let machine_cores = cores::allowed_cpus().map_or(1, |cpus| cpus.len());
    let settings = match config.settings(machine_cores) {
        Ok(settings) => settings,
        Err(error) => return fail(EXIT_REFUSED, error),
    };
    settings.log.start();
    if let Err(error) = cores::probe() {
        return fail(1, error);
    }
    let running = match server::start(&settings) {
        Ok(running) => running,
        Err(error) => return fail(error.exit_code(), error),
    };
    if let Err(error) = running.shutdown().begin_on_signals() {
        return fail(1, format_args!("cannot catch signals: {error}"));
    }
    let (outcome, stats) = running.join();
    tracing::info!("{outcome}; {} calls since the start", stats.request_count());
    ExitCode::from(outcome.exit_code())
}

fn fail(code: u8, why: impl std::fmt::Display) -> ExitCode {
    eprintln!("milena-router: {why}");
    ExitCode::from(code)
}

/// What clap says over several lines, without its advice to read the help.
fn one_line(text: &str) -> String {
    let first = text.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
    first.split_whitespace().collect::<Vec<_>>().join(" ")
}
