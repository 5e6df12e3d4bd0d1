//! The calls of `router_server.Router`, on one core.
//!
//! ```text
//!   Get Put Delete          forward.rs: to the node that owns the key
//!   BatchGet …Put …Delete   batch.rs: to the nodes that own the keys
//!   Join Leave              a question to the authority's core, by mailbox; its answer by mailbox
//!   Topology WatchTopology  the core's own copy of the view, encoded once for all who ask
//! ```
//! Everything a core serves with is on its [`Desk`]; nothing on it is shared with another core.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use futures::channel::oneshot;
use milena_net::{
    fault::{self, Fault},
    grpc::{
        client::{AddressError, Channel, ChannelLimits, Done},
        server::{Effect, Message, Reply, Request, Service},
        status::{Code, Status},
        watch,
    },
    mesh,
    stream::ReadBuffer,
};
use milena_proto::{
    method::{
        HEALTH_CHECK, ROUTER_BATCH_DELETE, ROUTER_BATCH_GET, ROUTER_BATCH_PUT, ROUTER_DELETE, ROUTER_GET, ROUTER_JOIN,
        ROUTER_LEAVE, ROUTER_PUT, ROUTER_TOPOLOGY, ROUTER_WATCH_TOPOLOGY,
    },
    router_server as wire,
};
use prost::Message as _;

use crate::{
    authority::{Answer, Asker, Question, ToAuthority},
    batch,
    forward::{self, Forwarded},
    members::{Member, Refusal, View, is_address},
    peers::{Call, Ending, FAILURES_MAX, PROBE_MAX, Peers, Probe},
    rate_limit::RateLimits,
    stats::{Op, Stats},
};

/// Questions to the authority that one core may have under way; the mailboxes have room for all of them.
pub const QUESTIONS_MAX: usize = 1024;

/// What a caller is told to wait, in milliseconds, when too many questions are under way.
const PUSHBACK_QUESTIONS_MS: u32 = 500;

const STOPPING: &str = "the router is stopping";

/// One core's part of the router. Held by `Rc` on its core.
pub struct Desk {
    core: usize,
    /// The largest value that is passed on, in bytes.
    pub(crate) value_bytes_max: usize,
    pub(crate) view: RefCell<Arc<View>>,
    pub(crate) peers: RefCell<Peers>,
    pub(crate) channels: RefCell<Channels>,
    pub(crate) rates: RefCell<RateLimits>,
    pub(crate) stats: RefCell<Stats>,
    /// Of answers to batches that this core joins: at most [`batch::JOINED_BYTES_MAX`].
    pub(crate) joined_bytes: Rc<Cell<usize>>,
    /// `None` once the router is stopping: streams end with their sender.
    topology: RefCell<Option<watch::Sender>>,
    authority: mesh::Sender<ToAuthority>,
    questions: RefCell<ahash::HashMap<u64, oneshot::Sender<Answer>>>,
    next_ticket: Cell<u64>,
}

/// What a [`Desk`] is made with.
#[derive(Debug)]
pub struct DeskConfig {
    /// The core, from 0.
    pub core: usize,
    /// The largest value that is passed on, in bytes.
    pub value_bytes_max: usize,
    /// Of the connections to nodes.
    pub channels: ChannelLimits,
    /// This core's share.
    pub rates: RateLimits,
    /// Where questions go.
    pub authority: mesh::Sender<ToAuthority>,
    /// What is known at the start.
    pub view: Arc<View>,
}

impl Desk {
    /// A core's desk.
    #[must_use]
    pub fn new(config: DeskConfig) -> Rc<Self> {
        let mut peers = Peers::new();
        peers.follow(&config.view);
        Rc::new(Self {
            core: config.core,
            value_bytes_max: config.value_bytes_max,
            topology: RefCell::new(Some(watch::channel(encode(&config.view)).0)),
            view: RefCell::new(config.view),
            peers: RefCell::new(peers),
            channels: RefCell::new(Channels::new(config.channels)),
            rates: RefCell::new(config.rates),
            stats: RefCell::new(Stats::default()),
            joined_bytes: Rc::default(),
            authority: config.authority,
            questions: RefCell::new(ahash::HashMap::default()),
            next_ticket: Cell::new(0),
        })
    }

    /// The table has changed: calls go by `view` from here on, and who watches it is told.
    pub fn follow(&self, view: Arc<View>) {
        self.peers.borrow_mut().follow(&view);
        self.channels.borrow_mut().follow(&view);
        if let Some(topology) = &*self.topology.borrow() {
            topology.send(encode(&view));
        }
        *self.view.borrow_mut() = view;
    }

    /// Says goodbye: the router is stopping. Ends every WatchTopology, so that whoever watches looks elsewhere.
    pub fn close(&self) {
        let sender = self.topology.borrow_mut().take();
        drop(sender); // Wakes the watchers, when nothing is borrowed any more.
    }

    /// Whether requests are welcome.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.topology.borrow().is_some()
    }

    fn topology(&self, watch: bool) -> Result<Reply, Status> {
        let topology = self.topology.borrow();
        let topology = topology.as_ref().ok_or_else(|| Status::new(Code::Unavailable, STOPPING))?;
        Ok(if watch { Reply::Watch(topology.subscribe()) } else { Reply::Message(Message::from(topology.latest())) })
    }

    /// Tells of every newer table, once calls go by it; `None` once the router is stopping.
    pub(crate) fn tables(&self) -> Option<watch::Receiver> {
        self.topology.borrow().as_ref().map(watch::Sender::subscribe)
    }

    /// The view that calls go by.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// What this core has counted, the nodes it has asked included.
    #[must_use]
    pub fn report(&self) -> Stats {
        let mut stats = self.stats.borrow().clone();
        stats.nodes = self.peers.borrow().node_requests();
        stats.open_breakers = self.peers.borrow().open_count();
        stats.inflight = self.peers.borrow().inflight();
        stats.faults = fault::count();
        stats
    }

    /// Asks the nodes anything whose breaker's pause is over; returns when all have answered or had a second to.
    pub async fn probe(self: Rc<Self>) {
        let due = self.peers.borrow_mut().probes_due(Instant::now());
        futures::future::join_all(due.into_iter().map(|probe| self.probe_one(probe))).await;
    }

    async fn probe_one(&self, probe: Probe) {
        let channel = self.channels.borrow_mut().to(&probe.member.address);
        let has_answered = match channel {
            Ok(channel) => {
                let deadline = Instant::now() + PROBE_MAX;
                // Whatever it says, it says something; a node without this service is a node.
                let outcome = channel.call(HEALTH_CHECK.path, Bytes::new(), deadline).await;
                outcome.map_or_else(|error| error.done == Done::Answered, |_| true)
            }
            Err(_) => false,
        };
        if self.peers.borrow_mut().probed(&probe, has_answered, Instant::now()) {
            tracing::info!("node {} answers again", probe.member);
        }
    }

    /// Asks the authority, and waits for its answer as long as the caller does.
    async fn ask(&self, question: Question) -> Result<Answer, Status> {
        let too_many = || Status::resource_exhausted("too many joins and leaves are under way", PUSHBACK_QUESTIONS_MS);
        if self.questions.borrow().len() >= QUESTIONS_MAX {
            return Err(too_many());
        }
        let ticket = self.next_ticket.get();
        self.next_ticket.set(ticket + 1);
        let (sender, answer) = oneshot::channel();
        let asker = Asker { core: self.core, ticket };
        self.authority.try_send(ToAuthority::Ask(asker, question)).map_err(|_| too_many())?;
        // Stays until it is answered, also when the caller has gone: the answer's place in the mailbox is taken.
        self.questions.borrow_mut().insert(ticket, sender);
        answer.await.map_err(|_| Status::new(Code::Unavailable, STOPPING))
    }

    /// The authority's answer to one of this core's questions.
    pub fn answered(&self, ticket: u64, answer: Answer) {
        match self.questions.borrow_mut().remove(&ticket) {
            Some(asker) => drop(asker.send(answer)), // The caller may have gone.
            None => drop(Fault::new("the authority has answered what nobody asked")),
        }
    }

    pub(crate) fn end_call(&self, call: Call, ending: Ending) {
        let opened = self.peers.borrow_mut().end(call, ending, Instant::now);
        if let Some(member) = opened {
            let failures = FAILURES_MAX;
            tracing::warn!(
                "node {member} failed {failures} times in a row; its keys fail at once until it answers a probe"
            );
        }
    }

    async fn join(self: Rc<Self>, message: Bytes) -> Result<Message, Status> {
        let request = decode::<wire::JoinRequest>(&message)?;
        let seen_epoch = request.epoch;
        let member = Member::parse(request).map_err(|refusal| refused(&refusal))?;
        match self.ask(Question::Join { member, seen_epoch }).await? {
            Answer::Joined { epoch, lease_ms } => {
                Ok(Message::encode(&wire::JoinResponse { successful: true, epoch, lease_ms }))
            }
            Answer::Refused(refusal) => Err(refused(&refusal)),
            Answer::Unwritten(reason) => Err(unwritten(&reason)),
            Answer::Left { .. } => Err(Fault::new("a Join was answered as a Leave").into()),
        }
    }

    async fn leave(self: Rc<Self>, message: Bytes) -> Result<Message, Status> {
        let wire::LeaveRequest { address, node_id, drain: _ } = decode(&message)?;
        if node_id.is_empty() && !is_address(&address) {
            return Err(refused(&Refusal::Address { found: address }));
        }
        match self.ask(Question::Leave { node_id, address }).await? {
            Answer::Left { was_member } => Ok(Message::encode(&wire::LeaveResponse { successful: was_member })),
            Answer::Unwritten(reason) => Err(unwritten(&reason)),
            Answer::Joined { .. } | Answer::Refused(_) => Err(Fault::new("a Leave was answered as a Join").into()),
        }
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Desk(core {}, epoch {})", self.core, self.view.borrow().epoch())
    }
}

fn encode(view: &View) -> Bytes {
    view.to_message().encode_to_vec().into()
}

fn decode<M: prost::Message + Default>(message: &Bytes) -> Result<M, Status> {
    M::decode(message.clone()).map_err(|error| {
        Status::new(Code::InvalidArgument, format!("the message is not a legal protobuf message: {error}"))
    })
}

/// Which refusal becomes which status.
fn refused(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::Address { .. } | Refusal::NodeId { .. } | Refusal::Zone { .. } | Refusal::ShardCount { .. } => {
            Code::InvalidArgument
        }
        Refusal::AddressTaken { .. } | Refusal::IdTaken { .. } => Code::AlreadyExists,
        Refusal::Superseded { .. } => Code::FailedPrecondition,
        Refusal::TableFull => Code::ResourceExhausted,
    };
    Status::new(code, refusal.to_string())
}

fn unwritten(reason: &str) -> Status {
    Status::new(Code::Unavailable, format!("the topology cannot be changed now: {reason}"))
}

/// Connections to nodes, by address, made when they are first needed.
#[derive(Debug)]
pub(crate) struct Channels {
    limits: ChannelLimits,
    buffer: ReadBuffer,
    by_address: ahash::HashMap<String, Channel>,
}

impl Channels {
    fn new(limits: ChannelLimits) -> Self {
        Self { limits, buffer: ReadBuffer::default(), by_address: ahash::HashMap::default() }
    }

    /// The channel to `address`.
    pub(crate) fn to(&mut self, address: &str) -> Result<Channel, AddressError> {
        if let Some(channel) = self.by_address.get(address) {
            return Ok(channel.clone());
        }
        let channel = Channel::new(address, self.limits, &self.buffer)?;
        self.by_address.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// Lets go of addresses that nobody alive has; calls under way hold their channel themselves.
    fn follow(&mut self, view: &View) {
        let alive: ahash::HashSet<&str> = view.living().flat_map(|member| member.addresses()).collect();
        self.by_address.retain(|address, _| alive.contains(address.as_str()));
    }
}

/// `router_server.Router` on one core.
#[derive(Debug)]
pub struct RouterService {
    desk: Rc<Desk>,
}

/// The methods that are here.
#[derive(Clone, Copy, Debug)]
enum Method {
    Forward(Forwarded),
    Batch(Forwarded),
    Join,
    Leave,
    Topology,
    WatchTopology,
}

impl Method {
    fn at(path: &str) -> Option<Self> {
        const METHODS: [(&str, Method); 10] = [
            (ROUTER_GET.path, Method::Forward(forward::GET)),
            (ROUTER_PUT.path, Method::Forward(forward::PUT)),
            (ROUTER_DELETE.path, Method::Forward(forward::DELETE)),
            (ROUTER_BATCH_GET.path, Method::Batch(batch::GET)),
            (ROUTER_BATCH_PUT.path, Method::Batch(batch::PUT)),
            (ROUTER_BATCH_DELETE.path, Method::Batch(batch::DELETE)),
            (ROUTER_JOIN.path, Method::Join),
            (ROUTER_LEAVE.path, Method::Leave),
            (ROUTER_TOPOLOGY.path, Method::Topology),
            (ROUTER_WATCH_TOPOLOGY.path, Method::WatchTopology),
        ];
        METHODS.iter().find(|(known, _)| *known == path).map(|(_, method)| *method)
    }

    fn op(self) -> Op {
        match self {
            Self::Forward(call) | Self::Batch(call) => call.op,
            Self::Join => Op::Join,
            Self::Leave => Op::Leave,
            Self::Topology => Op::Topology,
            Self::WatchTopology => Op::WatchTopology,
        }
    }
}

impl RouterService {
    /// Serves from `desk`.
    #[must_use]
    pub fn new(desk: Rc<Desk>) -> Self {
        Self { desk }
    }
}

impl Service for RouterService {
    type Call = Pin<Box<dyn Future<Output = Reply>>>;
    const MOSTLY_WAITS: bool = true;

    fn method(&self, path: &str) -> Option<Effect> {
        Some(match Method::at(path)?.op() {
            // Sent is sent: whether its caller is still there or not, the outcome is counted and the breaker learns of it.
            Op::Put | Op::Delete | Op::BatchPut | Op::BatchDelete => Effect::Writes,
            _ => Effect::Reads,
        })
    }

    fn call(&self, request: Request) -> Self::Call {
        let method = Method::at(&request.path).expect("asked for what is known only");
        let desk = Rc::clone(&self.desk);
        Box::pin(async move {
            let counted = Counted { desk: Rc::clone(&desk), op: method.op(), code: Code::Cancelled };
            let outcome = match method {
                Method::Forward(call) => forward::forward(desk, call, request).await,
                Method::Batch(call) => batch::forward(desk, call, request).await,
                Method::Join => desk.join(request.message).await.map(Reply::Message),
                Method::Leave => desk.leave(request.message).await.map(Reply::Message),
                Method::Topology => desk.topology(false),
                Method::WatchTopology => desk.topology(true),
            };
            counted.end(outcome)
        })
    }
}

/// Counts a call, also one whose future is dropped.
struct Counted {
    desk: Rc<Desk>,
    op: Op,
    code: Code,
}

impl Counted {
    fn end(mut self, outcome: Result<Reply, Status>) -> Reply {
        let reply = outcome.unwrap_or_else(Reply::Failed);
        self.code = match &reply {
            Reply::Failed(status) => status.code,
            Reply::Message(_) | Reply::Parts(_) | Reply::Watch(_) => Code::Ok,
        };
        reply
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.desk.stats.borrow_mut().count(self.op, self.code);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use milena_net::http2::limits::LINK;

    use super::*;
    use crate::{members::Members, rate_limit::RateSettings};

    #[test]
    fn an_answer_to_another_question_is_an_internal_error_and_the_desk_goes_on() {
        let (authority, mut asked) = mesh::mailbox(4);
        let desk = Desk::new(DeskConfig {
            core: 0,
            value_bytes_max: 1,
            channels: ChannelLimits { profile: &LINK, message_bytes_max: 1 },
            rates: RateLimits::new(RateSettings::default(), 1, Instant::now()),
            authority,
            view: Arc::new(Members::new().view()),
        });
        let before = fault::count();
        let message = wire::JoinRequest { address: "http://a:1".to_owned(), ..Default::default() }.encode_to_vec();
        let mut join = Box::pin(Rc::clone(&desk).join(message.into()));
        assert!((&mut join).now_or_never().is_none());
        let Some(Some(ToAuthority::Ask(asker, _))) = asked.recv().now_or_never() else { panic!("it asks") };
        desk.answered(asker.ticket, Answer::Left { was_member: true });
        desk.answered(asker.ticket, Answer::Left { was_member: true });
        let status = join.now_or_never().expect("it is answered").unwrap_err();
        assert_eq!(status.code, Code::Internal, "{status}");
        assert_eq!(fault::count(), before + 2, "nobody waits for the second");
        assert_eq!(desk.report().faults, fault::count());
    }
}
