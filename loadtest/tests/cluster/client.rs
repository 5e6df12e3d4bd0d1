//! A client that is not ours: tonic, asked and answered without async in the tests.

use std::{future::Future, net::SocketAddr, sync::LazyLock, time::Duration};

use bytes::Bytes;
use milena_proto::{
    method::{
        CACHE_DELETE, CACHE_GET, CACHE_PUT, Method, ROUTER_DELETE, ROUTER_GET, ROUTER_JOIN, ROUTER_PUT, ROUTER_TOPOLOGY,
    },
    router_server::{
        DeleteRequest, DeleteResponse, GetRequest, GetResponse, JoinRequest, JoinResponse, PutRequest, PutResponse,
        TopologyRequest, TopologyResponse,
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
    /// The paths of Get, Put and Delete. Their messages have the same bytes on nodes and routers.
    paths: [&'static str; 3],
}

impl Client {
    /// A client of the router at `address`.
    pub(crate) fn router(address: SocketAddr) -> Self {
        Self { channel: connect(address), paths: [ROUTER_GET.path, ROUTER_PUT.path, ROUTER_DELETE.path] }
    }

    /// A client of the node at `address`.
    pub(crate) fn node(address: SocketAddr) -> Self {
        Self { channel: connect(address), paths: [CACHE_GET.path, CACHE_PUT.path, CACHE_DELETE.path] }
    }

    /// The whole answer to a Get.
    ///
    /// # Errors
    /// The status of the call.
    pub(crate) fn answer(&self, key: &str, deadline: Duration) -> Result<GetResponse, Status> {
        let request = GetRequest { key: Bytes::copy_from_slice(key.as_bytes()), bucket: "default".to_owned() };
        self.call(self.paths[0], request, deadline)
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
            RUNTIME.spawn(call::<_, GetResponse>(self.channel.clone(), self.paths[0], request, DEADLINE))
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
        let answer: PutResponse = self.call(self.paths[1], request, DEADLINE)?;
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
        let _: DeleteResponse = self.call(self.paths[2], request, DEADLINE)?;
        Ok(())
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
