//! What a router counts: one set for each core, plain numbers, added up when somebody asks for the page.

use std::{collections::BTreeMap, sync::Arc};

use milena_net::{
    fault,
    grpc::status::Code,
    metrics::{Gathered, Page},
};

use crate::{
    members::{Member, State},
    rate_limit::By,
    server::Report,
};

/// The calls that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A Get.
    Get,
    /// A Put.
    Put,
    /// A Delete.
    Delete,
    /// A BatchGet.
    BatchGet,
    /// A BatchPut.
    BatchPut,
    /// A BatchDelete.
    BatchDelete,
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
    pub const ALL: [Self; 10] = [
        Self::Get,
        Self::Put,
        Self::Delete,
        Self::BatchGet,
        Self::BatchPut,
        Self::BatchDelete,
        Self::Join,
        Self::Leave,
        Self::Topology,
        Self::WatchTopology,
    ];

    /// As on the label `op`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Delete => "delete",
            Self::BatchGet => "batch_get",
            Self::BatchPut => "batch_put",
            Self::BatchDelete => "batch_delete",
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
    /// Mistakes of ours that the core has noticed.
    pub faults: u64,
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

    /// Adds what another core has counted.
    pub fn merge(&mut self, other: &Self) {
        for (codes, more) in self.requests.iter_mut().zip(&other.requests) {
            for (count, more) in codes.iter_mut().zip(more) {
                *count += more;
            }
        }
        for (count, more) in self.limited.iter_mut().zip(&other.limited) {
            *count += more;
        }
        self.retries += other.retries;
        self.open_breakers += other.open_breakers;
        self.inflight += other.inflight;
        self.faults += other.faults;
        self.nodes.extend(other.nodes.iter().cloned());
    }

    /// Calls that ended, whatever they were and however they did.
    #[must_use]
    pub fn request_count(&self) -> u64 {
        self.requests.iter().flatten().sum()
    }
}

/// The page for Prometheus.
#[must_use]
pub fn page(gathered: &Gathered<Report>) -> String {
    let mut sum = Stats::default();
    for (_, report) in &gathered.reports {
        sum.merge(&report.stats);
    }
    let mut page = Page::new();
    for op in Op::ALL {
        for code in Code::all() {
            let count = sum.requests(op, code);
            // A series begins with its first call, but for those that everybody looks for.
            if count > 0 || code == Code::Ok {
                let labels = [("op", op.name()), ("code", code.name())];
                page.counter("milena_router_requests_total", "Calls that have ended", &labels, count);
            }
        }
    }
    let mut nodes = BTreeMap::<&str, u64>::new();
    for (member, count) in &sum.nodes {
        *nodes.entry(&member.address).or_default() += count;
    }
    for (node, count) in nodes {
        let help = "Calls to a node since it was last seen to join";
        page.counter("milena_router_node_requests_total", help, &[("node", node)], count);
    }
    for by in By::ALL {
        let help = "Requests turned away by a rate limit";
        page.counter("milena_router_rate_limited_total", help, &[("by", by.name())], sum.limited[by as usize]);
    }
    page.counter("milena_router_retries_total", "Requests that were sent to a node again", &[], sum.retries);
    page.gauge("milena_router_inflight", "Calls to nodes in the air", &[], sum.inflight as f64);
    page.counter(fault::METRIC, fault::METRIC_HELP, &[], sum.faults);
    let help = "Breakers that are open: pairs of a core and a node";
    page.gauge("milena_router_breakers_open", help, &[], sum.open_breakers as f64);
    let help = "Cores that did not answer in time for this page";
    page.gauge("milena_router_cores_missing", help, &[], gathered.missing_count as f64);
    // Cores learn of a change one after the other; the page shows what the last one goes by.
    if let Some(view) = gathered.reports.iter().map(|(_, report)| &report.view).min_by_key(|view| view.epoch()) {
        page.gauge("milena_router_ring_epoch", "The epoch that every core goes by", &[], view.epoch() as f64);
        for (state, name) in [(State::Live, "live"), (State::Dead, "dead"), (State::Pinned, "pinned")] {
            let labels = [("state", name)];
            page.gauge("milena_router_nodes", "Members of the cluster", &labels, view.count(state) as f64);
        }
    }
    page.process();
    page.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::members::Members;

    #[test]
    fn the_page_adds_up_what_the_cores_have_counted() {
        let mut members = Members::new();
        let member = Member {
            node_id: "n".into(),
            address: "http://a:1".into(),
            shard_addresses: Vec::new(),
            weight: u32::MAX,
            incarnation: 1,
            zone: String::new(),
        };
        members.join(member.clone(), std::time::Instant::now()).unwrap();
        let report = |core: usize| {
            let mut stats =
                Stats { retries: 1, faults: 3, nodes: vec![(Arc::new(member.clone()), 5)], ..Stats::default() };
            stats.limited[By::Client as usize] = 2;
            stats.count(Op::Get, Code::Ok);
            stats.count(Op::Put, Code::Unavailable);
            (core, Report { stats, view: Arc::new(members.view()), is_serving: true })
        };
        let text = page(&Gathered { reports: vec![report(0), report(1)], missing_count: 1 });
        for line in [
            "milena_router_requests_total{op=\"get\",code=\"OK\"} 2",
            "milena_router_requests_total{op=\"put\",code=\"UNAVAILABLE\"} 2",
            "milena_router_requests_total{op=\"join\",code=\"OK\"} 0",
            "milena_router_node_requests_total{node=\"http://a:1\"} 10",
            "milena_router_rate_limited_total{by=\"client\"} 4",
            "milena_router_retries_total 2",
            "milena_internal_errors_total 6",
            "milena_router_ring_epoch 1",
            "milena_router_nodes{state=\"live\"} 1",
            "milena_router_nodes{state=\"dead\"} 0",
            "milena_router_cores_missing 1",
        ] {
            assert!(text.lines().any(|found| found.strip_suffix(".0").unwrap_or(found) == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn every_op_stands_at_its_number() {
        for (number, op) in Op::ALL.into_iter().enumerate() {
            assert_eq!(op as usize, number);
        }
    }
}
