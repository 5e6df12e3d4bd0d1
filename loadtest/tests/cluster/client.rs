//! A client that is not ours: tonic, asked and answered without async in the tests.

use std::{future::Future, net::SocketAddr, sync::LazyLock, time::Duration};

use bytes::Bytes;
use milena_proto::{
    method::{
        CACHE_BATCH_DELETE, CACHE_BATCH_GET, CACHE_BATCH_PUT, CACHE_DELETE, CACHE_GET, CACHE_PUT, Method,
        ROUTER_BATCH_DELETE, ROUTER_BATCH_GET, ROUTER_BATCH_PUT, ROUTER_DELETE, ROUTER_GET, ROUTER_JOIN, ROUTER_PUT,
        ROUTER_TOPOLOGY,
    },
    router_server::{
        BatchDeleteRequest, BatchDeleteResponse, BatchGetRequest, BatchGetResponse, BatchPutRequest, BatchPutResponse,
        DeleteRequest, DeleteResponse, GetRequest, GetResponse, JoinRequest, JoinResponse, PutRequest, PutResponse,
        PutResult, TopologyRequest, TopologyResponse,
    },
};
use tokio::runtime::Runtime;
use tonic::{
    Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let builder = &mut tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().expect("a runtime for the client")
});

/// How long a call may take unless a test says otherwise.
const DEADLINE: Duration = Duration::from_secs(20);

/// One connection to a router or a node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
    paths: Paths,
}

/// Where the calls are found. Their messages have the same bytes on nodes and routers.
#[derive(Clone, Copy)]
struct Paths {
    get: &'static str,
    put: &'static str,
    delete: &'static str,
    batch_get: &'static str,
    batch_put: &'static str,
    batch_delete: &'static str,
}

const OF_ROUTERS: Paths = Paths {
    get: ROUTER_GET.path,
    put: ROUTER_PUT.path,
    delete: ROUTER_DELETE.path,
    batch_get: ROUTER_BATCH_GET.path,
    batch_put: ROUTER_BATCH_PUT.path,
    batch_delete: ROUTER_BATCH_DELETE.path,
};

const OF_NODES: Paths = Paths {
    get: CACHE_GET.path,
    put: CACHE_PUT.path,
    delete: CACHE_DELETE.path,
    batch_get: CACHE_BATCH_GET.path,
    batch_put: CACHE_BATCH_PUT.path,
    batch_delete: CACHE_BATCH_DELETE.path,
};

impl Client {
    /// A client of the router at `address`.
    pub(crate) fn router(address: SocketAddr) -> Self {
        Self { channel: connect(address), paths: OF_ROUTERS }
    }

    /// A client of the node at `address`.
    pub(crate) fn node(address: SocketAddr) -> Self {
        Self { channel: connect(address), paths: OF_NODES }
    }

    /// The whole answer to a Get.
    ///
    /// # Errors
    /// The status of the call.
    pub(crate) fn answer(&self, key: &str, deadline: Duration) -> Result<GetResponse, Status> {
        let request = GetRequest { key: Bytes::copy_from_slice(key.as_bytes()), bucket: "default".to_owned() };
        self.call(self.paths.get, request, deadline)
    }

    /// The value, or `None` for a miss.
    ///
    /// # Errors
    /// The status of the call.
    pub(crate) fn get(&self, key: &str) -> Result<Option<Bytes>, Status> {
        self.answer(key, DEADLINE).map(|answer| answer.successful.then_some(answer.value))
    }

    /// The same Get so many times, all at once.
    pub(crate) fn get_many(&self, key: &str, count: usize) -> Vec<Result<Option<Bytes>, Status>> {
        let calls = (0..count).map(|_| {
            let request = GetRequest { key: Bytes::copy_from_slice(key.as_bytes()), bucket: "default".to_owned() };
            RUNTIME.spawn(call::<_, GetResponse>(self.channel.clone(), self.paths.get, request, DEADLINE))
        });
        let calls: Vec<_> = calls.collect();
        let answers = calls.into_iter().map(|call| block_on(call).expect("it does not panic"));
        answers.map(|answer| answer.map(|answer| answer.successful.then_some(answer.value))).collect()
    }

    /// Writes a value.
    ///
    /// # Errors
    /// The status of the call.
    pub(crate) fn put(&self, key: &str, value: &str) -> Result<(), Status> {
        self.write(key, value, PutRequest::default()).map(drop)
    }

    /// Writes a value as `how` says; its version.
    ///
    /// # Errors
    /// The status of the call.
    pub(crate) fn write(&self, key: &str, value: &str, how: PutRequest) -> Result<String, Status> {
        let request = PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            bucket: "default".to_owned(),
            value: Bytes::copy_from_slice(value.as_bytes()),
            ..how
        };
        let answer: PutResponse = self.call(self.paths.put, request, DEADLINE)?;
        assert!(answer.successful, "a Put that is not done has a status");
        Ok(answer.version)
    }

    /// Removes a value.
    ///
    /// # Errors
    /// The status of the call.
    pub(crate) fn delete(&self, key: &str) -> Result<(), Status> {
        let request = DeleteRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            bucket: "default".to_owned(),
            ..DeleteRequest::default()
        };
        let _: DeleteResponse = self.call(self.paths.delete, request, DEADLINE)?;
        Ok(())
    }

    /// The values of all these keys, or `None` for a miss.
    ///
    /// # Errors
    /// The status of the call.
    pub(crate) fn batch_get(&self, keys: &[String]) -> Result<Vec<Option<Bytes>>, Status> {
        let request = BatchGetRequest { bucket: "default".to_owned(), keys: named(keys) };
        let answer: BatchGetResponse = self.call(self.paths.batch_get, request, DEADLINE)?;
        Ok(answer.results.into_iter().map(|found| found.successful.then_some(found.value)).collect())
    }

    /// Writes one value under all these keys; what became of each.
    ///
    /// # Errors
    /// The status of the call.
    pub(crate) fn batch_put(&self, keys: &[String], value: &str) -> Result<Vec<PutResult>, Status> {
        let value = Bytes::copy_from_slice(value.as_bytes());
        let put = |key| PutRequest { key, bucket: "default".to_owned(), value: value.clone(), ..PutRequest::default() };
        let request = BatchPutRequest { entries: named(keys).into_iter().map(put).collect() };
        let answer: BatchPutResponse = self.call(self.paths.batch_put, request, DEADLINE)?;
        Ok(answer.results)
    }

    /// Removes what is under all these keys; what became of each.
    ///
    /// # Errors
    /// The status of the call.
    pub(crate) fn batch_delete(&self, keys: &[String]) -> Result<Vec<PutResult>, Status> {
        let request = BatchDeleteRequest { bucket: "default".to_owned(), keys: named(keys) };
        let answer: BatchDeleteResponse = self.call(self.paths.batch_delete, request, DEADLINE)?;
        Ok(answer.results)
    }

    /// The router's table.
    ///
    /// # Errors
    /// The status of the call.
    pub(crate) fn topology(&self) -> Result<TopologyResponse, Status> {
        self.unary(ROUTER_TOPOLOGY, TopologyRequest {})
    }

    /// Joins as a node would.
    ///
    /// # Errors
    /// The status of the call.
    pub(crate) fn join(&self, request: JoinRequest) -> Result<JoinResponse, Status> {
        self.unary(ROUTER_JOIN, request)
    }

    fn unary<Q, A>(&self, method: Method<Q, A>, request: Q) -> Result<A, Status>
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + Default + 'static,
    {
        self.call(method.path, request, DEADLINE)
    }

    fn call<Q, A>(&self, path: &'static str, message: Q, deadline: Duration) -> Result<A, Status>
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + Default + 'static,
    {
        block_on(call(self.channel.clone(), path, message, deadline))
    }
}

fn named(keys: &[String]) -> Vec<Bytes> {
    keys.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect()
}

/// One unary call.
async fn call<Q, A>(channel: Channel, path: &'static str, message: Q, deadline: Duration) -> Result<A, Status>
where
    Q: prost::Message + Default + 'static,
    A: prost::Message + Default + 'static,
{
    let mut grpc = Grpc::new(channel).max_decoding_message_size(usize::MAX);
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let answer = grpc.unary(request, PathAndQuery::from_static(path), ProstCodec::<Q, A>::default()).await?;
    Ok(answer.into_inner())
}

/// Runs a future of tonic's to its end.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.block_on(future)
}

fn connect(address: SocketAddr) -> Channel {
    let _inside = RUNTIME.enter();
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect_timeout(Duration::from_secs(2)).connect_lazy()
}
