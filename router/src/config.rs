//! A router's settings: what may be written, what it means, and which combinations make sense.
//!
//! ```text
//!   flags, environment ──clap──▶ Config         what was written, every value still text
//!                                  │ settings()  pure: each value read, then the rules between them
//!                                  ▼
//!                                Settings       numbers with units; nothing in it needs checking again
//! ```
//! How a text is read, and what all servers of ours can be told, is in net's settings; how S3 is reached, in storage's.

use std::{fmt, net::SocketAddr, path::Path, time::Duration};

use clap::Parser;
use milena_net::{
    log::Log,
    settings::{self, SettingError, number, written},
};
use milena_storage::object::{S3Flags, StoreConfig, StoreConfigError, StoreSettings};

use crate::rate_limit::{RATE_MAX, RateSettings};

/// Where the table is kept unless a setting says otherwise.
pub const STATE_DEFAULT: &str = "file://./milena-data/router";

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
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take it for the description of the program")]
    pub s3: S3Flags,
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
    /// Largest value in bytes, at most [`VALUE_BYTES_MAX`](milena_proto::limits::VALUE_BYTES_MAX).
    pub value_bytes_max: usize,
    /// 1 to [`CORES_MAX`](milena_proto::limits::CORES_MAX).
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
    /// One that every server has.
    Setting(SettingError),
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
        let listen = settings::listen(&self.listen_addr, 50050)?;
        let rate = |flag, value| {
            let allowed = || format!("requests per second from 1 to {RATE_MAX}, 0 = no limit");
            Ok::<_, SettingError>(number(flag, value, 0..=RATE_MAX, allowed)?.unwrap_or(0))
        };
        let rates = RateSettings {
            router: rate("--rate-limit", &self.rate_limit)?,
            client: rate("--rate-limit-per-client", &self.rate_limit_per_client)?,
            bucket: rate("--rate-limit-per-bucket", &self.rate_limit_per_bucket)?,
        };
        let pin = settings::boolean("--pin", &self.pin)?.unwrap_or(true);
        Ok(Settings {
            listen,
            rates,
            state: self.state()?,
            state_text: written(&self.state).unwrap_or(STATE_DEFAULT).to_owned(),
            value_bytes_max: settings::value_bytes_max(&self.value_max)?,
            cores: settings::cores(&self.cores, pin, machine_cores)?,
            pin,
            metrics: settings::metrics(&self.metrics_port, 9090, listen)?,
            drain: settings::drain(&self.drain_seconds)?,
            log: settings::log(&self.log_level, &self.log_format)?,
        })
    }

    fn state(&self) -> Result<StoreConfig, ConfigError> {
        let settings = StoreSettings {
            store: Some(written(&self.state).unwrap_or(STATE_DEFAULT)),
            ..self.s3.settings("STATE", Path::new("."))
        };
        match StoreConfig::read(&settings).map_err(ConfigError::State)? {
            StoreConfig::None => Err(ConfigError::StateNone),
            state => Ok(state),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(error) => error.fmt(f),
            Self::StateNone => f.write_str(
                "--state none: a router keeps its table over restarts; allowed is file:///directory or s3://bucket/prefix",
            ),
            Self::State(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ConfigError {}

impl From<SettingError> for ConfigError {
    fn from(error: SettingError) -> Self {
        Self::Setting(error)
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
                "S3_ENDPOINT" => &mut config.s3.s3_endpoint,
                "AWS_ENDPOINT_URL" => &mut config.s3.aws_endpoint_url,
                "AWS_ACCESS_KEY_ID" => &mut config.s3.aws_access_key_id,
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
                "--cores 5: this process may use 4; lower CORES, or set PIN=false to let them share processors",
            ),
            ("PIN=maybe", "--pin maybe: allowed is true or false"),
            ("METRICS_PORT=70000", "--metrics-port 70000: allowed is a port from 1 to 65535, 0 = off, or auto"),
            ("DRAIN_SECONDS=x", "--drain-seconds x: allowed is seconds from 0 to 3600"),
            ("VALUE_MAX=65MiB", "--value-max 65MiB: allowed is a size from 1 to 64MiB"),
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
}
