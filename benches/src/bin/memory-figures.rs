//! What the memory tier takes: bytes for each entry beyond key and value, and how close to its budget the process stays.
//!
//! ```text
//!   memory-figures [ENTRIES [WRITES]]      10,000,000 entries of 100 bytes and 100,000,000 mixed writes unless given;
//!                                          none of either leaves its figure out
//! ```
//! Memory is the process's resident set (`VmRSS`), so what allocator and kernel add is in it. Each figure is measured in a
//! process of its own: what one has given back stays resident, and would make the next look small.

use std::{
    env, fs, io,
    process::{Command, ExitCode},
    time::Instant,
};

use bytes::Bytes;
use milena_proto::{key::KeyRef, placement::mix64};
use milena_storage::{Entry, Timestamp, Version, memory::Memory};

const NOW: Timestamp = Timestamp(1_700_000_000_000);
const VALUE_BYTES: usize = 100;
/// As long as S3's.
const VERSION: &[u8] = b"\"0123456789abcdef0123456789abcdef\"";
const MIXED_BUDGET_BYTES: usize = 256 << 20;

/// Set in the process of one figure, to its name.
const FIGURE: &str = "MILENA_MEMORY_FIGURE";

fn main() -> ExitCode {
    let mut counts = env::args().skip(1).map(|text| text.parse::<u64>());
    let (Ok(entries), Ok(writes)) = (counts.next().unwrap_or(Ok(10_000_000)), counts.next().unwrap_or(Ok(100_000_000)))
    else {
        eprintln!("memory-figures: usage: memory-figures [ENTRIES [WRITES]]");
        return ExitCode::from(2);
    };
    match env::var(FIGURE).as_deref() {
        Ok("same") => same_sizes(entries),
        Ok(_) => mixed_sizes(writes),
        Err(_) => {
            for (figure, count) in [("same", entries), ("mixed", writes)] {
                if count > 0
                    && let Err(error) = measure_apart(figure)
                {
                    eprintln!("memory-figures: {figure}: {error}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    ExitCode::SUCCESS
}

/// Measures one figure in another process with the same arguments.
fn measure_apart(figure: &str) -> io::Result<()> {
    let status = Command::new(env::current_exe()?).args(env::args_os().skip(1)).env(FIGURE, figure).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
}

/// As many entries of one size as asked for, none of them evicted.
fn same_sizes(entries: u64) {
    let before = resident_bytes();
    let mut memory = Memory::new(usize::MAX / 4, 0);
    let value = Bytes::from(vec![7; VALUE_BYTES]);
    let begun = Instant::now();
    for number in 0..entries {
        insert(&mut memory, number, value.clone());
    }
    let took = begun.elapsed();
    let figures = memory.figures();
    assert_eq!(figures.entries, entries, "nothing was evicted");
    let own = (figures.key_bytes + figures.value_bytes) as f64;
    let each = |bytes: u64| (bytes as f64 - own) / entries as f64;
    let resident = each(resident_bytes() - before);
    println!(
        "{entries} entries of {VALUE_BYTES} bytes: {resident:.1} bytes each beyond key and value, resident, {:.1} beyond the \
         version of {} too; {:.1} by its own count; {:.0} ns a put",
        resident - VERSION.len() as f64,
        VERSION.len(),
        each(figures.held_bytes),
        took.as_nanos() as f64 / entries as f64,
    );
}

/// Writes of 1 byte to 64 KiB, small ones more often, to far more keys than there is room for.
fn mixed_sizes(writes: u64) {
    let before = resident_bytes();
    let mut memory = Memory::new(MIXED_BUDGET_BYTES, 0);
    let source = Bytes::from(vec![7; 64 << 10]);
    let mut most = 0.0_f64;
    for number in 0..writes {
        let random = mix64(number);
        let len = (random >> 48) >> ((random >> 32) % 17);
        insert(&mut memory, random % 4_000_000, source.slice(..(len as usize).max(1)));
        if number % (writes / 100).max(1) == 0 {
            most = most.max((resident_bytes() - before) as f64);
        }
    }
    most = most.max((resident_bytes() - before) as f64);
    println!(
        "{writes} writes of mixed sizes, budget {} MiB: resident {:.3} of the budget at most",
        MIXED_BUDGET_BYTES >> 20,
        most / MIXED_BUDGET_BYTES as f64
    );
}

fn insert(memory: &mut Memory, number: u64, value: Bytes) {
    let name = number.to_be_bytes();
    let key = KeyRef::parse(b"b", &name).expect("a legal key");
    let version = Version::new(Bytes::from_static(VERSION)).expect("printable");
    memory.insert(key, &Entry { value, version, expires: None }, None, NOW);
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("the kernel tells it");
    let kib = line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    kib.expect("a number of KiB") << 10
}
