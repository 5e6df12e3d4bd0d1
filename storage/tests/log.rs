//! The log on a real directory: what it says when it is opened, and that it survives what may happen to a process.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    rc::Rc,
    time::Duration,
};

use milena_storage::log::{Disk, Log, LogError, LogSettings, OpenError, SuperblockError, inspect, open};

#[path = "support/log_dir.rs"]
mod log_dir;

#[path = "support/log_debts.rs"]
mod log_debts;

use log_debts::{give, owe};
use log_dir::{End, NOW, entry, get, key, put, settings, with_log};

/// Leaves one entry, `a`, and four records.
async fn four_changes(log: Rc<Log<Disk>>) {
    put(&log, "a", "one").await;
    put(&log, "b", "two").await;
    put(&log, "a", "three").await;
    let position = Rc::clone(&log).delete(key("b"), NOW).await.unwrap();
    log.durable(position).await.unwrap();
}

#[test]
fn what_is_durable_is_there_when_the_process_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    with_log(&settings(dir.path()), End::Killed, four_changes);
    let (opening, found) =
        with_log(&settings(dir.path()), End::Killed, |log| async move { (get(&log, "a").await, get(&log, "b").await) });
    assert_eq!(found, (Some("three".to_owned()), None));
    assert_eq!((opening.entries, opening.records, opening.is_from_index), (1, 4, false));
}

#[test]
fn a_clean_stop_leaves_an_index_that_is_used_once() {
    let dir = tempfile::tempdir().unwrap();
    with_log(&settings(dir.path()), End::Stopped, |log| async move {
        for n in 0..500 {
            Rc::clone(&log).put(key(&format!("k{n}")), entry(&format!("{n:0>500}")), None, NOW).await.unwrap();
        }
    });
    assert!(dir.path().join("index").exists());
    let all = |log: Rc<Log<Disk>>| async move {
        let mut count = 0;
        for n in 0..500 {
            count += u32::from(get(&log, &format!("k{n}")).await == Some(format!("{n:0>500}")));
        }
        count
    };
    let (opening, count) = with_log(&settings(dir.path()), End::Killed, all);
    assert_eq!((opening.is_from_index, opening.entries, count), (true, 500, 500));
    assert!(!dir.path().join("index").exists());
    let (opening, count) = with_log(&settings(dir.path()), End::Killed, all);
    assert_eq!((opening.is_from_index, opening.records, count), (false, 500, 500));
}

#[test]
fn a_log_goes_round_on_a_real_disk_and_a_hot_key_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (_, figures) = with_log(&settings(dir.path()), End::Stopped, |log| async move {
        put(&log, "hot", "kept").await;
        for n in 0..8000 {
            Rc::clone(&log).put(key(&format!("k{n}")), entry(&format!("{n:0>500}")), None, NOW).await.unwrap();
            if n % 100 == 0 {
                assert_eq!(get(&log, "hot").await.as_deref(), Some("kept"), "after {n}");
                assert_eq!(get(&log, &format!("k{n}")).await, Some(format!("{n:0>500}")));
            }
        }
        log.figures()
    });
    assert!(figures.counts.reclaimed > 40, "{figures:?}");
    assert_eq!((figures.counts.corrupt, figures.counts.read_errors, figures.is_degraded), (0, 0, false));
}

#[test]
fn a_directory_that_is_in_use_is_refused_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(&settings(dir.path())).unwrap();
    let error = open(&settings(dir.path())).unwrap_err();
    assert!(matches!(error, OpenError::Locked(_)), "{error}");
    assert!(error.to_string().contains("another process holds LOCK; hint: "), "{error}");
    drop(first);
    open(&settings(dir.path())).unwrap();
}

#[test]
fn a_damaged_superblock_means_an_empty_log_that_meets_nothing_of_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    with_log(&settings(dir.path()), End::Stopped, |log| async move { put(&log, "a", "one").await });
    let path = dir.path().join("superblock");
    let mut bytes = fs::read(&path).unwrap();
    bytes[20] ^= 1;
    fs::write(&path, bytes).unwrap();
    let other = LogSettings { new_log_id: 8, ..settings(dir.path()) };
    let (opening, found) = with_log(&other, End::Killed, |log| async move { get(&log, "a").await });
    assert_eq!(opening.discarded, Some(SuperblockError::Damaged));
    assert_eq!((opening.entries, found), (0, None));
    let (opening, ()) = with_log(&other, End::Killed, |log| async move { put(&log, "a", "two").await });
    assert_eq!(opening.discarded, None);
}

#[test]
fn a_log_of_another_core_is_refused_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    with_log(&settings(dir.path()), End::Stopped, |log| async move { put(&log, "a", "one").await });
    let other = LogSettings { core: 1, core_count: 2, new_log_id: 8, ..settings(dir.path()) };
    let error = open(&other).unwrap_err();
    assert!(error.to_string().ends_with("it belongs to core 0 of 1"), "{error}");
    let (_, found) = with_log(&settings(dir.path()), End::Killed, |log| async move { get(&log, "a").await });
    assert_eq!(found.as_deref(), Some("one"));
}

#[test]
fn a_segment_that_somebody_cut_short_costs_what_was_in_it_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    with_log(&settings(dir.path()), End::Killed, |log| async move {
        for n in 0..1000 {
            Rc::clone(&log).put(key(&format!("k{n}")), entry(&format!("{n:0>500}")), None, NOW).await.unwrap();
        }
        put(&log, "last", "x").await;
    });
    let cut = OpenOptions::new().write(true).open(dir.path().join("segment-00003")).unwrap();
    cut.set_len(10_000).unwrap();
    let (_, (count, last)) = with_log(&settings(dir.path()), End::Killed, |log| async move {
        let mut count = 0;
        for n in 0..1000 {
            let found = get(&log, &format!("k{n}")).await;
            assert!(found.is_none() || found == Some(format!("{n:0>500}")));
            count += u32::from(found.is_some());
        }
        (count, get(&log, "last").await)
    });
    assert_eq!(last.as_deref(), Some("x"));
    assert!((850..1000).contains(&count), "{count}");
    assert_eq!(fs::metadata(dir.path().join("segment-00003")).unwrap().len(), 64 << 10);
}

#[test]
fn a_segment_cut_short_while_it_is_used_is_a_miss_and_no_signal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let (_, degraded) = with_log(&settings(dir.path()), End::Killed, |log| async move {
        for n in 0..500 {
            Rc::clone(&log).put(key(&format!("k{n}")), entry(&format!("{n:0>500}")), None, NOW).await.unwrap();
        }
        put(&log, "last", "x").await;
        for number in 0..3 {
            let file = OpenOptions::new().write(true).open(path.join(format!("segment-{number:05}"))).unwrap();
            file.set_len(0).unwrap();
        }
        let mut missing = 0;
        for n in 0..500 {
            let found = get(&log, &format!("k{n}")).await;
            assert!(found.is_none() || found == Some(format!("{n:0>500}")));
            missing += u32::from(found.is_none());
        }
        assert!(missing > 200, "{missing}");
        log.figures().counts.corrupt
    });
    assert!(degraded > 200, "{degraded}");
}

#[test]
fn a_flipped_byte_on_disk_is_a_miss_for_its_key_alone() {
    let dir = tempfile::tempdir().unwrap();
    with_log(&settings(dir.path()), End::Stopped, |log| async move {
        put(&log, "a", "one").await;
        put(&log, "b", "two").await;
    });
    let file = OpenOptions::new().write(true).open(dir.path().join("segment-00000")).unwrap();
    file.write_all_at(b"X", 4096 + 50).unwrap();
    let (_, (found, corrupt)) = with_log(&settings(dir.path()), End::Killed, |log| async move {
        ((get(&log, "a").await, get(&log, "b").await), log.figures().counts.corrupt)
    });
    assert_eq!((found, corrupt), ((None, Some("two".to_owned())), 1));
}

#[test]
fn a_log_can_grow_and_shrink_between_starts() {
    let dir = tempfile::tempdir().unwrap();
    let fill = |log: Rc<Log<Disk>>| async move {
        for n in 0..3000 {
            Rc::clone(&log).put(key(&format!("k{n}")), entry(&format!("{n:0>500}")), None, NOW).await.unwrap();
        }
        put(&log, "last", "x").await;
    };
    with_log(&settings(dir.path()), End::Stopped, fill);
    let larger = LogSettings { disk_bytes: 4 << 20, ..settings(dir.path()) };
    let (opening, (first, last)) =
        with_log(&larger, End::Killed, |log| async move { (get(&log, "k2999").await, get(&log, "last").await) });
    assert_eq!((opening.segments, first.is_some(), last.as_deref()), (64, true, Some("x")));
    with_log(&larger, End::Stopped, fill);
    let smaller = LogSettings { disk_bytes: 1 << 20, ..settings(dir.path()) };
    let (_, found) = with_log(&smaller, End::Stopped, |log| async move {
        assert_eq!(get(&log, "last").await.as_deref(), Some("x"));
        for n in 0..9000 {
            let name = format!("n{n}");
            Rc::clone(&log).put(key(&name), entry(&format!("{n:0>500}")), None, NOW).await.unwrap();
        }
        // One segment goes after the other, each with a sync.
        for n in 0..1000 {
            put(&log, &format!("o{n}"), "x").await;
        }
        log.figures()
    });
    // What is beyond the new size is emptied before anything else, and not filled again.
    assert!(found.used_bytes <= (1 << 20) + 4 * (64 << 10), "{found:?}");
}

#[test]
fn crashes_that_each_leave_a_segment_behind_do_not_use_the_log_up() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..60 {
        let name = format!("k{round}");
        let (opening, ()) = with_log(&settings(dir.path()), End::Killed, |log| async move {
            // Time enough to empty one.
            for _ in 0..20 {
                put(&log, &name, "x").await;
            }
        });
        assert!(opening.segments <= 36, "{opening:?}");
    }
    let (_, found) = with_log(&settings(dir.path()), End::Killed, |log| async move { get(&log, "k59").await });
    assert_eq!(found.as_deref(), Some("x"));
}

#[test]
fn an_inspection_counts_the_living_the_dead_and_the_damaged_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    with_log(&settings(dir.path()), End::Stopped, four_changes);
    let found = inspect(dir.path()).unwrap();
    assert_eq!((found.core, found.core_count, found.entries, found.segments.len()), (0, 1, 1, 32));
    let first = found.segments[0];
    assert_eq!((first.is_used, first.is_sealed, first.records, first.tombstones), (true, true, 4, 1));
    assert_eq!((first.live_bytes, first.dead_bytes, first.damaged), (64, 64 + 64 + 48, 0));
    assert!(found.segments[1..].iter().all(|segment| !segment.is_used && segment.records == 0));

    let file = OpenOptions::new().write(true).open(dir.path().join("segment-00000")).unwrap();
    file.write_all_at(b"X", 4096 + 50).unwrap();
    assert_eq!(inspect(dir.path()).unwrap().segments[0].damaged, 1);
    // The index of the clean stop is still there to be used.
    assert!(with_log(&settings(dir.path()), End::Killed, |_| async {}).0.is_from_index);
    assert!(inspect(&dir.path().join("elsewhere")).is_err());
}

#[test]
fn a_log_of_another_core_is_not_thrown_away_with_what_the_store_does_not_have() {
    let dir = tempfile::tempdir().unwrap();
    with_log(&settings(dir.path()), End::Stopped, |log| async move { owe(&log, "a", Some("one")).await });
    let other = LogSettings { core: 1, core_count: 2, new_log_id: 8, ..settings(dir.path()) };
    let error = open(&other).unwrap_err();
    assert!(matches!(error, OpenError::OtherCores { core: 0, core_count: 1, .. }), "{error}");
    let (_, uploaded) = with_log(&settings(dir.path()), End::Stopped, upload_all);
    assert_eq!(uploaded.len(), 1);
}

#[test]
fn a_log_that_is_smaller_than_what_waits_refuses_until_it_is_uploaded() {
    let dir = tempfile::tempdir().unwrap();
    let larger = LogSettings { disk_bytes: 4 << 20, ..settings(dir.path()) };
    let value = "x".repeat(4000);
    let text = value.clone();
    let (_, owed) = with_log(&larger, End::Stopped, |log| async move {
        let mut owed = 0;
        while Rc::clone(&log).put_dirty(key(&format!("k{owed}")), entry(&text), None, NOW).await.is_ok() {
            owed += 1;
        }
        owed
    });
    assert!(owed > 200, "{owed}");
    let smaller = LogSettings { disk_bytes: 12 * (64 << 10), ..settings(dir.path()) };
    let (opening, uploaded) = with_log(&smaller, End::Killed, |log| async move {
        let mut refused = 0;
        for n in 0..300 {
            let put = Rc::clone(&log).put(key(&format!("clean{n}")), entry(&value), None, NOW).await;
            refused += u32::from(put.is_err());
            assert!(put.is_ok() || put == Err(LogError::Full));
        }
        assert!(refused > 0);
        let change = Rc::clone(&log).put_dirty(key("more"), entry("x"), None, NOW).await;
        assert!(matches!(change, Err(LogError::DirtyFull | LogError::Full)), "{change:?}");
        let uploaded = upload_all(Rc::clone(&log)).await;
        // The segments are to be emptied first.
        for _ in 0..1000 {
            if Rc::clone(&log).put(key("after"), entry("it works"), None, NOW).await.is_ok() {
                return uploaded;
            }
            glommio::timer::sleep(Duration::from_millis(10)).await;
        }
        panic!("no room though nothing waits: {:?}", log.figures());
    });
    assert_eq!((opening.debts, uploaded.len()), (owed, owed as usize));
}

/// Uploads all debts there are: whose they were, and the values.
async fn upload_all(log: Rc<Log<Disk>>) -> Vec<(String, Option<String>)> {
    let mut uploaded = Vec::new();
    while let Some((debt, name, value)) = give(&log).await {
        uploaded.push((name, value));
        Rc::clone(&log).debt_done(debt).await.unwrap();
    }
    uploaded
}

/// Owes a put of `a` and a delete of `b`; `c` was owed and is done.
async fn three_dirty_changes(log: Rc<Log<Disk>>) {
    owe(&log, "c", Some("done")).await;
    let debt = log.next_debt().unwrap();
    Rc::clone(&log).debt_done(debt).await.unwrap();
    owe(&log, "a", Some("one")).await;
    owe(&log, "b", None).await;
}

#[test]
fn an_inspection_counts_what_waits_for_the_store_and_not_what_a_mark_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    with_log(&settings(dir.path()), End::Killed, three_dirty_changes);
    let found = inspect(dir.path()).unwrap();
    let first = found.segments[0];
    assert_eq!((found.entries, first.records, first.tombstones, first.damaged), (2, 4, 0, 0));
    assert_eq!((first.dirty_records, first.dirty_bytes), (2, 64 + 48));
    assert_eq!((first.live_bytes, first.dead_bytes), (64 + 64 + 48, 48));
}

#[test]
fn debts_are_there_after_a_clean_stop_which_then_leaves_no_index() {
    let dir = tempfile::tempdir().unwrap();
    with_log(&settings(dir.path()), End::Stopped, three_dirty_changes);
    assert!(!dir.path().join("index").exists());
    let (opening, uploaded) = with_log(&settings(dir.path()), End::Stopped, upload_all);
    assert_eq!((opening.debts, opening.entries, opening.is_from_index), (2, 2, false));
    assert_eq!(uploaded, [("a".to_owned(), Some("one".to_owned())), ("b".to_owned(), None)]);
    let (opening, uploaded) = with_log(&settings(dir.path()), End::Killed, upload_all);
    assert_eq!((opening.debts, opening.is_from_index, uploaded.len()), (0, true, 0));
}

#[test]
fn debts_move_out_of_segments_that_a_smaller_log_has_not() {
    let dir = tempfile::tempdir().unwrap();
    let larger = LogSettings { disk_bytes: 4 << 20, ..settings(dir.path()) };
    with_log(&larger, End::Stopped, |log| async move {
        for n in 0..200 {
            let name = format!("k{n}");
            Rc::clone(&log).put_dirty(key(&name), entry(&format!("{n:0>500}")), None, NOW).await.unwrap();
            for m in 0..20 {
                Rc::clone(&log).put(key(&format!("{n}-{m}")), entry(&format!("{m:0>500}")), None, NOW).await.unwrap();
            }
        }
    });
    let smaller = LogSettings { disk_bytes: 1 << 20, ..settings(dir.path()) };
    let (_, figures) = with_log(&smaller, End::Killed, |log| async move {
        for n in 0..9000 {
            Rc::clone(&log).put(key(&format!("n{n}")), entry(&format!("{n:0>500}")), None, NOW).await.unwrap();
        }
        // One segment goes after the other, each with a sync.
        for n in 0..1000 {
            put(&log, &format!("o{n}"), "x").await;
        }
        log.figures()
    });
    assert!(figures.used_bytes <= (1 << 20) + 4 * (64 << 10) && figures.dirty_records == 200, "{figures:?}");
    let (opening, mut uploaded) = with_log(&smaller, End::Killed, upload_all);
    let mut expected: Vec<_> = (0..200).map(|n| (format!("k{n}"), Some(format!("{n:0>500}")))).collect();
    expected.sort();
    uploaded.sort();
    assert_eq!((opening.debts, uploaded), (200, expected));
}

#[test]
fn too_little_room_is_said_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let error = open(&LogSettings { disk_bytes: 100_000, ..settings(dir.path()) }).unwrap_err();
    assert!(matches!(error, OpenError::TooSmall { segments: 1, .. }), "{error}");
    assert!(error.to_string().contains("at least 12 are needed"), "{error}");
}

#[test]
fn many_gets_and_puts_at_once_agree_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (_, figures) = with_log(&settings(dir.path()), End::Stopped, |log| async move {
        let puts = (0..64).map(|n| {
            let log = Rc::clone(&log);
            async move { put(&log, &format!("k{n}"), &format!("{n}")).await }
        });
        futures::future::join_all(puts).await;
        let gets = (0..640).map(|n| {
            let log = Rc::clone(&log);
            async move { assert_eq!(get(&log, &format!("k{}", n % 64)).await, Some(format!("{}", n % 64))) }
        });
        futures::future::join_all(gets).await;
        log.figures()
    });
    assert!(figures.counts.syncs < 64, "{figures:?}");
}
