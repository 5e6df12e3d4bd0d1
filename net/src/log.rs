//! Log lines for operators: one line each on standard error, as text or as JSON, in every program of ours alike.
//!
//! ```text
//! 2026-01-31T03:00:00.123456Z warn  membership: router http://10.0.0.1:50050 does not answer; serving on, joining again every second
//! └ time, UTC                 └ level └ part, the module that speaks
//! ```
//! A line is written by the core that has something to say, at once: logs are for what happens a few times a second at
//! most. What happens with every request is a metric.

use std::{
    fmt,
    io::{self, IsTerminal as _},
};

use tracing::{
    Event, Level, Subscriber,
    level_filters::{LevelFilter, STATIC_MAX_LEVEL},
};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime as _, SystemTime},
    },
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

/// Which lines are written, and how. Made by [`Log::parse`] from `LOG_LEVEL` and `LOG_FORMAT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Directives as [`EnvFilter`] takes them, nothing finer than what this build contains.
    directives: String,
    format: Format,
    /// A level was asked for that this build does not contain.
    is_lowered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// Why a log setting was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogError {
    /// `--log-level` has a part that is neither a level nor `part=level`.
    Level {
        /// That part.
        found: String,
    },
    /// `--log-format` is neither `text` nor `json`.
    Format {
        /// What was found.
        found: String,
    },
}

impl Log {
    /// Reads `LOG_LEVEL` (a level in any case, or directives separated by commas such as
    /// `warn,milena_core::membership=info`) and `LOG_FORMAT` (`text` or `json`).
    ///
    /// Parts that no directive names are written at `info`. Levels that were compiled out of this build count as the finest
    /// one that was not.
    ///
    /// # Errors
    /// A word that is no level and not followed by `=` and one: `EnvFilter` would take it for the name of a module and
    /// silence all others.
    pub fn parse(level: &str, format: &str) -> Result<Self, LogError> {
        let mut directives = Vec::new();
        let mut has_default = false;
        let mut is_lowered = false;
        for found in level.split(',').map(str::trim).filter(|found| !found.is_empty()) {
            let refused = || LogError::Level { found: found.to_owned() };
            let (part, wanted) = found.rsplit_once('=').map_or((None, found), |(part, level)| (Some(part), level));
            let wanted: LevelFilter = wanted.trim().parse().map_err(|_| refused())?;
            let level = wanted.min(STATIC_MAX_LEVEL);
            is_lowered |= level != wanted;
            has_default |= part.is_none();
            directives.push(part.map_or_else(|| level.to_string(), |part| format!("{part}={level}")));
            if EnvFilter::try_new(directives.last().expect("just pushed")).is_err() {
                return Err(refused());
            }
        }
        if !has_default {
            directives.push(LevelFilter::INFO.to_string());
        }
        let format = match format.trim().to_ascii_lowercase().as_str() {
            "text" => Format::Text,
            "json" => Format::Json,
            _ => return Err(LogError::Format { found: format.to_owned() }),
        };
        Ok(Self { directives: directives.join(","), format, is_lowered })
    }

    /// From here on, this process writes its log lines as set. Only the first call has an effect.
    pub fn start(&self) {
        let filter = EnvFilter::try_new(&self.directives).expect("tried in parse");
        let lines = tracing_subscriber::registry().with(filter);
        let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
        let started = match self.format {
            Format::Text => lines.with(layer.event_format(Line)).try_init(),
            Format::Json => lines.with(layer.json().flatten_event(true).with_current_span(false)).try_init(),
        };
        if started.is_ok() && self.is_lowered {
            tracing::info!("lines finer than {STATIC_MAX_LEVEL} are not in this build");
        }
    }
}

/// One event as one line of text.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        SystemTime.format_time(&mut line)?;
        let (level, colour) = match *event.metadata().level() {
            Level::ERROR => ("error", "\x1b[31m"),
            Level::WARN => ("warn ", "\x1b[33m"),
            Level::INFO => ("info ", "\x1b[32m"),
            Level::DEBUG => ("debug", "\x1b[34m"),
            Level::TRACE => ("trace", "\x1b[35m"),
        };
        let (colour, plain) = if line.has_ansi_escapes() { (colour, "\x1b[0m") } else { ("", "") };
        write!(line, " {colour}{level}{plain} {}: ", part(event.metadata().target()))?;
        context.format_fields(line.by_ref(), event)?;
        writeln!(line)
    }
}

/// The last name of a module's path: which part speaks.
fn part(target: &str) -> &str {
    target.rsplit("::").next().unwrap_or(target)
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Level { found } => write!(
                f,
                "--log-level {found}: not a level; allowed are off, error, warn, info, debug, trace, or part=level, \
                 separated by commas"
            ),
            Self::Format { found } => write!(f, "--log-format {found}: not a format; allowed are text and json"),
        }
    }
}

impl std::error::Error for LogError {}

/// The lines that this thread writes while `speak` runs.
#[cfg(test)]
pub(crate) fn written_during(speak: impl FnOnce()) -> String {
    let (writer, reader) = std::sync::mpsc::channel();
    let layer =
        tracing_subscriber::fmt::layer().with_writer(move || Sink(writer.clone())).with_ansi(false).event_format(Line);
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), speak);
    String::from_utf8(reader.into_iter().flatten().collect()).expect("lines are text")
}

#[cfg(test)]
struct Sink(std::sync::mpsc::Sender<Vec<u8>>);

#[cfg(test)]
impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_understood_in_any_case_and_with_directives() {
        for (level, directives) in [
            ("info", "info"),
            ("INFO", "info"),
            ("Warn", "warn"),
            ("off", "off"),
            ("", "info"),
            ("error,milena_core::membership=INFO", "error,milena_core::membership=info"),
            ("milena_net=warn", "milena_net=warn,info"),
        ] {
            assert_eq!(Log::parse(level, "text").unwrap().directives, directives, "{level:?}");
        }
    }

    #[test]
    fn a_word_that_is_no_level_is_refused_and_does_not_silence_the_log() {
        for (level, refused) in [("verbose", "verbose"), ("info,milena_net", "milena_net"), ("a=loud", "a=loud")] {
            assert_eq!(Log::parse(level, "text"), Err(LogError::Level { found: refused.into() }), "{level:?}");
        }
        assert_eq!(
            Log::parse("info", "xml").unwrap_err().to_string(),
            "--log-format xml: not a format; allowed are text and json"
        );
        assert!(Log::parse("info", "JSON").is_ok());
    }

    #[test]
    fn a_line_of_text_has_time_level_part_and_message() {
        let line = written_during(|| {
            tracing::warn!(target: "milena_core::membership", epoch = 41, "router left");
        });
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{line}");
        assert_eq!(rest, "warn  membership: router left epoch=41\n");
    }
}
