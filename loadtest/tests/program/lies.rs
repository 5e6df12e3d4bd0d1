//! `verify` notices each kind of wrong answer, and nothing where there is nothing.

use milena_loadtest::result::Verify;

use crate::{
    Ended,
    fake::{Fake, Lie},
    loadtest,
};

const WRONG: i32 = 97;

fn verify(fake: &Fake, more: &str) -> Ended {
    let url = fake.url();
    loadtest(&format!("verify --target {url} -q -d 1s -w 0s -c 4 --streams 8 --keys 100 --value-size 60 {more}"))
}

fn found(ended: &Ended) -> &Verify {
    ended.file().runs[0].verify.as_ref().expect("verify checks")
}

/// Lies are noticed, as `kind` and never as something that is not in `others` either, and told in words.
fn assert_caught(lie: Lie, kind: &str, others: &[&str]) {
    let fake = Fake::start(lie);
    let ended = verify(&fake, "");
    assert_eq!(ended.code(), WRONG, "{lie:?}: {}{}", ended.shown(), ended.errors());
    let found = found(&ended);
    assert!(found.violations[kind] > 0, "{lie:?}: {found:#?}");
    let beside = found.violations.iter().filter(|(found, count)| **count > 0 && *found != kind);
    let unexpected: Vec<_> = beside.filter(|(found, _)| !others.contains(&found.as_str())).collect();
    assert!(unexpected.is_empty(), "{lie:?}: {unexpected:?} {:#?}", found.examples);
    assert!(found.examples[0].contains(": key key-"), "{:?}", found.examples);
}

#[test]
fn a_server_that_tells_the_truth_is_believed() {
    let fake = Fake::start(Lie::None);
    for more in ["", "-t 2", "--ratio get:1,put:1,insert:1", "--batch 5 --ratio get:1,put:1"] {
        let ended = verify(&fake, more);
        assert_ne!(ended.code(), WRONG, "{}{}", ended.shown(), ended.errors());
        let found = found(&ended);
        assert!(found.violations.values().all(|count| *count == 0), "{more}: {found:?}");
        assert!(found.reads > 0 && found.writes > 0, "{more}: {found:?}");
    }
}

#[test]
fn an_old_value_is_caught() {
    // If somebody has read the newer one already it comes back from the dead; if it is a delete's, the newer one is lost.
    assert_caught(Lie::Old, "stale", &["resurrected", "lost"]);
}

#[test]
fn a_value_that_comes_back_after_its_delete_is_caught() {
    assert_caught(Lie::Deleted, "resurrected", &[]);
}

#[test]
fn a_write_that_was_acknowledged_and_not_done_is_caught() {
    assert_caught(Lie::Dropped, "lost", &[]);
}

#[test]
fn a_changed_bit_is_caught() {
    assert_caught(Lie::Bit, "corrupt", &[]);
}

#[test]
fn the_value_of_another_key_is_caught() {
    assert_caught(Lie::Neighbour, "wrong_key", &[]);
}

#[test]
fn a_version_that_nobody_has_written_yet_is_caught() {
    assert_caught(Lie::Future, "from_the_future", &[]);
}

#[test]
fn misses_are_not_wrong_where_they_are_allowed() {
    let fake = Fake::start(Lie::Dropped);
    let ended = verify(&fake, "--allow-misses");
    assert_ne!(ended.code(), WRONG, "{}", ended.shown());
    assert!(found(&ended).misses_allowed > 0);
}
