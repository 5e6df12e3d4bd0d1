//! What a peer may not do to us: every limit of `http2/limits.rs`, on both sides of it.

use std::time::Duration;

use milena_net::http2::limits::{LINK, OUTSIDE};

use crate::{
    frames::{
        CONTINUATION, END_HEADERS, END_STREAM, HEADERS, INITIAL_WINDOW_SIZE, PING, PREFACE, PRIORITY, SETTINGS, block,
        call, data, frame, headers, ping, request, request_with, reset, settings, window_update,
    },
    ok,
    script::Srv,
};

const CALM: &str = "ENHANCE_YOUR_CALM";

fn ids(count: u32) -> impl Iterator<Item = u32> + Clone {
    (0..count).map(|index| index * 2 + 1)
}

#[track_caller]
fn assert_gone(srv: &mut Srv, said: &[String], reason: &str) {
    let last = said.last().expect("something is said");
    assert!(last.starts_with("GOAWAY ") && last.ends_with(&format!(" {reason}")), "{last}");
    assert!(srv.is_over());
    assert!(srv.ask(ping(0, b"anybody?")).is_empty(), "nothing is read any more");
}

#[test]
fn a_rapid_reset_ends_a_connection_from_outside_and_not_a_link() {
    let storm: Vec<u8> = ids(500).flat_map(|id| [call(id, "Read", b"x"), reset(id)].concat()).collect();
    let mut srv = Srv::outside();
    let said = srv.ask(&storm);
    assert_gone(&mut srv, &said, CALM);
    assert_eq!(srv.log().len(), OUTSIDE.resets.burst as usize);

    let mut srv = Srv::link();
    assert!(srv.ask(&storm).is_empty());
    assert_eq!(srv.log().len(), 500);
    assert_eq!(srv.ask(call(1001, "Echo", b"x")), ok(1001, 1));
}

#[test]
fn resets_are_forgiven_with_time() {
    let mut srv = Srv::outside();
    for round in 0..5 {
        let ids = (0..200).map(|index| (round * 200 + index) * 2 + 1);
        srv.recv(ids.flat_map(|id| [call(id, "Read", b"x"), reset(id)].concat()).collect::<Vec<u8>>());
        assert!(srv.said().is_empty());
        assert!(srv.wait(Duration::from_secs(1)));
    }
}

#[test]
fn resets_that_we_are_made_to_send_count_as_well() {
    // CVE-2025-8671: each of these is a fault of its stream alone.
    let overflow = |id| [request(id, "Read"), window_update(id, i32::MAX as u32)].concat();
    let after_end = |id| [call(id, "Read", b"x"), data(0, id, b"more")].concat();
    let trailers = |id| [request(id, "Read"), headers(0, id, &[("not-the", "end")])].concat();
    type Fault = fn(u32) -> Vec<u8>;
    let faults: [(Fault, &str); 3] =
        [(overflow, "FLOW_CONTROL_ERROR"), (after_end, "STREAM_CLOSED"), (trailers, "PROTOCOL_ERROR")];
    for (fault, reason) in faults {
        let mut srv = Srv::outside();
        assert_eq!(srv.ask(fault(1)), [format!("1 RESET {reason}")]);
        let said = srv.ask(ids(500).skip(1).flat_map(fault).collect::<Vec<u8>>());
        assert_gone(&mut srv, &said, CALM);
    }
}

#[test]
fn frames_that_carry_nothing_are_counted() {
    let open = request(1, "Read");
    let floods: [(&str, Vec<u8>); 6] = [
        ("PING", ping(0, b"12345678")),
        ("SETTINGS", settings(&[])),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("empty DATA", data(0, 1, b"")),
        ("DATA that is padding", crate::frames::padded(0, 1, b"", b"....", 4)),
        ("a kind nobody knows", frame(200, 0, 0, b"?")),
    ];
    for (name, one) in floods {
        let mut srv = Srv::outside();
        srv.recv(&open);
        let burst = OUTSIDE.idle_frames.burst as usize;
        srv.recv(one.repeat(burst / 2));
        assert!(!srv.is_over(), "{name}: half of it");
        let said = srv.ask(one.repeat(burst));
        assert!(!said.is_empty(), "{name}");
        assert_gone(&mut srv, &said, CALM);

        let mut srv = Srv::link();
        srv.recv(&open);
        srv.recv(one.repeat(burst * 3 / 2));
        assert!(!srv.is_over(), "{name}, on a link");
    }
}

#[test]
fn a_ping_for_each_answer_is_welcome() {
    let mut srv = Srv::outside();
    for id in ids(3000) {
        let said = srv.ask([call(id, "Echo", b"x"), ping(0, b"bandwidt")].concat());
        assert_eq!(said.len(), 4, "{said:?}");
    }
}

#[test]
fn a_header_block_that_never_ends_is_ended() {
    let mut srv = Srv::outside();
    srv.recv(frame(HEADERS, 0, 1, &block(&[(":method", "POST")])));
    let mut said = Vec::new();
    for _ in 0..1000 {
        said.extend(srv.ask(frame(CONTINUATION, 0, 1, b"")));
    }
    assert_gone(&mut srv, &said, CALM);
}

#[test]
fn headers_too_large_are_answered_and_far_too_large_ones_end_the_connection() {
    let mut srv = Srv::outside();
    let large = "x".repeat(OUTSIDE.header_list_bytes_max as usize);
    let whole = request_with(1, "Echo", &[("large", &large)]);
    let payload = &whole[9..];
    let split =
        [frame(HEADERS, END_STREAM, 1, &payload[..16_000]), frame(CONTINUATION, END_HEADERS, 1, &payload[16_000..])];
    assert_eq!(srv.ask(split.concat()), ["1 431 END"]);
    assert_eq!(srv.ask(call(3, "Echo", b"x")), ok(3, 1));

    let mut frames = vec![frame(HEADERS, END_STREAM, 5, &request_with(5, "Echo", &[])[9..])];
    let more = block(&[("more", &"x".repeat(15_000))]);
    frames.extend(std::iter::repeat_with(|| frame(CONTINUATION, 0, 5, &more)).take(20));
    let said = srv.ask(frames.concat());
    assert_gone(&mut srv, &said, CALM);
}

#[test]
fn one_stream_too_many_is_refused_and_may_come_again() {
    let mut srv = Srv::outside();
    let max = OUTSIDE.streams_max;
    // A client that has not seen our settings opens as many as it likes: no fault, not even a thousand too many.
    let said = srv.ask(ids(max + 1000).flat_map(|id| call(id, "Read", b"x")).collect::<Vec<u8>>());
    assert_eq!(said.len(), 1000);
    assert!(said.iter().all(|line| line.ends_with(" RESET REFUSED_STREAM")));
    srv.release();
    assert_eq!(srv.said().len(), max as usize * 3);
    let id = (max + 1000) * 2 + 1;
    assert_eq!(srv.ask(call(id, "Echo", b"x")), ok(id, 1));
}

#[test]
fn a_window_is_not_raised_over_its_maximum() {
    let mut srv = Srv::link();
    let said = srv.ask(window_update(0, i32::MAX as u32));
    assert_gone(&mut srv, &said, "FLOW_CONTROL_ERROR");

    let mut srv = Srv::outside();
    srv.recv(request(1, "Echo"));
    assert_eq!(srv.ask(window_update(1, i32::MAX as u32)), ["1 RESET FLOW_CONTROL_ERROR"]);
    assert_eq!(srv.ask(call(3, "Echo", b"x")), ok(3, 1));

    let mut srv = Srv::outside();
    srv.recv([request(1, "Echo"), window_update(1, 1 << 30)].concat());
    let said = srv.ask(settings(&[(INITIAL_WINDOW_SIZE, i32::MAX as u32)]));
    assert_gone(&mut srv, &said, "FLOW_CONTROL_ERROR");
}

#[test]
fn a_frame_too_large_ends_the_connection() {
    let mut srv = Srv::outside();
    srv.recv(request(1, "Echo"));
    let said = srv.ask(data(0, 1, &vec![0; OUTSIDE.frame_bytes_max as usize + 1]));
    assert_gone(&mut srv, &said, "FRAME_SIZE_ERROR");
}

#[test]
fn a_greeting_has_its_time() {
    for first in [&b""[..], &PREFACE[..10], PREFACE] {
        let mut srv = Srv::silent(&LINK);
        srv.recv(first);
        assert_eq!(srv.conversation.due(), Some(srv.now + LINK.handshake));
        assert!(srv.wait(LINK.handshake - Duration::from_millis(1)));
        assert!(!srv.wait(Duration::from_millis(1)));
    }
    let mut srv = Srv::silent(&LINK);
    srv.recv([PREFACE, &frame(SETTINGS, 0, 0, b"")].concat());
    assert_eq!(srv.conversation.due(), None);
    assert!(srv.wait(LINK.handshake * 2));
}

#[test]
fn a_preface_that_is_none_is_answered_with_goaway() {
    let garbage: [&[u8]; 4] =
        [b"GET / HTTP/1.1\r\n\r\n", b"\0", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", &[0x16, 3, 1, 2, 0]];
    for first in garbage {
        let mut srv = Srv::silent(&OUTSIDE);
        let said = srv.ask(first);
        assert_eq!(said, ["SETTINGS", "WINDOW 0", "GOAWAY 0 PROTOCOL_ERROR"], "{first:?}");
        assert!(srv.is_over());
    }
    let mut srv = Srv::silent(&OUTSIDE);
    let said = srv.ask([PREFACE, &frame(PING, 0, 0, &[0; 8])].concat());
    assert_gone(&mut srv, &said, "PROTOCOL_ERROR");
}

#[test]
fn bytes_from_dice_are_survived() {
    let seed = std::env::var("MILENA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x6d69_6c65_6e61_u64);
    println!("MILENA_SEED={seed}");
    let mut state = seed | 1;
    let mut dice = move || {
        // xorshift64 (Marsaglia 2003): no more is needed to make noise.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..300 {
        let mut srv = Srv::outside();
        for _ in 0..50 {
            let (kind, flags, id) = ((dice() % 11) as u8, dice() as u8, (dice() % 8) as u32);
            let payload: Vec<u8> = (0..dice() % 40).map(|_| dice() as u8).collect();
            let valid = [request(id, "Read"), call(id, "Echo", &payload), reset(id), window_update(id, 1 + id)];
            let next = match dice() % 4 {
                0 => frame(kind, flags, id, &payload),
                _ => valid[(dice() % 4) as usize].clone(),
            };
            srv.recv(next);
            srv.said();
        }
    }
}
