//! A router's settings: what may be written, what it means, and which combinations make sense.
//!
//! ```text
//!   flags, environment ──clap──▶ Config         what was written, every value still text
//!                                  │ settings()  pure: each value read, then the rules between them
//!                                  ▼
//!                                Settings       numbers with units; nothing in it needs checking again
//! ```
//! Every setting is a flag and an environment variable; the flag wins. An empty variable counts as one that is not set,
//! because that is how a compose file spells "not set".

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use clap::Parser;
use milena_net::log::{Log, LogError};
use milena_proto::limits::{CORES_MAX, VALUE_BYTES_MAX, VALUE_BYTES_MAX_DEFAULT};
use milena_storage::object::{StoreConfig, StoreConfigError, StoreSettings};

use crate::rate_limit::{RATE_MAX, RateSettings};

/// Exit code of a program whose settings were refused.
pub const EXIT_REFUSED: u8 = 2;

/// Where the table is kept unless a setting says otherwise.
pub const STATE_DEFAULT: &str = "file://./milena-data/router";

/// Longest that a stage of stopping may be given, in seconds.
const STAGE_SECONDS_MAX: u64 = 3600;

/// Milena's router: knows who is in the cluster and passes every request on to the core that owns its key.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "milena-router", version, max_term_width = 100)]
pub struct Config {
    /// Where clients and nodes connect (127.0.0.1:50050); port 0 = any free one, said in the log.
    #[arg(long, env, value_name = "IP:PORT")]
    pub listen_addr: Option<String>,
    /// Most requests per second, all together, divided by the cores; joins and health are not counted (0 = no limit).
    #[arg(long, env, value_name = "PER_SECOND")]
    pub rate_limit: Option<String>,
    /// Most requests per second from one client address (0 = no limit).
    #[arg(long, env, value_name = "PER_SECOND")]
    pub rate_limit_per_client: Option<String>,
    /// Most requests per second for one bucket (0 = no limit).
    #[arg(long, env, value_name = "PER_SECOND")]
    pub rate_limit_per_bucket: Option<String>,
    /// Where the table of the cluster is kept: file:///directory or s3://bucket/prefix (file://./milena-data/router).
    #[arg(long, env, value_name = "URL")]
    pub state: Option<String>,
    /// Another S3 server than Amazon's for an s3:// state, as http://host:port; AWS_ENDPOINT_URL does the same.
    #[arg(long, env, value_name = "URL")]
    pub s3_endpoint: Option<String>,
    /// The variable other S3 tools read; `s3_endpoint` wins.
    #[arg(long, env, hide = true)]
    pub aws_endpoint_url: Option<String>,
    /// The region of that bucket (us-east-1).
    #[arg(long, env, value_name = "REGION")]
    pub aws_region: Option<String>,
    /// Credentials come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN.
    #[arg(long, env, hide = true, hide_env_values = true)]
    pub aws_access_key_id: Option<String>,
    /// See `aws_access_key_id`.
    #[arg(long, env, hide = true, hide_env_values = true)]
    pub aws_secret_access_key: Option<Secret>,
    /// See `aws_access_key_id`.
    #[arg(long, env, hide = true, hide_env_values = true)]
    pub aws_session_token: Option<Secret>,
    /// Largest value that is passed on, in bytes or as 5MiB (5MiB; at most 64MiB). Set it as the nodes have it.
    #[arg(long, env, value_name = "SIZE")]
    pub value_max: Option<String>,
    /// Cores to use (all).
    #[arg(long, env, value_name = "all|COUNT")]
    pub cores: Option<String>,
    /// Whether each core's thread stays on a processor of its own (true); false where several programs share a machine.
    #[arg(long, env, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub pin: Option<String>,
    /// /metrics, /health and /ready on the address listened on (9090; 0 = off; auto = any free port, said in the log).
    #[arg(long, env, value_name = "PORT")]
    pub metrics_port: Option<String>,
    /// Seconds for requests in progress when the router stops (10).
    #[arg(long, env, value_name = "SECONDS")]
    pub drain_seconds: Option<String>,
    /// off, error, warn, info, debug or trace in any case, or directives such as warn,milena_router::server=info (info).
    #[arg(long, env, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// text or json (text).
    #[arg(long, env, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// A text that no log line shows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

/// What a router runs with. Made by [`Config::settings`]; consistent.
#[derive(Clone, Debug)]
pub struct Settings {
    /// One address, one listener per core; port 0 = any free one.
    pub listen: SocketAddr,
    /// Requests per second.
    pub rates: RateSettings,
    /// Where the table is kept; never [`StoreConfig::None`].
    pub state: StoreConfig,
    /// The same as it was written, for people.
    pub state_text: String,
    /// Largest value in bytes, at most [`VALUE_BYTES_MAX`].
    pub value_bytes_max: usize,
    /// 1 to [`CORES_MAX`].
    pub cores: usize,
    /// Whether each executor stays on a processor of its own.
    pub pin: bool,
    /// Where operators look; `None` = nowhere, port 0 = any free one.
    pub metrics: Option<SocketAddr>,
    /// How long requests in progress may take once the router stops.
    pub drain: Duration,
    /// What is logged and how.
    pub log: Log,
}

/// Why a configuration was refused. The text is one line: the setting, the value found, what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// A value that cannot be read.
    Illegal {
        /// The flag.
        flag: &'static str,
        /// The value.
        found: String,
        /// What would be legal.
        allowed: String,
    },
    /// A log setting that cannot be read.
    Log(LogError),
    /// More pinned cores than the machine has.
    CoresBeyondMachine {
        /// Cores asked for.
        cores: usize,
        /// Cores there are for this process.
        machine_cores: usize,
    },
    /// The page and the service on one port.
    MetricsPortIsListenPort {
        /// That port.
        port: u16,
    },
    /// `STATE=none`: a router without its table would move every key when it restarts.
    StateNone,
    /// A state, or what is needed to reach it, that makes no sense.
    State(StoreConfigError),
}

impl Config {
    /// Reads every value and applies the rules between them. Pure: `machine_cores` is what this process may use.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub fn settings(&self, machine_cores: usize) -> Result<Settings, ConfigError> {
        let listen = read("--listen-addr", &self.listen_addr, "IP:PORT, such as 0.0.0.0:50050", socket_address)?
            .unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 50050));
        let rate = |flag, value| {
            let allowed = || format!("requests per second from 1 to {RATE_MAX}, 0 = no limit");
            Ok(number(flag, value, 0..=RATE_MAX, allowed)?.unwrap_or(0))
        };
        let rates = RateSettings {
            router: rate("--rate-limit", &self.rate_limit)?,
            client: rate("--rate-limit-per-client", &self.rate_limit_per_client)?,
            bucket: rate("--rate-limit-per-bucket", &self.rate_limit_per_bucket)?,
        };
        let pin = read("--pin", &self.pin, "true or false", boolean)?.unwrap_or(true);
        let drain = || format!("seconds from 0 to {STAGE_SECONDS_MAX}");
        let drain_seconds = number("--drain-seconds", &self.drain_seconds, 0..=STAGE_SECONDS_MAX, drain)?;
        Ok(Settings {
            listen,
            rates,
            state: self.state()?,
            state_text: written(&self.state).unwrap_or(STATE_DEFAULT).to_owned(),
            value_bytes_max: self.value_bytes_max()?,
            cores: self.cores(machine_cores, pin)?,
            pin,
            metrics: self.metrics(listen)?,
            drain: Duration::from_secs(drain_seconds.unwrap_or(10)),
            log: Log::parse(written(&self.log_level).unwrap_or("info"), written(&self.log_format).unwrap_or("text"))
                .map_err(ConfigError::Log)?,
        })
    }

    fn state(&self) -> Result<StoreConfig, ConfigError> {
        let secret = |secret: &'_ Option<Secret>| secret.as_ref().map(|secret| secret.0.clone());
        let (secret_access_key, session_token) = (secret(&self.aws_secret_access_key), secret(&self.aws_session_token));
        let settings = StoreSettings {
            setting: "STATE",
            store: Some(written(&self.state).unwrap_or(STATE_DEFAULT)),
            s3_endpoint: written(&self.s3_endpoint).or(written(&self.aws_endpoint_url)),
            aws_region: self.aws_region.as_deref(),
            access_key_id: self.aws_access_key_id.as_deref(),
            secret_access_key: secret_access_key.as_deref(),
            session_token: session_token.as_deref(),
            ..StoreSettings::none(Path::new("."))
        };
        match StoreConfig::read(&settings).map_err(ConfigError::State)? {
            StoreConfig::None => Err(ConfigError::StateNone),
            state => Ok(state),
        }
    }

    fn value_bytes_max(&self) -> Result<usize, ConfigError> {
        let allowed = format!("a size from 1 to {}MiB, in bytes, KiB or MiB", VALUE_BYTES_MAX >> 20);
        let in_range = |text: &str| size(text).filter(|bytes| (1..=VALUE_BYTES_MAX).contains(bytes));
        Ok(read("--value-max", &self.value_max, &allowed, in_range)?.unwrap_or(VALUE_BYTES_MAX_DEFAULT))
    }

    fn cores(&self, machine_cores: usize, pin: bool) -> Result<usize, ConfigError> {
        let allowed = || format!("all, or a count from 1 to {CORES_MAX}");
        let cores = match written(&self.cores) {
            None | Some("all") => return Ok(machine_cores.clamp(1, CORES_MAX)),
            Some(_) => number("--cores", &self.cores, 1..=CORES_MAX as u64, allowed)?.expect("it is written"),
        };
        let cores = usize::try_from(cores).expect("at most CORES_MAX");
        if pin && cores > machine_cores {
            return Err(ConfigError::CoresBeyondMachine { cores, machine_cores });
        }
        Ok(cores)
    }

    fn metrics(&self, listen: SocketAddr) -> Result<Option<SocketAddr>, ConfigError> {
        if written(&self.metrics_port) == Some("auto") {
            return Ok(Some(SocketAddr::new(listen.ip(), 0)));
        }
        let allowed = || "a port from 1 to 65535, 0 = off, or auto".to_owned();
        let port = number("--metrics-port", &self.metrics_port, 0..=65535, allowed)?.unwrap_or(9090);
        let port = u16::try_from(port).expect("at most 65535");
        if port != 0 && port == listen.port() {
            return Err(ConfigError::MetricsPortIsListenPort { port });
        }
        Ok((port != 0).then(|| SocketAddr::new(listen.ip(), port)))
    }
}

/// What was written for a setting; nothing counts as not written.
fn written(value: &Option<String>) -> Option<&str> {
    value.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

/// Reads a setting if it was written.
fn read<T>(
    flag: &'static str,
    value: &Option<String>,
    allowed: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, ConfigError> {
    let Some(text) = written(value) else { return Ok(None) };
    let illegal = || ConfigError::Illegal { flag, found: text.to_owned(), allowed: allowed.to_owned() };
    parse(text).map(Some).ok_or_else(illegal)
}

/// Reads a whole number within a range if it was written.
fn number(
    flag: &'static str,
    value: &Option<String>,
    range: std::ops::RangeInclusive<u64>,
    allowed: impl FnOnce() -> String,
) -> Result<Option<u64>, ConfigError> {
    read(flag, value, &allowed(), |text| text.parse().ok().filter(|number| range.contains(number)))
}

/// `IP:PORT`; `localhost:PORT` too, because everybody writes it.
fn socket_address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) => Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.parse().ok()?)),
        None => text.parse().ok(),
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// Bytes, or with KiB or MiB behind the number.
fn size(text: &str) -> Option<usize> {
    let (number, shift) = match text.strip_suffix("MiB") {
        Some(number) => (number, 20),
        None => text.strip_suffix("KiB").map_or((text, 0), |number| (number, 10)),
    };
    number.trim_end().parse::<usize>().ok()?.checked_mul(1 << shift)
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Illegal { flag, found, allowed } => {
                write!(f, "{flag} {}: allowed is {allowed}", found.escape_debug())
            }
            Self::Log(error) => error.fmt(f),
            Self::CoresBeyondMachine { cores, machine_cores } => write!(
                f,
                "--cores {cores}: this process may use {machine_cores}; lower CORES, or set PIN=false to let cores share \
                 processors"
            ),
            Self::MetricsPortIsListenPort { port } => {
                write!(f, "--metrics-port {port}: --listen-addr has that port already; set another one, or 0 for none")
            }
            Self::StateNone => f.write_str(
                "--state none: a router keeps its table over restarts; allowed is file:///directory or s3://bucket/prefix",
            ),
            Self::State(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl std::str::FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The settings of a machine with four cores on which only these are written, as `NAME=value`.
    fn settings(written: &[&str]) -> Result<Settings, ConfigError> {
        let mut config = Config::default();
        for setting in written {
            let (name, value) = setting.split_once('=').unwrap();
            let field = match name {
                "LISTEN_ADDR" => &mut config.listen_addr,
                "RATE_LIMIT" => &mut config.rate_limit,
                "RATE_LIMIT_PER_CLIENT" => &mut config.rate_limit_per_client,
                "RATE_LIMIT_PER_BUCKET" => &mut config.rate_limit_per_bucket,
                "STATE" => &mut config.state,
                "S3_ENDPOINT" => &mut config.s3_endpoint,
                "AWS_ENDPOINT_URL" => &mut config.aws_endpoint_url,
                "AWS_ACCESS_KEY_ID" => &mut config.aws_access_key_id,
                "VALUE_MAX" => &mut config.value_max,
                "CORES" => &mut config.cores,
                "PIN" => &mut config.pin,
                "METRICS_PORT" => &mut config.metrics_port,
                "DRAIN_SECONDS" => &mut config.drain_seconds,
                "LOG_LEVEL" => &mut config.log_level,
                "LOG_FORMAT" => &mut config.log_format,
                _ => panic!("no setting {name}"),
            };
            *field = Some(value.to_owned());
        }
        config.settings(4)
    }

    #[test]
    fn nothing_written_is_a_router_on_loopback_without_limits() {
        let settings = settings(&[]).unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:50050");
        assert_eq!(settings.rates, RateSettings::default());
        assert_eq!(settings.state, StoreConfig::Directory("./milena-data/router".into()));
        assert_eq!((settings.cores, settings.pin, settings.value_bytes_max), (4, true, 5 << 20));
        assert_eq!(settings.metrics.unwrap().to_string(), "127.0.0.1:9090");
        assert_eq!(settings.drain, Duration::from_secs(10));
    }

    #[test]
    fn an_old_deployment_works_as_it_stands() {
        let settings = settings(&["LISTEN_ADDR=0.0.0.0:50050", "RATE_LIMIT=100", "LOG_LEVEL=INFO"]).unwrap();
        assert_eq!((settings.listen.to_string().as_str(), settings.rates.router), ("0.0.0.0:50050", 100));
        assert!(self::settings(&["LISTEN_ADDR=[::1]:50052", "RATE_LIMIT=100", "LOG_LEVEL=debug"]).is_ok());
    }

    #[test]
    fn an_empty_variable_is_one_that_is_not_set() {
        let settings = settings(&["LISTEN_ADDR=", "RATE_LIMIT= ", "STATE=", "CORES=", "METRICS_PORT="]).unwrap();
        assert_eq!((settings.listen.port(), settings.rates.router, settings.cores), (50050, 0, 4));
        assert_eq!(settings.state_text, STATE_DEFAULT);
    }

    #[test]
    fn every_setting_that_makes_no_sense_is_named_with_what_was_found_and_what_is_allowed() {
        let rates = "allowed is requests per second from 1 to 1000000000, 0 = no limit";
        let cases = [
            ("LISTEN_ADDR=nowhere", "--listen-addr nowhere: allowed is IP:PORT, such as 0.0.0.0:50050"),
            ("RATE_LIMIT=fast", &format!("--rate-limit fast: {rates}")),
            ("RATE_LIMIT=-1", &format!("--rate-limit -1: {rates}")),
            ("RATE_LIMIT_PER_CLIENT=1.5", &format!("--rate-limit-per-client 1.5: {rates}")),
            ("RATE_LIMIT_PER_BUCKET=1000000001", &format!("--rate-limit-per-bucket 1000000001: {rates}")),
            ("CORES=0", "--cores 0: allowed is all, or a count from 1 to 256"),
            (
                "CORES=5",
                "--cores 5: this process may use 4; lower CORES, or set PIN=false to let cores share processors",
            ),
            ("PIN=maybe", "--pin maybe: allowed is true or false"),
            ("METRICS_PORT=70000", "--metrics-port 70000: allowed is a port from 1 to 65535, 0 = off, or auto"),
            ("DRAIN_SECONDS=x", "--drain-seconds x: allowed is seconds from 0 to 3600"),
            ("VALUE_MAX=65MiB", "--value-max 65MiB: allowed is a size from 1 to 64MiB, in bytes, KiB or MiB"),
            ("LOG_FORMAT=xml", "--log-format xml: not a format; allowed are text and json"),
            (
                "STATE=none",
                "--state none: a router keeps its table over restarts; allowed is file:///directory or s3://bucket/prefix",
            ),
        ];
        for (setting, text) in cases {
            assert_eq!(settings(&[setting]).unwrap_err().to_string(), text);
        }
        assert!(settings(&["LOG_LEVEL=loud"]).unwrap_err().to_string().starts_with("--log-level loud: "));
        assert!(settings(&["STATE=etcd://x"]).unwrap_err().to_string().starts_with("STATE=etcd://x: "));
        assert!(settings(&["CORES=5", "PIN=false"]).is_ok());
    }

    #[test]
    fn rules_between_settings_are_checked() {
        let text = settings(&["LISTEN_ADDR=127.0.0.1:9090"]).unwrap_err().to_string();
        assert_eq!(text, "--metrics-port 9090: --listen-addr has that port already; set another one, or 0 for none");
        let text = settings(&["STATE=s3://my-bucket/x", "AWS_ACCESS_KEY_ID=me"]).unwrap_err().to_string();
        assert!(text.contains("AWS_SECRET_ACCESS_KEY"), "{text}");
    }

    #[test]
    fn the_table_may_be_kept_in_s3_and_the_page_may_be_off_or_anywhere() {
        let settings =
            settings(&["STATE=s3://my-bucket/milena", "S3_ENDPOINT=http://127.0.0.1:9000", "METRICS_PORT=0"]);
        let settings = settings.unwrap();
        assert!(matches!(settings.state, StoreConfig::S3(_)));
        assert_eq!(settings.metrics, None);
        assert_eq!(self::settings(&["METRICS_PORT=auto"]).unwrap().metrics.unwrap().port(), 0);
    }

    #[test]
    fn every_flag_is_a_variable_of_the_same_name() {
        use clap::CommandFactory as _;
        for argument in Config::command().get_arguments() {
            let flag = argument.get_long().expect("every setting has a flag");
            let variable = argument.get_env().expect("every setting has a variable").to_str().unwrap();
            assert_eq!(variable, flag.replace('-', "_").to_uppercase());
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let config = Config { aws_secret_access_key: Some("hush".parse().unwrap()), ..Default::default() };
        assert!(!format!("{config:?}").contains("hush"));
    }
}
