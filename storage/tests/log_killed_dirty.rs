//! A process that owes changes to a store, uploads some, and is killed again and again. Alone in its file, as
//! log_killed.rs and for the same reason.

use std::{collections::HashMap, path::Path, rc::Rc};

#[path = "support/killed.rs"]
mod killed;
#[path = "support/log_debts.rs"]
mod log_debts;
#[path = "support/log_dir.rs"]
mod log_dir;

use killed::{child, hear_and_kill, rounds};
use log_debts::{give, owe};
use log_dir::{End, NOW, entry, get, key, put, settings, with_log};

const TEST: &str = "a_process_that_is_killed_owes_all_that_it_acknowledged_and_nothing_that_it_uploaded";
const KEYS: u64 = 40;

/// Changes keys, each durably, and uploads every third time; says what it begins and what is done, until it is killed.
fn owe_until_killed(dir: &Path, round: u64) {
    with_log(&settings(dir), End::Killed, move |log| async move {
        for n in 0.. {
            let name = format!("k{}", (n * 7 + round) % KEYS);
            let value = (n % 5 != 4).then(|| format!("{:0>300}", round * 1_000_000 + n));
            let number = value.as_deref().unwrap_or("none");
            println!("begin {name} {number}");
            owe(&log, &name, value.as_deref()).await;
            println!("done {name} {number}");
            // So that segments are reclaimed meanwhile.
            Rc::clone(&log).put(key(&format!("filler{n}")), entry(&"x".repeat(3000)), None, NOW).await.unwrap();
            if n % 3 == 0 {
                let (debt, name, _) = give(&log).await.expect("what was just owed");
                println!("upload {name}");
                Rc::clone(&log).debt_done(debt).await.unwrap();
                println!("uploaded {name}");
            }
        }
    });
}

/// What a key was said to be changed to last (`none` = deleted), and whether that is owed.
type Said = HashMap<String, (String, bool)>;

/// What one process said before it was killed; answers the line that was not followed by its end.
fn listen(dir: &Path, round: u64, said: &mut Said) -> Vec<String> {
    let mut begun = Vec::new();
    hear_and_kill(TEST, dir, round, |words| {
        match *words {
            ["begin", ..] | ["upload", _] => begun = words.iter().map(|word| (*word).to_owned()).collect(),
            ["done", name, number] => {
                said.insert(name.to_owned(), (number.to_owned(), true));
                begun.clear();
            }
            ["uploaded", name] => {
                said.get_mut(name).expect("it was owed").1 = false;
                begun.clear();
            }
            _ => return false,
        }
        true
    });
    begun
}

#[test]
fn a_process_that_is_killed_owes_all_that_it_acknowledged_and_nothing_that_it_uploaded() {
    if let Some((dir, round)) = child() {
        return owe_until_killed(&dir, round);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut said = Said::new();
    for round in 1..=rounds() {
        let begun = listen(dir.path(), round, &mut said);
        let (_, mut found) = with_log(&settings(dir.path()), End::Killed, |log| async move {
            let mut found = HashMap::new();
            while let Some((_debt, name, value)) = give(&log).await {
                assert_eq!(get(&log, &name).await, value, "{name} is answered as it is owed");
                found.insert(name, value.unwrap_or_else(|| "none".to_owned()));
            }
            put(&log, "it", "works").await;
            found
        });
        for (name, (number, is_owed)) in &mut said {
            let owed = found.remove(name);
            let is_as_said = owed.as_ref() == is_owed.then_some(&*number);
            // What was begun and not said to be done may have happened.
            let is_as_begun = match &begun[..] {
                [_, begun, change] => begun == name && owed.as_ref() == Some(change),
                [_, begun] => begun == name && owed.is_none(),
                _ => false,
            };
            assert!(
                is_as_said || is_as_begun,
                "round {round}: {name} owes {owed:?}, and {number} ({is_owed}) was said"
            );
            *is_owed = owed.is_some();
            *number = owed.unwrap_or_default();
        }
        // One that nobody had heard of before.
        for (name, change) in found {
            assert_eq!(begun, ["begin", &name, &change], "round {round}");
            said.insert(name, (change, true));
        }
    }
}
