//! An HTTP/2 server that answers every request with 200 and a short body: what `tests/httpwg.rs` sends its cases to, and
//! the least that a shell around a [`Connection`] has to do.
//!
//! `cargo run -p milena-net --example conformance -- [PORT]` prints the address it listens on. A thread for each
//! connection and blocking sockets: the connection neither knows nor minds.

use std::{
    env,
    io::{self, IoSlice, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use milena_net::http2::{Connection, Event, Role, StreamKey, limits::OUTSIDE};

/// Longer than the windows of one byte that some cases begin with.
const BODY: Bytes = Bytes::from_static(b"what was asked for, in a body of more than one byte\n");

/// How long a peer may take to close a connection after our last word.
const FAREWELL_MAX: Duration = Duration::from_millis(500);

fn main() -> io::Result<()> {
    let port = env::args().nth(1).map_or(0, |port| port.parse().expect("a port number"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    println!("{}", listener.local_addr()?);
    serve(&listener);
    Ok(())
}

/// Serves every connection that comes, for ever.
pub(crate) fn serve(listener: &TcpListener) {
    for stream in listener.incoming().map_while(Result::ok) {
        thread::spawn(move || {
            // Peers that vanish are part of the game.
            let _ = converse(&stream);
        });
    }
}

fn converse(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut connection = Connection::<()>::new(Role::Server, &OUTSIDE);
    let mut buffer = [0; 16 << 10];
    loop {
        send(&mut connection, stream)?;
        if connection.is_over() {
            // Whoever closes with bytes unread resets the connection, and our last word would be lost.
            stream.shutdown(Shutdown::Write)?;
            stream.set_read_timeout(Some(FAREWELL_MAX))?;
            while stream.read(&mut buffer)? > 0 {}
            return Ok(());
        }
        let bytes = stream.read(&mut buffer)?;
        if bytes == 0 {
            return Ok(());
        }
        connection.receive(&buffer[..bytes]);
        while let Some(event) = connection.next_event(Instant::now()) {
            match event {
                Event::Head { key, is_end: true, .. }
                | Event::Data { key, is_end: true, .. }
                | Event::Trailers { key, .. } => answer(&mut connection, key),
                _ => {}
            }
        }
    }
}

fn answer(connection: &mut Connection<()>, key: StreamKey) {
    connection.send_head(key, StatusCode::OK, HeaderMap::new(), false);
    connection.send_part(key, b"", BODY, true);
}

fn send(connection: &mut Connection<()>, mut stream: &TcpStream) -> io::Result<()> {
    while !connection.outbox().is_empty() {
        let mut slices = [IoSlice::new(&[]); 16];
        let count = connection.outbox().fill(&mut slices);
        let sent = stream.write_vectored(&slices[..count])?;
        connection.outbox().advance(sent);
        connection.refill_outbox();
    }
    Ok(())
}
