//! Whole clusters of real processes: what users see when machines, stores and colleagues misbehave.
//!
//! ```text
//!   programs   starts, kills, stops and continues milena-cache, milena-router and milena; nothing stays behind
//!   client     asks them over gRPC through tonic, which shares no code with ours
//!   ────────
//!   members    who owns a key when nodes and routers come and go
//!   stopping   what a stop leaves behind, and what it must not
//!   settings   what is refused at start, and how it is said
//!   store      S3 that is down, slow, refuses, or lies
//!   disk       the log on disk after a kill, and on disks that are full, too small or read-only
//!   back       writes that are acknowledged before the store has them
//!   batches    split by owner, while nodes are killed, join and leave
//!   answers    what is read under load meanwhile
//! ```
//! No test sleeps: it waits for what it is about, up to a bound. Bounds are generous where the contract names none.

mod answers;
mod back;
mod batches;
mod client;
mod disk;
#[path = "../../../storage/tests/support/fault_proxy.rs"]
mod fault_proxy;
mod members;
#[path = "../../../storage/tests/support/mounted.rs"]
mod mounted;
mod programs;
#[path = "../../../storage/tests/support/seaweed.rs"]
mod seaweed;
mod settings;
mod stopping;
mod store;
