//! How a core of Milena talks: sockets, HTTP/2, gRPC, and the mailboxes between cores.

pub mod grpc;
<<<<<<< HEAD
pub mod http2;
pub mod mesh;
=======
pub mod log;
>>>>>>> shell
