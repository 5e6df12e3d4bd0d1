//! A node's settings: what may be written, what it means, and which combinations make sense.
//!
//! ```text
//!   flags, environment ──clap──▶ Config         what was written, every value still text
//!                                  │ settings()  pure: each value read, then the rules between them
//!                                  ▼
//!                                Settings       numbers with units; nothing in it needs checking again
//! ```
//! How a text is read, and what all servers of ours can be told, is in net's settings; how S3 is reached, in storage's.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::Parser;
use milena_net::{
    log::Log,
    settings::{self, SIZES, SettingError, Size, number, read, size, written},
};
use milena_storage::{
    log::LOG_BYTES_MIN,
    object::{PoolSizes, S3Flags, StoreConfig, StoreConfigError, StoreSettings},
};

use crate::shard::WriteMode;

/// What a core needs at least, in bytes: below that, connection buffers would leave nothing for entries.
pub const CORE_MEMORY_BYTES_MIN: u64 = 16 << 20;

/// The memory of a node that was not told, in bytes: this, or [`CORE_MEMORY_BYTES_DEFAULT`] for each core if that is more.
pub const MEMORY_BYTES_DEFAULT: u64 = 512 << 20;

/// What a core gets at least when MEMORY is not set, in bytes.
pub const CORE_MEMORY_BYTES_DEFAULT: u64 = 64 << 20;

/// Longest that a parked core may spin for work first: more would only heat the room.
const SPIN_US_MAX: u64 = 100;

/// Most threads that may wait for S3 for one purpose; each is a stack and a connection.
const STORE_THREADS_MAX: u64 = 4096;

const _: () = assert!(CORE_MEMORY_BYTES_MIN <= CORE_MEMORY_BYTES_DEFAULT);

/// Milena's cache node: keeps its share of the keys in memory on top of S3 and answers over gRPC.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "milena-cache", version, max_term_width = 100)]
pub struct Config {
    /// Where clients and routers connect (127.0.0.1:50051); port 0 = any free one, said in the log.
    #[arg(long, env, value_name = "IP:PORT")]
    pub listen_addr: Option<String>,
    /// The routers to join, separated by commas, with or without http:// (none: the node stands alone).
    #[arg(long, env, value_name = "HOST:PORT,..")]
    pub router_addr: Option<String>,
    /// What routers are told to connect to (the address listened on; where that is 0.0.0.0, the local one that faces the router).
    #[arg(long, env, value_name = "HOST[:PORT]")]
    pub advertise_addr: Option<String>,
    /// One more port for each core, where only that core answers (auto): auto = free ones, or the first of as many as cores.
    #[arg(long, env, value_name = "auto|PORT")]
    pub shard_ports: Option<String>,
    /// Cores to use, one shard each (all).
    #[arg(long, env, value_name = "all|COUNT")]
    pub cores: Option<String>,
    /// Whether each shard stays on a core of its own (true); false where several nodes share a machine.
    #[arg(long, env, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub pin: Option<String>,
    /// Microseconds that a core without work looks for some before it sleeps, 0 to 100 (0).
    #[arg(long, env, value_name = "MICROSECONDS")]
    pub spin_us: Option<String>,
    /// Memory for entries and buffers, in bytes or as 512MiB (512MiB, or 64MiB for each core if that is more).
    #[arg(long, env, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Most entries to keep in memory (0 = limited by bytes only).
    #[arg(long, env, value_name = "ENTRIES")]
    pub lru_size: Option<String>,
    /// Seconds that a cached copy is believed before the store is asked whether it has changed (3600; 0 = for ever).
    #[arg(long, env, value_name = "SECONDS")]
    pub ttl_seconds: Option<String>,
    /// Largest value that may be written, in bytes or as 5MiB (5MiB; at most 64MiB).
    #[arg(long, env, value_name = "SIZE")]
    pub value_max: Option<String>,
    /// Where the node keeps what must outlive it (./milena-data). Several nodes may share it: each uses node-PORT in it.
    #[arg(long, env, value_name = "DIRECTORY")]
    pub data_dir: Option<String>,
    /// Disk for the tier between memory and the store, shared by the cores (0 = no such tier).
    #[arg(long, env, value_name = "SIZE")]
    pub disk: Option<String>,
    /// The truth: s3://bucket/prefix, file:///directory, or none = memory and disk only (file:// DATA_DIR/store, for all nodes that share it).
    #[arg(long, env, value_name = "URL")]
    pub store: Option<String>,
    /// The same as --store s3://BUCKET; --store wins where both are set.
    #[arg(long, env, value_name = "BUCKET")]
    pub s3_bucket: Option<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take it for the description of the program")]
    pub s3: S3Flags,
    /// Names of objects (plain): plain = PREFIX BUCKET/KEY; md5 = as the predecessor wrote them.
    #[arg(long, env, value_name = "plain|md5")]
    pub s3_key_layout: Option<String>,
    /// How a bucket is addressed (auto): path = host/bucket, virtual-host = bucket.host.
    #[arg(long, env, value_name = "auto|path|virtual-host")]
    pub s3_addressing: Option<String>,
    /// Reads of the store that may be under way at once (64).
    #[arg(long, env, value_name = "COUNT")]
    pub s3_read_threads: Option<String>,
    /// Writes to the store that may be under way at once (32).
    #[arg(long, env, value_name = "COUNT")]
    pub s3_write_threads: Option<String>,
    /// When a write is acknowledged (through): through = the store has it; back = the disk has it, and the store gets it later.
    #[arg(long, env, value_name = "through|back")]
    pub write_mode: Option<String>,
    /// /metrics, /health and /ready on the address listened on (9091; 0 = off; auto = any free port, said in the log).
    #[arg(long, env, value_name = "PORT")]
    pub metrics_port: Option<String>,
    /// Seconds for requests in progress when the node stops (10).
    #[arg(long, env, value_name = "SECONDS")]
    pub drain_seconds: Option<String>,
    /// Where the node stands, for operators and later for placement (empty).
    #[arg(long, env, value_name = "NAME")]
    pub zone: Option<String>,
    /// off, error, warn, info, debug or trace in any case, or directives such as warn,milena_core::membership=info (info).
    #[arg(long, env, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// text or json (text).
    #[arg(long, env, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// What a node runs with. Made by [`Config::settings`]; consistent.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The common address, one listener per core; port 0 = any free one.
    pub listen: SocketAddr,
    /// The routers, each as `http://host:port`; none = alone.
    pub routers: Vec<String>,
    /// What routers are told, where it was said.
    pub advertise: Option<Advertised>,
    /// Each core's own port.
    pub shard_ports: ShardPorts,
    /// Cores, which is shards: 1 to [`CORES_MAX`](milena_proto::limits::CORES_MAX).
    pub cores: usize,
    /// Whether each executor stays on a processor of its own.
    pub pin: bool,
    /// How long a core looks for work before it sleeps; at most 100 µs.
    pub spin: Duration,
    /// Memory of all cores together, in bytes.
    pub memory_bytes: u64,
    /// Bytes of disk for all cores together; 0 = no disk tier.
    pub disk_bytes: u64,
    /// When a write counts as done that does not say; [`WriteMode::Back`] only where there are a disk and a store.
    pub write_mode: WriteMode,
    /// Entries of all cores together; `None` = as many as fit.
    pub entries_max: Option<u64>,
    /// How long a cached copy is believed; `None` = for ever.
    pub believed: Option<Duration>,
    /// Largest value in bytes, at most [`VALUE_BYTES_MAX`](milena_proto::limits::VALUE_BYTES_MAX).
    pub value_bytes_max: usize,
    /// This node's own directory, `DATA_DIR/node-PORT`; not made yet.
    pub node_dir: PathBuf,
    /// The truth.
    pub store: StoreConfig,
    /// The threads that ask it.
    pub store_threads: PoolSizes,
    /// Where operators look; `None` = nowhere, port 0 = any free one.
    pub metrics: Option<SocketAddr>,
    /// How long requests in progress may take once the node stops.
    pub drain: Duration,
    /// Where the node stands; empty = not said.
    pub zone: String,
    /// What is logged and how.
    pub log: Log,
}

/// What routers are told to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// A name or an address; IPv6 in brackets.
    pub host: String,
    /// `None` = the port listened on.
    pub port: Option<u16>,
}

/// Each core's own port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardPorts {
    /// Whichever is free.
    Ephemeral,
    /// This one for core 0, the next one for core 1, and so on.
    From(u16),
}

/// Why a configuration was refused. The text is one line: the setting, the value found, what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// One that every server has.
    Setting(SettingError),
    /// Not enough memory for so many cores.
    MemoryTooSmall {
        /// Bytes given.
        memory_bytes: u64,
        /// Cores to share them.
        cores: usize,
    },
    /// The last core's port would be beyond 65535.
    ShardPortsBeyondLast {
        /// The first core's port.
        first: u16,
        /// How many are needed.
        cores: usize,
    },
    /// A core's own port is the common one.
    ShardPortsMeet {
        /// The first core's port.
        first: u16,
        /// How many are needed.
        cores: usize,
        /// The flag whose port lies among them.
        other: &'static str,
        /// That port.
        port: u16,
    },
    /// A setting of the store.
    Store(StoreConfigError),
    /// `WRITE_MODE=back` without a disk to wait on, or without a store to wait for.
    BackNeeds {
        /// The setting that is missing.
        what: &'static str,
    },
    /// Not enough disk for so many cores.
    DiskTooSmall {
        /// Bytes given.
        disk_bytes: u64,
        /// Cores to share them.
        cores: usize,
    },
}

impl Config {
    /// Reads every value and applies the rules between them. Pure: `machine_cores` is what this process may use.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub fn settings(&self, machine_cores: usize) -> Result<Settings, ConfigError> {
        let listen = settings::listen(&self.listen_addr, 50051)?;
        let pin = settings::boolean("--pin", &self.pin)?.unwrap_or(true);
        let cores = settings::cores(&self.cores, pin, machine_cores)?;
        let shard_ports = self.shard_ports(cores, listen.port())?;
        let metrics = settings::metrics(&self.metrics_port, 9091, listen)?;
        if let (ShardPorts::From(first), Some(metrics)) = (shard_ports, metrics) {
            check_apart(first, cores, "--metrics-port", metrics.port())?;
        }
        let data_dir = PathBuf::from(written(&self.data_dir).unwrap_or("./milena-data"));
        let seconds = || format!("seconds from 0 to {}", u32::MAX);
        let believed_seconds =
            number("--ttl-seconds", &self.ttl_seconds, 0..=u32::MAX.into(), seconds)?.unwrap_or(3600);
        let spin = || format!("microseconds from 0 to {SPIN_US_MAX}");
        let entries = || "a count of entries, 0 = limited by bytes only".to_owned();
        let store = self.store(&data_dir)?;
        let disk_bytes = self.disk_bytes(cores)?;
        let write_mode = self.write_mode(&store, disk_bytes)?;
        Ok(Settings {
            listen,
            routers: self.routers()?,
            advertise: read(
                "--advertise-addr",
                &self.advertise_addr,
                "HOST, HOST:PORT or http://HOST:PORT, as routers reach this node",
                advertised,
            )?,
            shard_ports,
            cores,
            pin,
            spin: Duration::from_micros(number("--spin-us", &self.spin_us, 0..=SPIN_US_MAX, spin)?.unwrap_or(0)),
            memory_bytes: self.memory_bytes(cores)?,
            entries_max: number("--lru-size", &self.lru_size, 0..=u64::MAX, entries)?.filter(|entries| *entries > 0),
            believed: (believed_seconds > 0).then(|| Duration::from_secs(believed_seconds)),
            value_bytes_max: settings::value_bytes_max(&self.value_max)?,
            node_dir: data_dir.join(format!("node-{}", listen.port())),
            disk_bytes,
            write_mode,
            store,
            store_threads: self.store_threads()?,
            metrics,
            drain: settings::drain(&self.drain_seconds)?,
            zone: written(&self.zone).unwrap_or_default().to_owned(),
            log: settings::log(&self.log_level, &self.log_format)?,
        })
    }

    fn memory_bytes(&self, cores: usize) -> Result<u64, ConfigError> {
        let default = MEMORY_BYTES_DEFAULT.max(cores as u64 * CORE_MEMORY_BYTES_DEFAULT);
        let memory_bytes = read("--memory", &self.memory, SIZES, size)?.unwrap_or(default);
        if memory_bytes / (cores as u64) < CORE_MEMORY_BYTES_MIN {
            return Err(ConfigError::MemoryTooSmall { memory_bytes, cores });
        }
        Ok(memory_bytes)
    }

    fn shard_ports(&self, cores: usize, listen_port: u16) -> Result<ShardPorts, ConfigError> {
        let first = match written(&self.shard_ports) {
            None | Some("auto") => return Ok(ShardPorts::Ephemeral),
            Some(_) => number("--shard-ports", &self.shard_ports, 1..=65535, || {
                "auto, or the first port, from 1 to 65535".to_owned()
            })?,
        };
        let first = u16::try_from(first.expect("it is written")).expect("at most 65535");
        if usize::from(first) + cores - 1 > usize::from(u16::MAX) {
            return Err(ConfigError::ShardPortsBeyondLast { first, cores });
        }
        check_apart(first, cores, "--listen-addr", listen_port)?;
        Ok(ShardPorts::From(first))
    }

    fn routers(&self) -> Result<Vec<String>, ConfigError> {
        let mut routers = Vec::new();
        let list = written(&self.router_addr).filter(|list| *list != "none").unwrap_or_default();
        for found in list.split(',').map(str::trim).filter(|found| !found.is_empty()) {
            let router = http_address(found).ok_or_else(|| SettingError::Illegal {
                flag: "--router-addr",
                found: found.to_owned(),
                allowed: "HOST:PORT or http://HOST:PORT, several separated by commas".to_owned(),
            })?;
            if !routers.contains(&router) {
                routers.push(router);
            }
        }
        Ok(routers)
    }

    fn write_mode(&self, store: &StoreConfig, disk_bytes: u64) -> Result<WriteMode, ConfigError> {
        match written(&self.write_mode).map(str::to_ascii_lowercase).as_deref() {
            None | Some("through") => Ok(WriteMode::Through),
            Some("back") if disk_bytes == 0 => Err(ConfigError::BackNeeds { what: "DISK" }),
            Some("back") if *store == StoreConfig::None => Err(ConfigError::BackNeeds { what: "STORE" }),
            Some("back") => Ok(WriteMode::Back),
            Some(_) => Err(SettingError::Illegal {
                flag: "--write-mode",
                found: written(&self.write_mode).unwrap_or_default().to_owned(),
                allowed: "through or back".to_owned(),
            }
            .into()),
        }
    }

    fn disk_bytes(&self, cores: usize) -> Result<u64, ConfigError> {
        let disk_bytes = read("--disk", &self.disk, SIZES, size)?.unwrap_or(0);
        if disk_bytes > 0 && disk_bytes / (cores as u64) < LOG_BYTES_MIN {
            return Err(ConfigError::DiskTooSmall { disk_bytes, cores });
        }
        Ok(disk_bytes)
    }

    fn store(&self, data_dir: &Path) -> Result<StoreConfig, ConfigError> {
        StoreConfig::read(&StoreSettings {
            store: written(&self.store).map(|store| if store.eq_ignore_ascii_case("none") { "none" } else { store }),
            s3_bucket: written(&self.s3_bucket),
            s3_key_layout: written(&self.s3_key_layout),
            s3_addressing: written(&self.s3_addressing),
            ..self.s3.settings("STORE", data_dir)
        })
        .map_err(ConfigError::Store)
    }

    fn store_threads(&self) -> Result<PoolSizes, ConfigError> {
        let threads = |flag, value, default| {
            let allowed = || format!("a count from 1 to {STORE_THREADS_MAX}");
            let threads = number(flag, value, 1..=STORE_THREADS_MAX, allowed)?;
            Ok::<_, SettingError>(
                threads.map_or(default, |threads| u32::try_from(threads).expect("at most STORE_THREADS_MAX")),
            )
        };
        let default = PoolSizes::default();
        Ok(PoolSizes {
            read_threads: threads("--s3-read-threads", &self.s3_read_threads, default.read_threads)?,
            write_threads: threads("--s3-write-threads", &self.s3_write_threads, default.write_threads)?,
            ..default
        })
    }
}

/// `HOST:PORT` with or without `http://`, as `http://HOST:PORT`.
pub(crate) fn http_address(text: &str) -> Option<String> {
    let authority = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let (host, port) = authority.rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|port| *port > 0)?;
    is_host(host).then(|| format!("http://{host}:{port}"))
}

/// `HOST`, `HOST:PORT`, or one of them behind `http://` or `https://`.
fn advertised(text: &str) -> Option<Advertised> {
    let (scheme, authority) = match text.strip_prefix("https://") {
        Some(authority) => ("https", authority),
        None => ("http", text.strip_prefix("http://").unwrap_or(text)),
    };
    let authority = authority.trim_end_matches('/');
    let is_bare = is_host(authority);
    let (host, port) =
        if is_bare { (authority, None) } else { authority.rsplit_once(':').map(|(h, p)| (h, Some(p)))? };
    let port = match port {
        Some(port) => Some(port.parse().ok().filter(|port: &u16| *port > 0)?),
        None => None,
    };
    let is_everywhere = host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_unspecified());
    (is_host(host) && !is_everywhere).then(|| Advertised { scheme, host: host.to_owned(), port })
}

/// A name, an IPv4 address, or an IPv6 address in brackets.
fn is_host(text: &str) -> bool {
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => std::net::Ipv6Addr::from_str(address).is_ok(),
        None => {
            !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        }
    }
}

fn check_apart(first: u16, cores: usize, other: &'static str, port: u16) -> Result<(), ConfigError> {
    let last = usize::from(first) + cores - 1;
    if port != 0 && (usize::from(first)..=last).contains(&usize::from(port)) {
        return Err(ConfigError::ShardPortsMeet { first, cores, other, port });
    }
    Ok(())
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(error) => error.fmt(f),
            Self::MemoryTooSmall { memory_bytes, cores } => write!(
                f,
                "--memory {}: {cores} cores need at least {} ({} each); raise MEMORY or lower CORES",
                Size(*memory_bytes),
                Size(*cores as u64 * CORE_MEMORY_BYTES_MIN),
                Size(CORE_MEMORY_BYTES_MIN),
            ),
            Self::ShardPortsBeyondLast { first, cores } => write!(
                f,
                "--shard-ports {first}: {cores} cores need {cores} ports and 65535 is the last one; allowed is up to {}",
                usize::from(u16::MAX) + 1 - cores
            ),
            Self::ShardPortsMeet { first, cores, other, port } => write!(
                f,
                "--shard-ports {first}: {cores} cores need ports {first} to {}, and {other} has {port}; move one of them",
                usize::from(*first) + cores - 1
            ),
            Self::Store(error) => error.fmt(f),
            Self::BackNeeds { what } => {
                write!(
                    f,
                    "--write-mode back: writes wait on the disk for the store; set {what}, or --write-mode through"
                )
            }
            Self::DiskTooSmall { disk_bytes, cores } => write!(
                f,
                "--disk {}: {cores} cores need at least {} ({} each); raise DISK or lower CORES",
                Size(*disk_bytes),
                Size(*cores as u64 * LOG_BYTES_MIN),
                Size(LOG_BYTES_MIN),
            ),
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
    use milena_storage::object::name::KeyLayout;

    use super::*;

    /// The settings of a machine with four cores on which only these are written, as `name=value`.
    fn settings(written: &[&str]) -> Result<Settings, ConfigError> {
        let mut config = Config::default();
        for setting in written {
            let (name, value) = setting.split_once('=').unwrap();
            let value = value.to_owned();
            let field = match name {
                "LISTEN_ADDR" => &mut config.listen_addr,
                "ROUTER_ADDR" => &mut config.router_addr,
                "ADVERTISE_ADDR" => &mut config.advertise_addr,
                "SHARD_PORTS" => &mut config.shard_ports,
                "CORES" => &mut config.cores,
                "PIN" => &mut config.pin,
                "SPIN_US" => &mut config.spin_us,
                "MEMORY" => &mut config.memory,
                "LRU_SIZE" => &mut config.lru_size,
                "TTL_SECONDS" => &mut config.ttl_seconds,
                "VALUE_MAX" => &mut config.value_max,
                "DATA_DIR" => &mut config.data_dir,
                "DISK" => &mut config.disk,
                "STORE" => &mut config.store,
                "S3_BUCKET" => &mut config.s3_bucket,
                "S3_ENDPOINT" => &mut config.s3.s3_endpoint,
                "AWS_ENDPOINT_URL" => &mut config.s3.aws_endpoint_url,
                "AWS_REGION" => &mut config.s3.aws_region,
                "AWS_ACCESS_KEY_ID" => &mut config.s3.aws_access_key_id,
                "S3_KEY_LAYOUT" => &mut config.s3_key_layout,
                "S3_ADDRESSING" => &mut config.s3_addressing,
                "S3_READ_THREADS" => &mut config.s3_read_threads,
                "S3_WRITE_THREADS" => &mut config.s3_write_threads,
                "WRITE_MODE" => &mut config.write_mode,
                "METRICS_PORT" => &mut config.metrics_port,
                "DRAIN_SECONDS" => &mut config.drain_seconds,
                "ZONE" => &mut config.zone,
                "LOG_LEVEL" => &mut config.log_level,
                "LOG_FORMAT" => &mut config.log_format,
                "AWS_SECRET_ACCESS_KEY" => {
                    config.s3.aws_secret_access_key = Some(value.parse().unwrap());
                    continue;
                }
                _ => panic!("no setting {name}"),
            };
            *field = Some(value);
        }
        config.settings(4)
    }

    fn refused(written: &[&str]) -> String {
        settings(written).expect_err("it was accepted").to_string()
    }

    #[test]
    fn nothing_written_is_a_node_alone_on_loopback_with_a_directory_below_it() {
        let settings = settings(&[]).unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:50051");
        assert!(settings.routers.is_empty());
        assert_eq!((settings.cores, settings.pin), (4, true));
        assert_eq!(settings.memory_bytes, 512 << 20);
        assert_eq!(settings.entries_max, None);
        assert_eq!(settings.believed, Some(Duration::from_secs(3600)));
        assert_eq!(settings.value_bytes_max, 5 << 20);
        assert_eq!(settings.store, StoreConfig::Directory("./milena-data/store".into()));
        assert_eq!(settings.metrics.unwrap().to_string(), "127.0.0.1:9091");
    }

    #[test]
    fn three_old_deployments_on_one_machine_work_as_they_stand_and_share_nothing_but_the_bucket() {
        let nodes: Vec<Settings> = (0..3)
            .map(|index| {
                settings(&[
                    &format!("LISTEN_ADDR=0.0.0.0:{}", 50051 + index),
                    "ROUTER_ADDR=http://localhost:50050",
                    "LRU_SIZE=10000",
                    "TTL_SECONDS=3600",
                    &format!("METRICS_PORT={}", 9091 + index),
                    "AWS_REGION=us-west-2",
                    "S3_BUCKET=my-cache-bucket",
                    "LOG_LEVEL=INFO",
                ])
                .unwrap()
            })
            .collect();
        for node in &nodes {
            assert_eq!(node.routers, ["http://localhost:50050"]);
            assert_eq!(node.entries_max, Some(10_000));
            let StoreConfig::S3(s3) = &node.store else { panic!("{:?}", node.store) };
            assert_eq!(node.store.to_string(), "s3://my-cache-bucket/");
            assert_eq!(s3.bucket.region(), "us-west-2");
            assert_eq!(s3.credentials, None);
        }
        assert_eq!(nodes[2].metrics.unwrap().to_string(), "0.0.0.0:9093");
        assert_ne!(nodes[0].node_dir, nodes[1].node_dir);
        assert_ne!(nodes[1].node_dir, nodes[2].node_dir);
    }

    #[test]
    fn an_empty_variable_is_one_that_is_not_set() {
        let settings = settings(&["ROUTER_ADDR=", "STORE= ", "S3_BUCKET=", "MEMORY=", "CORES=", "LOG_LEVEL="]).unwrap();
        assert!(settings.routers.is_empty());
        assert_eq!(settings.store, StoreConfig::Directory("./milena-data/store".into()));
    }

    #[test]
    fn routers_come_with_or_without_a_scheme_and_each_once() {
        let routers = |list: &str| settings(&[&format!("ROUTER_ADDR={list}")]).map(|settings| settings.routers);
        assert_eq!(routers("r1:50050, http://r2:50050/,r1:50050").unwrap(), ["http://r1:50050", "http://r2:50050"]);
        assert_eq!(routers("[::1]:7").unwrap(), ["http://[::1]:7"]);
        assert_eq!(routers("none").unwrap(), [""; 0]);
        for wrong in ["r1", "r1:0", "r1:x", "https://r1:1", "http://:1", "http://a b:1", "::1:7", "r1:70000"] {
            assert_eq!(
                routers(wrong).unwrap_err().to_string(),
                format!("--router-addr {wrong}: allowed is HOST:PORT or http://HOST:PORT, several separated by commas")
            );
        }
    }

    #[test]
    fn the_store_is_what_store_says_then_the_bucket_then_a_directory() {
        let store = |written: &[&str]| settings(written).unwrap().store;
        assert_eq!(
            store(&["STORE=s3://kv-prod/some/prefix", "S3_BUCKET=other"]).to_string(),
            "s3://kv-prod/some/prefix/"
        );
        assert_eq!(store(&["STORE=file:///var/kv", "S3_BUCKET=other"]), StoreConfig::Directory("/var/kv".into()));
        assert_eq!(store(&["STORE=file://./kv"]), StoreConfig::Directory("./kv".into()));
        assert_eq!(store(&["STORE=None", "S3_BUCKET=other"]), StoreConfig::None);
        assert_eq!(store(&["DATA_DIR=/srv"]), StoreConfig::Directory("/srv/store".into()));
        let s3 = |written: &[&str]| match store(&[&["S3_BUCKET=kv-prod"], written].concat()) {
            StoreConfig::S3(s3) => s3,
            other => panic!("{other}"),
        };
        let from_aws = s3(&["AWS_ENDPOINT_URL=http://a:1", "S3_KEY_LAYOUT=md5", "AWS_REGION=eu-north-1"]);
        assert_eq!(from_aws.bucket.base_url().as_str(), "http://a:1/kv-prod/");
        assert_eq!((from_aws.layout, from_aws.bucket.region()), (KeyLayout::Md5, "eu-north-1"));
        let ours = s3(&["AWS_ENDPOINT_URL=http://a:1", "S3_ENDPOINT=http://b:2"]);
        assert_eq!(ours.bucket.base_url().as_str(), "http://b:2/kv-prod/");
    }

    #[test]
    fn credentials_are_taken_whole_and_never_shown() {
        let written = ["S3_BUCKET=kv-prod", "AWS_ACCESS_KEY_ID=id", "AWS_SECRET_ACCESS_KEY=hush"];
        let StoreConfig::S3(s3) = settings(&written).unwrap().store else { panic!("not S3") };
        assert_eq!(s3.credentials.as_ref().unwrap().secret_access_key, "hush");
        let mut config = Config::default();
        config.s3.aws_secret_access_key = Some("hush".parse().unwrap());
        assert!(!format!("{:?} {config:?}", settings(&written)).contains("hush"));
        assert!(refused(&written[..2]).contains("AWS_SECRET_ACCESS_KEY is not set and AWS_ACCESS_KEY_ID is"));
        assert!(refused(&[written[0], written[2]]).contains("AWS_ACCESS_KEY_ID is not set"));
    }

    #[test]
    fn an_advertised_address_may_lack_its_port_but_not_its_host() {
        let advertised = |text: &str| settings(&[&format!("ADVERTISE_ADDR={text}")]).map(|settings| settings.advertise);
        let is = |scheme, host: &str, port| Ok(Some(Advertised { scheme, host: host.to_owned(), port }));
        assert_eq!(advertised("10.0.0.7"), is("http", "10.0.0.7", None));
        assert_eq!(advertised("kv-0.kv:50051"), is("http", "kv-0.kv", Some(50051)));
        assert_eq!(advertised("https://kv:443/"), is("https", "kv", Some(443)));
        assert_eq!(advertised("[fd00::1]"), is("http", "[fd00::1]", None));
        for wrong in ["http://", ":50051", "0.0.0.0:50051", "[::]:1", "fd00::1", "kv:0", "ftp://kv:1"] {
            assert!(advertised(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_of_cores_start_where_they_are_told_and_keep_apart_from_the_others() {
        assert_eq!(settings(&["SHARD_PORTS=auto"]).unwrap().shard_ports, ShardPorts::Ephemeral);
        assert_eq!(settings(&["SHARD_PORTS=50100"]).unwrap().shard_ports, ShardPorts::From(50100));
        assert_eq!(settings(&["SHARD_PORTS=65532"]).unwrap().shard_ports, ShardPorts::From(65532));
        assert_eq!(
            refused(&["SHARD_PORTS=65533"]),
            "--shard-ports 65533: 4 cores need 4 ports and 65535 is the last one; allowed is up to 65532"
        );
        assert_eq!(
            refused(&["SHARD_PORTS=50048"]),
            "--shard-ports 50048: 4 cores need ports 50048 to 50051, and --listen-addr has 50051; move one of them"
        );
        assert_eq!(
            refused(&["SHARD_PORTS=9090"]),
            "--shard-ports 9090: 4 cores need ports 9090 to 9093, and --metrics-port has 9091; move one of them"
        );
        assert_eq!(
            refused(&["METRICS_PORT=50051"]),
            "--metrics-port 50051: --listen-addr has that port already; set another one, or 0 for none"
        );
        assert_eq!(settings(&["METRICS_PORT=0"]).unwrap().metrics, None);
        assert_eq!(settings(&["METRICS_PORT=auto"]).unwrap().metrics.unwrap().port(), 0);
    }

    #[test]
    fn cores_and_memory_must_fit_each_other_and_the_machine() {
        assert_eq!(settings(&["CORES=2", "MEMORY=32MiB"]).unwrap().memory_bytes, 32 << 20);
        assert_eq!(
            refused(&["MEMORY=32MiB"]),
            "--memory 32MiB: 4 cores need at least 64MiB (16MiB each); raise MEMORY or lower CORES"
        );
        assert_eq!(
            refused(&["CORES=64"]),
            "--cores 64: this process may use 4; lower CORES, or set PIN=false to let them share processors"
        );
        let shared = settings(&["CORES=64", "PIN=false"]).unwrap();
        assert_eq!((shared.cores, shared.memory_bytes), (64, 64 * CORE_MEMORY_BYTES_DEFAULT));
    }

    #[test]
    fn what_needs_the_disk_tier_is_refused_before_anything_can_be_lost() {
        assert_eq!(settings(&["DISK=0", "WRITE_MODE=through"]).unwrap().disk_bytes, 0);
        assert_eq!(settings(&["DISK=10GiB"]).unwrap().disk_bytes, 10 << 30);
        assert_eq!(settings(&["DISK=10GiB", "WRITE_MODE=back"]).unwrap().write_mode, WriteMode::Back);
        assert_eq!(
            refused(&["WRITE_MODE=back"]),
            "--write-mode back: writes wait on the disk for the store; set DISK, or --write-mode through"
        );
        assert_eq!(
            refused(&["WRITE_MODE=back", "DISK=10GiB", "STORE=none"]),
            "--write-mode back: writes wait on the disk for the store; set STORE, or --write-mode through"
        );
        assert_eq!(settings(&["DISK=10GiB", "STORE=none"]).unwrap().disk_bytes, 10 << 30);
        assert_eq!(
            refused(&["DISK=1MiB", "CORES=2"]),
            "--disk 1MiB: 2 cores need at least 1536KiB (768KiB each); raise DISK or lower CORES"
        );
    }

    #[test]
    fn each_value_that_makes_no_sense_is_named_with_what_is_allowed() {
        for (written, text) in [
            ("LISTEN_ADDR=50051", "--listen-addr 50051: allowed is IP:PORT, such as 0.0.0.0:50051"),
            ("LISTEN_ADDR=a:70000", "--listen-addr a:70000: allowed is IP:PORT, such as 0.0.0.0:50051"),
            ("SHARD_PORTS=many", "--shard-ports many: allowed is auto, or the first port, from 1 to 65535"),
            ("CORES=0", "--cores 0: allowed is all, or a count from 1 to 256"),
            ("CORES=257", "--cores 257: allowed is all, or a count from 1 to 256"),
            ("PIN=maybe", "--pin maybe: allowed is true or false"),
            ("SPIN_US=101", "--spin-us 101: allowed is microseconds from 0 to 100"),
            ("MEMORY=lots", "--memory lots: allowed is bytes, or a number with KiB, MiB, GiB or TiB"),
            ("LRU_SIZE=-1", "--lru-size -1: allowed is a count of entries, 0 = limited by bytes only"),
            ("TTL_SECONDS=1h", "--ttl-seconds 1h: allowed is seconds from 0 to 4294967295"),
            ("VALUE_MAX=65MiB", "--value-max 65MiB: allowed is a size from 1 to 64MiB"),
            ("VALUE_MAX=0", "--value-max 0: allowed is a size from 1 to 64MiB"),
            ("DISK=x", "--disk x: allowed is bytes, or a number with KiB, MiB, GiB or TiB"),
            ("S3_READ_THREADS=0", "--s3-read-threads 0: allowed is a count from 1 to 4096"),
            ("S3_WRITE_THREADS=x", "--s3-write-threads x: allowed is a count from 1 to 4096"),
            ("WRITE_MODE=around", "--write-mode around: allowed is through or back"),
            ("METRICS_PORT=70000", "--metrics-port 70000: allowed is a port from 1 to 65535, 0 = off, or auto"),
            ("DRAIN_SECONDS=1d", "--drain-seconds 1d: allowed is seconds from 0 to 3600"),
            ("LOG_FORMAT=xml", "--log-format xml: not a format; allowed are text and json"),
        ] {
            assert_eq!(refused(&[written]), text, "{written}");
        }
        for (written, named) in [
            (["STORE=gs://b", "S3_BUCKET="], "STORE=gs://b: "),
            (["STORE=file://", "S3_BUCKET="], "STORE=file://: "),
            (["STORE=s3://", "S3_BUCKET="], "STORE=s3://: "),
            (["S3_BUCKET=a b", "STORE="], "S3_BUCKET=a b: "),
            (["S3_BUCKET=kv-prod", "S3_KEY_LAYOUT=sha1"], "S3_KEY_LAYOUT=sha1: "),
            (["S3_BUCKET=kv-prod", "S3_ENDPOINT=localhost:9000"], "S3_ENDPOINT=localhost:9000: "),
            (["S3_BUCKET=kv-prod", "S3_ADDRESSING=dns"], "S3_ADDRESSING=dns: "),
            (["S3_BUCKET=kv-prod", "AWS_REGION=a b"], "AWS_REGION=a b: "),
        ] {
            let text = refused(&written);
            assert!(text.starts_with(named), "{text}");
        }
        assert!(refused(&["LOG_LEVEL=loud"]).starts_with("--log-level loud: not a level"));
    }

    #[test]
    fn flags_and_variables_have_the_names_of_the_contract() {
        use clap::CommandFactory as _;
        let command = Config::command();
        command.clone().debug_assert();
        let pairs: Vec<_> = command
            .get_arguments()
            .filter_map(|argument| Some((argument.get_long()?, argument.get_env()?.to_str()?)))
            .collect();
        for (flag, variable) in &pairs {
            assert_eq!(flag.replace('-', "_").to_ascii_uppercase(), *variable);
        }
        for flag in
            "listen-addr router-addr advertise-addr shard-ports cores pin memory lru-size ttl-seconds data-dir disk \
                     store s3-bucket s3-endpoint aws-region s3-key-layout write-mode metrics-port log-level log-format"
                .split_whitespace()
        {
            assert!(pairs.iter().any(|(name, _)| *name == flag), "no --{flag}");
        }
    }
}
