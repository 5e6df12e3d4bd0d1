//! Recorded workloads, as others publish them.
//!
//! ```text
//!   oracle    0         4            12     16                24       little-endian, one record after the other
//!             ├ time_s  ┼ object id  ┼ size ┼ next access     ┤        libCacheSim's oracleGeneral; reads only
//!   twitter   timestamp_s,key,key size,value size,client,operation,TTL_s      a line each (Yang et al., OSDI 2020)
//!   keys      key                                                             a line each; reads only
//!
//!   FILE ─▶ .zst, .xz or as it is ─▶ format ─▶ Record, Record, … ─▶ spread within their seconds ─▶ shared out by key
//! ```
//! Times are whole seconds in all of them. All requests at the beginning of each second would be a load that nobody has
//! seen, so those of one second are spread over it as independent users would be: sorted uniform times.

use std::{
    collections::HashSet,
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use bytes::Bytes;
use milena_proto::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX_DEFAULT};
use xxhash_rust::xxh64::xxh64;

use crate::{
    drive::Load,
    protocol::{Answer, Failure, Verb},
    random::Random,
    workload::{Name, Op, Operation},
};

/// Bytes of one record of oracleGeneral.
const ORACLE_BYTES: usize = 24;

/// The size of values where the trace has none, in bytes.
const VALUE_BYTES: u32 = 1000;

/// The stream of random numbers that spreads records within their seconds, and that of the values.
const SPREAD: u64 = 1 << 34;
const VALUES: u64 = 1 << 35;

/// How a trace is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// libCacheSim's oracleGeneral.
    Oracle,
    /// Twitter's CSV.
    Twitter,
    /// A key on each line.
    Keys,
}

impl Format {
    /// By the name of a file, without `.zst` and `.xz`: `.csv`, `.bin` or `.oracleGeneral`; anything else is keys.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let name = name.trim_end_matches(".zst").trim_end_matches(".xz");
        match name.rsplit_once('.').map(|(_, ending)| ending) {
            Some("oraclegeneral" | "bin") => Self::Oracle,
            Some("csv") => Self::Twitter,
            _ => Self::Keys,
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "oracle" | "oracleGeneral" => Ok(Self::Oracle),
            "twitter" => Ok(Self::Twitter),
            "keys" => Ok(Self::Keys),
            _ => Err("oracle, twitter or keys is expected".to_owned()),
        }
    }
}

/// One request of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Seconds since the first.
    pub at_s: f64,
    /// What was done.
    pub operation: Operation,
}

/// A trace in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// In the order of the file, which is that of time.
    pub records: Vec<Record>,
    /// Values that were larger than a node takes, and are as large as that.
    pub cut_count: u64,
}

/// Why a trace cannot be replayed.
#[derive(Debug)]
pub enum TraceError {
    /// It cannot be read.
    File {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A record makes no sense.
    Record {
        /// Its number, from 1.
        number: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// There is none.
    Empty(PathBuf),
}

impl Trace {
    /// Reads up to `limit` records of the file at `path`, decompressed as its name says, and spreads them within their
    /// seconds by `seed`.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn read(path: &Path, format: Format, limit: usize, seed: u64) -> Result<Self, TraceError> {
        let failed = |source| TraceError::File { path: path.to_owned(), source };
        let file = BufReader::with_capacity(1 << 20, File::open(path).map_err(failed)?);
        let plain: Box<dyn Read> = match path.extension().and_then(|ending| ending.to_str()) {
            Some("zst") => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(file);
                Box::new(decoder.map_err(|error| failed(io::Error::other(error.to_string())))?)
            }
            Some("xz") => Box::new(lzma_rust2::XzReader::new(file, true)),
            _ => Box::new(file),
        };
        let mut trace = Self::parse(plain, format, limit, failed)?;
        if trace.records.is_empty() {
            return Err(TraceError::Empty(path.to_owned()));
        }
        trace.spread(seed);
        Ok(trace)
    }

    fn parse(
        plain: impl Read,
        format: Format,
        limit: usize,
        failed: impl Fn(io::Error) -> TraceError,
    ) -> Result<Self, TraceError> {
        let mut trace = Self { records: Vec::new(), cut_count: 0 };
        let mut input = BufReader::new(plain);
        let (mut line, mut packed) = (Vec::new(), [0; ORACLE_BYTES]);
        while trace.records.len() < limit {
            let number = trace.records.len() + 1;
            let wrong = |what| TraceError::Record { number, what };
            let record = if format == Format::Oracle {
                match read_packed(&mut input, &mut packed).map_err(&failed)? {
                    0 => break,
                    ORACLE_BYTES => oracle(&packed),
                    _ => return Err(wrong("the file ends within it")),
                }
            } else {
                line.clear();
                if input.read_until(b'\n', &mut line).map_err(&failed)? == 0 {
                    break;
                }
                let line = line.trim_ascii_end();
                if format == Format::Keys { plain_key(line) } else { twitter(line) }.map_err(wrong)?
            };
            trace.push(record);
        }
        Ok(trace)
    }

    fn push(&mut self, mut record: Record) {
        let first_s = self.records.first().map_or(record.at_s, |first| first.at_s);
        // A clock that goes back is taken for one that stands still.
        let last_s = self.records.last().map_or(first_s, |last| last.at_s);
        record.at_s = record.at_s.max(last_s);
        let value_bytes = &mut record.operation.value_bytes;
        if *value_bytes > VALUE_BYTES_MAX_DEFAULT as u32 {
            *value_bytes = VALUE_BYTES_MAX_DEFAULT as u32;
            self.cut_count += 1;
        }
        self.records.push(record);
    }

    /// Makes times relative to the first and gives those of one second times within it.
    fn spread(&mut self, seed: u64) {
        let mut random = Random::new(seed, SPREAD);
        let first_s = self.records[0].at_s;
        for second in self.records.chunk_by_mut(|one, other| one.at_s == other.at_s) {
            let mut shares: Vec<f64> = second.iter().map(|_| random.share()).collect();
            shares.sort_by(f64::total_cmp);
            for (record, share) in second.iter_mut().zip(shares) {
                record.at_s += share - first_s;
            }
        }
    }

    /// How many different keys there are.
    #[must_use]
    pub fn key_count(&self) -> u64 {
        self.records.iter().map(|record| &record.operation.name).collect::<HashSet<_>>().len() as u64
    }

    /// The mean of something over all records.
    #[must_use]
    pub fn mean(&self, of: impl Fn(&Operation) -> f64) -> f64 {
        self.records.iter().map(|record| of(&record.operation)).sum::<f64>() / self.records.len() as f64
    }

    /// The records of core number `core` of `cores`: those with the same key are on the same core, in their order.
    #[must_use]
    pub fn share(&self, core: usize, cores: usize) -> Vec<Record> {
        let is_ours =
            |record: &&Record| record.operation.name.with(|name| xxh64(name, 0)) % cores as u64 == core as u64;
        self.records.iter().filter(is_ours).cloned().collect()
    }
}

/// As many bytes as there are, up to a record.
fn read_packed(input: &mut impl Read, packed: &mut [u8; ORACLE_BYTES]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < ORACLE_BYTES {
        match input.read(&mut packed[filled..]) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn get(name: Name, value_bytes: u32) -> Operation {
    Operation { op: Op::Get, name, value_bytes, ttl_ms: 0, token: 0 }
}

fn oracle(packed: &[u8; ORACLE_BYTES]) -> Record {
    let (time, rest) = packed.split_first_chunk().expect("4 of 24 bytes");
    let (id, rest) = rest.split_first_chunk().expect("8 of 20 bytes");
    let (size, _) = rest.split_first_chunk().expect("4 of 12 bytes");
    let operation = get(Name::Id(u64::from_le_bytes(*id)), u32::from_le_bytes(*size));
    Record { at_s: f64::from(u32::from_le_bytes(*time)), operation }
}

fn text(name: &[u8]) -> Result<Name, &'static str> {
    match name.len() {
        0 => Err("the key is empty"),
        1..=KEY_BYTES_MAX => Ok(Name::Text(Bytes::copy_from_slice(name))),
        _ => Err("the key is longer than 1024 bytes"),
    }
}

fn plain_key(line: &[u8]) -> Result<Record, &'static str> {
    Ok(Record { at_s: 0.0, operation: get(text(line)?, VALUE_BYTES) })
}

/// The key may hold commas; the other fields do not.
fn twitter(line: &[u8]) -> Result<Record, &'static str> {
    let wrong = "not timestamp,key,key size,value size,client,operation,TTL";
    let first = line.iter().position(|byte| *byte == b',').ok_or(wrong)?;
    let mut fields = line[first + 1..].rsplitn(6, |byte| *byte == b',');
    let mut next = || fields.next().and_then(|field| std::str::from_utf8(field).ok()).ok_or(wrong);
    let (ttl_s, operation, _client, value_bytes, _key_bytes) = (next()?, next()?, next()?, next()?, next()?);
    let name = text(fields.next().ok_or(wrong)?)?;
    let number = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong);
    let at_s = number(std::str::from_utf8(&line[..first]).map_err(|_| wrong)?)?;
    let op = match operation.trim() {
        "get" | "gets" => Op::Get,
        "set" | "add" | "replace" | "cas" | "append" | "prepend" | "incr" | "decr" => Op::Put,
        "delete" => Op::Delete,
        _ => return Err("an operation that nobody knows"),
    };
    let (value_bytes, ttl_ms) = (number(value_bytes)?, u64::from(number(ttl_s)?) * 1000);
    Ok(Record { at_s: f64::from(at_s), operation: Operation { op, value_bytes, ttl_ms, ..get(name, 0) } })
}

/// One core's share of a trace.
#[derive(Debug)]
pub struct Replay {
    records: std::iter::Peekable<std::vec::IntoIter<Record>>,
    bytes: Bytes,
}

impl Replay {
    /// Of these records; the times are the schedule's business.
    #[must_use]
    pub fn new(records: Vec<Record>, seed: u64) -> Self {
        let bytes_max = records.iter().map(|record| record.operation.value_bytes).max().unwrap_or_default();
        let mut random = Random::new(seed, VALUES);
        let bytes: Vec<u8> = (0..bytes_max.div_ceil(8)).flat_map(|_| random.bits().to_le_bytes()).collect();
        Self { records: records.into_iter().peekable(), bytes: bytes.into() }
    }
}

impl Load for Replay {
    fn preload(&mut self) -> Option<Operation> {
        None
    }

    fn next(&mut self, like: Option<Op>) -> Option<Operation> {
        let record = self.records.next_if(|record| like.is_none_or(|like| like == record.operation.op));
        record.map(|record| record.operation)
    }

    fn value(&mut self, operation: &Operation) -> Bytes {
        self.bytes.slice(..operation.value_bytes as usize)
    }

    fn answered(&mut self, _: Verb, _: &[Operation], _: &Result<Answer, Failure>) {}
}

/// When the records of a core are due, if the trace's time passes `speed` times as fast as it did.
#[must_use]
pub fn due(records: &[Record], speed: f64) -> Vec<Duration> {
    records.iter().map(|record| Duration::from_secs_f64(record.at_s / speed)).collect()
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, source } => write!(f, "cannot read {}: {source}", path.display()),
            Self::Record { number, what } => write!(f, "record {number} of the trace: {what}"),
            Self::Empty(path) => write!(f, "{} has no records", path.display()),
        }
    }
}

impl std::error::Error for TraceError {}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const TWITTER: &str = "10,user,a:1,8,300,7,get,0\n10,k2,2,0,7,set,60\n12,k2,2,1,9,delete,0\n";

    const KEYS_ZST: &[u8] = b"\x28\xb5\x2f\xfd\x04\x58\x41\x00\x00\x6f\x6e\x65\x0a\x74\x77\x6f\x0a\xe6\xa6\x0e\x40";
    const KEYS_XZ: &[u8] = b"\xfd\x37\x7a\x58\x5a\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01\x16\x00\x00\x00\x74\x2f\xe5\xa3\x01\x00\x07\x6f\x6e\x65\x0a\x74\x77\x6f\x0a\x00\x51\xab\x9e\xaf\x57\x75\x70\x49\x00\x01\x20\x08\xbb\x19\xd9\xbb\x1f\xb6\xf3\x7d\x01\x00\x00\x00\x00\x04\x59\x5a";

    fn parse(bytes: &[u8], format: Format) -> Result<Vec<Record>, String> {
        let failed = |source| TraceError::File { path: PathBuf::from("here"), source };
        Trace::parse(bytes, format, 1000, failed).map(|trace| trace.records).map_err(|error| error.to_string())
    }

    fn packed(time: u32, id: u64, size: u32) -> Vec<u8> {
        [&time.to_le_bytes()[..], &id.to_le_bytes(), &size.to_le_bytes(), &(-1_i64).to_le_bytes()].concat()
    }

    #[test]
    fn oracle_general_is_24_bytes_a_record() {
        let records = parse(&[packed(5, 0x2a, 100), packed(6, u64::MAX, 7)].concat(), Format::Oracle).unwrap();
        assert_eq!(records[0], Record { at_s: 5.0, operation: get(Name::Id(0x2a), 100) });
        assert_eq!((records[1].at_s, &records[1].operation.name), (6.0, &Name::Id(u64::MAX)));
        let cut = parse(&packed(5, 1, 1)[..23], Format::Oracle);
        assert_eq!(cut, Err("record 1 of the trace: the file ends within it".to_owned()));
    }

    #[test]
    fn twitters_lines_have_operations_and_lives_and_keys_may_hold_commas() {
        let records = parse(TWITTER.as_bytes(), Format::Twitter).unwrap();
        let name = |name: &'static str| Name::Text(Bytes::from_static(name.as_bytes()));
        assert_eq!(records[0].operation, get(name("user,a:1"), 300));
        assert_eq!(records[1].operation, Operation { op: Op::Put, ttl_ms: 60_000, ..get(name("k2"), 0) });
        assert_eq!((records[2].at_s, records[2].operation.op), (12.0, Op::Delete));
        for (line, what) in
            [("1,k,1,1,1,scan,0", "an operation that nobody knows"), ("1,,0,1,1,get,0", "the key is empty")]
        {
            assert_eq!(parse(line.as_bytes(), Format::Twitter), Err(format!("record 1 of the trace: {what}")));
        }
        assert!(parse(b"1,k,1,1,get,0", Format::Twitter).unwrap_err().contains("not timestamp,key"));
    }

    #[test]
    fn keys_are_lines_whatever_ends_them() {
        let records = parse(b"one\r\ntwo\nthree", Format::Keys).unwrap();
        let lengths: Vec<usize> = records.iter().map(|record| record.operation.name.bytes()).collect();
        assert_eq!(lengths, [3, 3, 5]);
        assert!(parse(&[b'x'; 1025], Format::Keys).unwrap_err().contains("longer than 1024"));
    }

    #[test]
    fn records_of_one_second_are_spread_over_it_in_their_order() {
        let lines: String = (0..100).map(|index| format!("{},k{index},2,1,1,get,0\n", 7 + index / 50)).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.csv");
        fs::write(&path, lines).unwrap();
        let trace = Trace::read(&path, Format::of(&path), 1000, 1).unwrap();
        let times: Vec<f64> = trace.records.iter().map(|record| record.at_s).collect();
        assert!(times.is_sorted() && times[49] < 1.0 && times[50] >= 1.0 && times[99] < 2.0, "{times:?}");
        assert!((times[24] - 0.5).abs() < 0.25, "{}", times[24]);
        assert_eq!(Trace::read(&path, Format::Twitter, 10, 1).unwrap().records.len(), 10, "no more than the limit");
    }

    #[test]
    fn a_key_stays_on_its_core_and_nothing_is_lost() {
        let lines: String = (0..300).map(|index| format!("k{}\n", index % 30)).collect();
        let trace = Trace { records: parse(lines.as_bytes(), Format::Keys).unwrap(), cut_count: 0 };
        let shares = [trace.share(0, 2), trace.share(1, 2)];
        assert_eq!(shares[0].len() + shares[1].len(), 300);
        let keys = shares.map(|share| share.into_iter().map(|record| record.operation.name).collect::<HashSet<_>>());
        assert!(keys[0].is_disjoint(&keys[1]) && keys.iter().all(|keys| !keys.is_empty()));
        assert_eq!(trace.key_count(), 30);
    }

    #[test]
    fn a_format_is_guessed_from_a_name_and_compression_does_not_matter() {
        for (name, format) in [
            ("cluster52.csv.zst", Format::Twitter),
            ("w01.oracleGeneral.xz", Format::Oracle),
            ("w01.oracleGeneral.bin", Format::Oracle),
            ("keys.txt.zst", Format::Keys),
            ("keys", Format::Keys),
        ] {
            assert_eq!(Format::of(Path::new(name)), format, "{name}");
        }
    }

    #[test]
    fn compressed_files_are_read_as_they_are() {
        // `printf 'one\ntwo\n' | zstd` and `| xz`.
        let files: [(&str, &[u8]); 2] = [("keys.zst", KEYS_ZST), ("keys.xz", KEYS_XZ)];
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            assert_eq!(Trace::read(&path, Format::Keys, 10, 1).unwrap().records.len(), 2, "{name}");
            fs::write(&path, &bytes[..bytes.len() - 6]).unwrap();
            let error = Trace::read(&path, Format::Keys, 10, 1).unwrap_err().to_string();
            assert!(error.starts_with("cannot read ") && error.contains(name), "{error}");
        }
    }

    #[test]
    fn a_batch_holds_what_is_alike() {
        let mut replay = Replay::new(parse(TWITTER.as_bytes(), Format::Twitter).unwrap(), 1);
        assert_eq!(replay.next(None).map(|operation| operation.op), Some(Op::Get));
        assert_eq!(replay.next(Some(Op::Get)), None);
        assert_eq!(replay.next(None).map(|operation| operation.op), Some(Op::Put));
    }
}
