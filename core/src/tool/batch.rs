//! `milena batch`: commands from standard input, as few calls as they need, a line of output for each.
//!
//! ```text
//!   get BUCKET KEY          ─▶ found VALUE     or   absent
//!   put BUCKET KEY VALUE    ─▶ done                             or   failed CODE: why
//!   del BUCKET KEY          ─▶ done
//!
//!   neighbours of one kind and bucket ─▶ one batch, up to LINES_MAX and BATCH_BYTES_MAX ─▶ their results in their order
//! ```

use std::io::{self, BufRead, Read as _};

use bytes::Bytes;
use milena_net::grpc::status::{Code, RETRY_PUSHBACK};
use milena_proto::{
    key::KeyRef,
    limits::{BATCH_ENTRIES_MAX, BUCKET_BYTES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX},
    method::{ROUTER_BATCH_DELETE, ROUTER_BATCH_GET, ROUTER_BATCH_PUT},
    router_server::{BatchDeleteRequest, BatchGetRequest, BatchPutRequest, GetResponse, PutRequest, PutResult},
};
use serde_json::{Value, json};

use super::{
    Tool, ToolError,
    ask::{found_json, print, put_text},
};

/// Commands of one batch.
const LINES_MAX: usize = BATCH_ENTRIES_MAX;

/// Bytes of the commands of one batch, unless one alone has more: well below what any node takes in one message.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// The longest command: `put`, three spaces and what they part.
const LINE_BYTES_MAX: usize = 6 + BUCKET_BYTES_MAX + KEY_BYTES_MAX + VALUE_BYTES_MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Get,
    Put,
    Del,
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    kind: Kind,
    bucket: String,
    key: Bytes,
    /// Of a put.
    value: Bytes,
}

/// What became of it.
enum Outcome {
    Read(GetResponse),
    Written(PutResult),
}

/// How it went until now.
#[derive(Debug, Default)]
struct Tally {
    commands: usize,
    failed: usize,
    absent: usize,
}

impl Tool {
    /// Does what the lines say, and ends with the first batch that fails as a whole, or the first line that is no command:
    /// those before it are done.
    pub(super) fn batch(&self) -> Result<(), ToolError> {
        let mut lines = Lines { reader: io::stdin().lock(), count: 0 };
        let (mut batch, mut tally) = (Vec::new(), Tally::default());
        let mut next = lines.next();
        while let Ok(Some(line)) = next {
            if !has_room(&batch, &line) {
                self.run_batch(&std::mem::take(&mut batch), &mut tally)?;
            }
            batch.push(line);
            next = lines.next();
        }
        self.run_batch(&batch, &mut tally)?;
        next.and_then(|_| tally.verdict())
    }

    fn run_batch(&self, batch: &[Line], tally: &mut Tally) -> Result<(), ToolError> {
        let Some(first) = batch.first() else { return Ok(()) };
        let outcomes = match self.ask_batch(first.kind, &first.bucket, batch) {
            Ok(outcomes) => outcomes,
            Err(error) if batch.len() > 1 && is_too_large(&error) => {
                let (front, back) = batch.split_at(batch.len() / 2);
                return self.run_batch(front, tally).and_then(|()| self.run_batch(back, tally));
            }
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        for (line, outcome) in batch.iter().zip(&outcomes) {
            tally.count(outcome);
            if self.json {
                text.extend_from_slice(line.json(outcome).to_string().as_bytes());
            } else {
                outcome.put_words(&mut text);
            }
            text.push(b'\n');
        }
        print(io::stdout(), &text)
    }

    fn ask_batch(&self, kind: Kind, bucket: &str, batch: &[Line]) -> Result<Vec<Outcome>, ToolError> {
        let (bucket, keys) = (bucket.to_owned(), batch.iter().map(|line| line.key.clone()));
        let written = |results: Vec<PutResult>| results.into_iter().map(Outcome::Written).collect();
        Ok(match kind {
            Kind::Get => {
                let request = BatchGetRequest { bucket, keys: keys.collect() };
                self.ask(ROUTER_BATCH_GET, request)?.results.into_iter().map(Outcome::Read).collect()
            }
            Kind::Put => {
                let put = |Line { bucket, key, value, .. }| PutRequest { bucket, key, value, ..Default::default() };
                let entries = batch.iter().cloned().map(put).collect();
                written(self.ask(ROUTER_BATCH_PUT, BatchPutRequest { entries })?.results)
            }
            Kind::Del => {
                let request = BatchDeleteRequest { bucket, keys: keys.collect() };
                written(self.ask(ROUTER_BATCH_DELETE, request)?.results)
            }
        })
    }
}

/// Whether a batch was refused for its size, or for that of its answer, and thus was not done: half of it may be possible.
/// What is refused because too much is asked for at this moment says when to come back.
fn is_too_large(error: &ToolError) -> bool {
    matches!(error, ToolError::Status { status, .. }
        if status.code == Code::ResourceExhausted && status.trailer(&RETRY_PUSHBACK).is_none())
}

fn has_room(batch: &[Line], next: &Line) -> bool {
    let Some(first) = batch.first() else { return true };
    let bytes: usize = batch.iter().chain([next]).map(Line::bytes).sum();
    (first.kind, &first.bucket) == (next.kind, &next.bucket) && batch.len() < LINES_MAX && bytes <= BATCH_BYTES_MAX
}

/// Commands as they come.
struct Lines<R> {
    reader: R,
    count: usize,
}

impl<R: BufRead> Lines<R> {
    /// The next command; blank lines are passed over.
    fn next(&mut self) -> Result<Option<Line>, ToolError> {
        loop {
            let mut text = Vec::new();
            let read = self.reader.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut text);
            read.map_err(|error| ToolError::Value { source: "standard input".to_owned(), error })?;
            if text.is_empty() {
                return Ok(None);
            }
            self.count += 1;
            let text = text.strip_suffix(b"\n").unwrap_or(&text);
            if !text.trim_ascii().is_empty() {
                return Line::parse(text).map(Some).map_err(|why| ToolError::Line { number: self.count, why });
            }
        }
    }
}

impl Line {
    fn parse(text: &[u8]) -> Result<Self, String> {
        if text.len() >= LINE_BYTES_MAX {
            return Err(format!("it has more than {} bytes", LINE_BYTES_MAX - 1));
        }
        let mut words = text.splitn(4, |byte| *byte == b' ');
        let mut next = || words.next();
        let (kind, usage) = match next() {
            Some(b"get") => (Kind::Get, "get BUCKET KEY"),
            Some(b"put") => (Kind::Put, "put BUCKET KEY VALUE"),
            Some(b"del") => (Kind::Del, "del BUCKET KEY"),
            other => {
                let found = other.unwrap_or_default().escape_ascii();
                return Err(format!("'{found}' is no command; get, put and del are"));
            }
        };
        let (bucket, key, value) = match (next(), next(), next(), kind) {
            (Some(bucket), Some(key), None, Kind::Get | Kind::Del) => (bucket, key, &b""[..]),
            (Some(bucket), Some(key), Some(value), Kind::Put) => (bucket, key, value),
            _ => return Err(format!("allowed is '{usage}', with one space between")),
        };
        let key = KeyRef::parse(bucket, key).map_err(|error| error.to_string())?;
        let (bucket, key) = (key.bucket().to_owned(), Bytes::copy_from_slice(key.name()));
        Ok(Self { kind, bucket, key, value: Bytes::copy_from_slice(value) })
    }

    /// About what it takes in a message.
    fn bytes(&self) -> usize {
        const TAGS_AND_LENGTHS: usize = 24;
        self.bucket.len() + self.key.len() + self.value.len() + TAGS_AND_LENGTHS
    }

    fn json(&self, outcome: &Outcome) -> Value {
        let mut json = match outcome {
            Outcome::Read(response) => found_json(response),
            Outcome::Written(PutResult { code: 0, version, .. }) => json!({ "done": true, "version": version }),
            Outcome::Written(PutResult { code, message, .. }) => {
                json!({ "done": false, "code": Code::from_number(*code).name(), "message": message })
            }
        };
        json["op"] = match self.kind {
            Kind::Get => "get".into(),
            Kind::Put => "put".into(),
            Kind::Del => "del".into(),
        };
        json["bucket"] = self.bucket.as_str().into();
        put_text(&mut json, "key", &self.key);
        json
    }
}

impl Outcome {
    fn put_words(&self, text: &mut Vec<u8>) {
        match self {
            Self::Read(GetResponse { successful: true, value, .. }) => {
                text.extend_from_slice(b"found ");
                text.extend_from_slice(value);
            }
            Self::Read(_) => text.extend_from_slice(b"absent"),
            Self::Written(PutResult { code: 0, .. }) => text.extend_from_slice(b"done"),
            Self::Written(PutResult { code, message, .. }) => {
                text.extend_from_slice(format!("failed {}: {message}", Code::from_number(*code).name()).as_bytes());
            }
        }
    }
}

impl Tally {
    fn count(&mut self, outcome: &Outcome) {
        self.commands += 1;
        match outcome {
            Outcome::Read(response) => self.absent += usize::from(!response.successful),
            Outcome::Written(result) => self.failed += usize::from(result.code != 0),
        }
    }

    fn verdict(&self) -> Result<(), ToolError> {
        let Self { commands, failed, absent } = *self;
        match (failed, absent) {
            (0, 0) => Ok(()),
            (0, absent) => Err(ToolError::NotFound { key: format!("{absent} of {commands} keys") }),
            (failed, _) => Err(ToolError::Commands { failed, commands }),
        }
    }
}

#[cfg(test)]
mod tests {
    use milena_net::grpc::status::Status;

    use super::*;

    fn lines(text: &str) -> Vec<Result<Option<Line>, ToolError>> {
        let mut lines = Lines { reader: text.as_bytes(), count: 0 };
        let next = || Some(lines.next()).filter(|next| !matches!(next, Ok(None)));
        std::iter::from_fn(next).take(10).collect()
    }

    fn line(text: &str) -> Line {
        Line::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_value_is_the_rest_of_its_line_and_a_blank_line_is_nothing() {
        let found = lines("put b k a value  with spaces \n\n  \nput b k \nget b k");
        let values: Vec<_> = found.into_iter().map(|line| line.unwrap().unwrap().value).collect();
        assert_eq!(values, ["a value  with spaces ", "", ""]);
    }

    #[test]
    fn a_line_that_is_no_command_is_named_with_what_is_allowed() {
        for (text, said) in [
            ("get b k\nfetch b k", "line 2: 'fetch' is no command; get, put and del are"),
            ("get b", "line 1: allowed is 'get BUCKET KEY', with one space between"),
            ("get b k v", "line 1: allowed is 'get BUCKET KEY', with one space between"),
            ("\nput b k", "line 2: allowed is 'put BUCKET KEY VALUE', with one space between"),
            ("del  k", "line 1: bucket has 0 characters; 1 to 63 are allowed"),
        ] {
            let found = lines(text).into_iter().find_map(Result::err).unwrap();
            assert_eq!(found.to_string(), said);
        }
    }

    #[test]
    fn neighbours_of_one_kind_and_bucket_go_together_as_far_as_there_is_room() {
        let batch = vec![line("get b k")];
        assert!(has_room(&[], &line("del c k")) && has_room(&batch, &line("get b l")));
        assert!(!has_room(&batch, &line("get c k")) && !has_room(&batch, &line("del b k")));
        assert!(!has_room(&vec![line("get b k"); LINES_MAX], &line("get b k")));
        let large = line(&format!("put b k {}", "v".repeat(BATCH_BYTES_MAX)));
        assert!(has_room(&[], &large) && !has_room(&[line("put b k v")], &large));
    }

    #[test]
    fn one_failure_counts_more_than_any_key_that_is_absent() {
        let read = |successful| Outcome::Read(GetResponse { successful, ..Default::default() });
        let written = |code| Outcome::Written(PutResult { code, ..Default::default() });
        let said = |outcomes: &[Outcome]| {
            let mut tally = Tally::default();
            outcomes.iter().for_each(|outcome| tally.count(outcome));
            tally.verdict().map_err(|error| error.to_string())
        };
        assert_eq!(said(&[read(true), written(0)]), Ok(()));
        assert_eq!(said(&[read(true), read(false)]), Err("1 of 2 keys: not found".to_owned()));
        assert_eq!(said(&[read(false), written(10)]), Err("1 of 2 commands failed".to_owned()));
    }

    #[test]
    fn only_a_batch_that_was_too_large_is_halved() {
        let error = |status| ToolError::Status { router: String::new(), status };
        assert!(is_too_large(&error(Status::new(Code::ResourceExhausted, "large"))));
        assert!(!is_too_large(&error(Status::resource_exhausted("busy", 100))));
        assert!(!is_too_large(&error(Status::new(Code::Unavailable, "gone"))));
    }
}
