//! Calls of a node or a router of ours.
//!
//! ```text
//!   one entry      Get       key=1 bucket=2                   Put       key=1 bucket=2 value=3 ttl_ms=4   …
//!   several        BatchGet  bucket=1 keys=2 keys=2 …         BatchPut  entries=1 entries=1 …
//! ```
//! Requests are written by hand, each into a buffer of exactly its size: the generated messages own their strings, and this
//! side of the wire must not be the slow one. Nodes and routers have the same messages, so only the paths differ.

use std::time::Instant;

use bytes::{BufMut as _, Bytes};
use milena_net::{
    grpc::{
        client::{CallError, Channel, ChannelLimits, Done},
        status::Code,
    },
    http2::limits::LINK,
    stream::ReadBuffer,
};
use milena_proto::{
    cache_server::{BatchDeleteResponse, BatchGetResponse, BatchPutResponse, GetResponse, PutResult, Tier},
    limits,
    method::{
        CACHE_BATCH_DELETE, CACHE_BATCH_GET, CACHE_BATCH_PUT, CACHE_DELETE, CACHE_GET, CACHE_PUT, ROUTER_BATCH_DELETE,
        ROUTER_BATCH_GET, ROUTER_BATCH_PUT, ROUTER_DELETE, ROUTER_GET, ROUTER_PUT,
    },
};
use prost::{
    Message as _,
    encoding::{WireType, decode_key, decode_varint, encode_varint, encoded_len_varint},
};

use super::{Answer, Entry, Failure, Outcome, Request, ServedBy, Verb};
use crate::workload::Name;

/// Keys and values of one call together, in bytes.
const MESSAGE_BYTES_MAX: usize = 2 * limits::message_bytes_max(limits::VALUE_BYTES_MAX);

const LIMITS: ChannelLimits = ChannelLimits { profile: &LINK, message_bytes_max: MESSAGE_BYTES_MAX };

/// A key that no workload asks for, to see who answers.
const NOBODYS_KEY: &[u8] = b"milena-loadtest";

/// A connection with the paths that its server knows.
#[derive(Debug)]
pub struct Link {
    channel: Channel,
    paths: &'static Paths,
    bucket: String,
}

#[derive(Debug)]
struct Paths {
    protocol: &'static str,
    unary: [&'static str; 3],
    batch: [&'static str; 3],
}

static NODE: Paths = Paths {
    protocol: "milena-node",
    unary: [CACHE_GET.path, CACHE_PUT.path, CACHE_DELETE.path],
    batch: [CACHE_BATCH_GET.path, CACHE_BATCH_PUT.path, CACHE_BATCH_DELETE.path],
};

static ROUTER: Paths = Paths {
    protocol: "milena-router",
    unary: [ROUTER_GET.path, ROUTER_PUT.path, ROUTER_DELETE.path],
    batch: [ROUTER_BATCH_GET.path, ROUTER_BATCH_PUT.path, ROUTER_BATCH_DELETE.path],
};

impl Link {
    /// Connects to `address` and asks who it is: a node knows the paths of nodes, a router those of routers.
    ///
    /// # Errors
    /// It is neither, or it does not answer.
    pub async fn open(address: &str, bucket: &str, buffer: &ReadBuffer, deadline: Instant) -> Result<Self, Failure> {
        let channel = Channel::new(address, LIMITS, buffer).map_err(|error| Failure {
            status: "UNAVAILABLE".into(),
            text: error.to_string(),
            is_undone: true,
        })?;
        let mut link = Self { channel, paths: &NODE, bucket: bucket.to_owned() };
        let name = Name::Text(Bytes::from_static(NOBODYS_KEY));
        let entry = Entry { name, value: Bytes::new(), ttl_ms: 0 };
        let request = Request { verb: Verb::Get, entries: [entry].into() };
        match link.call(&request, deadline).await {
            Err(failure) if failure.status == Code::Unimplemented.name() => {
                link.paths = &ROUTER;
                link.call(&request, deadline).await?;
            }
            other => {
                other?;
            }
        }
        Ok(link)
    }

    /// Who it is.
    pub fn protocol(&self) -> &'static str {
        self.paths.protocol
    }

    /// One call.
    ///
    /// # Errors
    /// Its status.
    pub async fn call(&self, request: &Request, deadline: Instant) -> Result<Answer, Failure> {
        let method = request.verb as usize;
        if let [entry] = &*request.entries {
            let message = unary(request.verb, &self.bucket, entry);
            let answer = self.channel.call(self.paths.unary[method], message, deadline).await.map_err(failure)?;
            return unary_answer(request.verb, &answer);
        }
        let message = batch(request.verb, &self.bucket, &request.entries);
        let answer = self.channel.call(self.paths.batch[method], message, deadline).await.map_err(failure)?;
        batch_answer(request.verb, answer, request.entries.len())
    }
}

fn failure(error: CallError) -> Failure {
    let CallError { status, done } = error;
    Failure { status: status.code.name().into(), text: status.message.to_string(), is_undone: done == Done::No }
}

fn garbled(what: &str) -> Failure {
    Failure { status: "GARBLED".into(), text: format!("the answer {what}"), is_undone: false }
}

/// The number of a field whose payload has a length, as it stands on the wire.
const fn tag(number: u8) -> u8 {
    number << 3 | WireType::LengthDelimited as u8
}

fn field_bytes(payload_bytes: usize) -> usize {
    1 + encoded_len_varint(payload_bytes as u64) + payload_bytes
}

fn put_field(number: u8, payload: &[u8], message: &mut Vec<u8>) {
    message.put_u8(tag(number));
    encode_varint(payload.len() as u64, message);
    message.put_slice(payload);
}

/// A GetRequest, PutRequest or DeleteRequest.
fn unary(verb: Verb, bucket: &str, entry: &Entry) -> Bytes {
    let mut message = Vec::with_capacity(unary_bytes(verb, bucket, entry));
    put_unary(verb, bucket, entry, &mut message);
    debug_assert_eq!(message.len(), message.capacity());
    message.into()
}

fn unary_bytes(verb: Verb, bucket: &str, entry: &Entry) -> usize {
    let mut bytes = field_bytes(entry.name.bytes()) + field_bytes(bucket.len());
    if verb == Verb::Put {
        bytes += if entry.value.is_empty() { 0 } else { field_bytes(entry.value.len()) };
        bytes += if entry.ttl_ms == 0 { 0 } else { 1 + encoded_len_varint(entry.ttl_ms) };
    }
    bytes
}

fn put_unary(verb: Verb, bucket: &str, entry: &Entry, message: &mut Vec<u8>) {
    entry.name.with(|name| put_field(1, name, message));
    put_field(2, bucket.as_bytes(), message);
    if verb == Verb::Put {
        if !entry.value.is_empty() {
            put_field(3, &entry.value, message);
        }
        if entry.ttl_ms > 0 {
            message.put_u8(4 << 3 | WireType::Varint as u8);
            encode_varint(entry.ttl_ms, message);
        }
    }
}

/// A BatchGetRequest, BatchPutRequest or BatchDeleteRequest.
fn batch(verb: Verb, bucket: &str, entries: &[Entry]) -> Bytes {
    let mut message = Vec::new();
    if verb == Verb::Put {
        for entry in entries {
            message.put_u8(tag(1));
            encode_varint(unary_bytes(verb, bucket, entry) as u64, &mut message);
            put_unary(verb, bucket, entry, &mut message);
        }
    } else {
        put_field(1, bucket.as_bytes(), &mut message);
        entries.iter().for_each(|entry| entry.name.with(|name| put_field(2, name, &mut message)));
    }
    message.into()
}

fn unary_answer(verb: Verb, answer: &Bytes) -> Result<Answer, Failure> {
    if verb == Verb::Get {
        return Ok([found(answer).ok_or_else(|| garbled("is no GetResponse"))?].into());
    }
    // successful=1 is all that a write has to say besides its version.
    if answer.starts_with(&[1 << 3, 1]) { Ok([Outcome::Done].into()) } else { Err(garbled("is not successful")) }
}

/// What a GetResponse says, without a copy of its value and without its version.
fn found(message: &Bytes) -> Option<Outcome> {
    let (mut is_hit, mut tier, mut value) = (false, ServedBy::Unspecified, Bytes::new());
    let mut rest = &message[..];
    while !rest.is_empty() {
        match decode_key(&mut rest).ok()? {
            (number, WireType::Varint) => {
                let found = decode_varint(&mut rest).ok()?;
                match number {
                    1 => is_hit = found != 0,
                    4 => tier = served_by(i32::try_from(found).ok()?),
                    _ => {}
                }
            }
            (number, WireType::LengthDelimited) => {
                let bytes = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
                let payload = rest.split_off(..bytes)?;
                if number == 2 {
                    value = message.slice_ref(payload);
                }
            }
            _ => return None,
        }
    }
    Some(if is_hit { Outcome::Hit { tier, value } } else { Outcome::Miss })
}

fn served_by(tier: i32) -> ServedBy {
    match Tier::try_from(tier) {
        Ok(Tier::Memory) => ServedBy::Memory,
        Ok(Tier::Disk) => ServedBy::Disk,
        Ok(Tier::S3) => ServedBy::S3,
        Ok(Tier::Unspecified) | Err(_) => ServedBy::Unspecified,
    }
}

fn batch_answer(verb: Verb, answer: Bytes, count: usize) -> Result<Answer, Failure> {
    let outcomes: Answer = match verb {
        Verb::Get => {
            let response = BatchGetResponse::decode(answer).map_err(|_| garbled("is no BatchGetResponse"))?;
            let outcome = |GetResponse { successful, value, tier, .. }| {
                if successful { Outcome::Hit { tier: served_by(tier), value } } else { Outcome::Miss }
            };
            response.results.into_iter().map(outcome).collect()
        }
        Verb::Put => {
            let response = BatchPutResponse::decode(answer).map_err(|_| garbled("is no BatchPutResponse"))?;
            response.results.iter().map(written).collect()
        }
        Verb::Delete => {
            let response = BatchDeleteResponse::decode(answer).map_err(|_| garbled("is no BatchDeleteResponse"))?;
            response.results.iter().map(written).collect()
        }
    };
    if outcomes.len() == count { Ok(outcomes) } else { Err(garbled("has not one result for each entry")) }
}

fn written(result: &PutResult) -> Outcome {
    match Code::from_number(result.code) {
        Code::Ok => Outcome::Done,
        code => Outcome::Failed(code.name().into()),
    }
}

#[cfg(test)]
mod tests {
    use milena_proto::cache_server::{
        BatchDeleteRequest, BatchGetRequest, BatchPutRequest, DeleteRequest, GetRequest, PutRequest,
    };

    use super::*;

    fn entry(name: &'static str, value: &'static str, ttl_ms: u64) -> Entry {
        Entry {
            name: Name::Text(Bytes::from_static(name.as_bytes())),
            value: Bytes::from_static(value.as_bytes()),
            ttl_ms,
        }
    }

    #[test]
    fn requests_are_what_the_generated_messages_say() {
        let entries = [entry("one", "", 0), entry("two", "value", 70_000)];
        let bucket = "default".to_owned();
        let puts = entries.each_ref().map(|entry| PutRequest {
            key: entry.name.with(Bytes::copy_from_slice),
            bucket: bucket.clone(),
            value: entry.value.clone(),
            ttl_ms: entry.ttl_ms,
            ..PutRequest::default()
        });
        let keys = puts.each_ref().map(|put| put.key.clone()).to_vec();
        for (entry, put) in entries.iter().zip(&puts) {
            assert_eq!(PutRequest::decode(unary(Verb::Put, &bucket, entry)).as_ref(), Ok(put));
            let (key, bucket) = (put.key.clone(), bucket.clone());
            let get = GetRequest::decode(unary(Verb::Get, &bucket, entry));
            assert_eq!(get, Ok(GetRequest { key: key.clone(), bucket: bucket.clone() }));
            let delete = DeleteRequest::decode(unary(Verb::Delete, &bucket, entry));
            assert_eq!(delete, Ok(DeleteRequest { key, bucket, ..DeleteRequest::default() }));
        }
        let all = BatchPutRequest { entries: puts.to_vec() };
        assert_eq!(BatchPutRequest::decode(batch(Verb::Put, &bucket, &entries)), Ok(all));
        let get = BatchGetRequest { bucket: bucket.clone(), keys: keys.clone() };
        assert_eq!(BatchGetRequest::decode(batch(Verb::Get, &bucket, &entries)), Ok(get));
        let delete = BatchDeleteRequest { bucket: bucket.clone(), keys };
        assert_eq!(BatchDeleteRequest::decode(batch(Verb::Delete, &bucket, &entries)), Ok(delete));
    }

    #[test]
    fn answers_are_read_with_their_tier_and_a_cut_one_is_garbled() {
        let response = GetResponse {
            successful: true,
            value: Bytes::from_static(b"v"),
            version: "etag".to_owned(),
            tier: Tier::Disk.into(),
            ttl_ms: 9,
        };
        let message = Bytes::from(response.encode_to_vec());
        let hit = Outcome::Hit { tier: ServedBy::Disk, value: Bytes::from_static(b"v") };
        assert_eq!(unary_answer(Verb::Get, &message).unwrap()[..], [hit]);
        assert_eq!(unary_answer(Verb::Get, &Bytes::new()).unwrap()[..], [Outcome::Miss]);
        assert_eq!(unary_answer(Verb::Get, &message.slice(..4)).unwrap_err().status, "GARBLED");
        assert_eq!(unary_answer(Verb::Put, &Bytes::new()).unwrap_err().status, "GARBLED");
        assert_eq!(unary_answer(Verb::Put, &Bytes::from_static(b"\x08\x01\x12\x01x")).unwrap()[..], [Outcome::Done]);
    }

    #[test]
    fn a_batch_is_answered_entry_by_entry_and_one_result_short_is_garbled() {
        let results =
            vec![PutResult::default(), PutResult { code: 14, message: "no".to_owned(), version: String::new() }];
        let message = Bytes::from(BatchPutResponse { results }.encode_to_vec());
        let outcomes = batch_answer(Verb::Put, message.clone(), 2).unwrap();
        assert_eq!(outcomes[..], [Outcome::Done, Outcome::Failed("UNAVAILABLE".into())]);
        assert_eq!(batch_answer(Verb::Put, message, 3).unwrap_err().status, "GARBLED");
    }
}
