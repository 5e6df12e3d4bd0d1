//! Changes that the store does not have: how long they wait, what replaces them, what never takes them away.
//!
//! ```text
//!   owe, owe_delete  a durable change      give  the next debt, read      upload  give, and it is done
//! ```

use super::*;
use crate::log::{Change, Debt, DebtError, testing::keys_with_equal_hashes};

/// A debt that was given out, and what is to be uploaded.
struct Given {
    debt: Debt,
    name: String,
    value: Option<String>,
}

impl Given {
    fn is(&self, name: &str, value: Option<&str>) -> bool {
        (self.name.as_str(), self.value.as_deref()) == (name, value)
    }
}

impl Bench {
    fn put_dirty(&mut self, name: &str, value: &[u8]) -> Result<Position, LogError> {
        self.put_dirty_entry(&key(name), entry(value, "v"))
    }

    fn put_dirty_entry(&mut self, key: &Key, entry: Entry) -> Result<Position, LogError> {
        let now = self.now;
        self.finish(Rc::clone(&self.log).put_dirty(key.clone(), entry, None, now))
    }

    fn delete_dirty(&mut self, name: &str) -> Result<Position, LogError> {
        let now = self.now;
        self.finish(Rc::clone(&self.log).delete_dirty(key(name), now))
    }

    fn owe(&mut self, name: &str, value: &str) {
        let position = self.put_dirty(name, value.as_bytes()).unwrap();
        self.durable(position).unwrap();
    }

    fn owe_delete(&mut self, name: &str) {
        let position = self.delete_dirty(name).unwrap();
        self.durable(position).unwrap();
    }

    fn read_debt(&mut self, debt: &Debt) -> Result<(Key, Change), DebtError> {
        let log = Rc::clone(&self.log);
        self.finish(log.read_debt(debt))
    }

    fn give(&mut self) -> Option<Given> {
        let debt = self.log.next_debt()?;
        let (key, change) = self.read_debt(&debt).unwrap();
        let value = match change {
            Change::Put(entry) => Some(String::from_utf8(entry.value.to_vec()).unwrap()),
            Change::Delete => None,
        };
        Some(Given { debt, name: String::from_utf8(key.name().to_vec()).unwrap(), value })
    }

    fn done(&mut self, debt: Debt) -> Result<(), LogError> {
        self.finish(Rc::clone(&self.log).debt_done(debt))
    }

    /// Uploads the next debt: whose it was, and the value.
    fn upload(&mut self) -> Option<(String, Option<String>)> {
        let Given { debt, name, value } = self.give()?;
        self.done(debt).unwrap();
        Some((name, value))
    }

    fn has_debt(&self, name: &str) -> bool {
        self.log.has_debt(key(name).hash())
    }

    fn dirty(&self) -> (u64, u64) {
        let figures = self.log.figures();
        (figures.dirty_records, figures.dirty_bytes)
    }
}

/// Bytes of records that the store does not have, as the segments count them.
pub(super) fn bytes_of_dirty_records(bench: &Bench) -> u64 {
    bench.log.state.borrow().segments.iter().map(|segment| segment.dirty_bytes).sum()
}

fn uploaded(name: &str, value: Option<&str>) -> Option<(String, Option<String>)> {
    Some((name.to_owned(), value.map(str::to_owned)))
}

// ---- What waits, and until when.

#[test]
fn a_dirty_put_is_answered_and_owed_until_its_upload_is_done() {
    let mut bench = Bench::new(16);
    bench.owe("a", "one");
    assert!(bench.has_debt("a") && !bench.has_debt("b"));
    assert_eq!(bench.get("a").map(|copy| (copy.is_dirty, copy.believed_until)), Some((true, None)));
    assert_eq!(bench.upload(), uploaded("a", Some("one")));
    assert!(!bench.has_debt("a") && bench.log.next_debt().is_none());
    assert_eq!(bench.get("a").map(|copy| (copy.is_dirty, copy.entry.value)), Some((false, Bytes::from("one"))));
}

#[test]
fn a_dirty_delete_is_known_and_owed_also_of_a_key_that_the_log_has_never_seen() {
    let mut bench = Bench::new(16);
    bench.put_durably("a", b"one");
    bench.owe_delete("a");
    bench.owe_delete("b");
    assert_eq!(
        [bench.known("a"), bench.known("b"), bench.known("c")],
        [Known::Deleted, Known::Deleted, Known::Nothing]
    );
    assert_eq!([bench.upload(), bench.upload()], [uploaded("a", None), uploaded("b", None)]);
    assert_eq!([bench.known("a"), bench.known("b")], [Known::Nothing, Known::Nothing]);
    let mut bench = bench.restarted();
    assert_eq!((bench.known("a"), bench.log.next_debt()), (Known::Nothing, None));
}

#[test]
fn debts_survive_a_crash_of_the_machine_and_what_is_done_is_not_owed_again() {
    let mut bench = Bench::new(16);
    bench.owe("a", "one");
    bench.owe("b", "two");
    bench.owe_delete("c");
    assert_eq!(bench.upload(), uploaded("a", Some("one")));
    bench.device.lose_power();
    let mut bench = bench.restarted();
    assert_eq!([bench.has_debt("a"), bench.has_debt("b"), bench.has_debt("c")], [false, true, true]);
    assert_eq!([bench.value("a").as_deref(), bench.value("b").as_deref()], [Some("one"), Some("two")]);
    assert_eq!(bench.known("c"), Known::Deleted);
    assert_eq!(
        [bench.upload(), bench.upload(), bench.upload()],
        [uploaded("b", Some("two")), uploaded("c", None), None]
    );
    assert_eq!(bench.dirty(), (0, 0));
    assert_eq!(bench.restarted().dirty(), (0, 0));
}

#[test]
fn a_debt_is_not_over_before_its_mark_is_durable() {
    let mut bench = Bench::new(16);
    bench.owe("a", "one");
    let debt = bench.log.next_debt().unwrap();
    {
        let mut done = pin!(Rc::clone(&bench.log).debt_done(debt));
        assert!(done.as_mut().poll(&mut Context::from_waker(noop_waker_ref())).is_pending());
        assert!(bench.has_debt("a") && bench.log.next_debt().is_none());
        bench.finish(done).unwrap();
    }
    assert!(!bench.has_debt("a"));
}

#[test]
fn marks_share_a_sync() {
    let mut bench = Bench::new(16);
    for n in 0..64 {
        bench.put_dirty(&format!("k{n}"), b"x").unwrap();
    }
    bench.flush();
    let before = bench.log.figures().counts.syncs;
    let debts: Vec<Debt> = std::iter::from_fn(|| bench.log.next_debt()).collect();
    let all = debts.into_iter().map(|debt| Rc::clone(&bench.log).debt_done(debt)).collect::<Vec<_>>();
    assert!(bench.finish(futures::future::join_all(all)).iter().all(Result::is_ok));
    assert!(bench.log.figures().counts.syncs - before <= 2 && bench.dirty() == (0, 0));
}

#[test]
fn a_newer_change_replaces_one_that_waits_which_is_never_uploaded() {
    let mut bench = Bench::new(16);
    bench.owe("a", "one");
    bench.owe("b", "other");
    bench.owe("a", "two");
    assert_eq!((bench.value("a").as_deref(), bench.dirty().0), (Some("two"), 2));
    let mut bench = bench.restarted();
    assert_eq!(bench.value("a").as_deref(), Some("two"));
    bench.owe_delete("b");
    bench.owe("b", "again");
    assert_eq!(
        [bench.upload(), bench.upload(), bench.upload()],
        [uploaded("b", Some("again")), uploaded("a", Some("two")), None]
    );
}

#[test]
fn a_change_that_comes_during_an_upload_is_given_out_when_that_has_ended() {
    for has_failed in [false, true] {
        let mut bench = Bench::new(16);
        bench.owe("a", "one");
        let first = bench.give().unwrap();
        bench.owe("a", "two");
        assert_eq!(bench.log.next_debt(), None);
        assert_eq!(bench.read_debt(&first.debt), Err(DebtError::Superseded));
        if has_failed {
            bench.log.debt_failed(first.debt);
        } else {
            bench.done(first.debt).unwrap();
        }
        assert!(bench.has_debt("a"));
        assert_eq!(bench.upload(), uploaded("a", Some("two")));
        assert!(!bench.has_debt("a"));
    }
}

#[test]
fn an_upload_that_was_overtaken_leaves_no_mark_so_that_nothing_is_lost_with_it() {
    let mut bench = Bench::new(16);
    bench.owe("a", "one");
    let first = bench.give().unwrap();
    bench.owe("a", "two");
    bench.done(first.debt).unwrap();
    let mut bench = bench.restarted();
    assert_eq!(bench.upload(), uploaded("a", Some("two")));
}

#[test]
fn what_failed_is_given_out_again_after_all_others() {
    let mut bench = Bench::new(16);
    ["a", "b", "c"].into_iter().for_each(|name| bench.owe(name, name));
    let first = bench.give().unwrap();
    assert!(first.is("a", Some("a")));
    bench.log.debt_failed(first.debt);
    let names: Vec<String> = std::iter::from_fn(|| bench.upload()).map(|(name, _)| name).collect();
    assert_eq!(names, ["b", "c", "a"]);
}

#[test]
fn debts_come_in_the_order_of_their_changes_also_after_a_restart() {
    let mut bench = Bench::new(16);
    let names: Vec<String> = (0..50).map(|n| format!("k{}", n * 37 % 50)).collect();
    for name in &names {
        bench.put_dirty(name, b"x").unwrap();
    }
    bench.flush();
    let mut bench = bench.restarted();
    let given: Vec<String> = std::iter::from_fn(|| bench.upload()).map(|(name, _)| name).collect();
    assert_eq!(given, names);
}

#[test]
fn who_waits_for_debts_is_told_of_each_that_may_be_given_out() {
    let mut bench = Bench::new(16);
    let log = Rc::clone(&bench.log);
    let hears =
        |log: &Log<Scripted>| pin!(log.more_debts()).poll(&mut Context::from_waker(noop_waker_ref())).is_ready();
    assert!(hears(&log), "a start may have found some");
    assert!(!hears(&log));
    bench.owe("a", "one");
    assert!(hears(&log) && !hears(&log));
    let debt = log.next_debt().unwrap();
    bench.owe_delete("a");
    let _ = hears(&log);
    log.debt_failed(debt);
    assert!(hears(&log));
    let debt = log.next_debt().unwrap();
    bench.owe("a", "two");
    let _ = hears(&log);
    bench.done(debt).unwrap();
    assert!(hears(&log));
}

#[test]
fn a_dirty_copy_is_believed_whatever_anybody_doubts_and_a_clean_one_no_more() {
    let mut bench = Bench::new(16);
    let until = Some(NOW.plus_ms(1000));
    let put = Rc::clone(&bench.log).put_dirty(key("a"), entry(b"x", "v"), until, NOW);
    bench.finish(put).unwrap();
    bench.now = NOW.plus_ms(5000);
    bench.log.doubt_all();
    assert_eq!(bench.get("a").unwrap().believed_until, None);
    assert!(bench.upload().is_some());
    assert_eq!(bench.get("a").unwrap().believed_until, Some(Timestamp(0)));
}

#[test]
fn a_dirty_value_whose_life_ended_is_no_hit_and_still_a_debt() {
    let mut bench = Bench::new(16);
    let position = bench.put_dirty_entry(&key("a"), expiring(b"one", NOW.plus_ms(1000))).unwrap();
    bench.durable(position).unwrap();
    bench.now = NOW.plus_ms(1000);
    assert_eq!(bench.known("a"), Known::Deleted);
    let mut bench = bench.restarted();
    assert_eq!((bench.known("a"), bench.has_debt("a")), (Known::Deleted, true));
    let debt = bench.log.next_debt().unwrap();
    let (_, change) = bench.read_debt(&debt).unwrap();
    assert!(matches!(change, Change::Put(entry) if entry.is_expired(bench.now)));
    bench.done(debt).unwrap();
    assert_eq!(bench.known("a"), Known::Nothing);
}

#[test]
fn a_dirty_put_that_is_not_kept_leaves_everything_as_it_was() {
    let mut bench = Bench::new(16);
    bench.put_durably("clean", b"one");
    bench.owe("dirty", "two");
    let not_kept =
        [entry(&vec![7; SEGMENT_BYTES as usize / 8], "v"), entry(b"x", &"v".repeat(256)), expiring(b"x", NOW)];
    for entry in not_kept {
        for name in ["clean", "dirty"] {
            assert_eq!(bench.put_dirty_entry(&key(name), entry.clone()), Err(LogError::NotKept));
        }
    }
    assert_eq!((bench.value("clean").as_deref(), bench.has_debt("clean")), (Some("one"), false));
    assert_eq!((bench.value("dirty").as_deref(), bench.has_debt("dirty")), (Some("two"), true));
}

#[test]
fn a_dirty_put_that_is_dropped_before_it_is_appended_has_written_nothing() {
    let mut bench = Bench::new(16);
    bench.put_durably("a", b"one");
    bench.device.set_delay_max(1000);
    {
        let mut put = pin!(Rc::clone(&bench.log).put_dirty(key("a"), entry(b"two", "v"), None, NOW));
        assert!(put.as_mut().poll(&mut Context::from_waker(noop_waker_ref())).is_pending());
    }
    assert_eq!((bench.value("a").as_deref(), bench.has_debt("a")), (Some("one"), false));
}

// ---- What else is done to the key meanwhile.

#[test]
fn nothing_that_comes_from_the_store_replaces_what_it_does_not_have() {
    let mut bench = Bench::new(16);
    bench.owe("a", "mine");
    bench.owe_delete("b");
    for name in ["a", "b"] {
        assert_eq!(bench.put(name, b"theirs"), Err(LogError::Owed));
        let fill = Rc::clone(&bench.log).fill(key(name), entry(b"theirs", "v"), None, NOW, || true);
        assert_eq!(bench.finish(fill), Err(LogError::Owed));
        assert_eq!(bench.delete(name), Err(LogError::Owed));
        bench.finish(Rc::clone(&bench.log).delete_if(key(name), NOW, || true));
        bench.log.forget(key(name).as_ref());
    }
    bench.flush();
    for _ in 0..2 {
        assert_eq!((bench.value("a").as_deref(), bench.known("b")), (Some("mine"), Known::Deleted));
        assert_eq!(bench.dirty().0, 2);
        bench = bench.restarted();
    }
    while bench.upload().is_some() {}
    assert!(bench.put("a", b"theirs").is_ok() && bench.put("b", b"theirs").is_ok());
    assert_eq!((bench.value("a").as_deref(), bench.value("b").as_deref()), (Some("theirs"), Some("theirs")));
    bench.delete("a").unwrap();
    bench.flush();
    let mut bench = bench.restarted();
    assert_eq!(
        (bench.known("a"), bench.value("b").as_deref(), bench.dirty()),
        (Known::Nothing, Some("theirs"), (0, 0))
    );
}

#[test]
fn a_newer_clean_value_after_the_mark_is_not_uploaded_over_by_a_crash() {
    let mut bench = Bench::new(16);
    bench.owe("a", "one");
    bench.upload();
    bench.put("a", b"newer, and the store has it").unwrap();
    bench.device.lose_power();
    assert_eq!(bench.restarted().log.next_debt(), None);
}

// ---- Two keys with the same hash.

#[test]
fn a_dirty_change_of_another_key_with_the_same_hash_is_refused_while_one_waits() {
    let [first, second] = keys_with_equal_hashes();
    let mut bench = Bench::new(16);
    bench.put_dirty_entry(&first, entry(b"first", "v")).unwrap();
    assert_eq!(bench.put_dirty_entry(&second, entry(b"second", "v")), Err(LogError::Owed));
    let delete = Rc::clone(&bench.log).delete_dirty(second.clone(), NOW);
    assert_eq!(bench.finish(delete), Err(LogError::Owed));
    assert!(bench.upload_as(&first, Some(b"first")));
    bench.put_dirty_entry(&second, entry(b"second", "v")).unwrap();
    assert_eq!(bench.known_of(&first), Some(Bytes::from("first")));
    bench.flush();
    let mut bench = bench.restarted();
    assert!(bench.upload_as(&second, Some(b"second")));
}

#[test]
fn nothing_that_is_done_to_another_key_with_the_same_hash_takes_a_debt_away() {
    let [first, second] = keys_with_equal_hashes();
    for is_delete in [false, true] {
        let mut bench = Bench::new(16);
        let put = Rc::clone(&bench.log).put(second.clone(), entry(b"before", "v"), None, NOW);
        bench.finish(put).unwrap();
        if is_delete {
            bench.finish(Rc::clone(&bench.log).delete_dirty(first.clone(), NOW)).unwrap();
        } else {
            bench.put_dirty_entry(&first, entry(b"first", "v")).unwrap();
        }
        assert_eq!(bench.known_of(&second), Some(Bytes::from("before")), "it is another key");
        let put = Rc::clone(&bench.log).put(second.clone(), entry(b"after", "v"), None, NOW);
        assert_eq!(bench.finish(put), Err(LogError::Owed));
        assert_eq!(bench.known_of(&second), None, "what was there is older than what the store has");
        assert_eq!(bench.finish(Rc::clone(&bench.log).delete(second.clone(), NOW)), Err(LogError::Owed));
        bench.log.forget(second.as_ref());
        bench.flush();
        let mut bench = bench.restarted();
        let value: Option<&[u8]> = if is_delete { None } else { Some(b"first") };
        assert_eq!(bench.known_of(&second), None);
        assert!(bench.upload_as(&first, value));
        assert_eq!(bench.log.next_debt(), None);
    }
}

#[test]
fn a_hot_copy_of_another_key_with_the_same_hash_is_not_carried_over_a_debt() {
    let [first, second] = keys_with_equal_hashes();
    let mut bench = Bench::new(16);
    let put = Rc::clone(&bench.log).put(second.clone(), entry(b"hot", "v"), None, NOW);
    bench.finish(put).unwrap();
    for n in 0..100 {
        bench.put(&format!("filler{n}"), &[0; 600]).unwrap();
    }
    bench.put_dirty_entry(&first, entry(b"first", "v")).unwrap();
    for n in 0..3000 {
        bench.known_of(&second);
        bench.put(&format!("k{n}"), &[0; 600]).unwrap();
    }
    assert!(bench.log.figures().counts.reclaimed > 20);
    assert_eq!(bench.known_of(&second), None, "it had to go");
    bench.flush();
    let mut bench = bench.restarted();
    assert!(bench.upload_as(&first, Some(b"first")));
}

impl Bench {
    fn known_of(&mut self, key: &Key) -> Option<Bytes> {
        let now = self.now;
        let known = self.finish(Rc::clone(&self.log).get(key.clone(), now));
        known.into_copy().map(|copy| copy.entry.value)
    }

    fn upload_as(&mut self, key: &Key, value: Option<&[u8]>) -> bool {
        let debt = self.log.next_debt().unwrap();
        let (found, change) = self.read_debt(&debt).unwrap();
        self.done(debt).unwrap();
        let is_it = match change {
            Change::Put(entry) => Some(&entry.value[..]) == value,
            Change::Delete => value.is_none(),
        };
        is_it && found == *key
    }
}
