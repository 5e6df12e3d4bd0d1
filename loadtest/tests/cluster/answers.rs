//! What clients read under load while nodes come and go: `milena-loadtest verify` against a whole cluster.

use milena_loadtest::result::ResultFile;

use crate::programs::{PATIENCE, Program, start_cluster, wait_until};

#[test]
fn no_read_is_older_than_an_acknowledged_write_while_a_node_is_killed_and_returns() {
    let mut cluster = start_cluster(2);
    let dir = tempfile::tempdir().expect("a directory of our own");
    let target = format!("http://{}", cluster.router.address);
    let load = "verify -w 0 -d 20s -c 2 --streams 4 --keys 200 --value-size 100 -o result.json --target";
    let words: Vec<&str> = load.split(' ').chain([&*target]).collect();
    let mut verify = Program::start("milena-loadtest", &words, &[], dir.path());

    wait_until("the first second is over", PATIENCE, || verify.log().contains(" requests/s ").then_some(()));
    cluster.nodes[0].kill();
    cluster.wait_for_live(1);
    cluster.nodes[0].start();
    cluster.wait_for_live(2);

    // Calls that failed while nobody had the keys may make the run invalid; that is another matter.
    verify.exit_code();
    let file =
        ResultFile::read(&dir.path().join("result.json")).unwrap_or_else(|error| panic!("{error}: {}", verify.log()));
    let found = file.runs[0].verify.as_ref().expect("verify checks");
    assert!(found.violations.values().all(|count| *count == 0), "{found:#?}");
    assert!(found.reads > 0 && found.writes > 200, "{found:?}");
}
