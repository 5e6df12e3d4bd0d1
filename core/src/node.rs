//! A node: what it is made of, started in order and stopped in order.
//!
//! ```text
//!   start   settings ─▶ io_uring? ─▶ directory, lock ─▶ ports ─▶ store ─▶ page ─▶ cores ─▶ serving ─▶ joined: ready
//!
//!   each core                                              core 0 besides
//!     common port ─┐                                         membership: one link to each router
//!     own port ────┴▶ Server ─▶ CacheService ─▶ Shards       complaints: what the store's failures say to operators
//!     once a second: expired entries dropped, counters copied
//!
//!   stop    settle ─▶ leave ─▶ refuse ─▶ drain ─▶ seal ─▶ part         net/src/shutdown.rs
//! ```
//! `main` is a few lines around this, and tests start it too.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    pin::pin,
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use futures::{
    FutureExt as _,
    channel::oneshot,
    future::{self, AbortHandle, Either},
};
use milena_net::{
    cores::{self, Cores, CoresConfig, ProbeError},
    fault,
    grpc::{
        client::{Channel, ChannelLimits},
        health::Health,
        reflection::Reflection,
        server::{Server, ServerLimits},
    },
    http2::limits::{LINK, OUTSIDE, Profile},
    mesh,
    metrics::{GATHER_MAX, Reporter, gather},
    ops::{Answers, OpsError, Page},
    settings::Size,
    shutdown::{Outcome, Participant, Reason, Shutdown, Stage, StageLimits},
    stream::ReadBuffer,
    task,
    tcp::{self, ListenError, ListenOptions, Listener},
};
use milena_proto::{generated::DESCRIPTORS, limits, placement, router_server::JoinRequest};
use milena_storage::{
    Error,
    log::{self, Disk, Keeper, Log, LogSettings, OpenError, Opened, RehomeError, SuperblockError, Trouble},
    object::{self, Object, Pools, StoreConfig},
};

use crate::{
    complaints::{self, COMPLAINTS_WAITING_MAX, Complaint},
    config::{Settings, ShardPorts},
    membership::{
        Change, Identity, JOIN_DEADLINE, LEAVE_DEADLINE, Links, Membership, NoAddressError, NodeDir, NodeDirError,
        Tenures, Told, address_facing,
    },
    message::{self, Ends},
    ownership::{ASKS_MAX, Ask, Follower, Ownership, TOPOLOGY_BYTES_MAX},
    report::{self, Report},
    service::{CacheService, ServiceSettings, time_of_day},
    shard::{ABSENT_MS_DEFAULT, Shard, ShardSettings, WriteMode},
    shards::Shards,
    stats::Stats,
    uploader,
};

/// Connections of one core, on each of its ports; more are closed as they come.
pub const CONNECTIONS_PER_CORE_MAX: usize = 16_384;

/// Between two looks for expired entries.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Between two parts of one such look, when there is more than one part.
const SWEEP_PAUSE: Duration = Duration::from_millis(5);

/// How long a node that stops waits for uploads; what is left then stays in its log.
const SETTLE_MAX: Duration = Duration::from_millis(4_500);

/// What a core serves besides health and reflection, by its full name.
const SERVICES: [&str; 1] = ["cache_server.Cache"];

/// A node that runs.
#[derive(Debug)]
pub struct Running {
    /// The common address, where every core answers.
    pub addr: SocketAddr,
    /// Each core's own address, in the order of the cores.
    pub shard_addrs: Vec<SocketAddr>,
    /// Where operators look.
    pub metrics_addr: Option<SocketAddr>,
    shutdown: Shutdown,
    cores: Cores<Report>,
    _page: Option<Page>,
    /// Its lock is held as long as the node runs.
    _node_dir: NodeDir,
}

/// Why a node did not start. One line, for `main` to print.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is its content")]
pub enum StartError {
    Probe(ProbeError),
    NodeDir(NodeDirError),
    Rehome(RehomeError),
    Disk(OpenError),
    NoStore { node_dir: PathBuf, debts: u64 },
    NoDisk { node_dir: PathBuf, debts: u64 },
    Unusable { log_dir: PathBuf, why: SuperblockError },
    Listen(ListenError),
    Store(Error),
    Threads(io::Error),
    NoAddress(NoAddressError),
    Page(OpsError),
    Cores(cores::StartError),
}

/// How a node stopped.
#[derive(Debug)]
pub struct Stopped {
    /// Why, how long it took, and what was left behind.
    pub outcome: Outcome,
    /// What it counted, all cores together; `None` where a core did not end.
    pub report: Option<Report>,
}

/// How long each stage of a node's stop may take: `drain` is a setting.
#[must_use]
pub fn stage_limits(drain: Duration) -> StageLimits {
    StageLimits { leave: JOIN_DEADLINE + LEAVE_DEADLINE + Duration::from_secs(1), drain, ..StageLimits::default() }
}

/// Starts a node and returns when its ports are open; it joins its routers after that. It stops when `shutdown` begins.
///
/// # Errors
/// What it needs is not there: io_uring, its directory, its ports, a directory as its store. A store or a router that
/// does not answer is none of them: the node starts and waits for it.
pub fn start(settings: &Settings, shutdown: &Shutdown) -> Result<Running, StartError> {
    cores::probe().map_err(StartError::Probe)?;
    let node_dir = NodeDir::open(&settings.node_dir, time_of_day()).map_err(StartError::NodeDir)?;
    let logs = open_logs(settings, node_dir.identity.incarnation)?;
    let common = tcp::listen_on_all(settings.listen, settings.cores).map_err(StartError::Listen)?;
    let own = listen_for_each(settings).map_err(StartError::Listen)?;
    let addr = common[0].local_addr();
    let shard_addrs: Vec<SocketAddr> = own.iter().map(Listener::local_addr).collect();
    let announcement = announcement(settings, &node_dir.identity, addr, &shard_addrs)?;
    let store = object::open(&settings.store).map_err(StartError::Store)?;
    let pools = store.map(|store| Pools::start(&store, settings.store_threads)).transpose();
    let pools = pools.map_err(StartError::Threads)?;

    let (ask_reports, reports): (Vec<_>, Vec<_>) = (0..settings.cores).map(|_| mesh::mailbox(QUESTIONS_MAX)).unzip();
    let (ask_ready, ready) = mesh::mailbox(QUESTIONS_MAX);
    let page = settings.metrics.map(|address| Page::start(address, NodePage { ask_reports, ask_ready }));
    let page = page.transpose().map_err(StartError::Page)?;
    let metrics_addr = page.as_ref().map(Page::local_addr);

    let link_count = settings.routers.len().max(1);
    let room = Tenures::room(link_count);
    let (tell, told): (Vec<_>, Vec<_>) = (0..settings.cores).map(|_| mesh::mailbox(room)).unzip();
    let (ask, asks) = mesh::mailbox(ASKS_MAX);
    let (complain, complaints) = mesh::mailbox(COMPLAINTS_WAITING_MAX);
    let mut core_0 = Some(CoreZero {
        announcement,
        routers: settings.routers.clone(),
        incarnation: node_dir.identity.incarnation,
        complaints,
        ready,
        tenures: Tenures { cores: tell },
        asks,
    });
    let each = message::mesh(settings.cores).into_iter().zip(reports).zip(told).zip(common).zip(own).zip(logs);
    let mut parts = each.map(|(((((ends, reports), told), common), own), log)| Part {
        ends,
        reports,
        told,
        ask: ask.clone(),
        common,
        own,
        log,
        pools: pools.clone(),
        complain: complain.clone(),
        core_0: core_0.take(),
        shutdown: shutdown.clone(),
        incarnation: node_dir.identity.incarnation,
        settings: settings.clone(),
    });
    let config = CoresConfig { pin: settings.pin, spin_before_park: settings.spin, ..CoresConfig::new(settings.cores) };
    let cores = Cores::start(config, |core| {
        let part = parts.next().expect("a part for each core");
        let participant = shutdown.join_in(format!("core {core}"));
        move || part.run(core, participant)
    });
    drop(parts);
    let cores = cores.map_err(StartError::Cores)?;
    say_started(settings, &node_dir.identity, addr, &shard_addrs, metrics_addr);
    Ok(Running { addr, shard_addrs, metrics_addr, shutdown: shutdown.clone(), cores, _page: page, _node_dir: node_dir })
}

impl Running {
    /// Blocks until the node has stopped, and says in one line how that went.
    #[must_use]
    pub fn wait(self) -> Stopped {
        let outcome = self.shutdown.wait();
        // A core that was left behind may never end; its counters are lost with it.
        let report = outcome.left_behind.is_empty().then(|| Report::sum(&self.cores.join()));
        let stopped = Stopped { outcome, report };
        tracing::info!("{stopped}");
        stopped
    }

    /// Stops the node, and waits for it.
    #[must_use]
    pub fn stop(self) -> Stopped {
        self.shutdown.begin(Reason::Asked("asked to"));
        self.wait()
    }
}

/// One port for each core, where only that core answers.
fn listen_for_each(settings: &Settings) -> Result<Vec<Listener>, ListenError> {
    let port = |core: u16| match settings.shard_ports {
        ShardPorts::Ephemeral => 0,
        ShardPorts::From(first) => first + core,
    };
    let cores = u16::try_from(settings.cores).expect("at most CORES_MAX");
    let address = |core| SocketAddr::new(settings.listen.ip(), port(core));
    (0..cores).map(|core| tcp::listen(address(core), ListenOptions::default())).collect()
}

/// What every Join says. Empty for a node that stands alone.
fn announcement(
    settings: &Settings,
    identity: &Identity,
    addr: SocketAddr,
    shard_addrs: &[SocketAddr],
) -> Result<JoinRequest, StartError> {
    let Some(router) = settings.routers.first() else { return Ok(JoinRequest::default()) };
    let (scheme, host, port) = match &settings.advertise {
        Some(advertised) => (advertised.scheme, advertised.host.clone(), advertised.port.unwrap_or(addr.port())),
        None => {
            let ip = if addr.ip().is_unspecified() {
                address_facing(router, addr.ip()).map_err(StartError::NoAddress)?
            } else {
                addr.ip()
            };
            ("http", host_of(ip), addr.port())
        }
    };
    // Another port outside than inside: somebody translates, and nobody translates ports that are picked by chance.
    let is_translated = port != addr.port() && settings.shard_ports == ShardPorts::Ephemeral;
    if is_translated {
        tracing::info!(
            "announcing {host}:{port} only: --advertise-addr has another port than --listen-addr, and --shard-ports are auto"
        );
    }
    let own = shard_addrs.iter().filter(|_| !is_translated);
    Ok(JoinRequest {
        address: format!("{scheme}://{host}:{port}"),
        node_id: identity.node_id.clone(),
        shard_addresses: own.map(|own| format!("{scheme}://{host}:{}", own.port())).collect(),
        weight: 0,
        incarnation: identity.incarnation,
        epoch: 0,
        zone: settings.zone.clone(),
    })
}

fn host_of(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

fn say_started(
    settings: &Settings,
    identity: &Identity,
    addr: SocketAddr,
    shard_addrs: &[SocketAddr],
    metrics_addr: Option<SocketAddr>,
) {
    let ports = shard_addrs.iter().map(|own| format!(" :{}", own.port())).collect::<String>();
    let page = metrics_addr.map_or_else(|| "off".to_owned(), |page| page.to_string());
    let write_mode = match (&settings.store, settings.write_mode) {
        (StoreConfig::None, _) => "memory",
        (_, WriteMode::Through) => "through",
        (_, WriteMode::Back) => "back",
    };
    tracing::info!(
        "serving on {addr}, {} on{ports}; memory {}, disk {}, store {}, write mode {write_mode}, metrics {page}, node {}",
        if settings.cores == 1 { "1 core".to_owned() } else { format!("{} cores", settings.cores) },
        Size(settings.memory_bytes),
        Size(settings.disk_bytes),
        settings.store,
        identity.node_id,
    );
    match (&settings.store, settings.disk_bytes) {
        (StoreConfig::None, 0) => tracing::warn!("STORE=none: memory only, nothing survives this process"),
        (StoreConfig::None, _) => tracing::warn!(
            "STORE=none: what the disk has no room for is forgotten, and nothing survives the loss of this machine"
        ),
        _ => {}
    }
    if settings.routers.is_empty() {
        tracing::info!("ROUTER_ADDR is not set: this node stands alone");
    }
}

/// What moves to a core.
struct Part {
    ends: Ends,
    reports: mesh::Receiver<Reporter<Report>>,
    told: mesh::Receiver<Told>,
    ask: mesh::Sender<Ask>,
    common: Listener,
    own: Listener,
    log: Option<Opened>,
    pools: Option<Arc<Pools>>,
    complain: mesh::Sender<Complaint>,
    /// What only one core does.
    core_0: Option<CoreZero>,
    shutdown: Shutdown,
    incarnation: u64,
    settings: Settings,
}

struct CoreZero {
    announcement: JoinRequest,
    routers: Vec<String>,
    incarnation: u64,
    complaints: mesh::Receiver<Complaint>,
    ready: mesh::Receiver<Reporter<Result<(), String>>>,
    tenures: Tenures,
    asks: mesh::Receiver<Ask>,
}

type CacheServer = Server<CacheService<Object>>;

impl Part {
    /// A core's life, from the first connection to its counters.
    async fn run(self, core: usize, mut participant: Participant) -> Report {
        let Self { ends, reports, told, ask, common, own, log, .. } = self;
        let Self { pools, complain, core_0, shutdown, incarnation, settings, .. } = self;
        let store = pools.map(Object::new).map(|(object, answers)| {
            task::spawn(answers.run());
            object
        });
        let log = match log {
            Some(opened) => DiskTier::begin(core, opened, index_bytes_max(&settings)).await,
            None => None,
        };
        let shard_settings = shard_settings(&settings, core, incarnation);
        let shard = match &log {
            Some(tier) => Shard::with_log(shard_settings, store.clone(), Rc::clone(&tier.log)),
            None => Shard::new(shard_settings, store.clone()),
        };
        let (shards, mesh) = Shards::new(ends, Rc::clone(&shard));
        task::spawn(mesh);
        task::spawn(tidy(Rc::clone(&shard)));
        if log.is_some() {
            task::spawn(uploader::run(Rc::clone(&shard), uploads_max(&settings), complain.clone(), time_of_day));
        }
        let ownership = Rc::new(Ownership::new(ask.clone()));
        task::spawn(follow(told, Rc::clone(&shard), Rc::clone(&ownership)));

        let health = Health::new(&SERVICES);
        let service = Rc::new(CacheService::new(
            shards,
            ServiceSettings {
                core,
                core_count: settings.cores,
                value_bytes_max: settings.value_bytes_max,
                complaints: complain.clone(),
            },
        ));
        let count = {
            let (shard, service, store) = (Rc::clone(&shard), Rc::clone(&service), store.clone());
            move || Report {
                stats: Stats { major_faults: major_faults(), faults: fault::count(), ..shard.report() },
                now: Some(time_of_day()),
                calls: service.calls(),
                store: store.as_ref().map(Object::counters).unwrap_or_default(),
            }
        };
        task::spawn(answer_all(reports, count.clone()));
        let reflection = Rc::new(Reflection::new(DESCRIPTORS, &SERVICES).expect("our own descriptors are legal"));
        let server = |service: &Rc<CacheService<Object>>, profile: &'static Profile| -> Rc<CacheServer> {
            let limits = ServerLimits {
                connections_max: CONNECTIONS_PER_CORE_MAX,
                message_bytes_max: limits::message_bytes_max(settings.value_bytes_max),
            };
            Server::new(Rc::clone(service), health.clone(), Rc::clone(&reflection), profile, limits)
        };
        // Who comes to a core's own port has computed whose the key is; at the common one anybody may ask for anything.
        let own_door = Rc::new(service.refusing_strays(ownership));
        let servers = [server(&service, &OUTSIDE), server(&own_door, &LINK)];
        health.set_all(true);
        let accepting =
            [accept(common, Rc::clone(&servers[0]), shutdown.clone()), accept(own, Rc::clone(&servers[1]), shutdown)];
        let zero = core_0.map(|zero| zero.begin(store, complain, ask));

        let mut next = participant.next().await;
        while let Some(stage) = next {
            match stage {
                Stage::Settle => settle(core, &shard, log.as_ref()).await,
                Stage::Leave => {
                    health.set_all(false);
                    if let Some(zero) = &zero {
                        zero.leave().await;
                    }
                }
                Stage::Refuse => {
                    accepting.iter().for_each(AbortHandle::abort);
                    servers.iter().for_each(|server| server.refuse());
                }
                Stage::Drain => {
                    let drained = pin!(future::join(servers[0].drained(), servers[1].drained()));
                    let later = pin!(participant.next());
                    if let Either::Right((later, _)) = future::select(drained, later).await {
                        servers.iter().for_each(|server| server.end());
                        next = later; // The time is up.
                        continue;
                    }
                }
                Stage::Seal => {
                    if let Some(tier) = &log {
                        tier.seal().await;
                    }
                }
                Stage::Part => servers.iter().for_each(|server| server.end()),
            }
            participant.done(stage);
            next = participant.next().await;
        }
        count()
    }
}

/// Lets what the log owes the store become less, for a while; what is left is told and waits for the next start.
async fn settle(core: usize, shard: &Shard<Object>, log: Option<&DiskTier>) {
    let Some(tier) = log else { return };
    future::select(pin!(shard.settle()), pin!(task::sleep(SETTLE_MAX))).await;
    let left = tier.log.figures();
    if left.dirty_records > 0 {
        tracing::warn!(
            "log: core {core} still has {} writes ({}) that the store does not have; they are on disk, and the next start \
             uploads them",
            left.dirty_records,
            Size(left.dirty_bytes)
        );
    }
}

/// One core's log, under way.
struct DiskTier {
    core: usize,
    log: Rc<Log<Disk>>,
    keeper: RefCell<Option<Keeper>>,
    ended: RefCell<Option<oneshot::Receiver<()>>>,
}

impl DiskTier {
    /// Takes a log over. Without it the core serves from memory and the store.
    async fn begin(core: usize, opened: Opened, index_bytes_max: usize) -> Option<Self> {
        let (log, keeper) = match Log::new(opened, index_bytes_max).await {
            Ok(parts) => parts,
            Err(error) => {
                tracing::error!("log: core {core} cannot open its segments: {error}; serving without the disk tier");
                return None;
            }
        };
        if !log.is_direct() {
            tracing::info!("log: core {core} writes through the page cache: its filesystem has no direct writes");
        }
        let (tell_ended, ended) = oneshot::channel();
        let run = Rc::clone(&log).run();
        task::spawn(async move {
            run.await;
            // Nobody waits where the stage has run out of time.
            let _ = tell_ended.send(());
        });
        task::spawn(tell_troubles(core, Rc::clone(&log)));
        Some(Self { core, log, keeper: RefCell::new(Some(keeper)), ended: RefCell::new(Some(ended)) })
    }

    /// Writes what is left, and the index, so that the next start need not read the log.
    async fn seal(&self) {
        self.log.stop();
        let ended = self.ended.take();
        if let Some(ended) = ended {
            // Gone without a word is gone.
            let _ = ended.await;
        }
        let keeper = self.keeper.take();
        if let Some(Err(error)) = keeper.map(|keeper| keeper.save(&self.log)) {
            tracing::warn!("log: core {}: {error}; the next start will read the log instead", self.core);
        }
    }
}

/// Between two looks at what has gone wrong with a disk.
const TROUBLES_INTERVAL: Duration = Duration::from_secs(1);

/// Tells operators what goes wrong with a log: each segment's trouble once, and a bounded number of lines a second.
async fn tell_troubles(core: usize, log: Rc<Log<Disk>>) {
    loop {
        task::sleep(TROUBLES_INTERVAL).await;
        let troubles = log.take_troubles();
        for trouble in troubles.first {
            if trouble == Trouble::Offline {
                tracing::error!("log: core {core}: {trouble}");
            } else {
                tracing::warn!("log: core {core}: {trouble}");
            }
        }
        if troubles.more > 0 {
            tracing::warn!("log: core {core}: {} more segments are in trouble", troubles.more);
        }
    }
}

/// A log for each core, or none at all. Opened at the same time: each takes a core to read its footers. Where they were
/// those of another number of cores, what they hold has moved before.
fn open_logs(settings: &Settings, incarnation: u64) -> Result<Vec<Option<Opened>>, StartError> {
    if settings.disk_bytes == 0 {
        refuse_debts(&settings.node_dir)?;
        return Ok((0..settings.cores).map(|_| None).collect());
    }
    let count = u16::try_from(settings.cores).expect("at most CORES_MAX");
    let log_settings = |core: u16| LogSettings {
        dir: log::log_dir(&settings.node_dir, usize::from(core)),
        core,
        core_count: count,
        disk_bytes: settings.disk_bytes / u64::from(count),
        new_log_id: placement::mix64(incarnation ^ u64::from(core).rotate_left(48)),
    };
    let logs: Vec<LogSettings> = (0..count).map(log_settings).collect();
    let begun = Instant::now();
    let rehomed = log::rehome(&settings.node_dir, &logs, time_of_day()).map_err(StartError::Rehome)?;
    if let Some(rehomed) = rehomed {
        tracing::info!("log: {rehomed}; took {:.1?}", begun.elapsed());
    }
    if settings.write_mode == WriteMode::Back {
        logs.iter().try_for_each(refuse_unusable)?;
    }
    let opened = thread::scope(|scope| {
        let opening: Vec<_> = logs.iter().map(|log| scope.spawn(|| open_log(log))).collect();
        let opened = opening.into_iter().map(|opening| opening.join().expect("a panic ends the process"));
        opened.collect::<Result<Vec<_>, _>>()
    })?;
    let debts = opened.iter().map(|opened| opened.opening.debts).sum();
    if settings.store == StoreConfig::None && debts > 0 {
        // Nobody would upload them, and what is written from now on would come before them once somebody does.
        return Err(StartError::NoStore { node_dir: settings.node_dir.clone(), debts });
    }
    Ok(opened.into_iter().map(Some).collect())
}

/// Without a disk nobody would upload what the logs of an earlier start owe the store; a later start with one would, over
/// whatever was written meanwhile.
fn refuse_debts(node_dir: &Path) -> Result<(), StartError> {
    let owed = log::owed(node_dir).map_err(StartError::Rehome)?;
    for (dir, why) in owed.unknown {
        tracing::warn!(
            "log: DISK is 0, and {} cannot be read: {why}; writes in it that the store does not have stay there",
            dir.display()
        );
    }
    if owed.debts == 0 { Ok(()) } else { Err(StartError::NoDisk { node_dir: node_dir.to_owned(), debts: owed.debts }) }
}

/// In write mode `back` a log that cannot be read may be all there is of writes that were acknowledged. To begin an empty one in
/// its place is for an operator to decide.
fn refuse_unusable(log: &LogSettings) -> Result<(), StartError> {
    match log::unusable(&log.dir).map_err(StartError::Disk)? {
        None => Ok(()),
        Some(why) => Err(StartError::Unusable { log_dir: log.dir.clone(), why }),
    }
}

fn open_log(settings: &LogSettings) -> Result<Opened, StartError> {
    let begun = Instant::now();
    let opened = log::open(settings).map_err(StartError::Disk)?;
    say_opened(settings.core, &opened.opening, begun.elapsed());
    Ok(opened)
}

fn say_opened(core: u16, opening: &log::Opening, took: Duration) {
    if let Some(why) = &opening.discarded {
        tracing::warn!("log: core {core} begins with an empty log: {why}");
    }
    if opening.segments_missing > 0 {
        let missing = opening.segments_missing;
        tracing::warn!("log: core {core} has {} segments, and no space for {missing} more", opening.segments);
    }
    let how = if opening.is_from_index { "from the index of a clean stop" } else { "from the segments" };
    tracing::info!("log: core {core} found {} entries in {took:.1?} {how}", opening.entries);
}

/// The share of a core's memory that the index of its log may take. Memory for entries is less by what it is planned to.
const INDEX_SHARE_MAX: u64 = 4;

/// What is planned for: this many bytes of index for each [`PLANNED_RECORD_BYTES`] of disk.
const PLANNED_INDEX_BYTES: u64 = 12;

/// Bytes of disk for each entry, as planned.
const PLANNED_RECORD_BYTES: u64 = 1024;

fn index_bytes_max(settings: &Settings) -> usize {
    usize::try_from(settings.memory_bytes / settings.cores as u64 / INDEX_SHARE_MAX).unwrap_or(usize::MAX)
}

fn shard_settings(settings: &Settings, core: usize, incarnation: u64) -> ShardSettings {
    let share = |all: u64| usize::try_from(all.div_ceil(settings.cores as u64)).unwrap_or(usize::MAX);
    let planned_index_bytes = share(settings.disk_bytes / PLANNED_RECORD_BYTES * PLANNED_INDEX_BYTES);
    ShardSettings {
        core,
        core_count: settings.cores,
        memory_bytes: share(settings.memory_bytes) - planned_index_bytes.min(index_bytes_max(settings)),
        entries_max: settings.entries_max.map_or(0, share),
        believed_ms: settings.believed.map(|believed| believed.as_millis().try_into().unwrap_or(u64::MAX)),
        absent_ms: ABSENT_MS_DEFAULT,
        incarnation,
        write_mode: settings.write_mode,
    }
}

/// This core's share of the threads that write to the store.
fn uploads_max(settings: &Settings) -> usize {
    (settings.store_threads.write_threads as usize / settings.cores).max(1)
}

/// Accepts connections until the handle aborts it, and closes the port then.
fn accept(mut listener: Listener, server: Rc<CacheServer>, shutdown: Shutdown) -> AbortHandle {
    let accepting = async move {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => task::spawn(Rc::clone(&server).serve(stream, peer.ip())),
                Err(error) => {
                    tracing::error!("port {} is lost: {error}; stopping", listener.local_addr());
                    shutdown.begin(Reason::Asked("a port is lost"));
                    return;
                }
            }
        }
    };
    let (accepting, handle) = future::abortable(accepting);
    task::spawn(accepting.map(drop));
    handle
}

/// What a core does once a second.
async fn tidy(shard: Rc<Shard<Object>>) {
    loop {
        while shard.sweep(time_of_day()) {
            task::sleep(SWEEP_PAUSE).await;
        }
        task::sleep(SWEEP_INTERVAL).await;
    }
}

/// Does what follows from a change of the keys that are this node's.
async fn follow(mut changes: mesh::Receiver<Told>, shard: Rc<Shard<Object>>, ownership: Rc<Ownership>) {
    while let Some(told) = changes.recv().await {
        match &told.change {
            Change::End => shard.end_tenure(),
            Change::Follow(view) => {
                if shard.follow(Arc::clone(view)) {
                    task::spawn(walk_gained(Rc::clone(&shard)));
                }
            }
            Change::Open(view) => ownership.open(Arc::clone(view)),
        }
        drop(told); // Which tells its sender that it is done.
    }
}

async fn walk_gained(shard: Rc<Shard<Object>>) {
    while shard.walk_gained() {
        task::sleep(SWEEP_PAUSE).await;
    }
}

/// Answers what the page asks of this core, for as long as there is a page.
async fn answer_all<R: Send>(mut questions: mesh::Receiver<Reporter<R>>, answer: impl Fn() -> R) {
    while let Some(asker) = questions.recv().await {
        asker.report(answer());
    }
}

/// Core 0's further duties, under way.
struct Duties {
    stop: RefCell<Option<oneshot::Sender<()>>>,
    left: RefCell<Option<oneshot::Receiver<()>>>,
    is_leaving: Rc<Cell<bool>>,
}

impl CoreZero {
    fn begin(self, store: Option<Object>, complain: mesh::Sender<Complaint>, ask: mesh::Sender<Ask>) -> Duties {
        let Self { announcement, routers, incarnation, complaints, ready, tenures, asks } = self;
        task::spawn(complaints::write(complaints));
        if let Some(store) = store {
            task::spawn(try_store(store, complain));
        }
        let membership = Rc::new(RefCell::new(Membership::new(routers.len(), incarnation, Instant::now())));
        let is_leaving = Rc::new(Cell::new(false));
        task::spawn(answer_all(ready, readiness(Rc::clone(&membership), Rc::clone(&is_leaving), routers.join(", "))));
        let (stop, stopped) = oneshot::channel();
        let (tell_left, left) = oneshot::channel();
        let limits = ChannelLimits { profile: &LINK, message_bytes_max: limits::message_bytes_max(0) };
        let buffer = ReadBuffer::default();
        let channel = |router: String| {
            let channel = Channel::new(&router, limits, &buffer).expect("http://host:port, as settings are");
            (router, channel)
        };
        let stopped = stopped.map(drop).shared();
        let followed = Rc::<Cell<u64>>::default();
        let follower = Follower {
            node_id: announcement.node_id.clone(),
            tenures: tenures.clone(),
            asks,
            followed: Rc::clone(&followed),
        };
        let follower = match &routers[..] {
            [router] => {
                let limits = ChannelLimits { message_bytes_max: TOPOLOGY_BYTES_MAX, ..limits };
                let router = Channel::new(router, limits, &buffer).expect("http://host:port, as settings are");
                task::spawn(future::select(Box::pin(follower.run(router)), stopped.clone()).map(drop));
                Some(ask)
            }
            // None has a table; several have one each, whose epochs cannot be compared.
            _ => None,
        };
        let routers = routers.into_iter().map(channel).collect();
        let links = Links { membership, routers, announcement, tenures, follower, followed };
        task::spawn(async move {
            links.keep(stopped).await;
            // Core 0 may have been told to part meanwhile.
            let _ = tell_left.send(());
        });
        Duties { stop: RefCell::new(Some(stop)), left: RefCell::new(Some(left)), is_leaving }
    }
}

impl Duties {
    /// Says goodbye to the routers; returns when they have heard it, or their time is up.
    async fn leave(&self) {
        self.is_leaving.set(true);
        drop(self.stop.take());
        let left = self.left.take();
        if let Some(left) = left {
            // Gone without a word is gone.
            let _ = left.await;
        }
    }
}

/// Finds out at the start whether the store answers and which conditions it honours, so that an operator need not wait for
/// the first request that fails.
async fn try_store(store: Object, complain: mesh::Sender<Complaint>) {
    match store.probe().await {
        Ok(abilities) if abilities.conditional_puts && abilities.conditional_deletes => {}
        Ok(abilities) => tracing::warn!(
            "the store honours {}; requests with the others are refused",
            if abilities.conditional_puts { "conditions on writes, not on deletes" } else { "no conditions" }
        ),
        Err(error) => {
            if let Some(complaint) = Complaint::about(&error.cause) {
                // Full: what waits there says the same.
                let _ = complain.try_send(complaint);
            }
        }
    }
}

/// Says whether this node wants requests: it has joined a router, if there is one, and is not on its way out. A router
/// that goes away later does not change that: who talks to this node already is still answered.
fn readiness(
    membership: Rc<RefCell<Membership>>,
    is_leaving: Rc<Cell<bool>>,
    routers: String,
) -> impl Fn() -> Result<(), String> {
    move || {
        if is_leaving.get() {
            return Err("stopping".to_owned());
        }
        if !routers.is_empty() && !membership.borrow().has_joined() {
            return Err(format!("not joined yet: no answer from {routers}"));
        }
        Ok(())
    }
}

/// Questions of the page that may wait on a core: more askers than the page has threads there never are.
const QUESTIONS_MAX: usize = 16;

/// What the operators' page shows. On threads of its own.
struct NodePage {
    ask_reports: Vec<mesh::Sender<Reporter<Report>>>,
    ask_ready: mesh::Sender<Reporter<Result<(), String>>>,
}

impl Answers for NodePage {
    fn metrics(&self) -> String {
        // A question that finds no room is dropped, which is no answer.
        let ask = |core: usize, reporter| drop(self.ask_reports[core].try_send(reporter));
        let gathered = gather(self.ask_reports.len(), GATHER_MAX, ask);
        report::metrics(&gathered.reports, gathered.missing_count)
    }

    fn ready(&self) -> Result<(), String> {
        let gathered = gather(1, GATHER_MAX, |_, reporter| drop(self.ask_ready.try_send(reporter)));
        let answer = gathered.reports.into_iter().next();
        answer.map_or_else(|| Err("core 0 does not answer".to_owned()), |(_, ready)| ready)
    }
}

/// Major page faults of this thread since it began.
fn major_faults() -> u64 {
    // SAFETY: all zeros is a usage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: points to one usage.
    let got = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    assert_eq!(got, 0, "getrusage of this thread cannot fail");
    u64::try_from(usage.ru_majflt).unwrap_or(0)
}

impl Stopped {
    /// 0 after a clean stop, 1 when something was left behind.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.outcome.exit_code()
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.outcome)?;
        match &self.report {
            Some(report) => write!(f, "; {report}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Probe(error) => error.fmt(f),
            Self::NodeDir(error) => error.fmt(f),
            Self::Rehome(error) => error.fmt(f),
            Self::Disk(error) => error.fmt(f),
            Self::NoStore { node_dir, debts } => write!(
                f,
                "--store none: {debts} writes in {0} wait for the store they were made with; start once with that STORE, \
                 until milena_log_dirty_bytes is 0, or remove {0}/log-*, which loses them",
                node_dir.display()
            ),
            Self::NoDisk { node_dir, debts } => write!(
                f,
                "--disk 0: {debts} writes in {0} wait for the store; start once with the former DISK, until \
                 milena_log_dirty_bytes is 0, or remove {0}/log-*, which loses them",
                node_dir.display()
            ),
            Self::Unusable { log_dir, why } => write!(
                f,
                "cannot open {0}: {why}, and with --write-mode back it may have writes that the store does not have; nothing \
                 was changed; bring {0}/superblock back from a copy, or remove it to begin with an empty log, which loses them",
                log_dir.display()
            ),
            Self::Listen(error) => error.fmt(f),
            Self::Store(error) => error.fmt(f),
            Self::Threads(error) => {
                write!(f, "cannot start the threads that ask the store: {error}; hint: lower S3_READ_THREADS")
            }
            Self::NoAddress(error) => error.fmt(f),
            Self::Page(error) => error.fmt(f),
            Self::Cores(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}
