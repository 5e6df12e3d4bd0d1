//! Our server on a core of its own, and our channel on the core of the test.

use std::{
    cell::RefCell,
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use glommio::LocalExecutorBuilder;
use milena_net::{
    grpc::{
        client::{Channel, ChannelLimits},
        health::Health,
        reflection::Reflection,
        server::{Effect, Message, Reply, Request, Server, ServerLimits, Service},
        status::{Code, Status},
    },
    http2::limits::{LINK, OUTSIDE, Profile},
    mesh,
    stream::ReadBuffer,
    task,
    tcp::{self, ListenOptions},
};
use milena_proto::{
    cache_server::{GetRequest, GetResponse, PutRequest, PutResponse},
    generated::DESCRIPTORS,
    limits::{VALUE_BYTES_MAX_DEFAULT, message_bytes_max},
    method::{CACHE_DELETE, CACHE_GET, CACHE_PUT},
};
use prost::Message as _;

pub(crate) const MESSAGE_BYTES_MAX: usize = message_bytes_max(VALUE_BYTES_MAX_DEFAULT);
pub(crate) const CACHE: &str = "cache_server.Cache";

/// A map. In the bucket `held`, a Get waits until [`OurServer::release`]; Delete fails as its key says.
#[derive(Default)]
struct Map {
    values: RefCell<HashMap<Bytes, Bytes>>,
    gate: Rc<RefCell<Gate>>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Gate {
    is_open: bool,
    wakers: Vec<std::task::Waker>,
}

/// What the service has seen, for the test to ask from its own thread.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) held: AtomicUsize,
    pub(crate) dropped: AtomicUsize,
    /// Connections that have ended.
    pub(crate) ended: AtomicUsize,
}

/// Counts a call that waits, and how it ends.
struct Wait {
    gate: Rc<RefCell<Gate>>,
    seen: Arc<Seen>,
    is_done: bool,
}

impl Wait {
    async fn through(mut self) {
        self.seen.held.fetch_add(1, Ordering::SeqCst);
        std::future::poll_fn(|cx| {
            let mut gate = self.gate.borrow_mut();
            if gate.is_open {
                return std::task::Poll::Ready(());
            }
            gate.wakers.push(cx.waker().clone());
            std::task::Poll::Pending
        })
        .await;
        self.is_done = true;
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.seen.held.fetch_sub(1, Ordering::SeqCst);
        if !self.is_done {
            self.seen.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Service for Map {
    type Call = Pin<Box<dyn Future<Output = Reply>>>;

    fn method(&self, path: &str) -> Option<Effect> {
        match path {
            _ if path == CACHE_GET.path => Some(Effect::Reads),
            _ if path == CACHE_PUT.path || path == CACHE_DELETE.path => Some(Effect::Writes),
            _ => None,
        }
    }

    fn call(&self, request: Request) -> Self::Call {
        let Request { path, message, .. } = request;
        if &*path == CACHE_GET.path {
            let get = GetRequest::decode(message).expect("the test sends what it means");
            let value = self.values.borrow().get(&get.key).cloned();
            let wait = (get.bucket == "held").then(|| Wait {
                gate: self.gate.clone(),
                seen: self.seen.clone(),
                is_done: false,
            });
            return Box::pin(async move {
                if let Some(wait) = wait {
                    wait.through().await;
                }
                let answer =
                    GetResponse { successful: value.is_some(), value: value.unwrap_or_default(), ..Default::default() };
                Reply::Message(Message::encode(&answer))
            });
        }
        if &*path == CACHE_PUT.path {
            let put = PutRequest::decode(message).expect("the test sends what it means");
            let key = Bytes::copy_from_slice(&put.key);
            self.values.borrow_mut().insert(key, Bytes::copy_from_slice(&put.value));
            let answer = PutResponse { successful: true, version: String::new() };
            return Box::pin(std::future::ready(Reply::Message(Message::encode(&answer))));
        }
        Box::pin(std::future::ready(Reply::Failed(Status::new(Code::Aborted, "100 % refused: ünïcode"))))
    }
}

enum Command {
    Release,
    Serve(bool),
    Refuse,
    End,
}

/// A server of ours, on a thread of its own.
pub(crate) struct OurServer {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Seen>,
    commands: Option<mesh::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl OurServer {
    /// Serves on a port of the system's choice, as routers see it.
    pub(crate) fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), &LINK)
    }

    /// The same, as clients see it.
    pub(crate) fn start_outside() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), &OUTSIDE)
    }

    pub(crate) fn start_at(address: SocketAddr, profile: &'static Profile) -> Self {
        let (commands, mut inbox) = mesh::mailbox(64);
        let (bound, address_of) = mpsc::channel();
        let seen = Arc::new(Seen::default());
        let map_seen = seen.clone();
        let thread = std::thread::spawn(move || {
            let executor = LocalExecutorBuilder::default().name("server").make().expect("io_uring");
            executor.run(async move {
                let map = Rc::new(Map { seen: map_seen.clone(), ..Map::default() });
                let health = Health::new(&[CACHE]);
                health.set_all(true);
                let limits = ServerLimits { connections_max: 1000, message_bytes_max: MESSAGE_BYTES_MAX };
                let reflection = Rc::new(Reflection::new(DESCRIPTORS, &[CACHE]).expect("our own descriptors"));
                let server = Server::new(map.clone(), health.clone(), reflection, profile, limits);
                let mut listener = tcp::listen(address, ListenOptions::default()).expect("a free port");
                bound.send(listener.local_addr()).unwrap();
                let accepting = glommio::spawn_local({
                    let server = server.clone();
                    async move {
                        loop {
                            let (stream, peer) = listener.accept().await.expect("a connection");
                            let (server, seen) = (server.clone(), map_seen.clone());
                            task::spawn(async move {
                                server.serve(stream, peer.ip()).await;
                                seen.ended.fetch_add(1, Ordering::SeqCst);
                            });
                        }
                    }
                });
                while let Some(command) = inbox.recv().await {
                    match command {
                        Command::Release => {
                            let mut gate = map.gate.borrow_mut();
                            gate.is_open = true;
                            gate.wakers.drain(..).for_each(std::task::Waker::wake);
                        }
                        Command::Serve(is_serving) => health.set_all(is_serving),
                        Command::Refuse => server.refuse(),
                        Command::End => server.end(),
                    }
                }
                accepting.cancel().await;
                server.refuse();
                server.drained().await;
            });
        });
        let address = address_of.recv().expect("the server starts");
        Self { address, seen, commands: Some(commands), thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Lets the calls that are held go on, and those that come.
    pub(crate) fn release(&self) {
        self.tell(Command::Release);
    }

    /// Says whether calls are wanted, for the health service.
    pub(crate) fn serve(&self, is_serving: bool) {
        self.tell(Command::Serve(is_serving));
    }

    /// Asks every client to go away.
    pub(crate) fn refuse(&self) {
        self.tell(Command::Refuse);
    }

    /// Takes no more connections, lets what is under way end, and waits for it.
    pub(crate) fn stop(mut self) {
        self.join();
    }

    /// Ends every connection, whatever is under way.
    pub(crate) fn kill(mut self) {
        self.tell(Command::End);
        self.join();
    }

    /// Waits until this many calls were dropped where they were held.
    pub(crate) fn wait_for_dropped(&self, count: usize) {
        wait_until(|| self.seen.dropped.load(Ordering::SeqCst) == count);
    }

    /// Waits until this many connections have ended.
    pub(crate) fn wait_for_ended(&self, count: usize) {
        wait_until(|| self.seen.ended.load(Ordering::SeqCst) == count);
    }

    fn tell(&self, command: Command) {
        let commands = self.commands.as_ref().expect("the server runs");
        assert!(commands.try_send(command).is_ok(), "the server takes commands");
    }

    fn join(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends well");
        }
    }
}

impl Drop for OurServer {
    fn drop(&mut self) {
        if let Some(commands) = &self.commands {
            let _ = commands.try_send(Command::End);
        }
        self.join();
    }
}

fn wait_until(mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < Duration::from_secs(20), "nothing happens");
        std::thread::yield_now();
    }
}

/// Runs `test` with a channel of ours to `url`, on an executor of its own.
pub(crate) fn with_channel<F: Future<Output = ()> + 'static>(url: String, test: impl FnOnce(Channel) -> F + 'static) {
    let executor = LocalExecutorBuilder::default().name("client").make().expect("io_uring");
    executor.run(async move {
        let limits = ChannelLimits { profile: &LINK, message_bytes_max: MESSAGE_BYTES_MAX };
        let channel = Channel::new(&url, limits, &ReadBuffer::default()).expect("an address");
        test(channel).await;
    });
}

/// A deadline that no test reaches.
pub(crate) fn no_hurry() -> Instant {
    Instant::now() + Duration::from_secs(60)
}
