//! A process that writes to a log, and is killed again and again. Alone in its file: a lock outlives its holder for as
//! long as another test is between fork and exec.

use std::{path::Path, rc::Rc};

#[path = "support/killed.rs"]
mod killed;
#[path = "support/log_dir.rs"]
mod log_dir;

use killed::{child, hear_and_kill, rounds};
use log_dir::{End, NOW, get, key, put, settings, with_log};

const TEST: &str = "a_process_that_is_killed_loses_nothing_that_it_said_was_done";
const KEYS: u64 = 40;

/// Puts and deletes in turn, all of them durable, and says each one that is, until it is killed.
fn write_until_killed(dir: &Path, round: u64) {
    with_log(&settings(dir), End::Killed, move |log| async move {
        for n in 0.. {
            let name = format!("k{}", (n * 7 + round) % KEYS);
            let number = round * 1_000_000 + n;
            println!("begin {name} {number}");
            if n % 5 == 4 {
                let position = Rc::clone(&log).delete(key(&name), NOW).await.unwrap();
                Rc::clone(&log).durable(position).await.unwrap();
            } else {
                put(&log, &name, &format!("{number:0>300}")).await;
            }
            println!("done {name} {number} {}", n % 5 != 4);
        }
    });
}

#[test]
fn a_process_that_is_killed_loses_nothing_that_it_said_was_done() {
    if let Some((dir, round)) = child() {
        return write_until_killed(&dir, round);
    }
    let dir = tempfile::tempdir().unwrap();
    // For each key: the number of the last change that is done and whether it was a put, and one that was begun.
    let mut done = vec![(0_u64, false); KEYS as usize];
    for round in 1..=rounds() {
        let mut begun: Option<(usize, u64)> = None;
        hear_and_kill(TEST, dir.path(), round, |words| {
            match *words {
                ["begin", name, number] => begun = Some((name[1..].parse().unwrap(), number.parse().unwrap())),
                ["done", name, number, is_put] => {
                    done[name[1..].parse::<usize>().unwrap()] = (number.parse().unwrap(), is_put == "true");
                    begun = None;
                }
                _ => return false,
            }
            true
        });
        let expected = done.clone();
        let (_, found) = with_log(&settings(dir.path()), End::Killed, |log| async move {
            let mut found = Vec::new();
            for n in 0..KEYS {
                found.push(get(&log, &format!("k{n}")).await.map(|text| text.parse::<u64>().unwrap()));
            }
            found
        });
        for (n, (found, (number, is_put))) in found.into_iter().zip(expected).enumerate() {
            let is_done = found == is_put.then_some(number);
            // A change that was begun and not said to be done may have happened.
            let is_begun = begun.is_some_and(|(name, number)| name == n && found.is_none_or(|found| found == number));
            assert!(is_done || is_begun, "round {round}: k{n} is {found:?}, and {number} (a put: {is_put}) was done");
            if !is_done {
                done[n] = (found.unwrap_or(begun.unwrap().1), found.is_some());
            }
        }
    }
}
