//! What a peer may make us hold, and how often it may make us work for nothing.
//!
//! Every number a peer can push against has its name in [`Profile`]; there are two of them. [`OUTSIDE`] is for clients
//! nobody here has met; [`LINK`] for the connections between routers and nodes, where a burst of cancelled calls is
//! a shard that was slow for a moment and not an attack.

use std::time::{Duration, Instant};

/// The limits of one kind of connection.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    /// Streams the peer may have open at once; more are refused with `REFUSED_STREAM`, which is safe to try again.
    pub streams_max: u32,
    /// What a stream may send before we take it in, in bytes.
    pub stream_window_bytes: u32,
    /// What all streams together may send before we take it in, in bytes.
    pub connection_window_bytes: u32,
    /// The largest frame we accept, in bytes; at least 16,384 (RFC 9113, section 4.2).
    pub frame_bytes_max: u32,
    /// A header list larger than this is answered with HTTP 431; four times as much ends the connection.
    pub header_list_bytes_max: u32,
    /// Bytes of unfinished requests that one connection may make us hold, and bytes of large answers: a read whose
    /// answer has no room waits until it has.
    pub held_bytes_max: usize,
    /// What an empty buffer may keep between two turns, in bytes: little where there are many connections that are silent.
    pub resting_bytes_max: usize,
    /// Streams the peer may reset, or make us reset, in a burst (CVE-2023-44487, CVE-2025-8671).
    pub resets: Allowance,
    /// PING, SETTINGS, PRIORITY, empty DATA and frames nobody knows, in a burst. Every frame that carries a call earns
    /// one more: some clients measure the network with a PING for each answer.
    pub idle_frames: Allowance,
    /// How long a connection may take to say the preface.
    pub handshake: Duration,
    /// How long unsent bytes may wait for a peer that reads nothing, or opens no window (CVE-2019-9517).
    pub write_stall: Duration,
}

/// A burst, and how quickly it is forgiven.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    /// How many at once.
    pub burst: u32,
    /// How many more each second after that.
    pub per_second: u32,
}

/// For clients.
pub static OUTSIDE: Profile = Profile {
    streams_max: 1024,
    stream_window_bytes: 1 << 20,
    connection_window_bytes: 8 << 20,
    frame_bytes_max: 16 << 10,
    header_list_bytes_max: 16 << 10,
    held_bytes_max: 64 << 20,
    resting_bytes_max: 32 << 10,
    resets: Allowance { burst: 400, per_second: 200 },
    idle_frames: Allowance { burst: 1_000, per_second: 200 },
    handshake: Duration::from_secs(10),
    write_stall: Duration::from_secs(30),
};

/// Between routers and nodes.
pub static LINK: Profile = Profile {
    streams_max: 4096,
    stream_window_bytes: 1 << 20,
    connection_window_bytes: 32 << 20,
    frame_bytes_max: 64 << 10,
    header_list_bytes_max: 16 << 10,
    held_bytes_max: 256 << 20,
    resting_bytes_max: 256 << 10,
    resets: Allowance { burst: 65_536, per_second: 65_536 },
    idle_frames: Allowance { burst: 65_536, per_second: 65_536 },
    handshake: Duration::from_secs(10),
    write_stall: Duration::from_secs(30),
};

/// Bytes that may wait in a connection's outbox before we neither read more nor turn more answers into frames.
pub const OUTBOX_BYTES_MAX: usize = 256 << 10;

/// Streams we have reset whose frames, still on their way, are taken in silence.
pub(crate) const RESET_STREAMS_REMEMBERED: usize = 1024;

const _: () = assert!(OUTSIDE.frame_bytes_max >= 16_384);
const _: () = assert!(OUTSIDE.connection_window_bytes <= i32::MAX as u32);
const _: () = assert!(LINK.connection_window_bytes <= i32::MAX as u32);

/// Counts one kind of event against its [`Allowance`]: a token bucket.
#[derive(Debug)]
pub(crate) struct Meter {
    allowance: Allowance,
    left: u32,
    refilled: Option<Instant>,
}

impl Meter {
    pub(crate) fn new(allowance: Allowance) -> Self {
        Self { allowance, left: allowance.burst, refilled: None }
    }

    /// Whether one more is within the allowance at `now`.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        if self.left == 0 || self.refilled.is_none() {
            self.refill(now);
        }
        let within = self.left > 0;
        self.left = self.left.saturating_sub(1);
        within
    }

    /// Allows one more, up to the burst.
    pub(crate) fn earn(&mut self) {
        self.left = (self.left + 1).min(self.allowance.burst);
    }

    fn refill(&mut self, now: Instant) {
        let Some(last) = self.refilled else {
            self.refilled = Some(now);
            return;
        };
        let earned =
            now.saturating_duration_since(last).as_micros() * u128::from(self.allowance.per_second) / 1_000_000;
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(earned).min(self.allowance.burst);
            self.refilled = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_only_the_rate() {
        let start = Instant::now();
        let mut meter = Meter::new(Allowance { burst: 3, per_second: 10 });
        let passed = |meter: &mut Meter, at_ms| meter.take(start + Duration::from_millis(at_ms));
        assert_eq!([0, 0, 0, 0].map(|at| passed(&mut meter, at)), [true, true, true, false]);
        assert_eq!([99, 100, 101].map(|at| passed(&mut meter, at)), [false, true, false]);
        // A long silence earns a burst, not more.
        assert_eq!([60_000; 4].map(|at| passed(&mut meter, at)), [true, true, true, false]);
    }
}
