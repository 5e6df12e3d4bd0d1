//! Conversations with the server and with the client's side of a connection, frame by frame, without a socket and
//! without a clock.

mod client;
mod ends;
mod frames;
mod framing;
mod grpc;
mod heads;
mod limits;
mod messages;
mod script;

/// The answer of a call that succeeded with a message of this many bytes, in one DATA frame.
fn ok(id: u32, message_bytes: usize) -> [String; 3] {
    [
        format!("{id} 200 content-type=application/grpc"),
        format!("{id} DATA {}", message_bytes + 5),
        format!("{id} grpc-status=0 END"),
    ]
}

/// Whether the server ends a stream with this status, saying nothing else.
#[track_caller]
fn assert_failed(said: &[String], id: u32, code: u32) {
    let [line, rest @ ..] = said else { panic!("nothing was said") };
    let is_status = line.starts_with(&format!("{id} 200 grpc-status={code} "));
    assert!(is_status && line.ends_with(" content-type=application/grpc END"), "{said:?}");
    assert!(rest.is_empty() || rest == [format!("{id} RESET NO_ERROR")], "{said:?}");
}
