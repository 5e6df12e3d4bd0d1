//! A router as a whole: what runs on which thread, and how it starts and stops.
//!
//! ```text
//!   core 0          core 1          …        milena-topology     milena-ops        milena-shutdown
//!   listener        listener                 writes the table    /metrics          one stage after the other
//!   connections     connections                  ▲  │              │ ▲
//!   desk            desk                         │  ▼ written      ▼ │ reports
//!   authority ◀──── questions, answers ─────▶ core 0          every core
//!      └─────────── views ──────────▶ every core
//! ```
//! Every core listens on the same address and serves what the kernel gives it. Core 0 is the authority's besides. Mailboxes
//! are all that cores share: answers have one of their own with room for every question, so an answer always fits.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use futures::{
    channel::oneshot,
    future::{Either, FutureExt as _, poll_fn, select},
};
use milena_net::{
    cores::{self, Cores, CoresConfig},
    grpc::{
        client::ChannelLimits,
        health::Health,
        reflection::Reflection,
        server::{Server, ServerLimits},
    },
    http2::limits::{LINK, OUTSIDE},
    mesh,
    metrics::{GATHER_MAX, Gathered, Reporter, gather},
    ops::{self, OpsError, Page},
    settings::EXIT_REFUSED,
    shutdown::{Outcome, Participant, Reason, Shutdown, Stage, StageLimits},
    task,
    tcp::{self, ListenError, Listener},
};
use milena_proto::{generated::DESCRIPTORS, limits};

use crate::{
    authority::{Answer, Authority, Event, Place, PlaceError, ToAuthority, Unwritten, Writer},
    config::Settings,
    members::{LEASE, Members, View},
    rate_limit::RateLimits,
    service::{Desk, DeskConfig, QUESTIONS_MAX, RouterService},
    stats::{self, Stats},
};

/// The service's full name, for health and reflection.
const SERVICE: &str = "router_server.Router";

/// Connections of one core; more are closed as they come.
const CONNECTIONS_MAX: usize = 16_384;

/// How often the authority looks at leases, and a core at its breakers.
const TICK: Duration = Duration::from_millis(250);

/// Views and requests for reports that may wait at a core. What finds no room is sent again with the next tick.
const NEWS_MAX: usize = 64;

/// What a core is told without having asked.
#[derive(Debug)]
enum News {
    View(Arc<View>),
    Report(Reporter<Report>),
}

/// What a core says for the page.
#[derive(Debug)]
pub struct Report {
    /// Its counters.
    pub stats: Stats,
    /// The view it goes by.
    pub view: Arc<View>,
    /// Whether it takes requests, which it does from its start until the router stops.
    pub is_serving: bool,
}

/// The mailboxes of one core, as others see them.
#[derive(Clone, Debug)]
struct CoreBoxes {
    answers: mesh::Sender<(u64, Answer)>,
    news: mesh::Sender<News>,
}

/// A router that runs.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    page: Option<Page>,
    shutdown: Shutdown,
    cores: Cores<Stats>,
    writer: JoinHandle<()>,
}

/// Starts a router. It answers when this returns.
///
/// To be called after [`cores::probe`], on a thread that may block: the state is read, and written back.
///
/// # Errors
/// [`StartError`]; nothing of it runs then.
pub fn start(settings: &Settings) -> Result<Running, StartError> {
    // First the addresses: a second router must not touch the state of the first.
    let listeners = tcp::listen_on_all(settings.listen, settings.cores).map_err(StartError::Listen)?;
    let address = listeners[0].local_addr();
    let (boxes, mut receivers): (Vec<CoreBoxes>, Vec<_>) = (0..settings.cores).map(|_| core_boxes()).unzip();
    let answers = OpsAnswers { boxes: boxes.clone() };
    let page = settings.metrics.map(|address| Page::start(address, answers)).transpose().map_err(StartError::Page)?;
    let (place, document) = Place::open(&settings.state)
        .map_err(|error| StartError::State { state: settings.state_text.clone(), error })?;
    let members = document.map_or_else(Members::new, |document| document.into_members(Instant::now()));

    let limits = StageLimits { drain: settings.drain, ..StageLimits::default() };
    let shutdown = Shutdown::new(limits).map_err(StartError::Thread)?;
    let (authority_box, inbox) = mesh::mailbox(settings.cores * QUESTIONS_MAX + 1);
    let (writer, writer_thread) = Writer::start(place, authority_box.clone()).map_err(StartError::Thread)?;

    let authority = Authority::new(members);
    let view = Arc::clone(authority.view());
    let mut decider = Some(Decider { authority, inbox, writer, boxes });
    let mut listeners = listeners.into_iter();
    receivers.reverse();
    let config = CoresConfig { pin: settings.pin, ..CoresConfig::new(settings.cores) };
    let cores = Cores::start(config, |core| {
        let (answers, news) = receivers.pop().expect("one pair for each core");
        let start = CoreStart {
            core,
            core_count: settings.cores,
            listener: listeners.next().expect("one for each core"),
            rates: settings.rates,
            value_bytes_max: settings.value_bytes_max,
            authority: authority_box.clone(),
            view: Arc::clone(&view),
            answers,
            news,
            decider: decider.take(),
            participant: shutdown.join_in(format!("core {core}")),
        };
        move || start.run()
    });
    let cores = cores.map_err(StartError::Cores)?;

    let running = Running { address, page, shutdown, cores, writer: writer_thread };
    running.announce(settings, &view);
    Ok(running)
}

type CoreReceivers = (mesh::Receiver<(u64, Answer)>, mesh::Receiver<News>);

fn core_boxes() -> (CoreBoxes, CoreReceivers) {
    let (answers, answers_inbox) = mesh::mailbox(QUESTIONS_MAX);
    let (news, news_inbox) = mesh::mailbox(NEWS_MAX);
    (CoreBoxes { answers, news }, (answers_inbox, news_inbox))
}

impl Running {
    /// Where clients and nodes connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where operators look.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.page.as_ref().map(Page::local_addr)
    }

    /// What begins the stop.
    #[must_use]
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Waits until the stop is over, whoever began it.
    #[must_use]
    pub fn join(self) -> (Outcome, Stats) {
        let outcome = self.shutdown.wait();
        let mut stats = Stats::default();
        for core in self.cores.join() {
            stats.merge(&core);
        }
        self.writer.join().expect("a panic ends the process");
        drop(self.page);
        (outcome, stats)
    }

    /// Stops it, and waits until that is over.
    #[must_use]
    pub fn stop(self) -> (Outcome, Stats) {
        self.shutdown.begin(Reason::Asked("asked to stop"));
        self.join()
    }

    fn announce(&self, settings: &Settings, view: &View) {
        let limit = |name: &str, rate: u64| if rate == 0 { String::new() } else { format!(", {rate}/s {name}") };
        let limits = [
            ("in all", settings.rates.router),
            ("per client", settings.rates.client),
            ("per bucket", settings.rates.bucket),
        ];
        let limits: String = limits.iter().map(|(name, rate)| limit(name, *rate)).collect();
        let metrics = self.metrics_address().map_or("off".to_owned(), |address| address.to_string());
        tracing::info!(
            "listening on {} with {} cores; metrics {metrics}; state {} at epoch {} with {} members; rate limit {}",
            self.address,
            settings.cores,
            settings.state_text,
            view.epoch(),
            view.slots().iter().flatten().count(),
            if limits.is_empty() { "off" } else { &limits[2..] },
        );
    }
}

/// What operators are told. Asks the cores each time, because they know.
struct OpsAnswers {
    boxes: Vec<CoreBoxes>,
}

impl OpsAnswers {
    fn ask(&self) -> Gathered<Report> {
        gather(self.boxes.len(), GATHER_MAX, |core, reporter| {
            // A core whose mailbox is full does not answer, and is counted as one that does not.
            let _ = self.boxes[core].news.try_send(News::Report(reporter));
        })
    }
}

impl ops::Answers for OpsAnswers {
    fn metrics(&self) -> String {
        stats::page(&self.ask())
    }

    fn ready(&self) -> Result<(), String> {
        let Gathered { reports, missing_count } = self.ask();
        if missing_count > 0 {
            return Err(format!("{missing_count} of {} cores do not answer", self.boxes.len()));
        }
        if reports.iter().any(|(_, report)| !report.is_serving) {
            return Err("the router is stopping".to_owned());
        }
        Ok(())
    }
}

/// What a core is started with.
struct CoreStart {
    core: usize,
    core_count: usize,
    listener: Listener,
    rates: crate::rate_limit::RateSettings,
    value_bytes_max: usize,
    authority: mesh::Sender<ToAuthority>,
    view: Arc<View>,
    answers: mesh::Receiver<(u64, Answer)>,
    news: mesh::Receiver<News>,
    /// On core 0.
    decider: Option<Decider>,
    participant: Participant,
}

impl CoreStart {
    async fn run(self) -> Stats {
        let message_bytes_max = limits::message_bytes_max(self.value_bytes_max);
        let desk = Desk::new(DeskConfig {
            core: self.core,
            value_bytes_max: self.value_bytes_max,
            channels: ChannelLimits {
                profile: &LINK,
                message_bytes_max: limits::batch_answer_bytes_max(self.value_bytes_max),
            },
            rates: RateLimits::new(self.rates, self.core_count, Instant::now()),
            authority: self.authority,
            view: self.view,
        });
        let health = Health::new(&[SERVICE]);
        let reflection = Reflection::new(DESCRIPTORS, &[SERVICE]).expect("the descriptors are our own");
        let server = Server::new(
            Rc::new(RouterService::new(Rc::clone(&desk))),
            health.clone(),
            Rc::new(reflection),
            &OUTSIDE,
            ServerLimits { connections_max: CONNECTIONS_MAX, message_bytes_max },
        );
        health.set_all(true);

        let (refuse, refusing) = oneshot::channel::<()>();
        let (part, parting) = oneshot::channel::<()>();
        let parting = parting.map(drop).shared();
        futures::join!(
            accept(self.listener, Rc::clone(&server), refusing),
            until(&parting, read_mail(Rc::clone(&desk), self.news, self.answers)),
            until(&parting, probe(Rc::clone(&desk))),
            until(&parting, decide(self.decider)),
            stop(self.participant, Rc::clone(&desk), server, health, refuse, part),
        );
        desk.report()
    }
}

/// Runs `work` until it ends or `end` comes; then it is dropped where it waits.
async fn until(end: &(impl Future<Output = ()> + Clone + Unpin), work: impl Future<Output = ()>) {
    select(pin!(work), end.clone()).await;
}

async fn accept(mut listener: Listener, server: Rc<Server<RouterService>>, mut refusing: oneshot::Receiver<()>) {
    loop {
        let accepted = match select(pin!(listener.accept()), &mut refusing).await {
            Either::Left((accepted, _)) => accepted,
            Either::Right(_) => return,
        };
        match accepted {
            Ok((stream, peer)) => task::spawn(Rc::clone(&server).serve(stream, peer.ip())),
            Err(error) => {
                tracing::error!("cannot accept connections any more: {error}");
                return;
            }
        }
    }
}

/// Who has an answer goes by the view that it speaks of: views are sent before answers, and read before them.
async fn read_mail(desk: Rc<Desk>, mut news: mesh::Receiver<News>, mut answers: mesh::Receiver<(u64, Answer)>) {
    let take = |news| match news {
        News::View(view) => desk.follow(view),
        News::Report(reporter) => {
            reporter.report(Report { stats: desk.report(), view: desk.view(), is_serving: desk.is_serving() });
        }
    };
    loop {
        let answer = poll_fn(|cx| {
            while let Poll::Ready(Some(news)) = news.poll_recv(cx) {
                take(news);
            }
            answers.poll_recv(cx)
        });
        let Some((ticket, answer)) = answer.await else { return };
        while let Some(news) = news.try_recv() {
            take(news);
        }
        desk.answered(ticket, answer);
    }
}

async fn probe(desk: Rc<Desk>) {
    loop {
        task::sleep(TICK).await;
        Rc::clone(&desk).probe().await;
    }
}

/// This core's part of the stop.
async fn stop(
    mut participant: Participant,
    desk: Rc<Desk>,
    server: Rc<Server<RouterService>>,
    health: Health,
    refuse: oneshot::Sender<()>,
    part: oneshot::Sender<()>,
) {
    let mut refuse = Some(refuse);
    let mut next = participant.next().await;
    while let Some(stage) = next {
        match stage {
            Stage::Settle => {} // The store has the table before anybody is told.
            Stage::Leave => {}  // Nobody counts on one router to be there; several are for a later version.
            Stage::Refuse => {
                health.set_all(false);
                drop(refuse.take());
                desk.close();
                server.refuse();
            }
            Stage::Drain => {
                let drained = pin!(server.drained());
                let later = pin!(participant.next());
                if let Either::Right((later, _)) = select(drained, later).await {
                    next = later; // The time is up.
                    continue;
                }
            }
            Stage::Seal => {
                server.end();
                server.drained().await;
            }
            Stage::Part => break,
        }
        participant.done(stage);
        next = participant.next().await;
    }
    drop(part);
}

/// The authority with its connections to the rest of the process.
struct Decider {
    authority: Authority,
    inbox: mesh::Receiver<ToAuthority>,
    writer: Writer,
    boxes: Vec<CoreBoxes>,
}

async fn decide(decider: Option<Decider>) {
    let Some(mut decider) = decider else { return };
    // What each core was told last.
    let mut told = vec![decider.authority.view().epoch(); decider.boxes.len()];
    let mut tick = Box::pin(task::sleep(TICK));
    loop {
        let message = poll_fn(|cx| {
            if let Poll::Ready(message) = decider.inbox.poll_recv(cx) {
                return Poll::Ready(message);
            }
            tick.poll_unpin(cx).map(|()| None)
        })
        .await;
        let now = Instant::now();
        match message {
            Some(ToAuthority::Ask(asker, question)) => decider.authority.ask(asker, question, now),
            Some(ToAuthority::Written(outcome)) => decider.authority.written(outcome),
            None => {
                decider.authority.tick(now);
                tick = Box::pin(task::sleep(TICK));
            }
        }
        decider.act(&mut told);
    }
}

impl Decider {
    fn act(&mut self, told: &mut [u64]) {
        if let Some(document) = self.authority.to_write() {
            self.writer.write(document);
        }
        let view = self.authority.view();
        for (core, told) in self.boxes.iter().zip(told) {
            if *told < view.epoch() && core.news.try_send(News::View(Arc::clone(view))).is_ok() {
                *told = view.epoch();
            }
        }
        for (asker, answer) in self.authority.take_answers() {
            let sent = self.boxes[asker.core].answers.try_send((asker.ticket, answer));
            assert!(!matches!(sent, Err(mesh::Refused::Full(_))), "there is room for the answer to every question");
        }
        for event in self.authority.take_events() {
            log(&event, self.authority.alive_count());
        }
    }
}

fn log(event: &Event, alive_count: usize) {
    match event {
        Event::Joined { member, epoch } => {
            tracing::info!("node {member} at {} is in the view; epoch {epoch} has {alive_count} nodes", member.address);
        }
        Event::Left { member, epoch } => {
            tracing::info!("node {member} left the view: it said goodbye; epoch {epoch} has {alive_count} nodes");
        }
        Event::Lapsed { lapsed, epoch } => tracing::warn!(
            "node {} left the view: no renewal for {:.1} s (lease {} s); epoch {epoch} has {alive_count} nodes",
            lapsed.member,
            lapsed.silent.as_secs_f64(),
            LEASE.as_secs()
        ),
        Event::Unwritten(Unwritten::Failed(reason)) => {
            tracing::error!("the table cannot be written: {reason}; nobody joins or leaves until it can; trying again");
        }
        Event::Unwritten(Unwritten::Deposed(reason)) => {
            tracing::error!("this router decides nothing any more: {reason}; requests are passed on by the last table");
        }
        Event::WrittenAgain => tracing::info!("the table can be written again"),
    }
}

/// Why a router did not start.
#[derive(Debug)]
pub enum StartError {
    /// The address cannot be listened on.
    Listen(ListenError),
    /// There is no page for operators.
    Page(OpsError),
    /// The table cannot be read or kept.
    State {
        /// As the setting has it.
        state: String,
        /// Why.
        error: PlaceError,
    },
    /// A thread cannot be made.
    Thread(io::Error),
    /// The cores cannot be started.
    Cores(cores::StartError),
}

impl StartError {
    /// 2 when a setting has to be changed, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Self::State { .. }) { EXIT_REFUSED } else { 1 }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(error) => error.fmt(f),
            Self::Page(error) => error.fmt(f),
            Self::State { state, error } => write!(f, "--state {state}: {error}"),
            Self::Thread(error) => write!(f, "cannot make a thread: {error}"),
            Self::Cores(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}
