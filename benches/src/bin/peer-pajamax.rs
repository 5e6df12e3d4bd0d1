//! What Milena's node is compared with besides tonic: the same three calls on pajamax, a table behind one mutex.
//!
//! `peer-pajamax 127.0.0.1:6002` listens there until it is killed. pajamax has a thread for each connection and blocking
//! sockets, and reads of HTTP/2 what it needs to find the method: no flow control, no deadlines, no metadata, no streaming,
//! no header block in two frames. It shows what a server could save that promised less. Same messages, allocator and
//! build profile as `peer-tonic`; no store, no eviction, no metrics. There is no protoc, so the service below is what
//! pajamax's generator would have written.

use std::{
    collections::HashMap,
    fmt::Debug,
    net::SocketAddr,
    process::ExitCode,
    sync::{Mutex, PoisonError},
};

use bytes::{Buf, BufMut, Bytes};
use milena_proto::cache_server::{
    DeleteRequest, DeleteResponse, GetRequest, GetResponse, PutRequest, PutResponse, Tier,
};
use pajamax::{
    PajamaxService,
    error::Error,
    local_build_response,
    status::{Code, Status},
};
use prost::Message;
use prost_of_pajamax as theirs;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// More than any setting that is measured has connections; each has a thread.
const CONNECTIONS_MAX: usize = 1_000;

/// Bucket and key to value.
type Values = HashMap<(String, Bytes), Bytes, ahash::RandomState>;

/// One table, one lock, as in `peer-tonic`.
#[derive(Default)]
struct Cache {
    values: Mutex<Values>,
}

impl Cache {
    fn values(&self) -> std::sync::MutexGuard<'_, Values> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, request: GetRequest) -> GetResponse {
        match self.values().get(&(request.bucket, request.key)) {
            Some(value) => {
                GetResponse { successful: true, value: value.clone(), tier: Tier::Memory.into(), ..Default::default() }
            }
            None => GetResponse::default(),
        }
    }

    fn put(&self, request: PutRequest) -> PutResponse {
        self.values().insert((request.bucket, request.key), request.value);
        PutResponse { successful: true, ..Default::default() }
    }

    fn delete(&self, request: DeleteRequest) -> DeleteResponse {
        self.values().remove(&(request.bucket, request.key));
        DeleteResponse { successful: true }
    }
}

const PATHS: [&[u8]; 3] = [b"/cache_server.Cache/Get", b"/cache_server.Cache/Put", b"/cache_server.Cache/Delete"];

impl PajamaxService for Cache {
    fn route(&self, path: &[u8]) -> Option<usize> {
        PATHS.iter().position(|known| *known == path)
    }

    fn handle(&self, method: usize, request: &[u8], stream_id: u32) -> Result<(), Error> {
        match method {
            0 => answer(stream_id, request, |request| self.get(request)),
            1 => answer(stream_id, request, |request| self.put(request)),
            _ => answer(stream_id, request, |request| self.delete(request)),
        }
    }

    fn is_dispatch_mode(&self) -> bool {
        false
    }
}

/// Answers `request` with `method`.
fn answer<Q, A>(stream_id: u32, request: &[u8], method: impl FnOnce(Q) -> A) -> Result<(), Error>
where
    Q: Message + Default,
    A: Message + Debug,
{
    let response = match Q::decode(request) {
        Ok(request) => Ok(Reply(method(request))),
        Err(error) => Err(Status { code: Code::InvalidArgument, message: error.to_string() }),
    };
    local_build_response(stream_id, response)
}

/// A message of our prost, as a message of the older one that pajamax writes. Nobody reads one.
#[derive(Debug)]
struct Reply<A>(A);

impl<A: Message + Debug> theirs::Message for Reply<A> {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        self.0.encode_raw(buffer);
    }

    fn encoded_len(&self) -> usize {
        self.0.encoded_len()
    }

    fn merge_field(
        &mut self,
        _: u32,
        _: theirs::encoding::WireType,
        _: &mut impl Buf,
        _: theirs::encoding::DecodeContext,
    ) -> Result<(), theirs::DecodeError> {
        unreachable!("a reply is written only")
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

fn main() -> ExitCode {
    let Some(address) = std::env::args().nth(1).and_then(|text| text.parse::<SocketAddr>().ok()) else {
        eprintln!("peer-pajamax: which address? for example `peer-pajamax 127.0.0.1:6002`");
        return ExitCode::from(2);
    };
    let served = pajamax::Config::new().max_concurrent_connections(CONNECTIONS_MAX).add_service(Cache::default());
    match served.serve(address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer-pajamax: {address}: {error}");
            ExitCode::FAILURE
        }
    }
}
