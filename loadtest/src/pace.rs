//! Hands the sends of an open loop to the streams that are free. One for each core; pure.
//!
//! ```text
//!                    due, a stream is free
//!    Arrivals ─────────────────────────────▶ stream ──sends──▶ … answered
//!        │                                      ▲                 │
//!        │ due, none is free: it waits          └─ due by now ────┤
//!        │ in the schedule, nowhere else                          │ nothing due
//!        └───────────────────────────────────── free, in turn ◀───┘
//! ```
//! Streams are taken in turn, so that all connections carry load at every rate.

use std::{
    collections::VecDeque,
    task::{Context, Poll, Waker},
    time::Duration,
};

use crate::schedule::Arrivals;

/// When what happens, as times since the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phases {
    /// The warm-up ends and the measured part begins.
    pub measured_from: Duration,
    /// The measured part ends.
    pub measured_to: Duration,
    /// Nothing is sent any more.
    pub end: Duration,
}

/// A send that a stream is to make now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// When it was meant to be made.
    pub due: Duration,
    /// When it could have been made: it was due, and the stream was free.
    pub possible: Duration,
}

/// What the pacer has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A stream was given a send.
    Given,
    /// All streams are busy; they take what is due themselves.
    Full,
    /// Nothing before this.
    Until(Duration),
    /// Nothing any more.
    Over,
}

/// The sends of a core and its streams.
#[derive(Debug)]
pub struct Pace {
    arrivals: Arrivals,
    phases: Phases,
    streams: Vec<Stream>,
    free: VecDeque<usize>,
    is_over: bool,
    pacer: Option<Waker>,
    unsent_count: u64,
}

#[derive(Debug, Default)]
struct Stream {
    given: Option<Turn>,
    waker: Option<Waker>,
}

impl Pace {
    /// `stream_count` streams, all of which are yet to ask for a turn.
    #[must_use]
    pub fn new(arrivals: Arrivals, phases: Phases, stream_count: usize) -> Self {
        let streams = (0..stream_count).map(|_| Stream::default()).collect();
        let free = VecDeque::with_capacity(stream_count);
        Self { arrivals, phases, streams, free, is_over: false, pacer: None, unsent_count: 0 }
    }

    /// Sends that were due in the measured part and were not made before its end.
    #[must_use]
    pub fn unsent_count(&self) -> u64 {
        self.unsent_count
    }

    /// What `stream`, which is free, is to send; ready with `None` when all is over.
    pub fn poll_turn(&mut self, stream: usize, now: Duration, cx: &mut Context<'_>) -> Poll<Option<Turn>> {
        if let Some(turn) = self.streams[stream].given.take() {
            return Poll::Ready(Some(turn));
        }
        if self.is_over {
            return Poll::Ready(None);
        }
        let is_waiting = self.streams[stream].waker.is_some();
        if !is_waiting {
            if let Some(due) = self.take(now) {
                return Poll::Ready(Some(Turn { due, possible: now }));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            self.free.push_back(stream);
            if let Some(pacer) = self.pacer.take() {
                pacer.wake();
            }
        }
        self.streams[stream].waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Gives one send that is due to a stream that is free.
    pub fn step(&mut self, now: Duration) -> Step {
        if self.free.is_empty() && !self.is_over {
            return Step::Full;
        }
        let due = self.take(now);
        if self.is_over {
            self.streams.iter_mut().filter_map(|stream| stream.waker.take()).for_each(Waker::wake);
            return Step::Over;
        }
        let Some(due) = due else { return Step::Until(self.arrivals.next()) };
        let index = self.free.pop_front().expect("seen above");
        let stream = &mut self.streams[index];
        stream.given = Some(Turn { due, possible: due });
        stream.waker.take().expect("a free stream waits").wake();
        Step::Given
    }

    /// Ready when a stream is free, or all is over.
    pub fn poll_free(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_over || !self.free.is_empty() {
            return Poll::Ready(());
        }
        self.pacer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The next send that is due. What was due in the measured part is let go once that is over: it is counted, and the
    /// run is not valid if there is much of it.
    fn take(&mut self, now: Duration) -> Option<Duration> {
        let Phases { measured_from, measured_to, end } = self.phases;
        if now >= measured_to && self.arrivals.next() < measured_to {
            self.unsent_count += self.arrivals.skip(measured_from, measured_to);
        }
        let due = self.arrivals.next();
        if now >= end || due >= end {
            self.is_over = true;
            if let Some(pacer) = self.pacer.take() {
                pacer.wake();
            }
            return None;
        }
        if due > now {
            return None;
        }
        self.arrivals.pass();
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: f64 = 1000.0;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn pace(streams: usize, measured_to: f64, end: f64) -> Pace {
        let phases = Phases { measured_from: seconds(0.1), measured_to: seconds(measured_to), end: seconds(end) };
        Pace::new(Arrivals::poisson(RATE, 1, 0), phases, streams)
    }

    fn turn(pace: &mut Pace, stream: usize, now: Duration) -> Poll<Option<Turn>> {
        pace.poll_turn(stream, now, &mut Context::from_waker(Waker::noop()))
    }

    /// The due times of the same schedule.
    fn schedule(count: usize) -> Vec<Duration> {
        let mut arrivals = Arrivals::poisson(RATE, 1, 0);
        let next = |_| {
            let next = arrivals.next();
            arrivals.pass();
            next
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn a_send_is_given_when_it_is_due_to_the_stream_that_waits_longest() {
        let due = schedule(2);
        let mut pace = pace(2, 1.0, 1.0);
        assert!(turn(&mut pace, 1, Duration::ZERO).is_pending());
        assert!(turn(&mut pace, 0, Duration::ZERO).is_pending());
        assert_eq!(pace.step(Duration::ZERO), Step::Until(due[0]));
        assert_eq!(pace.step(due[0]), Step::Given);
        assert!(turn(&mut pace, 0, due[0]).is_pending());
        assert_eq!(turn(&mut pace, 1, due[0]), Poll::Ready(Some(Turn { due: due[0], possible: due[0] })));
    }

    #[test]
    fn a_stream_that_was_busy_when_sends_were_due_makes_each_of_them_from_when_it_was_due() {
        let due = schedule(3);
        let mut pace = pace(1, 1.0, 1.0);
        let later = seconds(0.5);
        for due in due {
            assert_eq!(turn(&mut pace, 0, later), Poll::Ready(Some(Turn { due, possible: later })));
        }
    }

    #[test]
    fn the_pacer_waits_for_a_free_stream_and_not_for_the_next_send() {
        let mut pace = pace(1, 1.0, 1.0);
        assert_eq!(pace.step(seconds(0.5)), Step::Full);
        assert!(pace.poll_free(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(turn(&mut pace, 0, Duration::ZERO).is_pending());
        assert!(pace.poll_free(&mut Context::from_waker(Waker::noop())).is_ready());
    }

    #[test]
    fn what_was_not_sent_in_time_is_counted_and_the_schedule_goes_on() {
        let mut pace = pace(1, 1.0, 2.0);
        let Poll::Ready(Some(next)) = turn(&mut pace, 0, seconds(1.5)) else { panic!("more is due") };
        assert!(next.due >= seconds(1.0));
        assert!(pace.unsent_count().abs_diff(900) < 3, "{}", pace.unsent_count());
    }

    #[test]
    fn at_the_end_every_stream_is_sent_home() {
        let mut pace = pace(2, 1.0, 1.0);
        assert!(turn(&mut pace, 0, Duration::ZERO).is_pending());
        assert_eq!(pace.step(seconds(1.0)), Step::Over);
        assert_eq!(turn(&mut pace, 0, seconds(1.0)), Poll::Ready(None));
        assert_eq!(turn(&mut pace, 1, seconds(1.0)), Poll::Ready(None));
        assert!(pace.unsent_count() > 800);
    }
}
