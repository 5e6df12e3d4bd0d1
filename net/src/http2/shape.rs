//! What a frame must look like before h2's codec reads it.
//!
//! The codec answers everything that is wrong with PROTOCOL_ERROR; RFC 9113 tells more, and whoever debugs a client is
//! glad of it.

use h2::Reason;

use super::{
    ACK, CONTINUATION, DATA, GOAWAY, HEADERS, PING, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};

/// SETTINGS_INITIAL_WINDOW_SIZE (section 6.5.2).
const INITIAL_WINDOW_SIZE: u16 = 4;

/// Checks a frame's stream number and length, as far as both follow from its kind and flags.
pub(super) fn check(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Result<(), Reason> {
    let is_for_connection = matches!(kind, SETTINGS | PING | GOAWAY);
    let is_for_stream = matches!(kind, DATA | HEADERS | PRIORITY | RST_STREAM | CONTINUATION);
    if (is_for_connection && id != 0) || (is_for_stream && id == 0) || kind == PUSH_PROMISE {
        return Err(Reason::PROTOCOL_ERROR); // A push is what we have forbidden.
    }
    let is_length_right = match kind {
        PRIORITY => payload.len() == 5,
        RST_STREAM | WINDOW_UPDATE => payload.len() == 4,
        PING => payload.len() == 8,
        GOAWAY => payload.len() >= 8,
        SETTINGS if flags & ACK != 0 => payload.is_empty(),
        SETTINGS => payload.len().is_multiple_of(6),
        _ => true,
    };
    if !is_length_right {
        return Err(Reason::FRAME_SIZE_ERROR);
    }
    let is_window_too_large = |(name, value)| name == INITIAL_WINDOW_SIZE && value > i32::MAX as u32;
    if kind == SETTINGS && settings(payload).any(is_window_too_large) {
        return Err(Reason::FLOW_CONTROL_ERROR);
    }
    Ok(())
}

fn settings(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> {
    let (entries, _) = payload.as_chunks::<6>();
    entries.iter().map(|[a, b, c, d, e, f]| (u16::from_be_bytes([*a, *b]), u32::from_be_bytes([*c, *d, *e, *f])))
}
