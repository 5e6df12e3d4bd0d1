//! Messages of every size, cut everywhere, many at once, and to a peer that reads slowly.

use milena_net::http2::limits::{OUTBOX_BYTES_MAX, OUTSIDE, Profile};

use crate::{
    assert_failed,
    frames::{END_STREAM, INITIAL_WINDOW_SIZE, call, data, grpc, request, request_with, settings, window_update},
    ok,
    script::{MESSAGE_BYTES_MAX, Srv, pattern},
};

/// As [`OUTSIDE`], but it holds little.
static TIGHT: Profile = Profile {
    streams_max: 16,
    stream_window_bytes: OUTSIDE.stream_window_bytes,
    connection_window_bytes: OUTSIDE.connection_window_bytes,
    frame_bytes_max: OUTSIDE.frame_bytes_max,
    header_list_bytes_max: OUTSIDE.header_list_bytes_max,
    held_bytes_max: 100_000,
    resting_bytes_max: OUTSIDE.resting_bytes_max,
    resets: OUTSIDE.resets,
    idle_frames: OUTSIDE.idle_frames,
    handshake: OUTSIDE.handshake,
    write_stall: OUTSIDE.write_stall,
};

fn size(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap().to_be_bytes()
}

/// A server whose peer has windows of this size for streams, and a wide one for the connection.
fn with_stream_windows(bytes: u32) -> Srv {
    let mut srv = Srv::outside();
    srv.recv(window_update(0, 1 << 30));
    assert_eq!(srv.ask(settings(&[(INITIAL_WINDOW_SIZE, bytes)])), ["ACK"]);
    srv
}

#[test]
fn a_message_of_every_size_comes_back() {
    let mut srv = with_stream_windows(1 << 30);
    for (index, bytes) in [0, 1, 16_378, 16_379, 16_383, 16_384, 16_385, 65_535, 5 << 20].into_iter().enumerate() {
        let id = index as u32 * 2 + 1;
        srv.recv(request(id, "Echo"));
        let message = grpc(&pattern(bytes));
        let parts: Vec<_> = message.chunks(16 << 10).collect();
        for (index, part) in parts.iter().enumerate() {
            srv.recv(data(if index + 1 == parts.len() { END_STREAM } else { 0 }, id, part));
        }
        let said = srv.said();
        assert_eq!(said.last().unwrap(), &format!("{id} grpc-status=0 END"), "{bytes} bytes");
        assert!(srv.bodies[&id] == message, "{bytes} bytes");
    }
}

#[test]
fn a_message_may_be_cut_anywhere() {
    let message = grpc(b"cut anywhere");
    let mut srv = Srv::outside();
    for cut in 0..=message.len() {
        let id = cut as u32 * 2 + 1;
        srv.recv(request(id, "Echo"));
        srv.recv(data(0, id, &message[..cut]));
        let said = srv.ask(data(END_STREAM, id, &message[cut..]));
        assert_eq!(said, ok(id, 12), "cut at {cut}");
        assert_eq!(srv.bodies[&id], message);
    }
    let id = 101;
    srv.recv(request(id, "Echo"));
    for byte in &message {
        srv.recv(data(0, id, &[*byte]));
    }
    assert_eq!(srv.ask(data(END_STREAM, id, b"")), ok(id, 12));
}

#[test]
fn segments_mean_nothing() {
    let whole = [call(1, "Echo", b"first"), call(3, "Echo", b""), call(5, "Fail", b"x"), call(7, "Echo", b"last")];
    let whole = whole.concat();
    let expected = Srv::outside().ask(&whole);
    assert_eq!(expected.len(), 10, "{expected:?}");
    for segment_bytes in [1, 2, 3, 7, 8, 9, 10, 100] {
        let mut srv = Srv::outside();
        whole.chunks(segment_bytes).for_each(|segment| srv.recv(segment));
        assert_eq!(srv.said(), expected, "{segment_bytes} bytes at once");
    }
}

#[test]
fn a_thousand_streams_are_open_at_once() {
    let mut srv = Srv::outside();
    let ids = || (0..1000).map(|index| index * 2 + 1);
    srv.recv(ids().flat_map(|id| call(id, "Read", &id.to_be_bytes())).collect::<Vec<u8>>());
    assert_eq!(srv.conversation.connection().stream_count(), 1000);
    assert!(srv.said().is_empty());
    srv.release();
    let said = srv.said();
    assert_eq!(said.len(), 3000);
    for id in ids() {
        assert_eq!(srv.bodies[&id], grpc(&id.to_be_bytes()));
    }
    assert_eq!(srv.conversation.connection().stream_count(), 0);
}

#[test]
fn what_a_stream_window_does_not_allow_waits_for_it() {
    let mut srv = with_stream_windows(10);
    assert_eq!(srv.ask(call(1, "Size", &size(100))), ["1 200 content-type=application/grpc", "1 DATA 5", "1 DATA 5"]);
    assert_eq!(srv.ask(window_update(1, 3)), ["1 DATA 3"]);
    assert!(srv.ask(window_update(0, 1000)).is_empty(), "the connection's window was not the matter");
    // Minus 4: what was sent stays sent (section 6.9.2).
    assert_eq!(srv.ask(settings(&[(INITIAL_WINDOW_SIZE, 6)])), ["ACK"]);
    assert!(srv.ask(window_update(1, 4)).is_empty(), "at zero");
    assert_eq!(srv.ask(window_update(1, 1)), ["1 DATA 1"]);
    assert_eq!(srv.ask(settings(&[(INITIAL_WINDOW_SIZE, 16)])), ["ACK", "1 DATA 10"]);
    assert_eq!(srv.ask(window_update(1, 1000)), ["1 DATA 81", "1 grpc-status=0 END"]);
    assert_eq!(srv.bodies[&1], grpc(&pattern(100)));
}

#[test]
fn a_window_of_nothing_holds_back_no_trailers_of_an_empty_body() {
    let mut srv = with_stream_windows(0);
    assert_failed(&srv.ask(call(1, "Fail", b"")), 1, 5);
    assert_eq!(srv.ask(call(3, "Echo", b"")), ["3 200 content-type=application/grpc"]);
    assert_eq!(srv.ask(window_update(3, 5)), ["3 DATA 5", "3 grpc-status=0 END"]);
}

#[test]
fn what_the_connections_window_does_not_allow_waits_for_it_in_turn() {
    let mut srv = Srv::outside();
    srv.recv(settings(&[(INITIAL_WINDOW_SIZE, 1 << 20)]));
    srv.recv([call(1, "Size", &size(100_000)), call(3, "Size", &size(100_000))].concat());
    srv.said();
    let sent = |srv: &Srv| srv.bodies.values().map(Vec::len).sum::<usize>();
    assert_eq!(sent(&srv), 65_535);
    srv.recv(window_update(0, 64 << 10));
    srv.said();
    assert_eq!(sent(&srv), 65_535 + (64 << 10));
    assert!(srv.bodies[&3].len() > 16_000, "both streams have had their turn");
    srv.recv(window_update(0, 1 << 20));
    srv.said();
    for id in [1, 3] {
        assert!(srv.bodies[&id] == grpc(&pattern(100_000)));
    }
}

#[test]
fn a_peer_that_reads_nothing_makes_us_hold_little_and_read_no_more() {
    let mut srv = with_stream_windows(1 << 30);
    for index in 0..100 {
        srv.recv(call(index * 2 + 1, "Size", &size(100_000)));
    }
    let connection = srv.conversation.connection();
    let frame_bytes = 9 + OUTSIDE.frame_bytes_max as usize;
    // Heads are small and go out at once; everything else waits as references to values.
    let heads_bytes = 100 * 100;
    assert!(connection.outbox().len() < OUTBOX_BYTES_MAX + frame_bytes + heads_bytes);
    assert!(!connection.wants_bytes());
    assert!(connection.backlog_bytes() > 9_000_000);
    // The socket takes a little at a time, and all of it comes.
    let mut taken = Vec::new();
    loop {
        let bytes = srv.take(50_000);
        if bytes.is_empty() {
            break;
        }
        assert!(srv.conversation.connection().outbox().len() < OUTBOX_BYTES_MAX + frame_bytes + heads_bytes);
        taken.extend(bytes);
    }
    assert!(taken.len() > 100 * 100_000);
    assert_eq!(srv.conversation.connection().backlog_bytes(), 0);
    assert!(srv.conversation.connection().wants_bytes());
}

/// A server that holds 100,000 bytes for a peer that has no window yet.
fn with_no_window() -> Srv {
    let mut srv = Srv::greeted(&TIGHT);
    assert_eq!(srv.ask(settings(&[(INITIAL_WINDOW_SIZE, 0)])), ["ACK"]);
    srv
}

fn open_windows(srv: &mut Srv) -> Vec<String> {
    srv.recv(window_update(0, 1 << 20));
    srv.recv(settings(&[(INITIAL_WINDOW_SIZE, 1 << 20)]));
    let mut said = srv.said();
    while srv.conversation.can_resume() {
        srv.turn();
        said.extend(srv.said());
    }
    said
}

#[test]
fn a_large_answer_waits_until_those_before_it_are_read_and_a_small_one_does_not() {
    let mut srv = with_no_window();
    for id in [1, 3, 5, 7] {
        srv.recv(call(id, "Size", &size(90_000)));
    }
    srv.recv(call(9, "Size", &size(10_000)));
    assert_eq!(srv.said(), ["1 200 content-type=application/grpc", "9 200 content-type=application/grpc"]);
    assert_eq!(srv.conversation.connection().backlog_bytes(), 100_010);
    open_windows(&mut srv);
    for id in [1, 3, 5, 7] {
        assert!(srv.bodies[&id] == grpc(&pattern(90_000)), "{id}");
    }
    assert_eq!(srv.conversation.connection().stream_count(), 0);
}

#[test]
fn a_call_that_waited_for_its_value_waits_for_room_too() {
    let mut srv = with_no_window();
    // One message in two frames each, because frames end at 16 KiB.
    let message = grpc(&pattern(60_000));
    for id in [1, 3] {
        srv.recv(request(id, "Read"));
        let mut parts = message.chunks(16_000).peekable();
        while let Some(part) = parts.next() {
            srv.recv(data(if parts.peek().is_none() { END_STREAM } else { 0 }, id, part));
        }
    }
    srv.recv(call(5, "Write", b"w"));
    srv.said();
    srv.release();
    // A write that was done is told of, and the first of the reads; the other one is called again when there is room.
    assert_eq!(srv.said().len(), 2);
    open_windows(&mut srv);
    assert!(srv.bodies[&1] == message && srv.bodies[&3] == message);
    assert_eq!(srv.log(), ["Read done", "Read done", "Write done", "Read done"]);
}

#[test]
fn an_answer_larger_than_all_the_room_there_is_goes_out_alone() {
    let mut srv = with_no_window();
    srv.recv(call(1, "Size", &size(300_000)));
    srv.recv(call(3, "Size", &size(300_000)));
    assert_eq!(srv.said(), ["1 200 content-type=application/grpc"]);
    open_windows(&mut srv);
    assert!(srv.bodies[&1] == grpc(&pattern(300_000)) && srv.bodies[&3] == grpc(&pattern(300_000)));
}

#[test]
fn whoever_waits_for_room_may_go_and_its_deadline_holds() {
    let mut srv = with_no_window();
    srv.recv(call(1, "Size", &size(90_000)));
    srv.recv(call(3, "Size", &size(90_000)));
    let timeout = [("grpc-timeout", "50m")];
    srv.recv([request_with(5, "Size", &timeout), data(END_STREAM, 5, &grpc(&size(90_000)))].concat());
    srv.said();
    srv.recv(crate::frames::reset(3));
    assert!(srv.wait(std::time::Duration::from_millis(51)));
    assert_failed(&srv.said(), 5, 4);
    let said = open_windows(&mut srv);
    assert!(said.iter().all(|line| !line.starts_with('3') && !line.starts_with('5')), "{said:?}");
    assert_eq!(srv.conversation.connection().stream_count(), 0);
    assert!(srv.ask(call(7, "Size", &size(90_000))).len() > 2);
}

#[test]
fn requests_that_never_end_are_not_piled_up_for_ever() {
    let mut srv = Srv::greeted(&TIGHT);
    let half = grpc(&pattern(40_000))[..16_000].to_vec();
    for index in 0..6 {
        let id = index * 2 + 1;
        assert!(srv.ask([request(id, "Echo"), data(0, id, &half)].concat()).is_empty());
    }
    let said = srv.ask([request(13, "Echo"), data(0, 13, &half)].concat());
    assert_failed(&said, 13, 8);
    // Whoever gives one up has room for another one.
    srv.recv(crate::frames::reset(1));
    assert!(srv.ask([request(15, "Echo"), data(0, 15, &half)].concat()).is_empty());
}

#[test]
fn a_message_too_large_is_refused_by_its_prefix() {
    let mut srv = Srv::outside();
    let prefix = [&[0][..], &size(MESSAGE_BYTES_MAX + 1)].concat();
    assert_failed(&srv.ask([request(1, "Echo"), data(0, 1, &prefix)].concat()), 1, 8);
    assert!(srv.ask(data(0, 1, b"what crossed with the answer")).is_empty());
    assert_eq!(srv.ask(call(3, "Echo", b"x")), ok(3, 1));
}

#[test]
fn windows_are_given_back_as_requests_come_in() {
    let mut srv = Srv::outside();
    srv.recv(request(1, "Echo"));
    let message = grpc(&pattern(5 << 20));
    let mut windows = [0_u32; 2];
    for part in message.chunks(16 << 10) {
        srv.recv(data(0, 1, part));
        for line in srv.said() {
            windows[usize::from(line == "WINDOW 1")] += 1;
        }
    }
    // Half a window at a time: 5 MiB are ten halves of 1 MiB, and one of 8 MiB.
    assert_eq!(windows, [1, 10]);
}

#[test]
fn five_thousand_small_answers_go_over_one_link() {
    let mut srv = Srv::link();
    srv.recv(window_update(0, 1 << 20));
    for round in 0..5 {
        let ids = (0..1000).map(|index| (round * 1000 + index) * 2 + 1);
        let said = srv.ask(ids.clone().flat_map(|id| call(id, "Echo", b"small")).collect::<Vec<u8>>());
        assert_eq!(said.iter().filter(|line| line.ends_with(" grpc-status=0 END")).count(), 1000);
        assert!(ids.into_iter().all(|id| srv.bodies[&id] == grpc(b"small")));
    }
}
