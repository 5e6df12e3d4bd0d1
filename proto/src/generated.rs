//! The messages, written by `prost` from the files under `milena/` and `grpc/`.
//!
//! Committed, so that a build needs no protobuf compiler. `tests/generated.rs` makes them again and compares;
//! `MILENA_REGENERATE=1 cargo test -p milena-proto --test generated` writes them.

#![allow(missing_docs, clippy::all, clippy::pedantic)]

/// Messages of a cache node, `cache_server.Cache`.
pub mod cache_server {
    include!("generated/cache_server.rs");
}

/// Messages of a router, `router_server.Router`.
pub mod router_server {
    include!("generated/router_server.rs");
}

/// Messages of `grpc.health.v1.Health`.
pub mod grpc_health_v1 {
    include!("generated/grpc.health.v1.rs");
}

/// Messages of `grpc.reflection.v1.ServerReflection`; those of `v1alpha` have the same bytes.
pub mod grpc_reflection_v1 {
    include!("generated/grpc.reflection.v1.rs");
}

/// Every file of the contract as a serialised `google.protobuf.FileDescriptorSet`, for server reflection.
pub static DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.bin");
