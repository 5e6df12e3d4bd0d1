//! What a router counts: one set for each core, plain numbers, added up when somebody asks for the page.

use std::sync::Arc;

use milena_net::grpc::status::Code;

use crate::members::Member;

/// The calls that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A Get.
    Get,
    /// A Put.
    Put,
    /// A Delete.
    Delete,
    /// A Join, renewals included.
    Join,
    /// A Leave.
    Leave,
    /// A Topology.
    Topology,
    /// The beginning of a WatchTopology.
    WatchTopology,
}

impl Op {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] =
        [Self::Get, Self::Put, Self::Delete, Self::Join, Self::Leave, Self::Topology, Self::WatchTopology];

    /// As on the label `op`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Delete => "delete",
            Self::Join => "join",
            Self::Leave => "leave",
            Self::Topology => "topology",
            Self::WatchTopology => "watch_topology",
        }
    }
}

/// gRPC's codes are numbered from 0 to 16.
const CODES: usize = Code::Unauthenticated as usize + 1;

/// One core's counters.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Calls by op and code.
    requests: [[u64; CODES]; Op::ALL.len()],
    /// Requests turned away, by limit, in the order of [`crate::rate_limit::By::ALL`].
    pub limited: [u64; 3],
    /// Requests sent to a node a second time.
    pub retries: u64,
    /// Calls to each node that is alive, since it was first seen.
    pub nodes: Vec<(Arc<Member>, u64)>,
    /// Nodes whose breaker is open.
    pub open_breakers: usize,
    /// Calls to nodes in the air.
    pub inflight: usize,
}

impl Stats {
    /// Counts a call that ended with `code`.
    pub fn count(&mut self, op: Op, code: Code) {
        self.requests[op as usize][code as usize] += 1;
    }

    /// The calls of `op` that ended with `code`.
    #[must_use]
    pub fn requests(&self, op: Op, code: Code) -> u64 {
        self.requests[op as usize][code as usize]
    }
}
