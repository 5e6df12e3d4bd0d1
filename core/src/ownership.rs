//! Which keys are this node's, by the table that its router keeps; and how every core learns of a newer one.
//!
//! ```text
//!   Join's answer names another epoch ─┐                               1 every shard doubts what it may have missed
//!   a stray at a core's own port ──────┴─▶ Follower ─ Topology ─▶ View ┤     all have done so
//!                                          on core 0                   2 every door goes by the view
//!
//!   door of a core's own port   ours, or nobody can tell ──────────────▶ answered
//!                               another's ── the router is asked once ─┬ ours by now ──▶ answered
//!                                                                      └ another's ────▶ FAILED_PRECONDITION, with our epoch
//! ```
//! A node may know less than whoever asks it: its own table is as old as its last renewal. So it refuses a key only after it
//! has asked the router again, and by then knows at least as much as the router did when the request was sent on. A table
//! that cannot be had refuses nothing: nodes go on serving while the router is gone.
//!
//! The doors come second, because a door may hand a key to another core: that one must not believe its old copy any more.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use milena_net::{grpc::client::Channel, mesh, task};
use milena_proto::{
    method::ROUTER_TOPOLOGY,
    placement::{self, KeyHash},
    router_server::{TopologyRequest, TopologyResponse},
};

use crate::membership::{Change, Tenures};

/// How long one question for the table may take.
pub const FOLLOW_DEADLINE: Duration = Duration::from_secs(2);

/// Between two questions for the table: however many strays come, the router is asked no more often.
pub const FOLLOW_PAUSE: Duration = Duration::from_millis(20);

/// Strays of all cores that may wait for the next answer; more are refused.
pub const ASKS_MAX: usize = 4_096;

/// The largest table that is followed, in bytes: a thousand nodes of 256 cores, or many more of fewer.
pub const TOPOLOGY_BYTES_MAX: usize = 16 << 20;

/// The router's table at one epoch, as far as ownership goes. Never changes, so that cores share it.
#[derive(Debug, PartialEq, Eq)]
pub struct View {
    epoch: u64,
    weights: Vec<u64>,
    /// This node's slot; `None` = it is not in the table, or dead there.
    own: Option<usize>,
}

impl View {
    /// What `topology` says to the node with this id.
    #[must_use]
    pub fn read(topology: &TopologyResponse, node_id: &str) -> Self {
        let slots = &topology.slots;
        let own = slots.iter().position(|slot| slot.node_id == node_id && slot.weight > 0);
        Self { epoch: topology.epoch, weights: slots.iter().map(|slot| placement::weight(slot.weight)).collect(), own }
    }

    /// The number of the table.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether keys with this hash are this node's. O(log slots).
    #[must_use]
    pub fn owns(&self, hash: KeyHash) -> bool {
        self.own.is_some() && placement::slot(hash, &self.weights) == self.own
    }

    /// Whether they are certainly another node's. One that is not in the table has been told nothing.
    fn is_anothers(&self, hash: KeyHash) -> bool {
        self.own.is_some() && placement::slot(hash, &self.weights) != self.own
    }
}

/// What a core's own port knows about ownership.
#[derive(Debug)]
pub struct Ownership {
    view: RefCell<Option<Arc<View>>>,
    ask: mesh::Sender<Ask>,
}

/// Why a request for a stray key is not answered. Nothing was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stray {
    /// It belongs to another node, by the table of this epoch.
    Anothers {
        /// Which table.
        epoch: u64,
    },
    /// [`ASKS_MAX`] wait already.
    TooMany,
}

impl Ownership {
    /// Knows nothing yet; asks through `ask`.
    #[must_use]
    pub fn new(ask: mesh::Sender<Ask>) -> Self {
        Self { view: RefCell::default(), ask }
    }

    /// Goes by `view` from here on.
    pub fn open(&self, view: Arc<View>) {
        *self.view.borrow_mut() = Some(view);
    }

    /// Whether a key may be another node's, so that [`Ownership::check`] must be asked. O(log slots).
    #[must_use]
    pub fn is_stray(&self, hash: KeyHash) -> bool {
        self.view.borrow().as_ref().is_some_and(|view| view.is_anothers(hash))
    }

    /// Asks for the newest table, and says whether one of these strays is another node's by that.
    ///
    /// # Errors
    /// One is, or too many wait. When there is no newer table to be had, nobody can tell, and that is no error.
    pub async fn check(&self, strays: &[KeyHash]) -> Result<(), Stray> {
        match ask(&self.ask).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(TooMany) => return Err(Stray::TooMany),
        }
        let view = self.view.borrow();
        match view.as_ref().filter(|view| strays.iter().any(|hash| view.is_anothers(*hash))) {
            Some(view) => Err(Stray::Anothers { epoch: view.epoch }),
            None => Ok(()),
        }
    }
}

/// A wish for the newest table; it is told whether there was one to be had.
#[derive(Debug)]
pub struct Ask(mesh::Sender<bool>);

/// There is no room for another [`Ask`].
#[derive(Debug)]
pub struct TooMany;

/// Asks the follower; returns when every core knows the router's table of a moment after this began, with `true`, or when
/// that cannot be had.
///
/// # Errors
/// [`ASKS_MAX`] wait already.
pub async fn ask(follower: &mesh::Sender<Ask>) -> Result<bool, TooMany> {
    let (answer, mut known) = mesh::mailbox(1);
    match follower.try_send(Ask(answer)) {
        Ok(()) => Ok(known.recv().await.unwrap_or(false)),
        Err(mesh::Refused::Gone(_)) => Ok(false), // This node is leaving: it answers what still comes.
        Err(mesh::Refused::Full(_)) => Err(TooMany),
    }
}

/// Follows the router's table, on core 0: one question at a time, for all who wish for one.
#[derive(Debug)]
pub struct Follower {
    /// Who this node is in its table.
    pub node_id: String,
    /// To every core.
    pub tenures: Tenures,
    /// Who wishes for the newest table.
    pub asks: mesh::Receiver<Ask>,
    /// The epoch that all cores go by; 0 = none yet.
    pub followed: Rc<Cell<u64>>,
}

impl Follower {
    /// Follows the table of `router` for as long as somebody can ask.
    pub async fn run(mut self, router: Channel) {
        let mut view = None;
        while let Some(first) = self.asks.recv().await {
            // Whoever has asked by now is served by this answer; who asks later, by the next.
            let askers: Vec<Ask> = std::iter::once(first).chain(std::iter::from_fn(|| self.asks.try_recv())).collect();
            let is_known = self.follow(&router, &mut view).await;
            for Ask(asker) in askers {
                let _ = asker.try_send(is_known); // It may have gone.
            }
            task::sleep(FOLLOW_PAUSE).await;
        }
    }

    async fn follow(&self, router: &Channel, known: &mut Option<Arc<View>>) -> bool {
        let deadline = Instant::now() + FOLLOW_DEADLINE;
        let topology = match router.unary(ROUTER_TOPOLOGY, &TopologyRequest {}, deadline).await {
            Ok(topology) => topology,
            Err(error) => {
                tracing::debug!("the router's table is not to be had: {}", error.status);
                return false;
            }
        };
        let view = View::read(&topology, &self.node_id);
        if known.as_deref() == Some(&view) {
            return true;
        }
        let view = Arc::new(view);
        self.tenures.tell(|| Change::Follow(Arc::clone(&view))).await;
        self.tenures.tell(|| Change::Open(Arc::clone(&view))).await;
        self.followed.set(view.epoch);
        *known = Some(view);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use futures::future::join;
    use milena_proto::{placement::key_hash, router_server::Slot};

    use super::*;

    /// The table of an epoch whose slots have these nodes; `-` is a hole, and capital letters are dead.
    fn topology(epoch: u64, nodes: &str) -> TopologyResponse {
        let slot = |name: char| Slot {
            node_id: name.to_ascii_lowercase().to_string(),
            weight: if name.is_ascii_lowercase() { u32::MAX } else { 0 },
            ..Slot::default()
        };
        TopologyResponse { epoch, slots: nodes.chars().map(slot).collect() }
    }

    /// Polls until it is done, which takes a few times.
    fn finish<F: Future>(future: F) -> F::Output {
        let mut future = pin!(future);
        let ready = (0..10).find_map(|_| match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        });
        ready.expect("nobody is left who could answer it")
    }

    fn hashes() -> impl Iterator<Item = KeyHash> {
        (0..1000_u32).map(|number| key_hash(b"default", &number.to_be_bytes()))
    }

    /// A door, and the mailbox in which its questions arrive.
    fn door(view: Option<View>) -> (Ownership, mesh::Receiver<Ask>) {
        let (ask, asks) = mesh::mailbox(1);
        let door = Ownership::new(ask);
        view.into_iter().for_each(|view| door.open(Arc::new(view)));
        (door, asks)
    }

    #[test]
    fn every_key_has_one_owner_among_the_nodes_of_a_table() {
        let table = topology(7, "abC-");
        let views = ["a", "b", "c"].map(|node| View::read(&table, node));
        for hash in hashes() {
            assert_eq!(views.iter().filter(|view| view.owns(hash)).count(), 1);
            assert!(!views[2].owns(hash), "the dead own nothing");
        }
    }

    #[test]
    fn who_is_not_in_the_table_owns_nothing_and_refuses_nothing() {
        let (stranger, _asks) = door(Some(View::read(&topology(7, "ab"), "x")));
        let (unknowing, _asks) = door(None);
        assert!(hashes().all(|hash| !stranger.is_stray(hash) && !unknowing.is_stray(hash)));
    }

    #[test]
    fn a_stray_is_refused_with_the_epoch_that_says_so_and_only_after_the_router_was_asked() {
        let (door, mut asks) = door(Some(View::read(&topology(7, "ab"), "a")));
        let stray = hashes().find(|hash| door.is_stray(*hash)).unwrap();
        let router = async {
            let Ask(asker) = asks.recv().await.unwrap();
            door.open(Arc::new(View::read(&topology(8, "ab-"), "a")));
            asker.try_send(true).unwrap();
        };
        let own = View::read(&topology(8, "ab-"), "a").owns(stray);
        let expected = if own { Ok(()) } else { Err(Stray::Anothers { epoch: 8 }) };
        assert_eq!(finish(join(door.check(&[stray]), router)).0, expected);
    }

    #[test]
    fn a_key_that_has_come_to_us_meanwhile_is_answered() {
        let (door, mut asks) = door(Some(View::read(&topology(7, "ab"), "a")));
        let stray = hashes().find(|hash| door.is_stray(*hash)).unwrap();
        let router = async {
            let Ask(asker) = asks.recv().await.unwrap();
            door.open(Arc::new(View::read(&topology(8, "aB"), "a")));
            asker.try_send(true).unwrap();
        };
        assert_eq!(finish(join(door.check(&[stray]), router)).0, Ok(()));
    }

    #[test]
    fn without_a_router_strays_are_answered_and_more_of_them_than_may_wait_are_not() {
        let (door, mut asks) = door(Some(View::read(&topology(7, "ab"), "a")));
        let stray = hashes().find(|hash| door.is_stray(*hash)).unwrap();
        let silent = async {
            let Ask(asker) = asks.recv().await.unwrap();
            asker.try_send(false).unwrap();
        };
        assert_eq!(finish(join(door.check(&[stray]), silent)).0, Ok(()));
        let two = async {
            let (first, second) = join(door.check(&[stray]), door.check(&[stray])).await;
            (first, second)
        };
        let leaving = async {
            drop(asks.recv().await.unwrap());
        };
        assert_eq!(finish(join(two, leaving)).0, (Ok(()), Err(Stray::TooMany)));
        drop(asks);
        assert_eq!(finish(door.check(&[stray])), Ok(()));
    }
}
