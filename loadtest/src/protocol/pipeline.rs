//! A connection on which answers come in the order of the questions: Redis and memcached.
//!
//! ```text
//!   call ─ encoded ─▶ out ──one write a turn──▶ socket ──▶ in ─ decoded ─▶ the call that waits longest
//!          and its place in the queue of those that wait
//! ```
//! A batch is as many commands as it has entries, sent together. A call that is not answered in time fails, and keeps its
//! place: its answer is taken when it comes, and dropped. When the connection is lost all fail, and the next call, after a
//! rest, makes another one.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::{Buf as _, Bytes, BytesMut};
use futures::io::{AsyncRead, AsyncWrite};
use milena_net::{task, tcp};

use super::{Answer, Entry, Failure, Outcome, Request, Verb, memcached, resp};
use crate::{target::Target, workload::Name};

/// How long making a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// Rest after a connection was lost or could not be made; calls that are made meanwhile fail when it is over.
const REST: Duration = Duration::from_millis(100);

/// How often calls that wait are looked at for their deadline.
const DEADLINE_CHECK: Duration = Duration::from_millis(10);

/// Bytes that one read takes at most.
const READ_BYTES_MAX: usize = 64 << 10;

/// A key that no workload asks for, to see who answers.
const NOBODYS_KEY: &[u8] = b"milena-loadtest";

/// What a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// RESP2.
    Redis,
    /// The classic text protocol.
    Memcached,
}

impl Dialect {
    fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Memcached => "memcached",
        }
    }

    fn encode(self, verb: Verb, entry: &Entry, out: &mut BytesMut) -> Result<(), Failure> {
        match self {
            Self::Redis => {
                resp::encode(verb, entry, out);
                Ok(())
            }
            Self::Memcached => memcached::encode(verb, entry, out),
        }
    }

    /// The next answer, if all of it is there; takes it out of `input`.
    fn decode(self, verb: Verb, input: &mut BytesMut) -> Result<Option<Outcome>, Garbled> {
        match self {
            Self::Redis => resp::decode(verb, input),
            Self::Memcached => memcached::decode(verb, input),
        }
    }
}

/// An answer that makes no sense: what comes after it makes none either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbled;

/// A connection to one address.
#[derive(Debug)]
pub struct Link {
    dialect: Dialect,
    shared: Rc<RefCell<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// What is to be sent.
    out: BytesMut,
    /// Calls whose answers are yet to come, in the order in which they were sent.
    waiting: VecDeque<Rc<RefCell<Slot>>>,
    /// Why there is no connection, and until when nobody tries to make one.
    lost: Option<(String, Instant)>,
    /// The connection's task.
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Slot {
    verb: Verb,
    count: usize,
    outcomes: Answer,
    deadline: Instant,
    end: Option<Result<Answer, Failure>>,
    waker: Option<Waker>,
}

impl Link {
    /// Connects to `target` and asks for a key, to see that somebody answers who speaks this dialect.
    ///
    /// # Errors
    /// Nobody does.
    pub async fn open(target: &Target, dialect: Dialect, deadline: Instant) -> Result<Self, Failure> {
        let link = Self { dialect, shared: Rc::default() };
        let addresses = (target.host.as_str(), target.port).to_socket_addrs();
        let address = addresses.ok().and_then(|mut all| all.next());
        let address = address.ok_or_else(|| unavailable(format!("{} has no address", target.host), true))?;
        task::spawn(keep(address, dialect, Rc::downgrade(&link.shared)));
        let entry = Entry { name: Name::Text(Bytes::from_static(NOBODYS_KEY)), value: Bytes::new(), ttl_ms: 0 };
        link.call(&Request { verb: Verb::Get, entries: [entry].into() }, deadline).await?;
        Ok(link)
    }

    /// Who answers there.
    #[must_use]
    pub fn protocol(&self) -> &'static str {
        self.dialect.name()
    }

    /// One call.
    ///
    /// # Errors
    /// The connection is lost, there was no answer in time, or the server refused it.
    pub async fn call(&self, request: &Request, deadline: Instant) -> Result<Answer, Failure> {
        self.rest().await?;
        let slot = Rc::new(RefCell::new(Slot {
            verb: request.verb,
            count: request.entries.len(),
            outcomes: Answer::new(),
            deadline,
            end: None,
            waker: None,
        }));
        {
            let mut shared = self.shared.borrow_mut();
            let Shared { out, waiting, waker, .. } = &mut *shared;
            let before_bytes = out.len();
            for entry in &request.entries {
                let encoded = self.dialect.encode(request.verb, entry, out);
                // All of it or nothing: an answer without a call would be taken for the next one's.
                encoded.inspect_err(|_| out.truncate(before_bytes))?;
            }
            waiting.push_back(Rc::clone(&slot));
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
        poll_fn(|cx| slot.borrow_mut().poll_end(cx)).await
    }

    /// Fails after a while if there is no connection.
    async fn rest(&self) -> Result<(), Failure> {
        let lost = self.shared.borrow().lost.clone();
        let Some((why, until)) = lost.filter(|(_, until)| *until > Instant::now()) else { return Ok(()) };
        task::sleep_until(until).await;
        Err(unavailable(why, true))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(waker) = self.shared.borrow_mut().waker.take() {
            waker.wake();
        }
    }
}

fn unavailable(text: String, is_undone: bool) -> Failure {
    Failure { status: "UNAVAILABLE".into(), text, is_undone }
}

impl Slot {
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, Failure>> {
        if let Some(end) = self.end.take() {
            return Poll::Ready(end);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn end(&mut self, end: Result<Answer, Failure>) {
        // Once: what comes after the deadline is nobody's.
        if let Some(waker) = self.waker.take() {
            self.end = Some(end);
            waker.wake();
        }
    }
}

impl Shared {
    /// Takes in what has come; `Err` if it makes no sense.
    fn take(&mut self, dialect: Dialect, input: &mut BytesMut) -> Result<(), Garbled> {
        while let Some(slot) = self.waiting.front() {
            let mut slot = slot.borrow_mut();
            let Some(outcome) = dialect.decode(slot.verb, input)? else { return Ok(()) };
            slot.outcomes.push(outcome);
            if slot.outcomes.len() < slot.count {
                continue;
            }
            let outcomes = std::mem::take(&mut slot.outcomes);
            slot.end(Ok(outcomes));
            drop(slot);
            self.waiting.pop_front();
        }
        if input.is_empty() { Ok(()) } else { Err(Garbled) }
    }

    /// Fails calls whose time is up; they keep their places.
    fn expire(&self, now: Instant) {
        for slot in &self.waiting {
            let mut slot = slot.borrow_mut();
            if slot.deadline <= now {
                let text = "no answer before the deadline".to_owned();
                slot.end(Err(Failure { status: "DEADLINE_EXCEEDED".into(), text, is_undone: false }));
            }
        }
    }

    fn lose(&mut self, why: String) {
        self.out.clear();
        for slot in self.waiting.drain(..) {
            slot.borrow_mut().end(Err(unavailable(why.clone(), false)));
        }
        self.lost = Some((why, Instant::now() + REST));
    }
}

/// Has a connection as long as the link lives.
async fn keep(address: SocketAddr, dialect: Dialect, shared: Weak<RefCell<Shared>>) {
    loop {
        let why = match tcp::connect(address, CONNECT_MAX).await {
            Ok(stream) => {
                if let Some(shared) = shared.upgrade() {
                    shared.borrow_mut().lost = None;
                }
                serve(stream, dialect, &shared).await
            }
            Err(error) => Some(format!("{address}: {error}")),
        };
        let (Some(why), Some(shared)) = (why, shared.upgrade()) else { return };
        shared.borrow_mut().lose(why);
        drop(shared);
        task::sleep(REST).await;
    }
}

/// Sends and receives; why it has ended, or `None` if the link is gone.
async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    dialect: Dialect,
    shared: &Weak<RefCell<Shared>>,
) -> Option<String> {
    let (mut input, mut buffer) = (BytesMut::new(), vec![0; READ_BYTES_MAX].into_boxed_slice());
    loop {
        let mut check = std::pin::pin!(task::sleep(DEADLINE_CHECK));
        let end = poll_fn(|cx| {
            let Some(shared) = shared.upgrade() else { return Poll::Ready(Some(None)) };
            let mut shared = shared.borrow_mut();
            shared.waker = Some(cx.waker().clone());
            if let Err(why) = turn(&mut stream, dialect, &mut shared, &mut input, &mut buffer, cx) {
                return Poll::Ready(Some(Some(why)));
            }
            check.as_mut().poll(cx).map(|()| None)
        })
        .await;
        if let Some(end) = end {
            return end;
        }
        shared.upgrade()?.borrow().expire(Instant::now());
    }
}

/// Reads what there is, and sends what is to be sent.
fn turn(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    dialect: Dialect,
    shared: &mut Shared,
    input: &mut BytesMut,
    buffer: &mut [u8],
    cx: &mut Context<'_>,
) -> Result<(), String> {
    let lost = |error: io::Error| format!("the connection was lost: {error}");
    while let Poll::Ready(read) = Pin::new(&mut *stream).poll_read(cx, buffer) {
        match read.map_err(lost)? {
            0 => return Err("the connection was closed by the peer".to_owned()),
            bytes => input.extend_from_slice(&buffer[..bytes]),
        }
        let garbled = |_| format!("an answer that is not {}'s", dialect.name());
        shared.take(dialect, input).map_err(garbled)?;
    }
    while !shared.out.is_empty() {
        match Pin::new(&mut *stream).poll_write(cx, &shared.out) {
            Poll::Ready(Ok(bytes)) => shared.out.advance(bytes),
            Poll::Ready(Err(error)) => return Err(lost(error)),
            Poll::Pending => break,
        }
    }
    Ok(())
}

/// Takes a line without its end out of `input`, if all of it is there.
pub(super) fn line(input: &mut BytesMut) -> Option<BytesMut> {
    let end = input.windows(2).position(|pair| pair == b"\r\n")?;
    let line = input.split_to(end);
    input.advance(2);
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(shared: &mut Shared, verb: Verb, count: usize, deadline: Instant) -> Rc<RefCell<Slot>> {
        let waker = Some(Waker::noop().clone());
        let slot = Slot { verb, count, outcomes: Answer::new(), deadline, end: None, waker };
        let slot = Rc::new(RefCell::new(slot));
        shared.waiting.push_back(Rc::clone(&slot));
        slot
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn answers_go_to_the_calls_in_their_order_however_they_are_cut() {
        let all = b"$1\r\na\r\n+OK\r\n$-1\r\n$0\r\n\r\n";
        for cut in 0..all.len() {
            let mut shared = Shared::default();
            let slots = [(Verb::Get, 1), (Verb::Put, 1), (Verb::Get, 2)]
                .map(|(verb, count)| waiting(&mut shared, verb, count, later()));
            let mut input = BytesMut::from(&all[..cut]);
            shared.take(Dialect::Redis, &mut input).unwrap();
            input.extend_from_slice(&all[cut..]);
            shared.take(Dialect::Redis, &mut input).unwrap();
            let hit = |value: &'static [u8]| Outcome::Hit {
                tier: crate::protocol::ServedBy::Unspecified,
                value: Bytes::from_static(value),
            };
            let expected = [vec![hit(b"a")], vec![Outcome::Done], vec![Outcome::Miss, hit(b"")]];
            for (slot, expected) in slots.iter().zip(expected) {
                let found = slot.borrow_mut().end.take().expect("answered").unwrap();
                assert_eq!(found.to_vec(), expected, "cut at {cut}");
            }
            assert!(shared.waiting.is_empty());
        }
    }

    #[test]
    fn a_call_that_is_late_keeps_its_place_and_its_answer_is_nobodys() {
        let mut shared = Shared::default();
        let late = waiting(&mut shared, Verb::Get, 1, Instant::now());
        let next = waiting(&mut shared, Verb::Get, 1, later());
        shared.expire(Instant::now());
        assert_eq!(late.borrow_mut().end.take().unwrap().unwrap_err().status, "DEADLINE_EXCEEDED");
        shared.take(Dialect::Redis, &mut BytesMut::from(&b"$-1\r\n$1\r\nb\r\n"[..])).unwrap();
        assert!(late.borrow().end.is_none());
        assert!(matches!(next.borrow().end.as_ref().unwrap().as_ref().unwrap()[0], Outcome::Hit { .. }));
    }

    #[test]
    fn an_answer_that_nobody_waits_for_is_garbled() {
        let mut shared = Shared::default();
        assert_eq!(shared.take(Dialect::Redis, &mut BytesMut::from(&b"+OK\r\n"[..])), Err(Garbled));
    }

    #[test]
    fn a_lost_connection_fails_all_that_wait_and_forgets_what_was_to_be_sent() {
        let mut shared = Shared { out: BytesMut::from(&b"GET"[..]), ..Shared::default() };
        let slot = waiting(&mut shared, Verb::Put, 1, later());
        shared.lose("gone".to_owned());
        let failure = slot.borrow_mut().end.take().unwrap().unwrap_err();
        assert_eq!((&*failure.status, failure.is_undone), ("UNAVAILABLE", false));
        assert!(shared.out.is_empty() && shared.lost.is_some());
    }
}
