//! How calls and connections end before their time: cancels, deadlines, drains.

use std::{
    task::{Context, Waker},
    time::Duration,
};

use crate::{
    assert_failed,
    frames::{
        ACK, END_STREAM, INITIAL_WINDOW_SIZE, call, data, grpc, ping, request, request_with, reset, settings,
        window_update,
    },
    ok,
    script::Srv,
};

fn with_timeout(id: u32, method: &str, timeout: &str) -> Vec<u8> {
    [request_with(id, method, &[("grpc-timeout", timeout)]), data(END_STREAM, id, &grpc(b"x"))].concat()
}

// ---- cancels ----

#[test]
fn a_call_may_be_cancelled_before_and_within_its_message() {
    let mut srv = Srv::outside();
    srv.recv([request(1, "Echo"), reset(1)].concat());
    srv.recv([request(3, "Echo"), data(0, 3, &grpc(b"half of it")[..7]), reset(3)].concat());
    srv.recv([request(5, "Echo"), data(0, 5, &grpc(b"all but the end")), reset(5)].concat());
    assert!(srv.said().is_empty());
    assert_eq!(srv.conversation.connection().stream_count(), 0);
    assert_eq!(srv.ask(call(7, "Echo", b"x")), ok(7, 1));
}

#[test]
fn a_read_that_is_cancelled_is_dropped_where_it_waits_and_a_write_runs_to_its_end() {
    let mut srv = Srv::outside();
    srv.recv([call(1, "Read", b"r"), call(3, "Write", b"w")].concat());
    srv.recv([reset(1), reset(3)].concat());
    assert_eq!(srv.log(), ["Read dropped"]);
    srv.release();
    assert_eq!(srv.log(), ["Write done"]);
    assert!(srv.said().is_empty(), "nobody is there to be told");
}

#[test]
fn an_answer_that_waits_goes_with_its_caller() {
    let mut srv = Srv::outside();
    srv.recv(settings(&[(INITIAL_WINDOW_SIZE, 0)]));
    srv.recv(call(1, "Echo", b"nobody reads this"));
    srv.said();
    assert_eq!(srv.conversation.connection().backlog_bytes(), 22);
    srv.recv(reset(1));
    assert_eq!(srv.conversation.connection().backlog_bytes(), 0);
    srv.recv(settings(&[(INITIAL_WINDOW_SIZE, 100)]));
    assert_eq!(srv.said(), ["ACK"]);
    assert_eq!(srv.ask(call(3, "Echo", b"x")), ok(3, 1));
}

#[test]
fn with_the_connection_reads_are_dropped_and_writes_run_to_their_end() {
    let mut srv = Srv::outside();
    srv.recv([call(1, "Read", b"r"), call(3, "Write", b"w")].concat());
    srv.conversation.drop_reads();
    assert_eq!(srv.log(), ["Read dropped"]);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(srv.conversation.poll_writes(&mut cx).is_pending());
    srv.release();
    assert!(srv.conversation.poll_writes(&mut cx).is_ready());
    assert_eq!(srv.log(), ["Write done"]);
}

// ---- deadlines ----

#[test]
fn a_call_whose_deadline_has_passed_on_arrival_is_not_begun() {
    let mut srv = Srv::outside();
    assert_failed(&srv.ask(with_timeout(1, "Write", "0n")), 1, 4);
    assert!(srv.log().is_empty());
}

#[test]
fn at_the_deadline_a_read_is_dropped_and_a_write_only_loses_its_answer() {
    let mut srv = Srv::outside();
    srv.recv(with_timeout(1, "Read", "50m"));
    srv.recv(with_timeout(3, "Write", "100m"));
    srv.recv(with_timeout(5, "Read", "1H"));
    assert_eq!(srv.conversation.due(), Some(srv.now + Duration::from_millis(50)));
    assert!(srv.wait(Duration::from_millis(49)) && srv.said().is_empty());
    assert!(srv.wait(Duration::from_millis(1)));
    assert_failed(&srv.said(), 1, 4);
    assert_eq!(srv.log(), ["Read dropped"]);
    assert_eq!(srv.conversation.due(), Some(srv.now + Duration::from_millis(50)));
    assert!(srv.wait(Duration::from_millis(50)));
    assert_failed(&srv.said(), 3, 4);
    assert!(srv.log().is_empty());
    srv.release();
    assert_eq!(srv.log(), ["Write done", "Read done"]);
    assert_eq!(srv.said(), ok(5, 1));
}

#[test]
fn the_clock_runs_while_a_request_comes_in() {
    let mut srv = Srv::outside();
    srv.recv(request_with(1, "Write", &[("grpc-timeout", "1S")]));
    srv.recv(data(0, 1, &grpc(b"half")[..7]));
    assert!(srv.wait(Duration::from_secs(1)));
    assert_failed(&srv.said(), 1, 4);
    assert!(srv.ask(data(END_STREAM, 1, b"lf")).is_empty(), "what crossed with the answer is no fault");
    assert_eq!(srv.ask(call(3, "Echo", b"x")), ok(3, 1));
}

#[test]
fn an_answer_that_is_on_its_way_is_not_late() {
    let mut srv = Srv::outside();
    srv.recv(settings(&[(INITIAL_WINDOW_SIZE, 0)]));
    srv.recv(with_timeout(1, "Echo", "1S"));
    srv.said();
    assert!(srv.wait(Duration::from_secs(2)) && srv.said().is_empty());
    assert_eq!(srv.ask(window_update(1, 100)), ["1 DATA 5", "1 DATA 1", "1 grpc-status=0 END"]);
}

#[test]
fn what_is_no_timeout_is_no_deadline() {
    let mut srv = Srv::outside();
    for (index, timeout) in ["", "S", "1", "-1S", "123456789S", "1 S", "soon"].iter().enumerate() {
        let id = index as u32 * 2 + 1;
        assert_eq!(srv.ask(with_timeout(id, "Echo", timeout)), ok(id, 1), "{timeout:?}");
    }
    assert_eq!(srv.conversation.due(), None);
}

// ---- drains ----

#[test]
fn a_drain_has_two_steps_and_loses_nothing() {
    let mut srv = Srv::outside();
    srv.recv(call(1, "Read", b"r"));
    srv.conversation.connection().begin_drain();
    assert_eq!(srv.said(), ["GOAWAY 2147483647 NO_ERROR", "PING mldrain\0"]);
    // On its way before the client could know.
    assert_eq!(srv.ask(call(3, "Echo", b"x")), ok(3, 1));
    assert_eq!(srv.ask(ping(ACK, b"mldrain\0")), ["GOAWAY 3 NO_ERROR"]);
    assert_eq!(srv.ask(call(5, "Echo", b"x")), ["5 RESET REFUSED_STREAM"]);
    assert!(!srv.is_over());
    srv.release();
    assert_eq!(srv.said(), ok(1, 1));
    assert!(srv.is_over());
}

#[test]
fn a_drain_does_not_wait_for_a_client_that_says_nothing() {
    let mut srv = Srv::outside();
    srv.conversation.connection().begin_drain();
    srv.conversation.connection().begin_drain();
    assert_eq!(srv.said(), ["GOAWAY 2147483647 NO_ERROR", "PING mldrain\0"]);
    assert!(!srv.is_over());
    srv.conversation.connection().finish_drain();
    assert_eq!(srv.said(), ["GOAWAY 0 NO_ERROR"]);
    assert!(srv.is_over());
    assert!(srv.ask(ping(ACK, b"mldrain\0")).is_empty(), "the last stream is named once");
}

#[test]
fn a_client_that_goes_away_is_answered_first() {
    let mut srv = Srv::outside();
    srv.recv(call(1, "Read", b"r"));
    srv.recv(crate::frames::frame(7, 0, 0, &[0; 8]));
    assert!(!srv.is_over());
    srv.release();
    assert_eq!(srv.said(), ok(1, 1));
    assert!(!srv.is_over(), "the client closes the connection, when it has read all");
}
