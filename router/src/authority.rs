//! The one router that changes the topology: it takes in Joins, Leaves and time, writes the table down, and only then tells
//! anybody. Pure but for [`Writer`], the plain thread that writes.
//!
//! ```text
//!   ask, tick ──▶ members (epoch 7)
//!                    │ to_write: the newest table, one write in the air at a time
//!                    ▼
//!                 Writer ── store, compare-and-set ──▶ written(epoch 6)
//!                                                         │
//!                    ┌────────────────────────────────────┘
//!                    ▼
//!                 view (epoch 6): what everybody is told; answers that waited for epoch ≤ 6 go out
//! ```
//! So an epoch that anybody has seen is never forgotten by a restart, and never used again for another table. While the store
//! cannot be written, the table stands still: renewals go on being answered, newcomers are told to come back, and the
//! breakers of the routers take care of who died.
//!
//! There is one authority for now. The document is written by compare-and-set, so that a second one is noticed by the first
//! change it makes, and the one that was there first stops deciding: two of them would give one slot to two nodes.

use std::{
    fmt, io,
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use bytes::Bytes;
use milena_net::mesh;
use milena_proto::limits::SLOTS_MAX;
use milena_storage::{
    Cause, Condition, Error, Put, Version,
    object::{self, Store, StoreConfig},
};
use serde::{Deserialize, Serialize};

use crate::members::{Joined, Lapsed, Member, Members, Refusal, Slot, State, View, is_address};

/// The version of the document's format that we write and read.
pub const DOCUMENT_VERSION: u32 = 1;

/// Joins and Leaves that may wait for a write. Each core has no more questions under way than this in all.
pub const WAITING_MAX: usize = 16_384;

/// The table as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    version: u32,
    epoch: u64,
    /// `null` is a hole.
    slots: Vec<Option<WrittenSlot>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSlot {
    /// Empty for a pinned member.
    node_id: String,
    address: String,
    shard_addresses: Vec<String>,
    weight: u32,
    zone: String,
    incarnation: u64,
    state: WrittenState,
    since_epoch: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenState {
    Live,
    Dead,
    Pinned,
}

/// Why a document cannot be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DocumentError {
    /// Not JSON, or not of this shape.
    Malformed {
        /// What the parser says, with line and column.
        reason: String,
    },
    /// Written by a version of us that is to come.
    Version {
        /// Its number.
        found: u32,
    },
    /// A slot that no table of ours has.
    Slot {
        /// Which one, from 0.
        index: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More than [`SLOTS_MAX`] slots.
    TooLarge {
        /// How many.
        found: usize,
    },
}

impl Document {
    /// The document that holds `view`.
    #[must_use]
    pub fn of(view: &View) -> Self {
        let written = |slot: &Slot| WrittenSlot {
            node_id: slot.member.node_id.clone(),
            address: slot.member.address.clone(),
            shard_addresses: slot.member.shard_addresses.clone(),
            weight: slot.member.weight,
            zone: slot.member.zone.clone(),
            incarnation: slot.member.incarnation,
            state: match slot.state {
                State::Live => WrittenState::Live,
                State::Dead => WrittenState::Dead,
                State::Pinned => WrittenState::Pinned,
            },
            since_epoch: slot.since_epoch,
        };
        let slots = view.slots().iter().map(|slot| slot.as_ref().map(written)).collect();
        Self { version: DOCUMENT_VERSION, epoch: view.epoch(), slots }
    }

    /// Its bytes: JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings, numbers and lists have a JSON form")
    }

    /// Reads what [`Document::encode`] wrote, and checks that it is a table.
    ///
    /// # Errors
    /// Bytes that no authority wrote.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        /// Read first, so that a later format is called by its name.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let malformed = |error: serde_json::Error| DocumentError::Malformed { reason: error.to_string() };
        let Version { version } = serde_json::from_slice(bytes).map_err(malformed)?;
        if version != DOCUMENT_VERSION {
            return Err(DocumentError::Version { found: version });
        }
        let document: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        if document.slots.len() > SLOTS_MAX {
            return Err(DocumentError::TooLarge { found: document.slots.len() });
        }
        let mut ids = ahash::HashSet::default();
        for (index, slot) in document.slots.iter().enumerate() {
            let Some(slot) = slot else { continue };
            let wrong = |reason| Err(DocumentError::Slot { index, reason });
            if !std::iter::once(&slot.address).chain(&slot.shard_addresses).all(|address| is_address(address)) {
                return wrong("an address that is none");
            }
            if slot.since_epoch > document.epoch {
                return wrong("a since_epoch that is yet to come");
            }
            if slot.weight == 0 {
                return wrong("a weight of 0");
            }
            if slot.node_id.is_empty() != (slot.state == WrittenState::Pinned) {
                return wrong("a pinned member with an id, or one without that is not pinned");
            }
            if !slot.node_id.is_empty() && !ids.insert(&slot.node_id) {
                return wrong("an id that has a slot already");
            }
        }
        Ok(document)
    }

    /// The epoch it was written at.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The table it holds, as a router finds it that starts at `now`.
    #[must_use]
    pub fn into_members(self, now: Instant) -> Members {
        let slot = |written: WrittenSlot| Slot {
            state: match written.state {
                WrittenState::Live => State::Live,
                WrittenState::Dead => State::Dead,
                WrittenState::Pinned => State::Pinned,
            },
            since_epoch: written.since_epoch,
            member: Arc::new(Member {
                node_id: written.node_id,
                address: written.address,
                shard_addresses: written.shard_addresses,
                weight: written.weight,
                incarnation: written.incarnation,
                zone: written.zone,
            }),
        };
        Members::restore(self.epoch, self.slots.into_iter().map(|written| written.map(slot)).collect(), now)
    }
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { reason } => write!(f, "not a topology: {reason}"),
            Self::Version { found } => {
                write!(f, "a topology of version {found}; this program reads version {DOCUMENT_VERSION}")
            }
            Self::Slot { index, reason } => write!(f, "not a topology: slot {index} has {reason}"),
            Self::TooLarge { found } => write!(f, "not a topology: {found} slots; at most {SLOTS_MAX} are possible"),
        }
    }
}

impl std::error::Error for DocumentError {}

/// Who asked: a core, and which of its questions it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The core, from 0.
    pub core: usize,
    /// The core's own number for the question.
    pub ticket: u64,
}

/// What comes into the mailbox of the authority's core.
#[derive(Debug)]
pub enum ToAuthority {
    /// A question from a core.
    Ask(Asker, Question),
    /// The write is done, or not.
    Written(Result<(), Unwritten>),
}

/// What is asked of the authority.
#[derive(Clone, Debug)]
pub enum Question {
    /// Take this node in, or renew its lease.
    Join {
        /// Who.
        member: Member,
        /// The epoch that it follows; 0 = none.
        seen_epoch: u64,
    },
    /// End a membership.
    Leave {
        /// By id.
        node_id: String,
        /// Where there is no id, by address.
        address: String,
    },
}

/// What the authority answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The node is a member, and everybody may know.
    Joined {
        /// The latest epoch that everybody may know.
        epoch: u64,
        /// Milliseconds; 0 = pinned.
        lease_ms: u64,
    },
    /// The membership has ended.
    Left {
        /// Whether there was one.
        was_member: bool,
    },
    /// The Join is not possible.
    Refused(Refusal),
    /// The table cannot be changed now: the reason, for operators.
    Unwritten(Arc<str>),
}

/// Why a table was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unwritten {
    /// It may work a moment later.
    Failed(Arc<str>),
    /// Somebody else writes the same document: we decide nothing any more.
    Deposed(Arc<str>),
}

/// Something for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node that was not alive in the table is.
    Joined {
        /// Who.
        member: Arc<Member>,
        /// Since this epoch, which everybody will know as soon as it is written.
        epoch: u64,
    },
    /// A member said goodbye.
    Left {
        /// Who.
        member: Arc<Member>,
        /// Since this epoch.
        epoch: u64,
    },
    /// A member's lease ended.
    Lapsed {
        /// Who.
        lapsed: Lapsed,
        /// Since this epoch.
        epoch: u64,
    },
    /// Writing failed, and had not before.
    Unwritten(Unwritten),
    /// Writing works again.
    WrittenAgain,
}

/// The authority's state; see the head of this file. Its shell carries bytes and messages.
#[derive(Debug)]
pub struct Authority {
    members: Members,
    /// What is durable, and therefore what everybody is told.
    view: Arc<View>,
    /// What is being written.
    writing: Option<Arc<View>>,
    trouble: Option<Unwritten>,
    /// A write that failed is tried again after the next tick, not at once.
    is_pausing: bool,
    /// Leaves that somebody must see coming first: [`Members::leaves_unseen`].
    held: Vec<Held>,
    waiting: Vec<Waiting>,
    answers: Vec<(Asker, Answer)>,
    events: Vec<Event>,
}

/// A Leave that waits; each core has no more questions under way than its mailbox has places.
#[derive(Debug)]
struct Held {
    asker: Asker,
    node_id: String,
    address: String,
}

#[derive(Debug)]
struct Waiting {
    epoch: u64,
    asker: Asker,
    answer: Answer,
}

impl Authority {
    /// Decides about `members`, whose table is durable as it stands.
    #[must_use]
    pub fn new(members: Members) -> Self {
        let view = Arc::new(members.view());
        Self {
            members,
            view,
            writing: None,
            trouble: None,
            is_pausing: false,
            held: Vec::new(),
            waiting: Vec::new(),
            answers: Vec::new(),
            events: Vec::new(),
        }
    }

    /// What everybody may know.
    #[must_use]
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Nodes that are alive in the table that will be written next. O(slots).
    #[must_use]
    pub fn alive_count(&self) -> usize {
        self.members.alive_count()
    }

    /// Takes a question in. Its answer comes out of [`Authority::take_answers`], now or after a write.
    pub fn ask(&mut self, asker: Asker, question: Question, now: Instant) {
        if let Some(Unwritten::Deposed(reason)) = &self.trouble {
            return self.answers.push((asker, Answer::Unwritten(Arc::clone(reason))));
        }
        match question {
            Question::Join { member, seen_epoch } => self.join(asker, member, seen_epoch, now),
            Question::Leave { node_id, address } => self.held.push(Held { asker, node_id, address }),
        }
        self.leave_who_may();
    }

    /// Lets go whom nobody must see first.
    fn leave_who_may(&mut self) {
        let is_free = |members: &Members, held: &Held| !members.leaves_unseen(&held.node_id, &held.address);
        while let Some(index) = self.held.iter().position(|held| is_free(&self.members, held)) {
            let Held { asker, node_id, address } = self.held.remove(index);
            let left = self.members.leave(&node_id, &address);
            let answer = Answer::Left { was_member: left.is_some() };
            let epoch = self.members.epoch();
            self.events.extend(left.map(|member| Event::Left { member, epoch }));
            // Also when there was none: the Leave that ended it may still be waiting for its write.
            self.answer_at(self.members.epoch(), asker, answer);
        }
    }

    fn join(&mut self, asker: Asker, member: Member, seen_epoch: u64, now: Instant) {
        self.forget_leaves_of(&member);
        let epoch_before = self.members.epoch();
        let node_id = member.node_id.clone();
        let seated = Arc::new(member.clone());
        match self.members.join(member, now) {
            Ok(Joined { epoch, lease }) => {
                if self.members.epoch() > epoch_before {
                    self.events.push(Event::Joined { member: seated, epoch });
                }
                self.members.has_seen(&node_id, seen_epoch);
                let lease_ms = u64::try_from(lease.as_millis()).expect("a few seconds");
                self.answer_at(epoch, asker, Answer::Joined { epoch, lease_ms });
            }
            Err(refusal) => self.answers.push((asker, Answer::Refused(refusal))),
        }
    }

    /// Who joins has changed its mind: it started again before its goodbye was carried out.
    fn forget_leaves_of(&mut self, member: &Member) {
        // By id where there is one, as in every Leave.
        let is_its = |held: &Held| {
            held.node_id == member.node_id && (!held.node_id.is_empty() || held.address == member.address)
        };
        let (its, others): (Vec<Held>, _) = std::mem::take(&mut self.held).into_iter().partition(is_its);
        self.held = others;
        self.answers.extend(its.into_iter().map(|held| (held.asker, Answer::Left { was_member: false })));
    }

    /// Answers as soon as the table of `epoch` is durable.
    fn answer_at(&mut self, epoch: u64, asker: Asker, answer: Answer) {
        if epoch <= self.view.epoch() {
            return self.answer_now(asker, answer);
        }
        if self.waiting.len() >= WAITING_MAX {
            let reason = format!("{WAITING_MAX} joins and leaves are waiting for the table to be written");
            return self.answers.push((asker, Answer::Unwritten(reason.into())));
        }
        self.waiting.push(Waiting { epoch, asker, answer });
    }

    fn answer_now(&mut self, asker: Asker, mut answer: Answer) {
        if let Answer::Joined { epoch, .. } = &mut answer {
            *epoch = self.view.epoch();
        }
        self.answers.push((asker, answer));
    }

    /// Time passes: leases end, and a write that failed may be tried again. Call it several times a second.
    pub fn tick(&mut self, now: Instant) {
        if matches!(self.trouble, Some(Unwritten::Deposed(_))) {
            return;
        }
        let lapsed = self.members.tick(now);
        let epoch = self.members.epoch();
        self.events.extend(lapsed.into_iter().map(|lapsed| Event::Lapsed { lapsed, epoch }));
        self.leave_who_may();
        self.is_pausing = false;
    }

    /// The table to be written now, if there is one. Until [`Authority::written`] there is no other.
    pub fn to_write(&mut self) -> Option<Document> {
        let is_deposed = matches!(self.trouble, Some(Unwritten::Deposed(_)));
        let is_durable = self.members.epoch() == self.view.epoch();
        if is_durable || is_deposed || self.is_pausing || self.writing.is_some() {
            return None;
        }
        let view = Arc::new(self.members.view());
        let document = Document::of(&view);
        self.writing = Some(view);
        Some(document)
    }

    /// Takes the outcome of the write that [`Authority::to_write`] asked for.
    ///
    /// # Panics
    /// When it asked for none.
    pub fn written(&mut self, outcome: Result<(), Unwritten>) {
        let view = self.writing.take().expect("nothing was to be written");
        match outcome {
            Ok(()) => {
                self.view = view;
                if self.trouble.take().is_some() {
                    self.events.push(Event::WrittenAgain);
                }
                let is_durable = |waiting: &Waiting| waiting.epoch <= self.view.epoch();
                let (durable, waiting): (Vec<_>, Vec<_>) =
                    std::mem::take(&mut self.waiting).into_iter().partition(is_durable);
                self.waiting = waiting;
                for Waiting { asker, answer, .. } in durable {
                    self.answer_now(asker, answer);
                }
            }
            Err(unwritten) => {
                let (Unwritten::Failed(reason) | Unwritten::Deposed(reason)) = &unwritten;
                for Waiting { asker, .. } in self.waiting.drain(..) {
                    self.answers.push((asker, Answer::Unwritten(Arc::clone(reason))));
                }
                if matches!(unwritten, Unwritten::Deposed(_)) {
                    let held = self.held.drain(..).map(|held| (held.asker, Answer::Unwritten(Arc::clone(reason))));
                    self.answers.extend(held);
                }
                let is_news = self.trouble.is_none() || matches!(unwritten, Unwritten::Deposed(_));
                if is_news {
                    self.events.push(Event::Unwritten(unwritten.clone()));
                }
                self.trouble = Some(unwritten);
                self.is_pausing = true;
            }
        }
    }

    /// The answers that may go out.
    pub fn take_answers(&mut self) -> Vec<(Asker, Answer)> {
        std::mem::take(&mut self.answers)
    }

    /// What has happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }
}

/// The name of the document in its store.
const DOCUMENT_NAME: &str = "topology";

/// Writes of unknown outcome that are remembered: any of them may be what the store has.
const ATTEMPTS_MAX: usize = 16;

/// The document's place in a store. Every method blocks.
#[derive(Debug)]
pub struct Place {
    store: Arc<dyn Store>,
    asker: object::Asker,
    /// What the store has, as far as we know.
    version: Option<Version>,
    /// What we have tried to write since, oldest first.
    attempts: Vec<Bytes>,
}

/// Why the table cannot be read, or cannot be kept where it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaceError {
    /// The store does not answer, or refuses.
    Store(Error),
    /// The store overwrites whatever a condition says: two routers would not notice each other.
    Unconditional,
    /// What is there is not a table of ours.
    Document(DocumentError),
}

impl Place {
    /// Opens the store, reads the table that is kept there, and writes it back as it is: a store that cannot be written to is
    /// found now and not at the first Join at night, and a router that wrote here before us notices at its next change.
    ///
    /// # Errors
    /// [`PlaceError`]; nothing has been changed then.
    ///
    /// # Panics
    /// When `config` names no store.
    pub fn open(config: &StoreConfig) -> Result<(Self, Option<Document>), PlaceError> {
        let store = object::open(config).map_err(PlaceError::Store)?.expect("a state is kept somewhere");
        let mut asker = object::Asker::new(1);
        if !store.probe(&mut asker).map_err(PlaceError::Store)?.conditional_puts {
            return Err(PlaceError::Unconditional);
        }
        let found = store.get_document(DOCUMENT_NAME, &mut asker).map_err(PlaceError::Store)?;
        let document = found.as_ref().map(|found| Document::parse(&found.value));
        let document = document.transpose().map_err(PlaceError::Document)?;
        let version = found.map(|found| found.version);
        let mut place = Self { store, asker, version, attempts: Vec::new() };
        let bytes = document.as_ref().map_or_else(|| Document::of(&Members::new().view()).encode(), Document::encode);
        place.replace(&Bytes::from(bytes)).map_err(PlaceError::Store)?;
        Ok((place, document))
    }

    /// Writes `document` if nobody else has written since.
    ///
    /// # Errors
    /// [`Unwritten::Deposed`] when somebody has; otherwise it may work later.
    pub fn write(&mut self, document: &Document) -> Result<(), Unwritten> {
        self.replace(&Bytes::from(document.encode())).map_err(|error| match error.cause {
            Cause::VersionMismatch | Cause::AlreadyExists => Unwritten::Deposed(Arc::from(
                "another router writes the same state; hint: is a second milena-router running with this STATE?",
            )),
            _ => Unwritten::Failed(error.to_string().into()),
        })
    }

    /// Compare-and-set. A condition that does not hold may be our own doing: a write whose outcome we did not learn.
    fn replace(&mut self, bytes: &Bytes) -> Result<(), Error> {
        if self.attempts.len() == ATTEMPTS_MAX {
            self.attempts.remove(0);
        }
        self.attempts.push(bytes.clone());
        let first = self.put(bytes);
        let is_beaten = |error: &Error| matches!(error.cause, Cause::VersionMismatch | Cause::AlreadyExists);
        let Err(error) = first else { return first };
        if !is_beaten(&error) {
            return Err(error);
        }
        let found = self.store.get_document(DOCUMENT_NAME, &mut self.asker)?;
        let ours = found.filter(|found| self.attempts.contains(&found.value)).ok_or(error)?;
        self.version = Some(ours.version);
        if ours.value == bytes {
            self.attempts.clear();
            return Ok(());
        }
        self.put(bytes)
    }

    fn put(&mut self, bytes: &Bytes) -> Result<(), Error> {
        let condition = self.version.clone().map_or(Condition::IfAbsent, Condition::IfVersion);
        let put = Put::new(bytes.clone(), condition);
        self.version = Some(self.store.put_document(DOCUMENT_NAME, &put, &mut self.asker)?);
        self.attempts.clear();
        Ok(())
    }
}

/// The thread that writes, so that no core ever waits for a disk or for S3. It ends with this, after a write that is in the air.
#[derive(Debug)]
pub struct Writer {
    documents: SyncSender<Document>,
}

impl Writer {
    /// Starts the thread. It tells `authority` the outcome of each write.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(mut place: Place, authority: mesh::Sender<ToAuthority>) -> io::Result<(Self, JoinHandle<()>)> {
        let (documents, inbox) = sync_channel::<Document>(1);
        let run = move || {
            for document in inbox {
                let outcome = place.write(&document);
                // There is room for it; only when the authority has gone is nobody interested.
                let _ = authority.try_send(ToAuthority::Written(outcome));
            }
        };
        let thread = thread::Builder::new().name("milena-topology".to_owned()).spawn(run)?;
        Ok((Self { documents }, thread))
    }

    /// Begins to write `document`. Never waits.
    ///
    /// # Panics
    /// When a write is in the air already.
    pub fn write(&self, document: Document) {
        self.documents.try_send(document).expect("one write at a time, and the thread lives as long as this");
    }
}

impl fmt::Display for PlaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Unconditional => f.write_str(
                "this store ignores conditions on writes, so that two routers would overwrite each other's table; use file:// \
                 or another store",
            ),
            Self::Document(error) => write!(f, "{DOCUMENT_NAME}: {error}; hint: move it away to begin with an empty table"),
        }
    }
}

impl std::error::Error for PlaceError {}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        time::Duration,
    };

    use milena_proto::key::Key;
    use milena_storage::{Entry, Found, Operation, Timestamp};

    use super::*;
    use crate::members::{LEASE, LEASE_MARGIN};

    struct Town {
        authority: Authority,
        now: Instant,
        next_ticket: u64,
    }

    fn town() -> Town {
        Town { authority: Authority::new(Members::new()), now: Instant::now(), next_ticket: 0 }
    }

    fn node(name: &str) -> Member {
        Member {
            node_id: name.into(),
            address: format!("http://{name}:1"),
            shard_addresses: vec![format!("http://{name}:2"), format!("http://{name}:3")],
            weight: u32::MAX,
            incarnation: 1,
            zone: "z1".into(),
        }
    }

    impl Town {
        /// Asks, and returns the question's ticket.
        fn ask(&mut self, question: Question) -> u64 {
            self.next_ticket += 1;
            let asker = Asker { core: 0, ticket: self.next_ticket };
            self.authority.ask(asker, question, self.now);
            self.next_ticket
        }

        fn join(&mut self, name: &str) -> u64 {
            self.join_having_seen(name, 0)
        }

        fn join_having_seen(&mut self, name: &str, seen_epoch: u64) -> u64 {
            self.ask(Question::Join { member: node(name), seen_epoch })
        }

        fn leave(&mut self, name: &str) -> u64 {
            self.ask(Question::Leave { node_id: name.into(), address: String::new() })
        }

        /// Everything that is to be written is, until there is nothing more.
        fn write(&mut self) {
            while self.authority.to_write().is_some() {
                self.authority.written(Ok(()));
            }
        }

        fn answers(&mut self) -> Vec<(u64, Answer)> {
            self.authority.take_answers().into_iter().map(|(asker, answer)| (asker.ticket, answer)).collect()
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.authority.tick(self.now);
        }
    }

    fn joined(epoch: u64) -> Answer {
        Answer::Joined { epoch, lease_ms: 5000 }
    }

    fn failed() -> Result<(), Unwritten> {
        Err(Unwritten::Failed("disk full".into()))
    }

    #[test]
    fn a_join_is_answered_and_shown_when_the_table_is_written_and_not_before() {
        let mut town = town();
        let ticket = town.join("a");
        let document = town.authority.to_write().unwrap();
        assert_eq!((document.epoch(), town.answers(), town.authority.view().epoch()), (1, vec![], 0));
        town.authority.written(Ok(()));
        assert_eq!((town.answers(), town.authority.view().epoch()), (vec![(ticket, joined(1))], 1));
    }

    #[test]
    fn what_comes_during_a_write_is_written_together_by_the_next() {
        let mut town = town();
        town.join("a");
        let first = town.authority.to_write().unwrap();
        let (b, c) = (town.join("b"), town.join("c"));
        assert_eq!(town.authority.to_write(), None, "one write at a time");
        town.authority.written(Ok(()));
        assert_eq!(town.answers(), [(1, joined(1))]);
        let second = town.authority.to_write().unwrap();
        assert_eq!((first.epoch(), second.epoch()), (1, 3));
        town.authority.written(Ok(()));
        assert_eq!(town.answers(), [(b, joined(3)), (c, joined(3))]);
    }

    #[test]
    fn a_renewal_is_answered_at_once_also_while_another_node_waits_for_a_write() {
        let mut town = town();
        town.join("a");
        town.write();
        town.answers();
        town.join("b");
        assert!(town.authority.to_write().is_some());
        let renewal = town.join("a");
        assert_eq!(town.answers(), [(renewal, joined(1))], "with the epoch that everybody may know");
        let impatient = town.join("b");
        assert_eq!(town.answers(), [], "but not that of a node whose own change is not written");
        town.authority.written(Ok(()));
        assert_eq!(town.answers(), [(2, joined(2)), (impatient, joined(2))]);
    }

    #[test]
    fn while_the_store_fails_the_table_stands_still_and_the_next_tick_tries_again() {
        let mut town = town();
        town.join("a");
        town.write();
        town.answers();
        let newcomer = town.join("b");
        assert!(town.authority.to_write().is_some());
        town.authority.written(failed());
        assert_eq!(town.answers(), [(newcomer, Answer::Unwritten("disk full".into()))]);
        assert_eq!((town.authority.view().epoch(), town.authority.to_write()), (1, None));
        let renewal = town.join("a");
        assert_eq!(town.answers(), [(renewal, joined(1))]);

        town.pass(Duration::from_millis(250));
        assert!(town.authority.to_write().is_some());
        let retried = town.join("b");
        town.authority.written(Ok(()));
        assert_eq!(town.answers(), [(retried, joined(2))]);
    }

    #[test]
    fn trouble_is_told_once_and_so_is_its_end() {
        let mut town = town();
        town.join("a");
        for _ in 0..3 {
            assert!(town.authority.to_write().is_some());
            town.authority.written(failed());
            town.pass(Duration::from_millis(250));
        }
        town.write();
        let is_about_writing = |event: &Event| matches!(event, Event::Unwritten(_) | Event::WrittenAgain);
        let told: Vec<Event> = town.authority.take_events().into_iter().filter(is_about_writing).collect();
        assert_eq!(told, [Event::Unwritten(failed().unwrap_err()), Event::WrittenAgain]);
    }

    #[test]
    fn an_authority_that_was_deposed_decides_nothing_any_more() {
        let mut town = town();
        town.join("a");
        town.write();
        town.join("b");
        assert!(town.authority.to_write().is_some());
        town.authority.written(Err(Unwritten::Deposed("somebody else".into())));
        town.answers();
        let renewal = town.join("a");
        assert_eq!(town.answers(), [(renewal, Answer::Unwritten("somebody else".into()))]);
        town.pass(LEASE * 3);
        assert_eq!((town.authority.to_write(), town.authority.view().count(State::Live)), (None, 1));
    }

    #[test]
    fn a_death_is_shown_after_it_is_written() {
        let mut town = town();
        town.join("a");
        town.join("b");
        town.write();
        town.pass(LEASE);
        town.join("b");
        town.pass(LEASE_MARGIN);
        assert_eq!(town.authority.view().count(State::Live), 2);
        town.write();
        assert_eq!((town.authority.view().count(State::Dead), town.authority.view().epoch()), (1, 3));
    }

    #[test]
    fn a_leave_is_answered_when_written_and_a_second_one_says_that_there_was_nobody() {
        let mut town = town();
        town.join("a");
        town.write();
        town.answers();
        let (first, second) = (town.leave("a"), town.leave("a"));
        assert_eq!(town.answers(), []);
        town.write();
        assert_eq!(
            town.answers(),
            [(first, Answer::Left { was_member: true }), (second, Answer::Left { was_member: false })]
        );
    }

    /// Node b has come and says goodbye, while a follows the table from before; and the goodbye's ticket.
    fn town_where_somebody_leaves_unseen() -> (Town, u64) {
        let mut town = town();
        town.join("a");
        town.write();
        town.join_having_seen("a", 1);
        town.join("b");
        town.write();
        town.answers();
        let goodbye = town.leave("b");
        (town, goodbye)
    }

    #[test]
    fn a_leave_waits_until_every_follower_has_seen_that_the_node_came() {
        let (mut town, goodbye) = town_where_somebody_leaves_unseen();
        town.write();
        assert_eq!((town.answers(), town.authority.view().count(State::Live)), (vec![], 2));

        let renewal = town.join_having_seen("a", 2);
        town.write();
        assert_eq!(town.answers(), [(renewal, joined(2)), (goodbye, Answer::Left { was_member: true })]);
        assert_eq!(town.authority.view().count(State::Live), 1);
    }

    #[test]
    fn a_leave_waits_no_longer_than_the_lease_of_who_should_see_it() {
        let (mut town, goodbye) = town_where_somebody_leaves_unseen();
        town.pass(LEASE + LEASE_MARGIN);
        town.write();
        assert_eq!(town.answers(), [(goodbye, Answer::Left { was_member: true })]);
    }

    #[test]
    fn a_node_that_joins_again_while_its_leave_waits_stays() {
        let (mut town, goodbye) = town_where_somebody_leaves_unseen();
        town.ask(Question::Join { member: Member { incarnation: 2, ..node("b") }, seen_epoch: 0 });
        town.write();
        assert!(town.answers().contains(&(goodbye, Answer::Left { was_member: false })));
        town.join_having_seen("a", 3);
        town.write();
        assert_eq!(town.authority.view().count(State::Live), 2);
    }

    #[test]
    fn a_refusal_is_answered_at_once_and_nothing_is_written() {
        let mut town = town();
        town.join("a");
        town.write();
        town.answers();
        let refused = town.ask(Question::Join { member: Member { node_id: "b".into(), ..node("a") }, seen_epoch: 0 });
        let answers = town.answers();
        assert!(
            matches!(&answers[..], [(ticket, Answer::Refused(Refusal::AddressTaken { .. }))] if *ticket == refused)
        );
        assert_eq!(town.authority.to_write(), None);
    }

    #[test]
    fn a_restart_brings_the_same_table_back_with_holes_deaths_and_pins() {
        let mut town = town();
        for name in ["a", "b", "c", "d"] {
            town.join(name);
        }
        town.leave("b");
        let pinned = Member { node_id: String::new(), shard_addresses: vec![], ..node("p") };
        town.ask(Question::Join { member: pinned, seen_epoch: 0 });
        town.leave("c");
        town.pass(LEASE);
        town.join("d");
        town.pass(LEASE_MARGIN);
        town.write();
        let view = town.authority.view();

        let bytes = Document::of(view).encode();
        let members = Document::parse(&bytes).unwrap().into_members(town.now);
        assert_eq!((members.epoch(), members.view().slots()), (view.epoch(), view.slots()));
        assert_eq!(view.count(State::Pinned) + view.count(State::Dead) + view.count(State::Live), 3);
    }

    #[test]
    fn the_document_is_readable_by_people_and_later_versions() {
        let golden = concat!(
            r#"{"version":1,"epoch":2,"slots":[null,{"node_id":"a","address":"http://a:1","#,
            r#""shard_addresses":["http://a:2","http://a:3"],"weight":4294967295,"zone":"z1","incarnation":1,"#,
            r#""state":"live","since_epoch":2}]}"#
        );
        let document = Document::parse(golden.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(document.encode()).unwrap(), golden);
    }

    #[test]
    fn bytes_that_no_authority_wrote_are_refused_with_a_reason() {
        let golden = concat!(
            r#"{"version":1,"epoch":2,"slots":[{"node_id":"a","address":"http://a:1","shard_addresses":[],"#,
            r#""weight":5,"zone":"","incarnation":1,"state":"live","since_epoch":2}]}"#
        );
        assert!(Document::parse(golden.as_bytes()).is_ok());
        for end in 0..golden.len() {
            assert!(Document::parse(&golden.as_bytes()[..end]).is_err(), "cut at {end}");
        }
        let cases = [
            ("\"version\":1", "\"version\":2", "a topology of version 2; this program reads version 1"),
            ("http://a:1", "a:1", "not a topology: slot 0 has an address that is none"),
            ("\"since_epoch\":2", "\"since_epoch\":3", "not a topology: slot 0 has a since_epoch that is yet to come"),
            ("\"weight\":5", "\"weight\":0", "not a topology: slot 0 has a weight of 0"),
            ("\"live\"", "\"gone\"", "not a topology: unknown variant"),
            ("\"zone\"", "\"zome\"", "not a topology: unknown field"),
            (
                "\"node_id\":\"a\"",
                "\"node_id\":\"\"",
                "not a topology: slot 0 has a pinned member with an id, or one without that is not pinned",
            ),
        ];
        for (from, to, reason) in cases {
            let error = Document::parse(golden.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(reason), "{error}");
        }
    }

    /// A directory that loses the answers of as many writes as it is told to, after it has done them.
    #[derive(Debug)]
    struct Forgetful {
        inner: Arc<dyn Store>,
        losses: AtomicUsize,
    }

    impl Store for Forgetful {
        fn get(
            &self,
            key: &Key,
            known: Option<&Version>,
            now: Timestamp,
            by: &mut object::Asker,
        ) -> Result<Found, Error> {
            self.inner.get(key, known, now, by)
        }

        fn put(&self, key: &Key, put: &Put, by: &mut object::Asker) -> Result<Version, Error> {
            self.inner.put(key, put, by)
        }

        fn delete(&self, key: &Key, condition: &Condition, by: &mut object::Asker) -> Result<(), Error> {
            self.inner.delete(key, condition, by)
        }

        fn get_document(&self, name: &str, by: &mut object::Asker) -> Result<Option<Entry>, Error> {
            self.inner.get_document(name, by)
        }

        fn put_document(&self, name: &str, put: &Put, by: &mut object::Asker) -> Result<Version, Error> {
            let version = self.inner.put_document(name, put, by)?;
            if self.losses.load(Relaxed) == 0 {
                return Ok(version);
            }
            self.losses.fetch_sub(1, Relaxed);
            Err(Operation::Put.failed(Cause::OutcomeUnknown("the answer was lost".into())))
        }

        fn probe(&self, by: &mut object::Asker) -> Result<object::Abilities, Error> {
            self.inner.probe(by)
        }
    }

    #[test]
    fn a_write_whose_answer_was_lost_is_known_as_our_own_and_a_strangers_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig::Directory(dir.path().to_owned());
        let (mut place, found) = Place::open(&config).unwrap();
        assert_eq!(found, None);
        let forgetful = Arc::new(Forgetful { inner: Arc::clone(&place.store), losses: AtomicUsize::new(0) });
        place.store = Arc::clone(&forgetful) as Arc<dyn Store>;
        let mut members = Members::new();
        let mut next = |name| {
            members.join(node(name), Instant::now()).unwrap();
            Document::of(&members.view())
        };

        forgetful.losses.store(2, Relaxed);
        let first = next("a");
        assert!(matches!(place.write(&first), Err(Unwritten::Failed(_))));
        assert!(matches!(place.write(&next("b")), Err(Unwritten::Failed(_))), "lost again, after it was known as ours");
        let third = next("c");
        assert_eq!(place.write(&third), Ok(()));
        assert_eq!(place.write(&third), Ok(()));

        let (mut stranger, found) = Place::open(&config).unwrap();
        assert_eq!(found, Some(third));
        assert!(matches!(place.write(&next("d")), Err(Unwritten::Deposed(_))));
        assert_eq!(stranger.write(&next("e")), Ok(()));
    }
}
