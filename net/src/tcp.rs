//! Sockets: listeners with their options, connections in and out.
//!
//! ```text
//!   one common port    listen_on_all(addr, cores)    bound once exclusively, so that a second process is refused;
//!                                                    then shared: the kernel spreads connections over the cores
//!   one port per core  listen(addr, ..)              the address that is advertised for that core's keys
//! ```
//! A [`Listener`] is made on any thread and moves to the core that accepts from it.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd},
    thread,
    time::{Duration, Instant},
};

use glommio::{io::PollableFd, net::TcpStream};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Connections that the kernel completes and holds until they are accepted (further limited by `net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// A connection is dead when what was sent is not acknowledged, or the peer's window stays shut, for this long.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// An idle connection is probed after this long, so that peers which vanished do not hold memory for ever.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// After so many connections in a row, other tasks of the core get a turn.
const ACCEPTS_PER_TURN: u32 = 16;

/// When the process or the machine has no room for a connection, wait before trying again: from this to that.
const NO_ROOM_WAIT_MIN: Duration = Duration::from_millis(10);
const NO_ROOM_WAIT_MAX: Duration = Duration::from_secs(1);

/// What a listener is made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenOptions {
    /// Other listeners of this user may bind the same address (SO_REUSEPORT), and connections are spread over them.
    pub reuse_port: bool,
}

/// Listens on `address`; port 0 takes any port that is free. Connections inherit the options of the listener: no delay
/// for small segments, keepalive, and a bound on how long sent bytes may stay unacknowledged.
///
/// # Errors
/// [`ListenError`], most often a port in use.
pub fn listen(address: SocketAddr, options: ListenOptions) -> Result<Listener, ListenError> {
    let fail = |source| ListenError { address, source };
    let socket = bind(address, options.reuse_port).map_err(fail)?;
    Listener::of(socket, BACKLOG).map_err(fail)
}

/// Listens `count` times on one address, once for each core; with port 0, all on the same free port.
///
/// The first bind is exclusive, so an address that anybody else listens on, another copy of this program above all, is
/// refused. (Bound with SO_REUSEPORT alone, two nodes of one user would silently take half of the connections each.)
///
/// # Errors
/// As [`listen`].
///
/// # Panics
/// When `count` is 0.
pub fn listen_on_all(address: SocketAddr, count: usize) -> Result<Vec<Listener>, ListenError> {
    assert!(count > 0, "at least one listener");
    let fail = |source| ListenError { address, source };
    let exclusive = bind(address, false).map_err(fail)?;
    exclusive.set_reuse_port(true).map_err(fail)?;
    let first = Listener::of(exclusive, BACKLOG).map_err(fail)?;
    let address = first.local_addr();
    let mut listeners = vec![first];
    for _ in 1..count {
        listeners.push(listen(address, ListenOptions { reuse_port: true })?);
    }
    Ok(listeners)
}

/// For plain threads: a listener that blocks, and the address it has.
pub(crate) fn listen_blocking(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ListenError> {
    let listener = listen(address, ListenOptions::default())?;
    listener.socket.set_nonblocking(false).map_err(|source| ListenError { address, source })?;
    Ok((listener.socket, listener.address))
}

/// How long a port that is in use is asked for again. A process that was killed is gone before its listeners are: the kernel
/// undoes its rings afterwards, and they hold the sockets; who restarts it at once should not have to know.
const RELEASE_MAX: Duration = Duration::from_secs(1);
const RELEASE_STEP: Duration = Duration::from_millis(20);

/// Blocks for [`RELEASE_MAX`] at most: to be called before there are cores.
fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier process that still linger do not hold the port; one that listens does.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    set_options(&SockRef::from(&socket))?;
    let patience = Instant::now() + RELEASE_MAX;
    loop {
        match socket.bind(&address.into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < patience => {
                thread::sleep(RELEASE_STEP);
            }
            bound => return bound.map(|()| socket),
        }
    }
}

fn set_options(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// A socket that listens. Dropping it closes it; connections that were not accepted are reset.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    accepted_in_turn: u32,
    /// Zero while there is room.
    no_room_wait: Duration,
}

impl Listener {
    fn of(socket: Socket, backlog: i32) -> io::Result<Self> {
        socket.listen(backlog)?;
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from(socket);
        let address = socket.local_addr()?;
        Ok(Self { socket, address, accepted_in_turn: 0, no_room_wait: Duration::ZERO })
    }

    /// The address that was bound, with the port that was found when 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the next connection. To be called on a core.
    ///
    /// Gives other tasks a turn after every 16 connections, passes over connections that were given up before they
    /// were accepted, and waits while there are no file descriptors or buffers for another one. Dropping the future
    /// loses no connection.
    ///
    /// # Errors
    /// Only when the listener itself is unusable.
    pub async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            if self.accepted_in_turn == ACCEPTS_PER_TURN {
                self.accepted_in_turn = 0;
                glommio::executor().yield_now().await;
            }
            let error = match self.socket.accept() {
                Ok((stream, peer)) => {
                    self.accepted_in_turn += 1;
                    self.no_room_wait = Duration::ZERO;
                    // SAFETY: the descriptor has just been taken out of its owner.
                    return Ok((unsafe { TcpStream::from_raw_fd(stream.into_raw_fd()) }, peer));
                }
                Err(error) => error,
            };
            match Trouble::of(&error) {
                Trouble::NothingThere => {
                    self.accepted_in_turn = 0;
                    // One poll for each wait. Unlike an accept in the ring, it owns no connection when it is dropped.
                    PollableFd::new(self.socket.as_fd())?.readable().await?;
                }
                Trouble::ThatConnection => self.accepted_in_turn += 1,
                Trouble::NoRoom => self.wait_for_room(&error).await,
                Trouble::Listener => return Err(error),
            }
        }
    }

    async fn wait_for_room(&mut self, error: &io::Error) {
        if self.no_room_wait.is_zero() {
            tracing::warn!(
                "tcp: cannot accept on {}: {error}; trying again until there is room; hint: raise `ulimit -n`",
                self.address
            );
        }
        self.no_room_wait = (self.no_room_wait * 2).clamp(NO_ROOM_WAIT_MIN, NO_ROOM_WAIT_MAX);
        glommio::timer::sleep(self.no_room_wait).await;
    }
}

/// What a failed accept says about what comes next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    NothingThere,
    ThatConnection,
    NoRoom,
    Listener,
}

impl Trouble {
    pub(crate) fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Self::NothingThere,
            // accept(2), "Error handling": errors of the new connection come out of accept; treat them like EAGAIN.
            Some(
                libc::ECONNABORTED
                | libc::EINTR
                | libc::EPERM
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP
                | libc::ETIMEDOUT
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET,
            ) => Self::ThatConnection,
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Self::NoRoom,
            _ => Self::Listener,
        }
    }
}

/// Connects to `address` within `timeout`, with the options of a connection that was accepted. To be called on a core.
///
/// # Errors
/// The kernel's; `TimedOut` after `timeout`; `ConnectionRefused` also when the kernel, asked for a free port on
/// this machine, has chosen the very port we connect to, and so connected the socket to itself.
pub async fn connect(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    if timeout.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let stream = TcpStream::connect_timeout(address, timeout).await?;
    if stream.local_addr()? == address {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    // SAFETY: the stream is alive for as long as the borrow.
    let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(stream.as_raw_fd()) };
    set_options(&SockRef::from(&descriptor))?;
    Ok(stream)
}

/// Why nobody can connect to `address`.
#[derive(Debug)]
pub struct ListenError {
    /// The address that was asked for.
    pub address: SocketAddr,
    /// The kernel's reason.
    pub source: io::Error,
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, source } = self;
        write!(f, "cannot listen on {address}: ")?;
        match source.kind() {
            io::ErrorKind::AddrInUse => {
                write!(
                    f,
                    "the port is in use; hint: another process listens there, `ss -ltnp sport = :{}` shows it",
                    address.port()
                )
            }
            io::ErrorKind::AddrNotAvailable => f.write_str("this machine does not have that address"),
            io::ErrorKind::PermissionDenied => {
                f.write_str("permission denied; hint: ports below 1024 need CAP_NET_BIND_SERVICE")
            }
            _ => write!(f, "{source}"),
        }
    }
}

impl std::error::Error for ListenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        io::{Read, Write},
        net::{Ipv4Addr, TcpStream as Plain},
        os::fd::RawFd,
        thread,
    };

    use futures::{AsyncReadExt, AsyncWriteExt};
    use glommio::{LocalExecutorBuilder, Placement};

    use super::*;
    use crate::mesh;

    const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    fn on_a_core<T>(future: impl Future<Output = T>) -> T {
        LocalExecutorBuilder::new(Placement::Unbound).io_memory(1 << 16).make().unwrap().run(future)
    }

    fn option(socket: RawFd, level: i32, name: i32) -> i32 {
        let (mut value, mut size) = (0_i32, size_of::<i32>() as libc::socklen_t);
        // SAFETY: the pointers are to a value of that size.
        let got = unsafe { libc::getsockopt(socket, level, name, (&raw mut value).cast(), &raw mut size) };
        assert_eq!(got, 0);
        value
    }

    fn assert_options(socket: RawFd) {
        for (level, name, expected) in [
            (libc::IPPROTO_TCP, libc::TCP_NODELAY, 1),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 60),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 10),
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3),
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 30_000),
        ] {
            assert_eq!(option(socket, level, name), expected, "option {name} at level {level}");
        }
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::fcntl(socket, libc::F_GETFD) } & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }

    #[test]
    fn both_ends_have_the_options_and_bytes_pass() {
        on_a_core(async {
            let mut listener = listen(ANY_PORT, ListenOptions::default()).unwrap();
            let mut out = connect(listener.local_addr(), Duration::from_secs(10)).await.unwrap();
            let (mut accepted, peer) = listener.accept().await.unwrap();
            assert_eq!(peer, out.local_addr().unwrap());
            assert_options(out.as_raw_fd());
            assert_options(accepted.as_raw_fd());

            out.write_all(b"ping").await.unwrap();
            let mut seen = [0; 4];
            accepted.read_exact(&mut seen).await.unwrap();
            assert_eq!(&seen, b"ping");
        });
    }

    #[test]
    fn a_port_in_use_is_named_with_a_way_to_find_who_has_it() {
        let first = listen(ANY_PORT, ListenOptions::default()).unwrap();
        for options in [ListenOptions { reuse_port: false }, ListenOptions { reuse_port: true }] {
            let error = listen(first.local_addr(), options).unwrap_err();
            let port = first.local_addr().port();
            assert_eq!(
                error.to_string(),
                format!(
                    "cannot listen on 127.0.0.1:{port}: the port is in use; \
                     hint: another process listens there, `ss -ltnp sport = :{port}` shows it"
                )
            );
        }
    }

    #[test]
    fn an_address_of_another_machine_is_refused_readably() {
        let error = listen("192.0.2.1:0".parse().unwrap(), ListenOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), "cannot listen on 192.0.2.1:0: this machine does not have that address");
    }

    #[test]
    fn the_common_port_is_shared_by_our_cores_and_refused_to_everybody_else() {
        let ours = listen_on_all(ANY_PORT, 4).unwrap();
        let address = ours[0].local_addr();
        assert!(ours.iter().all(|listener| listener.local_addr() == address));
        for error in [listen_on_all(address, 4).unwrap_err(), listen(address, ListenOptions::default()).unwrap_err()] {
            assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
        }
        drop(ours);
        listen_on_all(address, 2).unwrap(); // and free again at once
    }

    #[test]
    fn connections_to_the_common_port_reach_every_core() {
        const CONNECTIONS: usize = 64; // that all of them hash to one of the two has a chance of 2^-63
        let listeners = listen_on_all(ANY_PORT, 2).unwrap();
        let address = listeners[0].local_addr();
        let clients: Vec<_> = (0..CONNECTIONS).map(|_| Plain::connect(address).unwrap()).collect();
        let expected: HashSet<_> = clients.iter().map(|client| client.local_addr().unwrap()).collect();

        let accepted = on_a_core(async move {
            let (sender, mut receiver) = mesh::mailbox(CONNECTIONS);
            for (index, mut listener) in listeners.into_iter().enumerate() {
                let sender = sender.clone();
                glommio::spawn_local(async move {
                    while let Ok((_, peer)) = listener.accept().await {
                        sender.try_send((index, peer)).unwrap();
                    }
                })
                .detach();
            }
            let mut accepted = Vec::new();
            while accepted.len() < CONNECTIONS {
                accepted.push(receiver.recv().await.unwrap());
            }
            accepted
        });
        assert_eq!(accepted.iter().map(|(_, peer)| *peer).collect::<HashSet<_>>(), expected);
        for index in 0..2 {
            assert!(accepted.iter().any(|(listener, _)| *listener == index), "none for listener {index}");
        }
    }

    #[test]
    fn an_accept_that_was_given_up_loses_no_connection() {
        on_a_core(async {
            let mut listener = listen(ANY_PORT, ListenOptions::default()).unwrap();
            for _ in 0..20 {
                assert!(futures::FutureExt::now_or_never(listener.accept()).is_none());
            }
            let client = Plain::connect(listener.local_addr()).unwrap();
            let (_, peer) = listener.accept().await.unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
        });
    }

    #[test]
    fn others_get_a_turn_between_many_connections() {
        let mut listener = listen(ANY_PORT, ListenOptions::default()).unwrap();
        let _clients: Vec<_> = (0..64).map(|_| Plain::connect(listener.local_addr()).unwrap()).collect();
        on_a_core(async move {
            let turns = std::rc::Rc::new(std::cell::Cell::new(0));
            let other = {
                let turns = std::rc::Rc::clone(&turns);
                glommio::spawn_local(async move {
                    loop {
                        turns.set(turns.get() + 1);
                        glommio::executor().yield_now().await;
                    }
                })
            };
            for _ in 0..64 {
                listener.accept().await.unwrap();
            }
            assert!(turns.get() >= 3, "{} turns", turns.get());
            other.cancel().await;
        });
    }

    #[test]
    fn nobody_there_is_refused_and_a_silent_network_times_out() {
        on_a_core(async {
            let bound = bind(ANY_PORT, false).unwrap(); // nobody else gets the port, and nobody listens there
            let nobody = bound.local_addr().unwrap().as_socket().unwrap();
            let error = connect(nobody, Duration::from_secs(10)).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            assert_eq!(connect(nobody, Duration::ZERO).await.unwrap_err().kind(), io::ErrorKind::TimedOut);

            // A listener whose queue is full answers nothing, as a network that drops packets.
            let socket = bind(ANY_PORT, false).unwrap();
            let full = Listener::of(socket, 0).unwrap();
            let _waiting = Plain::connect(full.local_addr()).unwrap();
            let error = connect(full.local_addr(), Duration::from_millis(50)).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        });
    }

    #[test]
    fn errors_of_a_connection_are_not_errors_of_the_listener() {
        for (errno, expected) in [
            (libc::EAGAIN, Trouble::NothingThere),
            (libc::ECONNABORTED, Trouble::ThatConnection),
            (libc::EMFILE, Trouble::NoRoom),
            (libc::ENOMEM, Trouble::NoRoom),
            (libc::EBADF, Trouble::Listener),
            (libc::EINVAL, Trouble::Listener),
        ] {
            assert_eq!(Trouble::of(&io::Error::from_raw_os_error(errno)), expected, "{errno}");
        }
    }

    #[test]
    fn a_listener_made_on_one_thread_accepts_on_another() {
        let mut listener = listen(ANY_PORT, ListenOptions::default()).unwrap();
        let address = listener.local_addr();
        let core = thread::spawn(move || {
            on_a_core(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(b"hello").await.unwrap();
            });
        });
        let mut text = String::new();
        let mut client = Plain::connect(address).unwrap();
        client.flush().unwrap();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        core.join().unwrap();
    }
}
