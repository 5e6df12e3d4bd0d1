//! A real S3 server for tests: SeaweedFS, started on free ports of the loopback, gone when the test program is.
//!
//! `.ci/peers` installs it; a test that needs it and does not find it fails and says so. Used by several packages, so
//! it stands in none of them: include it with `#[path]`.

#![allow(dead_code, unreachable_pub)] // each test program uses another part

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// The only credentials that the server knows.
pub const ACCESS_KEY_ID: &str = "AKIATESTS";
/// Its secret.
pub const SECRET_ACCESS_KEY: &str = "secret-of-the-tests";
/// Buckets are also hosts under this name, which no name server knows.
pub const DOMAIN: &str = "s3.test";
/// The only bucket there is.
pub const BUCKET: &str = "tests";

/// Until it answers; it takes one second, and longer on a machine that has much to do.
const START_SECONDS: u64 = 60;

/// It listens on five more ports behind the first, and for gRPC on each plus this.
const GRPC_OFFSET: u16 = 10_000;
const PORTS: u16 = 6;

/// The last of them speaks TLS.
const HTTPS_OFFSET: u16 = 5;

/// Whose certificate the server shows there: an authority that nobody else has.
pub const AUTHORITY: &str = include_str!("tls/authority.pem");
const CERTIFICATE: &str = include_str!("tls/server.pem");
const CERTIFICATE_KEY: &str = include_str!("tls/server.key");

/// A running server.
#[derive(Debug)]
pub struct Seaweed {
    address: SocketAddr,
    dir: PathBuf,
    child: Option<Child>,
}

/// The one server of this test program.
pub fn shared() -> &'static Seaweed {
    static SHARED: OnceLock<Seaweed> = OnceLock::new();
    SHARED.get_or_init(Seaweed::start)
}

impl Seaweed {
    /// Starts a server of one's own, empty but for [`BUCKET`].
    pub fn start() -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let runs = peers().join("run");
        remove_what_the_dead_left(&runs);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let dir = runs.join(format!("{}-{number}", process::id()));
        fs::create_dir_all(&dir).unwrap();
        // Another test program may take a port between our look and the server's.
        for _ in 0..5 {
            let mut server = Self { address: free_ports(number), dir: dir.clone(), child: None };
            if server.run() {
                return server;
            }
        }
        panic!("SeaweedFS does not start; its last words are in {}", dir.join("log").display());
    }

    /// Where S3 is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The same behind TLS.
    pub fn https_endpoint(&self) -> String {
        format!("https://{}:{}", self.address.ip(), self.address.port() + HTTPS_OFFSET)
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it again with what it had, at the same address.
    pub fn start_again(&mut self) {
        assert!(self.run(), "SeaweedFS does not start again; its last words are in {}", self.dir.join("log").display());
    }

    /// Whether it answers in the end.
    fn run(&mut self) -> bool {
        assert!(self.child.is_none(), "it runs");
        let weed = peers().join("venv/bin/weed");
        assert!(weed.exists(), "{} is not there; run ./test, or .ci/peers, which installs it", weed.display());
        let (certificate, key) = (self.dir.join("server.pem"), self.dir.join("server.key"));
        fs::write(&certificate, CERTIFICATE).unwrap();
        fs::write(&key, CERTIFICATE_KEY).unwrap();
        let log = fs::File::create(self.dir.join("log")).unwrap();
        let port = self.address.port();
        let mut command = Command::new(weed);
        command
            .args(["-logtostderr", "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"])
            .arg(format!("-dir={}", self.dir.display()))
            .arg(format!("-bucket={BUCKET}"))
            .arg(format!("-s3.domainName={DOMAIN}"))
            .arg(format!("-s3.port={port}"))
            .arg(format!("-s3.port.https={}", port + HTTPS_OFFSET))
            .arg(format!("-s3.cert.file={}", certificate.display()))
            .arg(format!("-s3.key.file={}", key.display()))
            .arg(format!("-master.port={}", port + 1))
            .arg(format!("-volume.port={}", port + 2))
            .arg(format!("-filer.port={}", port + 3))
            .arg(format!("-admin.port={}", port + 4))
            .arg(format!("-filer.localSocket={}", self.dir.join("filer.sock").display()))
            .arg(format!("-s3.localSocket={}", self.dir.join("s3.sock").display()))
            .args(["-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"])
            .args(["-s3.allowDeleteBucketNotEmpty=false", "-s3.autoCreateBucket=false", "-master.telemetry=false"])
            .env_clear()
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
            .env("HOME", &self.dir)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let mut child = spawn_for_life(command);
        let until = Instant::now() + Duration::from_secs(START_SECONDS);
        while Instant::now() < until {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            if has_bucket(self.address) {
                self.child = Some(child);
                return true;
            }
            thread::sleep(Duration::from_millis(20)); // between two looks
        }
        child.kill().unwrap();
        child.wait().unwrap();
        false
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Where `.ci/peers` puts things: the target folder is where this test program itself is.
fn peers() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let target = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    target.expect("tests run from cargo's target folder").join("peers")
}

/// Starts a process that ends when this one does, however it does.
///
/// The kernel ties it to the thread that started it, and threads of tests end early, so a thread of its own does.
fn spawn_for_life(mut command: Command) -> Child {
    // SAFETY: between fork and exec only a system call is made, which allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        sender.send(command.spawn()).unwrap();
        loop {
            thread::park();
        }
    });
    receiver.recv().unwrap().unwrap()
}

/// A first port with all that belong to it free, below those that the system gives to connections.
fn free_ports(number: u32) -> SocketAddr {
    let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let bases = (12_000..22_000).step_by(10);
    let first = process::id().wrapping_mul(7).wrapping_add(number.wrapping_mul(131)) as usize % bases.len();
    let base = bases
        .cycle_from(first)
        .find(|base| (*base..base + PORTS).all(|port| is_free(port) && is_free(port + GRPC_OFFSET)))
        .expect("ten free ports");
    SocketAddr::from((Ipv4Addr::LOCALHOST, base))
}

trait CycleFrom: Iterator + Clone + Sized {
    /// Every element once, beginning with the one at `index`.
    fn cycle_from(self, index: usize) -> impl Iterator<Item = Self::Item> {
        self.clone().skip(index).chain(self.take(index))
    }
}

impl<I: Iterator + Clone> CycleFrom for I {}

/// Whether the server answers for its bucket: 403, since this request is not signed.
fn has_bucket(s3: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(s3)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "HEAD /{BUCKET}/ HTTP/1.1\r\nHost: {s3}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        // The bucket is made by the filer a moment after S3 answers.
        let filer = SocketAddr::from((s3.ip(), s3.port() + 3));
        let mut stream = TcpStream::connect(filer)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "HEAD /buckets/{BUCKET}/ HTTP/1.1\r\nHost: {filer}\r\nConnection: close\r\n\r\n")?;
        let mut bucket = String::new();
        stream.read_to_string(&mut bucket)?;
        TcpStream::connect((s3.ip(), s3.port() + HTTPS_OFFSET))?;
        Ok::<_, std::io::Error>(answer.contains(" 403 ") && bucket.contains(" 200 "))
    };
    ask().unwrap_or(false)
}

/// Folders of test programs that were killed.
fn remove_what_the_dead_left(runs: &Path) {
    let Ok(folders) = fs::read_dir(runs) else { return };
    for folder in folders.flatten() {
        let name = folder.file_name();
        let pid = name.to_str().and_then(|name| name.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(folder.path());
        }
    }
}
