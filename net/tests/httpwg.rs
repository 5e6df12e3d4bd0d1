//! The conformance cases of RFC 9113 (httpwg-cli) against our connection, as `examples/conformance.rs` serves it.

#[path = "../examples/conformance.rs"]
#[allow(dead_code, reason = "its main is not ours")]
mod conformance;

use std::{
    collections::BTreeSet,
    env,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::Command,
    thread,
};

/// Cases that fail, and why that is right or cannot be helped. A case that passes again must leave this list.
const EXCEPTIONS: [(&str, &str); 1] = [(
    "RFC 9113 :: 4. http frames :: invalid header block fragment",
    "the connection ends with PROTOCOL_ERROR and not COMPRESSION_ERROR: h2's codec says the same of a block that cannot \
     be decoded and of a name or value that must not be",
)];

const CASE_COUNT: usize = 107;

#[test]
fn the_connection_does_what_rfc_9113_says() {
    let peer = peers().join("bin/httpwg");
    assert!(peer.exists(), "{} is missing; `./test` installs it", peer.display());
    let output = Command::new(peer)
        .args(["-a", &serve().to_string(), "--frame-timeout", "2000"])
        .env("SEQUENTIAL", "1")
        .env("NO_COLOR", "1")
        .output()
        .expect("httpwg runs");

    let lines = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let named = |mark| -> BTreeSet<&str> { lines.lines().filter_map(|line| Some(line.split_once(mark)?.1)).collect() };
    let (passed, failed) = (named("Test passed: "), named("Test failed: "));
    let expected: BTreeSet<&str> = EXCEPTIONS.iter().map(|(name, _)| *name).collect();
    assert_eq!(failed, expected, "{lines}");
    assert_eq!(passed.len() + failed.len(), CASE_COUNT, "{lines}");
}

/// Serves as the example does, on a thread that ends with this program; answers where.
fn serve() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || conformance::serve(&listener));
    address
}

/// Where `./test` puts what the tests talk to: this program is `target/<profile>/deps/httpwg-<hash>`.
fn peers() -> PathBuf {
    let this = env::current_exe().expect("a path");
    this.ancestors().nth(3).expect("in cargo's target directory").join("peers")
}
