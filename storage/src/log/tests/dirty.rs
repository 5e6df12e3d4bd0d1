//! Changes that the store does not have: how long they wait, what replaces them, what never takes them away.
//!
//! ```text
//!   owe, owe_delete  a durable change      give  the next debt, read      upload  give, and it is done
//! ```

use super::*;
use crate::log::{
    Change, Debt, DebtError,
    footer::{Footer, FooterEntry, Growing},
    index::Place,
    record::{Body, Kind, Record},
    testing::keys_with_equal_hashes,
};

/// Whose upload, and of what.
type Uploaded = (String, Option<String>);

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
    fn upload(&mut self) -> Option<Uploaded> {
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

fn uploaded(name: &str, value: Option<&str>) -> Option<Uploaded> {
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

// ---- How much may wait.

#[test]
fn a_quarter_of_the_log_may_wait_and_then_changes_are_refused_that_make_it_more() {
    let mut bench = Bench::new(16);
    let bytes_max = 16 * u64::from(SEGMENT_BYTES) / 4;
    let value = [7; 4000];
    let refused = (0..).find(|n| bench.put_dirty(&format!("k{n}"), &value) == Err(LogError::DirtyFull)).unwrap();
    let (_, bytes) = bench.dirty();
    assert_eq!(bench.log.figures().dirty_bytes_max, bytes_max);
    assert!(bytes <= bytes_max && bytes + 4100 > bytes_max, "{bytes}");
    // What replaces as much is none too many, and the key that was refused is as it was.
    assert!(bench.put_dirty("k0", &value).is_ok() && bench.delete_dirty("k1").is_ok());
    assert_eq!(bench.known(&format!("k{refused}")), Known::Nothing);
    while bench.put_dirty(&format!("k{refused}"), &value).is_err() {
        assert!(bench.upload().is_some());
    }
    while bench.upload().is_some() {}
    assert_eq!(bench.dirty(), (0, 0));
}

#[test]
fn the_age_of_a_debt_is_that_of_the_first_change_that_the_store_lacks() {
    let mut bench = Bench::new(16);
    assert_eq!(bench.log.figures().dirty_since, None);
    bench.owe("a", "one");
    bench.now = NOW.plus_ms(10);
    bench.owe("b", "other");
    bench.owe("a", "two");
    assert_eq!(bench.log.figures().dirty_since, Some(NOW));
    bench.upload();
    assert_eq!(bench.log.figures().dirty_since, Some(NOW.plus_ms(10)));
    let mut bench = bench.restarted();
    assert_eq!(bench.log.figures().dirty_since, None);
    bench.now = NOW.plus_ms(500);
    bench.get("a");
    bench.now = NOW.plus_ms(900);
    bench.get("a");
    assert_eq!(bench.log.figures().dirty_since, Some(NOW.plus_ms(500)));
}

#[test]
fn what_waits_is_counted_among_the_entries_and_the_memory_held() {
    let mut bench = Bench::new(16);
    let held_bytes = bench.log.figures().held_bytes;
    for n in 0..1000 {
        bench.put_dirty(&format!("k{n}"), b"x").unwrap();
    }
    bench.owe_delete("d");
    bench.flush();
    let figures = bench.log.figures();
    assert!(figures.held_bytes - held_bytes > 100 * 1000, "{figures:?}");
    assert_eq!((figures.entries, figures.dirty_records), (1000, 1001));
}

// ---- Making room.

/// Fills the log with what nobody asks for again.
fn press(bench: &mut Bench, name: &str, count: u32) {
    for n in 0..count {
        bench.put(&format!("{name}{n}"), &[0; 600]).unwrap();
    }
    bench.flush();
}

#[test]
fn making_room_drops_nothing_that_the_store_lacks_and_leaves_it_where_it_is_as_long_as_it_can() {
    let mut bench = Bench::new(16);
    for n in 0..40 {
        bench.owe(&format!("put{n}"), &format!("value{n}"));
        bench.owe_delete(&format!("delete{n}"));
    }
    press(&mut bench, "filler", 4000);
    let figures = bench.log.figures();
    assert!(figures.counts.reclaimed > 30 && figures.dirty_records == 80, "{figures:?}");
    for _ in 0..2 {
        for n in 0..40 {
            assert_eq!(bench.value(&format!("put{n}")), Some(format!("value{n}")));
            assert_eq!(bench.known(&format!("delete{n}")), Known::Deleted);
        }
        bench = bench.restarted();
    }
    let given: Vec<_> = std::iter::from_fn(|| bench.upload()).collect();
    assert_eq!(given.len(), 80);
    assert!((0..40).all(|n| given.contains(&(format!("put{n}"), Some(format!("value{n}"))))));
}

#[test]
fn segments_that_all_have_something_the_store_lacks_are_emptied_too() {
    let mut bench = Bench::new(16);
    let mut owed = 0;
    for n in 0..6000 {
        bench.put(&format!("filler{n}"), &[0; 600]).unwrap();
        if n % 20 == 0 && n < 4000 {
            let name = format!("k{owed}");
            if n % 40 == 0 { bench.put_dirty(&name, name.as_bytes()) } else { bench.delete_dirty(&name) }.unwrap();
            owed += 1;
        }
    }
    bench.flush();
    assert!(bench.log.figures().counts.reclaimed > 50);
    let mut bench = bench.restarted();
    let mut given: Vec<_> = std::iter::from_fn(|| bench.upload()).collect();
    given.sort();
    let mut expected: Vec<_> = (0..owed).map(|n| (format!("k{n}"), (n % 2 == 0).then(|| format!("k{n}")))).collect();
    expected.sort();
    assert_eq!(given, expected);
}

#[test]
fn the_smallest_log_takes_writes_with_as_much_in_it_as_may_wait() {
    let mut bench = Bench::new(12);
    let life_ms = [60_000, 600_000, 10_000_000, 100_000_000];
    let owed = (0..)
        .find(|n| {
            let entry = expiring(&[7; 1500], NOW.plus_ms(life_ms[n % 4]));
            bench.put(&format!("filler{n}"), &[0; 600]).unwrap();
            bench.put_dirty_entry(&key(&format!("k{n}")), entry) == Err(LogError::DirtyFull)
        })
        .unwrap();
    for n in 0..3000 {
        let entry = expiring(&[0; 600], NOW.plus_ms(life_ms[n % 4]));
        bench.put_entry(&format!("more{n}"), entry).unwrap();
    }
    assert!(bench.log.figures().counts.reclaimed > 20);
    assert!((0..owed).all(|n| bench.get(&format!("k{n}")).is_some_and(|copy| copy.is_dirty)));
}

#[test]
fn a_record_that_is_copied_during_its_upload_is_found_and_marked_where_it_is() {
    let mut bench = Bench::new(16);
    bench.owe("a", "one");
    let given = bench.give().unwrap();
    let before = bench.place_of_debt("a");
    suspect_and_press(&mut bench, before);
    assert_ne!(bench.place_of_debt("a"), before);
    assert!(matches!(bench.read_debt(&given.debt), Ok((_, Change::Put(entry))) if entry.value == "one"));
    bench.done(given.debt).unwrap();
    assert!(!bench.has_debt("a"));
    let mut bench = bench.restarted();
    assert_eq!(bench.log.next_debt(), None);
    assert_eq!(bench.value("a").as_deref(), Some("one"));
}

#[test]
fn a_record_that_is_copied_before_its_mark_is_durable_takes_a_mark_along() {
    for is_delete in [false, true] {
        let mut bench = Bench::new(16);
        if is_delete {
            bench.owe_delete("a");
        } else {
            bench.owe("a", "one");
        }
        let debt = bench.log.next_debt().unwrap();
        let mut done = Box::pin(Rc::clone(&bench.log).debt_done(debt));
        assert!(done.as_mut().poll(&mut Context::from_waker(noop_waker_ref())).is_pending());
        let place = bench.place_of_debt("a");
        let bytes =
            bench.device.with_bytes(|segments| segments[usize::from(place.segment)][place.offset as usize..].to_vec());
        let (record, _) = Record::decode(&bytes).unwrap();
        assert!(bench.log.state.borrow_mut().carry_owed(record.key_hash, place, &record));
        bench.finish(done).unwrap();
        assert!(!bench.has_debt("a"));
        bench.device.lose_power();
        assert_eq!(bench.restarted().log.next_debt(), None);
    }
}

#[test]
fn a_mark_and_a_delete_hold_as_long_as_what_they_speak_of_is_on_disk() {
    let mut bench = Bench::new(16);
    bench.put_durably("deleted", b"old");
    bench.owe("stays", "here"); // and so keeps its segment from being emptied
    bench.owe("done", "one");
    press(&mut bench, "first", 150);
    bench.owe_delete("deleted");
    let stays = bench.give().unwrap();
    assert!(stays.is("stays", Some("here")));
    assert_eq!([bench.upload(), bench.upload()], [uploaded("done", Some("one")), uploaded("deleted", None)]);
    for round in 0..3 {
        press(&mut bench, &format!("round{round}-"), 2000);
        bench = bench.restarted();
        let Known::Nothing = bench.known("deleted") else { panic!("round {round}: it came back") };
        assert_eq!((bench.dirty().0, bench.has_debt("stays")), (1, true), "round {round}");
    }
    assert_eq!(bench.upload(), uploaded("stays", Some("here")));
    press(&mut bench, "last", 5000);
    let state = bench.log.state.borrow();
    let left: u32 = state.segments.iter().map(|segment| segment.tombstone_count).sum();
    assert!(left < 10, "{left} records that speak of nothing");
}

#[test]
fn a_copy_of_what_the_store_has_by_now_is_no_debt_again() {
    let mut bench = Bench::new(16);
    bench.owe("hot", "kept");
    assert_eq!(bench.upload(), uploaded("hot", Some("kept")));
    for n in 0..3000 {
        bench.put(&format!("k{n}"), &[0; 600]).unwrap();
        if n % 50 == 0 {
            assert_eq!(bench.value("hot").as_deref(), Some("kept"), "after {n}");
        }
    }
    bench.flush();
    let mut bench = bench.restarted();
    assert_eq!((bench.value("hot").as_deref(), bench.log.next_debt()), (Some("kept"), None));
}

#[test]
fn an_index_that_is_full_evicts_nothing_that_the_store_lacks() {
    let bench = Bench::new(16);
    let device = bench.device.clone();
    drop(bench);
    let found = device.with_bytes(|segments| {
        let bytes: Vec<&[u8]> = segments.iter().map(Vec::as_slice).collect();
        recover(LOG_ID, SEGMENT_BYTES, &bytes).found
    });
    let log = Log::with_found(device.clone(), found, 12 * 100);
    let run = Box::pin(Rc::clone(&log).run());
    let mut bench = Bench { device, log, run, has_ended: false, now: NOW };
    for n in 0..50 {
        bench.owe(&format!("k{n}"), "x");
        press(&mut bench, &format!("filler{n}-"), 20);
    }
    let figures = bench.log.figures();
    assert!(figures.counts.evictions > 200 && figures.entries < 700, "{figures:?}");
    assert!((0..50).all(|n| bench.has_debt(&format!("k{n}")) && bench.value(&format!("k{n}")).is_some()));
}

#[test]
fn a_log_with_debts_leaves_no_index_behind() {
    let mut bench = Bench::new(16);
    bench.owe("a", "one");
    bench.stop();
    assert_eq!(saved::encode(&bench.log.state.borrow()), None);
    let segment_count = bench.segment_count();
    let mut bench = bench.restarted_from_index(segment_count);
    assert_eq!(bench.upload(), uploaded("a", Some("one")));
    bench.stop();
    assert!(saved::encode(&bench.log.state.borrow()).is_some());
    let segment_count = bench.segment_count();
    let mut bench = bench.restarted_from_index(segment_count);
    assert_eq!((bench.log.next_debt(), bench.value("a").as_deref()), (None, Some("one")));
    bench.device.lose_power();
    assert_eq!(bench.restarted().log.next_debt(), None);
}

// ---- Crashes.

/// What a start finds in segments with these records, all of one hash: the sequences of the debt, and of what is in the
/// index.
fn found_in(segments: &[&[Record<'_>]]) -> (Option<u64>, Option<u64>) {
    let bytes: Vec<Vec<u8>> = (0..).zip(segments).map(|(number, records)| segment_of(number, records)).collect();
    let slices: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
    let found = recover(LOG_ID, SEGMENT_BYTES, &slices).found;
    let sequence_at = |place: &Place| {
        let bytes = &bytes[usize::from(place.segment)][place.offset as usize..];
        Record::decode(bytes).unwrap().0.sequence
    };
    let mut indexed = Vec::new();
    found.index.candidates(HASH, &mut indexed);
    assert!(found.debts.len() <= 1 && indexed.len() <= 1);
    (found.debts.first().map(|debt| debt.sequence), indexed.first().map(sequence_at))
}

fn segment_of(number: u16, records: &[Record<'_>]) -> Vec<u8> {
    let header =
        SegmentHeader { log_id: LOG_ID, segment: number, generation: 1, first_sequence: 1, is_void: false, class: 0 };
    let mut bytes = header.encode_block();
    records.iter().for_each(|record| record.encode(&mut bytes));
    bytes.resize(SEGMENT_BYTES as usize, 0);
    bytes.to_vec()
}

const HASH: u64 = 7;

fn put_record(sequence: u64, is_dirty: bool) -> Record<'static> {
    let body = Body::Put {
        bucket: b"default",
        name: b"a",
        version: b"v",
        value: b"x",
        expires: None,
        believed_until_s: None,
        has_older: true,
        is_dirty,
    };
    Record { sequence, key_hash: HASH, body }
}

#[test]
fn a_start_owes_the_newest_change_of_a_hash_unless_a_mark_names_it_or_something_newer_is_there() {
    let dirty = |sequence| put_record(sequence, true);
    let clean = |sequence| put_record(sequence, false);
    let record = |sequence, body| Record { sequence, key_hash: HASH, body };
    let delete = |sequence| record(sequence, Body::DirtyDelete { bucket: b"default", name: b"a" });
    let mark = |sequence, origin| record(sequence, Body::Mark { origin });
    let tombstone = |sequence| record(sequence, Body::Tombstone { origin: sequence });

    assert_eq!(found_in(&[&[dirty(1)]]), (Some(1), None));
    assert_eq!(found_in(&[&[dirty(1), mark(2, 2)]]), (None, Some(1)));
    assert_eq!(found_in(&[&[dirty(1), dirty(2), mark(3, 2)]]), (Some(2), None));
    assert_eq!(found_in(&[&[dirty(1), dirty(2), mark(3, 3)]]), (None, Some(2)));
    assert_eq!(found_in(&[&[delete(1)]]), (Some(1), None));
    assert_eq!(found_in(&[&[clean(1), dirty(2), delete(3)]]), (Some(3), None));
    assert_eq!(found_in(&[&[clean(1), delete(2), mark(3, 3)]]), (None, None));
    assert_eq!(found_in(&[&[delete(1), dirty(2)]]), (Some(2), None));
    // Wherever their segments stand.
    assert_eq!(found_in(&[&[mark(4, 4)], &[dirty(3)], &[clean(1)]]), (None, Some(3)));
    assert_eq!(found_in(&[&[dirty(3)], &[dirty(2), mark(5, 3)], &[clean(1)]]), (Some(3), None));
    // With a mark that was damaged since: what is newer was written when it was durable.
    assert_eq!(found_in(&[&[dirty(1), clean(3)]]), (None, Some(3)));
    assert_eq!(found_in(&[&[clean(3)], &[dirty(1)]]), (None, Some(3)));
    assert_eq!(found_in(&[&[dirty(1), tombstone(3)]]), (None, None));
    assert_eq!(found_in(&[&[delete(1), clean(3)]]), (None, Some(3)));
}

/// A segment with a change of each kind and a mark, on disk, and where they end.
fn small_dirty_log() -> (Vec<u8>, usize) {
    let mut bench = Bench::new(8);
    bench.put_dirty("a", b"one").unwrap();
    bench.put_dirty("b", b"two").unwrap();
    bench.flush();
    assert_eq!(bench.upload(), uploaded("a", Some("one")));
    bench.owe_delete("b");
    let bytes = bench.device.with_bytes(|bytes| bytes[0].clone());
    let end = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    (bytes, end)
}

/// What is left of [`small_dirty_log`] after `damage`: what is owed, and the value of a.
fn debts_left_after(bytes: &[u8], damage: impl FnOnce(&mut Vec<u8>)) -> (Vec<Uploaded>, Option<String>) {
    let bench = Bench::new(8);
    bench.device.with_bytes(|target| {
        target[0].copy_from_slice(bytes);
        damage(&mut target[0]);
    });
    let mut bench = bench.restarted();
    let value = bench.value("a");
    (std::iter::from_fn(|| bench.upload()).collect(), value)
}

fn dirty_prefixes() -> Vec<(Vec<Uploaded>, Option<String>)> {
    let [a, b, no_b] =
        [uploaded("a", Some("one")), uploaded("b", Some("two")), uploaded("b", None)].map(Option::unwrap);
    let one = Some("one".to_owned());
    vec![
        (vec![], None),
        (vec![a.clone()], one.clone()),
        (vec![a, b.clone()], one.clone()),
        (vec![b], one.clone()),
        (vec![no_b], one),
    ]
}

#[test]
fn a_segment_of_debts_cut_at_any_byte_holds_those_before_the_cut() {
    let (bytes, end) = small_dirty_log();
    let prefixes = dirty_prefixes();
    let mut seen = vec![false; prefixes.len()];
    // Among zeros one cut is as good as the next.
    let is_edge = |cut: &usize| *cut == 0 || *cut == end || bytes[*cut] != 0 || bytes[*cut - 1] != 0;
    for cut in (0..=end).filter(is_edge) {
        let zeroed = debts_left_after(&bytes, |segment| segment[cut..].fill(0));
        let prefix = prefixes.iter().position(|prefix| *prefix == zeroed);
        seen[prefix.unwrap_or_else(|| panic!("zeros from {cut}: {zeroed:?}"))] = true;
        let truncated = debts_left_after(&bytes, |segment| segment.truncate(cut.max(1)));
        assert!(prefixes.contains(&truncated), "cut at {cut}: {truncated:?}");
    }
    assert_eq!(seen, [true; 5]);
}

#[test]
fn a_segment_of_debts_with_any_byte_flipped_holds_those_before_it() {
    let (bytes, end) = small_dirty_log();
    for index in 0..end {
        let left = debts_left_after(&bytes, |segment| segment[index] ^= 0x5A);
        assert!(dirty_prefixes().contains(&left), "byte {index}: {left:?}");
    }
}

#[test]
fn footers_with_any_entries_of_dirty_records_do_no_harm() {
    for seed in seeds(50) {
        let mut random = Random(seed);
        let mut bench = Bench::with_seed(12, seed);
        for _ in 0..300 {
            let name = format!("k{}", random.below(30));
            match random.below(4) {
                0 => drop(bench.put(&name, &[b'x'; 500])),
                1 => drop(bench.put_dirty(&name, &[b'y'; 500])),
                2 => drop(bench.delete_dirty(&name)),
                _ => drop(bench.upload()),
            }
        }
        bench.stop();
        // Entries are mixed up within a footer whose checksums are made to hold: what a bug could leave.
        bench.device.with_bytes(|segments| {
            for segment in segments {
                let Some(header) = SegmentHeader::decode(segment).filter(|header| !header.is_void) else { continue };
                let Some(footer) = Footer::decode(segment, &header) else { continue };
                let (expires_max, last_sequence) = (footer.expires_max, footer.last_sequence);
                let mut entries: Vec<FooterEntry> = footer.iter().collect();
                for _ in 0..3 {
                    let index = random.below(entries.len() as u64) as usize;
                    entries[index].kind = Kind::of(1 + random.below(5)).unwrap();
                }
                let bytes = Growing::from_iter(&entries).finish(&header, last_sequence, expires_max);
                let start = segment.len() - bytes.len();
                segment[start..].copy_from_slice(&bytes);
            }
        });
        let mut bench = bench.restarted();
        let mut debts: Vec<Debt> = std::iter::from_fn(|| bench.log.next_debt()).collect();
        for debt in debts.drain(..) {
            match bench.read_debt(&debt) {
                Ok(_) => bench.done(debt).unwrap(),
                Err(why) => {
                    assert_eq!(why, DebtError::Corrupt, "MILENA_SEED={seed}");
                    bench.log.debt_failed(debt);
                }
            }
        }
        for n in 0..30 {
            bench.known(&format!("k{n}"));
        }
        press(&mut bench, "filler", 100);
    }
}

// ---- Faults.

#[test]
fn a_debt_that_cannot_be_read_is_told_apart_from_nothing_and_stays_one() {
    let mut bench = Bench::new(16);
    bench.owe("a", "one");
    let debt = bench.log.next_debt().unwrap();
    bench.device.fail(bench.device.calls(), 4, Fault::Error);
    assert_eq!(bench.known("a"), Known::Unreadable);
    assert_eq!(bench.put_dirty("a", b"two"), Err(LogError::Unreadable));
    assert_eq!(bench.delete_dirty("a"), Err(LogError::Unreadable));
    assert!(matches!(bench.read_debt(&debt), Err(DebtError::Device(_))));
    bench.device.fail(bench.device.calls(), 1, Fault::Lie);
    assert_eq!(bench.read_debt(&debt), Err(DebtError::Corrupt));
    bench.log.debt_failed(debt);
    assert_eq!((bench.value("a").as_deref(), bench.upload()), (Some("one"), uploaded("a", Some("one"))));
}

#[test]
fn a_segment_with_a_debt_that_cannot_be_read_is_never_given_up() {
    let mut bench = Bench::new(16);
    bench.owe("a", "one");
    bench.owe("b", "two");
    let place = bench.place_of_debt("a");
    let damage = |bench: &Bench| {
        bench.device.with_bytes(|segments| segments[usize::from(place.segment)][place.offset as usize + 50] ^= 1);
    };
    damage(&bench);
    assert_eq!(bench.known("a"), Known::Unreadable);
    for n in 0..3000 {
        // Whoever waits for room while it is tried is told that there is none.
        while bench.put(&format!("filler{n}"), &[0; 600]).is_err() {
            bench.turn();
        }
    }
    assert!(bench.log.figures().counts.reclaimed > 20);
    assert_eq!((bench.place_of_debt("a"), bench.has_debt("b")), (place, true));
    damage(&bench); // undone
    assert_eq!([bench.upload(), bench.upload()], [uploaded("a", Some("one")), uploaded("b", Some("two"))]);
}

#[test]
fn what_a_failed_write_or_sync_held_of_debts_goes_elsewhere() {
    // The one write that is durable by itself; or, where a fill is on its way to the disk already, the write and its sync.
    for (has_fill, failing) in [(false, 0), (true, 0), (true, 1)] {
        let mut bench = Bench::new(16);
        let fail = |bench: &mut Bench| {
            if has_fill {
                bench.put_unsynced("fill", b"zero");
            }
            bench.device.fail(bench.device.calls() + failing, 1, Fault::Error);
        };
        bench.owe("before", "zero");
        fail(&mut bench);
        bench.owe("a", "one");
        assert_eq!(bench.log.figures().counts.write_errors, 1);
        let given = bench.give().unwrap();
        assert!(given.is("before", Some("zero")));
        fail(&mut bench);
        bench.done(given.debt).unwrap();
        assert_eq!(bench.log.figures().counts.write_errors, 2);
        bench.device.lose_power();
        let mut bench = bench.restarted();
        assert_eq!([bench.upload(), bench.upload()], [uploaded("a", Some("one")), None]);
    }
}

#[test]
fn where_the_disk_was_given_up_debts_are_answered_and_uploaded_and_stay_debts() {
    let mut bench = Bench::new(16);
    bench.owe("a", "one");
    bench.owe_delete("b");
    bench.device.fail(bench.device.calls(), u64::MAX, Fault::NoSpace);
    let position = bench.put_dirty("c", b"three").unwrap();
    assert_eq!(bench.durable(position), Err(LogError::Offline));
    assert_eq!(bench.put_dirty("a", b"two"), Err(LogError::Offline));
    bench.device.fail_no_more(); // of reads
    assert_eq!((bench.value("a").as_deref(), bench.known("b")), (Some("one"), Known::Deleted));
    assert_eq!(bench.value("c").as_deref(), Some("three"), "it never reached the disk");
    for (name, value) in [("a", Some("one")), ("b", None), ("c", Some("three"))] {
        let given = bench.give().unwrap();
        assert!(given.is(name, value));
        assert_eq!(bench.done(given.debt), Err(LogError::Offline));
        assert!(bench.has_debt(name), "a restart would upload it again");
    }
    assert_eq!(bench.log.next_debt(), None);
    let mut bench = bench.restarted();
    assert_eq!(
        [bench.upload(), bench.upload(), bench.upload()],
        [uploaded("a", Some("one")), uploaded("b", None), None]
    );
}

/// Has the segment of `place` emptied, as one with a fault, and makes room go round.
fn suspect_and_press(bench: &mut Bench, place: Place) {
    bench.log.state.borrow_mut().suspect(place);
    press(bench, "filler", 1500);
}

impl Bench {
    fn place_of_debt(&self, name: &str) -> Place {
        self.log.state.borrow().debts.get(key(name).hash()).unwrap().place
    }
}
