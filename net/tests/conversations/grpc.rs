//! gRPC as PROTOCOL-HTTP2.md and its neighbours have it.

use milena_proto::{
    grpc_health_v1::{HealthCheckRequest, HealthCheckResponse},
    grpc_reflection_v1::{
        ServerReflectionRequest, ServerReflectionResponse, server_reflection_request::MessageRequest,
        server_reflection_response::MessageResponse,
    },
};
use prost::Message as _;

use crate::{
    assert_failed,
    frames::{
        END_STREAM, Fields, INITIAL_WINDOW_SIZE, call, data, grpc, headers, request, request_with, reset, settings,
        window_update,
    },
    ok,
    script::Srv,
};

fn head(id: u32, flags: u8, fields: Fields<'_>) -> Vec<u8> {
    headers(flags, id, &[&[(":scheme", "http"), (":authority", "here")], fields].concat())
}

fn at(id: u32, path: &str, message: &[u8]) -> Vec<u8> {
    let fields = [(":method", "POST"), (":path", path), ("content-type", "application/grpc")];
    [head(id, 0, &fields), data(END_STREAM, id, &grpc(message))].concat()
}

#[test]
fn anything_but_post_is_405() {
    let mut srv = Srv::outside();
    let get = [(":method", "GET"), (":path", "/t/Echo"), ("content-type", "application/grpc")];
    assert_eq!(srv.ask(head(1, END_STREAM, &get)), ["1 405 END"]);
}

#[test]
fn anything_but_grpc_is_415() {
    let mut srv = Srv::outside();
    let mut id = 1;
    let mut said = |content_type: Option<&str>| {
        let mut fields = vec![(":method", "POST"), (":path", "/t/Echo")];
        fields.extend(content_type.map(|content_type| ("content-type", content_type)));
        id += 2;
        let said = srv.ask([head(id, 0, &fields), data(END_STREAM, id, &grpc(b"x"))].concat());
        (said, id)
    };
    for taken in ["application/grpc", "application/grpc+proto", "application/grpc;a=b", "application/grpc+proto; a=b"] {
        let (said, id) = said(Some(taken));
        assert_eq!(said, ok(id, 1), "{taken}");
    }
    for refused in [
        None,
        Some(""),
        Some("application/json"),
        Some("application/grpc-web"),
        Some("application/grpc-web+proto"),
        Some("application/grpc+json"),
        Some("application/grpc+protobuf"),
        Some("application/grpcx"),
    ] {
        let (said, id) = said(refused);
        assert_eq!(said, [format!("{id} 415 END"), format!("{id} RESET NO_ERROR")], "{refused:?}");
    }
}

#[test]
fn a_method_that_is_not_here_is_unimplemented() {
    let mut srv = Srv::outside();
    for (index, path) in ["/t/Nothing", "/nobody/Echo", "/", "*", "/t/Echo/", "/t/echo"].iter().enumerate() {
        let id = index as u32 * 2 + 1;
        assert_failed(&srv.ask(at(id, path, b"x")), id, 12);
    }
}

#[test]
fn a_unary_call_has_one_message() {
    let mut srv = Srv::outside();
    assert_failed(&srv.ask([request(1, "Echo"), data(END_STREAM, 1, b"")].concat()), 1, 12);
    assert_failed(
        &srv.ask(head(
            3,
            END_STREAM,
            &[(":method", "POST"), (":path", "/t/Echo"), ("content-type", "application/grpc")],
        )),
        3,
        12,
    );
    assert_failed(&srv.ask([request(5, "Echo"), data(END_STREAM, 5, &grpc(b"a").repeat(2))].concat()), 5, 12);
    srv.recv([request(7, "Echo"), data(0, 7, &grpc(b"a"))].concat());
    assert!(srv.said().is_empty(), "the end is missing");
    assert_failed(&srv.ask(data(0, 7, &grpc(b"b"))), 7, 12);
    assert_eq!(srv.ask(call(9, "Echo", b"")), ok(9, 0), "an empty message is one");
}

#[test]
fn a_request_that_ends_within_a_message_is_internal() {
    let mut srv = Srv::outside();
    let message = grpc(b"whole");
    for end in 1..message.len() {
        let id = end as u32 * 2 + 1;
        assert_failed(&srv.ask([request(id, "Echo"), data(END_STREAM, id, &message[..end])].concat()), id, 13);
    }
}

#[test]
fn nothing_is_compressed() {
    let mut srv = Srv::outside();
    let compressed = [1, 0, 0, 0, 1, b'x'];
    let mut said = |id, encoding: Fields<'_>, flag| {
        let message = [&[flag], &compressed[1..]].concat();
        srv.ask([request_with(id, "Echo", encoding), data(END_STREAM, id, &message)].concat())
    };
    assert_failed(&said(1, &[], 1), 1, 13);
    assert_failed(&said(3, &[("grpc-encoding", "identity")], 1), 3, 13);
    let unsupported = said(5, &[("grpc-encoding", "gzip")], 1);
    assert_failed(&unsupported, 5, 12);
    assert!(unsupported[0].contains(" grpc-accept-encoding=identity "), "{unsupported:?}");
    assert_eq!(said(7, &[("grpc-encoding", "gzip")], 0), ok(7, 1), "a client may announce it and not do it");
    assert_failed(&said(9, &[], 2), 9, 13);
}

#[test]
fn text_is_percent_encoded() {
    let said = Srv::outside().ask(call(1, "Fail", b""));
    assert_eq!(
        said,
        ["1 200 grpc-status=5 grpc-message=100 %25 %C3%BCn%C3%AFcode%0A content-type=application/grpc END"]
    );
}

#[test]
fn who_is_answered_before_the_end_need_not_go_on() {
    let mut srv = Srv::outside();
    let said = srv.ask(request(1, "Nothing"));
    assert_failed(&said, 1, 12);
    assert_eq!(said[1], "1 RESET NO_ERROR");
}

// ---- health, reflection, watches ----

fn check(service: &str) -> Vec<u8> {
    HealthCheckRequest { service: service.to_owned() }.encode_to_vec()
}

fn states(body: &[u8]) -> Vec<i32> {
    let mut rest = body;
    let mut states = Vec::new();
    while let [0, a, b, c, d, more @ ..] = rest {
        let (message, after) = more.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        states.push(HealthCheckResponse::decode(message).unwrap().status);
        rest = after;
    }
    states
}

#[test]
fn health_is_answered_on_every_connection() {
    let mut srv = Srv::outside();
    srv.health.set_all(true);
    srv.ask(at(1, "/grpc.health.v1.Health/Check", &check("t")));
    assert_eq!(states(&srv.bodies[&1]), [1]);
    assert_failed(&srv.ask(at(3, "/grpc.health.v1.Health/Check", &check("nobody"))), 3, 5);
    assert_failed(&srv.ask(at(5, "/grpc.health.v1.Health/Check", b"\xff")), 5, 13);
    srv.recv(at(7, "/grpc.health.v1.Health/Watch", &check("t")));
    srv.recv(at(9, "/grpc.health.v1.Health/Watch", &check("nobody")));
    srv.turn();
    srv.health.set_all(false);
    srv.turn();
    srv.health.set_all(true);
    srv.turn();
    srv.said();
    assert_eq!((states(&srv.bodies[&7]), states(&srv.bodies[&9])), (vec![1, 2, 1], vec![3]));
    srv.recv(reset(7));
    srv.health.set_all(false);
    srv.turn();
    assert!(srv.said().is_empty());
}

#[test]
fn a_watch_that_is_not_read_is_told_the_newest_when_it_is() {
    let mut srv = Srv::outside();
    srv.recv(settings(&[(INITIAL_WINDOW_SIZE, 12)]));
    srv.said();
    assert_eq!(srv.ask(call(1, "Watch", b"")), ["1 200 content-type=application/grpc", "1 DATA 10"]);
    srv.publish("second");
    assert_eq!(srv.said(), ["1 DATA 2"]);
    srv.publish("third");
    srv.publish("fourth");
    assert!(srv.said().is_empty());
    srv.recv(window_update(1, 100));
    srv.said();
    assert_eq!(srv.bodies[&1], [grpc(b"first"), grpc(b"second"), grpc(b"fourth")].concat());
}

#[test]
fn reflection_answers_each_question_of_a_stream() {
    let question = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let question = grpc(&question.encode_to_vec());
    for path in milena_proto::method::REFLECTION_PATHS {
        let mut srv = Srv::outside();
        srv.recv(head(1, 0, &[(":method", "POST"), (":path", path), ("content-type", "application/grpc")]));
        assert!(srv.said().is_empty());
        let said = srv.ask(data(0, 1, &question));
        assert!(said.len() == 2 && said[0] == "1 200 content-type=application/grpc", "{said:?}");
        assert_eq!(srv.ask(data(0, 1, &question.repeat(2))).len(), 2);
        assert_eq!(srv.ask(data(END_STREAM, 1, b"")), ["1 grpc-status=0 END"]);
        let first_bytes = u32::from_be_bytes(srv.bodies[&1][1..5].try_into().unwrap()) as usize;
        let first = ServerReflectionResponse::decode(&srv.bodies[&1][5..5 + first_bytes]).unwrap();
        assert!(matches!(first.message_response, Some(MessageResponse::ListServicesResponse(_))), "{first:?}");
        assert_eq!(srv.bodies[&1].len(), 3 * (5 + first_bytes));
    }
}

#[test]
fn a_drain_ends_a_reflection_stream_that_asks_nothing_more() {
    let mut srv = Srv::outside();
    let path = milena_proto::method::REFLECTION_PATHS[0];
    for id in [1, 3] {
        srv.recv(head(id, 0, &[(":method", "POST"), (":path", path), ("content-type", "application/grpc")]));
    }
    srv.recv(data(0, 3, &[0, 0, 0])); // A question that has begun is waited for.
    srv.said();
    srv.conversation.begin_drain();
    let said = srv.said();
    assert_eq!(
        said[2..],
        ["1 200 content-type=application/grpc", "1 grpc-status=0 END", "1 RESET NO_ERROR"],
        "{said:?}"
    );
}
