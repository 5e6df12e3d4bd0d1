//! Header blocks: what was seen before means the same, unless the table has changed; and what we say is legal.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use futures::Stream as _;
use h2::{
    Codec,
    frame::{self, BytesStr, Frame, Pseudo},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use milena_net::http2::{Connection, Event, RequestHead, Role, limits::LINK};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    frames::{PREFACE, SETTINGS, call, frame, settings},
    ok,
    script::Srv,
};

const HEADERS_PER_SEED: u32 = 400;

/// Where a codec writes to and reads from.
#[derive(Default)]
struct Wire(BytesMut);

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let bytes = self.0.len().min(buf.remaining());
        buf.put_slice(&self.0.split_to(bytes));
        if bytes > 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn text(text: &str) -> BytesStr {
    BytesStr::try_from(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

/// Numbers that look random; the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// What is in a head besides what every head has.
type Extra = Vec<(String, String, bool)>;

/// New names and values push others to another place in the table, or out of it.
fn some_extra(numbers: &mut Numbers) -> Extra {
    let field = |numbers: &mut Numbers| {
        let value = "v".repeat(numbers.below(40) as usize) + &numbers.below(1000).to_string();
        (format!("x-{}", numbers.below(3)), value, numbers.below(4) == 0)
    };
    (0..numbers.below(3)).map(|_| field(numbers)).collect()
}

fn pseudo() -> Pseudo {
    Pseudo {
        method: Some(Method::POST),
        scheme: Some(text("http")),
        authority: Some(text("here")),
        path: Some(text("/")),
        ..Pseudo::default()
    }
}

fn fields(extra: &Extra) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value, is_sensitive) in extra {
        let mut value = HeaderValue::try_from(value).unwrap();
        value.set_sensitive(*is_sensitive); // Then it is not kept in the table.
        fields.append(HeaderName::try_from(name).unwrap(), value);
    }
    fields
}

#[test]
fn a_head_means_the_same_whether_it_was_seen_before_or_not() {
    for seed in 0..20 {
        let mut numbers = Numbers(seed);
        let mut client: Codec<Wire, Bytes> = Codec::new(Wire::default());
        let mut server: Connection<()> = Connection::new(Role::Server, &LINK);
        server.receive(PREFACE);
        server.receive(&settings(&[]));
        assert!(server.next_event(Instant::now()).is_none());
        let mut extras: Vec<Extra> = (0..4).map(|_| some_extra(&mut numbers)).collect();
        for number in 0..HEADERS_PER_SEED {
            if numbers.below(5) == 0 {
                let index = numbers.below(4) as usize;
                extras[index] = some_extra(&mut numbers);
            }
            if numbers.below(50) == 0 {
                client.set_send_header_table_size(numbers.below(4097) as usize);
            }
            let fields = fields(&extras[numbers.below(4) as usize]);
            let mut said = frame::Headers::new((2 * number + 1).into(), pseudo(), fields.clone());
            said.set_end_stream();
            let mut cx = Context::from_waker(Waker::noop());
            assert!(client.poll_ready(&mut cx).is_ready());
            client.buffer(Frame::Headers(said)).unwrap();
            assert!(client.flush(&mut cx).is_ready());
            server.receive(&client.get_mut().0.split());
            let Some(Event::Head { key, head, is_end: true }) = server.next_event(Instant::now()) else {
                panic!("seed {seed}, head {number}");
            };
            assert_eq!((head.pseudo.path.as_deref(), &head.fields), (Some("/"), &fields), "seed {seed}, head {number}");
            server.send_ok_head(key);
            server.end_ok(key);
        }
    }
}

#[test]
fn a_head_we_have_seen_is_refused_again_if_it_was_refused() {
    let mut srv = Srv::outside();
    let bad = |id| {
        crate::frames::headers(0, id, &[(":method", "POST"), (":scheme", "http"), (":path", "/t/Echo"), ("host", " x")])
    };
    for id in [1, 3, 5] {
        assert_eq!(srv.ask(bad(id)), [format!("{id} RESET PROTOCOL_ERROR")]);
    }
    assert_eq!(srv.ask(call(7, "Echo", b"x")), ok(7, 1));
}

#[test]
fn the_head_of_a_call_says_what_it_is_made_of() {
    let path = "/a.long.enough.Service/AndAMethodWhoseNameMakesTheWholePathLongerThanWhatFitsIntoSevenBitsOfALengthWhichIsOneHundredAndTwentySeven";
    let mut client: Connection<()> = Connection::new(Role::Client, &LINK);
    client.receive(&settings(&[]));
    assert!(client.next_event(Instant::now()).is_none());
    let mut server: Codec<Wire, Bytes> = Codec::new(Wire::default());
    client.open(&RequestHead { path, authority: "host:1", timeout: b"50m" }, ()).unwrap();
    let mut slices = [io::IoSlice::new(&[]); 4];
    let count = client.outbox().fill(&mut slices);
    let said = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>();
    server.get_mut().0.extend_from_slice(&said[24..]);
    let head = loop {
        match Pin::new(&mut server).poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(Frame::Headers(headers)))) => break headers,
            Poll::Ready(Some(Ok(_))) => {}
            other => panic!("{other:?}"),
        }
    };
    let (pseudo, fields) = head.into_parts();
    assert_eq!((pseudo.method, pseudo.scheme.as_deref()), (Some(Method::POST), Some("http")));
    assert_eq!((pseudo.path.as_deref(), pseudo.authority.as_deref()), (Some(path), Some("host:1")));
    let version = concat!("milena/", env!("CARGO_PKG_VERSION"));
    let expected =
        [("content-type", "application/grpc"), ("te", "trailers"), ("user-agent", version), ("grpc-timeout", "50m")];
    assert_eq!(fields.len(), expected.len());
    assert!(expected.iter().all(|(name, value)| fields[*name] == value), "{fields:?}");
}

#[test]
fn a_peer_that_makes_its_table_smaller_is_told_that_we_know_before_anything_else_is_said() {
    const HEADER_TABLE_SIZE: u16 = 1;
    let block_of = |srv: &mut Srv, call: Vec<u8>| {
        srv.recv(call);
        srv.take(usize::MAX)[9..].to_vec()
    };
    let mut srv = Srv::outside();
    assert_eq!(srv.ask(settings(&[(HEADER_TABLE_SIZE, 0)])), ["ACK"]);
    assert_eq!(block_of(&mut srv, call(1, "Echo", b"x"))[..2], [0x20, 0x88]);
    assert_eq!(block_of(&mut srv, call(3, "Echo", b"x"))[0], 0x88, "once");
    // Smaller and larger again: both are said, the smaller one first (RFC 7541, section 4.2).
    assert_eq!(
        srv.ask([settings(&[(HEADER_TABLE_SIZE, 50)]), settings(&[(HEADER_TABLE_SIZE, 4096)])].concat()),
        ["ACK"; 2]
    );
    assert_eq!(block_of(&mut srv, call(5, "Echo", b"x"))[..6], [0x3f, 19, 0x3f, 0xe1, 0x1f, 0x88]);
    // The codec says it by itself, and then nobody says it again.
    assert_eq!(srv.ask(frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 9])), ["ACK"]);
    assert_eq!(block_of(&mut srv, call(7, "Fail", b"x"))[..3], [0x20, 0x29, 0x88], "the least since its last block");
    assert_eq!(block_of(&mut srv, call(9, "Echo", b"x"))[0], 0x88);
}
