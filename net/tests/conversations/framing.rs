//! Frames where they do not belong, padding, trailers, content-length.

use milena_net::http2::limits::OUTSIDE;

use crate::{
    assert_failed,
    frames::{
        CONTINUATION, END_HEADERS, END_STREAM, HEADERS, PADDED, RST_STREAM, block, call, data, frame, grpc, headers,
        padded, request, request_with, reset, window_update,
    },
    ok,
    script::{Srv, pattern},
};

#[test]
fn the_blocks_made_by_hand_say_what_they_claim() {
    // h2's decoder reads them: OK_HEAD_BLOCK and OK_TRAILERS_BLOCK.
    assert_eq!(
        Srv::outside().ask(call(1, "Echo", b"")),
        ["1 200 content-type=application/grpc", "1 DATA 5", "1 grpc-status=0 END"]
    );
}

#[test]
fn padding_is_taken_off() {
    let mut srv = Srv::outside();
    let message = grpc(b"padded");
    srv.recv(request(1, "Echo"));
    srv.recv(padded(0, 1, &message[..3], b"", 0));
    srv.recv(padded(0, 1, b"", &[0; 255], 255));
    assert_eq!(srv.ask(padded(END_STREAM, 1, &message[3..], &[0; 7], 7)), ok(1, 6));
    assert_eq!(srv.bodies[&1], message);

    let fields = &request(3, "Echo")[9..];
    let head = [&[4][..], fields, &[0; 4]].concat();
    srv.recv(frame(HEADERS, END_HEADERS | PADDED, 3, &head));
    assert_eq!(srv.ask(data(END_STREAM, 3, &grpc(b"x"))), ok(3, 1));
}

#[test]
fn padding_uses_the_window_too() {
    let mut srv = Srv::outside();
    srv.recv([request(1, "Echo"), data(0, 1, &[0, 0, 1, 0, 0])].concat());
    let mut used_bytes = 5;
    while srv.said().is_empty() {
        srv.recv(padded(0, 1, b"x", &[0; 255], 255));
        used_bytes += 257;
    }
    let half = OUTSIDE.stream_window_bytes / 2;
    assert!((half..half + 257).contains(&used_bytes), "given back after {used_bytes}");
}

#[test]
fn padding_longer_than_its_frame_ends_the_connection() {
    for (bytes, padding_bytes) in [(&b""[..], 1), (b"abc", 4), (b"abc", 255)] {
        let mut srv = Srv::outside();
        srv.recv(request(1, "Echo"));
        assert_eq!(srv.ask(padded(0, 1, bytes, b"", padding_bytes)), ["GOAWAY 1 PROTOCOL_ERROR"]);
    }
    let mut srv = Srv::outside();
    srv.recv(request(1, "Echo"));
    assert_eq!(srv.ask(frame(0, PADDED, 1, b"")), ["GOAWAY 1 PROTOCOL_ERROR"], "not even the length");
}

#[test]
fn trailers_end_a_request() {
    let mut srv = Srv::outside();
    srv.recv([request(1, "Echo"), data(0, 1, &grpc(b"x"))].concat());
    assert_eq!(srv.ask(headers(END_STREAM, 1, &[("some", "trailer")])), ok(1, 1));
    srv.recv([request(3, "Echo"), data(0, 3, &grpc(b"x"))].concat());
    assert_eq!(srv.ask(headers(0, 3, &[("some", "trailer")])), ["3 RESET PROTOCOL_ERROR"]);
    srv.recv([request(5, "Echo"), data(0, 5, &grpc(b"x"))].concat());
    assert_eq!(srv.ask(headers(END_STREAM, 5, &[(":path", "/again")])), ["5 RESET PROTOCOL_ERROR"]);
}

#[test]
fn a_content_length_must_be_true() {
    let message = grpc(b"12345");
    let said = |length: &[&str], parts: &[&[u8]]| {
        let mut srv = Srv::outside();
        let fields: Vec<_> = length.iter().map(|length| ("content-length", *length)).collect();
        srv.recv(request_with(1, "Echo", &fields));
        for (index, part) in parts.iter().enumerate() {
            srv.recv(data(if index + 1 == parts.len() { END_STREAM } else { 0 }, 1, part));
        }
        srv.said()
    };
    assert_eq!(said(&["10"], &[&message]), ok(1, 5));
    assert_eq!(said(&["10"], &[&message[..3], &message[3..]]), ok(1, 5));
    assert_eq!(said(&["10", "10"], &[&message]), ok(1, 5));
    for wrong in [&["9"][..], &["11"], &["10", "11"], &["ten"], &["-1"], &["99999999999999999999"]] {
        assert_eq!(said(wrong, &[&message]), ["1 RESET PROTOCOL_ERROR"], "{wrong:?}");
    }
    assert_eq!(said(&["9"], &[&message, b""]), ["1 RESET PROTOCOL_ERROR"], "too long before its end");
}

#[test]
fn a_request_lacks_nothing_and_has_nothing_twice() {
    let legal = [(":method", "POST"), (":scheme", "http"), (":path", "/t/Echo"), ("content-type", "application/grpc")];
    let mut srv = Srv::outside();
    for (index, missing) in legal[..3].iter().enumerate() {
        let id = index as u32 * 2 + 1;
        let fields: Vec<_> = legal.iter().filter(|field| *field != missing).copied().collect();
        assert_eq!(srv.ask(headers(END_STREAM, id, &fields)), [format!("{id} RESET PROTOCOL_ERROR")], "{missing:?}");
    }
    for (index, more) in
        [(":path", "/t/Fail"), (":status", "200"), ("connection", "close"), ("te", "gzip"), ("late", "x ")]
            .into_iter()
            .enumerate()
    {
        let id = index as u32 * 2 + 101;
        let fields: Vec<_> = legal[..3].iter().copied().chain([more]).chain([legal[3]]).collect();
        assert_eq!(srv.ask(headers(END_STREAM, id, &fields)), [format!("{id} RESET PROTOCOL_ERROR")], "{more:?}");
    }
    assert_eq!(srv.ask(call(201, "Echo", b"x")), ok(201, 1), "the connection has not suffered");
}

#[test]
fn frames_on_streams_that_never_were_end_the_connection() {
    let all = [
        data(0, 1, b"x"),
        window_update(1, 1),
        reset(1),
        reset(0),
        data(0, 0, b"x"),
        data(0, 2, b"x"),
        headers(0, 2, &[]),
        window_update(2, 1),
        frame(CONTINUATION, END_HEADERS, 1, b""),
        frame(5, END_HEADERS, 1, &[0, 0, 0, 2]),
    ];
    for bytes in all {
        let mut srv = Srv::outside();
        assert_eq!(srv.ask(&bytes), ["GOAWAY 0 PROTOCOL_ERROR"], "{bytes:?}");
    }
}

#[test]
fn frames_on_a_stream_that_has_ended_are_faults_or_late() {
    let ended = || {
        let mut srv = Srv::outside();
        assert_eq!(srv.ask(call(1, "Echo", b"x")), ok(1, 1));
        srv
    };
    assert_eq!(ended().ask(data(0, 1, b"x")), ["1 RESET STREAM_CLOSED"]);
    assert_eq!(ended().ask(headers(END_STREAM, 1, &[])), ["GOAWAY 1 STREAM_CLOSED"]);
    assert!(ended().ask(window_update(1, 1)).is_empty());
    assert!(ended().ask(reset(1)).is_empty());
    assert_eq!(ended().ask(frame(RST_STREAM, 0, 1, b"")), ["GOAWAY 1 FRAME_SIZE_ERROR"]);

    let waiting = || {
        let mut srv = Srv::outside();
        srv.recv(call(1, "Read", b"x"));
        srv
    };
    assert_eq!(waiting().ask(data(0, 1, b"x")), ["1 RESET STREAM_CLOSED"]);
    assert_eq!(waiting().ask(headers(END_STREAM, 1, &[])), ["1 RESET STREAM_CLOSED"]);
}

#[test]
fn what_crosses_with_our_reset_is_no_fault() {
    let mut srv = Srv::outside();
    assert_failed(&srv.ask(request(1, "Nothing")), 1, 12);
    assert!(srv.ask(data(0, 1, &pattern(100))).is_empty());
    assert!(srv.ask(headers(END_STREAM, 1, &[("late", "trailer")])).is_empty());
    assert_eq!(srv.ask(call(3, "Echo", b"x")), ok(3, 1));
}

#[test]
fn numbers_only_grow() {
    let mut srv = Srv::outside();
    srv.recv(call(5, "Echo", b"x"));
    srv.said();
    assert_eq!(srv.ask(call(3, "Echo", b"x")), ["GOAWAY 5 PROTOCOL_ERROR"]);
}

#[test]
fn nothing_comes_between_the_parts_of_a_header_block() {
    let fields = block(&[(":method", "POST"), (":scheme", "http"), (":path", "/t/Echo")]);
    let begin = |srv: &mut Srv| srv.recv(frame(HEADERS, 0, 1, &fields[..20]));
    for between in [data(0, 1, b"x"), frame(CONTINUATION, END_HEADERS, 3, b""), frame(200, 0, 0, b"")] {
        let mut srv = Srv::outside();
        begin(&mut srv);
        assert_eq!(srv.ask(between), ["GOAWAY 0 PROTOCOL_ERROR"]);
    }
    let mut srv = Srv::outside();
    begin(&mut srv);
    let rest = [&fields[20..], &block(&[("content-type", "application/grpc")])].concat();
    srv.recv(frame(CONTINUATION, 0, 1, &rest[..5]));
    srv.recv(frame(CONTINUATION, END_HEADERS, 1, &rest[5..]));
    assert_eq!(srv.ask(data(END_STREAM, 1, &grpc(b"x"))), ok(1, 1));
}
