//! Who is in the cluster, and which slot of the table each member has. Pure: events and `now` in, views out.
//!
//! ```text
//!                 Join                          no renewal for LEASE + LEASE_MARGIN
//!   hole ─────────────────────▶ live ─────────────────────────────────────────────▶ dead
//!    ▲  (lowest hole, or the     │ ▲ │                                              │ │
//!    │   table grows by one)     │ │ └─ Join: renews, nothing else changes          │ │
//!    │                           │ └────────────────── Join: the same slot ─────────┘ │
//!    └──────────── Leave ────────┴──────────────────────── Leave ─────────────────────┘
//!
//!   Join with an address only: pinned, like live without a lease; only Leave ends it.
//! ```
//! A slot is kept while its node is dead, so a key moves only off the slot that died or back onto the slot that
//! returned. For the same reason a Leave shrinks the table only where that moves nobody else's keys: when the last slot
//! leaves with a full share. Any other Leave makes a hole, which costs its share of the keys one more probe; taking an
//! old hole out of the table would move keys between nodes that are both alive. (All this
//! with full shares. A part of a share is an acceptance of that part of the keys that probe the slot: when the table
//! grows by such a slot, its rejects move as well.)
//!
//! **Who may be whom.** A node is its id, an address belongs to one living member at a time:
//! - The same id with a higher incarnation has restarted, and takes its slot over at once, wherever it is now. That is a
//!   change also when it is where it was: routers may call it again. With a lower
//!   one, or the same one at another address, it is a second process with a copied id: refused while the lease runs.
//! - Another id at the address of a living node is refused until that node's lease has ended. Then it gets the slot: it stands
//!   where the keys were, and the old id cannot come back there.
//! - An id at the address of a pinned member takes the slot over at once: the node has learnt to join.

use std::{
    cmp::Ordering,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use milena_proto::{
    key::KeyRef,
    limits::{CORES_MAX, SLOTS_MAX},
    placement::{self, WEIGHT_FULL},
    router_server as wire,
};

/// How long a node may count itself a member, from the moment it sent its Join.
pub const LEASE: Duration = Duration::from_secs(5);

/// How much longer than [`LEASE`], from the moment the Join arrived, we count it as one: clocks may run apart by a tenth.
pub const LEASE_MARGIN: Duration = Duration::from_millis(500);

/// How often a node repeats its Join.
pub const RENEWAL: Duration = Duration::from_secs(1);

/// Longest address in bytes: a scheme, a DNS name of 253, a port.
pub const ADDRESS_BYTES_MAX: usize = 270;

/// Longest node id in bytes.
pub const NODE_ID_BYTES_MAX: usize = 128;

/// Longest zone in bytes.
pub const ZONE_BYTES_MAX: usize = 64;

const _: () = assert!(LEASE_MARGIN.as_millis() * 10 == LEASE.as_millis());
const _: () = assert!(RENEWAL.as_millis() * 3 <= LEASE.as_millis(), "two renewals may be lost");

/// What a node says of itself, known to be legal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who it is across restarts; empty = pinned.
    pub node_id: String,
    /// `http://host:port` or `https://host:port`; any core answers there.
    pub address: String,
    /// The same for each core, in the order of the cores; none = only the common address is known.
    pub shard_addresses: Vec<String>,
    /// Its share when it lives: 1 to [`u32::MAX`], which is a full one.
    pub weight: u32,
    /// Which start of the process this is.
    pub incarnation: u64,
    /// Where it stands, for people.
    pub zone: String,
}

/// What a slot's member is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It renews its lease.
    Live,
    /// It stopped; others answer for its keys until it returns.
    Dead,
    /// It has no lease.
    Pinned,
}

/// A slot of the table with a member in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Whose it is.
    pub member: Arc<Member>,
    /// Whether that one is there.
    pub state: State,
    /// The epoch since which the member has owned the slot's keys without a break.
    pub since_epoch: u64,
}

/// The table at one epoch. Never changes, so that cores share it.
#[derive(Debug)]
pub struct View {
    epoch: u64,
    slots: Vec<Option<Slot>>,
    weights: Vec<u64>,
}

/// Where a key lives.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// The slot, from 0.
    pub slot: usize,
    /// The core of that node, from 0.
    pub core: usize,
    /// The node.
    pub member: &'a Arc<Member>,
}

/// What a Join was good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The node may be told so once the table of this epoch is durable.
    pub epoch: u64,
    /// The lease from the moment the node sent the Join; zero = pinned.
    pub lease: Duration,
}

/// A member that stopped renewing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lapsed {
    /// Its slot, which it keeps.
    pub slot: usize,
    /// Who.
    pub member: Arc<Member>,
    /// Since its last Join.
    pub silent: Duration,
}

/// Why a Join was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not exactly `http://host:port` or `https://host:port`.
    Address {
        /// As it came.
        found: String,
    },
    /// Longer than [`NODE_ID_BYTES_MAX`] or not printable ASCII.
    NodeId {
        /// As it came.
        found: String,
    },
    /// Longer than [`ZONE_BYTES_MAX`] or not printable ASCII.
    Zone {
        /// As it came.
        found: String,
    },
    /// More shard addresses than a node may have cores.
    ShardCount {
        /// How many came.
        found: usize,
    },
    /// The address belongs to a member that is alive.
    AddressTaken {
        /// Which address.
        address: String,
        /// Whose it is; empty = pinned.
        node_id: String,
        /// What is left of its lease; `None` = pinned.
        lease: Option<Duration>,
    },
    /// A process with this id that started later is a member.
    Superseded {
        /// The id.
        node_id: String,
        /// The incarnation that came.
        found: u64,
        /// The incarnation that is a member.
        incarnation: u64,
        /// What is left of that one's lease.
        lease: Duration,
    },
    /// A process with this id and incarnation is a member, at another address.
    IdTaken {
        /// The id.
        node_id: String,
        /// Where that one is.
        address: String,
        /// What is left of its lease.
        lease: Duration,
    },
    /// Every one of [`SLOTS_MAX`] slots has a member, dead ones included.
    TableFull,
}

impl Member {
    /// Checks a Join.
    ///
    /// # Errors
    /// An address, id or zone outside the contract; too many shard addresses.
    pub fn parse(join: wire::JoinRequest) -> Result<Self, Refusal> {
        if join.shard_addresses.len() > CORES_MAX {
            return Err(Refusal::ShardCount { found: join.shard_addresses.len() });
        }
        for address in std::iter::once(&join.address).chain(&join.shard_addresses) {
            if !is_address(address) {
                return Err(Refusal::Address { found: address.clone() });
            }
        }
        if !is_name(&join.node_id, NODE_ID_BYTES_MAX) {
            return Err(Refusal::NodeId { found: join.node_id });
        }
        if !is_name(&join.zone, ZONE_BYTES_MAX) {
            return Err(Refusal::Zone { found: join.zone });
        }
        Ok(Self {
            node_id: join.node_id,
            address: join.address,
            shard_addresses: join.shard_addresses,
            weight: if join.weight == 0 { u32::MAX } else { join.weight },
            incarnation: join.incarnation,
            zone: join.zone,
        })
    }

    /// Whether this is a member without a lease.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.node_id.is_empty()
    }

    /// The address to call for a key of `core`: that core's own, or the common one where the node named none.
    #[must_use]
    pub fn address_of(&self, core: usize) -> &str {
        self.shard_addresses.get(core).unwrap_or(&self.address)
    }

    /// How many cores its keys are spread over; 1 where the node named none, because only the node knows then.
    #[must_use]
    pub fn core_count(&self) -> usize {
        self.shard_addresses.len().max(1)
    }

    /// Whether both are the same node, maybe changed.
    fn is_same_node(&self, other: &Self) -> bool {
        if self.is_pinned() {
            other.is_pinned() && self.address == other.address
        } else {
            self.node_id == other.node_id
        }
    }

    /// Whether a Join from `other` with the same id is this node, now or after a restart. While our `lease` runs, that is.
    fn may_be_followed_by(&self, other: &Self, lease: Duration) -> Result<(), Refusal> {
        let node_id = || self.node_id.clone();
        match other.incarnation.cmp(&self.incarnation) {
            Ordering::Greater => Ok(()),
            Ordering::Equal if self.address == other.address => Ok(()),
            Ordering::Equal => Err(Refusal::IdTaken { node_id: node_id(), address: self.address.clone(), lease }),
            Ordering::Less => Err(Refusal::Superseded {
                node_id: node_id(),
                found: other.incarnation,
                incarnation: self.incarnation,
                lease,
            }),
        }
    }

    /// The common address and those of the cores.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.address).chain(&self.shard_addresses).map(String::as_str)
    }
}

/// How a member is called in logs and on labels: its id, or its address where it has none.
impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_pinned() { &self.address } else { &self.node_id })
    }
}

/// Whether `text` is exactly `http://host:port` or `https://host:port`: nothing before, between or after.
#[must_use]
pub fn is_address(text: &str) -> bool {
    if text.len() > ADDRESS_BYTES_MAX {
        return false;
    }
    let Some(authority) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else {
        return false;
    };
    let Some((host, port)) = authority.rsplit_once(':') else {
        return false;
    };
    let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        // Underscores are no part of host names, but of the names that container networks give.
        None => !host.is_empty() && host.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_')),
    };
    let is_port = !port.starts_with(['0', '+']) && port.parse::<u16>().is_ok();
    is_host && is_port
}

fn is_name(text: &str, bytes_max: usize) -> bool {
    text.len() <= bytes_max && text.bytes().all(|c| c.is_ascii_graphic())
}

impl Slot {
    /// The share this slot has now, as [`placement::slot`] wants it.
    fn weight(&self) -> u64 {
        if self.state == State::Dead { 0 } else { placement::weight(self.member.weight) }
    }
}

impl View {
    fn new(epoch: u64, slots: Vec<Option<Slot>>) -> Self {
        let weights = slots.iter().map(|slot| slot.as_ref().map_or(0, Slot::weight)).collect();
        Self { epoch, slots, weights }
    }

    /// Grows by one with every change.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The table; a hole is `None`.
    #[must_use]
    pub fn slots(&self) -> &[Option<Slot>] {
        &self.slots
    }

    /// Where `key` lives, or `None` while no member is alive. O(log slots).
    #[must_use]
    pub fn owner(&self, key: KeyRef<'_>) -> Option<Owner<'_>> {
        let slot = placement::slot(key.hash(), &self.weights)?;
        let member = &self.slots[slot].as_ref().expect("a hole has weight 0").member;
        Some(Owner { slot, core: placement::core(key.hash(), member.core_count()), member })
    }

    /// The members that are alive, pinned ones included.
    pub fn living(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.slots.iter().flatten().filter(|slot| slot.state != State::Dead).map(|slot| &slot.member)
    }

    /// How many slots have a member in `state`.
    #[must_use]
    pub fn count(&self, state: State) -> usize {
        self.slots.iter().flatten().filter(|slot| slot.state == state).count()
    }

    /// The answer to Topology.
    #[must_use]
    pub fn to_message(&self) -> wire::TopologyResponse {
        let slots = self.slots.iter().map(|slot| slot.as_ref().map_or_else(wire::Slot::default, to_wire));
        wire::TopologyResponse { epoch: self.epoch, slots: slots.collect() }
    }
}

fn to_wire(slot: &Slot) -> wire::Slot {
    let state = match slot.state {
        State::Live => wire::SlotState::Live,
        State::Dead => wire::SlotState::Dead,
        State::Pinned => wire::SlotState::Pinned,
    };
    wire::Slot {
        node_id: slot.member.node_id.clone(),
        address: slot.member.address.clone(),
        shard_addresses: slot.member.shard_addresses.clone(),
        weight: if slot.state == State::Dead { 0 } else { slot.member.weight },
        state: state.into(),
        since_epoch: slot.since_epoch,
        zone: slot.member.zone.clone(),
    }
}

/// The table as its one authority changes it.
#[derive(Debug)]
pub struct Members {
    epoch: u64,
    slots: Vec<Option<Tenancy>>,
    /// Where a node's slot is; pinned members are not in it.
    by_id: ahash::HashMap<String, usize>,
}

#[derive(Debug)]
struct Tenancy {
    slot: Slot,
    /// When the last Join arrived; for pinned and dead members only history.
    renewed: Instant,
    /// The epoch at which anything of this slot last changed.
    changed_epoch: u64,
    /// The latest epoch that the member follows, as it says; 0 = it follows none, or has not said.
    seen_epoch: u64,
}

impl Tenancy {
    fn expires(&self) -> Instant {
        self.renewed + LEASE + LEASE_MARGIN
    }

    /// What is left of the lease; `None` = pinned.
    fn lease(&self, now: Instant) -> Option<Duration> {
        (self.slot.state == State::Live).then(|| self.expires().saturating_duration_since(now))
    }
}

impl Members {
    /// A table without members, at epoch 0.
    #[must_use]
    pub fn new() -> Self {
        Self { epoch: 0, slots: Vec::new(), by_id: ahash::HashMap::default() }
    }

    /// The table as it was when `slots` were written down. Whoever was alive then gets one whole lease from `now` to show up
    /// again: the lease that runs at a node may have been renewed a moment before we stopped.
    #[must_use]
    pub fn restore(epoch: u64, slots: Vec<Option<Slot>>, now: Instant) -> Self {
        assert!(slots.len() <= SLOTS_MAX);
        let mut by_id = ahash::HashMap::default();
        for (index, slot) in slots.iter().enumerate() {
            if let Some(slot) = slot.as_ref().filter(|slot| !slot.member.is_pinned()) {
                let other = by_id.insert(slot.member.node_id.clone(), index);
                assert_eq!(other, None, "node {} has two slots", slot.member);
            }
        }
        let tenancy = |slot: Slot| Tenancy { changed_epoch: slot.since_epoch, slot, renewed: now, seen_epoch: 0 };
        Self { epoch, slots: slots.into_iter().map(|slot| slot.map(tenancy)).collect(), by_id }
    }

    /// The number of the last change.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many members are alive, pinned ones included. O(slots).
    #[must_use]
    pub fn alive_count(&self) -> usize {
        self.slots.iter().flatten().filter(|tenancy| tenancy.slot.state != State::Dead).count()
    }

    /// The table as it is now. O(slots).
    #[must_use]
    pub fn view(&self) -> View {
        View::new(self.epoch, self.slots.iter().map(|slot| slot.as_ref().map(|t| t.slot.clone())).collect())
    }

    /// Takes `member` in, or renews its lease: the same call, as often as one likes.
    ///
    /// A lease ends when [`Members::tick`] says so: until then nobody else was told that the slot is free, and a late
    /// renewal is as good as one in time. O(1) for a renewal that changes nothing, else O(slots × cores).
    ///
    /// # Errors
    /// The address or the id belong to somebody who is alive (see the head of this file); the table is full.
    pub fn join(&mut self, member: Member, now: Instant) -> Result<Joined, Refusal> {
        let lease = if member.is_pinned() { Duration::ZERO } else { LEASE };
        let epoch = match self.find(&member) {
            Some(index) => self.renew(index, member, now)?,
            None => self.settle(member, now)?,
        };
        Ok(Joined { epoch, lease })
    }

    /// The slot of the node that `member` says to be.
    fn find(&self, member: &Member) -> Option<usize> {
        if member.is_pinned() { self.alive_at(&member.address) } else { self.by_id.get(&member.node_id).copied() }
    }

    fn renew(&mut self, index: usize, member: Member, now: Instant) -> Result<u64, Refusal> {
        let known = self.slots[index].as_mut().expect("the indexes name slots with members");
        if member.is_pinned() && !known.slot.member.is_pinned() {
            // An old script that joins a node which joins by itself: it is a member, and keeps its lease.
            return Ok(known.changed_epoch);
        }
        if let Some(lease) = known.lease(now) {
            known.slot.member.may_be_followed_by(&member, lease)?;
        }
        if known.slot.state != State::Dead && *known.slot.member == member {
            known.renewed = now;
            return Ok(known.changed_epoch);
        }
        self.refuse_conflict(&member, Some(index), now)?;
        Ok(self.seat(index, member, now))
    }

    /// Gives a node that is nowhere in the table a slot: that of the address's former member, the lowest hole, or a new one.
    fn settle(&mut self, member: Member, now: Instant) -> Result<u64, Refusal> {
        let former = |state| {
            self.slots.iter().position(|slot| {
                slot.as_ref().is_some_and(|t| t.slot.state == state && t.slot.member.address == member.address)
            })
        };
        // A pinned member first: next to it, a dead one with its address is history.
        let former = former(State::Pinned).or_else(|| former(State::Dead));
        self.refuse_conflict(&member, former, now)?;
        let index = match former.or_else(|| self.slots.iter().position(Option::is_none)) {
            Some(index) => index,
            None if self.slots.len() < SLOTS_MAX => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => return Err(Refusal::TableFull),
        };
        Ok(self.seat(index, member, now))
    }

    /// No address of `member`'s may lead to somebody else who is alive, or that one's keys would be asked of the wrong node.
    fn refuse_conflict(&self, member: &Member, own: Option<usize>, now: Instant) -> Result<(), Refusal> {
        let wanted: ahash::HashSet<&str> = member.addresses().collect();
        for (index, other) in self.slots.iter().enumerate() {
            let Some(other) = other else { continue };
            if Some(index) == own || other.slot.state == State::Dead {
                continue;
            }
            if let Some(address) = other.slot.member.addresses().find(|address| wanted.contains(address)) {
                return Err(Refusal::AddressTaken {
                    address: address.to_owned(),
                    node_id: other.slot.member.node_id.clone(),
                    lease: other.lease(now),
                });
            }
        }
        Ok(())
    }

    /// Puts `member` into a slot, whoever was in it: the next epoch.
    fn seat(&mut self, index: usize, member: Member, now: Instant) -> u64 {
        self.epoch += 1;
        let before = self.slots[index].take();
        // Ownership goes on without a break where the same node was alive in this slot all the time.
        let since_epoch = match &before {
            Some(t) if t.slot.state != State::Dead && t.slot.member.is_same_node(&member) => t.slot.since_epoch,
            _ => self.epoch,
        };
        if let Some(before) = before {
            self.by_id.remove(&before.slot.member.node_id);
        }
        if !member.is_pinned() {
            self.by_id.insert(member.node_id.clone(), index);
        }
        let state = if member.is_pinned() { State::Pinned } else { State::Live };
        let slot = Slot { member: Arc::new(member), state, since_epoch };
        self.slots[index] = Some(Tenancy { slot, renewed: now, changed_epoch: self.epoch, seen_epoch: 0 });
        self.epoch
    }

    /// The node with this id says that it follows the table of `epoch`.
    pub fn has_seen(&mut self, node_id: &str, epoch: u64) {
        let Some(index) = self.by_id.get(node_id) else { return };
        let tenancy = self.slots[*index].as_mut().expect("the indexes name slots with members");
        tenancy.seen_epoch = epoch;
    }

    /// Whether a Leave must wait, because somebody who lives has not seen yet that this member came: it would get keys back
    /// as if they had never been away, and believe its copies of them. It renews within a second, or its lease ends.
    /// O(slots).
    #[must_use]
    pub fn leaves_unseen(&self, node_id: &str, address: &str) -> bool {
        let Some(index) = self.index_of(node_id, address) else { return false };
        let since_epoch = self.slots[index].as_ref().expect("the indexes name slots with members").slot.since_epoch;
        let has_missed_it = |t: &Tenancy| t.slot.state == State::Live && t.seen_epoch > 0 && t.seen_epoch < since_epoch;
        let mut others = self.slots.iter().enumerate().filter(|(other, _)| *other != index);
        others.any(|(_, other)| other.as_ref().is_some_and(has_missed_it))
    }

    fn index_of(&self, node_id: &str, address: &str) -> Option<usize> {
        if node_id.is_empty() { self.any_at(address) } else { self.by_id.get(node_id).copied() }
    }

    /// Ends a membership at once: by id where there is one, else by address. `None` when there was none.
    pub fn leave(&mut self, node_id: &str, address: &str) -> Option<Arc<Member>> {
        let index = self.index_of(node_id, address)?;
        let left = self.slots[index].take().expect("the indexes name slots with members").slot;
        self.by_id.remove(&left.member.node_id);
        self.epoch += 1;

        let moves_nobody_else = index + 1 == self.slots.len() && left.weight() == WEIGHT_FULL;
        if moves_nobody_else {
            self.slots.pop();
        }
        if self.slots.iter().all(Option::is_none) {
            self.slots.clear(); // Nobody has keys that could move.
        }
        Some(left.member)
    }

    /// Notices who stopped renewing: their keys go to the others in the next view. Call it several times a second. O(slots).
    pub fn tick(&mut self, now: Instant) -> Vec<Lapsed> {
        let mut lapsed = Vec::new();
        for (index, tenancy) in self.slots.iter_mut().enumerate() {
            let Some(tenancy) = tenancy.as_mut() else { continue };
            if tenancy.slot.state != State::Live || tenancy.expires() > now {
                continue;
            }
            tenancy.slot.state = State::Dead;
            tenancy.changed_epoch = self.epoch + 1;
            let silent = now.saturating_duration_since(tenancy.renewed);
            lapsed.push(Lapsed { slot: index, member: Arc::clone(&tenancy.slot.member), silent });
        }
        self.epoch += u64::from(!lapsed.is_empty());
        lapsed
    }

    /// The living member at `address`.
    fn alive_at(&self, address: &str) -> Option<usize> {
        self.at(address, |state| state != State::Dead)
    }

    /// The living member at `address`, or a dead one.
    fn any_at(&self, address: &str) -> Option<usize> {
        self.alive_at(address).or_else(|| self.at(address, |state| state == State::Dead))
    }

    fn at(&self, address: &str, state_fits: impl Fn(State) -> bool) -> Option<usize> {
        let fits = |t: &Tenancy| state_fits(t.slot.state) && t.slot.member.address == address;
        self.slots.iter().position(|slot| slot.as_ref().is_some_and(fits))
    }
}

impl Default for Members {
    fn default() -> Self {
        Self::new()
    }
}

/// Names field, found, allowed, and the way out.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { found } => {
                write!(f, "address \"{}\": http://host:port or https://host:port is allowed", found.escape_debug())
            }
            Self::NodeId { found } => write!(
                f,
                "node_id \"{}\": at most {NODE_ID_BYTES_MAX} printable ASCII characters are allowed",
                found.escape_debug()
            ),
            Self::Zone { found } => {
                write!(
                    f,
                    "zone \"{}\": at most {ZONE_BYTES_MAX} printable ASCII characters are allowed",
                    found.escape_debug()
                )
            }
            Self::ShardCount { found } => {
                write!(f, "{found} shard addresses; at most {CORES_MAX} are allowed, one for each core")
            }
            Self::AddressTaken { address, node_id, lease: Some(lease) } => write!(
                f,
                "{address} belongs to node {node_id}, whose lease runs for another {:.1} s; give this node an address of \
                 its own, or wait if it replaces that one",
                lease.as_secs_f64()
            ),
            Self::AddressTaken { address, .. } => write!(
                f,
                "{address} belongs to a pinned member; give this node an address of its own, or let that member leave"
            ),
            Self::Superseded { node_id, found, incarnation, lease } => write!(
                f,
                "node {node_id} has started again since: incarnation {found} came, {incarnation} is a member and its lease \
                 runs for another {:.1} s; give this node a data directory of its own",
                lease.as_secs_f64()
            ),
            Self::IdTaken { node_id, address, lease } => write!(
                f,
                "node {node_id} is a member at {address}, and its lease runs for another {:.1} s; give this node an id of its \
                 own",
                lease.as_secs_f64()
            ),
            Self::TableFull => write!(f, "all {SLOTS_MAX} slots have members; let some that are gone for good leave"),
        }
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table and a clock. Nodes are named by a letter, which is their id and their host.
    struct Table {
        members: Members,
        now: Instant,
    }

    fn table() -> Table {
        Table { members: Members::new(), now: Instant::now() }
    }

    fn node(name: &str) -> Member {
        let address = format!("http://{name}:50051");
        Member::parse(wire::JoinRequest { address, node_id: name.into(), incarnation: 1, ..Default::default() })
            .unwrap()
    }

    fn pinned(name: &str) -> Member {
        Member { node_id: String::new(), incarnation: 0, ..node(name) }
    }

    impl Table {
        fn with(mut self, names: &[&str]) -> Self {
            for name in names {
                self.join(node(name)).unwrap();
            }
            self
        }

        fn join(&mut self, member: Member) -> Result<Joined, Refusal> {
            self.members.join(member, self.now)
        }

        fn pass(&mut self, time: Duration) -> Vec<Lapsed> {
            self.now += time;
            self.members.tick(self.now)
        }

        /// Time passes, and these renew every second.
        fn pass_with(&mut self, seconds: u32, names: &[&str]) {
            for _ in 0..seconds {
                self.pass(RENEWAL);
                for name in names {
                    self.join(node(name)).unwrap();
                }
            }
        }

        /// The table in one line: upper case lives, lower case is dead, `!` is pinned, `-` is a hole.
        fn line(&self) -> String {
            let slot = |slot: &Option<Slot>| {
                slot.as_ref().map_or("-".to_owned(), |slot| {
                    let name = slot.member.to_string();
                    match slot.state {
                        State::Live => name.to_uppercase(),
                        State::Dead => name,
                        State::Pinned => "!".to_owned(),
                    }
                })
            };
            self.members.view().slots().iter().map(slot).collect()
        }
    }

    #[test]
    fn a_renewal_changes_nothing_that_anybody_must_know() {
        let mut table = table().with(&["a", "b"]);
        let epoch = table.members.epoch();
        table.pass_with(60, &["a", "b"]);
        assert_eq!((table.members.epoch(), table.line().as_str()), (epoch, "AB"));
    }

    #[test]
    fn a_node_that_stops_renewing_is_dead_after_lease_and_margin_and_keeps_its_slot() {
        let mut table = table().with(&["a", "b", "c"]);
        table.pass_with(5, &["a", "c"]);
        assert_eq!(table.line(), "ABC");
        let lapsed = table.pass(LEASE_MARGIN);
        assert_eq!(table.line(), "AbC");
        assert_eq!((lapsed[0].slot, lapsed[0].silent), (1, LEASE + LEASE_MARGIN));

        let back = table.join(node("b")).unwrap();
        assert_eq!(table.line(), "ABC");
        let view = table.members.view();
        assert_eq!(view.slots()[1].as_ref().unwrap().since_epoch, back.epoch, "its tenure begins anew");
        assert_eq!(view.slots()[0].as_ref().unwrap().since_epoch, 1, "that of the others goes on");
    }

    #[test]
    fn a_leave_makes_a_hole_that_the_next_newcomer_fills() {
        let mut table = table().with(&["a", "b", "c", "d"]);
        assert!(table.members.leave("b", "").is_some());
        assert!(table.members.leave("", "http://c:50051").is_some());
        assert_eq!(table.line(), "A--D");
        table.join(node("e")).unwrap();
        assert_eq!(table.line(), "AE-D");
    }

    #[test]
    fn the_table_shrinks_only_by_a_living_member_at_its_tail() {
        let mut table = table().with(&["a", "b", "c", "d"]);
        table.members.leave("d", "");
        assert_eq!(table.line(), "ABC");
        table.members.leave("b", "");
        table.members.leave("c", "");
        assert_eq!(table.line(), "A-", "taking the hole out would move keys of a");
        table.members.leave("a", "");
        assert_eq!(table.line(), "", "nobody is left whose keys could move");
    }

    #[test]
    fn a_leave_of_nobody_is_no_change() {
        let mut table = table().with(&["a"]);
        assert!(table.members.leave("z", "").is_none());
        assert!(table.members.leave("", "http://z:50051").is_none());
        assert_eq!(table.members.epoch(), 1);
    }

    #[test]
    fn a_pinned_member_needs_no_renewal_and_ends_by_leave_only() {
        let mut table = table();
        let joined = table.join(pinned("a")).unwrap();
        assert_eq!(joined.lease, Duration::ZERO);
        assert!(table.pass(Duration::from_secs(86_400)).is_empty());
        table.join(pinned("a")).unwrap();
        assert_eq!((table.line().as_str(), table.members.epoch()), ("!", 1));
        table.members.leave("", "http://a:50051").unwrap();
        assert_eq!(table.line(), "");
    }

    #[test]
    fn a_node_at_the_address_of_a_living_one_is_refused_and_takes_its_slot_when_the_lease_has_ended() {
        let mut table = table().with(&["a", "b"]);
        let usurper = Member { node_id: "z".into(), ..node("a") };
        let refusal = table.join(usurper.clone()).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "http://a:50051 belongs to node a, whose lease runs for another 5.5 s; give this node an address of its own, \
             or wait if it replaces that one"
        );
        table.pass_with(6, &["b"]);
        assert_eq!(table.line(), "aB");
        table.join(usurper).unwrap();
        assert_eq!(table.line(), "ZB");

        // The old one may come back elsewhere, as a new member.
        assert!(matches!(table.join(node("a")), Err(Refusal::AddressTaken { .. })));
        table.join(Member { address: "http://elsewhere:1".into(), ..node("a") }).unwrap();
        assert_eq!(table.line(), "ZBA");
    }

    #[test]
    fn a_core_address_of_a_living_node_is_taken_too_and_that_of_a_dead_one_is_free() {
        let with_cores = |name: &str, ports: [u16; 2]| Member {
            shard_addresses: ports.iter().map(|port| format!("http://host:{port}")).collect(),
            ..node(name)
        };
        let mut table = table();
        table.join(with_cores("a", [1, 2])).unwrap();
        assert!(matches!(table.join(with_cores("b", [2, 3])), Err(Refusal::AddressTaken { .. })));
        table.pass(LEASE + LEASE_MARGIN);
        table.join(with_cores("b", [2, 3])).unwrap();
        assert_eq!(table.line(), "aB");
        table.join(with_cores("a", [4, 5])).unwrap();
        assert_eq!(table.line(), "AB");
    }

    #[test]
    fn a_restarted_node_has_its_slot_at_once_wherever_it_is_now_and_its_old_self_is_refused() {
        let mut table = table().with(&["a", "b"]);
        let restarted = Member { incarnation: 2, address: "http://moved:50051".into(), ..node("a") };
        table.join(restarted).unwrap();
        let view = table.members.view();
        let slot = view.slots()[0].as_ref().unwrap();
        assert_eq!((slot.member.address.as_str(), slot.since_epoch), ("http://moved:50051", 1));
        assert!(matches!(table.join(node("a")), Err(Refusal::Superseded { found: 1, incarnation: 2, .. })));
    }

    #[test]
    fn a_restart_in_place_is_told_and_breaks_no_tenure() {
        let mut table = table().with(&["a"]);
        table.join(Member { incarnation: 2, ..node("a") }).unwrap();
        let view = table.members.view();
        assert_eq!((view.epoch(), view.slots()[0].as_ref().unwrap().since_epoch), (2, 1));
        assert!(matches!(table.join(node("a")), Err(Refusal::Superseded { .. })));
    }

    #[test]
    fn two_processes_with_one_id_do_not_take_turns() {
        let mut table = table().with(&["a"]);
        let copy = Member { address: "http://copy:50051".into(), ..node("a") };
        let refusal = table.join(copy.clone()).unwrap_err();
        assert!(refusal.to_string().starts_with("node a is a member at http://a:50051"), "{refusal}");
        table.pass(LEASE + LEASE_MARGIN);
        table.join(copy).unwrap();
        assert_eq!(table.line(), "A");
    }

    #[test]
    fn an_address_alone_joins_what_is_there_already_and_an_id_takes_over_what_was_pinned() {
        let mut table = table().with(&["a"]);
        table.join(pinned("a")).unwrap();
        assert_eq!((table.line().as_str(), table.members.epoch()), ("A", 1));
        table.join(pinned("b")).unwrap();
        table.join(node("b")).unwrap();
        assert_eq!(table.line(), "AB");
        table.pass(LEASE + LEASE_MARGIN);
        assert_eq!(table.line(), "ab");
        table.join(pinned("b")).unwrap();
        assert_eq!(table.line(), "a!");
    }

    #[test]
    fn after_a_restart_of_the_router_nobody_loses_a_slot_before_one_lease_has_passed() {
        let mut before = table().with(&["a", "b", "c"]);
        before.pass_with(6, &["a", "b"]);
        assert_eq!(before.line(), "ABc");
        let view = before.members.view();

        let now = before.now + Duration::from_secs(3600);
        let mut after = Table { members: Members::restore(view.epoch(), view.slots().to_vec(), now), now };
        assert_eq!(after.line(), "ABc");
        let usurper = Member { node_id: "z".into(), ..node("b") };
        assert!(matches!(after.join(usurper), Err(Refusal::AddressTaken { .. })));
        after.pass_with(5, &["a"]);
        assert_eq!((after.line().as_str(), after.members.epoch()), ("ABc", view.epoch()));
        after.pass_with(1, &["a"]);
        assert_eq!(after.line(), "Abc");
        assert_eq!(after.join(node("c")).unwrap().epoch, view.epoch() + 2);
        assert_eq!(after.line(), "AbC");
    }

    #[test]
    fn a_join_may_be_answered_as_soon_as_its_own_change_is_durable() {
        let mut table = table().with(&["a", "b"]);
        assert_eq!(table.join(node("c")).unwrap().epoch, 3);
        assert_eq!(table.join(node("a")).unwrap().epoch, 1, "a renewal does not wait for others");
    }

    #[test]
    fn a_change_of_weight_or_cores_is_a_change_and_a_weight_of_zero_is_a_full_one() {
        let mut table = table().with(&["a"]);
        table.join(Member { weight: 7, ..node("a") }).unwrap();
        assert_eq!(table.members.epoch(), 2);
        table.join(node("a")).unwrap();
        let message = table.members.view().to_message();
        assert_eq!((message.epoch, message.slots[0].weight, message.slots[0].since_epoch), (3, u32::MAX, 1));
    }

    #[test]
    fn a_full_table_refuses_newcomers_and_renews_the_others() {
        let mut table = table();
        for index in 0..SLOTS_MAX {
            table.members.slots.push(None);
            let member = Member { node_id: format!("n{index}"), address: format!("http://n{index}:1"), ..node("n") };
            table.members.seat(index, member, table.now);
        }
        assert_eq!(table.join(node("late")).unwrap_err(), Refusal::TableFull);
        let first = Member { node_id: "n0".into(), address: "http://n0:1".into(), ..node("n") };
        assert!(table.join(first).is_ok());
    }

    #[test]
    fn an_address_is_exactly_scheme_host_and_port() {
        for good in ["http://a:1", "https://node-1.svc_x.local:65535", "http://127.0.0.1:50051", "http://[::1]:50051"] {
            assert!(is_address(good), "{good}");
        }
        let long = format!("http://{}:1", "x".repeat(ADDRESS_BYTES_MAX));
        let bad = [
            "",
            "a:1",
            "http://",
            "http://a",
            "http://a:",
            "http://:1",
            "http://a:0",
            "http://a:01",
            "http://a:+1",
            "http://a:65536",
            "http://a:1/",
            "http://a:1/x",
            "http://u@a:1",
            "http://a:1?q",
            "http://a b:1",
            " http://a:1",
            "http://a:1 ",
            "HTTP://a:1",
            "ftp://a:1",
            "http:///a:1",
            "http://::1:1",
            "http://[::1]",
            "http://[x]:1",
            "http://a:1:2",
            "http://ä:1",
            "http://a:1\n",
            &long,
        ];
        for bad in bad {
            assert!(!is_address(bad), "{bad:?}");
            let join = wire::JoinRequest { address: bad.into(), ..Default::default() };
            assert!(matches!(Member::parse(join), Err(Refusal::Address { .. })));
            let join = wire::JoinRequest {
                address: "http://a:1".into(),
                shard_addresses: vec![bad.into()],
                ..Default::default()
            };
            assert!(matches!(Member::parse(join), Err(Refusal::Address { .. })));
        }
    }

    #[test]
    fn names_and_counts_outside_the_contract_are_refused() {
        let join = |change: fn(&mut wire::JoinRequest)| {
            let mut join = wire::JoinRequest { address: "http://a:1".into(), ..Default::default() };
            change(&mut join);
            Member::parse(join).unwrap_err()
        };
        assert!(matches!(join(|j| j.node_id = "a b".into()), Refusal::NodeId { .. }));
        assert!(matches!(join(|j| j.node_id = "x".repeat(129)), Refusal::NodeId { .. }));
        assert!(matches!(join(|j| j.zone = "\u{7f}".into()), Refusal::Zone { .. }));
        assert_eq!(
            join(|j| j.shard_addresses = vec!["http://a:1".into(); 257]).to_string(),
            "257 shard addresses; at most 256 are allowed, one for each core"
        );
    }
}
