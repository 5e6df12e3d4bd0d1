//! Which sockets of a core have news: one epoll instance for all of them, looked at by one task.
//!
//! ```text
//!   connections' tasks ──▶ Watched: try, and wait if there is nothing ──▶ table: may read? may write? whom to wake
//!        ▲                                                                  ▲
//!        └────────── woken, in the order of the news ───────── look ────────┘   epoll_wait, which never blocks
//!                                                               │
//!                        news ─▶ once more, after those it woke ┤   for LOOKING_MAX at most; then the runtime's turn
//!                     no news ─▶ wait ──────────────────────────┘   the runtime tells when the epoll instance has news
//! ```
//! Each socket is registered once for as long as it lives, edge-triggered: a request costs one receive, one send and
//! its share of a look. The runtime's own sockets ask the kernel anew after each read, which is an allocation, a
//! submission and a completion for every request that comes alone; and its loop makes four system calls and sets two
//! timers in every turn, which many looks now share.
//!
//! What an edge means (epoll(7), "Level-triggered and edge-triggered"): the kernel tells of news once. So a socket may
//! be read until a read brings less than was asked for, or `EAGAIN`; if the peer has said that nothing follows, until a
//! read says so.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::Shutdown,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use glommio::io::{PollState, PollableFd};
use slab::Slab;
use socket2::SockRef;

/// How long the sockets of a core may be looked at again and again before its timers, disks and mailboxes have their turn.
const LOOKING_MAX: Duration = Duration::from_micros(250);

/// What one look brings at most; the next one brings the rest.
const NEWS_MAX: usize = 128;

/// Nothing here blocks, and a peer that is gone is an error and no signal.
const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// A connected socket that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    socket: OwnedFd,
    index: usize,
    sockets: Rc<Sockets>,
}

/// The sockets of a core. They hold it, and nobody else does: it ends with the last of them.
#[derive(Debug)]
struct Sockets {
    epoll: OwnedFd,
    table: RefCell<Slab<State>>,
    /// The task that looks.
    looker: RefCell<Option<Waker>>,
}

/// What is known of a socket.
#[derive(Debug)]
struct State {
    may_read: bool,
    may_write: bool,
    /// Nothing comes after what is there, so that nothing will tell of it.
    is_last: bool,
    wants_to_read: bool,
    wants_to_write: bool,
    waker: Waker,
}

thread_local! {
    /// The sockets of the executor with this number, if it has any. A thread may run one executor after another.
    static SOCKETS: RefCell<(usize, Weak<Sockets>)> = const { RefCell::new((0, Weak::new())) };
}

impl Watched {
    /// Watches a connected socket. Its first read waits until there is something.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let sockets = Sockets::of_this_core()?;
        let index = sockets.table.borrow_mut().insert(State {
            may_read: false,
            may_write: true,
            is_last: false,
            wants_to_read: false,
            wants_to_write: false,
            waker: Waker::noop().clone(),
        });
        let watched = Self { socket, index, sockets };
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET).cast_unsigned(),
            u64: index as u64,
        };
        let (epoll, socket) = (watched.sockets.epoll.as_raw_fd(), watched.socket.as_raw_fd());
        // SAFETY: both descriptors are open, and the event lives until the call returns.
        if unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, socket, &raw mut event) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(watched)
    }

    /// Reads what is there; 0 bytes are the end.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [MaybeUninit<u8>]) -> Poll<io::Result<usize>> {
        if !self.state(|state| state.may_read) {
            self.want(cx, |state| state.wants_to_read = true);
            return Poll::Pending;
        }
        let read = SockRef::from(&self.socket).recv_with_flags(buffer, FLAGS);
        match &read {
            Ok(bytes) if *bytes == buffer.len() => {}
            Ok(_) => self.state(|state| state.may_read = state.is_last),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.state(|state| state.may_read = false);
                self.want(cx, |state| state.wants_to_read = true);
                return Poll::Pending;
            }
            Err(_) => {}
        }
        Poll::Ready(read)
    }

    /// Writes as much as there is room for.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if !self.state(|state| state.may_write) {
            self.want(cx, |state| state.wants_to_write = true);
            return Poll::Pending;
        }
        let socket = SockRef::from(&self.socket);
        let written = match slices {
            [one] => socket.send_with_flags(one, FLAGS),
            several => socket.send_vectored_with_flags(several, FLAGS),
        };
        if matches!(&written, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            self.state(|state| state.may_write = false);
            self.want(cx, |state| state.wants_to_write = true);
            return Poll::Pending;
        }
        Poll::Ready(written)
    }

    /// Says that nothing more will come from here.
    pub(super) fn shut(&self) -> io::Result<()> {
        SockRef::from(&self.socket).shutdown(Shutdown::Write)
    }

    fn state<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        with(&mut self.sockets.table.borrow_mut()[self.index])
    }

    fn want(&self, cx: &Context<'_>, what: impl FnOnce(&mut State)) {
        let before = self.state(|state| {
            what(state);
            let is_known = state.waker.will_wake(cx.waker());
            (!is_known).then(|| std::mem::replace(&mut state.waker, cx.waker().clone()))
        });
        drop(before); // After the borrow: a waker may be the last that holds its task.
    }
}

impl Drop for Watched {
    /// The socket is closed after this; with its last descriptor the kernel forgets that it was watched.
    fn drop(&mut self) {
        let state = self.sockets.table.borrow_mut().remove(self.index);
        drop(state); // As above.
    }
}

impl Sockets {
    fn of_this_core() -> io::Result<Rc<Self>> {
        let executor = glommio::executor().id();
        SOCKETS.with_borrow_mut(|(of, sockets)| {
            if let Some(sockets) = sockets.upgrade().filter(|_| *of == executor) {
                return Ok(sockets);
            }
            let made = Self::new()?;
            (*of, *sockets) = (executor, Rc::downgrade(&made));
            Ok(made)
        })
    }

    fn new() -> io::Result<Rc<Self>> {
        // SAFETY: no pointers.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and nobody else's.
        let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
        let looker = Looker { epoll: PollableFd::new(Epoll(epoll.as_raw_fd()))?, wait: Wait::Over, since: None };
        let sockets = Rc::new(Self { epoll, table: RefCell::default(), looker: RefCell::default() });
        glommio::spawn_local(looker.run(Rc::downgrade(&sockets))).detach();
        Ok(sockets)
    }

    /// Takes note of what is new, and wakes whom it concerns. Answers how many sockets had news.
    fn look(&self) -> usize {
        let mut news = [libc::epoll_event { events: 0, u64: 0 }; NEWS_MAX];
        // SAFETY: there is room for as many as are said.
        let count = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), news.as_mut_ptr(), NEWS_MAX as i32, 0) };
        let count = usize::try_from(count).unwrap_or(0); // A signal; the next look brings what this one has not.
        let mut table = self.table.borrow_mut();
        for &libc::epoll_event { events, u64: index } in &news[..count] {
            if let Some(state) = table.get_mut(index as usize) {
                state.learn(events.cast_signed());
            }
        }
        count
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        if let Some(looker) = self.looker.get_mut().take() {
            looker.wake(); // To end.
        }
    }
}

impl State {
    fn learn(&mut self, events: i32) {
        self.is_last |= events & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) != 0;
        self.may_read |= self.is_last || events & libc::EPOLLIN != 0;
        self.may_write |= self.is_last || events & libc::EPOLLOUT != 0;
        let wants = (self.wants_to_read && self.may_read) || (self.wants_to_write && self.may_write);
        if wants {
            (self.wants_to_read, self.wants_to_write) = (false, false); // It tries again, and says so anew.
            self.waker.wake_by_ref();
        }
    }
}

/// The epoll instance, by number: [`Sockets`] owns it, and while it exists the number is valid.
struct Epoll(RawFd);

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// The task that looks.
struct Looker {
    epoll: PollableFd<Epoll>,
    wait: Wait,
    /// When the first of the looks was that have followed one another.
    since: Option<Instant>,
}

/// What the runtime has been asked to tell.
enum Wait {
    Over,
    ForNews(PollState),
}

impl Looker {
    /// Ends with the last socket.
    async fn run(mut self, sockets: Weak<Sockets>) {
        poll_fn(|cx| match sockets.upgrade() {
            Some(sockets) => {
                self.poll(&sockets, cx);
                Poll::Pending
            }
            None => Poll::Ready(()),
        })
        .await;
    }

    fn poll(&mut self, sockets: &Sockets, cx: &mut Context<'_>) {
        if let Wait::ForNews(state) = &mut self.wait {
            if self.epoll.poll_readable(cx, state).is_pending() {
                return;
            }
            self.wait = Wait::Over;
        }
        if sockets.look() > 0 {
            let now = Instant::now();
            let since = *self.since.get_or_insert(now);
            if now.saturating_duration_since(since) < LOOKING_MAX {
                cx.waker().wake_by_ref(); // After those that were just woken.
                return;
            }
        }
        self.since = None;
        let mut state = PollState::new();
        if self.epoll.poll_readable(cx, &mut state).is_pending() {
            *sockets.looker.borrow_mut() = Some(cx.waker().clone());
            self.wait = Wait::ForNews(state);
        } else {
            cx.waker().wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixStream,
    };

    use glommio::{LocalExecutorBuilder, Placement};

    use super::*;

    fn on_a_core<T>(future: impl Future<Output = T>) -> T {
        LocalExecutorBuilder::new(Placement::Unbound).io_memory(1 << 16).make().unwrap().run(future)
    }

    /// A socket that is watched, and the other end of it.
    fn watched() -> (Watched, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (Watched::new(ours.into()).unwrap(), theirs)
    }

    async fn read(watched: &Watched, bytes_max: usize) -> Vec<u8> {
        let mut buffer = vec![MaybeUninit::uninit(); bytes_max];
        let bytes = poll_fn(|cx| watched.poll_read(cx, &mut buffer)).await.unwrap();
        // SAFETY: the kernel has filled as many.
        buffer[..bytes].iter().map(|byte| unsafe { byte.assume_init() }).collect()
    }

    async fn write(watched: &Watched, bytes: &[u8]) -> usize {
        poll_fn(|cx| watched.poll_write(cx, &[IoSlice::new(bytes)])).await.unwrap()
    }

    fn is_waiting<T>(future: impl Future<Output = T>) -> bool {
        futures::FutureExt::now_or_never(future).is_none()
    }

    #[test]
    fn what_came_before_a_socket_was_watched_and_what_comes_after_is_read() {
        on_a_core(async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(b"before").unwrap();
            let watched = Watched::new(ours.into()).unwrap();
            assert_eq!(read(&watched, 100).await, b"before");
            assert!(is_waiting(read(&watched, 100)));
            theirs.write_all(b"after").unwrap();
            assert_eq!(read(&watched, 100).await, b"after");
        });
    }

    #[test]
    fn what_is_left_of_a_read_that_filled_its_buffer_is_read_without_further_news() {
        on_a_core(async {
            let (watched, mut theirs) = watched();
            theirs.write_all(b"abcdef").unwrap();
            assert_eq!(read(&watched, 4).await, b"abcd");
            assert_eq!(read(&watched, 2).await, b"ef");
            assert!(is_waiting(read(&watched, 2)));
        });
    }

    #[test]
    fn an_end_that_came_with_the_last_bytes_is_seen_after_them() {
        on_a_core(async {
            let (watched, mut theirs) = watched();
            theirs.write_all(b"last").unwrap();
            drop(theirs);
            assert_eq!(read(&watched, 100).await, b"last");
            assert_eq!(read(&watched, 100).await, b"");
        });
    }

    #[test]
    fn a_writer_waits_while_there_is_no_room_and_goes_on_when_there_is() {
        on_a_core(async {
            let (watched, mut theirs) = watched();
            let mut sent_bytes = 0;
            let full = vec![7; 64 << 10];
            while let Some(sent) = futures::FutureExt::now_or_never(write(&watched, &full)) {
                sent_bytes += sent;
            }
            let taker = async {
                let mut taken = vec![0; sent_bytes];
                theirs.read_exact(&mut taken).unwrap();
            };
            let (more_bytes, ()) = futures::join!(write(&watched, b"more"), taker);
            assert_eq!(more_bytes, 4);
        });
    }

    #[test]
    fn many_sockets_with_news_at_once_are_all_served() {
        const SOCKETS: usize = NEWS_MAX * 2 + 1;
        on_a_core(async {
            let mut pairs: Vec<_> = (0..SOCKETS).map(|_| watched()).collect();
            for (_, theirs) in &mut pairs {
                theirs.write_all(b"x").unwrap();
            }
            let reads = futures::future::join_all(pairs.iter().map(|(watched, _)| read(watched, 10))).await;
            assert!(reads.iter().all(|bytes| bytes == b"x"));
        });
    }

    #[test]
    fn the_epoll_instance_ends_with_the_last_socket_and_the_next_one_makes_another() {
        on_a_core(async {
            for _ in 0..3 {
                let (first, mut theirs) = watched();
                let (second, _) = watched();
                let sockets = Rc::downgrade(&first.sockets);
                assert!(Rc::ptr_eq(&first.sockets, &second.sockets));
                drop(second);
                theirs.write_all(b"x").unwrap();
                assert_eq!(read(&first, 10).await, b"x");
                drop(first);
                assert!(sockets.upgrade().is_none());
                glommio::executor().yield_now().await;
            }
        });
    }

    #[test]
    fn executors_of_one_thread_do_not_share_their_sockets() {
        // What an executor leaves behind is never dropped; nor is this.
        let kept: &(Watched, UnixStream) = Box::leak(Box::new(on_a_core(async { watched() })));
        on_a_core(async {
            let (watched, mut theirs) = watched();
            assert!(!Rc::ptr_eq(&watched.sockets, &kept.0.sockets));
            theirs.write_all(b"x").unwrap();
            assert_eq!(read(&watched, 10).await, b"x");
        });
    }
}
