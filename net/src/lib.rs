//! How a core of Milena talks: sockets, HTTP/2, gRPC, and the mailboxes between cores.

pub mod cores;
pub mod fault;
pub mod grpc;
pub mod http2;
pub mod log;
pub mod mesh;
pub mod metrics;
pub mod ops;
pub mod settings;
pub mod shutdown;
pub mod stream;
pub mod task;
pub mod tcp;
