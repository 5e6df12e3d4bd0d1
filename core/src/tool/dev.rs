//! `milena dev`: a whole cluster on loopback, made of the same programs that run in production.
//!
//! ```text
//!   milena dev ──▶ milena-router   127.0.0.1:PORT       metrics :METRICS         one process group each, so that
//!              ├─▶ milena-cache    127.0.0.1:PORT+1     metrics :METRICS+1       Ctrl-C reaches `milena dev` alone
//!              └─▶ ...             each on its node-PORT of one DIR, all on one store
//!
//!   ports free? ─▶ router healthy ─▶ nodes ready ─▶ summary ─▶ signal ─▶ nodes stop ─▶ router stops ─▶ exit 0
//!                         └───── a process ends by itself: it is named, the others stop, exit 1 ─────┘
//! ```
//! What is not said here (MEMORY, LOG_LEVEL, ...) the programs take from the environment as ever.

use std::{
    env, fmt,
    io::{self, BufRead as _, BufReader, Read, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

/// Most nodes of a development cluster: more would measure the scheduler.
const NODES_MAX: u16 = 32;

/// How long a cluster may take to be ready.
const READY_MAX: Duration = Duration::from_secs(60);

/// How long a process may take to stop before it is killed.
const STOP_MAX: Duration = Duration::from_secs(30);

/// Time between two questions whether a process is ready.
const READY_INTERVAL: Duration = Duration::from_millis(50);

/// Starts a whole cluster on this machine: a router, cache nodes, and a directory as their store. Ctrl-C stops it.
#[derive(Clone, Debug, Args)]
pub struct Dev {
    /// How many cache nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    nodes: u16,
    /// Where all of them keep what they have.
    #[arg(long, default_value = "./milena-data", value_name = "DIRECTORY")]
    dir: PathBuf,
    /// The router's port; nodes take the following ones. 0 = any free ones, also for --metrics-port.
    #[arg(long, default_value_t = 50050, visible_alias = "router-port")]
    port: u16,
    /// The port of the router's /metrics; nodes take the following ones. 0 = any free ones [default: 9090].
    #[arg(long)]
    metrics_port: Option<u16>,
    /// Another store than file://DIRECTORY/store.
    #[arg(long, env = "STORE", value_name = "URL")]
    store: Option<String>,
    /// The bucket where old deployments name it.
    #[arg(long, env = "S3_BUCKET", hide = true)]
    s3_bucket: Option<String>,
}

/// Why the cluster did not start, or did not last.
#[derive(Debug)]
pub enum DevError {
    /// A program is not where this one is.
    NoProgram {
        /// Where it should be.
        path: PathBuf,
    },
    /// Ports beyond 65535.
    PortBeyondLast {
        /// The flag.
        flag: &'static str,
        /// Its value.
        first: u16,
        /// How many ports there must be.
        count: u16,
    },
    /// Something listens there.
    PortInUse {
        /// The address.
        address: SocketAddr,
        /// Which flag moves it.
        flag: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// A process could not be started, or signals not be awaited.
    Io {
        /// What was attempted.
        attempt: String,
        /// What the system said.
        error: io::Error,
    },
    /// A process ended that should not have.
    Ended {
        /// Which one.
        name: String,
        /// How.
        status: ExitStatus,
    },
    /// A process does not say that it is ready.
    NotReady {
        /// Which one.
        name: String,
        /// Where it was asked.
        page: SocketAddr,
    },
    /// A process had to be killed.
    NotStopped {
        /// Which one.
        name: String,
    },
}

/// Where one process answers.
#[derive(Clone, Copy, Debug)]
struct Place {
    service: SocketAddr,
    page: SocketAddr,
}

/// One process of the cluster.
struct Member {
    name: String,
    place: Place,
    child: Child,
    ended: Option<ExitStatus>,
}

/// What the main thread waits for.
enum Event {
    /// Somebody wants us to stop.
    Signal,
    /// The member with this index closed its standard error, which is: ended.
    Ended(usize),
}

/// The cluster: its processes in the order of their start, the router first.
struct Cluster {
    members: Vec<Member>,
    events: Receiver<Event>,
    sender: Sender<Event>,
}

/// How a wait ended.
#[derive(PartialEq, Eq)]
enum Wait {
    Done,
    Interrupted,
}

impl Dev {
    /// Runs the cluster until a signal. Must be called on the thread that lives as long as the process: its children are
    /// told to stop when that thread ends.
    ///
    /// # Errors
    /// It could not be started, or did not last.
    pub fn run(&self, json: bool) -> Result<(), DevError> {
        let programs = Programs::beside_this_one()?;
        let places = self.places()?;
        let (sender, events) = channel();
        await_signals(sender.clone())?;
        let mut cluster = Cluster { members: Vec::new(), events, sender };

        // Whatever happens, nothing stays behind.
        let outcome = self.start_and_watch(&mut cluster, &programs, &places, json);
        let stopped = cluster.stop();
        outcome.and(stopped)
    }

    fn start_and_watch(
        &self,
        cluster: &mut Cluster,
        programs: &Programs,
        places: &[Place],
        json: bool,
    ) -> Result<(), DevError> {
        cluster.start("router".to_owned(), places[0], self.router(&programs.router, places[0]))?;
        if cluster.wait_for_page("/health")? == Wait::Interrupted {
            return Ok(());
        }
        for (number, place) in places.iter().enumerate().skip(1) {
            cluster.start(format!("node {number}"), *place, self.node(&programs.cache, *place, places))?;
        }
        if cluster.wait_for_page("/ready")? == Wait::Interrupted {
            return Ok(());
        }
        let summary = if json { self.summary_json(places) } else { self.summary(places) };
        // Nobody reads it: the cluster runs all the same.
        let _ = writeln!(io::stdout(), "{summary}").and_then(|()| io::stdout().flush());
        match cluster.next_event(None)? {
            Some(Event::Ended(index)) => Err(cluster.ended(index)),
            Some(Event::Signal) | None => Ok(()),
        }
    }

    /// One place for the router and one for each node, all of them free at this moment.
    fn places(&self) -> Result<Vec<Place>, DevError> {
        let count = self.nodes + 1;
        let metrics_port = self.metrics_port.unwrap_or(if self.port == 0 { 0 } else { 9090 });
        // All are held until the last one is known: none is found twice.
        let services = free_ports("--port", self.port, count)?;
        let pages = free_ports("--metrics-port", metrics_port, count)?;
        let place = |(service, page): (&Port, &Port)| Place { service: service.address, page: page.address };
        Ok(services.iter().zip(&pages).map(place).collect())
    }

    fn store(&self) -> String {
        let written = |value: &Option<String>| value.clone().filter(|text| !text.trim().is_empty());
        written(&self.store)
            .or_else(|| written(&self.s3_bucket).map(|bucket| format!("s3://{bucket}")))
            .unwrap_or_else(|| self.url_of("store"))
    }

    /// A place in the directory as a store is named: a relative path begins with a dot.
    fn url_of(&self, place: &str) -> String {
        let is_rooted = self.dir.is_absolute() || self.dir.starts_with(".") || self.dir.starts_with("..");
        let dot = if is_rooted { "" } else { "./" };
        format!("file://{dot}{}", self.dir.join(place).display())
    }

    fn router(&self, program: &Path, place: Place) -> Command {
        let mut command = Command::new(program);
        command.args(["--listen-addr", &place.service.to_string()]);
        command.args(["--metrics-port", &place.page.port().to_string()]);
        command.args(["--pin", "false", "--state", &self.url_of("router")]);
        self.share_of_cores(&mut command);
        command
    }

    fn node(&self, program: &Path, place: Place, places: &[Place]) -> Command {
        let mut command = Command::new(program);
        command.args(["--listen-addr", &place.service.to_string()]);
        command.args(["--advertise-addr", &place.service.to_string()]);
        command.args(["--router-addr", &format!("http://{}", places[0].service)]);
        command.args(["--metrics-port", &place.page.port().to_string()]);
        command.args(["--shard-ports", "auto", "--pin", "false", "--store", &self.store()]);
        command.arg("--data-dir").arg(&self.dir);
        self.share_of_cores(&mut command);
        command
    }

    /// All processes share this machine, and its user wants to work on it too.
    fn share_of_cores(&self, command: &mut Command) {
        if env::var_os("CORES").is_none_or(|cores| cores.is_empty()) {
            let machine_cores = thread::available_parallelism().map_or(1, usize::from);
            let cores = (machine_cores / (usize::from(self.nodes) + 1)).max(1);
            command.args(["--cores", &cores.to_string()]);
        }
    }

    fn summary(&self, places: &[Place]) -> String {
        let ports = |ports: &mut dyn Iterator<Item = u16>| ports.map(|port| format!(" :{port}")).collect::<String>();
        let router = places[0].service;
        let option = if router.port() == 50050 { String::new() } else { format!("--router {router} ") };
        format!(
            "router {router}, nodes{}, store {}, metrics{}\n\
             try: milena {option}put default greeting hello\n     \
             milena {option}get default greeting\n     \
             milena {option}topology\n     \
             curl -s {}/metrics | grep milena_cache_hits_total\n\
             Ctrl-C stops all of it",
            ports(&mut places.iter().skip(1).map(|place| place.service.port())),
            self.store(),
            ports(&mut places.iter().map(|place| place.page.port())),
            places[1].page,
        )
    }

    fn summary_json(&self, places: &[Place]) -> String {
        let nodes: Vec<_> = places[1..].iter().map(|place| place.service.to_string()).collect();
        let metrics: Vec<_> = places.iter().map(|place| place.page.to_string()).collect();
        let router = places[0].service.to_string();
        serde_json::json!({ "router": router, "nodes": nodes, "metrics": metrics, "store": self.store() }).to_string()
    }
}

/// The programs that stand beside this one.
struct Programs {
    router: PathBuf,
    cache: PathBuf,
}

impl Programs {
    fn beside_this_one() -> Result<Self, DevError> {
        let this =
            env::current_exe().map_err(|error| DevError::Io { attempt: "find this program".to_owned(), error })?;
        let beside = |name: &str| {
            let path = this.with_file_name(name);
            if path.is_file() { Ok(path) } else { Err(DevError::NoProgram { path }) }
        };
        Ok(Self { router: beside("milena-router")?, cache: beside("milena-cache")? })
    }
}

/// A port that is ours while this lives.
struct Port {
    address: SocketAddr,
    _held: TcpListener,
}

/// `count` ports from `first` on, or any if `first` is 0.
fn free_ports(flag: &'static str, first: u16, count: u16) -> Result<Vec<Port>, DevError> {
    if first > 0 && first.checked_add(count - 1).is_none() {
        return Err(DevError::PortBeyondLast { flag, first, count });
    }
    let port = |index: u16| {
        let port = if first == 0 { 0 } else { first + index };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let bound = TcpListener::bind(address).and_then(|held| Ok(Port { address: held.local_addr()?, _held: held }));
        bound.map_err(|error| DevError::PortInUse { address, flag, error })
    };
    (0..count).map(port).collect()
}

fn await_signals(events: Sender<Event>) -> Result<(), DevError> {
    let failed = |error| DevError::Io { attempt: "wait for signals".to_owned(), error };
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let wait = move || {
        for _ in signals.forever() {
            if events.send(Event::Signal).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(failed)?;
    Ok(())
}

impl Cluster {
    fn start(&mut self, name: String, place: Place, mut command: Command) -> Result<(), DevError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let parent = std::process::id();
        // SAFETY: between fork and exec only async-signal-safe calls: prctl, getppid and _exit.
        unsafe {
            command.pre_exec(move || {
                // However this process ends, its children are told to.
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0 {
                    return Err(io::Error::last_os_error());
                }
                if libc::getppid() != parent.cast_signed() {
                    libc::_exit(1); // It ended before it could be asked.
                }
                Ok(())
            });
        }
        let attempt = format!("start {}", command.get_program().display());
        let failed = |error| DevError::Io { attempt: attempt.clone(), error };
        let mut child = command.spawn().map_err(failed)?;

        let index = self.members.len();
        let prefix = format!("{name:<7}| ");
        let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        self.members.push(Member { name, place, child, ended: None });
        let ended = self.sender.clone();
        let on_thread = |work: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name("log".to_owned()).spawn(work).map(drop).map_err(failed)
        };
        let out_prefix = prefix.clone();
        on_thread(Box::new(move || pass_on(&out_prefix, stdout)))?;
        on_thread(Box::new(move || {
            pass_on(&prefix, stderr);
            // The main thread may have gone already.
            let _ = ended.send(Event::Ended(index));
        }))
    }

    /// Waits until every member answers 200 at `path`.
    fn wait_for_page(&mut self, path: &str) -> Result<Wait, DevError> {
        let end = Instant::now() + READY_MAX;
        loop {
            let Some(waiting) = self.members.iter().find(|member| !answers(member.place.page, path)) else {
                return Ok(Wait::Done);
            };
            if Instant::now() >= end {
                return Err(DevError::NotReady { name: waiting.name.clone(), page: waiting.place.page });
            }
            match self.next_event(Some(READY_INTERVAL))? {
                Some(Event::Signal) => return Ok(Wait::Interrupted),
                Some(Event::Ended(index)) => return Err(self.ended(index)),
                None => {}
            }
        }
    }

    /// The next event, or `None` when `timeout` has passed.
    fn next_event(&mut self, timeout: Option<Duration>) -> Result<Option<Event>, DevError> {
        let event = match timeout {
            Some(timeout) => match self.events.recv_timeout(timeout) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => unreachable!("the cluster holds a sender"),
            },
            None => self.events.recv().expect("the cluster holds a sender"),
        };
        if let Event::Ended(index) = event {
            let member = &mut self.members[index];
            let failed = |error| DevError::Io { attempt: format!("wait for {}", member.name), error };
            member.ended = Some(member.child.wait().map_err(failed)?);
        }
        Ok(Some(event))
    }

    fn ended(&self, index: usize) -> DevError {
        let member = &self.members[index];
        DevError::Ended { name: member.name.clone(), status: member.ended.expect("its end was told") }
    }

    /// Stops the nodes, so that they can say goodbye, and then the router.
    fn stop(&mut self) -> Result<(), DevError> {
        let nodes = 1..self.members.len();
        let router = 0..self.members.len().min(1);
        let stopped = self.stop_these(nodes);
        let router_stopped = self.stop_these(router);
        stopped.and(router_stopped)
    }

    fn stop_these(&mut self, indices: std::ops::Range<usize>) -> Result<(), DevError> {
        for member in &self.members[indices.clone()] {
            member.signal(libc::SIGTERM);
        }
        let end = Instant::now() + STOP_MAX;
        while let Some(waiting) = self.members[indices.clone()].iter().position(|member| member.ended.is_none()) {
            let name = self.members[indices.start + waiting].name.clone();
            let event = self.next_event(Some(end.saturating_duration_since(Instant::now())))?;
            // Out of time, or somebody out of patience.
            if matches!(event, None | Some(Event::Signal)) {
                for member in &self.members {
                    member.signal(libc::SIGKILL);
                }
                return Err(DevError::NotStopped { name });
            }
        }
        // A process that did not stop cleanly left something behind.
        let unclean = self.members[indices].iter().find(|member| member.ended.is_some_and(|status| !status.success()));
        match unclean {
            Some(member) => {
                Err(DevError::Ended { name: member.name.clone(), status: member.ended.expect("all have ended") })
            }
            None => Ok(()),
        }
    }
}

impl Member {
    fn signal(&self, signal: i32) {
        if self.ended.is_none() {
            // SAFETY: a system call without memory. Not waited for yet, so the number is still this child's.
            unsafe { libc::kill(self.child.id().cast_signed(), signal) };
        }
    }
}

/// Writes each line of `lines` to standard error behind `prefix`.
fn pass_on(prefix: &str, lines: impl Read) {
    let mut lines = BufReader::new(lines);
    let mut line = prefix.as_bytes().to_vec();
    // Bytes, because a log line that is not UTF-8 must not end the log.
    while matches!(lines.read_until(b'\n', &mut line), Ok(read) if read > 0) {
        if !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        // One call, so that lines of several processes do not mix.
        let _ = io::stderr().write_all(&line);
        line.truncate(prefix.len());
    }
}

/// Whether a page answers with status 200.
fn answers(page: SocketAddr, path: &str) -> bool {
    const PATIENCE: Duration = Duration::from_secs(1);
    let ask = || -> io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&page, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {page}\r\nconnection: close\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(status.starts_with(b"HTTP/1.") && status.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}

impl fmt::Display for DevError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoProgram { path } => {
                write!(f, "cannot find {}; hint: `cargo build` makes all programs side by side", path.display())
            }
            Self::PortBeyondLast { flag, first, count } => write!(
                f,
                "{flag} {first}: {count} ports are needed and 65535 is the last one; allowed is up to {}",
                u32::from(u16::MAX) + 1 - u32::from(*count)
            ),
            Self::PortInUse { address, flag, error } if error.kind() == io::ErrorKind::AddrInUse => write!(
                f,
                "{address} is in use; hint: is a cluster running already? {flag} takes other ports, {flag} 0 free ones"
            ),
            Self::PortInUse { address, error, .. } => write!(f, "cannot listen on {address}: {error}"),
            Self::Io { attempt, error } => write!(f, "cannot {attempt}: {error}"),
            Self::Ended { name, status } => write!(f, "{name} ended with {status}; the reason should stand above"),
            Self::NotReady { name, page } => {
                write!(f, "{name} is not ready after {} s, see http://{page}/ready", READY_MAX.as_secs())
            }
            Self::NotStopped { name } => write!(f, "{name} did not stop by itself and was killed"),
        }
    }
}

impl std::error::Error for DevError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named_before_anything_starts() {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = held.local_addr().unwrap().port();
        let refused = free_ports("--port", port, 1).err().unwrap().to_string();
        assert_eq!(
            refused,
            format!(
                "127.0.0.1:{port} is in use; hint: is a cluster running already? --port takes other ports, --port 0 free ones"
            )
        );
    }

    #[test]
    fn free_ports_are_all_different() {
        let ports = free_ports("--port", 0, 20).unwrap();
        let mut numbers: Vec<_> = ports.iter().map(|port| port.address.port()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 20);
    }

    #[test]
    fn ports_that_do_not_exist_are_refused() {
        assert_eq!(
            free_ports("--port", 65533, 4).err().unwrap().to_string(),
            "--port 65533: 4 ports are needed and 65535 is the last one; allowed is up to 65532"
        );
    }

    #[test]
    fn only_status_200_counts_as_ready() {
        for (status, is_ready) in [("200 OK", true), ("503 Service Unavailable", false)] {
            let page = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let address = page.local_addr().unwrap();
            let serve = thread::spawn(move || {
                let (mut stream, _) = page.accept().unwrap();
                let mut request = BufReader::new(stream.try_clone().unwrap());
                let mut line = String::new();
                while request.read_line(&mut line).unwrap() > 2 {
                    line.clear();
                }
                write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").unwrap();
            });
            assert_eq!(answers(address, "/ready"), is_ready, "{status}");
            serve.join().unwrap();
        }
    }
}
