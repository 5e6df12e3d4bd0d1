//! What Milena's node is compared with: the same three calls on tonic, a table behind one mutex, one thread.
//!
//! `peer-tonic 127.0.0.1:6001` listens there until it is killed. Same messages, same allocator, same build profile as
//! `milena-cache`; no store, no eviction, no metrics: it does less, so the comparison is in its favour. There is no
//! protoc, so the service below is what tonic's generator would have written.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::{Ready, ready},
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use milena_proto::cache_server::{
    DeleteRequest, DeleteResponse, GetRequest, GetResponse, PutRequest, PutResponse, Tier,
};
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

/// Bucket and key to value.
type Values = HashMap<(String, Bytes), Bytes, ahash::RandomState>;

/// One table, one lock, as a first version of such a server would have it.
#[derive(Clone, Default)]
struct Cache {
    values: Arc<Mutex<Values>>,
}

impl Cache {
    fn get(&self, request: GetRequest) -> GetResponse {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        match values.get(&(request.bucket, request.key)) {
            Some(value) => {
                GetResponse { successful: true, value: value.clone(), tier: Tier::Memory.into(), ..Default::default() }
            }
            None => GetResponse::default(),
        }
    }

    fn put(&self, request: PutRequest) -> PutResponse {
        // Copied out of the network buffer, which a small value would otherwise keep alive.
        let value = Bytes::copy_from_slice(&request.value);
        let key = Bytes::copy_from_slice(&request.key);
        self.values.lock().unwrap_or_else(PoisonError::into_inner).insert((request.bucket, key), value);
        PutResponse { successful: true, ..Default::default() }
    }

    fn delete(&self, request: DeleteRequest) -> DeleteResponse {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).remove(&(request.bucket, request.key));
        DeleteResponse { successful: true }
    }
}

/// One method of the service, in the form that tonic calls.
#[derive(Clone)]
struct Call<Q, A>(Cache, fn(&Cache, Q) -> A);

impl<Q, A> UnaryService<Q> for Call<Q, A> {
    type Response = A;
    type Future = Ready<Result<Response<A>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        ready(Ok(Response::new((self.1)(&self.0, request.into_inner()))))
    }
}

/// Answers `request` with `method`.
async fn unary<Q, A>(cache: Cache, method: fn(&Cache, Q) -> A, request: http::Request<Body>) -> http::Response<Body>
where
    Q: prost::Message + Default + Send + 'static,
    A: prost::Message + Default + Send + 'static,
{
    Grpc::new(ProstCodec::<A, Q>::default()).unary(Call(cache, method), request).await
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
            "/cache_server.Cache/Get" => Box::pin(async { Ok(unary(cache, Cache::get, request).await) }),
            "/cache_server.Cache/Put" => Box::pin(async { Ok(unary(cache, Cache::put, request).await) }),
            "/cache_server.Cache/Delete" => Box::pin(async { Ok(unary(cache, Cache::delete, request).await) }),
            _ => Box::pin(async { Ok(Status::unimplemented("").into_http()) }),
        }
    }
}

impl NamedService for Cache {
    const NAME: &'static str = "cache_server.Cache";
}

fn main() -> ExitCode {
    let Some(address) = std::env::args().nth(1).and_then(|text| text.parse::<SocketAddr>().ok()) else {
        eprintln!("peer-tonic: which address? for example `peer-tonic 127.0.0.1:6001`");
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime on this thread");
    let served = runtime.block_on(Server::builder().tcp_nodelay(true).add_service(Cache::default()).serve(address));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer-tonic: {address}: {error}");
            ExitCode::FAILURE
        }
    }
}
