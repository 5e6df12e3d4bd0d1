//! S3 and what speaks like it: rusty-s3 signs, ureq asks, and this decides what the answers mean.
//!
//! ```text
//!   get put delete probe      what an operation means: conditions, lives, whose object it is
//!     └ exchange              attempts until there is an answer (retry.rs), and whether an earlier one may have counted
//!         └ attempt           one signed request on a kept-alive connection
//!             └ judge         status and error document ──▶ Verdict; pure
//! ```
//! What we write carries, besides the value:
//!
//! ```text
//!   x-amz-meta-milena-request     32 hex digits, one for each write, however often it is tried
//!   x-amz-meta-milena-crc32c      CRC-32C of the value, 8 hex digits; checked at every read
//!   x-amz-meta-milena-expires-ms  end of its life, milliseconds since the Unix epoch; not there: never
//!   x-amz-meta-milena-key         base64 of bucket/key, where the object's name does not tell it
//!   Content-MD5                   checked by the store, so that damage on the way there is not stored
//! ```
//! Objects of others lack these and are read all the same.
//!
//! A conditional PUT whose answer was lost is tried again, and is then refused because of itself (412). So on every 412
//! that follows an attempt without an answer we look at the object: if it carries our request's number, the write was
//! done. If not, ours may have been done and replaced since: the outcome is unknown, and that is what we say.
//!
//! Two things that S3 cannot promise. An unconditional PUT that was given up may arrive late and replace a newer value;
//! a conditional one cannot. And an ETag tells bytes apart, not writes: equal bytes written again with another life are
//! still "unchanged" to who knows the ETag.

use std::{
    fmt,
    io::{self, ErrorKind, Read as _},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use md5::{Digest as _, Md5};
use milena_proto::{key::Key, limits};
use quick_xml::{Reader, events::Event};
use rusty_s3::{
    S3Action,
    actions::{DeleteObject, GetObject, HeadObject, PutObject},
};
use ureq::{
    Agent, Timeout,
    http::{self, HeaderMap, header},
    tls::{RootCerts, TlsConfig},
};

use super::{
    Abilities, Asked, Asker, Request, Store, authorities,
    config::S3Config,
    is_document_name,
    name::{HASH_MARK, KeyLayout},
    retry::{Attempts, Fault, Next},
};
use crate::{Cause, Condition, Entry, Error, Found, Operation, Put, Timestamp, Version};

const META_REQUEST: &str = "x-amz-meta-milena-request";
const META_CRC32C: &str = "x-amz-meta-milena-crc32c";
const META_EXPIRES_MS: &str = "x-amz-meta-milena-expires-ms";
const META_KEY: &str = "x-amz-meta-milena-key";
const CONTENT_MD5: &str = "content-md5";
const IF_MATCH: &str = "if-match";
const IF_NONE_MATCH: &str = "if-none-match";

/// How long a signature is good for. S3 allows for clocks that are off by as much.
const SIGNATURE_SECONDS: u64 = 900;

/// Idle connections kept; as many as helper threads of a large setting.
const CONNECTIONS_MAX: usize = 512;

/// The most of an error document that is read.
const ERROR_BYTES_MAX: u64 = 64 << 10;

/// How often a conditional PUT looks and tries again when the object changes between the two.
const CONDITION_ROUNDS_MAX: usize = 3;

/// How long a request to S3 may take before we think that there will be no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For one attempt, from its start to the last byte of the answer.
    pub attempt: Duration,
    /// For all attempts of one operation and the waits between them.
    pub operation: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect: Duration::from_secs(3), attempt: Duration::from_secs(15), operation: Duration::from_secs(30) }
    }
}

/// A bucket of S3. One for a process; its connections are shared by all helper threads.
pub struct S3 {
    config: S3Config,
    credentials: Option<rusty_s3::Credentials>,
    patience: Patience,
    agent: Agent,
    /// Set once, by the first probe that could be answered.
    abilities: OnceLock<Abilities>,
}

/// One request, before it is signed.
struct Ask<'a> {
    request: Request,
    name: &'a str,
    headers: Vec<(&'static str, String)>,
    body: &'a [u8],
}

/// What came back, whole.
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Body,
}

enum Body {
    Whole(Vec<u8>),
    /// More than [`limits::VALUE_BYTES_MAX`]; not read.
    TooLong,
}

/// Why nothing, or not all of it, came back.
struct NoAnswer {
    /// Whether the store may have seen the request.
    may_have_arrived: bool,
    is_timeout: bool,
    text: String,
}

/// What an answer means.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Done,
    Unchanged,
    Missing,
    ConditionFailed,
    NotImplemented,
    Again { fault: Fault, may_be_done: bool },
    Denied { hint: &'static str },
    Misconfigured { hint: String },
}

/// An answer that is not worth another attempt, with its meaning.
struct Exchange {
    verdict: Verdict,
    answer: Answer,
    /// Whether an earlier attempt may have been carried out though its answer was lost.
    is_in_doubt: bool,
}

/// S3's words for what went wrong.
#[derive(Debug, Default, PartialEq, Eq)]
struct ErrorDocument {
    code: String,
    region: String,
}

/// What is known of an object without reading it.
struct Head {
    etag: String,
    request: Option<String>,
    expires: Option<Timestamp>,
}

/// A header that makes a PUT conditional.
enum Precondition {
    None,
    Absent,
    Match(String),
}

impl S3 {
    /// A client for this bucket. Nothing is asked yet.
    ///
    /// # Errors
    /// [`Cause::Misconfigured`]: the authorities that it names cannot be read.
    pub fn open(config: S3Config) -> Result<Self, Error> {
        let roots = config.ca_bundle.as_deref().map(authorities::read).transpose()?;
        Ok(Self::trusting(roots.unwrap_or(RootCerts::WebPki), config, Patience::default()))
    }

    /// A client for a bucket whose endpoint, if it speaks TLS, has a certificate that everybody believes.
    #[must_use]
    pub fn new(config: S3Config) -> Self {
        Self::with_patience(config, Patience::default())
    }

    /// The same with limits of one's own.
    #[must_use]
    pub fn with_patience(config: S3Config, patience: Patience) -> Self {
        debug_assert_eq!(config.ca_bundle, None, "`open` reads it");
        Self::trusting(RootCerts::WebPki, config, patience)
    }

    fn trusting(roots: RootCerts, config: S3Config, patience: Patience) -> Self {
        let credentials = config.credentials.as_ref().map(|credentials| {
            let (id, secret) = (credentials.access_key_id.clone(), credentials.secret_access_key.clone());
            match &credentials.session_token {
                Some(token) => rusty_s3::Credentials::new_with_token(id, secret, token.clone()),
                None => rusty_s3::Credentials::new(id, secret),
            }
        });
        let mut agent = Agent::config_builder()
            .http_status_as_error(false)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .max_redirects(0) // a redirect is signed for another place; see `judge`
            .max_redirects_will_error(false)
            .timeout_connect(Some(patience.connect))
            .max_idle_connections(CONNECTIONS_MAX)
            .max_idle_connections_per_host(CONNECTIONS_MAX)
            .accept_encoding("identity") // the bytes as they are stored
            .user_agent(concat!("milena/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&config) {
            agent = agent.proxy(None); // a proxy's loopback is another one
        }
        Self { credentials, patience, agent: agent.build().new_agent(), config, abilities: OnceLock::new() }
    }

    /// What it was made from.
    #[must_use]
    pub fn config(&self) -> &S3Config {
        &self.config
    }

    fn name_of(&self, key: &Key) -> String {
        self.config.layout.object_name(&self.config.prefix, key.as_ref())
    }

    fn document_name(&self, name: &str) -> String {
        assert!(is_document_name(name), "not a document's name: {name:?}");
        format!("{}{name}", self.config.prefix)
    }

    /// What tells whose object it is, where the object's name does not.
    fn owner_of(&self, key: &Key, name: &str) -> Option<String> {
        let is_told = self.config.layout == KeyLayout::Plain && !name.contains(HASH_MARK);
        (!is_told).then(|| BASE64.encode([key.bucket().as_bytes(), b"/", key.name()].concat()))
    }

    fn get_object(
        &self,
        name: &str,
        owner: Option<&str>,
        known: Option<&Version>,
        now: Timestamp,
        asker: &mut Asker,
    ) -> Result<Found, Error> {
        let mut headers = Vec::new();
        let known = known.and_then(quoted);
        if let Some(etag) = &known {
            headers.push((IF_NONE_MATCH, etag.clone()));
        }
        let ask = Ask { request: Request::Get, name, headers, body: &[] };
        let first = self.exchange(Operation::Get, &ask, asker)?;
        let found = match first.verdict {
            Verdict::Missing => return Ok(Found::Absent),
            Verdict::Unchanged if known.is_some() => {
                // Only some stores repeat the metadata in a 304. Its life may have been changed without its value.
                let expires = header(&first.answer.headers, META_EXPIRES_MS).and_then(|text| text.parse().ok());
                let is_expired = expires.is_some_and(|ms: u64| ms <= now.0);
                return Ok(if is_expired { Found::Absent } else { Found::Unchanged });
            }
            Verdict::Done => self.entry(name, owner, first.answer),
            _ => return Err(self.unexpected(Operation::Get, &ask, &first)),
        };
        let found = match found {
            // The damage may have happened on the way: one more look.
            Err(Cause::Corrupt(_)) => {
                let ask = Ask { headers: Vec::new(), ..ask };
                let again = self.exchange(Operation::Get, &ask, asker)?;
                match again.verdict {
                    Verdict::Done => self.entry(name, owner, again.answer),
                    Verdict::Missing => Ok(None),
                    _ => return Err(self.unexpected(Operation::Get, &ask, &again)),
                }
            }
            found => found,
        };
        match found.map_err(|cause| Operation::Get.failed(cause))? {
            Some(entry) if !entry.is_expired(now) => Ok(Found::Entry(entry)),
            _ => Ok(Found::Absent),
        }
    }

    /// The entry in the answer to a GET; `None` when the object is another key's.
    fn entry(&self, name: &str, owner: Option<&str>, answer: Answer) -> Result<Option<Entry>, Cause> {
        let Answer { headers, body, .. } = answer;
        let damaged = |what: &str| Cause::Corrupt(Arc::from(format!("{}: object {name}: {what}", self.place())));
        if let (Some(owner), Some(found)) = (owner, header(&headers, META_KEY))
            && owner != found
        {
            return Ok(None);
        }
        let Body::Whole(value) = body else {
            return Err(Cause::Misconfigured(Arc::from(format!(
                "{}: object {name} is larger than {} bytes, the most a value can have",
                self.place(),
                limits::VALUE_BYTES_MAX
            ))));
        };
        let checksum = header(&headers, META_CRC32C);
        if checksum.is_some_and(|hex| u32::from_str_radix(hex, 16) != Ok(crc32c::crc32c(&value))) {
            return Err(damaged("checksum mismatch"));
        }
        // Without a length, the end of a connection is the end of the value, however early.
        let has_length =
            headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING);
        if checksum.is_none() && !has_length {
            return Err(damaged("neither a length nor a checksum came with it"));
        }
        let expires = expires(&headers).map_err(damaged)?;
        let version = version(&headers).ok_or_else(|| damaged("no ETag came with it"))?;
        Ok(Some(Entry { value: Bytes::from(value), version, expires }))
    }

    fn put_object(&self, name: &str, owner: Option<&str>, put: &Put, asker: &mut Asker) -> Result<Version, Error> {
        let Put { value, expires, condition } = put;
        let failed = |cause| Operation::Put.failed(cause);
        let mut precondition = match condition {
            Condition::Always => Precondition::None,
            Condition::IfAbsent => Precondition::Absent,
            Condition::IfVersion(version) => {
                Precondition::Match(quoted(version).ok_or_else(|| failed(Cause::VersionMismatch))?)
            }
        };
        if !matches!(precondition, Precondition::None) && !self.known_abilities(asker)?.conditional_puts {
            return Err(failed(self.unsupported("PUT")));
        }

        let request = asker.unique_hex();
        let mut is_in_doubt = false;
        for _ in 0..CONDITION_ROUNDS_MAX {
            let mut headers = vec![
                (META_REQUEST, request.clone()),
                (META_CRC32C, format!("{:08x}", crc32c::crc32c(value))),
                (CONTENT_MD5, BASE64.encode(Md5::digest(value))),
            ];
            headers.extend(expires.map(|expires| (META_EXPIRES_MS, expires.0.to_string())));
            headers.extend(owner.map(|owner| (META_KEY, owner.to_owned())));
            match &precondition {
                Precondition::None => {}
                Precondition::Absent => headers.push((IF_NONE_MATCH, "*".into())),
                Precondition::Match(etag) => headers.push((IF_MATCH, etag.clone())),
            }
            let ask = Ask { request: Request::Put, name, headers, body: value };
            let answer = self.exchange_after(is_in_doubt, Operation::Put, &ask, asker)?;
            is_in_doubt |= answer.is_in_doubt;
            match answer.verdict {
                Verdict::Done => {
                    return version(&answer.answer.headers).ok_or_else(|| {
                        failed(Cause::OutcomeUnknown(self.text(Request::Put, "was answered without an ETag")))
                    });
                }
                Verdict::ConditionFailed | Verdict::Missing if !matches!(precondition, Precondition::None) => {}
                _ => return Err(self.unexpected(Operation::Put, &ask, &answer)),
            }

            // The condition does not hold. Because of whom?
            if !is_in_doubt && matches!(condition, Condition::IfVersion(_)) {
                return Err(failed(Cause::VersionMismatch));
            }
            let head = self.look(Operation::Put, name, is_in_doubt, asker)?;
            match head {
                Some(head) if is_in_doubt && head.request.as_deref() == Some(&request) => {
                    return Ok(Version::new(Bytes::from(head.etag)).expect("checked in `look`"));
                }
                _ if is_in_doubt => return Err(failed(self.overtaken(Request::Put))),
                // Its life has ended: it counts as absent, and is replaced unless somebody else does first.
                Some(head) if head.expires.is_some_and(|expires| expires <= Asker::now()) => {
                    precondition = Precondition::Match(format!("\"{}\"", head.etag));
                }
                Some(_) => return Err(failed(Cause::AlreadyExists)),
                None => precondition = Precondition::Absent,
            }
        }
        let text = self.text(Request::Put, "was overtaken each time, the object changes faster than we can look");
        Err(failed(Cause::Unavailable(text)))
    }

    fn delete_object(&self, name: &str, condition: &Condition, asker: &mut Asker) -> Result<(), Error> {
        let failed = |cause| Operation::Delete.failed(cause);
        let mut headers = Vec::new();
        match condition {
            Condition::Always => {}
            Condition::IfVersion(version) => {
                let etag = quoted(version).ok_or_else(|| failed(Cause::VersionMismatch))?;
                headers.push((IF_MATCH, etag));
                let abilities = self.known_abilities(asker).map_err(|error| failed(error.cause))?;
                if !abilities.conditional_deletes {
                    return Err(failed(self.unsupported("DELETE")));
                }
            }
            Condition::IfAbsent => {
                let head = self.look(Operation::Delete, name, false, asker)?;
                let lives = head.is_some_and(|head| head.expires.is_none_or(|expires| expires > Asker::now()));
                return if lives { Err(failed(Cause::AlreadyExists)) } else { Ok(()) };
            }
        }
        let is_conditional = !headers.is_empty();
        let ask = Ask { request: Request::Delete, name, headers, body: &[] };
        let answer = self.exchange(Operation::Delete, &ask, asker)?;
        match answer.verdict {
            Verdict::Done => Ok(()),
            Verdict::Missing if !is_conditional || answer.is_in_doubt => Ok(()),
            Verdict::Missing => Err(failed(Cause::VersionMismatch)),
            Verdict::ConditionFailed if is_conditional && !answer.is_in_doubt => Err(failed(Cause::VersionMismatch)),
            Verdict::ConditionFailed if is_conditional => match self.look(Operation::Delete, name, true, asker)? {
                None => Ok(()),
                Some(_) => Err(failed(self.overtaken(Request::Delete))),
            },
            _ => Err(self.unexpected(Operation::Delete, &ask, &answer)),
        }
    }

    /// The object's metadata; `None` when there is none. Errors of a look that should have ended a doubt leave it.
    fn look(
        &self,
        operation: Operation,
        name: &str,
        is_in_doubt: bool,
        asker: &mut Asker,
    ) -> Result<Option<Head>, Error> {
        let ask = Ask { request: Request::Head, name, headers: Vec::new(), body: &[] };
        let answer = self.exchange_after(is_in_doubt, operation, &ask, asker)?;
        match answer.verdict {
            Verdict::Missing => Ok(None),
            Verdict::Done => {
                let headers = &answer.answer.headers;
                let etag = version(headers).ok_or_else(|| self.unexpected(operation, &ask, &answer))?;
                Ok(Some(Head {
                    etag: etag.as_str().to_owned(),
                    request: header(headers, META_REQUEST).map(Into::into),
                    // A damaged life is not one that has ended.
                    expires: expires(headers).unwrap_or(None),
                }))
            }
            _ => Err(self.unexpected(operation, &ask, &answer)),
        }
    }

    fn known_abilities(&self, asker: &mut Asker) -> Result<Abilities, Error> {
        if let Some(abilities) = self.abilities.get() {
            return Ok(*abilities);
        }
        let found = self.find_abilities(asker).map_err(|error| match error.cause {
            // The caller's own write has not begun.
            Cause::OutcomeUnknown(text) => Operation::Put.failed(Cause::Unavailable(text)),
            cause => Operation::Put.failed(cause),
        })?;
        Ok(*self.abilities.get_or_init(|| found))
    }

    /// Writes an object of its own under conditions that hold and conditions that do not, and removes it.
    fn find_abilities(&self, asker: &mut Asker) -> Result<Abilities, Error> {
        let name = format!("{}milena-probe-{}", self.config.prefix, asker.unique_hex());
        let mut ask = |request: Request, headers: Vec<(&'static str, String)>| {
            self.exchange(Operation::Put, &Ask { request, name: &name, headers, body: b"" }, asker)
        };
        let wrong = || "\"00000000000000000000000000000000\"".to_owned();
        let absent = || vec![(IF_NONE_MATCH, "*".to_owned())];

        let first = ask(Request::Put, absent())?;
        let etag = version(&first.answer.headers).as_ref().and_then(quoted).unwrap_or_else(wrong);
        let conditional_puts = first.verdict == Verdict::Done
            && ask(Request::Put, absent())?.verdict == Verdict::ConditionFailed
            && ask(Request::Put, vec![(IF_MATCH, wrong())])?.verdict == Verdict::ConditionFailed
            && ask(Request::Put, vec![(IF_MATCH, etag.clone())])?.verdict == Verdict::Done;
        let conditional_deletes = conditional_puts
            && ask(Request::Delete, vec![(IF_MATCH, wrong())])?.verdict == Verdict::ConditionFailed
            && ask(Request::Delete, vec![(IF_MATCH, etag)])?.verdict == Verdict::Done;
        if !conditional_deletes {
            ask(Request::Delete, Vec::new())?;
        }
        Ok(Abilities { conditional_puts, conditional_deletes })
    }

    fn exchange(&self, operation: Operation, ask: &Ask<'_>, asker: &mut Asker) -> Result<Exchange, Error> {
        self.exchange_after(false, operation, ask, asker)
    }

    /// Asks until there is an answer that another attempt would not better.
    ///
    /// `is_in_doubt` tells whether an earlier request of the same operation may have changed the object: then no failure
    /// of this one says that nothing was done.
    fn exchange_after(
        &self,
        mut is_in_doubt: bool,
        operation: Operation,
        ask: &Ask<'_>,
        asker: &mut Asker,
    ) -> Result<Exchange, Error> {
        let failed = |is_in_doubt: bool, cause: Cause| match cause {
            Cause::Unavailable(text) | Cause::PermissionDenied(text) | Cause::Misconfigured(text) if is_in_doubt => {
                operation.failed(Cause::OutcomeUnknown(text))
            }
            cause => operation.failed(cause),
        };
        if self.credentials.is_none() {
            return Err(failed(is_in_doubt, Cause::Misconfigured(self.no_credentials())));
        }
        let is_write = matches!(ask.request, Request::Put | Request::Delete);
        let begun = Instant::now();
        let mut attempts = Attempts::default();
        loop {
            let left = self.patience.operation.saturating_sub(begun.elapsed());
            let (fault, may_be_done, asked_wait, text) = match self.attempt(ask, left, asker) {
                Ok(answer) => {
                    let document = answer.document();
                    let verdict = judge(ask.request, answer.status, document.as_ref(), &answer.headers);
                    match verdict {
                        Verdict::Again { fault, may_be_done } => {
                            (fault, may_be_done, retry_after(&answer.headers), answer.shown(document.as_ref()))
                        }
                        Verdict::Denied { hint } => {
                            let text = self.refused(ask.request, &answer.shown(document.as_ref()), hint);
                            return Err(failed(is_in_doubt, Cause::PermissionDenied(text)));
                        }
                        Verdict::Misconfigured { hint } => {
                            let text = self.refused(ask.request, &answer.shown(document.as_ref()), &hint);
                            return Err(failed(is_in_doubt, Cause::Misconfigured(text)));
                        }
                        verdict => {
                            attempts.succeeded(&mut asker.quota);
                            return Ok(Exchange { verdict, answer, is_in_doubt });
                        }
                    }
                }
                Err(none) => {
                    let fault = if none.is_timeout { Fault::Timeout } else { Fault::Transient };
                    (fault, none.may_have_arrived, None, none.text)
                }
            };
            is_in_doubt |= is_write && may_be_done;
            let left = self.patience.operation.saturating_sub(begun.elapsed());
            let random = asker.random_u32();
            match attempts.after_fault(&mut asker.quota, fault, asked_wait, left, random) {
                Next::Wait(wait) => Asker::wait(wait),
                Next::GiveUp => {
                    let text = self.text(ask.request, &format!("failed {} times: {text}", attempts.failed_count()));
                    return Err(failed(is_in_doubt, Cause::Unavailable(text)));
                }
            }
        }
    }

    /// One request and its answer, noted with `asker`.
    fn attempt(&self, ask: &Ask<'_>, left: Duration, asker: &mut Asker) -> Result<Answer, NoAnswer> {
        let begun = Instant::now();
        let answer = self.send(ask, self.patience.attempt.min(left));
        let status = answer.as_ref().ok().map(|answer| answer.status);
        asker.note(Asked { request: ask.request, status, took: begun.elapsed() });
        answer
    }

    fn send(&self, ask: &Ask<'_>, patience: Duration) -> Result<Answer, NoAnswer> {
        let (bucket, credentials) = (&self.config.bucket, self.credentials.as_ref());
        let (method, url) = match ask.request {
            Request::Get => (http::Method::GET, sign(GetObject::new(bucket, credentials, ask.name), ask)),
            Request::Head => (http::Method::HEAD, sign(HeadObject::new(bucket, credentials, ask.name), ask)),
            Request::Put => (http::Method::PUT, sign(PutObject::new(bucket, credentials, ask.name), ask)),
            Request::Delete => (http::Method::DELETE, sign(DeleteObject::new(bucket, credentials, ask.name), ask)),
        };
        let mut request = http::Request::builder().method(method).uri(url);
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        let answer = match ask.request {
            Request::Put => self.run(request.body(ask.body), patience),
            Request::Get | Request::Head | Request::Delete => self.run(request.body(()), patience),
        };
        let mut answer = answer.map_err(|error| NoAnswer::from_ureq(&error))?;

        let status = answer.status();
        let body = match ask.request {
            Request::Get if status == http::StatusCode::OK => read_value(answer.body_mut())?,
            _ if status.is_success() => Body::Whole(Vec::new()), // the headers say it all
            // Its document tells whether the object is missing or all of the bucket.
            _ if status == http::StatusCode::NOT_FOUND => Body::Whole(read_error(answer.body_mut())?),
            _ => Body::Whole(read_error(answer.body_mut()).unwrap_or_default()), // the status says the most
        };
        Ok(Answer { status: status.as_u16(), headers: std::mem::take(answer.headers_mut()), body })
    }

    fn run<B: ureq::AsSendBody>(
        &self,
        request: Result<http::Request<B>, http::Error>,
        patience: Duration,
    ) -> Result<http::Response<ureq::Body>, ureq::Error> {
        let request = self.agent.configure_request(request?).timeout_global(Some(patience)).build();
        self.agent.run(request)
    }

    fn place(&self) -> String {
        format!("s3: bucket {}", self.config.bucket.name())
    }

    fn text(&self, request: Request, what: &str) -> Arc<str> {
        Arc::from(format!("{} at {}: {request} {what}", self.place(), self.authority()))
    }

    fn authority(&self) -> &str {
        self.config.bucket.base_url().authority()
    }

    fn refused(&self, request: Request, shown: &str, hint: &str) -> Arc<str> {
        let what = match request {
            Request::Get | Request::Head => "reads",
            Request::Put | Request::Delete => "writes",
        };
        let bucket = self.config.bucket.name();
        let right = match request {
            Request::Get | Request::Head => format!("s3:GetObject on {bucket}/* and s3:ListBucket on {bucket}"),
            Request::Put => format!("s3:PutObject on {bucket}/*"),
            Request::Delete => format!("s3:DeleteObject on {bucket}/*"),
        };
        let hint = hint.replace("{right}", &right);
        let place = self.place();
        Arc::from(format!("{place} refused a {request}: {shown}; {what} fail until this is solved; hint: {hint}"))
    }

    fn no_credentials(&self) -> Arc<str> {
        Arc::from(format!(
            "{}: there are no credentials; nothing is read or written; hint: set AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN with temporary ones)",
            self.place()
        ))
    }

    fn unsupported(&self, what: &str) -> Cause {
        let (place, authority) = (self.place(), self.authority());
        Cause::Misconfigured(Arc::from(format!(
            "{place}: the store at {authority} ignores the condition of a {what}; nothing was changed; \
             hint: writes without if_version and if_absent work"
        )))
    }

    fn overtaken(&self, request: Request) -> Cause {
        Cause::OutcomeUnknown(self.text(request, "was sent, its answer was lost, and another write came since"))
    }

    /// The error for an answer that the request had not asked for.
    fn unexpected(&self, operation: Operation, ask: &Ask<'_>, exchange: &Exchange) -> Error {
        let status = exchange.answer.status;
        if exchange.verdict == Verdict::NotImplemented && !exchange.is_in_doubt {
            let text = self.refused(ask.request, &status.to_string(), "the store does not implement this request");
            return operation.failed(Cause::Misconfigured(text));
        }
        let text = self.text(ask.request, &format!("was answered with {status}, which makes no sense"));
        operation.failed(match operation {
            Operation::Get => Cause::Unavailable(text),
            Operation::Put | Operation::Delete => Cause::OutcomeUnknown(text),
        })
    }
}

impl Store for S3 {
    fn get(&self, key: &Key, known: Option<&Version>, now: Timestamp, asker: &mut Asker) -> Result<Found, Error> {
        let name = self.name_of(key);
        self.get_object(&name, self.owner_of(key, &name).as_deref(), known, now, asker)
    }

    fn put(&self, key: &Key, put: &Put, asker: &mut Asker) -> Result<Version, Error> {
        let name = self.name_of(key);
        self.put_object(&name, self.owner_of(key, &name).as_deref(), put, asker)
    }

    fn delete(&self, key: &Key, condition: &Condition, asker: &mut Asker) -> Result<(), Error> {
        self.delete_object(&self.name_of(key), condition, asker)
    }

    fn get_document(&self, name: &str, asker: &mut Asker) -> Result<Option<Entry>, Error> {
        Ok(self.get_object(&self.document_name(name), None, None, Asker::now(), asker)?.into_entry())
    }

    fn put_document(&self, name: &str, put: &Put, asker: &mut Asker) -> Result<Version, Error> {
        self.put_object(&self.document_name(name), None, put, asker)
    }

    fn probe(&self, asker: &mut Asker) -> Result<Abilities, Error> {
        self.known_abilities(asker)
    }
}

/// What an answer means. `document` is S3's error document, where one came.
fn judge(request: Request, status: u16, document: Option<&ErrorDocument>, headers: &HeaderMap) -> Verdict {
    let code = document.map_or("", |document| &document.code);
    let again = |fault, may_be_done| Verdict::Again { fault, may_be_done };
    let denied = |hint| Verdict::Denied { hint };
    let misconfigured = |hint: &str| Verdict::Misconfigured { hint: hint.into() };

    match (status, code) {
        (200..=299, _) => Verdict::Done,
        (304, _) => Verdict::Unchanged,
        (412, _) => Verdict::ConditionFailed,
        (501, _) | (_, "NotImplemented") => Verdict::NotImplemented,

        (_, "NoSuchBucket") => {
            misconfigured("does the bucket exist in this region? see STORE, S3_BUCKET and AWS_REGION")
        }
        // A HEAD has no body.
        (404, _) if document.is_some() || request == Request::Head => Verdict::Missing,
        (404, _) => misconfigured("this is not S3's way to say no; does S3_ENDPOINT name an S3 server?"),

        // What was not let in was not done.
        (429, _) | (503, "SlowDown" | "SlowDownRead" | "SlowDownWrite" | "Throttling" | "TooManyRequests") => {
            again(Fault::Throttled, false)
        }
        (409, _) | (400, "RequestTimeout" | "BadDigest" | "IncompleteBody") => again(Fault::Transient, false),
        (408 | 500 | 502 | 503 | 504, _) => again(Fault::Transient, true),

        (_, "RequestTimeTooSkewed") => denied("is this machine's clock right?"),
        (_, "InvalidAccessKeyId") => denied("the store does not know this AWS_ACCESS_KEY_ID"),
        (_, "SignatureDoesNotMatch") => denied("does AWS_SECRET_ACCESS_KEY belong to AWS_ACCESS_KEY_ID?"),
        (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => {
            denied("temporary credentials have ended; start again with new ones")
        }
        (301 | 302 | 303 | 307 | 308, _)
        | (400, "AuthorizationHeaderMalformed" | "AuthorizationQueryParametersError") => {
            let named =
                header(headers, "x-amz-bucket-region").or(document.map(|d| &*d.region)).filter(|r| !r.is_empty());
            match named {
                Some(region) => {
                    Verdict::Misconfigured { hint: format!("the bucket is elsewhere; set AWS_REGION={region}") }
                }
                None => misconfigured("the bucket is elsewhere; see AWS_REGION and S3_ENDPOINT"),
            }
        }
        (401 | 403, _) => denied("the credentials need {right}"),
        _ => misconfigured("see S3_ENDPOINT and the store's documentation of this code"),
    }
}

impl Answer {
    fn document(&self) -> Option<ErrorDocument> {
        let Body::Whole(body) = &self.body else { return None };
        if self.status < 300 { None } else { ErrorDocument::read(body) }
    }

    fn shown(&self, document: Option<&ErrorDocument>) -> String {
        match document {
            Some(document) if !document.code.is_empty() => format!("{} {}", self.status, document.code),
            _ => self.status.to_string(),
        }
    }
}

impl ErrorDocument {
    /// `None` when it is not an error document of S3: XML with the root `Error`.
    fn read(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::from_reader(body);
        let mut document = Self::default();
        let mut path: Vec<String> = Vec::new();
        let mut is_error = false;
        loop {
            match reader.read_event().ok()? {
                Event::Start(tag) => {
                    path.push(tag.local_name().as_ref().to_owned());
                    is_error |= path.len() == 1 && path[0] == "Error";
                }
                Event::End(_) => {
                    path.pop();
                }
                Event::Text(text) if path.len() == 2 && is_error => match path[1].as_str() {
                    "Code" => shown_word(&text).clone_into(&mut document.code),
                    "Region" => shown_word(&text).clone_into(&mut document.region),
                    _ => {}
                },
                Event::Eof => return (is_error && path.is_empty()).then_some(document),
                _ => {}
            }
        }
    }
}

/// A code or region as S3 writes them; anything else is nothing for our log.
fn shown_word(text: &str) -> &str {
    let text = text.trim();
    let is_word = text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    if is_word { text } else { "" }
}

impl NoAnswer {
    fn from_ureq(error: &ureq::Error) -> Self {
        let (may_have_arrived, is_timeout) = match error {
            ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => (false, true),
            ureq::Error::Timeout(_) => (true, true),
            ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::ConnectProxyFailed(_)
            | ureq::Error::InvalidProxyUrl
            | ureq::Error::TlsRequired
            | ureq::Error::BadUri(_)
            | ureq::Error::Http(_) => (false, false),
            ureq::Error::Io(error) => {
                (error.kind() != ErrorKind::ConnectionRefused && !is_about_a_certificate(error), false)
            }
            _ => (true, false),
        };
        let text = match error {
            ureq::Error::Io(error) if error.kind() == ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            ureq::Error::Io(error) if is_about_a_certificate(error) => {
                format!("{error}; hint: AWS_CA_BUNDLE names the authorities to believe")
            }
            ureq::Error::Io(error) => error.to_string(),
            ureq::Error::Timeout(Timeout::Resolve) => "no answer from the name server in time".to_owned(),
            ureq::Error::Timeout(Timeout::Connect) => "no connection in time".to_owned(),
            ureq::Error::Timeout(_) => "no answer in time".to_owned(),
            other => other.to_string(),
        };
        Self { may_have_arrived, is_timeout, text }
    }

    fn from_body(error: &io::Error, read_bytes: usize) -> Self {
        let is_timeout = matches!(
            error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()),
            Some(ureq::Error::Timeout(_))
        );
        let text = if is_timeout {
            format!("no more of the answer in time, after {read_bytes} bytes")
        } else {
            format!("the answer ended after {read_bytes} bytes: {error}")
        };
        Self { may_have_arrived: true, is_timeout, text }
    }
}

/// Whether a connection ended because the other side's certificate was not believed: before anything was asked.
fn is_about_a_certificate(error: &io::Error) -> bool {
    // The words of rustls, whose type is not ours to name: ureq hands it on inside this one.
    error.kind() == ErrorKind::InvalidData && error.to_string().starts_with("invalid peer certificate")
}

fn sign<'a, A: S3Action<'a>>(mut action: A, ask: &'a Ask<'_>) -> String {
    for (name, value) in &ask.headers {
        action.headers_mut().insert(*name, value.as_str());
    }
    action.sign(Duration::from_secs(SIGNATURE_SECONDS)).into()
}

fn read_value(body: &mut ureq::Body) -> Result<Body, NoAnswer> {
    const LIMIT: u64 = limits::VALUE_BYTES_MAX as u64;
    let length = body.content_length();
    if length.is_some_and(|length| length > LIMIT) {
        return Ok(Body::TooLong);
    }
    let mut value = Vec::with_capacity(length.unwrap_or(0) as usize);
    let mut reader = body.as_reader().take(LIMIT + 1);
    reader.read_to_end(&mut value).map_err(|error| NoAnswer::from_body(&error, value.len()))?;
    if value.len() as u64 > LIMIT {
        return Ok(Body::TooLong);
    }
    Ok(Body::Whole(value))
}

fn read_error(body: &mut ureq::Body) -> Result<Vec<u8>, NoAnswer> {
    let mut document = Vec::new();
    let mut reader = body.as_reader().take(ERROR_BYTES_MAX);
    reader.read_to_end(&mut document).map_err(|error| NoAnswer::from_body(&error, document.len()))?;
    Ok(document)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The ETag without its quotes; a weak one is the same to us.
fn version(headers: &HeaderMap) -> Option<Version> {
    let etag = header(headers, "etag")?.trim_start_matches("W/").trim_matches('"');
    Version::new(Bytes::copy_from_slice(etag.as_bytes()))
}

/// A version as the headers want it; `None` when it cannot be an ETag, so no object has it.
fn quoted(version: &Version) -> Option<String> {
    let text = version.as_str();
    (!text.contains('"')).then(|| format!("\"{text}\""))
}

fn expires(headers: &HeaderMap) -> Result<Option<Timestamp>, &'static str> {
    match headers.get(META_EXPIRES_MS) {
        None => Ok(None),
        Some(value) => {
            let ms = value.to_str().ok().and_then(|text| text.parse().ok());
            ms.map(|ms| Some(Timestamp(ms))).ok_or("the end of its life is not a number")
        }
    }
}

/// The wait that the store asks for, in seconds; a date is not worth a parser.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    header(headers, "retry-after")?.trim().parse().ok().map(Duration::from_secs)
}

fn is_loopback(config: &S3Config) -> bool {
    match config.bucket.base_url().host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3")
            .field("config", &self.config)
            .field("abilities", &self.abilities.get())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: &str) -> Option<ErrorDocument> {
        Some(ErrorDocument { code: code.into(), region: String::new() })
    }

    fn meaning(request: Request, status: u16, code: &str) -> Verdict {
        judge(request, status, error(code).as_ref(), &HeaderMap::new())
    }

    #[test]
    fn only_what_may_help_is_tried_again() {
        let again = |fault, may_be_done| Verdict::Again { fault, may_be_done };
        for (status, code, verdict) in [
            (500, "InternalError", again(Fault::Transient, true)),
            (502, "", again(Fault::Transient, true)),
            (503, "ServiceUnavailable", again(Fault::Transient, true)),
            (504, "", again(Fault::Transient, true)),
            (408, "", again(Fault::Transient, true)),
            (503, "SlowDown", again(Fault::Throttled, false)),
            (429, "", again(Fault::Throttled, false)),
            (409, "ConditionalRequestConflict", again(Fault::Transient, false)),
            (400, "RequestTimeout", again(Fault::Transient, false)),
        ] {
            assert_eq!(meaning(Request::Put, status, code), verdict, "{status} {code}");
        }
        for status in (400..=500).filter(|status| ![404, 408, 409, 412, 429, 500].contains(status)) {
            let verdict = meaning(Request::Put, status, "Whatever");
            assert!(matches!(verdict, Verdict::Denied { .. } | Verdict::Misconfigured { .. }), "{status}: {verdict:?}");
        }
    }

    #[test]
    fn an_absent_object_is_told_from_an_absent_bucket_and_from_an_absent_s3() {
        assert_eq!(meaning(Request::Get, 404, "NoSuchKey"), Verdict::Missing);
        assert!(matches!(meaning(Request::Get, 404, "NoSuchBucket"), Verdict::Misconfigured { .. }));
        let without = |request| judge(request, 404, None, &HeaderMap::new());
        assert_eq!(without(Request::Head), Verdict::Missing);
        assert!(matches!(without(Request::Get), Verdict::Misconfigured { .. }));
    }

    #[test]
    fn the_region_to_set_is_found_in_a_header_or_in_the_document() {
        let document = "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>";
        let document = ErrorDocument::read(document.as_bytes());
        let Verdict::Misconfigured { hint } = judge(Request::Get, 400, document.as_ref(), &HeaderMap::new()) else {
            panic!("a matter of settings")
        };
        assert_eq!(hint, "the bucket is elsewhere; set AWS_REGION=eu-west-1");
    }

    #[test]
    fn an_error_document_is_read_and_anything_else_is_none() {
        let document = b"<?xml version=\"1.0\"?>\n<Error xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
            <Code> SlowDown </Code><Message>a &lt; b</Message><Deep><Code>Other</Code></Deep></Error>";
        assert_eq!(ErrorDocument::read(document), error("SlowDown"));
        for other in ["", "{}", "<html><Code>x</Code></html>", "<Error><Code>cut", "<Error></Wrong>", "\u{0}\u{1}"] {
            assert_eq!(ErrorDocument::read(other.as_bytes()), None, "{other}");
        }
        let nasty = "<Error><Code>a\nerror everything is fine</Code></Error>";
        assert_eq!(ErrorDocument::read(nasty.as_bytes()), error(""), "not for our log");
    }

    #[test]
    fn an_etag_loses_its_quotes_and_gets_them_back() {
        for text in ["\"abc-2\"", "W/\"abc-2\"", "abc-2"] {
            let mut headers = HeaderMap::new();
            headers.insert("etag", text.parse().unwrap());
            let version = version(&headers).unwrap();
            assert_eq!((version.as_str(), quoted(&version).unwrap().as_str()), ("abc-2", "\"abc-2\""));
        }
        let mut headers = HeaderMap::new();
        headers.insert("etag", "\"\"".parse().unwrap());
        assert_eq!(version(&headers), None);
    }
}
