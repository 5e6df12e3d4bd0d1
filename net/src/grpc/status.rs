//! The outcome of a call: a code, a text, and what goes beside them in the trailers.
//!
//! Codes and their meaning: grpc/grpc, doc/statuscodes.md. Text on the wire: PROTOCOL-HTTP2.md, "Responses".

use std::{borrow::Cow, fmt};

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};

/// gRPC's status codes, with their numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are gRPC's own")]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

const CODES: [(Code, &str, &str); 17] = [
    (Code::Ok, "OK", "0"),
    (Code::Cancelled, "CANCELLED", "1"),
    (Code::Unknown, "UNKNOWN", "2"),
    (Code::InvalidArgument, "INVALID_ARGUMENT", "3"),
    (Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "4"),
    (Code::NotFound, "NOT_FOUND", "5"),
    (Code::AlreadyExists, "ALREADY_EXISTS", "6"),
    (Code::PermissionDenied, "PERMISSION_DENIED", "7"),
    (Code::ResourceExhausted, "RESOURCE_EXHAUSTED", "8"),
    (Code::FailedPrecondition, "FAILED_PRECONDITION", "9"),
    (Code::Aborted, "ABORTED", "10"),
    (Code::OutOfRange, "OUT_OF_RANGE", "11"),
    (Code::Unimplemented, "UNIMPLEMENTED", "12"),
    (Code::Internal, "INTERNAL", "13"),
    (Code::Unavailable, "UNAVAILABLE", "14"),
    (Code::DataLoss, "DATA_LOSS", "15"),
    (Code::Unauthenticated, "UNAUTHENTICATED", "16"),
];

impl Code {
    /// All codes, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        CODES.iter().map(|(code, ..)| *code)
    }

    /// The code with this number; a number that is none is `Unknown`, as clients must take it.
    #[must_use]
    pub fn from_number(number: i32) -> Self {
        usize::try_from(number).ok().and_then(|number| CODES.get(number)).map_or(Self::Unknown, |(code, ..)| *code)
    }

    /// The name as the specification writes it, for example `NOT_FOUND`: for labels and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        CODES[self as usize].1
    }

    /// The number in decimal, as it stands in `grpc-status`.
    #[must_use]
    pub fn decimal(self) -> &'static str {
        CODES[self as usize].2
    }

    /// The code that a client takes an HTTP status for that came without a `grpc-status`
    /// (grpc/grpc, doc/http-grpc-status-mapping.md). Servers must not use this table.
    #[must_use]
    pub fn from_http(status: http::StatusCode) -> Self {
        match status.as_u16() {
            400 => Self::Internal,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 => Self::Unimplemented,
            429 | 502 | 503 | 504 => Self::Unavailable,
            _ => Self::Unknown,
        }
    }
}

/// A call's end other than success.
#[derive(Clone, Debug)]
pub struct Status {
    /// Never [`Code::Ok`].
    pub code: Code,
    /// For whoever debugs the client: names what was found and what is allowed.
    pub message: Cow<'static, str>,
    /// Further trailers, usually none.
    pub trailers: Vec<(HeaderName, HeaderValue)>,
}

/// How long a client should wait before it tries again, in milliseconds (gRFC A6).
pub const RETRY_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
/// The trailer of a node that does not own the key it was asked for: the epoch of the table that it goes by.
pub const OWNER_EPOCH: HeaderName = HeaderName::from_static("milena-owner-epoch");
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(crate) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Everything outside %x20-%x24 and %x26-%x7E is escaped in `grpc-message`.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// More of a text would not fit every peer's limit on trailers.
const MESSAGE_BYTES_MAX: usize = 1024;

impl Status {
    /// A status without further trailers.
    #[must_use]
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        debug_assert_ne!(code, Code::Ok);
        Self { code, message: message.into(), trailers: Vec::new() }
    }

    /// No room now: RESOURCE_EXHAUSTED, and come back in `pushback_ms`.
    #[must_use]
    pub fn resource_exhausted(message: impl Into<Cow<'static, str>>, pushback_ms: u32) -> Self {
        Self::new(Code::ResourceExhausted, message).with_trailer(RETRY_PUSHBACK, HeaderValue::from(pushback_ms))
    }

    /// The key is another node's by the table of `epoch`: FAILED_PRECONDITION, and a promise that nothing was done.
    #[must_use]
    pub fn not_owner(epoch: u64) -> Self {
        let text = format!("this node does not own the key at epoch {epoch}; nothing was done");
        Self::new(Code::FailedPrecondition, text).with_trailer(OWNER_EPOCH, HeaderValue::from(epoch))
    }

    /// The epoch of a node that says that it does not own the key; `None` for every other status.
    #[must_use]
    pub fn owner_epoch(&self) -> Option<u64> {
        let epoch = self.trailer(&OWNER_EPOCH).filter(|_| self.code == Code::FailedPrecondition)?;
        epoch.to_str().ok()?.parse().ok()
    }

    /// The same with one more trailer.
    #[must_use]
    pub fn with_trailer(mut self, name: HeaderName, mut value: HeaderValue) -> Self {
        // Values that vary would only evict others from the peer's table of headers.
        value.set_sensitive(true);
        self.trailers.push((name, value));
        self
    }

    /// The trailers that say so.
    #[must_use]
    pub fn to_trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::with_capacity(2 + self.trailers.len());
        trailers.insert(GRPC_STATUS, HeaderValue::from_static(self.code.decimal()));
        if !self.message.is_empty() {
            let text = &self.message.as_bytes()[..self.message.floor_char_boundary(MESSAGE_BYTES_MAX)];
            let mut value =
                HeaderValue::try_from(percent_encode(text, ESCAPED).to_string()).expect("escaped to printable ASCII");
            value.set_sensitive(true);
            trailers.insert(GRPC_MESSAGE, value);
        }
        trailers.extend(self.trailers.iter().cloned());
        trailers
    }

    /// What a peer's trailers say: `Ok` for status 0. A text that cannot be decoded is taken as it stands.
    ///
    /// # Errors
    /// The status, when it is not 0; `Unknown` when there is none.
    pub fn from_trailers(trailers: &HeaderMap) -> Result<(), Self> {
        let number = trailers.get(GRPC_STATUS).and_then(|value| value.to_str().ok()?.parse().ok());
        let code = number.map_or(Code::Unknown, Code::from_number);
        if code == Code::Ok {
            return Ok(());
        }
        let text = trailers.get(GRPC_MESSAGE).map_or(Cow::Borrowed(""), |value| {
            let raw = String::from_utf8_lossy(value.as_bytes());
            Cow::Owned(percent_decode_str(&raw).decode_utf8_lossy().into_owned())
        });
        let others = trailers.iter().filter(|(name, _)| **name != GRPC_STATUS && **name != GRPC_MESSAGE);
        Err(Self { code, message: text, trailers: others.map(|(n, v)| (n.clone(), v.clone())).collect() })
    }

    /// The value of a further trailer.
    #[must_use]
    pub fn trailer(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.trailers.iter().find(|(other, _)| other == name).map(|(_, value)| value)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.message)
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_not_the_owner_is_known_by_code_and_trailer_together() {
        assert_eq!(Status::not_owner(41).owner_epoch(), Some(41));
        assert_eq!(Status::new(Code::FailedPrecondition, "no such bucket").owner_epoch(), None);
        let other = Status::new(Code::Unavailable, "gone").with_trailer(OWNER_EPOCH, HeaderValue::from(41));
        assert_eq!(other.owner_epoch(), None);
    }

    #[test]
    fn a_status_survives_the_wire_with_any_text() {
        for text in ["", "plain", "100 % of ünïcode\n\0", "~!$&"] {
            let sent = Status::new(Code::Aborted, text).with_trailer(RETRY_PUSHBACK, HeaderValue::from(250));
            let trailers = sent.to_trailers();
            assert_eq!(trailers[GRPC_STATUS], "10");
            let seen = Status::from_trailers(&trailers).unwrap_err();
            assert_eq!((seen.code, &*seen.message), (Code::Aborted, text));
            assert_eq!(seen.trailer(&RETRY_PUSHBACK).unwrap(), "250");
        }
    }

    #[test]
    fn text_is_escaped_as_the_specification_says() {
        let trailers = Status::new(Code::Internal, "a%b\tc~ é").to_trailers();
        assert_eq!(trailers[GRPC_MESSAGE], "a%25b%09c~ %C3%A9");
    }

    #[test]
    fn trailers_that_make_no_sense_are_unknown_never_a_failure() {
        for value in ["", "x", "-1", "17", "99999999999"] {
            let mut trailers = HeaderMap::new();
            trailers.insert(GRPC_STATUS, HeaderValue::from_static(value));
            trailers.insert(GRPC_MESSAGE, HeaderValue::from_bytes(b"%zz \xff").unwrap());
            let status = Status::from_trailers(&trailers).unwrap_err();
            assert_eq!(status.code, Code::Unknown, "{value:?}");
        }
        assert_eq!(Status::from_trailers(&HeaderMap::new()).unwrap_err().code, Code::Unknown);
    }

    #[test]
    fn codes_stand_at_their_numbers() {
        for (number, code) in Code::all().enumerate() {
            assert_eq!(code as usize, number);
            assert_eq!(Code::from_number(i32::try_from(number).unwrap()), code);
            assert_eq!(code.decimal(), number.to_string());
        }
    }
}
