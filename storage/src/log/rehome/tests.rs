//! Logs of some cores become logs of others: nothing is lost that counts, nothing comes back, and a start that is cut off
//! anywhere is finished by the next.

use std::{cell::Cell, collections::BTreeMap, rc::Rc};

use bytes::Bytes;
use glommio::{LocalExecutorBuilder, Placement};
use milena_proto::{
    key::{Key, KeyRef},
    placement,
};
use tempfile::TempDir;

use super::*;
use crate::{
    Entry, Version,
    log::{
        Copy, Disk, Known, Log, Position, SEGMENT_BYTES_MIN,
        open::open,
        testing::{Random, seeds},
    },
};

const NOW: Timestamp = Timestamp(1_700_000_000_000);

/// A node's directory.
struct Node {
    dir: TempDir,
    /// All its logs together.
    disk_bytes: u64,
    space_bytes_max: u64,
    starts: Cell<u64>,
}

/// How its logs end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    Stopped,
}

impl Node {
    fn new(disk_bytes: u64) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), disk_bytes, space_bytes_max: u64::MAX, starts: Cell::new(0) }
    }

    /// The same once more, elsewhere.
    fn copy(&self) -> Self {
        let copy = Self { space_bytes_max: self.space_bytes_max, ..Self::new(self.disk_bytes) };
        copy.starts.set(self.starts.get());
        copy_dir(self.dir.path(), copy.dir.path());
        copy
    }

    fn settings(&self, core_count: u16) -> Vec<LogSettings> {
        self.starts.set(self.starts.get() + 1);
        let of_core = |core: u16| LogSettings {
            dir: log_dir(self.dir.path(), usize::from(core)),
            core,
            core_count,
            disk_bytes: self.disk_bytes / u64::from(core_count),
            new_log_id: self.starts.get() << 8 | u64::from(core),
        };
        (0..core_count).map(of_core).collect()
    }

    fn rehome(&self, core_count: u16) -> Result<Option<Rehomed>, RehomeError> {
        self.steps(core_count, usize::MAX).map(|(rehomed, _)| rehomed)
    }

    /// Goes as many steps and no further, and says whether there are any left.
    fn steps(&self, core_count: u16, steps_max: usize) -> Result<(Option<Rehomed>, bool), RehomeError> {
        let logs = self.settings(core_count);
        let space_bytes_max = self.space_bytes_max;
        let rehoming = Rehoming { node_dir: self.dir.path(), logs: &logs, now: NOW, space_bytes_max };
        let mut rehomed = None;
        for _ in 0..steps_max {
            let Some(step) = rehoming.next_step()? else { return Ok((rehomed, false)) };
            rehomed = rehoming.perform(&step)?.or(rehomed);
        }
        Ok((rehomed, rehoming.next_step()?.is_some()))
    }

    /// Starts with as many cores, and does something.
    fn run<T: 'static>(&self, core_count: u16, end: End, work: impl AsyncFnOnce(&Logs) -> T + 'static) -> T {
        self.rehome(core_count).unwrap_or_else(|error| panic!("{error}"));
        let opened: Vec<_> = self.settings(core_count).iter().map(|settings| open(settings).unwrap()).collect();
        let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(64 << 10).make().unwrap();
        executor.run(async move {
            let mut logs = Logs { logs: Vec::new() };
            let mut runs = Vec::new();
            for opened in opened {
                let (log, keeper) = Log::new(opened, 0).await.unwrap();
                runs.push((glommio::spawn_local(Rc::clone(&log).run()), keeper));
                logs.logs.push((log, Cell::new(None)));
            }
            let answer = work(&logs).await;
            logs.sync().await;
            for ((log, _), (run, keeper)) in logs.logs.iter().zip(runs) {
                if end == End::Stopped {
                    log.stop();
                    run.await;
                    keeper.save(log).unwrap();
                } else {
                    run.cancel().await;
                }
            }
            // Files are closed by the ring while there is one, and each test has many: a turn of it.
            drop(logs);
            glommio::timer::sleep(std::time::Duration::from_millis(1)).await;
            answer
        })
    }

    /// What the directory holds, but for locks.
    fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        visit(self.dir.path(), &mut |path| {
            if path.file_name().unwrap() != "LOCK" {
                found.insert(path.to_owned(), fs::read(path).unwrap());
            }
        });
        found
    }

    /// Flips a bit in the record that has this value.
    fn damage(&self, value: &[u8]) {
        let mut count = 0;
        visit(self.dir.path(), &mut |path| {
            let mut bytes = fs::read(path).unwrap();
            if let Some(at) = bytes.windows(value.len()).position(|window| window == value) {
                bytes[at] ^= 1;
                fs::write(path, bytes).unwrap();
                count += 1;
            }
        });
        assert_eq!(count, 1);
    }
}

fn visit(dir: &Path, look: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { visit(&path, look) } else { look(&path) }
    }
}

fn copy_dir(source: &Path, target: &Path) {
    visit(source, &mut |path| {
        let to = target.join(path.strip_prefix(source).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(path, to).unwrap();
    });
}

fn key(name: &str) -> Key {
    KeyRef::parse(b"default", name.as_bytes()).unwrap().to_key()
}

fn entry(value: &str) -> Entry {
    let version = Version::new(Bytes::from_static(b"v1")).unwrap();
    Entry { value: Bytes::copy_from_slice(value.as_bytes()), version, expires: None }
}

/// A value of some bytes.
fn long(number: u64) -> String {
    format!("{number:0>700}")
}

/// The logs of a node that runs.
struct Logs {
    logs: Vec<LogInUse>,
}

/// With the last change that was made to it.
type LogInUse = (Rc<Log<Disk>>, Cell<Option<Position>>);

impl Logs {
    fn of(&self, key: &Key) -> (Rc<Log<Disk>>, &Cell<Option<Position>>) {
        let (log, last) = &self.logs[placement::core(key.hash(), self.logs.len())];
        (Rc::clone(log), last)
    }

    async fn put(&self, name: &str, value: &str) {
        let (log, last) = self.of(&key(name));
        last.set(Some(log.put(key(name), entry(value), None, NOW).await.unwrap()));
    }

    async fn put_dirty(&self, name: &str, value: &str) {
        let (log, last) = self.of(&key(name));
        last.set(Some(log.put_dirty(key(name), entry(value), None, NOW).await.unwrap()));
    }

    async fn delete(&self, name: &str) {
        let (log, last) = self.of(&key(name));
        last.set(Some(log.delete(key(name), NOW).await.unwrap()));
    }

    async fn delete_dirty(&self, name: &str) {
        let (log, last) = self.of(&key(name));
        last.set(Some(log.delete_dirty(key(name), NOW).await.unwrap()));
    }

    async fn known(&self, name: &str) -> Known {
        self.of(&key(name)).0.get(key(name), NOW).await
    }

    async fn value(&self, name: &str) -> Option<String> {
        let copy = self.known(name).await.into_copy()?;
        Some(String::from_utf8(copy.entry.value.to_vec()).unwrap())
    }

    /// Uploads the first change of each core, and answers their keys.
    async fn upload(&self) -> Vec<Key> {
        let mut keys = Vec::new();
        for (log, _) in &self.logs {
            let Some(debt) = log.next_debt() else { continue };
            keys.push(Rc::clone(log).read_debt(&debt).await.unwrap().0);
            Rc::clone(log).debt_done(debt).await.unwrap();
        }
        keys
    }

    fn debts(&self) -> u64 {
        self.logs.iter().map(|(log, _)| log.figures().dirty_records).sum()
    }

    /// Waits until all that was done survives.
    async fn sync(&self) {
        for (log, last) in &self.logs {
            if let Some(last) = last.take() {
                Rc::clone(log).durable(last).await.unwrap();
            }
        }
    }
}

// ---- What becomes of records.

#[test]
fn every_value_is_found_with_another_number_of_cores_and_nothing_else_is() {
    for (old_count, new_count) in [(1, 2), (2, 1), (2, 3), (3, 2)] {
        for end in [End::Killed, End::Stopped] {
            let node = Node::new(8 << 20);
            node.run(old_count, end, async |logs| {
                for number in 0..100 {
                    logs.put(&format!("k{number}"), "old").await;
                    logs.put(&format!("k{number}"), &long(number)).await;
                }
                logs.put_dirty("dirty", "not there").await;
                logs.delete_dirty("gone").await;
                logs.delete("k7").await;
            });
            let rehomed = node.rehome(new_count).unwrap().unwrap();
            assert_eq!((rehomed.old_count, rehomed.new_count), (old_count, new_count));
            assert_eq!((rehomed.records, rehomed.debts, rehomed.dropped, rehomed.damaged), (101, 2, 0, 0));
            node.run(new_count, End::Killed, async |logs| {
                for number in (0..100).filter(|number| *number != 7) {
                    assert_eq!(logs.value(&format!("k{number}")).await, Some(long(number)));
                }
                assert_eq!((logs.known("k7").await, logs.known("gone").await), (Known::Nothing, Known::Deleted));
                let Known::Copy(Copy { entry: dirty, is_dirty, .. }) = logs.known("dirty").await else {
                    panic!("gone")
                };
                assert_eq!((dirty, is_dirty, logs.debts()), (entry("not there"), true, 2));
            });
            assert_eq!(node.rehome(new_count).unwrap(), None, "once");
        }
    }
}

#[test]
fn a_copy_keeps_its_version_its_life_and_until_when_it_is_believed() {
    let node = Node::new(4 << 20);
    let made = Entry { expires: Some(NOW.plus_ms(9_000)), ..entry("v") };
    let until = Some(NOW.plus_ms(5_000));
    let (a, b) = (made.clone(), made.clone());
    node.run(1, End::Stopped, async move |logs| {
        let over = Entry { expires: Some(NOW.plus_ms(1)), ..entry("v") };
        let before = Timestamp(NOW.0 - 1000);
        let log = Rc::clone(&logs.logs[0].0);
        Rc::clone(&log).put(key("a"), a, until, NOW).await.unwrap();
        Rc::clone(&log).put(key("over"), Entry { expires: Some(NOW), ..over.clone() }, None, before).await.unwrap();
        let over = Entry { expires: Some(NOW), ..over };
        let last = Rc::clone(&log).put_dirty(key("over and owed"), over, None, before).await.unwrap();
        log.durable(last).await.unwrap();
    });
    assert_eq!(node.rehome(3).unwrap().unwrap().records, 2, "nobody misses what is over, unless the store is to know");
    node.run(3, End::Stopped, async move |logs| {
        let copy = Copy { entry: b, believed_until: until, is_dirty: false };
        assert_eq!(logs.known("a").await, Known::Copy(copy));
        assert_eq!((logs.known("over").await, logs.known("over and owed").await), (Known::Nothing, Known::Deleted));
        assert_eq!(logs.debts(), 1);
    });
}

#[test]
fn any_history_goes_on_over_any_numbers_of_cores() {
    for seed in seeds(4) {
        println!("MILENA_SEED={seed}");
        let mut random = Random(seed);
        let node = Node::new(8 << 20);
        // What each key has, and whether the store does not have it.
        let mut model: BTreeMap<String, (Option<String>, bool)> = BTreeMap::new();
        for round in 0..6 {
            let core_count = random.below(4) as u16 + 1;
            let end = if random.below(2) == 0 { End::Killed } else { End::Stopped };
            let mut work = Random(random.next());
            model = node.run(core_count, end, async move |logs| {
                check(logs, &model).await;
                for turn in 0..80 {
                    change(logs, &mut model, &mut work, round * 1000 + turn).await;
                }
                check(logs, &model).await;
                model
            });
        }
    }
}

async fn change(logs: &Logs, model: &mut BTreeMap<String, (Option<String>, bool)>, random: &mut Random, number: u64) {
    let name = format!("k{}", random.below(40));
    let value = long(number);
    let is_owed = model.get(&name).is_some_and(|(_, is_owed)| *is_owed);
    match random.below(10) {
        0..3 if !is_owed => {
            logs.put(&name, &value).await;
            model.insert(name, (Some(value), false));
        }
        3 if !is_owed => {
            logs.delete(&name).await;
            model.remove(&name);
        }
        4..6 => {
            logs.put_dirty(&name, &value).await;
            model.insert(name, (Some(value), true));
        }
        6 => {
            logs.delete_dirty(&name).await;
            model.insert(name, (None, true));
        }
        7..9 => {
            for uploaded in logs.upload().await {
                let name = std::str::from_utf8(uploaded.as_ref().name()).unwrap();
                let (value, is_owed) = model.remove(name).unwrap();
                assert!(is_owed, "{name}");
                if value.is_some() {
                    model.insert(name.to_owned(), (value, false));
                }
            }
        }
        _ => {}
    }
}

async fn check(logs: &Logs, model: &BTreeMap<String, (Option<String>, bool)>) {
    for number in 0..40 {
        let name = format!("k{number}");
        let found = match logs.known(&name).await {
            Known::Nothing => None,
            Known::Deleted => Some((None, true)),
            Known::Copy(copy) => Some((Some(String::from_utf8(copy.entry.value.to_vec()).unwrap()), copy.is_dirty)),
            Known::Unreadable => panic!("{name} cannot be read"),
        };
        assert_eq!(found.as_ref(), model.get(&name), "{name}");
    }
    assert_eq!(logs.debts(), model.values().filter(|(_, is_owed)| *is_owed).count() as u64);
}

// ---- A start that is cut off.

/// Two cores with something of everything, and how many cores there are to be.
fn before() -> Node {
    let node = Node::new(4 << 20);
    node.run(2, End::Killed, async |logs| {
        for number in 0..20 {
            logs.put(&format!("k{number}"), "old").await;
            logs.put(&format!("k{number}"), &long(number)).await;
        }
        logs.delete("k7").await;
        logs.put_dirty("k8", "not there").await;
        logs.delete_dirty("k9").await;
    });
    node
}

fn is_all_there(node: &Node, core_count: u16, case: &str) {
    let case = case.to_owned();
    node.run(core_count, End::Killed, async move |logs| {
        for number in (0..20).filter(|number| !(7..10).contains(number)) {
            assert_eq!(logs.value(&format!("k{number}")).await, Some(long(number)), "{case}");
        }
        assert_eq!((logs.known("k7").await, logs.known("k9").await), (Known::Nothing, Known::Deleted), "{case}");
        assert_eq!((logs.value("k8").await.as_deref(), logs.debts()), (Some("not there"), 2), "{case}");
    });
    let names: Vec<_> = fs::read_dir(node.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), usize::from(core_count), "nothing is left behind: {names:?}");
}

#[test]
fn a_start_that_is_cut_off_after_any_step_is_finished_by_the_next_whatever_its_number_of_cores() {
    let before = before();
    for core_count in [1, 3] {
        for steps in 0.. {
            assert!(steps < 20, "it never ends");
            let node = before.copy();
            let (_, has_more) = node.steps(core_count, steps).unwrap();
            is_all_there(&node.copy(), core_count, &format!("{steps} steps to {core_count}"));
            is_all_there(&node, 2, &format!("{steps} steps to {core_count}, and back"));
            if !has_more {
                break;
            }
        }
    }
}

#[test]
fn a_start_that_is_cut_off_within_a_step_is_finished_by_the_next() {
    let before = before();
    for core_count in [1, 3] {
        // While a log was being filled, or removed again.
        let node = before.copy();
        node.steps(core_count, 1).unwrap();
        fs::rename(node.dir.path().join("rehomed"), node.dir.path().join("rehoming")).unwrap();
        fs::remove_file(log_dir(&node.dir.path().join("rehoming"), 0).join("superblock")).unwrap();
        for next_count in 1..=3 {
            is_all_there(&node.copy(), next_count, &format!("filling {core_count}, then {next_count}"));
        }

        // While an old log was being removed.
        for core in 0..2 {
            for lost in [&["superblock"][..], &["segment-00000", "LOCK"], &["superblock", "segment-00000", "LOCK"]] {
                let node = before.copy();
                node.steps(core_count, 1 + core).unwrap();
                lost.iter().for_each(|name| fs::remove_file(log_dir(node.dir.path(), core).join(name)).unwrap());
                is_all_there(&node, core_count, &format!("removing log {core}: {lost:?}"));
            }
        }
    }
}

#[test]
fn a_log_that_a_process_uses_is_neither_read_nor_removed() {
    let node = before();
    let opened = open(&node.settings(2)[1]).unwrap();
    let in_use = node.rehome(1).unwrap_err();
    assert!(matches!(in_use, RehomeError::Open(OpenError::Locked(_))), "{in_use}");
    drop(opened);
    node.steps(1, 1).unwrap();
    let opened = open(&node.settings(2)[1]).unwrap();
    let in_use = node.rehome(1).unwrap_err();
    assert!(matches!(in_use, RehomeError::Open(OpenError::Locked(_))), "{in_use}");
    drop(opened);
    is_all_there(&node, 1, "when it is free");
}

// ---- Too little room.

/// Which of the keys there still are.
fn there(node: &Node, core_count: u16, count: u64) -> Vec<bool> {
    node.run(core_count, End::Stopped, async move |logs| {
        let mut there = Vec::new();
        for number in 0..count {
            let found = logs.value(&format!("k{number}")).await;
            assert!(found.is_none() || found == Some(long(number)));
            there.push(found.is_some());
        }
        there
    })
}

/// That of the keys of each old core, and new, the newest are there, and how many these are.
fn newest_are_there(there: &[bool], old_count: usize, new_count: usize) -> usize {
    for old in 0..old_count {
        for new in 0..new_count {
            let is_theirs = |number: &usize| {
                let hash = key(&format!("k{number}")).hash();
                (placement::core(hash, old_count), placement::core(hash, new_count)) == (old, new)
            };
            let theirs: Vec<bool> = (0..there.len()).filter(is_theirs).map(|number| there[number]).collect();
            assert!(theirs.is_sorted(), "of core {old} the newest on core {new}: {theirs:?}");
            assert!(theirs.is_empty() || *theirs.last().unwrap(), "{theirs:?}");
        }
    }
    there.iter().filter(|is_there| **is_there).count()
}

async fn fill(logs: &Logs, count: u64) {
    logs.put_dirty("dirty", "not there").await;
    for number in 0..count {
        logs.put(&format!("k{number}"), &long(number)).await;
    }
}

#[test]
fn without_space_for_old_and_new_the_newest_are_kept_and_the_log_is_as_large_as_it_should_be_afterwards() {
    let mut node = Node::new(4 << 20);
    node.run(1, End::Stopped, async |logs| fill(logs, 2_000).await);
    node.space_bytes_max = 12 * SEGMENT_BYTES_MIN;
    let rehomed = node.rehome(2).unwrap().unwrap();
    assert_eq!((rehomed.debts, rehomed.damaged, rehomed.records + rehomed.dropped), (1, 0, 2_001));
    let kept = newest_are_there(&there(&node, 2, 2_000), 1, 2);
    assert_eq!(kept as u64 + 1, rehomed.records);
    assert!((500..900).contains(&kept), "{kept} of 752 bytes in 12 segments");
    node.run(2, End::Stopped, async |logs| {
        assert_eq!(logs.value("dirty").await.as_deref(), Some("not there"));
        for (log, _) in &logs.logs {
            assert_eq!(log.figures().capacity_bytes, 2 << 20);
        }
    });
}

#[test]
fn without_any_space_the_log_begins_with_nothing_but_it_begins() {
    let mut node = Node::new(2 << 20);
    node.run(1, End::Stopped, async |logs| logs.put("k0", &long(0)).await);
    node.space_bytes_max = 0;
    assert_eq!(node.rehome(2).unwrap().unwrap().dropped, 1);
    assert_eq!(there(&node, 2, 1), [false]);
}

#[test]
fn in_a_smaller_log_the_newest_are_kept_and_the_oldest_of_them_make_room_first() {
    let mut node = Node::new(4 << 20);
    node.run(2, End::Killed, async |logs| fill(logs, 3_000).await);
    node.disk_bytes = 2 << 20;
    let rehomed = node.rehome(1).unwrap().unwrap();
    assert!(rehomed.dropped > 0 && rehomed.debts == 1, "{rehomed}");
    let first = there(&node, 1, 3_000);
    let kept = newest_are_there(&first, 2, 1);
    assert_eq!(kept as u64 + 1, rehomed.records);
    assert!(kept > 1_500, "{kept} of 752 bytes in 28 segments");
    node.run(1, End::Stopped, async |logs| {
        for number in 0..600 {
            logs.put(&format!("n{number}"), &long(number)).await;
        }
    });
    let second = there(&node, 1, 3_000);
    let later = second.iter().filter(|is_there| **is_there).count();
    assert!((kept - 900..kept).contains(&later), "{later} of {kept}");
    assert!(second[2_500..].iter().all(|is_there| *is_there), "the newest stay");
}

fn is_refused_and_untouched(node: &Node, core_count: u16, wanted: &str) {
    let before = node.snapshot();
    let error = node.rehome(core_count).unwrap_err();
    assert!(error.to_string().contains(wanted), "{error}");
    assert!(node.snapshot() == before, "something was changed");
}

#[test]
fn writes_that_the_store_does_not_have_and_that_find_no_room_stop_the_start_and_nothing_is_changed() {
    let mut node = Node::new(8 << 20);
    node.run(2, End::Killed, async |logs| {
        for number in 0..1_500 {
            logs.put_dirty(&format!("k{number}"), &long(number)).await;
        }
    });
    node.disk_bytes = 1 << 20;
    is_refused_and_untouched(
        &node,
        1,
        "cannot go from 2 cores to 1: 1500 writes (1150400 bytes) that the store does not have find no room in DISK; \
         nothing was changed; start with CORES=2 until they are uploaded, or raise DISK",
    );
    (node.disk_bytes, node.space_bytes_max) = (8 << 20, 4 * SEGMENT_BYTES_MIN);
    is_refused_and_untouched(
        &node,
        1,
        "find no room in the filesystem, beside the old logs; nothing was changed; start",
    );
    assert_eq!(newest_are_there(&there(&node, 2, 1_500), 2, 2), 1_500, "with as many cores as before");
    node.space_bytes_max = u64::MAX;
    assert_eq!(newest_are_there(&there(&node, 1, 1_500), 2, 1), 1_500, "and with enough room");
}

#[test]
fn more_than_may_wait_in_a_log_is_taken_over_all_the_same() {
    let mut node = Node::new(8 << 20);
    node.run(2, End::Killed, async |logs| {
        for number in 0..1_500 {
            logs.put_dirty(&format!("k{number}"), &long(number)).await;
        }
    });
    node.disk_bytes = 2 << 20;
    assert_eq!(node.rehome(1).unwrap().unwrap().debts, 1_500);
    node.run(1, End::Killed, async |logs| {
        let (bytes, bytes_max) = logs.logs[0].0.dirty_bytes();
        assert!(bytes > bytes_max && logs.debts() == 1_500, "{bytes} of {bytes_max}");
    });
}

#[test]
fn a_large_record_gets_segments_that_take_it_or_where_the_log_is_too_small_is_dropped_or_stops_the_start() {
    let large = || "x".repeat(20_000);
    // An eighth of a segment is 32 KiB; in an empty log for one of four cores it would be 8 KiB.
    let mut node = Node::new(16 << 20);
    node.run(1, End::Stopped, async move |logs| logs.put("a", &large()).await);
    node.copy().run(4, End::Stopped, async move |logs| assert_eq!(logs.value("a").await, Some(large())));
    node.disk_bytes = 4 << 20;
    assert_eq!(node.copy().rehome(4).unwrap().unwrap().dropped, 1);
    node.run(1, End::Stopped, async move |logs| logs.put_dirty("a", &large()).await);
    is_refused_and_untouched(&node, 4, "find no room in DISK");
}

#[test]
fn a_log_smaller_than_any_is_refused_before_anything_is_done() {
    let mut node = Node::new(4 << 20);
    node.run(1, End::Killed, async |logs| logs.put("k0", &long(0)).await);
    node.disk_bytes = 1 << 20;
    is_refused_and_untouched(&node, 2, "and at least 12 are needed");
}

// ---- Damage.

#[test]
fn a_damaged_record_is_dropped_if_the_store_has_it_and_stops_the_start_if_not() {
    let node = Node::new(4 << 20);
    node.run(2, End::Stopped, async |logs| {
        logs.put("a", "the store has this").await;
        logs.put_dirty("b", "the store does not").await;
    });
    node.damage(b"the store has this");
    let other = node.copy();
    let rehomed = other.rehome(1).unwrap().unwrap();
    assert_eq!((rehomed.records, rehomed.debts, rehomed.damaged), (1, 1, 1));
    other.run(1, End::Killed, async |logs| assert_eq!(logs.known("a").await, Known::Nothing));
    node.damage(b"the store does not");
    is_refused_and_untouched(
        &node,
        1,
        "that the store does not have is damaged; nothing was changed; start with CORES=2",
    );
}

#[test]
fn logs_of_which_nobody_knows_what_they_hold_or_which_are_newer_stop_the_start() {
    let node = before();
    let path = log_dir(node.dir.path(), 1).join("superblock");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[1..]).unwrap();
    is_refused_and_untouched(
        &node,
        3,
        "log-001: its superblock is damaged; nothing was changed; start with the former",
    );
    fs::write(&path, whole).unwrap();
    let other = before();
    other.rehome(3).unwrap();
    copy_dir(&log_dir(other.dir.path(), 2), &log_dir(node.dir.path(), 2));
    is_refused_and_untouched(&node, 2, "log-002 belongs to core 2 of 3, and the first one to a node with 2 cores");
}
