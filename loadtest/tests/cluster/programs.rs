//! Real processes with addresses, directories and logs of their own.

use std::{
    env, fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use milena_proto::router_server::SlotState;
use tempfile::TempDir;

use crate::client::Client;

/// How long a process may take to be ready, or to stop: it has two cores with everybody else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The contract: the keys of a node that stops renewing are answered by others after this.
pub(crate) const TAKEOVER: Duration = Duration::from_secs(8);

/// Asks until `condition` answers with something.
///
/// # Panics
/// After `bound`, saying what did not happen.
pub(crate) fn wait_until<T>(what: &str, bound: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + bound;
    loop {
        if let Some(answer) = condition() {
            return answer;
        }
        assert!(Instant::now() < end, "after {bound:?} still not: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// An address that nobody listens on now, and that no outgoing connection takes while its program is away: Linux takes
/// those from 32,768 to 60,999 (`net.ipv4.ip_local_port_range`), the S3 server of the tests its own from 12,000 to 32,010.
pub(crate) fn free_address() -> SocketAddr {
    const FIRST: u16 = 61_100;
    const COUNT: u16 = 4_000;
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % u32::from(COUNT)).expect("less than COUNT");
    loop {
        let number = GIVEN.fetch_add(1, Ordering::Relaxed);
        assert!(number < COUNT, "every port was given once");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST + (start + number) % COUNT));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Where `cargo` put the programs: beside the folder of this test.
pub(crate) fn program(name: &str) -> PathBuf {
    let test = env::current_exe().expect("this test is a file");
    let path = test.parent().and_then(Path::parent).expect("in target/debug/deps").join(name);
    assert!(path.is_file(), "{} is missing; ./test builds the programs and runs these tests", path.display());
    path
}

/// One process of ours. It sees no environment but what it is given, and does not outlive this value.
pub(crate) struct Program {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts `name` in `dir`.
    pub(crate) fn start(name: &'static str, arguments: &[&str], settings: &[(&str, String)], dir: &Path) -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let log = dir.join(format!("{name}.{}.log", STARTED.fetch_add(1, Ordering::Relaxed)));
        let output = fs::File::create(&log).expect("a log in a directory of our own");
        let child = Command::new(program(name))
            .args(arguments)
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .envs(settings.iter().map(|(setting, value)| (*setting, value)))
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { name, child, log }
    }

    /// Everything it has written so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).expect("its log")).into_owned()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: a system call without memory; the child is not waited for yet, so the number is still its own.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
    }

    /// SIGKILL: it gets no chance to say goodbye.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it is ours to kill");
        self.child.wait().expect("killed");
    }

    /// Waits for its end; the exit code, or `None` if a signal ended it.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("ours to wait for") {
                return status.code();
            }
            assert!(Instant::now() < end, "{} still runs after {PATIENCE:?}:\n{}", self.name, self.log());
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// SIGTERM, and the exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        self.signal(libc::SIGTERM);
        self.exit_code()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("ours to wait for").is_none()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("---- {} ({}), last lines:", self.name, self.child.id());
            eprintln!("{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        }
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A node or a router, and where it answers. Started again, it is at the same place with the same directory.
pub(crate) struct Server {
    name: &'static str,
    settings: Vec<(&'static str, String)>,
    dir: PathBuf,
    program: Option<Program>,
    /// Where it answers calls.
    pub(crate) address: SocketAddr,
    /// Where it answers operators.
    pub(crate) page: SocketAddr,
}

impl Server {
    fn new(name: &'static str, dir: &Path, changes: &[(&'static str, &str)]) -> Self {
        let (address, page) = (free_address(), free_address());
        let mut settings = vec![
            ("LISTEN_ADDR", address.to_string()),
            ("METRICS_PORT", page.port().to_string()),
            ("CORES", "2".to_owned()),
        ];
        for (setting, value) in changes {
            settings.retain(|(other, _)| other != setting);
            settings.push((setting, (*value).to_owned()));
        }
        Self { name, settings, dir: dir.to_owned(), program: None, address, page }
    }

    /// A node in `dir`, which is its DATA_DIR too; alone with a directory as its store unless `changes` say otherwise.
    pub(crate) fn node(dir: &Path, changes: &[(&'static str, &str)]) -> Self {
        let data_dir = dir.display().to_string();
        let usual = [("DATA_DIR", &*data_dir), ("PIN", "false"), ("MEMORY", "64MiB")];
        Self::new("milena-cache", dir, &[&usual, changes].concat())
    }

    /// A router that keeps its table in `dir`.
    pub(crate) fn router(dir: &Path, changes: &[(&'static str, &str)]) -> Self {
        let state = format!("file://{}/router", dir.display());
        Self::new("milena-router", dir, &[&[("STATE", &*state), ("CORES", "1"), ("PIN", "false")], changes].concat())
    }

    /// Changes a setting for the next start.
    pub(crate) fn set(&mut self, setting: &'static str, value: &str) {
        self.settings.retain(|(other, _)| *other != setting);
        self.settings.push((setting, value.to_owned()));
    }

    /// Starts it without waiting for anything.
    pub(crate) fn launch(&mut self) -> &mut Program {
        assert!(self.program.is_none(), "{} runs already", self.name);
        self.program.insert(Program::start(self.name, &[], &self.settings, &self.dir))
    }

    /// Starts it and waits until it says that it lives.
    pub(crate) fn start(&mut self) {
        self.launch();
        let page = self.page;
        let program = self.program();
        let lives = || {
            assert!(program.is_running(), "ended before it was ready:\n{}", program.log());
            fetch(page, "/health").ok().filter(|(status, _)| *status == 200)
        };
        wait_until("it answers /health", PATIENCE, lives);
    }

    /// Waits until it says that it is ready: a node has joined then.
    pub(crate) fn wait_for_ready(&self) {
        let is_ready = || fetch(self.page, "/ready").ok().filter(|(status, _)| *status == 200);
        wait_until("it answers /ready", PATIENCE, is_ready);
    }

    /// The process.
    pub(crate) fn program(&mut self) -> &mut Program {
        self.program.as_mut().expect("it was started")
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.program.take().expect("it was started").kill();
    }

    /// SIGTERM, and the exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        self.program.take().expect("it was started").stop()
    }

    /// The sum of a metric's samples that carry this label.
    pub(crate) fn metric(&self, name: &str, label: &str) -> u64 {
        let (_, text) = fetch(self.page, "/metrics").expect("a page for operators");
        let samples = text.lines().filter(|line| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            rest.starts_with(['{', ' ']) && rest.contains(label)
        });
        let values = samples.map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters of a test are small")]
        values.map(|value| value.expect("a number") as u64).sum()
    }
}

/// Status and body of a page.
pub(crate) fn fetch(page: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&page, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {page}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no HTTP"))?;
    Ok((status, answer))
}

/// A router and its nodes on one directory, which is their store.
pub(crate) struct Cluster {
    pub(crate) router: Server,
    pub(crate) nodes: Vec<Server>,
    /// Last, so that it goes away after the processes.
    dir: TempDir,
}

/// Starts a router and `count` nodes; returns when all of them own keys.
pub(crate) fn start_cluster(count: usize) -> Cluster {
    start_cluster_with(count, &[])
}

/// The same with nodes that are set differently.
pub(crate) fn start_cluster_with(count: usize, changes: &[(&'static str, &str)]) -> Cluster {
    let dir = tempfile::tempdir().expect("a directory of our own");
    let mut router = Server::router(dir.path(), &[]);
    router.start();
    let mut cluster = Cluster { router, nodes: Vec::new(), dir };
    for _ in 0..count {
        cluster.add_node(changes);
    }
    cluster.wait_for_live(count);
    cluster
}

impl Cluster {
    /// Starts one more node; it may not be in the table yet.
    pub(crate) fn add_node(&mut self, changes: &[(&'static str, &str)]) {
        let router = self.router.address.to_string();
        let mut node = Server::node(self.dir.path(), &[&[("ROUTER_ADDR", &*router)], changes].concat());
        node.start();
        self.nodes.push(node);
    }

    /// Asks the router.
    pub(crate) fn client(&self) -> Client {
        Client::router(self.router.address)
    }

    /// Waits until exactly `count` nodes are live in the router's table.
    pub(crate) fn wait_for_live(&self, count: usize) {
        let client = self.client();
        wait_until(&format!("{count} live nodes"), PATIENCE, || (client.states().ok()? == count).then_some(()));
    }
}

impl Client {
    /// How many slots of the router's table are live.
    ///
    /// # Errors
    /// The router does not answer.
    pub(crate) fn states(&self) -> Result<usize, tonic::Status> {
        let slots = self.topology()?.slots;
        Ok(slots.iter().filter(|slot| slot.state() == SlotState::Live).count())
    }
}
