//! Makes the pages of `docs/benchmarks` from its `raw`: `benchmark-pages docs/benchmarks`. `benches/compare` calls it.

use std::{env, path::PathBuf, process::ExitCode};

use milena_benches::pages;

fn main() -> ExitCode {
    let Some(folder) = env::args().nth(1).map(PathBuf::from) else {
        eprintln!("benchmark-pages: which folder? for example `benchmark-pages docs/benchmarks`");
        return ExitCode::from(2);
    };
    match pages::write(&folder) {
        Ok(_) => {
            println!("{}", folder.join("README.md").display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("benchmark-pages: {error}");
            ExitCode::FAILURE
        }
    }
}
