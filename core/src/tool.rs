//! `milena`, the operator's tool: reads its arguments, does one thing, and tells how it went by its exit code.
//!
//! ```text
//!   milena dev ─────────────────▶ dev       a cluster of real processes on this machine
//!   milena get|put|del|topology ─▶ ask ───▶ a router, over gRPC
//!   milena batch ───────────────▶ batch ─▶ the same, for commands from standard input
//!   milena log inspect ─────────▶ log       a stopped node's log on disk
//!
//!   exit code   0 done   1 failed   2 wrong usage   3 not found
//! ```
//! Results go to standard output, everything else to standard error.

use std::{
    ffi::{OsStr, OsString},
    fmt, fs,
    io::{self, Read as _},
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use bytes::Bytes;
use clap::{Args, Parser, Subcommand};
use milena_net::{
    grpc::status::{Code, Status},
    settings::Size,
};
use milena_proto::{
    key::{KeyError, KeyRef},
    limits::VALUE_BYTES_MAX,
};

use crate::config;

mod ask;
mod batch;
mod dev;
mod log;

pub use dev::{Dev, DevError};

/// Milena's tool for operators.
#[derive(Clone, Debug, Parser)]
#[command(name = "milena", version, max_term_width = 100)]
pub struct Tool {
    /// The router to ask, with or without http://.
    #[arg(
        long,
        env = "MILENA_ROUTER",
        default_value = "http://127.0.0.1:50050",
        global = true,
        value_name = "HOST:PORT"
    )]
    router: String,
    /// Results as one line of JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Seconds until the router must have answered.
    #[arg(long, default_value_t = 10, global = true, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    Dev(Dev),
    /// Prints the value under a key; exit code 3 if there is none.
    ///
    /// The value is written as it is. On a terminal, a line that lacks its end is given one; a pipe or a file gets exactly
    /// the value's bytes. With --json: value (or value_base64, where it is not UTF-8), version, tier, ttl_ms.
    Get(Place),
    /// Stores a value under a key.
    Put(Put),
    /// Removes the value under a key. Removing what is not there is no error.
    Del(Del),
    /// Does what the lines of standard input say: get BUCKET KEY, put BUCKET KEY VALUE, del BUCKET KEY.
    ///
    /// One space between; a value is the rest of its line. Neighbours of one kind and bucket go as one batch. Each line is
    /// answered with one: found VALUE, absent, done, or failed CODE: why; with --json, with an object that has op, bucket and
    /// key and what get, put or del would have said. A line that is no command ends it with exit code 2, a batch that fails as a
    /// whole with 1; what stands before is done. Otherwise 1 if a line failed, 3 if a key was not found.
    Batch,
    /// Shows who is in the cluster.
    Topology,
    /// Looks at a stopped node's log on disk.
    Log(log::Log),
}

#[derive(Clone, Debug, Args)]
struct Place {
    /// 1 to 63 letters, digits and '-'.
    bucket: String,
    /// 1 to 1,024 bytes, taken as they are.
    key: OsString,
}

#[derive(Clone, Debug, Args)]
struct Put {
    #[command(flatten)]
    place: Place,
    /// The value itself, - for standard input, or @FILE for a file's contents.
    #[arg(allow_hyphen_values = true)]
    value: OsString,
    /// The value's life in milliseconds; 0 = for ever.
    #[arg(long, default_value_t = 0)]
    ttl_ms: u64,
    /// Only if this is the current version.
    #[arg(long, value_name = "VERSION", conflicts_with = "if_absent")]
    if_version: Option<String>,
    /// Only if there is no value.
    #[arg(long)]
    if_absent: bool,
}

#[derive(Clone, Debug, Args)]
struct Del {
    #[command(flatten)]
    place: Place,
    /// Only if this is the current version.
    #[arg(long, value_name = "VERSION")]
    if_version: Option<String>,
}

/// How it went, other than done.
#[derive(Debug)]
pub enum ToolError {
    /// `--router` cannot be read.
    Router {
        /// What was written.
        found: String,
    },
    /// The bucket or key is not legal.
    Key(KeyError),
    /// The value cannot be read.
    Value {
        /// From where.
        source: String,
        /// What the system said.
        error: io::Error,
    },
    /// The value is larger than any node may accept.
    ValueTooLarge {
        /// From where.
        source: String,
    },
    /// The router, or the node behind it, did not do it.
    Status {
        /// Which router.
        router: String,
        /// What it said.
        status: Status,
    },
    /// There is no value under the key.
    NotFound {
        /// `bucket/key`.
        key: String,
    },
    /// A line of standard input is no command.
    Line {
        /// Which, from 1.
        number: usize,
        /// What was found, and what is allowed.
        why: String,
    },
    /// Some commands of a batch were not done; the output says which.
    Commands {
        /// How many.
        failed: usize,
        /// Of how many.
        commands: usize,
    },
    /// The result could not be written.
    Output(io::Error),
    /// This machine cannot do it at all.
    Machine(String),
    /// The cluster of `milena dev`.
    Dev(DevError),
}

impl Tool {
    /// Does what the arguments say.
    ///
    /// # Errors
    /// Everything that is not done; [`ToolError::exit_code`] tells shells which kind it was.
    pub fn run(&self) -> Result<(), ToolError> {
        match &self.command {
            Command::Dev(dev) => dev.run(self.json).map_err(ToolError::Dev),
            Command::Get(place) => self.get(place),
            Command::Put(put) => self.put(put),
            Command::Del(del) => self.del(del),
            Command::Batch => self.batch(),
            Command::Topology => self.topology(),
            Command::Log(log) => log.run(self.json),
        }
    }

    fn router(&self) -> Result<String, ToolError> {
        config::http_address(self.router.trim()).ok_or_else(|| ToolError::Router { found: self.router.clone() })
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

impl Place {
    /// Checks here what the router would refuse, so that the mistake is known without one.
    fn key(&self) -> Result<KeyRef<'_>, ToolError> {
        KeyRef::parse(self.bucket.as_bytes(), self.key.as_bytes()).map_err(ToolError::Key)
    }
}

/// The bytes that a VALUE argument means.
fn value(argument: &OsStr, stdin: impl io::Read) -> Result<Bytes, ToolError> {
    let read = |source: &str, reader: &mut dyn io::Read| {
        let mut value = Vec::new();
        let read = reader.take(VALUE_BYTES_MAX as u64 + 1).read_to_end(&mut value);
        match read {
            Err(error) => Err(ToolError::Value { source: source.to_owned(), error }),
            Ok(_) if value.len() > VALUE_BYTES_MAX => Err(ToolError::ValueTooLarge { source: source.to_owned() }),
            Ok(_) => Ok(Bytes::from(value)),
        }
    };
    let mut stdin = stdin;
    match argument.as_bytes() {
        b"-" => read("standard input", &mut stdin),
        [b'@', path @ ..] => {
            let path = PathBuf::from(OsStr::from_bytes(path));
            let source = path.display().to_string();
            let opened = fs::File::open(&path);
            let mut file = opened.map_err(|error| ToolError::Value { source: source.clone(), error })?;
            read(&source, &mut file)
        }
        literal => Ok(Bytes::copy_from_slice(literal)),
    }
}

impl ToolError {
    /// What a shell is told: 1 failed, 2 wrong usage, 3 not found.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Router { .. }
            | Self::Key(_)
            | Self::Value { .. }
            | Self::ValueTooLarge { .. }
            | Self::Line { .. } => 2,
            Self::Status { status, .. } if status.code == Code::InvalidArgument => 2,
            Self::Dev(DevError::PortBeyondLast { .. }) => 2,
            Self::NotFound { .. } => 3,
            Self::Status { .. } | Self::Commands { .. } | Self::Output(_) | Self::Machine(_) | Self::Dev(_) => 1,
        })
    }
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Router { found } => {
                write!(f, "--router {found}: allowed is HOST:PORT or http://HOST:PORT; MILENA_ROUTER sets it too")
            }
            Self::Key(error) => error.fmt(f),
            Self::Value { source, error } => write!(f, "cannot read {source}: {error}"),
            Self::ValueTooLarge { source } => {
                write!(f, "{source} holds more than {}, which no node accepts", Size(VALUE_BYTES_MAX as u64))
            }
            Self::Status { router, status } => write!(f, "{router}: {status}"),
            Self::NotFound { key } => write!(f, "{key}: not found"),
            Self::Line { number, why } => write!(f, "line {number}: {why}"),
            Self::Commands { failed, commands } => write!(f, "{failed} of {commands} commands failed"),
            Self::Output(error) => write!(f, "cannot write the result: {error}"),
            Self::Machine(text) => f.write_str(text),
            Self::Dev(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ToolError {}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Tool, clap::Error> {
        Tool::try_parse_from([&["milena"], arguments].concat())
    }

    #[test]
    fn the_arguments_are_consistent() {
        Tool::command().debug_assert();
    }

    #[test]
    fn wrong_usage_has_exit_code_2() {
        for arguments in [
            &["get", "default"] as &[_],
            &["put", "default", "key"],
            &["put", "default", "key", "v", "--if-absent", "--if-version", "1"],
            &["fetch"],
            &[],
            &["topology", "--timeout", "0"],
            &["dev", "--nodes", "0"],
        ] {
            assert_eq!(parsed(arguments).unwrap_err().exit_code(), 2, "{arguments:?}");
        }
        let bad_key = parsed(&["get", "no_such", "key"]).unwrap().run().unwrap_err();
        assert_eq!(bad_key.to_string(), "bucket has '_' at position 2; letters, digits and '-' are allowed");
        assert_eq!(bad_key.exit_code(), ExitCode::from(2));
        let bad_router = parsed(&["get", "b", "key", "--router", "nowhere"]).unwrap().run().unwrap_err();
        assert_eq!(
            bad_router.to_string(),
            "--router nowhere: allowed is HOST:PORT or http://HOST:PORT; MILENA_ROUTER sets it too"
        );
        assert_eq!(bad_router.exit_code(), ExitCode::from(2));
    }

    #[test]
    fn a_value_is_taken_literally_from_standard_input_or_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("v");
        fs::write(&file, b"in a file\xff").unwrap();
        let at_file = format!("@{}", file.display());
        for (argument, meant) in
            [("hello", &b"hello"[..]), ("-5", b"-5"), ("", b""), ("-", b"piped\n"), (&at_file, b"in a file\xff")]
        {
            assert_eq!(value(OsStr::new(argument), &b"piped\n"[..]).unwrap(), meant, "{argument}");
        }
        let missing = value(OsStr::new("@/no/such/file"), io::empty()).unwrap_err();
        assert_eq!(missing.to_string(), "cannot read /no/such/file: No such file or directory (os error 2)");
        assert_eq!(missing.exit_code(), ExitCode::from(2));
        let endless = value(OsStr::new("-"), io::repeat(7)).unwrap_err();
        assert_eq!(endless.to_string(), "standard input holds more than 64MiB, which no node accepts");
    }
}
