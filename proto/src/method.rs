//! The calls of the contract: their paths and the types of what goes in and comes out.

use std::{fmt, marker::PhantomData};

use crate::{cache_server as cache, grpc_health_v1 as health, router_server as router};

/// One call: where it is found and what it exchanges.
pub struct Method<Request, Response> {
    /// As in HTTP/2's `:path`, for example `/cache_server.Cache/Get`.
    pub path: &'static str,
    messages: PhantomData<fn(Request) -> Response>,
}

impl<Request, Response> Method<Request, Response> {
    const fn new(path: &'static str) -> Self {
        Self { path, messages: PhantomData }
    }
}

impl<Request, Response> Clone for Method<Request, Response> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Request, Response> Copy for Method<Request, Response> {}

impl<Request, Response> fmt::Debug for Method<Request, Response> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path)
    }
}

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident: $path:literal, $request:ty => $response:ty;)*) => {
        $($(#[$doc])* pub const $name: Method<$request, $response> = Method::new($path);)*
    };
}

methods! {
    /// A node's Get.
    CACHE_GET: "/cache_server.Cache/Get", cache::GetRequest => cache::GetResponse;
    /// A node's Put.
    CACHE_PUT: "/cache_server.Cache/Put", cache::PutRequest => cache::PutResponse;
    /// A node's Delete.
    CACHE_DELETE: "/cache_server.Cache/Delete", cache::DeleteRequest => cache::DeleteResponse;
    /// A node's BatchGet.
    CACHE_BATCH_GET: "/cache_server.Cache/BatchGet", cache::BatchGetRequest => cache::BatchGetResponse;
    /// A node's BatchPut.
    CACHE_BATCH_PUT: "/cache_server.Cache/BatchPut", cache::BatchPutRequest => cache::BatchPutResponse;
    /// A node's BatchDelete.
    CACHE_BATCH_DELETE: "/cache_server.Cache/BatchDelete", cache::BatchDeleteRequest => cache::BatchDeleteResponse;
    /// A router's Get.
    ROUTER_GET: "/router_server.Router/Get", router::GetRequest => router::GetResponse;
    /// A router's Put.
    ROUTER_PUT: "/router_server.Router/Put", router::PutRequest => router::PutResponse;
    /// A router's Delete.
    ROUTER_DELETE: "/router_server.Router/Delete", router::DeleteRequest => router::DeleteResponse;
    /// A router's BatchGet.
    ROUTER_BATCH_GET: "/router_server.Router/BatchGet", router::BatchGetRequest => router::BatchGetResponse;
    /// A router's BatchPut.
    ROUTER_BATCH_PUT: "/router_server.Router/BatchPut", router::BatchPutRequest => router::BatchPutResponse;
    /// A router's BatchDelete.
    ROUTER_BATCH_DELETE: "/router_server.Router/BatchDelete", router::BatchDeleteRequest => router::BatchDeleteResponse;
    /// Joins the cluster, or renews the lease.
    ROUTER_JOIN: "/router_server.Router/Join", router::JoinRequest => router::JoinResponse;
    /// Leaves the cluster.
    ROUTER_LEAVE: "/router_server.Router/Leave", router::LeaveRequest => router::LeaveResponse;
    /// Who owns which keys, now.
    ROUTER_TOPOLOGY: "/router_server.Router/Topology", router::TopologyRequest => router::TopologyResponse;
    /// The same, now and after every change: a stream.
    ROUTER_WATCH_TOPOLOGY: "/router_server.Router/WatchTopology", router::TopologyRequest => router::TopologyResponse;
    /// Whether a server serves.
    HEALTH_CHECK: "/grpc.health.v1.Health/Check", health::HealthCheckRequest => health::HealthCheckResponse;
    /// The same, now and after every change: a stream.
    HEALTH_WATCH: "/grpc.health.v1.Health/Watch", health::HealthCheckRequest => health::HealthCheckResponse;
}

/// Server reflection, a stream of questions and answers; the messages of both versions have the same bytes.
pub const REFLECTION_PATHS: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
