//! What the settings of every server have in common: how a text is read, and what is said of one that makes no sense.
//!
//! ```text
//!   flags, environment ──clap──▶ texts ──read, number, cores, ...──▶ values
//!                                                └ SettingError: the flag, the value found, what is allowed
//! ```
//! Every setting is a flag and an environment variable; the flag wins. An empty variable counts as one that is not set,
//! because that is how a compose file spells "not set". Pure.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use milena_proto::limits::{CORES_MAX, VALUE_BYTES_MAX, VALUE_BYTES_MAX_DEFAULT};

use crate::log::{Log, LogError};

/// Exit code of a program whose settings were refused.
pub const EXIT_REFUSED: u8 = 2;

/// Longest that a stage of stopping may be given, in seconds.
const STAGE_SECONDS_MAX: u64 = 3600;

/// How long requests in progress may take once a program stops, unless it was told.
const DRAIN_SECONDS_DEFAULT: u64 = 10;

/// How sizes may be written, for messages.
pub const SIZES: &str = "bytes, or a number with KiB, MiB, GiB or TiB";

/// Why a setting was refused. The text is one line: the setting, the value found, what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingError {
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
}

/// What was written for a setting; nothing counts as not written.
#[must_use]
pub fn written(value: &Option<String>) -> Option<&str> {
    value.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

/// Reads a setting if it was written.
///
/// # Errors
/// `parse` does not know what to make of it.
pub fn read<T>(
    flag: &'static str,
    value: &Option<String>,
    allowed: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, SettingError> {
    let Some(text) = written(value) else { return Ok(None) };
    let illegal = || SettingError::Illegal { flag, found: text.to_owned(), allowed: allowed.to_owned() };
    parse(text).map(Some).ok_or_else(illegal)
}

/// Reads a whole number within a range if it was written.
///
/// # Errors
/// It is none, or outside.
pub fn number(
    flag: &'static str,
    value: &Option<String>,
    range: RangeInclusive<u64>,
    allowed: impl FnOnce() -> String,
) -> Result<Option<u64>, SettingError> {
    read(flag, value, &allowed(), |text| text.parse().ok().filter(|number| range.contains(number)))
}

/// Reads `true` or `false`, also as `yes`, `on`, `1` and their contraries, in any case, if it was written.
///
/// # Errors
/// It is neither.
pub fn boolean(flag: &'static str, value: &Option<String>) -> Result<Option<bool>, SettingError> {
    read(flag, value, "true or false", |text| match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    })
}

/// `--listen-addr`: `IP:PORT`, or `localhost:PORT`, because everybody writes it; else loopback with this port.
///
/// # Errors
/// It is something else.
pub fn listen(value: &Option<String>, default_port: u16) -> Result<SocketAddr, SettingError> {
    let allowed = format!("IP:PORT, such as 0.0.0.0:{default_port}");
    let parse = |text: &str| match text.strip_prefix("localhost:") {
        Some(port) => Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.parse().ok()?)),
        None => text.parse().ok(),
    };
    let default = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), default_port);
    Ok(read("--listen-addr", value, &allowed, parse)?.unwrap_or(default))
}

/// `--cores`, and whether each has a processor of its own (`pin`): all of `machine_cores`, or a count.
///
/// # Errors
/// It is no count from 1 to [`CORES_MAX`], or more than there are to pin to.
pub fn cores(value: &Option<String>, pin: bool, machine_cores: usize) -> Result<usize, SettingError> {
    let allowed = || format!("all, or a count from 1 to {CORES_MAX}");
    let cores = match written(value) {
        None | Some("all") => return Ok(machine_cores.clamp(1, CORES_MAX)),
        Some(_) => number("--cores", value, 1..=CORES_MAX as u64, allowed)?.expect("it is written"),
    };
    let cores = usize::try_from(cores).expect("at most CORES_MAX");
    if pin && cores > machine_cores {
        return Err(SettingError::CoresBeyondMachine { cores, machine_cores });
    }
    Ok(cores)
}

/// `--metrics-port`: on the address of `listen`; `None` = off, port 0 = any free one.
///
/// # Errors
/// It is no port, or the one of `listen`.
pub fn metrics(
    value: &Option<String>,
    default_port: u16,
    listen: SocketAddr,
) -> Result<Option<SocketAddr>, SettingError> {
    if written(value) == Some("auto") {
        return Ok(Some(SocketAddr::new(listen.ip(), 0)));
    }
    let allowed = || "a port from 1 to 65535, 0 = off, or auto".to_owned();
    let port = number("--metrics-port", value, 0..=65535, allowed)?.map_or(default_port, |port| port as u16);
    if port != 0 && port == listen.port() {
        return Err(SettingError::MetricsPortIsListenPort { port });
    }
    Ok((port != 0).then(|| SocketAddr::new(listen.ip(), port)))
}

/// `--drain-seconds`.
///
/// # Errors
/// It is no number of seconds up to an hour.
pub fn drain(value: &Option<String>) -> Result<Duration, SettingError> {
    let allowed = || format!("seconds from 0 to {STAGE_SECONDS_MAX}");
    let seconds = number("--drain-seconds", value, 0..=STAGE_SECONDS_MAX, allowed)?;
    Ok(Duration::from_secs(seconds.unwrap_or(DRAIN_SECONDS_DEFAULT)))
}

/// `--value-max`: the largest value in bytes.
///
/// # Errors
/// It is no size from 1 to [`VALUE_BYTES_MAX`].
pub fn value_bytes_max(value: &Option<String>) -> Result<usize, SettingError> {
    let allowed = format!("a size from 1 to {}", Size(VALUE_BYTES_MAX as u64));
    let in_range = |text: &str| {
        let bytes = usize::try_from(size(text)?).ok()?;
        (1..=VALUE_BYTES_MAX).contains(&bytes).then_some(bytes)
    };
    Ok(read("--value-max", value, &allowed, in_range)?.unwrap_or(VALUE_BYTES_MAX_DEFAULT))
}

/// `--log-level` and `--log-format`.
///
/// # Errors
/// One of them is none.
pub fn log(level: &Option<String>, format: &Option<String>) -> Result<Log, SettingError> {
    Log::parse(written(level).unwrap_or("info"), written(format).unwrap_or("text")).map_err(SettingError::Log)
}

/// Units a size may be written in. A letter alone is the power of two, as everywhere in memory.
const UNITS: [(&str, u64); 13] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
    ("t", 1 << 40),
    ("b", 1),
];

/// Bytes of `512MiB`, `1.5 GiB`, `64k`, `1048576`.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| lower.strip_suffix(name).map(|number| (number.trim_end(), *unit)))
        .unwrap_or((&lower, 1));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 6 || (unit == 1 && number.contains('.')) {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    // At most 6 digits of at most a TiB: below 2^60.
    let fraction = fraction.parse::<u64>().ok()? * unit / 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    whole.checked_add(fraction)
}

/// Bytes as a person would write them.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.iter().find(|(unit, _)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Illegal { flag, found, allowed } => {
                write!(f, "{flag} {}: allowed is {allowed}", found.escape_debug())
            }
            Self::Log(error) => error.fmt(f),
            Self::CoresBeyondMachine { cores, machine_cores } => write!(
                f,
                "--cores {cores}: this process may use {machine_cores}; lower CORES, or set PIN=false to let them share \
                 processors"
            ),
            Self::MetricsPortIsListenPort { port } => {
                write!(f, "--metrics-port {port}: --listen-addr has that port already; set another one, or 0 for none")
            }
        }
    }
}

impl std::error::Error for SettingError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("1048576", 1 << 20),
            ("512MiB", 512 << 20),
            ("512 mib", 512 << 20),
            ("1.5GiB", 3 << 29),
            ("2g", 2 << 30),
            ("10MB", 10_000_000),
            ("64k", 64 << 10),
            ("0", 0),
            ("7b", 7),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in
            ["", "MiB", "-1", "1.5", "1e3", "12 parsecs", "99999999999999999999", "99999999999TiB", "1..2g", ".5g"]
        {
            assert_eq!(size(text), None, "{text}");
        }
        assert_eq!(Size(512 << 20).to_string(), "512MiB");
        assert_eq!(Size(1000).to_string(), "1000 bytes");
    }
}
