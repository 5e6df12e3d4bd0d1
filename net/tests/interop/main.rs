//! Our server and our channel against tonic, over sockets: what one says, the other understands.

mod ours;
mod tonics;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io::{IoSlice, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    pin::pin,
    rc::Rc,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::join_all;
use milena_net::{
    grpc::{
        client::{Answer, CallError, Channel, Done, WHOLE_BYTES_MAX},
        frame::prefix,
        status::Code,
    },
    http2::{
        Connection, RequestHead, Role,
        limits::{LINK, OUTSIDE, Profile},
    },
};
use milena_proto::{
    cache_server::{DeleteRequest, GetRequest, GetResponse, PutRequest},
    grpc_health_v1::HealthCheckRequest,
    method::{CACHE_DELETE, CACHE_GET, CACHE_PUT, HEALTH_CHECK, REFLECTION_PATHS, ROUTER_LEAVE},
};
use prost::Message as _;
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest as TonicHealthCheckRequest, health_client::HealthClient},
};

use self::{
    ours::{CACHE, OurServer, no_hurry, with_channel},
    tonics::{TonicClient, TonicServer, on_tokio},
};

/// Around every boundary there is: nothing, frames, what is copied, windows, the largest value.
const SIZES: [usize; 10] = [0, 1, 16_378, (16 << 10) - 1, 16 << 10, (16 << 10) + 1, 65_535, 1 << 20, 5 << 20, 100];

/// Bytes that tell how many they are. Made by copying: a peer that waits for the end of a slow loop is not the matter.
fn value(size: usize) -> Bytes {
    let block: Vec<u8> = (0..251).map(|index| (index * 31 + size) as u8).collect();
    let mut value = block.repeat(size / block.len() + 1);
    value.truncate(size);
    value.into()
}

async fn get(channel: &Channel, bucket: &str, key: &str) -> Result<GetResponse, CallError> {
    let get = GetRequest { key: Bytes::copy_from_slice(key.as_bytes()), bucket: bucket.to_owned() };
    channel.unary(CACHE_GET, &get, no_hurry()).await
}

async fn put(channel: &Channel, key: &str, value: Bytes) -> Result<(), CallError> {
    let put = PutRequest { key: Bytes::copy_from_slice(key.as_bytes()), value, ..Default::default() };
    channel.unary(CACHE_PUT, &put, no_hurry()).await.map(|answer| assert!(answer.successful))
}

// ---- tonic asks, our server answers ----

#[test]
fn tonic_reads_from_our_server_what_it_wrote_whatever_its_size() {
    let server = OurServer::start_outside();
    on_tokio(async {
        let mut client = TonicClient::connect(server.url()).await;
        assert!(!client.get("b", "k").await.unwrap().successful);
        for size in SIZES {
            assert!(client.put("k", value(size)).await.unwrap().successful);
            let answer = client.get("b", "k").await.unwrap();
            assert!(answer.successful && answer.value == value(size), "{size} bytes");
        }
    });
}

#[test]
fn tonic_writes_and_reads_large_values_all_at_once() {
    let server = OurServer::start_outside();
    on_tokio(async {
        let client = TonicClient::connect(server.url()).await;
        join_all((0..8_usize).map(|index| {
            let mut client = client.clone();
            async move {
                let key = format!("k{index}");
                client.put(&key, value((5 << 20) - index)).await.unwrap();
                assert!(client.get("b", &key).await.unwrap().value == value((5 << 20) - index));
            }
        }))
        .await;
    });
}

#[test]
fn a_thousand_calls_of_tonic_are_open_at_once() {
    let server = OurServer::start_outside();
    on_tokio(async {
        let client = TonicClient::connect(server.url()).await;
        let calls = join_all((0..1000).map(|index| {
            let mut client = client.clone();
            async move { client.get("held", &format!("k{index}")).await }
        }));
        let release = async {
            while server.seen.held.load(Ordering::SeqCst) < 1000 {
                tokio::task::yield_now().await;
            }
            server.release();
        };
        let (answers, ()) = tokio::join!(calls, release);
        assert!(answers.iter().all(Result::is_ok));
    });
}

#[test]
fn tonic_sees_our_status_and_its_text() {
    let server = OurServer::start_outside();
    on_tokio(async {
        let mut client = TonicClient::connect(server.url()).await;
        let status = client.delete("k").await.unwrap_err();
        assert_eq!((status.code(), status.message()), (tonic::Code::Aborted, "100 % refused: ünïcode"));
        let nothing = tonic::Request::new(DeleteRequest::default());
        let status = client.unary::<_, GetResponse>("/cache_server.Cache/Nothing", nothing).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unimplemented);
    });
}

#[test]
fn a_call_of_tonic_that_is_late_or_cancelled_is_dropped_where_it_waits() {
    let server = OurServer::start_outside();
    on_tokio(async {
        let mut client = TonicClient::connect(server.url()).await;
        let status = client.get_within("held", Duration::from_millis(20)).await.unwrap_err();
        // tonic's own clock and ours run out together; tonic calls its own CANCELLED.
        assert!(matches!(status.code(), tonic::Code::DeadlineExceeded | tonic::Code::Cancelled), "{status:?}");
        server.wait_for_dropped(1);

        let mut other = client.clone();
        let call = tokio::spawn(async move { other.get("held", "k").await });
        tokio::task::yield_now().await;
        while server.seen.held.load(Ordering::SeqCst) < 1 {
            tokio::task::yield_now().await;
        }
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        while server.seen.dropped.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        assert!(client.get("b", "k").await.is_ok(), "and the connection goes on");
    });
}

#[test]
fn a_server_that_stops_answers_every_call_that_is_open() {
    let server = OurServer::start_outside();
    on_tokio(async {
        let client = TonicClient::connect(server.url()).await;
        let calls: Vec<_> = (0..100)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(async move { client.get("held", "k").await })
            })
            .collect();
        while server.seen.held.load(Ordering::SeqCst) < 100 {
            tokio::task::yield_now().await;
        }
        server.refuse();
        server.release();
        for call in calls {
            call.await.unwrap().expect("an answer");
        }
    });
    server.stop();
}

#[test]
fn health_is_checked_and_watched() {
    let server = OurServer::start_outside();
    on_tokio(async {
        let channel = tonic::transport::Endpoint::from_shared(server.url()).unwrap().connect().await.unwrap();
        let mut client = HealthClient::new(channel);
        let ask = |service: &str| TonicHealthCheckRequest { service: service.to_owned() };
        for service in ["", CACHE] {
            let answer = client.check(ask(service)).await.unwrap().into_inner();
            assert_eq!(answer.status, ServingStatus::Serving as i32, "{service:?}");
        }
        assert_eq!(client.check(ask("nobody")).await.unwrap_err().code(), tonic::Code::NotFound);

        let mut watch = client.watch(ask(CACHE)).await.unwrap().into_inner();
        let mut unknown = client.watch(ask("nobody")).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status, ServingStatus::Serving as i32);
        server.serve(false);
        assert_eq!(watch.message().await.unwrap().unwrap().status, ServingStatus::NotServing as i32);
        server.serve(true);
        assert_eq!(watch.message().await.unwrap().unwrap().status, ServingStatus::Serving as i32);
        let service_unknown = 3; // Which tonic's enum lacks.
        assert_eq!(unknown.message().await.unwrap().unwrap().status, service_unknown);
    });
}

#[test]
fn tonic_asks_for_our_services_by_reflection() {
    let server = OurServer::start_outside();
    on_tokio(async {
        let mut client = TonicClient::connect(server.url()).await;
        for path in REFLECTION_PATHS {
            let names = client.services(path).await.unwrap();
            assert!(names.iter().any(|name| name == CACHE), "{names:?}");
        }
    });
}

// ---- our channel asks, tonic answers ----

#[test]
fn our_channel_reads_from_tonic_what_it_wrote_whatever_its_size() {
    let server = TonicServer::start();
    with_channel(server.url(), |channel| async move {
        for size in SIZES {
            put(&channel, "k", value(size)).await.unwrap();
            assert!(get(&channel, "b", "k").await.unwrap().value == value(size), "{size} bytes");
        }
    });
}

#[test]
fn our_channel_has_a_thousand_calls_open_at_once() {
    let server = TonicServer::start();
    with_channel(server.url(), |channel| async move {
        put(&channel, "k", value(1000)).await.unwrap();
        let answers = join_all((0..1000).map(|_| get(&channel, "b", "k"))).await;
        assert!(answers.into_iter().all(|answer| answer.unwrap().value == value(1000)));
    });
}

#[test]
fn our_channel_sees_tonics_status_and_its_text() {
    let server = TonicServer::start();
    with_channel(server.url(), |channel| async move {
        let delete = DeleteRequest { key: Bytes::from_static("ünïcode\n100 %".as_bytes()), ..Default::default() };
        let error = channel.unary(CACHE_DELETE, &delete, no_hurry()).await.unwrap_err();
        assert_eq!((error.status.code, error.done), (Code::DataLoss, Done::Answered));
        assert_eq!(error.status.message, "ünïcode\n100 %");
        let error = channel.unary(ROUTER_LEAVE, &Default::default(), no_hurry()).await.unwrap_err();
        assert_eq!((error.status.code, error.done), (Code::Unimplemented, Done::Answered));
    });
}

#[test]
fn our_channel_gives_up_at_the_deadline_and_cancels_when_dropped() {
    let server = TonicServer::start();
    let held = server.held.clone();
    with_channel(server.url(), |channel| async move {
        let held_get = GetRequest { key: Bytes::new(), bucket: "held".to_owned() };
        let soon = Instant::now() + Duration::from_millis(50);
        let error = channel.unary(CACHE_GET, &held_get, soon).await.unwrap_err();
        // Both clocks run out together. tonic calls it CANCELLED when its own is first.
        let outcome = (error.status.code, error.done);
        let (ours, tonics) = ((Code::DeadlineExceeded, Done::Unknown), (Code::Cancelled, Done::Answered));
        assert!(outcome == ours || outcome == tonics, "{error:?}");

        let past = Instant::now();
        let error = channel.unary(CACHE_GET, &held_get, past).await.unwrap_err();
        assert_eq!((error.status.code, error.done), (Code::DeadlineExceeded, Done::No));

        let call = glommio::spawn_local({
            let channel = channel.clone();
            async move { get(&channel, "held", "k").await }
        });
        while held.load(Ordering::SeqCst) < 1 {
            glommio::yield_if_needed().await;
            put(&channel, "k", Bytes::new()).await.unwrap();
        }
        assert!(call.cancel().await.is_none());
        while held.load(Ordering::SeqCst) > 0 {
            put(&channel, "k", Bytes::new()).await.unwrap();
        }
    });
}

// ---- our channel and our server ----

#[test]
fn four_thousand_calls_go_over_one_link() {
    let server = OurServer::start();
    with_channel(server.url(), |channel| async move {
        put(&channel, "k", value(100)).await.unwrap();
        let answers = join_all((0..4000).map(|_| get(&channel, "b", "k"))).await;
        assert!(answers.into_iter().all(|answer| answer.unwrap().value == value(100)));
    });
}

#[test]
fn more_than_all_windows_and_buffers_goes_both_ways_at_once() {
    let server = OurServer::start();
    with_channel(server.url(), |channel| async move {
        let written = join_all((0..64).map(|index| {
            let channel = channel.clone();
            async move {
                let key = format!("k{index}");
                put(&channel, &key, value((1 << 20) + index)).await.unwrap();
                get(&channel, "b", &key).await.unwrap().value == value((1 << 20) + index)
            }
        }));
        assert!(written.await.into_iter().all(|is_same| is_same));
    });
}

#[test]
fn a_large_answer_is_taken_in_parts_and_holds_up_nobody_while_it_is_not() {
    let server = OurServer::start();
    with_channel(server.url(), |channel| async move {
        let large = value(5 << 20);
        put(&channel, "large", large.clone()).await.unwrap();
        put(&channel, "small", value(100)).await.unwrap();
        let begin = async |key: &'static str| {
            let message = GetRequest { key: Bytes::from(key), bucket: "b".into() }.encode_to_vec();
            channel.call_in_parts(CACHE_GET.path, Bytes::from(message), no_hurry()).await.unwrap()
        };
        assert!(matches!(begin("small").await, Answer::Whole(_)));
        // More bytes than all windows of the link together, and nobody takes them.
        let mut begun = Vec::new();
        for _ in 0..40 {
            let Answer::Parts(body) = begin("large").await else { panic!("it is large") };
            begun.push(body);
        }
        assert!(get(&channel, "b", "large").await.unwrap().value == large);
        drop(begun.split_off(2)); // Cancels them.
        for mut body in begun {
            let mut message = Vec::with_capacity(body.message_bytes());
            while let Some(part) = poll_fn(|cx| body.poll_next(cx)).await {
                message.extend_from_slice(&part.unwrap());
            }
            assert_eq!((message.len(), body.left_bytes()), (body.message_bytes(), 0));
            assert!(GetResponse::decode(&message[..]).unwrap().value == large);
        }
    });
}

#[test]
fn an_answer_of_any_size_is_the_same_in_parts() {
    let server = OurServer::start();
    with_channel(server.url(), |channel| async move {
        for size in SIZES.into_iter().chain((WHOLE_BYTES_MAX - 40)..(WHOLE_BYTES_MAX + 2)) {
            put(&channel, "k", value(size)).await.unwrap();
            let message = GetRequest { key: "k".into(), bucket: "b".into() }.encode_to_vec();
            let mut answer = pin!(channel.call_in_parts(CACHE_GET.path, Bytes::from(message), no_hurry()));
            // Nobody looks before all of it has come.
            get(&channel, "b", "k").await.unwrap();
            let mut whole = Vec::new();
            match answer.as_mut().await.unwrap() {
                Answer::Whole(message) => whole.extend_from_slice(&message),
                Answer::Parts(mut body) => {
                    while let Some(part) = poll_fn(|cx| body.poll_next(cx)).await {
                        whole.extend_from_slice(&part.unwrap());
                    }
                }
            }
            assert!(GetResponse::decode(&whole[..]).unwrap().value == value(size), "{size} bytes");
        }
    });
}

#[test]
fn a_large_answer_whose_server_goes_ends_with_an_error_and_not_as_if_it_were_whole() {
    let server = OurServer::start();
    let url = server.url();
    let (begun, has_begun) = std::sync::mpsc::channel::<()>();
    let killer = std::thread::spawn(move || {
        has_begun.recv().unwrap();
        server.kill();
    });
    with_channel(url, |channel| async move {
        put(&channel, "large", value(5 << 20)).await.unwrap();
        let message = GetRequest { key: "large".into(), bucket: "b".into() }.encode_to_vec();
        let answer = channel.call_in_parts(CACHE_GET.path, Bytes::from(message), no_hurry()).await.unwrap();
        let Answer::Parts(mut body) = answer else { panic!("it is large") };
        begun.send(()).unwrap();
        killer.join().unwrap();
        let error = loop {
            match poll_fn(|cx| body.poll_next(cx)).await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break error,
                None => panic!("the whole message came, from a server that was killed"),
            }
        };
        assert_eq!((error.status.code, error.done), (Code::Unavailable, Done::Unknown));
        assert!(body.left_bytes() > 0);
    });
}

#[test]
fn a_thousand_cancelled_calls_leave_a_link_as_it_was() {
    let server = OurServer::start();
    let seen = server.seen.clone();
    with_channel(server.url(), |channel| async move {
        let mut calls: Vec<_> = (0..1000).map(|_| Box::pin(get(&channel, "held", "k"))).collect();
        while seen.held.load(Ordering::SeqCst) < 1000 {
            for call in &mut calls {
                assert!(futures::poll!(call.as_mut()).is_pending());
            }
            put(&channel, "k", Bytes::new()).await.unwrap();
        }
        drop(calls);
        while seen.dropped.load(Ordering::SeqCst) < 1000 {
            put(&channel, "k", Bytes::new()).await.unwrap();
        }
    });
}

#[test]
fn what_is_lost_with_its_connection_may_have_happened() {
    let server = OurServer::start();
    let url = server.url();
    let seen = server.seen.clone();
    let (killed, kill) = std::sync::mpsc::channel::<()>();
    let killer = std::thread::spawn(move || {
        kill.recv().unwrap();
        server.kill();
    });
    with_channel(url, |channel| async move {
        let mut call = Box::pin(get(&channel, "held", "k"));
        while seen.held.load(Ordering::SeqCst) < 1 {
            assert!(futures::poll!(call.as_mut()).is_pending());
            put(&channel, "k", Bytes::new()).await.unwrap();
        }
        killed.send(()).unwrap();
        let error = call.await.unwrap_err();
        assert_eq!((error.status.code, error.done), (Code::Unavailable, Done::Unknown), "{error}");
    });
    killer.join().unwrap();
}

#[test]
fn nothing_has_happened_where_nobody_listens() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    with_channel(format!("http://{nobody}"), |channel| async move {
        let errors = join_all((0..3).map(|_| get(&channel, "b", "k"))).await;
        for error in errors.into_iter().map(Result::unwrap_err) {
            assert_eq!((error.status.code, error.done), (Code::Unavailable, Done::No), "{error}");
        }
        let error = get(&channel, "b", "k").await.unwrap_err(); // While it rests.
        assert_eq!((error.status.code, error.done), (Code::Unavailable, Done::No), "{error}");
    });
}

#[test]
fn a_channel_finds_its_server_again() {
    let server = OurServer::start();
    let address = server.address;
    let (restart, restarted) = (Rc::new(Cell::new(false)), Rc::new(RefCell::new(None)));
    let first = Rc::new(RefCell::new(Some(server)));
    with_channel(format!("http://{address}"), move |channel| async move {
        get(&channel, "b", "k").await.unwrap();
        first.borrow_mut().take().unwrap().kill();
        let mut attempts = 0;
        loop {
            match get(&channel, "b", "k").await {
                Ok(_) => break,
                // The first of them may have left before the loss was seen.
                Err(error) => assert!(error.done == Done::No || attempts == 0, "{error}"),
            }
            attempts += 1;
            assert!(attempts < 10_000, "the channel does not come back");
            if !restart.replace(true) {
                *restarted.borrow_mut() = Some(restart_at(address));
            }
            glommio::timer::sleep(Duration::from_millis(1)).await;
        }
        assert!(attempts > 0);
    });
}

fn restart_at(address: SocketAddr) -> OurServer {
    OurServer::start_at(address, &LINK)
}

#[test]
fn a_server_that_drains_loses_no_call_and_says_of_the_others_that_nothing_happened() {
    let server = OurServer::start();
    let server = Rc::new(server);
    with_channel(server.url(), move |channel| async move {
        let held = glommio::spawn_local({
            let channel = channel.clone();
            async move { get(&channel, "held", "k").await }
        });
        while server.seen.held.load(Ordering::SeqCst) < 1 {
            put(&channel, "k", Bytes::new()).await.unwrap();
        }
        let mut refused = 0;
        for round in 0..200 {
            if round == 20 {
                server.refuse();
            }
            for answer in join_all((0..20).map(|_| get(&channel, "b", "k"))).await {
                if let Err(error) = answer {
                    assert_eq!(error.done, Done::No, "round {round}: {error}");
                    refused += 1;
                }
            }
            if refused > 0 {
                break;
            }
        }
        assert!(refused > 0, "in the end the channel has learnt it");
        server.release();
        held.await.expect("what was open is answered");
    });
}

#[test]
fn our_channel_checks_health() {
    let server = OurServer::start();
    with_channel(server.url(), |channel| async move {
        let ask = HealthCheckRequest { service: CACHE.to_owned() };
        let answer = channel.unary(HEALTH_CHECK, &ask, no_hurry()).await.unwrap();
        assert_eq!(answer.status, 1);
        let ask = HealthCheckRequest { service: "nobody".to_owned() };
        let error = channel.unary(HEALTH_CHECK, &ask, no_hurry()).await.unwrap_err();
        assert_eq!(error.status.code, Code::NotFound);
    });
}

// ---- peers that do not behave ----

/// Does with the first connection to its address what `meet` says, on a thread of its own.
fn stranger(meet: impl FnOnce(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || meet(listener.accept().unwrap().0));
    format!("http://{address}")
}

#[test]
fn a_peer_that_gives_no_sign_of_life_is_given_up() {
    // It takes everything and says nothing: a machine that was switched off looks the same.
    let url = stranger(|mut peer| {
        peer.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
        while peer.read(&mut [0; 1024]).is_ok_and(|bytes| bytes > 0) {}
    });
    with_channel(url, |channel| async move {
        let error = get(&channel, "b", "k").await.unwrap_err();
        assert_eq!((error.status.code, error.done), (Code::Unavailable, Done::Unknown));
        assert!(error.status.message.contains("no sign of life"), "{error}");
    });
}

#[test]
fn an_answer_that_is_not_grpc_is_refused_and_says_what_it_is() {
    let url = stranger(|mut peer| {
        // SETTINGS; HEADERS on stream 1: `:status: 200`, `content-type: text/html`.
        peer.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
        while peer.read(&mut [0; 1024]).unwrap() < 100 {} // The call, after the greeting.
        peer.write_all(b"\0\0\x0d\x01\x04\0\0\0\x01\x88\x0f\x10\x09text/html").unwrap();
        while peer.read(&mut [0; 1024]).is_ok_and(|bytes| bytes > 0) {}
    });
    with_channel(url, |channel| async move {
        let error = get(&channel, "b", "k").await.unwrap_err();
        assert_eq!((error.status.code, error.done), (Code::Unknown, Done::Unknown));
        assert_eq!(error.status.message, "the answer is not gRPC: content-type text/html");
    });
}

/// Asks for eight values of 5 MiB, as a client that takes none of them.
fn ask_and_take_nothing(server: &OurServer) -> TcpStream {
    with_channel(server.url(), |channel| async move { put(&channel, "k", value(5 << 20)).await.unwrap() });
    let request = GetRequest { key: "k".into(), bucket: "b".into() }.encode_to_vec();
    let mut client: Connection<()> = Connection::new(Role::Client, &LINK);
    let head = RequestHead { path: CACHE_GET.path, authority: "a", timeout: b"60S" };
    for _ in 0..8 {
        let key = client.open(&head, ()).unwrap();
        client.send_part(key, &prefix(request.len()), request.clone().into(), true);
    }
    let mut slices = [IoSlice::new(&[]); 16];
    let count = client.outbox().fill(&mut slices);
    let mut deaf = TcpStream::connect(server.address).unwrap();
    slices[..count].iter().for_each(|slice| deaf.write_all(slice).unwrap());
    deaf
}

/// What comes until the server closes the connection, in bytes.
fn take_rest(mut deaf: &TcpStream) -> usize {
    let mut taken_bytes = 0;
    let mut buffer = vec![0; 1 << 20];
    while let Ok(bytes @ 1..) = deaf.read(&mut buffer) {
        taken_bytes += bytes;
    }
    taken_bytes
}

static IMPATIENT: Profile = Profile { write_stall: Duration::from_millis(200), ..OUTSIDE };

#[test]
fn a_client_that_takes_nothing_for_too_long_is_cut_off() {
    let server = OurServer::start_at("127.0.0.1:0".parse().unwrap(), &IMPATIENT);
    let deaf = ask_and_take_nothing(&server);
    server.wait_for_ended(2);
    // What was on its way still comes, and then the end: less than was asked for.
    assert!(take_rest(&deaf) < 8 * (5 << 20));
}

#[test]
fn a_client_that_opens_no_window_is_cut_off_though_it_reads() {
    let server = OurServer::start_at("127.0.0.1:0".parse().unwrap(), &IMPATIENT);
    let deaf = ask_and_take_nothing(&server);
    let taken_bytes = take_rest(&deaf); // Until it is closed: no window was ever raised.
    assert!(taken_bytes < 8 * (5 << 20), "{taken_bytes}");
    server.wait_for_ended(2);
}
