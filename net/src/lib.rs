//! How a core of Milena talks: sockets, HTTP/2, gRPC, and the mailboxes between cores.

pub mod grpc;
pub mod log;
