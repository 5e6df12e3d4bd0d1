//! The page for operators: `/metrics`, `/health` and `/ready` over HTTP/1.1.
//!
//! ```text
//!   /metrics   200, OpenMetrics text           what is asked comes from the program: see `Answers`
//!   /health    200 while the process lives     for a liveness probe: restart me if this is silent
//!   /ready     200, or 503 and the reason      for a readiness probe: send me requests
//!   else       404                             GET and HEAD only
//!
//!   worker 1 ─┐                                each: accept, read the head, answer, close
//!   worker 2 ─┼─ accept on one listener
//!   …         ┘
//! ```
//! A few plain threads, away from the cores; each serves one connection at a time, within [`CONNECTION_MAX`] from the
//! first byte to the last. So a client that says nothing or reads nothing holds one of them for two seconds and no
//! more, and connections beyond wait in the kernel. That bound is why there is no HTTP library below: tiny_http makes
//! a thread for every connection and reads without a time limit, and asynchronous ones bring a runtime with them.
//! Nothing of HTTP is needed here but the first line of a request (RFC 9112, section 3).

use std::{
    fmt,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use socket2::SockRef;

use crate::{
    metrics,
    tcp::{self, ListenError, Trouble},
};

/// What the program says of itself. Called on the page's threads, up to [`WORKER_COUNT`] at once; may take a second.
pub trait Answers: Send + Sync + 'static {
    /// The metrics, as [`metrics::Page::finish`] makes them.
    fn metrics(&self) -> String;

    /// Whether requests are welcome.
    ///
    /// # Errors
    /// The reason why not, in one line for whoever looks at a probe that fails.
    fn ready(&self) -> Result<(), String>;
}

/// Threads, and so connections that are served at once.
pub const WORKER_COUNT: usize = 4;

/// The most that one connection may take.
pub const CONNECTION_MAX: Duration = Duration::from_secs(2);

/// More than any client sends in front of a request for three pages.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// When there is no file descriptor for a connection, wait this long before trying again.
const NO_ROOM_WAIT: Duration = Duration::from_millis(100);

/// The running page. Dropping it stops it, too.
pub struct Page {
    listener: Arc<TcpListener>,
    address: SocketAddr,
    workers: Vec<JoinHandle<()>>,
}

/// Why there is no page.
#[derive(Debug)]
pub enum OpsError {
    /// Nobody could connect.
    Listen(ListenError),
    /// There is no thread to be had.
    Thread(io::Error),
}

impl Page {
    /// Listens on `address` (port 0 takes a free one) and answers from now on.
    ///
    /// # Errors
    /// [`OpsError`], most often a port in use.
    pub fn start(address: SocketAddr, answers: impl Answers) -> Result<Self, OpsError> {
        let (listener, address) = tcp::listen_blocking(address).map_err(OpsError::Listen)?;
        let answers = Arc::new(answers);
        let mut page = Self { listener: Arc::new(listener), address, workers: Vec::with_capacity(WORKER_COUNT) };
        for _ in 0..WORKER_COUNT {
            let (listener, answers) = (Arc::clone(&page.listener), Arc::clone(&answers));
            let builder = thread::Builder::new().name("milena-ops".into());
            let worker = builder.spawn(move || serve(&listener, &*answers)).map_err(OpsError::Thread)?;
            page.workers.push(worker);
        }
        Ok(page)
    }

    /// The address that was bound.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Accepts nothing more, and returns when the connections of now are answered, at the latest after
    /// [`CONNECTION_MAX`] and one more answer.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // Linux wakes those who wait in accept, with EINVAL, now and ever after.
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // a panic has been reported where it happened
        }
    }
}

fn serve(listener: &TcpListener, answers: &dyn Answers) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                // A client that went away, or was too slow, is not worth a word.
                let _ = Connection { stream, deadline: Instant::now() + CONNECTION_MAX }.serve(answers);
            }
            Err(error) => match Trouble::of(&error) {
                Trouble::NothingThere | Trouble::ThatConnection => {}
                Trouble::NoRoom => thread::sleep(NO_ROOM_WAIT),
                Trouble::Listener => return, // it was shut down
            },
        }
    }
}

struct Connection {
    stream: TcpStream,
    deadline: Instant,
}

struct Answer {
    status: &'static str,
    /// Whole lines.
    headers: String,
    body: String,
}

impl Connection {
    fn serve(mut self, answers: &dyn Answers) -> io::Result<()> {
        let head = self.read_head()?;
        let request = Request::parse(&head);
        let answer = match &request {
            Some(request) => request.answer(answers),
            None => Answer::text("400 Bad Request", "not an HTTP/1 request\n"),
        };
        let Answer { status, headers, body } = answer;
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
        let mut bytes = head.into_bytes();
        if request.is_none_or(|request| !request.is_head) {
            bytes.extend_from_slice(body.as_bytes());
        }
        // What is asked of the cores may have taken its time; the client gets all of its own to read.
        self.deadline = Instant::now() + CONNECTION_MAX;
        self.write_all(&bytes)
    }

    /// Up to the empty line, or as much as fits.
    fn read_head(&mut self) -> io::Result<Vec<u8>> {
        let mut head = vec![0; HEAD_BYTES_MAX];
        let mut filled = 0;
        while filled < HEAD_BYTES_MAX && !head[..filled].windows(4).any(|window| window == b"\r\n\r\n") {
            self.stream.set_read_timeout(Some(self.time_left()?))?;
            match self.stream.read(&mut head[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => filled += bytes,
            }
        }
        head.truncate(filled);
        Ok(head)
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(self.time_left()?))?;
            let written = self.stream.write(bytes)?;
            bytes = &bytes[written..];
        }
        self.stream.shutdown(Shutdown::Write)
    }

    fn time_left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

struct Request<'head> {
    method: &'head str,
    path: &'head str,
    is_head: bool,
}

impl<'head> Request<'head> {
    fn parse(head: &'head [u8]) -> Option<Self> {
        let line = head.split(|byte| *byte == b'\r').next()?;
        let (method, rest) = std::str::from_utf8(line).ok()?.split_once(' ')?;
        let (target, version) = rest.split_once(' ')?;
        if !version.starts_with("HTTP/1.") || !target.starts_with('/') {
            return None;
        }
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        Some(Self { method, path, is_head: method == "HEAD" })
    }

    fn answer(&self, answers: &dyn Answers) -> Answer {
        if !matches!(self.method, "GET" | "HEAD") {
            let mut answer = Answer::text("405 Method Not Allowed", "only GET and HEAD\n");
            answer.headers += "Allow: GET, HEAD\r\n";
            return answer;
        }
        match self.path {
            "/metrics" => Answer::new("200 OK", metrics::CONTENT_TYPE, answers.metrics()),
            "/health" => Answer::text("200 OK", "alive\n"),
            "/ready" => match answers.ready() {
                Ok(()) => Answer::text("200 OK", "ready\n"),
                Err(reason) => Answer::text("503 Service Unavailable", format!("{reason}\n")),
            },
            _ => Answer::text("404 Not Found", "here are /metrics, /health and /ready\n"),
        }
    }
}

impl Answer {
    fn new(status: &'static str, content_type: &str, body: String) -> Self {
        Self { status, headers: format!("Content-Type: {content_type}\r\n"), body }
    }

    fn text(status: &'static str, body: impl Into<String>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body.into())
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").field("address", &self.address).finish_non_exhaustive()
    }
}

impl fmt::Display for OpsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(error) => write!(f, "metrics: {error}"),
            Self::Thread(error) => write!(f, "metrics: cannot make a thread: {error}"),
        }
    }
}

impl std::error::Error for OpsError {}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// Metrics of this many bytes; ready when there are none.
    struct Fixed(usize);

    impl Answers for Fixed {
        fn metrics(&self) -> String {
            "x".repeat(self.0)
        }

        fn ready(&self) -> Result<(), String> {
            if self.0 == 0 { Ok(()) } else { Err("the log is still being read".into()) }
        }
    }

    fn page(metrics_bytes: usize) -> Page {
        Page::start((Ipv4Addr::LOCALHOST, 0).into(), Fixed(metrics_bytes)).unwrap()
    }

    fn connect(page: &Page) -> TcpStream {
        TcpStream::connect(page.local_addr()).unwrap()
    }

    /// Sends `request` and returns the first line and the body of what comes back.
    fn ask(page: &Page, request: &str) -> (String, String) {
        let mut stream = connect(page);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
        if !request.starts_with("HEAD") {
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
        }
        let status = head.split("\r\n").next().unwrap().strip_prefix("HTTP/1.1 ").unwrap();
        (status.to_owned(), body.to_owned())
    }

    fn get(page: &Page, path: &str) -> (String, String) {
        ask(page, &format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n"))
    }

    fn both(status: &str, body: &str) -> (String, String) {
        (status.to_owned(), body.to_owned())
    }

    #[test]
    fn the_three_pages_answer() {
        let ready = page(0);
        assert_eq!(get(&ready, "/health"), both("200 OK", "alive\n"));
        assert_eq!(get(&ready, "/ready"), both("200 OK", "ready\n"));
        assert_eq!(get(&ready, "/metrics"), both("200 OK", ""));
        let starting = page(3);
        assert_eq!(get(&starting, "/health"), both("200 OK", "alive\n"));
        assert_eq!(get(&starting, "/ready"), both("503 Service Unavailable", "the log is still being read\n"));
        assert_eq!(get(&starting, "/metrics?x=/health"), both("200 OK", "xxx"));
    }

    #[test]
    fn anything_else_is_not_found_and_other_methods_are_refused() {
        let page = page(0);
        for path in ["/", "/metrics/", "/healthy", "//metrics"] {
            assert_eq!(get(&page, path).0, "404 Not Found", "{path}");
        }
        assert_eq!(ask(&page, "POST /metrics HTTP/1.1\r\n\r\n").0, "405 Method Not Allowed");
        assert_eq!(ask(&page, "HEAD /health HTTP/1.0\r\n\r\n"), both("200 OK", ""));
        for garbage in
            ["\r\n\r\n", "GET\r\n\r\n", "GET /health\r\n\r\n", "GET health HTTP/1.1\r\n\r\n", "\x16\x03\x01\r\n\r\n"]
        {
            assert_eq!(ask(&page, garbage).0, "400 Bad Request", "{garbage:?}");
        }
        assert_eq!(ask(&page, &"x".repeat(HEAD_BYTES_MAX)).0, "400 Bad Request");
    }

    #[test]
    fn clients_that_say_nothing_delay_the_others_but_do_not_lock_them_out() {
        let page = page(0);
        let silent: Vec<_> = (0..WORKER_COUNT).map(|_| connect(&page)).collect();
        let trickling = connect(&page);
        (&trickling).write_all(b"GET /hea").unwrap();
        assert_eq!(get(&page, "/health").0, "200 OK");
        for mut stream in silent {
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the page has given up on it");
        }
    }

    #[test]
    fn a_client_that_reads_nothing_does_not_hold_the_page() {
        let page = page(64 << 20); // more than all the buffers between us
        let deaf: Vec<_> = (0..WORKER_COUNT).map(|_| connect(&page)).collect();
        for mut stream in &deaf {
            stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        }
        assert_eq!(get(&page, "/health").0, "200 OK");
        page.stop();
    }

    #[test]
    fn it_stops_at_once_when_nobody_is_there_and_the_port_is_free_again() {
        let first = page(0);
        let address = first.local_addr();
        let error = Page::start(address, Fixed(0)).unwrap_err();
        assert!(error.to_string().starts_with(&format!("metrics: cannot listen on {address}: the port is in use")));
        first.stop();
        Page::start(address, Fixed(0)).unwrap();
    }
}
