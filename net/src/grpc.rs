//! The gRPC framing layer: what stands between HTTP/2 streams and messages.
//!
//! Specification: grpc/grpc, doc/PROTOCOL-HTTP2.md and its neighbours.

pub mod client;
pub mod frame;
pub mod health;
pub mod metadata;
pub mod pieces;
pub mod reflection;
pub mod server;
pub mod status;
pub mod timeout;
pub mod watch;
