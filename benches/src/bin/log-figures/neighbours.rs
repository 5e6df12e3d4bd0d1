//! What others on a log's core notice of it: memory gets while it writes, any task while it reclaims, and whether the core's
//! thread ever waits for a page.
//!
//! ```text
//!   one executor   log.run()     a writer: a few puts, then others' turn      a probe: asks for its turn again and again
//!   phases         nobody writes, the log does, a plain loop does, ...        and notes when it got it
//! ```
//! The probe wakes by a timer every 20 µs, as a request wakes a task by its socket; what it sees without the log is the noise
//! of the machine, so each figure is beside that, of the same run.

use std::{
    cell::{Cell, RefCell},
    fs::{self, File},
    os::fd::AsRawFd as _,
    path::Path,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use glommio::io::{DmaFile, OpenOptions};
use milena_proto::placement::mix64;
use milena_storage::{
    log::{Disk, Log, LogSettings, open},
    memory::{Lookup, Memory},
};

use crate::{NOW, PlainFile, at, cpu, entry, key, on_a_core, percentiles, spread, with_log};

/// Phases of each kind; in those of one kind there are a hundred batches of gets beyond p99.9.
const PHASES: usize = 10;

/// How often these phases are gone through, each time for a figure of its own.
const GROUPS: usize = 5;

const PHASE: Duration = Duration::from_secs(1);

/// Puts of a writer between two turns of others.
const PUTS_PER_TURN: usize = 8;

/// Bytes that the plain writer writes at once: as many as the log.
const PLAIN_BYTES: usize = 256 << 10;

/// When a batch of gets is due, whatever became of the one before.
const GETS_INTERVAL: Duration = Duration::from_micros(100);

/// Gets of a batch: what arrives together on a connection.
const GETS_PER_BATCH: u64 = 16;

const MEMORY_KEYS: u64 = 50_000;

/// How long a task rests that waits for its next turn. A core hears of its disk and its sockets when no task is ready: tasks
/// that never rest would measure a core that nobody can reach.
const REST: Duration = Duration::from_micros(20);

async fn turn() {
    glommio::timer::sleep(REST).await;
}

/// What a writer shares with who starts and stops it.
#[derive(Default)]
struct Writer {
    is_busy: Cell<bool>,
    has_ended: Cell<bool>,
    /// How much it writes in a second at most, if there is a limit.
    rate: Cell<Option<f64>>,
}

impl Writer {
    /// Writes while it is busy; `write` answers how much that was, in the unit of the rate.
    async fn run(&self, mut write: impl AsyncFnMut() -> u64) {
        let (mut begun, mut written) = (Instant::now(), 0);
        while !self.has_ended.get() {
            if !self.is_busy.get() {
                (begun, written) = (Instant::now(), 0);
            } else if self.rate.get().is_none_or(|rate| (written as f64) < begun.elapsed().as_secs_f64() * rate) {
                written += write().await;
            }
            turn().await;
        }
    }

    /// Puts of `value_bytes`, each under another key.
    async fn put(&self, log: &Rc<Log<Disk>>, value_bytes: usize) {
        let mut numbers = 0..;
        let a_few = async || {
            for number in numbers.by_ref().take(PUTS_PER_TURN) {
                Rc::clone(log).put(key(number), entry(value_bytes), None, NOW).await.expect("there is room");
            }
            PUTS_PER_TURN as u64
        };
        self.run(a_few).await;
    }

    /// Bytes to a file that was written before, with nothing around it: what any program would do to its core.
    async fn write_plainly(&self, file: &DmaFile) {
        let mut offset = 0;
        let a_batch = async || {
            let mut buffer = file.alloc_dma_buffer(PLAIN_BYTES);
            buffer.as_bytes_mut().fill(7);
            let written = file.write_at(buffer, offset).await.expect("there is room");
            offset = (offset + PLAIN_BYTES as u64) % PlainFile::FILE_BYTES;
            written as u64
        };
        self.run(a_batch).await;
    }
}

/// Gets from memory in an open loop, each batch timed from when it was due.
async fn gets(memory: &RefCell<Memory>) -> Vec<Duration> {
    let mut took = Vec::new();
    let begun = Instant::now();
    let mut due = begun;
    while due < begun + PHASE {
        turn().await;
        while Instant::now() >= due && due < begun + PHASE {
            for number in 0..GETS_PER_BATCH {
                let key = key(mix64(took.len() as u64 * GETS_PER_BATCH + number) % MEMORY_KEYS);
                assert!(matches!(memory.borrow_mut().get(key.as_ref(), NOW), Lookup::Hit(_)));
            }
            took.push(due.elapsed());
            due += GETS_INTERVAL;
        }
    }
    took
}

/// Who writes while memory is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Nobody,
    Log,
    Plain,
}

/// p99.9 of gets from memory while the log writes at full speed, and while a plain program writes as much, against without.
pub(crate) fn gets_while_writing(settings: &LogSettings, plain: &Path) {
    let plain = plain.to_owned();
    with_log(settings, true, |log| async move {
        let memory = RefCell::new(Memory::new(256 << 20, 0));
        for number in 0..MEMORY_KEYS {
            memory.borrow_mut().insert(key(number).as_ref(), &entry(100), None, NOW);
        }
        let file = OpenOptions::new().write(true).dma_open(&plain).await.expect("it was made");
        let (writer, plain_writer) = (Writer::default(), Writer::default());
        let phases = async {
            let written_bytes = || log.figures().counts.written_bytes as f64;
            let mut took_of: [Vec<Duration>; 3] = Default::default();
            let mut ratios_of: [Vec<f64>; 2] = Default::default();
            for _ in 0..GROUPS {
                let mut group: [Vec<Duration>; 3] = Default::default();
                for phase in [Phase::Nobody, Phase::Log, Phase::Plain].repeat(PHASES) {
                    writer.is_busy.set(phase == Phase::Log);
                    plain_writer.is_busy.set(phase == Phase::Plain);
                    let before = written_bytes();
                    group[phase as usize].extend(gets(&memory).await);
                    if phase == Phase::Log {
                        plain_writer.rate.set(Some((written_bytes() - before) / PHASE.as_secs_f64()));
                    }
                }
                let [nobody, log, plain] = group.each_mut().map(|took| at(took, 999).as_secs_f64());
                ratios_of[0].push(log / nobody);
                ratios_of[1].push(plain / nobody);
                took_of.iter_mut().zip(group).for_each(|(all, took)| all.extend(took));
            }
            writer.has_ended.set(true);
            plain_writer.has_ended.set(true);
            let seconds = (GROUPS * PHASES) as f64 * PHASE.as_secs_f64();
            let mib = written_bytes() / f64::from(1 << 20) / seconds;
            let [nobody, log, plain] = took_of.each_mut().map(|took| percentiles(took));
            let [log_ratio, plain_ratio] = ratios_of.each_mut().map(|ratios| spread(ratios));
            println!("get from memory, {GETS_PER_BATCH} every {GETS_INTERVAL:?}, nobody writes: {nobody}");
            println!("the same while the log writes {mib:.0} MiB/s: {log}; p99.9 within a group {log_ratio} times");
            println!(
                "the same while a plain loop writes as much, {} KiB at a time: {plain}; p99.9 within a group {plain_ratio} \
                 times",
                PLAIN_BYTES >> 10
            );
        };
        futures::future::join3(writer.put(&log, 1024), plain_writer.write_plainly(&file), phases).await;
        file.close().await.expect("it is open");
    });
}

/// How long a task that wants its turn every [`REST`] waits for it, the rest included.
async fn gaps() -> Vec<Duration> {
    let mut gaps = Vec::new();
    let begun = Instant::now();
    let mut last = begun;
    while last < begun + PHASE {
        turn().await;
        let now = Instant::now();
        gaps.push(now - last);
        last = now;
    }
    gaps
}

/// A task, and the CPU time of each of its turns: so long it keeps the core from all others.
struct Turns<F> {
    task: Pin<Box<F>>,
    took: Rc<RefCell<Vec<Duration>>>,
}

impl<F: Future> Future for Turns<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let begun = cpu();
        let polled = self.task.as_mut().poll(cx);
        self.took.borrow_mut().push(cpu() - begun);
        polled
    }
}

/// Puts that make a log reclaim.
pub(crate) struct Load {
    pub(crate) value_bytes: usize,
    pub(crate) rate: u64,
    /// Segments that are reclaimed before anything is measured.
    pub(crate) before: u64,
}

/// How long reclaiming keeps others from their turn: the same puts to a log that is full, and to one that is not.
pub(crate) fn turns_while_reclaiming(full: &LogSettings, roomy: &LogSettings, load: &Load) {
    let Load { value_bytes, rate, before } = *load;
    with_log(full, true, move |log| async move {
        while log.figures().counts.reclaimed < before {
            let number = 1 << 40 | log.figures().counts.appended_bytes;
            Rc::clone(&log).put(key(number), entry(value_bytes), None, NOW).await.expect("there is room");
        }
    });
    let segment_mib = (full.disk_bytes >> 20) / 64;
    let (full, roomy) = (open(full).expect("it was just closed"), open(roomy).expect("an empty directory"));
    on_a_core(async move {
        let (full, _full_keeper) = Log::new(full, 0).await.expect("its files can be opened");
        let (roomy, _roomy_keeper) = Log::new(roomy, 0).await.expect("its files can be opened");
        let turns_of: [Rc<RefCell<Vec<Duration>>>; 2] = Default::default();
        let mut runs = Vec::new();
        for (log, took) in [&full, &roomy].into_iter().zip(&turns_of) {
            let turns = Turns { task: Box::pin(Rc::clone(log).run()), took: Rc::clone(took) };
            runs.push(glommio::spawn_local(turns));
        }
        let writers: [Writer; 2] = Default::default();
        writers.iter().for_each(|writer| writer.rate.set(Some(rate as f64)));
        let phases = async {
            let mut gaps_of = [Vec::new(), Vec::new()];
            for _ in 0..PHASES {
                for (writer, gaps_of) in writers.iter().zip(&mut gaps_of) {
                    writer.is_busy.set(true);
                    gaps_of.extend(gaps().await);
                    writer.is_busy.set(false);
                }
            }
            writers.iter().for_each(|writer| writer.has_ended.set(true));
            let logs = [(&full, "reclaims"), (&roomy, "has room")];
            for (((log, what), mut gaps), turns) in logs.into_iter().zip(gaps_of).zip(&turns_of) {
                let mut turns = turns.borrow_mut();
                println!(
                    "between two turns of a neighbour, {rate} puts/s of {value_bytes} bytes to a log of {segment_mib} MiB \
                     segments that {what} ({} reclaimed): {}, longest {:.1?}; CPU of the log's own turns {}, longest {:.1?}",
                    log.figures().counts.reclaimed,
                    percentiles(&mut gaps),
                    gaps.last().expect("sorted, and not empty"),
                    percentiles(&mut turns),
                    turns.last().expect("sorted, and not empty"),
                );
            }
        };
        let [first, second] = &writers;
        let writing = futures::future::join(first.put(&full, value_bytes), second.put(&roomy, value_bytes));
        futures::future::join(writing, phases).await;
        for run in runs {
            run.cancel().await;
        }
    });
}

/// Whether the core's thread ever waits for a page without knowing: gets of a log whose pages are taken out of memory again
/// and again, as they are where other programs want the memory.
pub(crate) fn faults_without_memory(settings: &LogSettings) {
    const KEYS: u64 = 100_000;
    const ROUNDS: u64 = 20;
    const GETS_PER_ROUND: u64 = 500;
    let dir = settings.dir.clone();
    with_log(settings, false, move |log| async move {
        for number in 0..KEYS {
            Rc::clone(&log).put(key(number), entry(1024), None, NOW).await.expect("there is room");
        }
        let faults_before = major_faults();
        for round in 0..ROUNDS {
            drop_pages(&dir);
            for number in 0..GETS_PER_ROUND {
                let number = mix64(round * GETS_PER_ROUND + number) % KEYS;
                assert!(Rc::clone(&log).get(key(number), NOW).await.into_copy().is_some());
                Rc::clone(&log).put(key(KEYS + number), entry(1024), None, NOW).await.expect("there is room");
            }
        }
        println!(
            "gets with the log's pages dropped every {GETS_PER_ROUND}: {} of {} went to the disk; {} major faults of the thread",
            log.figures().counts.reads_ring,
            ROUNDS * GETS_PER_ROUND,
            major_faults() - faults_before
        );
    });
}

fn drop_pages(dir: &Path) {
    for file in fs::read_dir(dir).expect("the log's directory") {
        let file = File::open(file.expect("a file").path()).expect("it can be read");
        // SAFETY: no pointers, and the file is open.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }
}

fn major_faults() -> i64 {
    // SAFETY: all zeros is a usage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: points to one usage.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) }, 0);
    usage.ru_majflt
}
