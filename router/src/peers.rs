//! Whether a node may be asked now, and whether a call that failed may be asked again. One for each core; pure.
//!
//! ```text
//!              3 transport failures in a row
//!    closed ──────────────────────────────────▶ open ◀───────────────┐
//!      ▲  every call passes                      │ none passes       │ no answer: twice the pause, up to 10 s
//!      │                                         ▼ after the pause   │
//!      └────────────────── any answer ────────── probing ────────────┘
//!                                                one call of our own in the background
//! ```
//! A breaker makes calls for a node that is gone fail at once, and spares the node that comes back the rush: requests are
//! never used to try whether it has. When more than half of the nodes are open it is rather us who are cut off, or
//! everything is slow: then all are tried.
//!
//! **A retry must not apply a write twice.** A write is sent again only when it is certain that nothing was done: it was never
//! sent, its stream was refused or lies above the GOAWAY, or the node said that it does not own the key. A read may
//! be sent again after any transport failure. Either once, and only while retries are at most a fifth of what is in
//! the air ([`RETRIES_MIN`] are always allowed): a struggling cluster must not be given twice the load.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::members::{Member, State, View};

/// Transport failures in a row that open a breaker.
pub const FAILURES_MAX: u32 = 3;

/// The first pause before a node is probed.
pub const PAUSE_MIN: Duration = Duration::from_secs(1);

/// The longest.
pub const PAUSE_MAX: Duration = Duration::from_secs(10);

/// How long a node may take to answer a probe.
pub const PROBE_MAX: Duration = Duration::from_secs(1);

/// Calls of one core that may be in the air to one node; more are turned away, so that a node that hangs does not hold
/// everybody's memory.
pub const INFLIGHT_MAX: usize = 4096;

/// Retries that may be in the air for every hundred requests.
pub const RETRY_PERCENT: usize = 20;

/// Retries that may be in the air however few the requests.
pub const RETRIES_MIN: usize = 3;

/// The nodes as one core has met them, and its requests in the air.
#[derive(Debug)]
pub struct Peers {
    /// By slot.
    nodes: Vec<Option<Peer>>,
    /// Tells a slot's member from the one before it.
    generation: u64,
    node_count: usize,
    open_count: usize,
    request_count: usize,
    retry_count: usize,
}

#[derive(Debug)]
struct Peer {
    member: Arc<Member>,
    generation: u64,
    breaker: Breaker,
    inflight: usize,
    /// Calls since this core began to follow it.
    call_count: u64,
}

#[derive(Clone, Copy, Debug)]
enum Breaker {
    Closed { failure_count: u32 },
    Open { until: Instant, pause: Duration },
    Probing { pause: Duration },
}

/// A call in the air, to be given back with [`Peers::end`].
#[derive(Debug)]
#[must_use = "the call counts as being in the air until it is given to Peers::end"]
pub struct Call {
    slot: usize,
    generation: u64,
}

/// A probe in the air, to be given back with [`Peers::probed`].
#[derive(Debug)]
#[must_use = "the node is not probed again before the probe is given to Peers::probed"]
pub struct Probe {
    slot: usize,
    generation: u64,
    /// Whom to ask.
    pub member: Arc<Member>,
}

/// Why a node is not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barred {
    /// It failed too often and has not been seen since.
    Open,
    /// [`INFLIGHT_MAX`] calls are in the air to it.
    Full,
}

/// How a call ended, for the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The node answered, whatever it said.
    Answered,
    /// It could not be reached, or the connection broke.
    Broken,
    /// The caller went away or its time was up before the node answered, which says little about the node.
    Abandoned,
}

/// Whether a call reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It changes nothing, so it may happen twice.
    Read,
    /// It must not happen twice.
    Write,
}

impl Access {
    /// Whether a call that failed in transport may be sent again. `is_undone`: it is certain that nothing happened.
    #[must_use]
    pub fn may_repeat(self, is_undone: bool) -> bool {
        self == Self::Read || is_undone
    }
}

impl Peers {
    /// Knows nobody.
    #[must_use]
    pub fn new() -> Self {
        Self { nodes: Vec::new(), generation: 0, node_count: 0, open_count: 0, request_count: 0, retry_count: 0 }
    }

    /// Follows the table: what is known of a node is kept while it stays where it is and does not die.
    ///
    /// A node that returns, or has restarted, begins with a closed breaker: it has just joined, so it is there.
    pub fn follow(&mut self, view: &View) {
        self.generation += 1;
        let generation = self.generation;
        let mut before = std::mem::take(&mut self.nodes).into_iter();
        for slot in view.slots() {
            let known = before.next().flatten();
            let peer = slot.as_ref().filter(|slot| slot.state != State::Dead).map(|slot| match known {
                Some(known) if known.is_still(&slot.member) => Peer { member: Arc::clone(&slot.member), ..known },
                _ => Peer {
                    member: Arc::clone(&slot.member),
                    generation,
                    breaker: Breaker::Closed { failure_count: 0 },
                    inflight: 0,
                    call_count: 0,
                },
            });
            self.nodes.push(peer);
        }
        self.node_count = self.nodes.iter().flatten().count();
        self.open_count = self.nodes.iter().flatten().filter(|peer| peer.is_open()).count();
    }

    /// Begins a call to the member of `slot`. O(1).
    ///
    /// # Errors
    /// When it is not to be asked now. A slot without a living member is [`Barred::Open`].
    pub fn begin(&mut self, slot: usize) -> Result<Call, Barred> {
        let all_are_tried = self.open_count * 2 > self.node_count;
        let peer = self.nodes.get_mut(slot).and_then(Option::as_mut).ok_or(Barred::Open)?;
        if peer.is_open() && !all_are_tried {
            return Err(Barred::Open);
        }
        if peer.inflight >= INFLIGHT_MAX {
            return Err(Barred::Full);
        }
        peer.inflight += 1;
        peer.call_count += 1;
        Ok(Call { slot, generation: peer.generation })
    }

    /// Ends a call. Returns the node when that opened its breaker. Asks for the time only then.
    #[expect(clippy::needless_pass_by_value, reason = "a call ends once")]
    pub fn end(&mut self, call: Call, ending: Ending, now: impl FnOnce() -> Instant) -> Option<Arc<Member>> {
        let Call { slot, generation } = call;
        let peer = self.peer(slot, generation)?;
        peer.inflight -= 1;
        match (peer.breaker, ending) {
            (_, Ending::Abandoned) | (Breaker::Open { .. } | Breaker::Probing { .. }, Ending::Broken) => None,
            (_, Ending::Answered) => {
                self.close(slot);
                None
            }
            (Breaker::Closed { failure_count }, Ending::Broken) if failure_count + 1 < FAILURES_MAX => {
                peer.breaker = Breaker::Closed { failure_count: failure_count + 1 };
                None
            }
            (Breaker::Closed { .. }, Ending::Broken) => {
                peer.breaker = Breaker::Open { until: now() + PAUSE_MIN, pause: PAUSE_MIN };
                let member = Arc::clone(&peer.member);
                self.open_count += 1;
                Some(member)
            }
        }
    }

    /// The nodes whose pause is over: each is to be asked anything, in the background. O(nodes) while any is open, else O(1).
    pub fn probes_due(&mut self, now: Instant) -> Vec<Probe> {
        if self.open_count == 0 {
            return Vec::new();
        }
        let mut due = Vec::new();
        for (slot, peer) in self.nodes.iter_mut().enumerate() {
            let Some(peer) = peer else { continue };
            if let Breaker::Open { until, pause } = peer.breaker
                && until <= now
            {
                peer.breaker = Breaker::Probing { pause };
                due.push(Probe { slot, generation: peer.generation, member: Arc::clone(&peer.member) });
            }
        }
        due
    }

    /// Takes a probe's result. `true` when that closed the breaker.
    pub fn probed(&mut self, probe: &Probe, has_answered: bool, now: Instant) -> bool {
        let Some(peer) = self.peer(probe.slot, probe.generation) else { return false };
        let Breaker::Probing { pause } = peer.breaker else { return false };
        if has_answered {
            self.close(probe.slot);
            return true;
        }
        let pause = (pause * 2).min(PAUSE_MAX);
        peer.breaker = Breaker::Open { until: now + pause, pause };
        false
    }

    /// A request is in the air from here to [`Peers::end_request`], with its retry if it has one.
    pub fn begin_request(&mut self) {
        self.request_count += 1;
    }

    /// The request has its answer. `was_retried`: [`Peers::begin_retry`] allowed it to be sent again.
    pub fn end_request(&mut self, was_retried: bool) {
        self.request_count -= 1;
        self.retry_count -= usize::from(was_retried);
    }

    /// Whether one of the requests in the air may be sent again; counts it when it may.
    pub fn begin_retry(&mut self) -> bool {
        let is_allowed = self.retry_count < (self.request_count * RETRY_PERCENT / 100).max(RETRIES_MIN);
        self.retry_count += usize::from(is_allowed);
        is_allowed
    }

    /// Nodes whose breaker is not closed.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.open_count
    }

    /// Calls in the air, to all nodes.
    #[must_use]
    pub fn inflight(&self) -> usize {
        self.nodes.iter().flatten().map(|peer| peer.inflight).sum()
    }

    /// Calls to each node since this core began to follow it.
    #[must_use]
    pub fn node_requests(&self) -> Vec<(Arc<Member>, u64)> {
        self.nodes.iter().flatten().map(|peer| (Arc::clone(&peer.member), peer.call_count)).collect()
    }

    fn close(&mut self, slot: usize) {
        let peer = self.nodes[slot].as_mut().expect("the caller found it there");
        self.open_count -= usize::from(peer.is_open());
        peer.breaker = Breaker::Closed { failure_count: 0 };
    }

    fn peer(&mut self, slot: usize, generation: u64) -> Option<&mut Peer> {
        self.nodes.get_mut(slot)?.as_mut().filter(|peer| peer.generation == generation)
    }
}

impl Default for Peers {
    fn default() -> Self {
        Self::new()
    }
}

impl Peer {
    fn is_open(&self) -> bool {
        !matches!(self.breaker, Breaker::Closed { .. })
    }

    /// Whether this is the same process at the same place, as far as calls are concerned.
    fn is_still(&self, member: &Member) -> bool {
        self.member.node_id == member.node_id
            && self.member.incarnation == member.incarnation
            && self.member.address == member.address
            && self.member.shard_addresses == member.shard_addresses
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::members::Members;

    struct Cluster {
        members: Members,
        peers: Peers,
        now: Instant,
    }

    fn cluster(node_count: usize) -> Cluster {
        let mut cluster = Cluster { members: Members::new(), peers: Peers::new(), now: Instant::now() };
        for index in 0..node_count {
            cluster.join(index);
        }
        cluster
    }

    impl Cluster {
        fn join(&mut self, index: usize) {
            self.join_as(index, 1);
        }

        fn join_as(&mut self, index: usize, incarnation: u64) {
            let member = Member {
                node_id: format!("n{index}"),
                address: format!("http://n{index}:1"),
                shard_addresses: Vec::new(),
                weight: u32::MAX,
                incarnation,
                zone: String::new(),
            };
            self.members.join(member, self.now).unwrap();
            self.peers.follow(&self.members.view());
        }

        fn call(&mut self, slot: usize, ending: Ending) -> Result<bool, Barred> {
            let call = self.peers.begin(slot)?;
            Ok(self.peers.end(call, ending, || self.now).is_some())
        }

        fn break_open(&mut self, slot: usize) {
            for _ in 0..FAILURES_MAX {
                let _ = self.call(slot, Ending::Broken);
            }
        }

        fn probe(&mut self, after: Duration) -> Vec<Probe> {
            self.now += after;
            self.peers.probes_due(self.now)
        }
    }

    #[test]
    fn three_failures_in_a_row_open_a_breaker_and_two_do_not() {
        let mut cluster = cluster(3);
        assert_eq!(cluster.call(0, Ending::Broken), Ok(false));
        assert_eq!(cluster.call(0, Ending::Broken), Ok(false));
        assert_eq!(cluster.call(0, Ending::Answered), Ok(false));
        assert_eq!(cluster.call(0, Ending::Broken), Ok(false));
        assert_eq!(cluster.call(0, Ending::Abandoned), Ok(false));
        assert_eq!(cluster.call(0, Ending::Broken), Ok(false));
        assert_eq!(cluster.call(0, Ending::Broken), Ok(true));
        assert_eq!(cluster.call(0, Ending::Answered), Err(Barred::Open));
        assert_eq!(cluster.call(1, Ending::Answered), Ok(false), "the others are none the worse");
    }

    #[test]
    fn a_node_is_probed_after_pauses_that_double_up_to_ten_seconds_and_an_answer_closes() {
        let mut cluster = cluster(3);
        cluster.break_open(0);
        assert!(cluster.probe(PAUSE_MIN - Duration::from_millis(1)).is_empty());
        cluster.now += Duration::from_millis(1);
        for seconds in [2, 4, 8, 10, 10] {
            let probe = cluster.peers.probes_due(cluster.now).pop().expect("the pause is over");
            assert!(cluster.probe(PAUSE_MAX * 2).is_empty(), "one probe at a time");
            assert!(!cluster.peers.probed(&probe, false, cluster.now));
            assert!(cluster.probe(Duration::from_millis(seconds * 1000 - 1)).is_empty());
            assert_eq!(cluster.call(0, Ending::Answered), Err(Barred::Open));
            cluster.now += Duration::from_millis(1);
        }
        let probe = cluster.peers.probes_due(cluster.now).pop().unwrap();
        assert!(cluster.peers.probed(&probe, true, cluster.now));
        assert_eq!(cluster.call(0, Ending::Answered), Ok(false));
        assert_eq!(cluster.peers.open_count(), 0);
    }

    #[test]
    fn when_more_than_half_are_open_all_are_tried() {
        let mut cluster = cluster(4);
        cluster.break_open(0);
        cluster.break_open(1);
        assert_eq!(cluster.call(0, Ending::Broken), Err(Barred::Open), "half is not more than half");
        cluster.break_open(2);
        assert_eq!(cluster.call(0, Ending::Broken), Ok(false));
        assert_eq!(cluster.call(1, Ending::Answered), Ok(false));
        assert_eq!(cluster.call(0, Ending::Broken), Err(Barred::Open), "one of them answered: half again");
    }

    #[test]
    fn the_only_node_is_always_tried() {
        let mut cluster = cluster(1);
        cluster.break_open(0);
        assert_eq!(cluster.call(0, Ending::Answered), Ok(false));
    }

    #[test]
    fn a_node_that_died_and_returned_begins_anew_and_calls_from_before_do_not_count() {
        let mut cluster = cluster(3);
        cluster.break_open(0);
        let old_call = cluster.peers.begin(1).unwrap();
        cluster.now += Duration::from_secs(6);
        cluster.members.tick(cluster.now);
        cluster.peers.follow(&cluster.members.view());
        assert_eq!(cluster.call(0, Ending::Answered), Err(Barred::Open), "nobody is alive there");
        assert!(cluster.probe(PAUSE_MAX).is_empty(), "the dead are not probed");
        (0..3).for_each(|index| cluster.join(index));
        assert_eq!(cluster.call(0, Ending::Answered), Ok(false));
        assert!(cluster.peers.end(old_call, Ending::Broken, || cluster.now).is_none());
        assert_eq!(cluster.peers.inflight(), 0);
    }

    #[test]
    fn a_node_that_has_restarted_is_called_again_at_once() {
        let mut cluster = cluster(3);
        cluster.break_open(0);
        cluster.join_as(0, 2);
        assert_eq!(cluster.call(0, Ending::Answered), Ok(false));
    }

    #[test]
    fn a_change_elsewhere_in_the_table_changes_nothing_for_a_node() {
        let mut cluster = cluster(3);
        cluster.break_open(0);
        let call = cluster.peers.begin(1).unwrap();
        cluster.join(3);
        assert_eq!(cluster.call(0, Ending::Answered), Err(Barred::Open));
        assert_eq!(cluster.peers.inflight(), 1);
        cluster.peers.end(call, Ending::Answered, || cluster.now);
        assert_eq!(cluster.peers.inflight(), 0);
    }

    #[test]
    fn a_node_that_hangs_holds_no_more_than_its_share() {
        let mut cluster = cluster(3);
        let mut calls: Vec<Call> = (0..INFLIGHT_MAX).map(|_| cluster.peers.begin(0).unwrap()).collect();
        assert_eq!(cluster.call(0, Ending::Answered), Err(Barred::Full));
        assert_eq!(cluster.call(1, Ending::Answered), Ok(false));
        cluster.peers.end(calls.pop().unwrap(), Ending::Abandoned, || cluster.now);
        assert_eq!(cluster.call(0, Ending::Answered), Ok(false));
        assert_eq!(cluster.peers.inflight(), INFLIGHT_MAX - 1);
    }

    #[test]
    fn retries_are_at_most_a_fifth_of_what_is_in_the_air_and_three_are_always_allowed() {
        let mut peers = Peers::new();
        (0..3).for_each(|_| peers.begin_request());
        assert_eq!((0..5).filter(|_| peers.begin_retry()).count(), 3);
        (0..3).for_each(|_| peers.end_request(true));

        (0..100).for_each(|_| peers.begin_request());
        assert_eq!((0..100).filter(|_| peers.begin_retry()).count(), 20);
        peers.end_request(true);
        assert!(!peers.begin_retry(), "a fifth of 99 is 19");
        (0..99).for_each(|index| peers.end_request(index < 19));
        assert_eq!((peers.request_count, peers.retry_count), (0, 0));
    }

    #[test]
    fn a_write_is_repeated_only_when_certainly_undone() {
        assert!(Access::Read.may_repeat(false));
        assert!(Access::Read.may_repeat(true));
        assert!(Access::Write.may_repeat(true));
        assert!(!Access::Write.may_repeat(false));
    }
}
