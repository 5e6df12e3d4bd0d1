//! A server that keeps every value it was ever given, so that it can lie: net's server on a core of its own.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::{Ready, ready},
    net::SocketAddr,
    rc::Rc,
    sync::mpsc,
};

use bytes::Bytes;
use milena_net::{
    cores::{Cores, CoresConfig},
    grpc::{
        health::Health,
        reflection::Reflection,
        server::{Effect, Message, Reply, Request, Server, ServerLimits, Service},
    },
    http2::limits::OUTSIDE,
    mesh, task,
    tcp::{self, ListenOptions},
};
use milena_proto::{
    cache_server::{
        BatchGetRequest, BatchGetResponse, BatchPutRequest, BatchPutResponse, DeleteRequest, DeleteResponse,
        GetRequest, GetResponse, PutRequest, PutResponse, PutResult, Tier,
    },
    generated::DESCRIPTORS,
    limits::{VALUE_BYTES_MAX_DEFAULT, message_bytes_max},
    method::{CACHE_DELETE, CACHE_GET, CACHE_PUT},
};
use prost::Message as _;

const NAME: &str = "cache_server.Cache";
const BATCH_GET: &str = "/cache_server.Cache/BatchGet";
const BATCH_PUT: &str = "/cache_server.Cache/BatchPut";

/// One call in so many is answered wrongly, if it can be.
const LIE_EVERY: u32 = 10;

/// How the server lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Not at all.
    None,
    /// A Get brings the value before the last.
    Old,
    /// A Get brings what was deleted.
    Deleted,
    /// A Put is acknowledged and not done, and what was there is gone.
    Dropped,
    /// A bit of a value is another one.
    Bit,
    /// A Get brings another key's value.
    Neighbour,
    /// A Get brings a version that is yet to be written, with the right checksum.
    Future,
}

/// The server; it ends with this value.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    _stop: mesh::Sender<()>,
}

impl Fake {
    pub(crate) fn start(lie: Lie) -> Self {
        let (stop, stopped) = mesh::mailbox::<()>(1);
        let (tell, told) = mpsc::channel();
        let mut stopped = Some(stopped);
        let cores = Cores::start(CoresConfig { pin: false, ..CoresConfig::new(1) }, |_| {
            let (mut stopped, tell) = (stopped.take().expect("one core"), tell.clone());
            move || async move {
                let map = Rc::new(Map { lie, values: RefCell::default(), calls: Cell::new(0) });
                let limits = ServerLimits {
                    connections_max: 1000,
                    message_bytes_max: message_bytes_max(VALUE_BYTES_MAX_DEFAULT),
                };
                let reflection = Rc::new(Reflection::new(DESCRIPTORS, &[NAME]).expect("our own descriptors"));
                let server = Server::new(map, Health::new(&[NAME]), reflection, &OUTSIDE, limits);
                let any = "127.0.0.1:0".parse().expect("an address");
                let mut listener = tcp::listen(any, ListenOptions::default()).expect("a free port");
                tell.send(listener.local_addr()).expect("the test waits");
                task::spawn(async move {
                    while let Ok((stream, peer)) = listener.accept().await {
                        task::spawn(Rc::clone(&server).serve(stream, peer.ip()));
                    }
                });
                stopped.recv().await;
            }
        });
        cores.expect("a core");
        Self { address: told.recv().expect("the server starts"), _stop: stop }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

struct Map {
    lie: Lie,
    /// Every value that was put, and `None` for deletes.
    values: RefCell<HashMap<Bytes, Vec<Option<Bytes>>>>,
    calls: Cell<u32>,
}

impl Map {
    /// Whether this call is one that is answered wrongly, by this kind of liar.
    fn lies(&self, lie: Lie) -> bool {
        self.lie == lie && self.calls.get().is_multiple_of(LIE_EVERY)
    }

    fn get(&self, key: &Bytes) -> GetResponse {
        let values = self.values.borrow();
        let history = values.get(key).map_or(&[][..], Vec::as_slice);
        let mut value = history.last().cloned().flatten();
        if self.lies(Lie::Old) {
            value = history.iter().rev().nth(1).cloned().unwrap_or(value);
        }
        if self.lies(Lie::Deleted) && value.is_none() {
            value = history.iter().rev().find_map(Clone::clone);
        }
        if self.lies(Lie::Neighbour) {
            let others = values.iter().filter(|(other, _)| *other != key);
            value = others.filter_map(|(_, history)| history.last().cloned().flatten()).next().or(value);
        }
        if self.lies(Lie::Bit) {
            value = value.map(|value| {
                let mut bytes = value.to_vec();
                *bytes.last_mut().expect("no value is empty") ^= 1;
                bytes.into()
            });
        }
        if self.lies(Lie::Future) {
            value = value.map(|value| ahead(&value));
        }
        GetResponse {
            successful: value.is_some(),
            value: value.unwrap_or_default(),
            tier: Tier::Memory.into(),
            ..GetResponse::default()
        }
    }

    fn put(&self, put: &PutRequest) {
        let value = if self.lies(Lie::Dropped) { None } else { Some(Bytes::copy_from_slice(&put.value)) };
        self.keep(&put.key, value);
    }

    fn keep(&self, key: &Bytes, value: Option<Bytes>) {
        let key = Bytes::copy_from_slice(key);
        self.values.borrow_mut().entry(key).or_default().push(value);
    }

    fn answer(&self, path: &str, message: Bytes) -> Message {
        let meant = "the program sends what it means";
        if path == CACHE_GET.path {
            return Message::encode(&self.get(&GetRequest::decode(message).expect(meant).key));
        }
        if path == CACHE_PUT.path {
            self.put(&PutRequest::decode(message).expect(meant));
            return Message::encode(&PutResponse { successful: true, version: String::new() });
        }
        if path == CACHE_DELETE.path {
            self.keep(&DeleteRequest::decode(message).expect(meant).key, None);
            return Message::encode(&DeleteResponse { successful: true });
        }
        if path == BATCH_GET {
            let get = BatchGetRequest::decode(message).expect(meant);
            return Message::encode(&BatchGetResponse { results: get.keys.iter().map(|key| self.get(key)).collect() });
        }
        let put = BatchPutRequest::decode(message).expect(meant);
        put.entries.iter().for_each(|entry| self.put(entry));
        Message::encode(&BatchPutResponse { results: vec![PutResult::default(); put.entries.len()] })
    }
}

/// A value as it would be a thousand versions later; its picture is in `src/verify.rs`.
fn ahead(value: &[u8]) -> Bytes {
    let mut value = value.to_vec();
    let version = u64::from_le_bytes(value[16..24].try_into().expect("eight bytes"));
    value[16..24].copy_from_slice(&(version + 1000).to_le_bytes());
    let checksum = crc32c::crc32c(&value[8..]);
    value[4..8].copy_from_slice(&checksum.to_le_bytes());
    value.into()
}

impl Service for Map {
    type Call = Ready<Reply>;

    fn method(&self, path: &str) -> Option<Effect> {
        let paths = [CACHE_GET.path, CACHE_PUT.path, CACHE_DELETE.path, BATCH_GET, BATCH_PUT];
        paths.contains(&path).then_some(Effect::Writes)
    }

    fn call(&self, request: Request) -> Self::Call {
        self.calls.set(self.calls.get() + 1);
        ready(Reply::Message(self.answer(&request.path, request.message)))
    }
}
