//! tonic, the implementation that everybody else uses: as a client, and as a server.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use milena_proto::{
    cache_server::{DeleteRequest, DeleteResponse, GetRequest, GetResponse, PutRequest, PutResponse},
    grpc_reflection_v1::{
        ServerReflectionRequest, ServerReflectionResponse, server_reflection_request::MessageRequest,
        server_reflection_response::MessageResponse,
    },
    method::{CACHE_DELETE, CACHE_GET, CACHE_PUT},
};
use tokio::sync::oneshot;
use tonic::{
    codegen::{Body, BoxFuture, StdError, http, http::uri::PathAndQuery},
    transport::{self, server::TcpIncoming},
};
use tonic_prost::ProstCodec;

/// The cache's methods as tonic calls them.
#[derive(Clone)]
pub(crate) struct TonicClient(tonic::client::Grpc<transport::Channel>);

impl TonicClient {
    pub(crate) async fn connect(url: String) -> Self {
        let endpoint = transport::Endpoint::from_shared(url).unwrap().tcp_nodelay(true);
        let client = tonic::client::Grpc::new(endpoint.connect().await.expect("a server"));
        Self(client.max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20))
    }

    pub(crate) async fn get(&mut self, bucket: &str, key: &str) -> Result<GetResponse, tonic::Status> {
        let request = GetRequest { key: Bytes::copy_from_slice(key.as_bytes()), bucket: bucket.to_owned() };
        self.unary(CACHE_GET.path, tonic::Request::new(request)).await
    }

    pub(crate) async fn get_within(&mut self, bucket: &str, limit: Duration) -> Result<GetResponse, tonic::Status> {
        let mut request = tonic::Request::new(GetRequest { key: Bytes::from_static(b"k"), bucket: bucket.to_owned() });
        request.set_timeout(limit);
        self.unary(CACHE_GET.path, request).await
    }

    pub(crate) async fn put(&mut self, key: &str, value: Bytes) -> Result<PutResponse, tonic::Status> {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let request = PutRequest { key, bucket: "b".to_owned(), value, ..Default::default() };
        self.unary(CACHE_PUT.path, tonic::Request::new(request)).await
    }

    pub(crate) async fn delete(&mut self, key: &str) -> Result<DeleteResponse, tonic::Status> {
        let request = DeleteRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() };
        self.unary(CACHE_DELETE.path, tonic::Request::new(request)).await
    }

    /// The services that reflection at `path` lists.
    pub(crate) async fn services(&mut self, path: &'static str) -> Result<Vec<String>, tonic::Status> {
        let question = ServerReflectionRequest {
            message_request: Some(MessageRequest::ListServices(String::new())),
            ..Default::default()
        };
        self.0.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::<ServerReflectionRequest, ServerReflectionResponse>::default();
        let questions = tonic::Request::new(futures::stream::iter([question]));
        let mut answers = self.0.streaming(questions, PathAndQuery::from_static(path), codec).await?.into_inner();
        let answer = answers.message().await?.expect("an answer for each question");
        assert!(answers.message().await?.is_none());
        match answer.message_response {
            Some(MessageResponse::ListServicesResponse(list)) => {
                Ok(list.service.into_iter().map(|service| service.name).collect())
            }
            other => panic!("no list of services: {other:?}"),
        }
    }

    pub(crate) async fn unary<Q, A>(
        &mut self,
        path: &'static str,
        request: tonic::Request<Q>,
    ) -> Result<A, tonic::Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        self.0.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::<Q, A>::default();
        self.0.unary(request, PathAndQuery::from_static(path), codec).await.map(tonic::Response::into_inner)
    }
}

/// A map behind tonic. A Get in the bucket `held` is never answered; Delete fails with the text of its key.
#[derive(Clone, Default)]
pub(crate) struct TonicMap {
    values: Arc<Mutex<HashMap<Bytes, Bytes>>>,
    held: Arc<AtomicUsize>,
}

/// Counts a call that waits for ever, until it is dropped.
struct Held<'a>(&'a AtomicUsize);

impl<'a> Held<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl TonicMap {
    async fn get(self, request: GetRequest) -> Result<tonic::Response<GetResponse>, tonic::Status> {
        if request.bucket == "held" {
            let _held = Held::new(&self.held);
            std::future::pending::<()>().await;
        }
        let value = self.values.lock().unwrap().get(&request.key).cloned();
        Ok(tonic::Response::new(GetResponse {
            successful: value.is_some(),
            value: value.unwrap_or_default(),
            ..Default::default()
        }))
    }

    async fn put(self, request: PutRequest) -> Result<tonic::Response<PutResponse>, tonic::Status> {
        self.values.lock().unwrap().insert(request.key, request.value);
        Ok(tonic::Response::new(PutResponse { successful: true, version: String::new() }))
    }

    async fn delete(self, request: DeleteRequest) -> Result<tonic::Response<DeleteResponse>, tonic::Status> {
        Err(tonic::Status::data_loss(String::from_utf8_lossy(&request.key)))
    }
}

/// One method of the map, as tonic wants it.
struct Method<F>(TonicMap, F);

impl<F, Fut, Q, A> tonic::server::UnaryService<Q> for Method<F>
where
    F: Fn(TonicMap, Q) -> Fut,
    Fut: Future<Output = Result<tonic::Response<A>, tonic::Status>>,
{
    type Response = A;
    type Future = Fut;

    fn call(&mut self, request: tonic::Request<Q>) -> Fut {
        (self.1)(self.0.clone(), request.into_inner())
    }
}

impl tonic::server::NamedService for TonicMap {
    const NAME: &'static str = "cache_server.Cache";
}

impl<B> tonic::codegen::Service<http::Request<B>> for TonicMap
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        fn grpc<A, Q>() -> tonic::server::Grpc<ProstCodec<A, Q>>
        where
            A: prost::Message + Send + Sync + 'static,
            Q: prost::Message + Default + Send + Sync + 'static,
        {
            tonic::server::Grpc::new(ProstCodec::default()).max_decoding_message_size(64 << 20)
        }
        let map = self.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            Ok(if path == CACHE_GET.path {
                grpc().unary(Method(map, Self::get), request).await
            } else if path == CACHE_PUT.path {
                grpc().unary(Method(map, Self::put), request).await
            } else if path == CACHE_DELETE.path {
                grpc().unary(Method(map, Self::delete), request).await
            } else {
                tonic::Status::unimplemented("there is no such method").into_http()
            })
        })
    }
}

/// A tonic server on threads of its own; it ends with this value.
pub(crate) struct TonicServer {
    address: SocketAddr,
    /// Calls in the bucket `held`.
    pub(crate) held: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TonicServer {
    pub(crate) fn start() -> Self {
        let (bound, address_of) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let map = TonicMap::default();
        let held = map.held.clone();
        let thread = std::thread::spawn(move || {
            tokio_runtime().block_on(async move {
                let incoming =
                    TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).expect("a free port").with_nodelay(Some(true));
                bound.send(incoming.local_addr().unwrap()).unwrap();
                let serving = transport::Server::builder().add_service(map).serve_with_incoming(incoming);
                tokio::select! {
                    served = serving => served.expect("tonic serves"),
                    _ = stopped => {} // Drops the listener; the runtime drops the connections.
                }
            });
        });
        let address = address_of.recv().expect("the server starts");
        Self { address, held, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for TonicServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends well");
        }
    }
}

/// Runs `test` where tonic's client can run.
pub(crate) fn on_tokio(test: impl Future<Output = ()>) {
    tokio_runtime().block_on(test);
}

fn tokio_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
