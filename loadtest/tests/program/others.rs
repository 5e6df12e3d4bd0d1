//! Redis and memcached as targets, by small servers that speak as those do; over real sockets.

use std::{
    collections::HashMap,
    io::{self, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use crate::{
    Ended,
    fake::{Fake, Lie},
    loadtest,
};

const SMALL: &str = "-q -w 0 -d 1s -c 2 --streams 4 --keys 200 --value-size 100";

type Values = Arc<Mutex<HashMap<Vec<u8>, Vec<u8>>>>;

/// Serves each connection on a thread, until the test's process ends.
fn start(serve: fn(TcpStream, &Values) -> io::Result<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let values = Values::default();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, values) = (stream.expect("a connection"), Arc::clone(&values));
            thread::spawn(move || serve(stream, &values));
        }
    });
    address
}

fn line(input: &mut impl io::BufRead) -> io::Result<String> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    let is_whole = line.ends_with("\r\n");
    if is_whole { Ok(line.trim_end().to_owned()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// `bytes` bytes and the line end after them.
fn block(input: &mut impl io::BufRead, bytes: usize) -> io::Result<Vec<u8>> {
    let mut block = vec![0; bytes + 2];
    input.read_exact(&mut block)?;
    block.truncate(bytes);
    Ok(block)
}

fn number(text: &str) -> usize {
    text.parse().expect("the program sends what it means")
}

fn redis(stream: TcpStream, values: &Values) -> io::Result<()> {
    let (mut input, mut output) = (BufReader::new(stream.try_clone()?), stream);
    loop {
        let count = number(line(&mut input)?.trim_start_matches('*'));
        let mut words = Vec::new();
        for _ in 0..count {
            let bytes = number(line(&mut input)?.trim_start_matches('$'));
            words.push(block(&mut input, bytes)?);
        }
        let mut values = values.lock().expect("nobody panics with it");
        let answer = match &words[0][..] {
            b"GET" => match values.get(&words[1]) {
                Some(value) => [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat(),
                None => b"$-1\r\n".to_vec(),
            },
            b"SET" => {
                values.insert(words[1].clone(), words[2].clone());
                b"+OK\r\n".to_vec()
            }
            b"DEL" => format!(":{}\r\n", u8::from(values.remove(&words[1]).is_some())).into_bytes(),
            _ => b"-ERR unknown command\r\n".to_vec(),
        };
        output.write_all(&answer)?;
    }
}

fn memcached(stream: TcpStream, values: &Values) -> io::Result<()> {
    let (mut input, mut output) = (BufReader::new(stream.try_clone()?), stream);
    loop {
        let line = line(&mut input)?;
        let words: Vec<&str> = line.split(' ').collect();
        let name = words.get(1).copied().unwrap_or_default().as_bytes().to_vec();
        let answer = match words[0] {
            "get" => match values.lock().expect("nobody panics with it").get(&name) {
                Some(value) => {
                    let head = format!("VALUE {} 0 {}\r\n", words[1], value.len());
                    [head.as_bytes(), value, b"\r\nEND\r\n"].concat()
                }
                None => b"END\r\n".to_vec(),
            },
            "set" => {
                let value = block(&mut input, number(words[4]))?;
                values.lock().expect("nobody panics with it").insert(name, value);
                b"STORED\r\n".to_vec()
            }
            "delete" => match values.lock().expect("nobody panics with it").remove(&name) {
                Some(_) => b"DELETED\r\n".to_vec(),
                None => b"NOT_FOUND\r\n".to_vec(),
            },
            _ => b"ERROR\r\n".to_vec(),
        };
        output.write_all(&answer)?;
    }
}

fn assert_all_is_well(ended: &Ended, protocol: &str) {
    let run = &ended.file().runs[0];
    assert_eq!(run.settings.protocol, protocol);
    assert!(run.counts.requests > 0 && run.counts.errors == 0, "{:?} {:?}", run.counts, run.first_failure);
    assert!(run.counts.hits > 0 && run.counts.misses == 0, "{:?}", run.counts);
}

#[test]
fn redis_is_measured_by_the_same_instrument() {
    let url = format!("redis://{}", start(redis));
    for more in ["--workload ycsb-a", "--batch 20", "--workload ycsb-b --ttl 60s -t 2"] {
        assert_all_is_well(&loadtest(&format!("run --target {url} {SMALL} {more}")), "redis");
    }
}

#[test]
fn memcached_is_measured_by_the_same_instrument() {
    let url = format!("memcached://{}", start(memcached));
    for more in ["--workload ycsb-a", "--batch 20"] {
        assert_all_is_well(&loadtest(&format!("run --target {url} {SMALL} {more}")), "memcached");
    }
}

#[test]
fn what_they_answer_is_verified_too() {
    for url in [format!("redis://{}", start(redis)), format!("memcached://{}", start(memcached))] {
        let ended = loadtest(&format!("verify --target {url} {SMALL}"));
        let verify = ended.file().runs[0].verify.as_ref().expect("verify checks");
        assert!(verify.reads > 0 && verify.violations.values().all(|count| *count == 0), "{url}: {verify:?}");
    }
}

#[test]
fn somebody_who_speaks_something_else_is_a_failure() {
    let fake = Fake::start(Lie::None);
    for url in [format!("redis://{}", start(memcached)), format!("memcached://{}", fake.address)] {
        let ended = loadtest(&format!("run --target {url} {SMALL}"));
        assert_eq!(ended.code(), 1, "{}", ended.shown());
        assert!(ended.errors().contains(&url) && ended.errors().contains("UNAVAILABLE"), "{}", ended.errors());
    }
}
