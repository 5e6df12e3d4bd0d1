//! Our HTTP/2 against the cases of RFC 9113 that somebody else wrote: `httpwg`, a process of its own.
//!
//! ```text
//!   httpwg ── loopback ──▶ a thread for each connection ── http2::Connection, as in the servers
//! ```
//! Some cases need a response of 200 with a body, which no gRPC server gives to a request that is not gRPC; so the
//! socket and the answer are this file's, and everything between them is the product's. The cases of
//! `loadtest/tests/python/test_frames.py` run against the servers themselves.

use std::{
    collections::BTreeSet,
    env,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    thread,
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use milena_net::http2::{Connection, Event, Role, limits::OUTSIDE};

/// Cases that we do not pass, each with the reason why not.
///
/// Two kinds of broken frame are refused as they should be, with another code than the case wants: h2's codec, which reads
/// all frames but DATA, answers PROTOCOL_ERROR where a length or a header block is wrong. The connection ends either way
/// (section 5.4.1: "an endpoint MAY choose to treat a stream error as a connection error", and peers act on the end, not on the code).
const EXCEPTIONS: [(&str, &str); 15] = [
    ("invalid header block fragment", CODE),
    ("sends window update frame with invalid length", CODE),
    ("sends settings initial window size with exceeded max window size value", CODE),
    ("sends settings initial window size with invalid value", CODE),
    ("sends settings frame with ack and payload", CODE),
    ("sends settings frame with invalid length", CODE),
    ("sends ping frame with invalid length", CODE),
    ("sends priority frame with invalid length", CODE),
    ("sends rst stream frame with invalid length", CODE),
    ("sends smaller stream identifier", "STREAM_CLOSED instead of PROTOCOL_ERROR: the stream is closed, section 5.1.1"),
    ("sends rst stream frame with zero stream id", "counted as a reset of no stream, and ignored"),
    ("client sends push promise frame", "a PUSH_PROMISE without END_HEADERS is refused once its block is complete"),
    ("sends headers frame with mismatched host authority", "host is not read: :authority alone counts"),
    ("sends headers frame with trailing tab in field value", "values are bytes to us and are not passed on"),
    ("sends headers frame with leading space in field value", "values are bytes to us and are not passed on"),
];

/// The reason of most [`EXCEPTIONS`].
const CODE: &str = "the connection ends with PROTOCOL_ERROR instead of the code for this very fault";

/// How long httpwg waits for a frame, in milliseconds: a machine with two cores is busy with other tests too.
const FRAME_TIMEOUT_MS: &str = "1000";

/// Answers every request on every connection with 200 and a body.
fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // The peer breaks off as it likes; that is what the cases are about.
            thread::spawn(move || converse(stream).ok());
        }
    });
    address
}

fn converse(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut connection = Connection::<()>::new(Role::Server, &OUTSIDE);
    let mut buffer = vec![0; 64 << 10];
    loop {
        while let Some(event) = connection.next_event(Instant::now()) {
            if let Event::Head { key, is_end: true, .. }
            | Event::Data { key, is_end: true, .. }
            | Event::Trailers { key, .. } = event
            {
                connection.send_head(key, StatusCode::OK, HeaderMap::new(), false);
                connection.send_part(key, b"", Bytes::from_static(b"conformance"), true);
            }
        }
        while !connection.outbox().is_empty() {
            let mut slices = [io::IoSlice::new(&[]); 16];
            let count = connection.outbox().fill(&mut slices);
            let sent = stream.write_vectored(&slices[..count])?;
            connection.outbox().advance(sent);
            connection.refill_outbox();
        }
        // A peer that says GOAWAY closes by itself, and one case pings after it. (Our servers let it go at once.)
        if connection.fault().is_some() {
            // The peer must be able to read the GOAWAY: closing with something unread would reset the connection.
            stream.shutdown(std::net::Shutdown::Write)?;
            while stream.read(&mut buffer)? > 0 {}
            return Ok(());
        }
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        connection.receive(&buffer[..count]);
    }
}

/// Where `.ci/peers` puts it: in the target folder that this test itself is in.
fn httpwg() -> PathBuf {
    let test = env::current_exe().expect("this test is a file");
    let target = test.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    let path = target.expect("cargo's target folder").join("peers/bin/httpwg");
    assert!(path.is_file(), "{} is missing; ./test gets what the tests talk to and runs them", path.display());
    path
}

/// The text without the escape sequences that colour it.
fn plain(text: &str) -> String {
    let mut pieces = text.split("\u{1b}[");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |plain, piece| plain + piece.split_once('m').map_or("", |(_, rest)| rest))
}

/// The names of the cases with this mark before them, without their section.
fn marked(said: &str, mark: &str) -> BTreeSet<String> {
    let lines = said.lines().filter_map(|line| line.trim().strip_prefix(mark));
    lines.filter_map(|line| line.rsplit(" :: ").next()).map(|name| name.trim().to_owned()).collect()
}

#[test]
fn the_cases_of_rfc_9113_pass() {
    let output = Command::new(httpwg())
        .args(["-a", &serve().to_string(), "--frame-timeout", FRAME_TIMEOUT_MS])
        .env("SEQUENTIAL", "1")
        .output()
        .expect("httpwg runs");
    let said = plain(&(String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr)));
    let passed = marked(&said, "✅ Test passed: ");
    let all = said.lines().filter(|line| line.starts_with("Holding ")).count();
    assert!(all > 100, "httpwg has run {all} cases only:\n{said}");

    // A case that fails by a panic has no line of its own, so what counts is who has passed.
    let excepted: BTreeSet<String> = EXCEPTIONS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let failed = marked(&said, "❌ Test failed: ");
    let unexpected: Vec<&String> = failed.difference(&excepted).collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}\n{said}");
    assert!(passed.len() + EXCEPTIONS.len() >= all, "{} of {all} cases passed:\n{said}", passed.len());
    let settled: Vec<&String> = passed.intersection(&excepted).collect();
    assert!(settled.is_empty(), "these pass now and are no exceptions any more: {settled:#?}");
    println!("{} of {all} cases pass; the others:", passed.len());
    for (name, reason) in EXCEPTIONS {
        println!("  {name}: {reason}");
    }
}
