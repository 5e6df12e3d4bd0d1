//! Metadata: the headers and trailers of a call that belong to its caller, not to the protocol.
//!
//! ```text
//!   x-request-id: 7f3a            a name of [0-9a-z_.-], printable ASCII as value
//!   trace-bin: AAEC,/w==          the name ends in -bin: base64 of any bytes; with a comma, several values
//!   grpc-timeout: 1S              not metadata: grpc-* is the protocol's, and so are te, content-type, user-agent
//! ```
//! Specification: grpc/grpc, doc/PROTOCOL-HTTP2.md, "Custom-Metadata". What does not fit these rules is left out, never
//! a reason to fail a call.

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Emits no padding and takes both, as the specification asks.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_encode_padding(false).with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

const BINARY_SUFFIX: &str = "-bin";

/// Whether `name` is a caller's own. HTTP's own names of the connection never are.
#[must_use]
pub fn is_custom(name: &HeaderName) -> bool {
    const OF_THE_PROTOCOL: [HeaderName; 9] = [
        header::CONTENT_TYPE,
        header::CONTENT_LENGTH,
        header::TE,
        header::USER_AGENT,
        header::HOST,
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::TRAILER,
    ];
    let text = name.as_str();
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'_' | b'.' | b'-'))
        && !text.starts_with("grpc-")
        && !OF_THE_PROTOCOL.contains(name)
}

/// The caller's own headers, in their order: what a router passes on.
pub fn custom(headers: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    headers.iter().filter(|(name, _)| is_custom(name))
}

/// The first value of `name` as text: printable ASCII and space. `None` when there is none, or another one.
#[must_use]
pub fn text<'headers>(headers: &'headers HeaderMap, name: &HeaderName) -> Option<&'headers str> {
    debug_assert!(!name.as_str().ends_with(BINARY_SUFFIX), "{name} is binary");
    headers.get(name)?.to_str().ok().filter(|value| value.bytes().all(|byte| matches!(byte, b' '..=b'~')))
}

/// All values of a binary header: each line may hold several, with commas between. What is not base64 is left out.
pub fn binary(headers: &HeaderMap, name: &HeaderName) -> impl Iterator<Item = Vec<u8>> {
    debug_assert!(name.as_str().ends_with(BINARY_SUFFIX), "{name} is text");
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|value| BASE64.decode(value.trim_ascii()).ok())
}

/// Any bytes as the value of a header whose name ends in `-bin`.
#[must_use]
pub fn to_binary(bytes: &[u8]) -> HeaderValue {
    HeaderValue::try_from(BASE64.encode(bytes)).expect("base64 is printable ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &[u8])]) -> HeaderMap {
        lines.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_bytes(v).unwrap())).collect()
    }

    #[test]
    fn only_the_callers_own_headers_are_passed_on() {
        let headers = headers(&[
            ("grpc-timeout", b"1S"),
            ("x-request-id", b"7f"),
            ("te", b"trailers"),
            ("content-type", b"application/grpc"),
            ("user-agent", b"me"),
            ("grpc-future-thing", b"?"),
            ("trace-bin", b"AAEC"),
            ("a.b_c-9", b"1"),
            ("odd!name", b"1"),
            ("connection", b"close"),
        ]);
        let mut names: Vec<_> = custom(&headers).map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["a.b_c-9", "trace-bin", "x-request-id"]);
    }

    #[test]
    fn text_that_is_not_printable_is_left_out() {
        let headers = headers(&[("good", b"a b~"), ("tab", b"a\tb"), ("high", b"\xc3\xa9")]);
        assert_eq!(text(&headers, &HeaderName::from_static("good")), Some("a b~"));
        for name in ["tab", "high", "none"] {
            assert_eq!(text(&headers, &HeaderName::from_static(name)), None, "{name}");
        }
    }

    #[test]
    fn binary_values_are_taken_with_and_without_padding_and_several_at_once() {
        let name = HeaderName::from_static("trace-bin");
        let mut headers = headers(&[("trace-bin", b"AAEC/w==,AAEC/w, ,AA")]);
        headers.append(&name, HeaderValue::from_static("!!, AAECAw=="));
        let values: Vec<_> = binary(&headers, &name).collect();
        assert_eq!(values, [&[0, 1, 2, 255][..], &[0, 1, 2, 255], &[], &[0], &[0, 1, 2, 3]]);
    }

    #[test]
    fn binary_values_are_emitted_without_padding_and_come_back() {
        let name = HeaderName::from_static("x-bin");
        for length in 0..=8 {
            let bytes = vec![0xfb; length];
            let value = to_binary(&bytes);
            assert!(!value.as_bytes().contains(&b'='));
            let headers = HeaderMap::from_iter([(name.clone(), value)]);
            assert_eq!(binary(&headers, &name).collect::<Vec<_>>(), [bytes]);
        }
    }
}
