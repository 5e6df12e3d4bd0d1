//! The client's side of a connection: what a server may say to it, and our two ends together.

use std::time::Instant;

use bytes::Bytes;
use milena_net::http2::{Connection, Event, OpenError, RequestHead, Role, StreamKey, limits::LINK};

use crate::{
    frames::{END_STREAM, Fields, SETTINGS, call, data, frame, grpc, headers, ping, settings, window_update},
    script::{Srv, pattern},
};

const STREAMS_MAX: u16 = 3;
const GOAWAY: u8 = 7;

/// A client, and what has happened on it.
struct Client {
    connection: Connection<u32>,
    events: Vec<String>,
    bodies: Vec<u8>,
}

impl Client {
    fn new() -> Self {
        Self { connection: Connection::new(Role::Client, &LINK), events: Vec::new(), bodies: Vec::new() }
    }

    fn greeted() -> Self {
        let mut client = Self::new();
        client.recv(settings(&[]));
        client.take();
        client
    }

    fn open(&mut self, message: Bytes) -> Result<StreamKey, OpenError> {
        let head = RequestHead { path: "/t/Echo", authority: "there", timeout: b"5S" };
        let key = self.connection.open(&head, 7)?;
        self.connection.send_part(key, &grpc(&vec![0; message.len()])[..5], message, true);
        Ok(key)
    }

    fn recv(&mut self, bytes: impl AsRef<[u8]>) -> Vec<String> {
        self.connection.receive(bytes.as_ref());
        while let Some(event) = self.connection.next_event(Instant::now()) {
            let line = match event {
                Event::Head { head, is_end, .. } => format!("head {}{}", head.pseudo.status.unwrap(), end(is_end)),
                Event::Data { bytes, is_end, .. } => {
                    self.bodies.extend_from_slice(&bytes);
                    format!("data {}{}", bytes.len(), end(is_end))
                }
                Event::Trailers { key, head } => {
                    assert_eq!(self.connection.close(key), Some(7));
                    format!("trailers {}", head.fields["grpc-status"].to_str().unwrap())
                }
                Event::Reset { reason, by_peer, .. } => {
                    assert_eq!(self.connection.take_reset(), Some(7));
                    format!("reset {reason:?} {}", if by_peer { "by the peer" } else { "by us" })
                }
                Event::GoAway { last_id, reason } => format!("goaway {last_id} {reason:?}"),
            };
            self.events.push(line);
        }
        std::mem::take(&mut self.events)
    }

    fn take(&mut self) -> Vec<u8> {
        let mut taken = Vec::new();
        while !self.connection.outbox().is_empty() {
            let mut slices = [std::io::IoSlice::new(&[]); 8];
            let count = self.connection.outbox().fill(&mut slices);
            let before = taken.len();
            slices[..count].iter().for_each(|slice| taken.extend_from_slice(slice));
            self.connection.outbox().advance(taken.len() - before);
            self.connection.refill_outbox();
        }
        taken
    }
}

fn end(is_end: bool) -> &'static str {
    if is_end { " end" } else { "" }
}

fn head(id: u32, fields: Fields<'_>) -> Vec<u8> {
    headers(0, id, &[&[(":status", "200")], fields].concat())
}

fn goaway(last_id: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last_id.to_be_bytes(), [0; 4]].concat())
}

#[test]
fn our_two_ends_understand_each_other_whatever_the_size() {
    let mut srv = Srv::silent(&LINK);
    let mut client = Client::new();
    for size in [0, 1, 16_379, 16_384, 65_536, 1 << 20, 5 << 20] {
        client.open(pattern(size)).unwrap();
        let mut events = Vec::new();
        loop {
            let (out, back) = (client.take(), srv.take(usize::MAX));
            if out.is_empty() && back.is_empty() {
                break;
            }
            out.chunks(50_000).for_each(|segment| srv.recv(segment));
            back.chunks(50_000).for_each(|segment| events.extend(client.recv(segment)));
        }
        assert_eq!(events.last().unwrap(), "trailers 0", "{size} bytes");
        assert!(std::mem::take(&mut client.bodies) == grpc(&pattern(size)), "{size} bytes");
        assert_eq!((client.connection.backlog_bytes(), client.connection.stream_count()), (0, 0));
    }
}

#[test]
fn five_thousand_small_answers_are_taken_in_at_once() {
    // A DATA frame of a gRPC answer never ends its stream, and small ones count as a flood elsewhere.
    let mut client = Client::greeted();
    client.recv(frame(SETTINGS, 0, 0, &[&[0, 3][..], &5000_u32.to_be_bytes()].concat()));
    for _ in 0..5000 {
        client.open(Bytes::from_static(b"x")).unwrap();
        client.take();
    }
    let answers: Vec<u8> = (0..5000_u32)
        .flat_map(|index| {
            let id = index * 2 + 1;
            [head(id, &[]), data(0, id, &grpc(b"x")), headers(END_STREAM, id, &[("grpc-status", "0")])].concat()
        })
        .collect();
    let mut events = Vec::new();
    answers.chunks(64 << 10).for_each(|segment| events.extend(client.recv(segment)));
    assert_eq!(events.iter().filter(|line| *line == "trailers 0").count(), 5000);
    assert_eq!(client.connection.fault(), None);
}

#[test]
fn no_more_streams_are_opened_than_the_peer_allows() {
    let mut client = Client::new();
    for _ in 0..100 {
        client.open(Bytes::new()).unwrap();
    }
    assert_eq!(client.open(Bytes::new()), Err(OpenError::Full), "before its settings are known");

    let mut client = Client::new();
    client.recv(frame(SETTINGS, 0, 0, &[&[0, 3, 0, 0][..], &STREAMS_MAX.to_be_bytes()].concat()));
    for _ in 0..STREAMS_MAX {
        client.open(Bytes::new()).unwrap();
    }
    assert!(!client.connection.has_room());
    assert_eq!(client.open(Bytes::new()), Err(OpenError::Full));
    client.recv(headers(END_STREAM, 1, &[(":status", "200"), ("grpc-status", "0")]));
    assert!(!client.connection.has_room(), "the answer is there; the stream ends when it is closed");
}

#[test]
fn a_goaway_refuses_what_the_peer_has_not_looked_at() {
    let mut client = Client::greeted();
    for _ in 0..3 {
        client.open(Bytes::new()).unwrap();
    }
    assert_eq!(client.recv(goaway(i32::MAX as u32)), ["goaway 2147483647 NO_ERROR"]);
    assert!(!client.connection.takes_streams());
    assert_eq!(client.open(Bytes::new()), Err(OpenError::Closing));
    client.take();
    client.recv(ping(0, b"drained?"));
    assert_eq!(client.take(), ping(1, b"drained?"));
    let refused = "reset REFUSED_STREAM by the peer";
    assert_eq!(client.recv(goaway(1)), ["goaway 1 NO_ERROR", refused, refused]);
    assert!(!client.connection.is_over());
    let answer = [head(1, &[]), data(0, 1, &grpc(b"x")), headers(END_STREAM, 1, &[("grpc-status", "0")])];
    assert_eq!(client.recv(answer.concat()), ["head 200 OK", "data 6", "trailers 0"]);
    assert!(client.connection.is_over());
}

#[test]
fn an_answer_that_makes_no_sense_is_reset() {
    let grpc_answer = data(END_STREAM, 1, &grpc(b"x"));
    let cases: [(&str, Vec<u8>); 6] = [
        ("a body without a head", grpc_answer.clone()),
        ("a head without a status", headers(0, 1, &[("grpc-status", "0")])),
        ("an end that is only provisional", headers(END_STREAM, 1, &[(":status", "103")])),
        ("more than was promised", [head(1, &[("content-length", "5")]), grpc_answer.clone()].concat()),
        ("less than was promised", [head(1, &[("content-length", "7")]), grpc_answer].concat()),
        ("two heads", [head(1, &[]), head(1, &[])].concat()),
    ];
    for (name, bytes) in cases {
        let mut client = Client::greeted();
        client.open(Bytes::new()).unwrap();
        let events = client.recv(bytes);
        assert_eq!(events.last().unwrap(), "reset PROTOCOL_ERROR by us", "{name}");
        assert_eq!(client.connection.fault(), None, "{name}");
    }
}

#[test]
fn a_provisional_head_is_passed_over() {
    let mut client = Client::greeted();
    client.open(Bytes::new()).unwrap();
    let early = headers(0, 1, &[(":status", "103"), ("link", "x")]);
    assert_eq!(client.recv([early, head(1, &[])].concat()), ["head 200 OK"]);
}

#[test]
fn a_server_opens_no_streams() {
    for bytes in [head(1, &[]), head(2, &[]), frame(5, 4, 1, &[0, 0, 0, 2]), call(2, "Echo", b"")] {
        let mut client = Client::greeted();
        assert!(client.recv(&bytes).is_empty());
        assert!(client.connection.fault().is_some(), "{bytes:?}");
    }
}

#[test]
fn a_request_waits_for_its_window_and_goes_with_its_reset() {
    let mut client = Client::new();
    client.recv(settings(&[(4, 10)]));
    let key = client.open(pattern(100)).unwrap();
    client.take();
    assert_eq!(client.connection.backlog_bytes(), 95);
    client.recv(window_update(1, 20));
    assert_eq!(client.connection.backlog_bytes(), 75);
    client.take();
    assert_eq!(client.connection.reset(key, milena_net::http2::Reason::CANCEL), Some(7));
    assert_eq!(client.take(), crate::frames::reset(1));
    assert_eq!((client.connection.backlog_bytes(), client.connection.stream_count()), (0, 0));
    // The answer that crossed with it.
    assert!(client.recv([head(1, &[]), data(END_STREAM, 1, &grpc(b"x"))].concat()).is_empty());
    assert_eq!(client.connection.fault(), None);
}

#[test]
fn a_window_that_is_held_opens_as_what_came_is_passed_on() {
    let window = LINK.stream_window_bytes as usize;
    let mut client = Client::greeted();
    let key = client.open(Bytes::new()).unwrap();
    client.connection.hold_window(key);
    client.take();
    client.recv(head(1, &[]));
    for part in vec![7; window].chunks(16 << 10) {
        client.recv(data(0, 1, part));
        // The connection's window is opened at once: what is not passed on holds up nobody else.
        let said = client.take();
        assert!(said.is_empty() || said[..9] == window_update(0, 1)[..9], "{said:?}");
    }
    client.connection.pass_on(key, window / 2 - 1);
    assert!(client.take().is_empty());
    client.connection.pass_on(key, 1);
    assert_eq!(client.take(), window_update(1, u32::try_from(window / 2).unwrap()));
}
