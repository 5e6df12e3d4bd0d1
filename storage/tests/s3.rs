//! S3 in health and in trouble: a real server, and between it and us a proxy that breaks what it is told to break.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    thread,
    time::Duration,
};

use bytes::Bytes;
use fault_proxy::{Fault, FaultProxy};
use milena_proto::key::{Key, KeyRef};
use milena_storage::{
    Cause, Condition, Entry, Found, Put, Timestamp, Version,
    object::{
        Abilities, Asker, Request, Store, StoreConfig, StoreSettings,
        config::S3Config,
        s3::{Patience, S3},
    },
};
use rusty_s3::{
    S3Action as _,
    actions::{GetObject, PutObject},
};

#[path = "support/fault_proxy.rs"]
mod fault_proxy;
#[path = "support/seaweed.rs"]
mod seaweed;

const NOW: Timestamp = Timestamp(1_000);
const ALWAYS: usize = 1_000_000;

/// Longer than a healthy server ever takes; tests of slowness have their own.
const PATIENT: Patience =
    Patience { connect: Duration::from_secs(20), attempt: Duration::from_secs(30), operation: Duration::from_secs(60) };

/// The server behind a proxy, and our client in front of it, with a prefix for each test.
struct Bench {
    proxy: FaultProxy,
    s3: S3,
}

fn bench(test: &str) -> Bench {
    bench_with(test, PATIENT)
}

fn bench_with(test: &str, patience: Patience) -> Bench {
    let proxy = FaultProxy::start(seaweed::shared().address());
    let config = config(&proxy.endpoint(), test, |_| {});
    Bench { s3: S3::with_patience(config, patience), proxy }
}

fn config(endpoint: &str, test: &str, change: impl FnOnce(&mut StoreSettings<'_>)) -> S3Config {
    let store = format!("s3://{}/{test}", seaweed::BUCKET);
    let mut settings = StoreSettings {
        store: Some(&store),
        s3_endpoint: Some(endpoint),
        access_key_id: Some(seaweed::ACCESS_KEY_ID),
        secret_access_key: Some(seaweed::SECRET_ACCESS_KEY),
        ..StoreSettings::none(Path::new("."))
    };
    change(&mut settings);
    match StoreConfig::read(&settings).unwrap() {
        StoreConfig::S3(config) => *config,
        other => panic!("{other}"),
    }
}

fn key(name: &str) -> Key {
    KeyRef::parse(b"default", name.as_bytes()).unwrap().to_key()
}

impl Bench {
    fn get(&self, name: &str) -> Result<Found, Cause> {
        get(&self.s3, name)
    }

    fn put(&self, name: &str, value: &'static str, condition: &Condition) -> Result<Version, Cause> {
        put(&self.s3, name, value, condition)
    }

    fn delete(&self, name: &str, condition: &Condition) -> Result<(), Cause> {
        self.s3.delete(&key(name), condition, &mut Asker::new(1)).map_err(|error| error.cause)
    }

    /// What the server has, asked around the proxy.
    fn stored(&self, name: &str) -> Option<Bytes> {
        let config = config(&seaweed::shared().endpoint(), &prefix_of(&self.s3), |_| {});
        match get(&S3::with_patience(config, PATIENT), name).unwrap() {
            Found::Entry(entry) => Some(entry.value),
            _ => None,
        }
    }

    /// Lets the conditions be probed, so that they are not what the faults meet.
    fn probed(self) -> Self {
        self.s3.probe(&mut Asker::new(1)).unwrap();
        self
    }
}

fn prefix_of(s3: &S3) -> String {
    s3.config().prefix.trim_end_matches('/').to_owned()
}

fn get(s3: &S3, name: &str) -> Result<Found, Cause> {
    s3.get(&key(name), None, NOW, &mut Asker::new(1)).map_err(|error| error.cause)
}

fn put(s3: &S3, name: &str, value: &'static str, condition: &Condition) -> Result<Version, Cause> {
    s3.put(&key(name), &Put::new(value, condition.clone()), &mut Asker::new(1)).map_err(|error| error.cause)
}

fn value(found: Result<Found, Cause>) -> Bytes {
    match found {
        Ok(Found::Entry(entry)) => entry.value,
        other => panic!("{other:?}"),
    }
}

fn text(cause: Option<Cause>) -> String {
    match cause {
        Some(
            Cause::Unavailable(text)
            | Cause::OutcomeUnknown(text)
            | Cause::PermissionDenied(text)
            | Cause::Misconfigured(text)
            | Cause::Corrupt(text),
        ) => text.to_string(),
        other => panic!("{other:?}"),
    }
}

// ---- Objects and their names.

#[test]
fn an_object_that_somebody_else_wrote_is_read_by_its_name() {
    let bench = bench("others");
    let config = bench.s3.config();
    let credentials = rusty_s3::Credentials::new(seaweed::ACCESS_KEY_ID, seaweed::SECRET_ACCESS_KEY);
    let url =
        PutObject::new(&config.bucket, Some(&credentials), "others/default/a/b c%.txt").sign(Duration::from_secs(60));
    ureq::put(url.as_str()).header("content-type", "text/plain").send("theirs").unwrap();

    let Ok(Found::Entry(Entry { value, version, expires })) = bench.get("a/b c%.txt") else { panic!("it is there") };
    assert_eq!((value, expires), (Bytes::from("theirs"), None));
    bench.put("a/b c%.txt", "ours", &Condition::IfVersion(version)).unwrap();

    let url =
        GetObject::new(&config.bucket, Some(&credentials), "others/default/a/b c%.txt").sign(Duration::from_secs(60));
    assert_eq!(ureq::get(url.as_str()).call().unwrap().body_mut().read_to_string().unwrap(), "ours");
}

#[test]
fn the_md5_layout_finds_the_data_that_exists_and_keeps_colliding_keys_apart() {
    let server = seaweed::shared();
    let s3 = S3::new(config(&server.endpoint(), "md5", |settings| settings.s3_key_layout = Some("md5")));
    let credentials = rusty_s3::Credentials::new(seaweed::ACCESS_KEY_ID, seaweed::SECRET_ACCESS_KEY);
    let name = "md5/0d08/0d08c5418603c1ec5755b6f4754bf3d4";
    let url = PutObject::new(&s3.config().bucket, Some(&credentials), name).sign(Duration::from_secs(60));
    ureq::put(url.as_str()).send("old data").unwrap();

    let asker = &mut Asker::new(1);
    let old = KeyRef::parse(b"topic", b"some_key").unwrap().to_key();
    assert_eq!(value(s3.get(&old, None, NOW, asker).map_err(|error| error.cause)), "old data");

    // One name for both, since it is made of the key followed by the bucket.
    let [one, other] = [(&b"bc"[..], &b"a"[..]), (b"c", b"ab")].map(|(b, k)| KeyRef::parse(b, k).unwrap().to_key());
    s3.put(&one, &Put::new("secret", Condition::Always), asker).unwrap();
    assert_eq!(s3.get(&other, None, NOW, asker), Ok(Found::Absent));
    assert_eq!(value(s3.get(&one, None, NOW, asker).map_err(|error| error.cause)), "secret");
}

#[test]
fn a_bucket_addressed_by_host_is_the_same_bucket() {
    let server = seaweed::shared();
    let bench = bench("by-host");
    bench.put("a b", "1", &Condition::Always).unwrap();
    let endpoint = format!("http://{}:{}", seaweed::DOMAIN, server.address().port());
    let config = config(&endpoint, "by-host", |settings| settings.s3_addressing = Some("virtual-host"));
    let credentials = rusty_s3::Credentials::new(seaweed::ACCESS_KEY_ID, seaweed::SECRET_ACCESS_KEY);
    let url = GetObject::new(&config.bucket, Some(&credentials), "by-host/default/a b").sign(Duration::from_secs(60));
    assert_eq!(url.host_str(), Some("tests.s3.test"));

    // No name server knows the host, so this one request is sent by hand.
    let mut stream = TcpStream::connect(server.address()).unwrap();
    let (target, host) = (&url[url::Position::BeforePath..], &url[url::Position::BeforeHost..url::Position::AfterPort]);
    write!(stream, "GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n1"), "{answer}");
}

#[test]
fn requests_share_connections_and_are_counted_one_by_one() {
    let bench = bench("counted");
    let asker = &mut Asker::new(1);
    bench.s3.put(&key("k"), &Put::new("1", Condition::Always), asker).unwrap();
    bench.proxy.fail("GET", 1, Fault::Status(500, "InternalError"));
    for _ in 0..10 {
        bench.s3.get(&key("k"), None, NOW, asker).unwrap();
    }
    bench.s3.delete(&key("k"), &Condition::Always, asker).unwrap();
    bench.s3.get(&key("k"), None, NOW, asker).unwrap();

    assert_eq!(bench.proxy.connections(), 1);
    let asked: Vec<_> = asker.take_asked().iter().map(|asked| (asked.request, asked.status)).collect();
    let count = |request, status| asked.iter().filter(|one| **one == (request, Some(status))).count();
    assert_eq!(count(Request::Put, 200), 1);
    assert_eq!((count(Request::Get, 500), count(Request::Get, 200), count(Request::Get, 404)), (1, 10, 1));
    assert_eq!(count(Request::Delete, 204), 1);
    assert_eq!(asked.len(), 14);
    assert!(asker.take_asked().is_empty());
}

// ---- Credentials and settings.

#[test]
fn wrong_credentials_are_one_message_that_says_what_to_do() {
    let endpoint = seaweed::shared().endpoint();
    let wrong_secret = S3::new(config(&endpoint, "x", |settings| settings.secret_access_key = Some("wrong")));
    let text_of = |found: Result<Found, Cause>| match found {
        Err(Cause::PermissionDenied(text)) => text.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        text_of(get(&wrong_secret, "k")),
        "s3: bucket tests refused a GET: 403 SignatureDoesNotMatch; reads fail until this is solved; \
         hint: does AWS_SECRET_ACCESS_KEY belong to AWS_ACCESS_KEY_ID?"
    );
    let unknown_key = S3::new(config(&endpoint, "x", |settings| settings.access_key_id = Some("NOBODY")));
    assert_eq!(
        text_of(get(&unknown_key, "k")),
        "s3: bucket tests refused a GET: 403 InvalidAccessKeyId; reads fail until this is solved; \
         hint: the store does not know this AWS_ACCESS_KEY_ID"
    );
    let refused = put(&unknown_key, "k", "v", &Condition::IfAbsent).err();
    assert!(matches!(refused, Some(Cause::PermissionDenied(_))), "{refused:?}");
}

#[test]
fn without_credentials_nothing_is_asked_and_the_message_says_what_to_set() {
    let proxy = FaultProxy::start(seaweed::shared().address());
    let s3 = S3::new(config(&proxy.endpoint(), "x", |settings| {
        (settings.access_key_id, settings.secret_access_key) = (None, None);
    }));
    for cause in [get(&s3, "k").err(), put(&s3, "k", "v", &Condition::Always).err()] {
        assert!(matches!(cause, Some(Cause::Misconfigured(_))));
        assert!(
            text(cause).ends_with(
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN with temporary ones)"
            )
        );
    }
    assert!(proxy.lines().is_empty());
}

#[test]
fn a_session_token_travels_with_the_signature() {
    let bench = bench("token");
    let config = config(&bench.proxy.endpoint(), "token", |settings| settings.session_token = Some("temporary"));
    bench.proxy.fail("GET", 1, Fault::Status(400, "ExpiredToken"));
    let refused = get(&S3::new(config), "k");
    assert!(matches!(refused, Err(Cause::PermissionDenied(_))), "{refused:?}");
    assert!(bench.proxy.lines()[0].contains("X-Amz-Security-Token=temporary"));
}

#[test]
fn a_bucket_that_is_not_there_is_a_matter_of_settings() {
    let s3 = S3::new(config(&seaweed::shared().endpoint(), "x", |settings| settings.store = Some("s3://nowhere")));
    let results = [get(&s3, "k").err(), put(&s3, "k", "v", &Condition::Always).err()];
    for cause in results {
        assert!(matches!(cause, Some(Cause::Misconfigured(_))), "{cause:?}");
        assert!(text(cause).contains("404 NoSuchBucket"));
    }
}

#[test]
fn a_redirect_names_the_region_to_set() {
    let bench = bench("redirect");
    let redirect = "HTTP/1.1 301 Moved\r\nx-amz-bucket-region: eu-west-1\r\nlocation: http://127.0.0.1:1/\r\n\
                    content-length: 0\r\n\r\n";
    bench.proxy.fail("GET", 1, Fault::Raw(redirect));
    let refused = bench.get("k").err();
    assert!(matches!(refused, Some(Cause::Misconfigured(_))));
    assert!(text(refused).ends_with("hint: the bucket is elsewhere; set AWS_REGION=eu-west-1"));
}

#[test]
fn a_404_that_is_not_s3s_is_no_miss() {
    let bench = bench("not-s3");
    bench.proxy.fail("GET", 1, Fault::Raw("HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\nnot found"));
    let refused = bench.get("k").err();
    assert!(matches!(refused, Some(Cause::Misconfigured(_))), "{refused:?}");
    bench.proxy.fail("GET", 1, Fault::Status(404, "NoSuchKey"));
    assert_eq!(bench.get("k"), Ok(Found::Absent));

    // One that is cut short could be either.
    bench.put("k", "1", &Condition::Always).unwrap();
    bench.proxy.fail("GET", 1, Fault::Raw("HTTP/1.1 404 Not Found\r\nContent-Length: 99\r\n\r\n<Error><Code>NoSuch"));
    assert_eq!(value(bench.get("k")), "1");
}

// ---- Faults.

#[test]
fn a_fault_that_passes_is_not_noticed() {
    let bench = bench("passes");
    bench.put("k", "1", &Condition::Always).unwrap();
    let faults = [
        Fault::Status(500, "InternalError"),
        Fault::Status(503, "ServiceUnavailable"),
        Fault::Status(502, ""),
        Fault::Status(504, ""),
        Fault::Reset,
        Fault::Unanswered,
        Fault::Truncate(0),
        Fault::Flip,
        Fault::Lie(-1),
    ];
    for fault in faults {
        bench.proxy.fail("GET", 1, fault);
        assert_eq!(value(bench.get("k")), "1", "{fault:?}");
    }
    for fault in [Fault::Status(500, "InternalError"), Fault::Reset, Fault::Unanswered, Fault::Status(400, "BadDigest")]
    {
        bench.proxy.fail("PUT", 1, fault);
        bench.put("k", "2", &Condition::Always).unwrap_or_else(|cause| panic!("{fault:?}: {cause:?}"));
        bench.proxy.fail("DELETE", 1, fault);
        bench.delete("k", &Condition::Always).unwrap_or_else(|cause| panic!("{fault:?}: {cause:?}"));
    }
    assert_eq!(bench.stored("k"), None);
}

#[test]
fn a_fault_that_stays_is_unavailable_after_three_attempts() {
    let bench = bench("stays");
    bench.put("k", "1", &Condition::Always).unwrap();
    for (fault, told) in [
        (Fault::Status(503, "ServiceUnavailable"), "503 ServiceUnavailable"),
        (Fault::Status(500, ""), "500"),
        (Fault::Truncate(0), "ended after 0 bytes"),
        (Fault::Reset, ""),
        (Fault::Unanswered, ""),
    ] {
        let before = bench.proxy.seen("GET");
        bench.proxy.fail("GET", 3, fault);
        let cause = bench.get("k").err();
        assert!(matches!(cause, Some(Cause::Unavailable(_))), "{fault:?}: {cause:?}");
        assert_eq!(bench.proxy.seen("GET") - before, 3, "{fault:?}");
        let text = text(cause);
        assert!(text.contains("GET failed 3 times: ") && text.contains(told), "{fault:?}: {text}");
    }
    assert_eq!(value(bench.get("k")), "1");
}

#[test]
fn other_refusals_are_not_tried_again() {
    let bench = bench("refusals");
    for (status, code) in [(403, "AccessDenied"), (400, "InvalidRequest"), (405, "MethodNotAllowed"), (416, "X")] {
        let before = bench.proxy.seen("PUT");
        bench.proxy.fail("PUT", 1, Fault::Status(status, code));
        let cause = bench.put("k", "1", &Condition::Always).err();
        assert_eq!(matches!(cause, Some(Cause::PermissionDenied(_))), status == 403, "{cause:?}");
        assert!(text(cause).contains(&format!("refused a PUT: {status} {code}; writes fail until this is solved")));
        assert_eq!(bench.proxy.seen("PUT") - before, 1);
    }
    bench.proxy.fail("PUT", 1, Fault::Status(403, "AccessDenied"));
    assert!(
        text(bench.put("k", "1", &Condition::Always).err()).ends_with("the credentials need s3:PutObject on tests/*")
    );
}

#[test]
fn damage_that_stays_is_corrupt_never_a_value() {
    let bench = bench("damage");
    bench.put("k", "some value", &Condition::Always).unwrap();
    bench.proxy.fail("GET", 2, Fault::Flip);
    let cause = bench.get("k").err();
    assert!(matches!(cause, Some(Cause::Corrupt(_))), "{cause:?}");
    assert!(text(cause).ends_with("object damage/default/k: checksum mismatch"));

    // Too short by its own account: the checksum tells. Too long: the end never comes.
    bench.proxy.fail("GET", 2, Fault::Lie(-3));
    assert!(matches!(bench.get("k"), Err(Cause::Corrupt(_))));
    bench.proxy.fail("GET", 1, Fault::Raw("HTTP/1.1 200 OK\r\netag: \"1\"\r\n\r\nno length"));
    assert_eq!(value(bench.get("k")), "some value");
}

#[test]
fn a_body_that_never_ends_or_is_too_large_is_refused() {
    let patience = Patience { attempt: Duration::from_millis(300), ..PATIENT };
    let bench = bench_with("endless", patience);
    bench.proxy.fail("GET", 3, Fault::Raw("HTTP/1.1 200 OK\r\netag: \"1\"\r\ncontent-length: 2\r\n\r\n1"));
    let cause = bench.get("k").err();
    assert!(matches!(cause, Some(Cause::Unavailable(_))), "{cause:?}");
    assert!(text(cause).contains("in time"));

    let bench = bench_with("too-large", PATIENT);
    bench.proxy.fail("GET", 1, Fault::Raw("HTTP/1.1 200 OK\r\netag: \"1\"\r\ncontent-length: 67108865\r\n\r\n1"));
    let cause = bench.get("k").err();
    assert!(matches!(cause, Some(Cause::Misconfigured(_))), "{cause:?}");
    assert!(text(cause).ends_with("is larger than 67108864 bytes, the most a value can have"));
}

#[test]
fn nobody_listens_then_a_write_is_certainly_not_done_and_it_heals_by_itself() {
    let gone = FaultProxy::start(seaweed::shared().address());
    let address = gone.address();
    drop(gone);
    await_refused(address);
    let s3 = S3::with_patience(config(&format!("http://{address}"), "heals", |_| {}), PATIENT);
    for cause in [get(&s3, "k").err(), put(&s3, "k", "1", &Condition::Always).err()] {
        assert!(matches!(cause, Some(Cause::Unavailable(_))), "{cause:?}");
        assert!(text(cause).contains("failed 3 times: connection refused"));
    }
    assert!(matches!(s3.probe(&mut Asker::new(1)), Err(error) if error.is_retryable()));

    let _back = FaultProxy::start_at(address, seaweed::shared().address());
    put(&s3, "k", "2", &Condition::IfAbsent).unwrap();
    assert_eq!(value(get(&s3, "k")), "2");
}

fn await_refused(address: SocketAddr) {
    while TcpStream::connect(address).is_ok() {
        thread::yield_now();
    }
}

#[test]
fn a_slow_store_is_given_up_and_a_write_to_it_is_in_doubt() {
    let patience = Patience { attempt: Duration::from_millis(200), ..PATIENT };
    let bench = bench_with("slow", patience);
    bench.proxy.fail("GET", 3, Fault::Hold);
    let cause = bench.get("k").err();
    assert!(matches!(cause, Some(Cause::Unavailable(_))), "{cause:?}");
    assert!(text(cause).contains("GET failed 3 times: no answer in time"));
    bench.proxy.fail("PUT", 3, Fault::Hold);
    let cause = bench.put("k", "1", &Condition::Always).err();
    assert!(matches!(cause, Some(Cause::OutcomeUnknown(_))), "{cause:?}");
}

#[test]
fn all_attempts_together_have_a_limit() {
    let patience = Patience { attempt: PATIENT.attempt, operation: Duration::from_millis(300), ..PATIENT };
    let bench = bench_with("limit", patience);
    bench.proxy.fail("GET", ALWAYS, Fault::Hold);
    assert!(matches!(bench.get("k"), Err(Cause::Unavailable(_))));
    assert!(bench.proxy.seen("GET") <= 1, "no time was left for another");
}

#[test]
fn a_write_whose_answers_are_all_lost_has_an_unknown_outcome() {
    let bench = bench("unknown");
    bench.proxy.fail("PUT", 3, Fault::Unanswered);
    let cause = bench.put("k", "1", &Condition::Always).err();
    assert!(matches!(cause, Some(Cause::OutcomeUnknown(_))), "{cause:?}");
    assert_eq!(bench.stored("k"), Some(Bytes::from("1")));

    bench.proxy.fail("DELETE", 3, Fault::Unanswered);
    assert!(matches!(bench.delete("k", &Condition::Always), Err(Cause::OutcomeUnknown(_))));

    // What comes after the loss does not make it known, even a refusal.
    bench.proxy.fail("PUT", 1, Fault::Unanswered);
    bench.proxy.fail("PUT", 1, Fault::Status(403, "AccessDenied"));
    assert!(matches!(bench.put("k", "2", &Condition::Always), Err(Cause::OutcomeUnknown(_))));
    // But one that was never let in was not done.
    bench.proxy.fail("PUT", 3, Fault::Status(503, "SlowDown"));
    assert!(matches!(bench.put("k", "3", &Condition::Always), Err(Cause::Unavailable(_))));
    assert_eq!(bench.stored("k"), Some(Bytes::from("2")));
}

// ---- Conditions whose answer is lost.

#[test]
fn a_conditional_write_recognises_itself_when_its_answer_was_lost() {
    let bench = bench("itself").probed();
    bench.proxy.fail("PUT", 1, Fault::Unanswered);
    let first = bench.put("k", "1", &Condition::IfAbsent).unwrap();
    bench.proxy.fail("PUT", 1, Fault::Unanswered);
    let second = bench.put("k", "2", &Condition::IfVersion(first.clone())).unwrap();
    let Ok(Found::Entry(entry)) = bench.get("k") else { panic!("it is there") };
    assert_eq!((entry.value, entry.version), (Bytes::from("2"), second.clone()));

    // Not applied at all: then the second attempt does it.
    bench.proxy.fail("PUT", 1, Fault::Reset);
    let third = bench.put("k", "3", &Condition::IfVersion(second)).unwrap();
    assert_eq!(bench.put("k", "4", &Condition::IfVersion(first)), Err(Cause::VersionMismatch));
    assert_eq!(bench.put("k", "4", &Condition::IfAbsent), Err(Cause::AlreadyExists));

    bench.proxy.fail("DELETE", 1, Fault::Unanswered);
    bench.delete("k", &Condition::IfVersion(third)).unwrap();
    assert_eq!(bench.stored("k"), None);
}

#[test]
fn a_conditional_write_that_was_overtaken_while_in_doubt_is_unknown_not_refused() {
    let bench = bench("overtaken").probed();
    let first = bench.put("k", "1", &Condition::Always).unwrap();
    let around = S3::new(config(&seaweed::shared().endpoint(), "overtaken", |_| {}));
    // Ours may have been there before theirs, and been read.
    bench.proxy.fail("PUT", 1, Fault::Unanswered);
    bench.proxy.fail("PUT", 1, Fault::Hold);
    let outcome = thread::scope(|scope| {
        let ours = scope.spawn(|| bench.put("k", "ours", &Condition::IfVersion(first)));
        bench.proxy.await_held(1);
        put(&around, "k", "theirs", &Condition::Always).unwrap();
        bench.proxy.release();
        ours.join().unwrap()
    });
    assert!(matches!(outcome, Err(Cause::OutcomeUnknown(_))), "{outcome:?}");
    assert_eq!(bench.stored("k"), Some(Bytes::from("theirs")));
}

#[test]
fn a_look_that_fails_leaves_the_doubt() {
    let bench = bench("look").probed();
    bench.proxy.fail("PUT", 1, Fault::Unanswered);
    bench.proxy.fail("HEAD", 1, Fault::Status(403, ""));
    let outcome = bench.put("k", "1", &Condition::IfAbsent);
    assert!(matches!(outcome, Err(Cause::OutcomeUnknown(_))), "{outcome:?}");
}

// ---- A store without conditions.

#[test]
fn a_store_that_ignores_conditions_is_noticed_and_never_overwritten_in_silence() {
    const DONE: Fault = Fault::Raw("HTTP/1.1 200 OK\r\netag: \"0123\"\r\ncontent-length: 0\r\n\r\n");
    let bench = bench("without");
    bench.proxy.fail("PUT", 2, DONE);
    let abilities = bench.s3.probe(&mut Asker::new(1)).unwrap();
    assert_eq!(abilities, Abilities { conditional_puts: false, conditional_deletes: false });

    let puts = bench.proxy.seen("PUT");
    for condition in [Condition::IfAbsent, Condition::IfVersion(Version::new(Bytes::from("1")).unwrap())] {
        let cause = bench.put("k", "1", &condition).err();
        assert!(matches!(cause, Some(Cause::Misconfigured(_))), "{cause:?}");
        assert!(text(cause).contains("ignores the condition of a PUT; nothing was changed"));
    }
    assert!(matches!(
        bench.delete("k", &Condition::IfVersion(Version::new(Bytes::from("1")).unwrap())),
        Err(Cause::Misconfigured(_))
    ));
    assert_eq!(bench.proxy.seen("PUT"), puts, "nothing was sent");
    bench.put("k", "1", &Condition::Always).unwrap();
}

#[test]
fn a_store_that_does_not_know_conditions_is_noticed_too() {
    let bench = bench("unknowing");
    bench.proxy.fail("PUT", 1, Fault::Status(501, "NotImplemented"));
    let cause = bench.put("k", "1", &Condition::IfAbsent).err();
    assert!(matches!(cause, Some(Cause::Misconfigured(_))), "{cause:?}");
    assert_eq!(bench.stored("k"), None);
}

#[test]
fn the_first_condition_probes_and_a_probe_that_fails_is_made_again() {
    let bench = bench("lazily");
    bench.proxy.fail("PUT", 3, Fault::Status(503, "SlowDown"));
    assert!(matches!(bench.put("k", "1", &Condition::IfAbsent), Err(Cause::Unavailable(_))));
    bench.put("k", "1", &Condition::IfAbsent).unwrap();
    let probing = bench.proxy.seen("PUT");
    bench.put("l", "1", &Condition::IfAbsent).unwrap();
    assert_eq!(bench.proxy.seen("PUT"), probing + 1);
}
