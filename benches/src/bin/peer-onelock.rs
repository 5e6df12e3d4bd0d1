//! What Milena's node is compared with as its predecessor's stand-in: every call holds one lock around all tiers.
//!
//! ```text
//!   peer-onelock 127.0.0.1:6003 DIR      the store: as for a node in STORE, S3_ENDPOINT and the credentials' variables
//!
//!   Get   lock ─ memory ─ disk ─ store ─ fill disk and memory ─ unlock      a hit waits behind whoever waits for the store
//!   Put   lock ─ store ─ disk ─ memory ─ unlock                             one request to the store at a time
//! ```
//! This is no copy of the predecessor, but a server written after a description of it: tonic on a runtime of several
//! threads, and one asynchronous mutex that is held across every await. What is below the lock is, if anything, faster than
//! it was there: memory by count of entries, as there; for the disk one file that is appended to, never synced and never
//! collected, with its index in memory, in the place of an LSM tree; and for the store Milena's own, with the same promise as
//! the node that it is compared with. There is no protoc, so the service below is what tonic's generator would have written.

use std::{
    collections::HashMap,
    convert::Infallible,
    env,
    fs::{self, File, OpenOptions},
    io,
    net::SocketAddr,
    os::unix::fs::FileExt as _,
    path::Path,
    process::ExitCode,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use milena_proto::{
    cache_server::{DeleteRequest, DeleteResponse, GetRequest, GetResponse, PutRequest, PutResponse, Tier},
    key::{Key, KeyRef},
};
use milena_storage::{
    Condition, Error, Put, Timestamp,
    object::{self, Asker, Store, StoreConfig, StoreSettings},
};
use tokio::{sync::Mutex, task::spawn_blocking};
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::{Grpc, NamedService, UnaryService},
    transport::Server,
};
use tonic_prost::ProstCodec;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Entries in memory, as many as the load test has keys by default: hits are hits in both.
const ENTRIES_MAX: usize = 100_000;

/// Lives do not end here.
const NOW: Timestamp = Timestamp(0);

/// What the one lock is around.
struct Tiers {
    memory: HashMap<Key, Bytes, ahash::RandomState>,
    disk: Disk,
    store: Arc<dyn Store>,
}

/// Values behind one another in a file.
struct Disk {
    file: Arc<File>,
    end: u64,
    places: HashMap<Key, (u64, usize), ahash::RandomState>,
}

impl Tiers {
    async fn get(&mut self, key: Key) -> Result<Option<(Bytes, Tier)>, Status> {
        if let Some(value) = self.memory.get(&key) {
            return Ok(Some((value.clone(), Tier::Memory)));
        }
        if let Some(value) = self.disk.read(&key).await? {
            self.remember(key, value.clone());
            return Ok(Some((value, Tier::Disk)));
        }
        let (store, asked) = (Arc::clone(&self.store), key.clone());
        let found =
            blocking(move || store.get(&asked, None, NOW, &mut Asker::new(1)).map_err(|error| refused(&error))).await?;
        let Some(entry) = found.into_entry() else { return Ok(None) };
        self.disk.append(&key, &entry.value).await?;
        self.remember(key, entry.value.clone());
        Ok(Some((entry.value, Tier::S3)))
    }

    async fn put(&mut self, key: Key, value: Bytes) -> Result<(), Status> {
        let (store, asked) = (Arc::clone(&self.store), key.clone());
        let put = Put::new(value.clone(), Condition::Always);
        blocking(move || store.put(&asked, &put, &mut Asker::new(1)).map_err(|error| refused(&error))).await?;
        self.disk.append(&key, &value).await?;
        self.remember(key, value);
        Ok(())
    }

    async fn delete(&mut self, key: Key) -> Result<(), Status> {
        let (store, asked) = (Arc::clone(&self.store), key.clone());
        blocking(move || store.delete(&asked, &Condition::Always, &mut Asker::new(1)).map_err(|error| refused(&error)))
            .await?;
        self.disk.places.remove(&key);
        self.memory.remove(&key);
        Ok(())
    }

    fn remember(&mut self, key: Key, value: Bytes) {
        if self.memory.len() >= ENTRIES_MAX && !self.memory.contains_key(&key) {
            let victim = self.memory.keys().next().cloned();
            victim.map(|victim| self.memory.remove(&victim));
        }
        self.memory.insert(key, value);
    }
}

impl Disk {
    fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)?;
        Ok(Self { file: Arc::new(file), end: 0, places: HashMap::default() })
    }

    async fn read(&self, key: &Key) -> Result<Option<Bytes>, Status> {
        let Some(&(start, bytes)) = self.places.get(key) else { return Ok(None) };
        let file = Arc::clone(&self.file);
        let read = blocking(move || {
            let mut value = vec![0; bytes];
            file.read_exact_at(&mut value, start).map_err(|error| Status::internal(error.to_string()))?;
            Ok(value)
        });
        Ok(Some(read.await?.into()))
    }

    async fn append(&mut self, key: &Key, value: &Bytes) -> Result<(), Status> {
        let (file, start, written) = (Arc::clone(&self.file), self.end, value.clone());
        blocking(move || file.write_all_at(&written, start).map_err(|error| Status::internal(error.to_string())))
            .await?;
        self.end += value.len() as u64;
        self.places.insert(key.clone(), (start, value.len()));
        Ok(())
    }
}

/// Runs on one of the runtime's threads for blocking work.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Status> + Send + 'static) -> Result<T, Status> {
    spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))?
}

fn refused(error: &Error) -> Status {
    Status::internal(error.to_string())
}

fn key_of(bucket: &str, name: &[u8]) -> Result<Key, Status> {
    let key = KeyRef::parse(bucket.as_bytes(), name).map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(key.to_key())
}

#[derive(Clone)]
struct Cache {
    tiers: Arc<Mutex<Tiers>>,
}

impl Cache {
    async fn get(self, request: GetRequest) -> Result<GetResponse, Status> {
        let key = key_of(&request.bucket, &request.key)?;
        let found = self.tiers.lock().await.get(key).await?;
        Ok(found.map_or_else(GetResponse::default, |(value, tier)| GetResponse {
            successful: true,
            value,
            tier: tier.into(),
            ..Default::default()
        }))
    }

    async fn put(self, request: PutRequest) -> Result<PutResponse, Status> {
        let key = key_of(&request.bucket, &request.key)?;
        // Copied out of the network buffer, which a small value would otherwise keep alive.
        let value = Bytes::copy_from_slice(&request.value);
        self.tiers.lock().await.put(key, value).await?;
        Ok(PutResponse { successful: true, ..Default::default() })
    }

    async fn delete(self, request: DeleteRequest) -> Result<DeleteResponse, Status> {
        let key = key_of(&request.bucket, &request.key)?;
        self.tiers.lock().await.delete(key).await?;
        Ok(DeleteResponse { successful: true })
    }
}

/// One method of the service, in the form that tonic calls.
#[derive(Clone)]
struct Call<F>(Cache, F);

impl<Q, A, F, Answer> UnaryService<Q> for Call<F>
where
    F: Fn(Cache, Q) -> Answer,
    Answer: Future<Output = Result<A, Status>> + Send + 'static,
{
    type Response = A;
    type Future = BoxFuture<Response<A>, Status>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let answer = (self.1)(self.0.clone(), request.into_inner());
        Box::pin(async { Ok(Response::new(answer.await?)) })
    }
}

impl Service<http::Request<Body>> for Cache {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let cache = self.clone();
        match request.uri().path() {
            "/cache_server.Cache/Get" => {
                Box::pin(async { Ok(Grpc::new(ProstCodec::default()).unary(Call(cache, Cache::get), request).await) })
            }
            "/cache_server.Cache/Put" => {
                Box::pin(async { Ok(Grpc::new(ProstCodec::default()).unary(Call(cache, Cache::put), request).await) })
            }
            "/cache_server.Cache/Delete" => Box::pin(async {
                Ok(Grpc::new(ProstCodec::default()).unary(Call(cache, Cache::delete), request).await)
            }),
            _ => Box::pin(async { Ok(Status::unimplemented("").into_http()) }),
        }
    }
}

impl NamedService for Cache {
    const NAME: &'static str = "cache_server.Cache";
}

fn open(dir: &Path) -> Result<Cache, String> {
    fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let store = open_store(dir)?;
    let disk = Disk::create(&dir.join("values")).map_err(|error| format!("{}: {error}", dir.display()))?;
    let tiers = Tiers { memory: HashMap::default(), disk, store };
    Ok(Cache { tiers: Arc::new(Mutex::new(tiers)) })
}

/// What the environment names; a directory in `dir` where it names none.
fn open_store(dir: &Path) -> Result<Arc<dyn Store>, String> {
    let variables = ["STORE", "S3_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    let found = variables.map(|variable| env::var(variable).ok());
    let [store, s3_endpoint, access_key_id, secret_access_key] = found.each_ref().map(Option::as_deref);
    let settings = StoreSettings { store, s3_endpoint, access_key_id, secret_access_key, ..StoreSettings::none(dir) };
    let config = StoreConfig::read(&settings).map_err(|error| error.to_string())?;
    let store = object::open(&config).map_err(|error| error.to_string())?;
    store.ok_or_else(|| "STORE=none: there is nothing to be compared with".to_owned())
}

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let address = args.next().and_then(|text| text.parse::<SocketAddr>().ok());
    let (Some(address), Some(dir)) = (address, args.next()) else {
        eprintln!("peer-onelock: which address and directory? for example `peer-onelock 127.0.0.1:6003 one-lock`");
        return ExitCode::from(2);
    };
    let cache = match open(Path::new(&dir)) {
        Ok(cache) => cache,
        Err(text) => {
            eprintln!("peer-onelock: {text}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let served = runtime.block_on(Server::builder().tcp_nodelay(true).add_service(cache).serve(address));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer-onelock: {address}: {error}");
            ExitCode::FAILURE
        }
    }
}
