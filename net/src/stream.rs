//! A socket as a connection uses it: read into a buffer that all connections of a core share, and send what has been
//! gathered, once a turn.

mod readiness;

use std::{
    cell::RefCell,
    future::{Future as _, poll_fn},
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use glommio::{net::TcpStream, timer::Timer};

use self::readiness::Watched;
use crate::http2::{Connection, Outbox};

/// What one read takes at most.
pub const READ_BYTES_MAX: usize = 64 << 10;

/// What is read from one connection before the others of its core have their turn.
pub(crate) const TURN_BYTES_MAX: usize = 128 << 10;

/// Slices in one gathered write; Linux allows 1,024 (`IOV_MAX`), more than a few save nothing.
const SLICES_MAX: usize = 16;

/// How long a peer may take to close a connection on which everything is said.
const FAREWELL_MAX: Duration = Duration::from_millis(500);

/// The buffer that the connections of a core read into, one after the other: a silent connection holds none.
#[derive(Debug, Clone)]
pub struct ReadBuffer(Rc<RefCell<Box<[MaybeUninit<u8>]>>>);

impl Default for ReadBuffer {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(Box::new_uninit_slice(READ_BYTES_MAX))))
    }
}

/// A connected socket.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: Watched,
    buffer: ReadBuffer,
    /// Since when the peer has taken nothing of what waits.
    stalled_since: Option<Instant>,
    /// What the connection had turned into frames when it was last seen to get on, in bytes of bodies.
    framed_bytes: u64,
}

/// The socket has ended or failed; which of the two makes no difference to anybody.
#[derive(Debug)]
pub(crate) struct PeerGone;

/// What a turn of reading has come to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// Everything there was.
    Drained,
    /// The turn's share, or what was wanted; there may be more, and nothing will tell of it.
    More,
}

impl Socket {
    /// A socket that reads into `buffer`.
    ///
    /// # Errors
    /// The kernel's, when it watches no more sockets or has no more descriptors.
    pub(crate) fn new(stream: TcpStream, buffer: ReadBuffer) -> io::Result<Self> {
        // SAFETY: the descriptor has just been taken out of its owner.
        let stream = unsafe { OwnedFd::from_raw_fd(stream.into_raw_fd()) };
        Ok(Self { stream: Watched::new(stream)?, buffer, stalled_since: None, framed_bytes: 0 })
    }

    /// Reads a turn's share and hands it to `take`, which answers whether it wants more.
    pub(crate) fn read(&mut self, cx: &mut Context<'_>, mut take: impl FnMut(&[u8]) -> bool) -> Result<Read, PeerGone> {
        let mut buffer = self.buffer.0.borrow_mut();
        let mut left_bytes = TURN_BYTES_MAX;
        while left_bytes > 0 {
            match self.stream.poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(0) | Err(_)) => return Err(PeerGone),
                Poll::Ready(Ok(bytes)) => {
                    left_bytes = left_bytes.saturating_sub(bytes);
                    // SAFETY: the kernel has filled as many.
                    if !take(unsafe { &*(&raw const buffer[..bytes] as *const [u8]) }) {
                        return Ok(Read::More);
                    }
                }
                Poll::Pending => return Ok(Read::Drained),
            }
        }
        Ok(Read::More)
    }

    /// Sends what `connection` has to say, as far as the peer takes it now: its socket, or its windows.
    pub(crate) fn send<T>(
        &mut self,
        connection: &mut Connection<T>,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Result<(), PeerGone> {
        let mut is_progress = false;
        loop {
            let before = connection.outbox().len();
            if before == 0 {
                break;
            }
            let sent = self.poll_send(cx, connection.outbox());
            let has_sent = connection.outbox().len() < before;
            if has_sent {
                is_progress = true;
                connection.refill_outbox();
            }
            match sent {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Err(PeerGone),
                Poll::Pending => break,
            }
        }
        self.note_progress(connection, is_progress, now);
        Ok(())
    }

    /// A peer that opens no window stands still like one that reads nothing, even if it says PING and is answered.
    fn note_progress<T>(&mut self, connection: &mut Connection<T>, has_sent: bool, now: Instant) {
        let has_framed =
            std::mem::replace(&mut self.framed_bytes, connection.framed_bytes()) < connection.framed_bytes();
        let waits_for_windows = connection.outbox().is_empty() && connection.backlog_bytes() > 0;
        let has_moved = if waits_for_windows { has_framed } else { has_sent };
        if connection.outbox().is_empty() && !waits_for_windows {
            self.stalled_since = None;
        } else if has_moved || self.stalled_since.is_none() {
            self.stalled_since = Some(now);
        }
    }

    /// When the peer will have taken nothing for `write_stall`, if something waits.
    pub(crate) fn stalls_at(&self, write_stall: Duration) -> Option<Instant> {
        self.stalled_since.map(|since| since + write_stall)
    }

    /// Says that nothing more will come, and takes what the peer still sends until it has gone too, or for
    /// [`FAREWELL_MAX`].
    ///
    /// Who closes a socket with bytes unread in it resets the connection, and what was said last is lost on its way.
    pub(crate) async fn farewell(mut self) {
        if self.stream.shut().is_err() {
            return;
        }
        let mut patience = Alarm::default();
        let until = Instant::now() + FAREWELL_MAX;
        poll_fn(|cx| {
            let now = Instant::now();
            if until <= now {
                return Poll::Ready(());
            }
            patience.set(Some(until), now, cx);
            match self.read(cx, |_| true) {
                Ok(Read::Drained) => Poll::Pending,
                Ok(Read::More) => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Err(PeerGone) => Poll::Ready(()),
            }
        })
        .await;
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox) -> Poll<io::Result<()>> {
        while !outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = outbox.fill(&mut slices);
            match self.stream.poll_write(cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(bytes)) => outbox.advance(bytes),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Wakes a task when something is due. One timer for a whole connection, set anew only when something is due earlier:
/// a turn with nothing to do costs less than a timer for each call.
///
/// A timer of the runtime is polled just once: each time it is polled it is registered once more, and all of them are
/// looked at in every turn of the core's loop until their time comes (glommio-ng 0.12, `Timer::poll`).
#[derive(Debug, Default)]
pub(crate) struct Alarm(Option<Set>);

#[derive(Debug)]
struct Set {
    at: Instant,
    /// Whom it wakes.
    waker: Waker,
    _timer: Timer,
}

impl Alarm {
    /// Sees to it that the task of `cx` is polled at `due`, or a little before. It may be polled when nothing is due any
    /// more.
    pub(crate) fn set(&mut self, due: Option<Instant>, now: Instant, cx: &mut Context<'_>) {
        let Some(due) = due else { return };
        if self.0.as_ref().is_some_and(|set| now < set.at && set.at <= due && set.waker.will_wake(cx.waker())) {
            return;
        }
        let mut timer = Timer::new(due.saturating_duration_since(now));
        if Pin::new(&mut timer).poll(cx).is_ready() {
            self.0 = None;
            cx.waker().wake_by_ref();
        } else {
            self.0 = Some(Set { at: due, waker: cx.waker().clone(), _timer: timer });
        }
    }
}
