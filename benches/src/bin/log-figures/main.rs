//! What the disk tier takes: memory for each key, time to start, time to read and to write, bytes written for each byte.
//!
//! ```text
//!   log-figures DIR [RECORDS] [FIGURE ...]      DIR on the disk in question, some gigabytes free; RECORDS 10,000,000 unless
//!                                               given; FIGUREs by name, all unless given
//!
//!   starts gets-and-puts amplification          here
//!   sustained                                   here: puts with ack=DISK against a loop that writes and syncs
//!   writing reclaiming faults                   neighbours.rs: what others on the core notice
//!   pressure                                    cgroup.rs: faults, in a process that has little memory
//! ```
//! Prints one line for each figure. Times on a core are the thread's own CPU time where it says "CPU". Times of the disk
//! depend on who else uses it; for comparison each is beside what a plain file takes that is asked for the same.

mod cgroup;
mod neighbours;

use std::{
    cell::Cell,
    env,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    process::ExitCode,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use glommio::{LocalExecutorBuilder, Placement};
use milena_proto::{
    key::{Key, KeyRef},
    placement::mix64,
};
use milena_storage::{
    Entry, Timestamp, Version,
    log::{Disk, Log, LogSettings, open},
    memory::{Lookup, Memory},
};

const NOW: Timestamp = Timestamp(1_700_000_000_000);
const GET_COUNT: u64 = 20_000;
const IN_FLIGHT: u64 = 64;

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let Some(dir) = args.next() else {
        eprintln!("log-figures: the directory is missing");
        return ExitCode::from(2);
    };
    let records = args.next().map_or(Ok(10_000_000), |text| text.parse());
    let Ok(records) = records else {
        eprintln!("log-figures: the number of records is a number");
        return ExitCode::from(2);
    };
    let figures: Vec<String> = args.collect();
    if let Some(unknown) = figures.iter().find(|figure| !FIGURES.contains(&figure.as_str())) {
        eprintln!("log-figures: {unknown} is no figure; there are {}", FIGURES.join(", "));
        return ExitCode::from(2);
    }
    let is_wanted = |figure: &str| figures.is_empty() || figures.iter().any(|wanted| wanted == figure);
    match measure(Path::new(&dir), records, is_wanted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("log-figures: {error}");
            ExitCode::FAILURE
        }
    }
}

const FIGURES: [&str; 8] =
    ["starts", "gets-and-puts", "amplification", "sustained", "writing", "reclaiming", "faults", "pressure"];

fn measure(dir: &Path, records: u64, is_wanted: impl Fn(&str) -> bool) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let many = LogSettings {
        dir: dir.join("many"),
        core: 0,
        core_count: 1,
        disk_bytes: (records * 176).max(64 << 20),
        new_log_id: 1,
    };
    let sized = |name: &str, disk_bytes| LogSettings { dir: dir.join(name), disk_bytes, ..many.clone() };
    if is_wanted("starts") {
        starts(&many, records);
        fs::remove_dir_all(&many.dir)?;
    }
    if is_wanted("gets-and-puts") {
        let (few, round) = (sized("few", 1 << 30), sized("round", 256 << 20));
        gets_and_puts(&few, &round, &dir.join("plain"))?;
        fs::remove_dir_all(&few.dir)?;
        fs::remove_dir_all(&round.dir)?;
    }
    if is_wanted("sustained") {
        let round = sized("round", 256 << 20);
        sustained(&round, &dir.join("plain"))?;
        fs::remove_dir_all(&round.dir)?;
    }
    let full = sized("full", 256 << 20);
    if is_wanted("writing") {
        drop(PlainFile::make(&dir.join("plain"))?);
        neighbours::gets_while_writing(&full, &dir.join("plain"));
        fs::remove_dir_all(&full.dir)?;
        fs::remove_file(dir.join("plain"))?;
    }
    if is_wanted("reclaiming") {
        let middling = neighbours::Load { value_bytes: 1024, rate: 20_000, before: 8 };
        let small = neighbours::Load { value_bytes: 100, rate: 200_000, before: 2 };
        // Segments of 4 MiB, and the largest there are, which have a hundred times as many records.
        for (load, full_bytes, roomy_bytes) in [(middling, 256 << 20, 1 << 30), (small, 4 << 30, 8 << 30)] {
            let (full, roomy) = (sized("full", full_bytes), sized("roomy", roomy_bytes));
            neighbours::turns_while_reclaiming(&full, &roomy, &load);
            fs::remove_dir_all(&full.dir)?;
            fs::remove_dir_all(&roomy.dir)?;
        }
    }
    if is_wanted("faults") {
        neighbours::faults_without_memory(&full);
        fs::remove_dir_all(&full.dir)?;
    }
    if is_wanted("pressure") {
        cgroup::faults_in_a_small_group(dir)?;
    }
    if is_wanted("amplification") {
        amplification(&full);
        fs::remove_dir_all(&full.dir)?;
    }
    Ok(())
}

fn key(number: u64) -> Key {
    KeyRef::parse(b"b", format!("k{number:09}").as_bytes()).expect("a legal key").to_key()
}

fn entry(bytes: usize) -> Entry {
    let version = Version::new(Bytes::from_static(b"0123456789abcdef0123456789abcdef")).expect("printable");
    Entry { value: Bytes::from(vec![7; bytes]), version, expires: None }
}

/// Runs `work` with the log in a directory; `stop` leaves it as a clean stop does, else as a crash.
fn with_log<F: Future<Output = ()> + 'static>(
    settings: &LogSettings,
    stop: bool,
    work: impl FnOnce(Rc<Log<Disk>>) -> F + 'static,
) {
    let opened = open(settings).unwrap_or_else(|error| panic!("{error}"));
    on_a_core(async move {
        let (log, keeper) = Log::new(opened, 0).await.expect("its files can be opened");
        let run = glommio::spawn_local(Rc::clone(&log).run());
        work(Rc::clone(&log)).await;
        if stop {
            log.stop();
            run.await;
            assert!(keeper.save(&log).unwrap_or_else(|error| panic!("{error}")));
        } else {
            run.cancel().await;
        }
    });
}

fn on_a_core(work: impl Future<Output = ()>) {
    let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(64 << 10).make().expect("an executor");
    executor.run(work);
}

fn cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: points to one time.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).expect("below a second"))
}

fn starts(settings: &LogSettings, records: u64) {
    with_log(settings, false, move |log| async move {
        let (begun, begun_cpu) = (Instant::now(), cpu());
        let mut last = None;
        for number in 0..records {
            last = Some(Rc::clone(&log).put(key(number), entry(40), None, NOW).await.expect("there is room"));
        }
        Rc::clone(&log).durable(last.expect("at least one")).await.expect("the disk works");
        let took = begun.elapsed();
        let figures = log.figures();
        println!(
            "fill: {records} records of 40 bytes in {took:.1?}, {:.2} us CPU each; {} keys",
            (cpu() - begun_cpu).as_secs_f64() * 1e6 / records as f64,
            figures.entries
        );
        println!("index: {:.2} bytes of memory for each key", figures.index_bytes as f64 / figures.entries as f64);
    });
    for clean in [false, true] {
        let begun = Instant::now();
        let opened = open(settings).unwrap_or_else(|error| panic!("{error}"));
        let opening = opened.opening.clone();
        drop(opened);
        let how = if opening.is_from_index { "the index of a clean stop" } else { "footers" };
        println!("start from {how}: {} keys in {:.2?}", opening.entries, begun.elapsed());
        if !clean {
            with_log(settings, true, |_| async {});
        }
    }
}

fn gets_and_puts(few: &LogSettings, round: &LogSettings, plain: &Path) -> io::Result<()> {
    const KEYS: u64 = 200_000;
    let plain_file = PlainFile::make(plain)?;
    with_log(few, true, |log| async move {
        for number in 0..KEYS {
            Rc::clone(&log).put(key(number), entry(1024), None, NOW).await.expect("there is room");
        }
    });
    let mut reading = plain_file.try_clone()?;
    with_log(few, true, |log| async move {
        cold_and_plain(&log, KEYS, &mut reading).await;
        resident_and_memory(&log, KEYS).await;
    });
    write_everywhere(round);
    let mut writing = plain_file;
    with_log(round, true, |log| async move { puts_and_plain(&log, &mut writing).await });
    fs::remove_file(plain)
}

/// Writes until the log is full: where a file was never written, the file system has to note that it is now.
fn write_everywhere(settings: &LogSettings) {
    with_log(settings, true, |log| async move {
        while log.figures().counts.reclaimed < 8 {
            let number = 1 << 40 | log.figures().counts.appended_bytes;
            Rc::clone(&log).put(key(number), entry(1024), None, NOW).await.expect("there is room");
        }
    });
}

/// Gets whose pages are not in memory, one at a time, in turns with direct reads of 4 KiB.
async fn cold_and_plain(log: &Rc<Log<Disk>>, keys: u64, plain: &mut PlainFile) {
    const ROUNDS: u64 = 9;
    const GETS: u64 = 500;
    // So far from each other that no get reads another's page, in an order that nobody foresees.
    let apart = keys / (ROUNDS * GETS);
    let (mut all, mut plain_all, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (mut took, mut plain_took) = (Vec::new(), Vec::new());
        for number in round * GETS..(round + 1) * GETS {
            let wanted = key(number * 1999 % (ROUNDS * GETS) * apart);
            let begun = Instant::now();
            let found = Rc::clone(log).get(wanted, NOW).await.into_copy();
            took.push(begun.elapsed());
            assert_eq!(found.expect("it was put").entry.value.len(), 1024);
            plain_took.push(plain.read(mix64(number)));
        }
        ratios.push(at(&mut took, 500).as_secs_f64() / at(&mut plain_took, 500).as_secs_f64());
        all.extend(took);
        plain_all.extend(plain_took);
    }
    let counts = log.figures().counts;
    println!("get, 1 KiB, cold, one at a time: {}; {} went to the disk", percentiles(&mut all), counts.reads_ring);
    println!(
        "a plain file, 4 KiB read directly, one at a time: {}; the log's p50 within a round {} times",
        percentiles(&mut plain_all),
        spread(&mut ratios)
    );
}

/// Puts with ack=DISK in waves, each in turns with a batch of the same size that a plain file takes.
async fn puts_and_plain(log: &Rc<Log<Disk>>, plain: &mut PlainFile) {
    const GROUPS: u64 = 5;
    /// In a group there are a hundred plain batches beyond p99.
    const WAVES: u64 = 10_000;
    let (mut all, mut plain_all, mut ratios, mut wave_took) = (Vec::new(), Vec::new(), Vec::new(), Duration::ZERO);
    for group in 0..GROUPS {
        let (mut took, mut plain_took) = (Vec::new(), Vec::new());
        for wave in group * WAVES..(group + 1) * WAVES {
            let puts = (0..IN_FLIGHT).map(|number| async move {
                let begun = Instant::now();
                let put = Rc::clone(log).put(key(wave * IN_FLIGHT + number), entry(1024), None, NOW);
                let position = put.await.expect("there is room");
                Rc::clone(log).durable(position).await.expect("the disk works");
                begun.elapsed()
            });
            let begun = Instant::now();
            took.extend(futures::future::join_all(puts).await);
            wave_took += begun.elapsed();
            plain_took.push(plain.write_and_sync(wave));
        }
        ratios.push(at(&mut took, 990).as_secs_f64() / at(&mut plain_took, 990).as_secs_f64());
        all.extend(took);
        plain_all.extend(plain_took);
    }
    let rate = all.len() as f64 / wave_took.as_secs_f64();
    println!("put, 1 KiB, ack=DISK, {IN_FLIGHT} at a time: {}, {rate:.0} a second", percentiles(&mut all));
    println!(
        "a plain file, {} KiB written directly and synced: {}; the puts' p99 within a group {} times",
        PlainFile::BATCH_BYTES >> 10,
        percentiles(&mut plain_all),
        spread(&mut ratios)
    );
}

/// CPU of a get from pages in memory against one from the memory tier and a copy of its value, in turns. Both include
/// making the key, and both begin with keys that were just asked for.
async fn resident_and_memory(log: &Rc<Log<Disk>>, keys: u64) {
    const ROUNDS: u64 = 9;
    let mut memory = Memory::new(1 << 30, 0);
    for number in 0..keys {
        assert!(memory.insert(key(number).as_ref(), &entry(1024), None, NOW), "there is room");
    }
    let each_us = |begun: Duration| (cpu() - begun).as_secs_f64() * 1e6 / GET_COUNT as f64;
    let (mut resident, mut in_memory, mut more) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let begun = cpu();
        for number in 0..GET_COUNT {
            let found = Rc::clone(log).get(key(mix64(number) % keys), NOW).await;
            assert_eq!(found.into_copy().expect("it was put").entry.value.len(), 1024);
        }
        let resident_us = each_us(begun);
        let begun = cpu();
        for number in 0..GET_COUNT {
            let Lookup::Hit(found) = memory.get(key(mix64(number) % keys).as_ref(), NOW) else { panic!("it was put") };
            assert_eq!(Bytes::copy_from_slice(&found.value).len(), 1024);
        }
        let in_memory_us = each_us(begun);
        // The first brings pages and caches to where the others find them.
        if round > 0 {
            resident.push(resident_us);
            in_memory.push(in_memory_us);
            more.push(resident_us - in_memory_us);
        }
    }
    println!(
        "CPU of a get of 1 KiB: resident {} us, memory and a copy {} us; within a round {} us more",
        spread(&mut resident),
        spread(&mut in_memory),
        spread(&mut more)
    );
}

/// Puts that are acknowledged when they are synced, 64 in flight all the time, against a loop that writes batches of the
/// same size to a file that was written before, and syncs each.
fn sustained(settings: &LogSettings, plain: &Path) -> io::Result<()> {
    const ROUNDS: u64 = 9;
    const PUTS_PER_WORKER: u64 = 2000;
    let (mut batch_bytes, mut rates, mut plain_rates, mut ratios) = (0, Vec::new(), Vec::new(), Vec::new());
    write_everywhere(settings);
    for round in 0..ROUNDS {
        let measured = Rc::new(Cell::new((0.0, 0)));
        let tell = Rc::clone(&measured);
        with_log(settings, true, move |log| async move {
            let begun = Instant::now();
            let workers = (0..IN_FLIGHT).map(|worker| {
                let log = Rc::clone(&log);
                async move {
                    for number in 0..PUTS_PER_WORKER {
                        let key = key((round << 32 | worker) * PUTS_PER_WORKER + number);
                        let position = Rc::clone(&log).put(key, entry(1024), None, NOW).await.expect("there is room");
                        Rc::clone(&log).durable(position).await.expect("the disk works");
                    }
                }
            });
            futures::future::join_all(workers).await;
            let counts = log.figures().counts;
            let rate = counts.written_bytes as f64 / begun.elapsed().as_secs_f64();
            tell.set((rate, counts.written_bytes / counts.syncs));
        });
        let (rate, bytes) = measured.get();
        batch_bytes = (bytes as usize).next_multiple_of(4096);
        let plain_rate = write_and_sync(plain, batch_bytes, PUTS_PER_WORKER)?;
        rates.push(rate / (1 << 20) as f64);
        plain_rates.push(plain_rate / (1 << 20) as f64);
        ratios.push(rate / plain_rate);
    }
    println!("put, 1 KiB, ack=DISK, {IN_FLIGHT} in flight all the time: {} MiB/s written", spread(&mut rates));
    println!(
        "a plain file, {} KiB written directly and synced in a loop: {} MiB/s; the log within a round {} times",
        batch_bytes >> 10,
        spread(&mut plain_rates),
        spread(&mut ratios)
    );
    fs::remove_file(plain)
}

/// Bytes a second of `count` batches, one after the other, each synced.
fn write_and_sync(path: &Path, batch_bytes: usize, count: u64) -> io::Result<f64> {
    let file_bytes = batch_bytes as u64 * count;
    let file = File::create(path)?;
    for number in 0..count {
        file.write_all_at(&vec![1; batch_bytes], number * batch_bytes as u64)?;
    }
    file.sync_all()?;
    let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut memory = vec![2_u8; batch_bytes + 4096];
    let start = memory.as_ptr().align_offset(4096);
    let batch = &mut memory[start..start + batch_bytes];
    let begun = Instant::now();
    for number in 0..count {
        direct.write_all_at(batch, number * batch_bytes as u64)?;
        direct.sync_data()?;
    }
    Ok(file_bytes as f64 / begun.elapsed().as_secs_f64())
}

/// What the disk itself takes: a batch written and synced, or a block read, directly, in a file that was written before.
struct PlainFile {
    file: File,
    memory: Vec<u8>,
}

impl PlainFile {
    const FILE_BYTES: u64 = 256 << 20;
    /// What 64 puts of 1 KiB make.
    const BATCH_BYTES: usize = 72 << 10;

    fn make(path: &Path) -> io::Result<Self> {
        let file = File::create(path)?;
        file.write_all_at(&vec![1; Self::FILE_BYTES as usize], 0)?;
        file.sync_all()?;
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
        Ok(Self { file, memory: vec![1; Self::BATCH_BYTES + 4096] })
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, memory: self.memory.clone() })
    }

    fn write_and_sync(&mut self, number: u64) -> Duration {
        let start = self.memory.as_ptr().align_offset(4096);
        let offset = number * Self::BATCH_BYTES as u64 % (Self::FILE_BYTES - Self::BATCH_BYTES as u64) / 4096 * 4096;
        let begun = Instant::now();
        self.file.write_all_at(&self.memory[start..start + Self::BATCH_BYTES], offset).expect("it takes a batch");
        self.file.sync_data().expect("it syncs");
        begun.elapsed()
    }

    fn read(&mut self, random: u64) -> Duration {
        let start = self.memory.as_ptr().align_offset(4096);
        let begun = Instant::now();
        let block = &mut self.memory[start..start + 4096];
        self.file.read_exact_at(block, random % (Self::FILE_BYTES / 4096 - 1) * 4096).expect("it was written");
        begun.elapsed()
    }
}

/// Values of 1 KiB under keys drawn by Zipf's law, half gets and half puts, until the log was overwritten ten times.
fn amplification(settings: &LogSettings) {
    const KEYS: u64 = 500_000;
    with_log(settings, true, |log| async move {
        let zipf = Zipf::new(KEYS, 0.99);
        let (mut put_bytes, mut step, mut hits, mut gets) = (0_u64, 0_u64, 0_u64, 0_u64);
        while put_bytes < 10 * (256 << 20) {
            let number = zipf.draw(mix64(step));
            step += 1;
            gets += 1;
            if Rc::clone(&log).get(key(number), NOW).await.into_copy().is_some() {
                hits += 1;
                if !step.is_multiple_of(4) {
                    continue;
                }
            }
            Rc::clone(&log).put(key(number), entry(1024), None, NOW).await.expect("there is room");
            put_bytes += 1024 + 11;
        }
        let counts = log.figures().counts;
        println!(
            "amplification, 1 KiB, Zipf 0.99, log full: {:.3} bytes written for each of key and value ({:.3} for each of \
             records; {:.1} % carried, hit ratio {:.3})",
            counts.written_bytes as f64 / put_bytes as f64,
            counts.written_bytes as f64 / counts.appended_bytes as f64,
            100.0 * counts.carried_bytes as f64 / counts.appended_bytes as f64,
            hits as f64 / gets as f64,
        );
    });
}

/// Gray et al., "Quickly Generating Billion-Record Synthetic Databases", SIGMOD 1994, figure 5.
struct Zipf {
    count: u64,
    theta: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    fn new(count: u64, theta: f64) -> Self {
        let zeta = |count: u64| (1..=count).map(|n| (n as f64).powf(-theta)).sum::<f64>();
        let all = zeta(count);
        let eta = (1.0 - (2.0 / count as f64).powf(1.0 - theta)) / (1.0 - zeta(2) / all);
        Self { count, theta, zeta: all, eta }
    }

    fn draw(&self, random: u64) -> u64 {
        let uniform = (random >> 11) as f64 / (1_u64 << 53) as f64;
        let scaled = uniform * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(self.theta) {
            return 1;
        }
        let place = self.count as f64 * (self.eta * uniform - self.eta + 1.0).powf(1.0 / (1.0 - self.theta));
        (place as u64).min(self.count - 1)
    }
}

/// The median, and the least and most.
fn spread(figures: &mut [f64]) -> String {
    figures.sort_unstable_by(f64::total_cmp);
    format!("{:.2} ({:.2} to {:.2})", figures[figures.len() / 2], figures[0], figures[figures.len() - 1])
}

fn percentiles(took: &mut [Duration]) -> String {
    format!("p50 {:.1?}, p99 {:.1?}, p99.9 {:.1?}", at(took, 500), at(took, 990), at(took, 999))
}

fn at(took: &mut [Duration], permille: usize) -> Duration {
    took.sort_unstable();
    took[(took.len() - 1) * permille / 1000]
}
