//! What Milena's clients, routers and nodes say to each other, and where a key lives.
//!
//! The messages are generated from `milena/*.proto` and committed; [`key::Key`] is what a bucket and a key
//! become once they are known to be legal; [`placement`] says which node and which core own it;
//! [`limits`] names every maximum that a client can meet. No I/O and no runtime in here.

pub mod batch;
pub mod fields;
pub mod generated;
pub mod key;
pub mod limits;
pub mod method;
pub mod placement;

pub use generated::{cache_server, grpc_health_v1, grpc_reflection_v1, router_server};
