//! How a node becomes a member of the cluster and stays one: Join is the lease, the same call repeated every second.
//!
//! ```text
//!             due                 accepted: believed until the moment it was sent + lease
//!   waiting ───────▶ asking ──────────────────────────────────────────▶ waiting, 1 s from the last sending
//!      ▲                └── no answer: 1 s, then at most 2 s; refused: 5 s ──▶ waiting
//!      └── one such circle for each router of ROUTER_ADDR; the node is a member while any lease lasts
//! ```
//! A router that is gone changes nothing for those who already talk to this node: it serves on, and joins again. But the
//! keys of a node whose lease ran out may have been written elsewhere meanwhile: before such a node asks to come back, all
//! its cores stop believing what they remember ([`Tenures`]; rule T of ARCHITECTURE.md), and only then it is asked anything.
//! While it lasts, each answer names the epoch of the router's table; ownership.rs follows that.
//! The arithmetic is pure ([`Membership`]: events and time in, decisions out); the loop that sends is [`Links::keep`].

use std::{
    cell::{Cell, RefCell},
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::{self, Either};
use milena_net::{
    grpc::{
        client::{CallError, Channel, Done},
        status::Code,
    },
    mesh, task,
};
use milena_proto::{
    grpc_health_v1::HealthCheckRequest,
    method::{HEALTH_CHECK, ROUTER_JOIN, ROUTER_LEAVE},
    placement::mix64,
    router_server::{JoinRequest, JoinResponse, LeaveRequest},
};
use milena_storage::Timestamp;

use crate::ownership::{self, Ask, View};

/// Time between two Joins. A shorter lease is renewed four times within it.
pub const JOIN_INTERVAL: Duration = Duration::from_secs(1);

/// Longest pause before a router that did not answer is asked again: well below the lease that a restarted router waits
/// before it gives a member's keys away.
pub const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(2);

/// Pause after a router said no: somebody has to change something first.
pub const REFUSED_INTERVAL: Duration = Duration::from_secs(5);

/// How long one Join may take.
pub const JOIN_DEADLINE: Duration = Duration::from_secs(2);

/// How long a goodbye may take: a router that does not hear it finds out when the lease ends. It answers at once, or when
/// every other node has renewed its lease since it heard of us.
pub const LEAVE_DEADLINE: Duration = Duration::from_secs(3);

/// What the node knows about its own membership: one link to each router. Pure.
#[derive(Debug)]
pub struct Membership {
    links: Vec<Link>,
    /// The latest topology that any router told.
    epoch: u64,
    /// Spreads the retries of many nodes after one router's restart.
    random: u64,
}

#[derive(Debug)]
struct Link {
    /// When to ask next; `None` while an answer is awaited.
    due: Option<Instant>,
    lease: Lease,
    failures: u32,
    standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lease {
    None,
    Until(Instant),
    /// A router that knows no leases counts us in until we leave.
    Pinned,
}

/// How the last answer left us with a router; a line is logged only when this changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    New,
    Joined,
    Lost,
    Refused,
}

/// What an answer changed, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing that was not known.
    Nothing,
    /// The router counts us in now.
    Joined,
    /// The router does not answer any more, or not yet.
    Lost,
    /// The router does not want us.
    Refused,
}

/// Why a Join did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No answer, or none that says anything about us.
    NoAnswer,
    /// The router said no.
    Refused,
}

impl Membership {
    /// Not a member yet, and due to ask every router at `now`. `seed` should differ between nodes.
    #[must_use]
    pub fn new(router_count: usize, seed: u64, now: Instant) -> Self {
        let link = || Link { due: Some(now), lease: Lease::None, failures: 0, standing: Standing::New };
        Self { links: (0..router_count).map(|_| link()).collect(), epoch: 0, random: seed }
    }

    /// When `router` is to be asked next; `None` while its answer is awaited.
    #[must_use]
    pub fn due(&self, router: usize) -> Option<Instant> {
        self.links[router].due
    }

    /// A Join to `router` is being sent: until its end is told, none is due.
    pub fn asked(&mut self, router: usize) {
        assert!(self.links[router].due.is_some(), "one Join at a time");
        self.links[router].due = None;
    }

    /// `router` answered a Join that was sent at `sent`. The lease counts from there, because the router's began later.
    pub fn answered(&mut self, router: usize, sent: Instant, now: Instant, response: &JoinResponse) -> News {
        if !response.successful {
            return self.failed(router, now, Failure::Refused);
        }
        self.epoch = self.epoch.max(response.epoch);
        let lease = Duration::from_millis(response.lease_ms);
        let link = &mut self.links[router];
        let mut interval = JOIN_INTERVAL;
        if lease.is_zero() {
            link.lease = Lease::Pinned;
        } else {
            link.lease = Lease::Until(sent + lease);
            interval = interval.min(lease / 4);
        }
        link.failures = 0;
        link.due = Some(now.max(sent + interval));
        link.news(Standing::Joined, News::Joined)
    }

    /// A Join to `router` came to nothing. The lease stays as it was.
    pub fn failed(&mut self, router: usize, now: Instant, failure: Failure) -> News {
        self.random = mix64(self.random.wrapping_add(1));
        let link = &mut self.links[router];
        link.failures += 1;
        let (standing, news, interval) = match failure {
            Failure::NoAnswer => {
                let interval = JOIN_INTERVAL * if link.failures == 1 { 1 } else { 2 };
                (Standing::Lost, News::Lost, interval.min(RETRY_INTERVAL_MAX))
            }
            Failure::Refused => (Standing::Refused, News::Refused, REFUSED_INTERVAL),
        };
        // Between three and four quarters of the interval.
        let quarter_share = u32::try_from(self.random % 1000).expect("below 1000");
        let early = interval / 4 * quarter_share / 1000;
        link.due = Some(now + (interval - early));
        link.news(standing, news)
    }

    /// The next Join to `router` is due at `now`.
    pub fn renew_at(&mut self, router: usize, now: Instant) {
        let link = &mut self.links[router];
        assert!(link.due.is_some(), "no Join is under way");
        link.due = Some(now);
    }

    /// Whether a router counts this node in at `now`, as far as the node can know.
    #[must_use]
    pub fn is_member(&self, now: Instant) -> bool {
        self.links.iter().any(|link| match link.lease {
            Lease::None => false,
            Lease::Until(end) => now < end,
            Lease::Pinned => true,
        })
    }

    /// Whether any router has ever accepted this node.
    #[must_use]
    pub fn has_joined(&self) -> bool {
        self.links.iter().any(|link| link.lease != Lease::None)
    }

    /// Whether `router` has accepted this node since it started, so that it may still count it in.
    #[must_use]
    pub fn is_known_to(&self, router: usize) -> bool {
        self.links[router].lease != Lease::None
    }

    /// The latest topology that any router told; 0 = none yet.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The node has said goodbye: nobody counts it in from here on.
    pub fn left(&mut self) {
        for link in &mut self.links {
            link.lease = Lease::None;
        }
    }
}

impl Link {
    fn news(&mut self, standing: Standing, news: News) -> News {
        let is_new = self.standing != standing;
        self.standing = standing;
        if is_new { news } else { News::Nothing }
    }
}

/// A node's links to its routers: on core 0, for as long as the node runs.
#[derive(Debug)]
pub struct Links {
    /// Each router as it was written, and the way to it.
    pub routers: Vec<(String, Channel)>,
    /// What every Join says; the epoch is filled in.
    pub announcement: JoinRequest,
    /// To tell the cores that they may have missed something.
    pub tenures: Tenures,
    /// Who follows the router's table; `None` with several routers, whose epochs cannot be compared.
    pub follower: Option<mesh::Sender<Ask>>,
    /// The epoch that all cores go by; 0 = none.
    pub followed: Rc<Cell<u64>>,
    /// What comes of it. Nothing here holds a borrow of it while it waits.
    pub membership: Rc<RefCell<Membership>>,
}

impl Links {
    /// Joins every router again and again until `stop` is ready, and then says goodbye to each that counted us in. Takes at
    /// most [`JOIN_DEADLINE`] and [`LEAVE_DEADLINE`] from there, because a Join that is under way must not follow the goodbye.
    pub async fn keep<S: Future<Output = ()> + Clone + Unpin>(&self, stop: S) {
        let links = (0..self.routers.len()).map(|router| self.keep_one(router, stop.clone()));
        future::join_all(links).await;
        self.membership.borrow_mut().left();
    }

    async fn keep_one(&self, router: usize, mut stop: impl Future<Output = ()> + Unpin) {
        loop {
            let due = self.membership.borrow().due(router).expect("no Join is under way");
            let waiting = std::pin::pin!(task::sleep_until(due));
            if let Either::Left(_) = future::select(&mut stop, waiting).await {
                break;
            }
            self.join(router).await;
        }
        self.leave(router).await;
    }

    async fn join(&self, router: usize) {
        let (address, channel) = &self.routers[router];
        self.membership.borrow_mut().asked(router);
        let (has_joined, is_member) = {
            let membership = self.membership.borrow();
            (membership.has_joined(), membership.is_member(Instant::now()))
        };
        // Only when there is somebody to come back to: whoever still asks us directly is better served from memory. A node
        // that was never in may have answered somebody directly, too.
        if !is_member && self.is_there(router).await {
            if has_joined {
                tracing::info!("the lease ran out; what is in memory is unverified before {address} hears of us again");
            }
            self.tenures.tell(|| Change::End).await;
        }
        let request = JoinRequest { epoch: self.followed.get(), ..self.announcement.clone() };
        let sent = Instant::now();
        let answer = channel.unary(ROUTER_JOIN, &request, sent + JOIN_DEADLINE).await;

        let now = Instant::now();
        let news = {
            let mut membership = self.membership.borrow_mut();
            match &answer {
                Ok(response) => membership.answered(router, sent, now, response),
                Err(error) => membership.failed(router, now, Failure::of(error)),
            }
        };
        let told = answer.as_ref().ok().filter(|response| response.successful).map(|response| response.epoch);
        let reason = answer.as_ref().map_or_else(|error| error.status.to_string(), |_| "not successful".to_owned());
        match news {
            News::Nothing => {}
            News::Joined => match answer.map_or(0, |response| response.lease_ms) {
                0 => tracing::info!("joined {address} without a lease; epoch {}", self.epoch()),
                lease_ms => tracing::info!("joined {address}: lease {lease_ms} ms, epoch {}", self.epoch()),
            },
            News::Lost => tracing::warn!("router {address} does not answer: {reason}; serving on, joining again"),
            News::Refused => tracing::error!(
                "router {address} refuses this node as {}: {reason}; trying again every {} s",
                self.announcement.address,
                REFUSED_INTERVAL.as_secs()
            ),
        }
        self.follow(router, told).await;
    }

    fn epoch(&self) -> u64 {
        self.membership.borrow().epoch()
    }

    /// Follows the router's table when it is another one than ours, and lets the router know at once: whoever leaves waits
    /// until we have seen that it was there.
    async fn follow(&self, router: usize, told: Option<u64>) {
        let Some(follower) = &self.follower else { return };
        if told.is_none_or(|epoch| epoch == self.followed.get()) {
            return;
        }
        let before = self.followed.get();
        // Without an answer, and when too many strays ask for the same, the next renewal finds the epochs apart again.
        let _ = ownership::ask(follower).await;
        if self.followed.get() != before {
            self.membership.borrow_mut().renew_at(router, Instant::now());
        }
    }

    /// Whether a router says anything at all.
    async fn is_there(&self, router: usize) -> bool {
        let (_, channel) = &self.routers[router];
        let deadline = Instant::now() + JOIN_DEADLINE;
        let answer = channel.unary(HEALTH_CHECK, &HealthCheckRequest::default(), deadline).await;
        answer.map_or_else(|error| error.done == Done::Answered, |_| true)
    }

    async fn leave(&self, router: usize) {
        let (address, channel) = &self.routers[router];
        if !self.membership.borrow().is_known_to(router) {
            return;
        }
        let JoinRequest { address: own, node_id, .. } = &self.announcement;
        let request = LeaveRequest { address: own.clone(), node_id: node_id.clone(), drain: false };
        match channel.unary(ROUTER_LEAVE, &request, Instant::now() + LEAVE_DEADLINE).await {
            Ok(_) => tracing::info!("left {address}"),
            Err(error) => {
                tracing::warn!("router {address} did not hear the goodbye: {}; it will miss us", error.status);
            }
        }
    }
}

/// The way from membership to every core, for what changes the keys that are this node's.
#[derive(Clone, Debug)]
pub struct Tenures {
    /// One for each core, with room for [`Tenures::room`] messages.
    pub cores: Vec<mesh::Sender<Told>>,
}

/// What happens to the keys of this node.
#[derive(Clone, Debug)]
pub enum Change {
    /// Others may have written any of them: every copy is doubted.
    End,
    /// Shards: these are ours now; copies of those that came to us are doubted.
    Follow(Arc<View>),
    /// Doors: this is what goes for requests from here on; every shard follows it already.
    Open(Arc<View>),
}

/// Tells a core of a change. It drops this when it has done what follows from it, which is how its sender knows.
#[derive(Debug)]
pub struct Told {
    /// What.
    pub change: Change,
    _done: mesh::Sender<()>,
}

impl Tenures {
    /// Messages that may wait at a core: one of each router's link, and one of the follower of its table.
    #[must_use]
    pub fn room(router_count: usize) -> usize {
        router_count + 1
    }

    /// Returns when every core that runs has done what follows from a change.
    pub(crate) async fn tell(&self, change: impl Fn() -> Change) {
        let (done, mut all_done) = mesh::mailbox(1);
        for core in &self.cores {
            match core.try_send(Told { change: change(), _done: done.clone() }) {
                Ok(()) | Err(mesh::Refused::Gone(_)) => {} // It has stopped: it answers nothing any more.
                Err(mesh::Refused::Full(_)) => panic!("each link and the follower tell one change at a time"),
            }
        }
        drop(done);
        let nothing = all_done.recv().await;
        debug_assert_eq!(nothing, None);
    }
}

impl Failure {
    fn of(error: &CallError) -> Self {
        match error.status.code {
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Unauthenticated
            | Code::Unimplemented => Self::Refused,
            _ => Self::NoAnswer,
        }
    }
}

/// Who this node is: kept in its directory, so that it finds its slot again after a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// 32 hexadecimal digits, made at the first start.
    pub node_id: String,
    /// Milliseconds since the Unix epoch at the start of this process, or one more than the last start's, if that is larger.
    pub incarnation: u64,
}

/// This node's directory, which no other process may use while this value lives.
#[derive(Debug)]
pub struct NodeDir {
    /// Who this node is.
    pub identity: Identity,
    /// Unlocked when it is closed, at the latest by the kernel.
    _lock: File,
}

/// Why a node's directory cannot be used.
#[derive(Debug)]
pub enum NodeDirError {
    /// Another process has it.
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// A file cannot be made, read or written.
    Io {
        /// What was attempted, as "write".
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A file holds something that we did not write.
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
}

const NODE_ID_DIGITS: usize = 32;

impl NodeDir {
    /// Makes and locks the directory `dir`, and finds out who lives there: a new node, or the one from the last start with
    /// the next incarnation. Blocks; for the start of a process.
    ///
    /// # Errors
    /// The directory is in use or not writable, or its files hold something else.
    pub fn open(dir: &Path, now: Timestamp) -> Result<Self, NodeDirError> {
        let failed = |attempt, path: &Path| {
            let path = path.to_owned();
            move |error| NodeDirError::Io { attempt, path, error }
        };
        fs::create_dir_all(dir).map_err(failed("make", dir))?;
        let lock_path = dir.join("LOCK");
        let lock = File::create(&lock_path).map_err(failed("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(NodeDirError::InUse { dir: dir.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(failed("lock", &lock_path)(error)),
        }

        let id_path = dir.join("node-id");
        let node_id = match read_line(&id_path).map_err(failed("read", &id_path))? {
            Some(node_id) => node_id,
            None => {
                let node_id = random_id().map_err(failed("read", Path::new("/dev/urandom")))?;
                write_whole(&id_path, &node_id).map_err(failed("write", &id_path))?;
                node_id
            }
        };
        if node_id.len() != NODE_ID_DIGITS || !node_id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NodeDirError::Damaged { path: id_path, wanted: "32 hexadecimal digits" });
        }

        let incarnation_path = dir.join("incarnation");
        let last = match read_line(&incarnation_path).map_err(failed("read", &incarnation_path))? {
            Some(line) => line
                .parse()
                .map_err(|_| NodeDirError::Damaged { path: incarnation_path.clone(), wanted: "a whole number" })?,
            None => 0,
        };
        // The clock may have been set back; the number may not.
        let incarnation = now.0.max(last + 1);
        let written = match write_whole(&incarnation_path, &incarnation.to_string()) {
            Err(error) if last > 0 && is_full(&error) => write_over(&incarnation_path, incarnation),
            written => written,
        };
        written.map_err(failed("write", &incarnation_path))?;
        Ok(Self { identity: Identity { node_id, incarnation }, _lock: lock })
    }
}

/// A small file's one line, `None` if there is no such file.
fn read_line(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a small file so that a crash leaves the old one or the new one.
fn write_whole(path: &Path, line: &str) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = File::create(&unfinished)?;
    writeln!(file, "{line}")?;
    file.sync_all()?;
    fs::rename(&unfinished, path)
}

/// Whether there is no room for a second file beside the one that is there.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// Writes a number over the one that is there, which needs no room: a disk that is full may not keep a node from starting. The
/// digits are in one sector, which a disk writes as a whole or not at all; and there are as many as before, unless a digit more
/// is needed.
fn write_over(path: &Path, number: u64) -> io::Result<()> {
    // What was begun of the other file is of no use. It may not be there.
    let _ = fs::remove_file(path.with_extension("new"));
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(format!("{number}\n").as_bytes())?;
    file.sync_all()
}

fn random_id() -> io::Result<String> {
    let mut bytes = [0; NODE_ID_DIGITS / 2];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl fmt::Display for NodeDirError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse { dir } => write!(
                f,
                "cannot open {}: another process holds LOCK; hint: is a second milena-cache running on this directory?",
                dir.display()
            ),
            Self::Io { attempt, path, error } => {
                write!(f, "cannot {attempt} {}: {error}; hint: DATA_DIR must be writable", path.display())
            }
            Self::Damaged { path, wanted } => {
                write!(
                    f,
                    "{} does not hold {wanted}; hint: remove it, the node then starts as a new one",
                    path.display()
                )
            }
        }
    }
}

impl std::error::Error for NodeDirError {}

/// No address could be found that routers would reach this node at.
#[derive(Debug)]
pub struct NoAddressError {
    /// Where the node listens.
    pub listen: IpAddr,
    /// The first router, as it was written.
    pub router: String,
}

impl fmt::Display for NoAddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "--listen-addr {} is every address of this machine and none of them leads to router {}; set ADVERTISE_ADDR to \
             the one that routers should use",
            self.listen, self.router
        )
    }
}

impl std::error::Error for NoAddressError {}

/// Where 'elsewhere' is, for a machine that cannot find its router's name yet: reserved for documentation by RFC 5737 and
/// RFC 3849. Nothing is sent there.
const ELSEWHERE: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9),
];

/// The address of this machine that faces `router` (`http://host:port`), for a node that listens on every one of them.
///
/// A UDP socket that is connected sends nothing, but knows its own end. Where the router's name leads nowhere (yet), the
/// end that faces the rest of the world is taken. Blocks for the name's resolution.
///
/// # Errors
/// There is no route in a family that `listen` can hear.
pub fn address_facing(router: &str, listen: IpAddr) -> Result<IpAddr, NoAddressError> {
    let authority = router.strip_prefix("http://").unwrap_or(router);
    let resolved = authority.to_socket_addrs().map(Iterator::collect::<Vec<_>>).unwrap_or_default();
    // 0.0.0.0 hears IPv4 only; [::] hears both.
    let is_heard = |address: &SocketAddr| address.is_ipv4() || listen.is_ipv6();
    let mut towards = resolved.into_iter().chain(ELSEWHERE).filter(is_heard);
    let own_end = |towards: SocketAddr| {
        let any: IpAddr = if towards.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(towards).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|own| !own.is_unspecified())
    };
    towards.find_map(own_end).ok_or_else(|| NoAddressError { listen, router: router.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE_MS: u64 = 5000;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn accepted(epoch: u64) -> JoinResponse {
        JoinResponse { successful: true, epoch, lease_ms: LEASE_MS }
    }

    #[test]
    fn a_lease_is_believed_from_the_moment_the_join_was_sent() {
        let start = Instant::now();
        let mut node = Membership::new(1, 7, start);
        assert_eq!(node.due(0), Some(start));
        node.asked(0);
        assert_eq!(node.due(0), None);
        assert!(!node.is_member(start));

        // The answer takes two seconds; the lease is not longer for that.
        assert_eq!(node.answered(0, start, start + seconds(2), &accepted(3)), News::Joined);
        assert!(node.is_member(start + seconds(5) - Duration::from_nanos(1)));
        assert!(!node.is_member(start + seconds(5)));
        assert!(node.has_joined());
        assert_eq!(node.epoch(), 3);
    }

    #[test]
    fn a_join_is_due_every_second_from_the_last_sending_and_at_once_when_the_answer_was_slow() {
        let start = Instant::now();
        let mut node = Membership::new(1, 7, start);
        node.asked(0);
        let quick = start + Duration::from_millis(10);
        assert_eq!(node.answered(0, start, quick, &accepted(1)), News::Joined);
        assert_eq!(node.due(0), Some(start + seconds(1)));
        node.asked(0);
        let slow = start + seconds(3);
        assert_eq!(node.answered(0, start + seconds(1), slow, &accepted(1)), News::Nothing);
        assert_eq!(node.due(0), Some(slow));
    }

    #[test]
    fn a_short_lease_is_renewed_more_often() {
        let start = Instant::now();
        let mut node = Membership::new(1, 7, start);
        node.asked(0);
        node.answered(0, start, start, &JoinResponse { lease_ms: 400, ..accepted(1) });
        assert_eq!(node.due(0), Some(start + Duration::from_millis(100)));
    }

    #[test]
    fn a_router_that_is_gone_is_news_once_and_is_asked_again_within_two_seconds_for_ever() {
        let start = Instant::now();
        let mut node = Membership::new(1, 7, start);
        node.asked(0);
        node.answered(0, start, start, &accepted(1));
        let mut now = node.due(0).unwrap();
        for attempt in 0..1000 {
            node.asked(0);
            let news = node.failed(0, now, Failure::NoAnswer);
            assert_eq!(news, if attempt == 0 { News::Lost } else { News::Nothing });
            let due = node.due(0).unwrap();
            assert!(due >= now + JOIN_INTERVAL * 3 / 4 && due <= now + RETRY_INTERVAL_MAX, "{:?}", due - now);
            now = due;
        }
        assert!(!node.is_member(now), "the lease ran out");
        assert!(node.has_joined());
        node.asked(0);
        assert_eq!(node.answered(0, now, now, &accepted(9)), News::Joined);
        assert!(node.is_member(now));
    }

    #[test]
    fn a_lost_answer_does_not_end_a_lease_that_still_lasts() {
        let start = Instant::now();
        let mut node = Membership::new(1, 7, start);
        node.asked(0);
        node.answered(0, start, start, &accepted(1));
        node.asked(0);
        node.failed(0, start + seconds(3), Failure::NoAnswer);
        assert!(node.is_member(start + seconds(4)));
    }

    #[test]
    fn a_router_that_says_no_is_not_asked_every_second() {
        let start = Instant::now();
        let mut node = Membership::new(1, 7, start);
        node.asked(0);
        assert_eq!(node.failed(0, start, Failure::Refused), News::Refused);
        assert!(node.due(0).unwrap() >= start + REFUSED_INTERVAL * 3 / 4);
        node.asked(0);
        let no = JoinResponse { successful: false, ..accepted(0) };
        assert_eq!(node.answered(0, start, start, &no), News::Nothing);
        assert!(!node.has_joined());
    }

    #[test]
    fn with_several_routers_the_node_is_a_member_while_one_of_them_counts_it_in() {
        let start = Instant::now();
        let mut node = Membership::new(2, 7, start);
        node.asked(0);
        node.asked(1);
        assert_eq!(node.failed(0, start, Failure::NoAnswer), News::Lost);
        assert!(!node.is_member(start));
        assert_eq!(node.answered(1, start, start, &accepted(4)), News::Joined);
        assert!(node.is_member(start + seconds(4)));
        node.asked(0);
        assert_eq!(node.answered(0, start + seconds(2), start + seconds(2), &accepted(2)), News::Joined);
        assert!(node.is_member(start + seconds(6)));
        assert_eq!(node.epoch(), 4, "an older router does not turn the clock back");
    }

    #[test]
    fn a_router_without_leases_pins_the_node_until_it_leaves() {
        let start = Instant::now();
        let mut node = Membership::new(1, 7, start);
        node.asked(0);
        node.answered(0, start, start, &JoinResponse { lease_ms: 0, epoch: 0, successful: true });
        assert!(node.is_member(start + seconds(3600)));
        assert_eq!(node.due(0), Some(start + JOIN_INTERVAL));
        node.left();
        assert!(!node.is_member(start));
    }

    #[test]
    fn a_node_keeps_its_id_and_counts_its_starts_even_when_the_clock_is_set_back() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("node-50051");
        let first = NodeDir::open(&dir, Timestamp(1000)).unwrap().identity;
        let second = NodeDir::open(&dir, Timestamp(500)).unwrap().identity;
        let third = NodeDir::open(&dir, Timestamp(5000)).unwrap().identity;
        assert_eq!(first.node_id.len(), NODE_ID_DIGITS);
        assert_eq!((&second.node_id, &third.node_id), (&first.node_id, &first.node_id));
        assert_eq!([first.incarnation, second.incarnation, third.incarnation], [1000, 1001, 5000]);
        let other = NodeDir::open(&dir.with_file_name("node-50052"), Timestamp(1000)).unwrap().identity;
        assert_ne!(other.node_id, first.node_id);
    }

    #[test]
    fn a_directory_in_use_is_refused_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let _held = NodeDir::open(dir.path(), Timestamp(1)).unwrap();
        assert_eq!(
            NodeDir::open(dir.path(), Timestamp(2)).unwrap_err().to_string(),
            format!(
                "cannot open {}: another process holds LOCK; hint: is a second milena-cache running on this directory?",
                dir.path().display()
            )
        );
    }

    #[test]
    fn a_directory_that_cannot_be_made_or_that_holds_something_else_is_refused_readably() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let refused = NodeDir::open(&file.join("node"), Timestamp(1)).unwrap_err().to_string();
        assert!(
            refused.starts_with("cannot make ") && refused.ends_with("; hint: DATA_DIR must be writable"),
            "{refused}"
        );

        fs::write(dir.path().join("node-id"), "../../etc").unwrap();
        let refused = NodeDir::open(dir.path(), Timestamp(1)).unwrap_err().to_string();
        assert!(refused.contains("node-id does not hold 32 hexadecimal digits"), "{refused}");
    }

    #[test]
    fn the_address_that_faces_a_router_on_this_machine_is_loopback() {
        assert_eq!(
            address_facing("http://127.0.0.1:50050", Ipv4Addr::UNSPECIFIED.into()).unwrap(),
            IpAddr::from(Ipv4Addr::LOCALHOST)
        );
        let named = address_facing("http://localhost:50050", Ipv4Addr::UNSPECIFIED.into()).unwrap();
        assert!(named.is_ipv4() && named.is_loopback(), "{named}");
    }
}
