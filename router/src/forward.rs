//! Gets, Puts and Deletes on their way to the node that owns their key, and back.
//!
//! ```text
//!   message ─ bucket, key ─▶ limits ─▶ view: slot, core ─▶ peers: may it be asked? ─▶ channel of that core's address
//!      │                                                                                  │
//!      └────────────────────────── the same bytes, another path ──────────────────────────┤
//!                                                                                         ▼
//!   answer ◀── its bytes, or its status and trailers ◀──── once more, if the rules allow ── node
//! ```
//! A large answer is passed on as it comes, no faster than its caller reads: none of it is put together here.
//!
//! Only bucket and key are read; what else a message holds is between client and node. When a retry is allowed stands in
//! `peers.rs`.

use std::{
    borrow::Cow,
    rc::Rc,
    time::{Duration, Instant},
};

use milena_net::grpc::{
    client::{Answer, CallError, Channel, Done},
    metadata,
    pieces::Pieces,
    server::{Message, Reply, Request},
    status::{Code, RETRY_PUSHBACK, Status},
};
use milena_proto::{
    fields,
    key::KeyRef,
    method::{CACHE_DELETE, CACHE_GET, CACHE_PUT},
};
use smallvec::smallvec;

use crate::{
    catch_up,
    peers::{Access, Barred, Call, Ending},
    rate_limit::Limited,
    service::Desk,
    stats::Op,
};

/// How long a call may take whose caller set no deadline.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(5);

/// Less time than this is not worth a call.
const DEADLINE_MIN: Duration = Duration::from_millis(1);

/// What a caller is told to wait, in milliseconds, when a node has too many calls in the air.
const PUSHBACK_FULL_MS: u32 = 100;

/// A call that is passed on.
#[derive(Clone, Copy, Debug)]
pub struct Forwarded {
    /// For metrics.
    pub op: Op,
    pub(crate) path: &'static str,
    pub(crate) access: Access,
}

/// A Get.
pub const GET: Forwarded = Forwarded { op: Op::Get, path: CACHE_GET.path, access: Access::Read };
/// A Put.
pub const PUT: Forwarded = Forwarded { op: Op::Put, path: CACHE_PUT.path, access: Access::Write };
/// A Delete.
pub const DELETE: Forwarded = Forwarded { op: Op::Delete, path: CACHE_DELETE.path, access: Access::Write };

/// Passes `request` on to the owner of its key and brings back what that one says.
///
/// # Errors
/// The node's own status with its trailers, or one of the router's: see the table of statuses in README.md.
pub(crate) async fn forward(desk: Rc<Desk>, call: Forwarded, request: Request) -> Result<Reply, Status> {
    let now = Instant::now();
    let Request { message, deadline, peer, .. } = request;
    let deadline = deadline.unwrap_or(now + DEADLINE_DEFAULT);
    let key = KeyRef::in_message(&message).map_err(|error| invalid(error.to_string()))?;
    check_value(&message, desk.value_bytes_max)?;
    desk.rates
        .borrow_mut()
        .admit(peer, || smallvec![(key.bucket(), 1)], now)
        .map_err(|limited| turn_away(&desk, limited))?;

    let mut air = InTheAir::begin(&desk);
    let mut now = now;
    loop {
        let attempt = match reach(&desk, key, deadline, now) {
            Ok(reached) => reached.ask(call.path, message.clone(), deadline).await,
            Err(failure) => Err(failure),
        };
        match attempt {
            Ok(answer) => return Ok(pass_on(answer)),
            Err(failure) if may_try_again(&desk, call, &failure, &mut air, deadline).await => now = Instant::now(),
            Err(failure) => return Err(failure.into_status(call.access)),
        }
    }
}

/// Whether a call that failed may be made once more; returns when the time has come to do so.
pub(crate) async fn may_try_again(
    desk: &Desk,
    call: Forwarded,
    failure: &Failure,
    air: &mut InTheAir<'_>,
    deadline: Instant,
) -> bool {
    let has_time = deadline.saturating_duration_since(Instant::now()) >= DEADLINE_MIN;
    let may_again = has_time
        && match failure {
            Failure::NotOwner { status, asked_by } => {
                catch_up::with(desk, status, deadline).await;
                air.begin_redirect(desk.view.borrow().epoch() > *asked_by)
            }
            _ => failure.may_be_repeated(call.access) && air.begin_retry(),
        };
    desk.stats.borrow_mut().retries += u64::from(may_again);
    may_again
}

pub(crate) fn pass_on(answer: Answer) -> Reply {
    match answer {
        Answer::Whole(message) => Reply::Message(Message::from(message)),
        Answer::Parts(body) => Reply::Parts(body),
    }
}

/// The way to the core that owns a key, and the right to make one call there, given back with it.
pub(crate) struct Reached<'a> {
    in_the_air: Asked<'a>,
    /// Held until the answer is there: it ends with its last holder.
    channel: Channel,
    /// By which the owner was found.
    epoch: u64,
}

/// The owner of `key` by the view of this moment, if it may be asked.
pub(crate) fn reach<'a>(
    desk: &'a Desk,
    key: KeyRef<'_>,
    deadline: Instant,
    now: Instant,
) -> Result<Reached<'a>, Failure> {
    if deadline.saturating_duration_since(now) < DEADLINE_MIN {
        return Err(Failure::Ours(Status::new(Code::DeadlineExceeded, "the deadline passed at the router")));
    }
    // Nothing of the view is kept, not even a count of who holds it: other cores hold it too.
    let view = desk.view.borrow();
    let Some(owner) = view.owner(key) else {
        return Err(Failure::Ours(Status::new(Code::Unavailable, "no node is alive that could own the key")));
    };
    let begun = desk.peers.borrow_mut().begin(owner.slot);
    let begun = begun.map_err(|barred| match barred {
        Barred::Open => Failure::Ours(Status::new(
            Code::Unavailable,
            format!("node {} does not answer; it is tried again in the background", owner.member),
        )),
        Barred::Full => Failure::Ours(Status::resource_exhausted(
            format!("node {} has too many calls in the air", owner.member),
            PUSHBACK_FULL_MS,
        )),
    })?;
    // From here on the call is given back, also when this future is dropped.
    let in_the_air = Asked { desk, call: Some(begun) };
    let address = owner.member.address_of(owner.core);
    let channel =
        desk.channels.borrow_mut().to(address).map_err(|error| {
            Failure::Ours(Status::new(Code::Unavailable, format!("node {}: {error}", owner.member)))
        })?;
    Ok(Reached { in_the_air, channel, epoch: view.epoch() })
}

impl Reached<'_> {
    /// The call. A large answer is there as soon as it has begun.
    pub(crate) async fn ask(
        self,
        path: &'static str,
        message: impl Into<Pieces>,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let outcome = self.channel.call_in_parts(path, message, deadline).await;
        self.in_the_air.end(match &outcome {
            Ok(_) => Ending::Answered,
            Err(error) => ending(error),
        });
        outcome.map_err(|error| match error.done {
            Done::Answered if error.status.owner_epoch().is_some() => {
                Failure::NotOwner { status: error.status, asked_by: self.epoch }
            }
            Done::Answered => Failure::Theirs(error.status),
            Done::No | Done::Unknown => Failure::Broken(error),
        })
    }
}

/// What a failed call says about the node.
fn ending(error: &CallError) -> Ending {
    match (error.done, error.status.code) {
        (Done::Answered, _) => Ending::Answered,
        (_, Code::Unavailable) => Ending::Broken,
        // Our own queue was full, or the time was up: it may be slow, or the caller impatient.
        (_, Code::ResourceExhausted | Code::DeadlineExceeded) => Ending::Abandoned,
        // It reset the stream, or sent nonsense; somebody is there.
        _ => Ending::Answered,
    }
}

/// Why an attempt brought no answer.
pub(crate) enum Failure {
    /// The router's own doing: the node was not asked.
    Ours(Status),
    /// The node's answer.
    Theirs(Status),
    /// The node's answer: it does not own the key, and has done nothing.
    NotOwner {
        /// Names the node's table.
        status: Status,
        /// The epoch of ours, by which it was asked.
        asked_by: u64,
    },
    /// No answer.
    Broken(CallError),
}

impl Failure {
    fn may_be_repeated(&self, access: Access) -> bool {
        match self {
            Self::Ours(_) | Self::Theirs(_) | Self::NotOwner { .. } => false,
            Self::Broken(error) => error.status.code == Code::Unavailable && access.may_repeat(error.done == Done::No),
        }
    }

    pub(crate) fn into_status(self, access: Access) -> Status {
        match self {
            Self::Ours(status) => status,
            // Whoever asks a router can do nothing about whom it asked, but ask again.
            Self::NotOwner { .. } => {
                Status::new(Code::Unavailable, "the nodes do not agree yet who owns the key; nothing was done")
            }
            Self::Theirs(mut status) => {
                status.trailers.retain(|(name, _)| metadata::is_custom(name) || *name == RETRY_PUSHBACK);
                status
            }
            Self::Broken(CallError { status, done: Done::Unknown }) if access == Access::Write => {
                Status { message: Cow::Owned(format!("outcome unknown: {}", status.message)), ..status }
            }
            Self::Broken(CallError { status, .. }) => status,
        }
    }
}

/// A call to a node, given back however it ends.
struct Asked<'a> {
    desk: &'a Desk,
    call: Option<Call>,
}

impl Asked<'_> {
    fn end(mut self, ending: Ending) {
        self.give_back(ending);
    }

    fn give_back(&mut self, ending: Ending) {
        if let Some(call) = self.call.take() {
            self.desk.end_call(call, ending);
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.give_back(Ending::Abandoned);
    }
}

/// A request under way, with or without its retry.
pub(crate) struct InTheAir<'a> {
    desk: &'a Desk,
    is_retried: bool,
    is_redirected: bool,
}

impl<'a> InTheAir<'a> {
    pub(crate) fn begin(desk: &'a Desk) -> Self {
        desk.peers.borrow_mut().begin_request();
        Self { desk, is_retried: false, is_redirected: false }
    }

    /// Once at most.
    fn begin_retry(&mut self) -> bool {
        let may_retry = !self.is_retried && self.desk.peers.borrow_mut().begin_retry();
        self.is_retried |= may_retry;
        may_retry
    }

    /// As often as there is a newer table to ask by; and once by the same one, because the node may have heard of its table
    /// from a core of this router that did not know ours yet.
    ///
    /// The budget of retries does not count them: a change of the table has nearly everything in the air refused at once, and
    /// a refusal has cost its node nothing.
    fn begin_redirect(&mut self, is_newer: bool) -> bool {
        let may_redirect = is_newer || !self.is_redirected;
        self.is_redirected |= !is_newer;
        may_redirect
    }
}

impl Drop for InTheAir<'_> {
    fn drop(&mut self) {
        self.desk.peers.borrow_mut().end_request(self.is_retried);
    }
}

pub(crate) fn invalid(text: String) -> Status {
    Status::new(Code::InvalidArgument, text)
}

pub(crate) fn turn_away(desk: &Desk, limited: Limited) -> Status {
    desk.stats.borrow_mut().limited[limited.by as usize] += 1;
    let pushback_ms = u32::try_from(limited.wait.as_millis() + 1).unwrap_or(u32::MAX);
    Status::resource_exhausted(format!("the rate limit of this {} is reached", limited.by.name()), pushback_ms)
}

/// The field of a Put that holds its value; in a Get and a Delete it is nothing of this size.
const VALUE_FIELD: u32 = 3;

/// Refuses a value that is too large before it travels any further. Costs nothing for a message that cannot hold one.
pub(crate) fn check_value(message: &[u8], value_bytes_max: usize) -> Result<(), Status> {
    if message.len() <= value_bytes_max {
        return Ok(());
    }
    match value_bytes(message) {
        Some(found) if found > value_bytes_max => {
            Err(invalid(format!("value has {found} bytes; at most {value_bytes_max} are allowed")))
        }
        _ => Ok(()),
    }
}

/// The length of the last field 3 of a message.
fn value_bytes(message: &[u8]) -> Option<usize> {
    let values = fields::of(message).map_while(Result::ok).filter(|field| field.number == VALUE_FIELD);
    values.filter_map(|field| field.bytes).last().map(<[u8]>::len)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderValue;
    use milena_net::grpc::status::OWNER_EPOCH;
    use milena_proto::router_server::PutRequest;
    use prost::Message as _;

    use super::*;

    fn broken(code: Code, done: Done) -> Failure {
        Failure::Broken(CallError { status: Status::new(code, "http://a:1: lost"), done })
    }

    #[test]
    fn a_value_is_measured_and_the_limit_is_its_own_not_the_messages() {
        let put = |value_bytes: usize| {
            PutRequest {
                key: Bytes::from_static(b"k"),
                bucket: "b".into(),
                value: vec![0; value_bytes].into(),
                ttl_ms: 9,
                if_version: "v".repeat(100),
                ..Default::default()
            }
            .encode_to_vec()
        };
        assert!(check_value(&put(1000), 1000).is_ok());
        let status = check_value(&put(1001), 1000).unwrap_err();
        assert_eq!(
            (status.code, &*status.message),
            (Code::InvalidArgument, "value has 1001 bytes; at most 1000 are allowed")
        );
    }

    #[test]
    fn a_write_whose_outcome_is_unknown_is_not_repeated_and_says_so() {
        let failure = broken(Code::Unavailable, Done::Unknown);
        assert!(!failure.may_be_repeated(Access::Write));
        assert!(failure.may_be_repeated(Access::Read));
        let status = failure.into_status(Access::Write);
        assert_eq!((status.code, &*status.message), (Code::Unavailable, "outcome unknown: http://a:1: lost"));
    }

    #[test]
    fn a_write_that_certainly_was_not_done_is_repeated() {
        assert!(broken(Code::Unavailable, Done::No).may_be_repeated(Access::Write));
    }

    #[test]
    fn what_a_node_said_and_what_took_too_long_is_not_repeated() {
        let says_no = Status::new(Code::FailedPrecondition, "no such bucket");
        assert_eq!(says_no.owner_epoch(), None);
        assert!(!Failure::Theirs(says_no).may_be_repeated(Access::Read));
        assert!(!broken(Code::DeadlineExceeded, Done::Unknown).may_be_repeated(Access::Read));
        assert!(!broken(Code::ResourceExhausted, Done::No).may_be_repeated(Access::Read));
    }

    #[test]
    fn a_nodes_status_comes_back_with_its_own_trailers_and_without_those_of_its_connection() {
        let mut status = Status::resource_exhausted("busy", 70);
        status = status.with_trailer(OWNER_EPOCH, HeaderValue::from(3));
        status = status.with_trailer(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let status = Failure::Theirs(status).into_status(Access::Read);
        let names: Vec<&str> = status.trailers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["grpc-retry-pushback-ms", "milena-owner-epoch"]);
    }

    #[test]
    fn only_a_broken_connection_counts_against_a_node() {
        let ending = |code, done| ending(&CallError { status: Status::new(code, ""), done });
        assert_eq!(ending(Code::Unavailable, Done::No), Ending::Broken);
        assert_eq!(ending(Code::Unavailable, Done::Unknown), Ending::Broken);
        assert_eq!(ending(Code::Unavailable, Done::Answered), Ending::Answered, "its store is down, it is not");
        assert_eq!(ending(Code::DeadlineExceeded, Done::Unknown), Ending::Abandoned);
        assert_eq!(ending(Code::Internal, Done::Unknown), Ending::Answered);
    }
}
