//! Frames as a client writes them, byte by byte, so that they can also be wrong.

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(crate) const CANCEL: u32 = 8;

pub(crate) type Fields<'a> = &'a [(&'a str, &'a str)];

pub(crate) fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &id.to_be_bytes(), payload].concat()
}

/// A header block of literals that leave the tables alone (RFC 7541, section 6.2.2).
pub(crate) fn block(fields: Fields<'_>) -> Vec<u8> {
    fn put(text: &str, block: &mut Vec<u8>) {
        // A length of up to 126 is one byte; a longer one goes on in groups of seven bits (section 5.1).
        if text.len() < 127 {
            block.push(text.len() as u8);
        } else {
            block.push(127);
            let mut left = text.len() - 127;
            while left >= 128 {
                block.push(0x80 | (left % 128) as u8);
                left /= 128;
            }
            block.push(left as u8);
        }
        block.extend_from_slice(text.as_bytes());
    }
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        put(name, &mut block);
        put(value, &mut block);
    }
    block
}

pub(crate) fn headers(flags: u8, id: u32, fields: Fields<'_>) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, id, &block(fields))
}

/// The head of a gRPC request to `/t/{method}`, with more fields.
pub(crate) fn request_with(id: u32, method: &str, more: Fields<'_>) -> Vec<u8> {
    let path = format!("/t/{method}");
    let mut fields = vec![(":method", "POST"), (":scheme", "http"), (":path", &path), (":authority", "here")];
    fields.extend([("content-type", "application/grpc"), ("te", "trailers")]);
    fields.extend(more);
    headers(0, id, &fields)
}

pub(crate) fn request(id: u32, method: &str) -> Vec<u8> {
    request_with(id, method, &[])
}

/// A message behind its prefix.
pub(crate) fn grpc(message: &[u8]) -> Vec<u8> {
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

pub(crate) fn data(flags: u8, id: u32, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, flags, id, bytes)
}

/// DATA with padding, whose length need not be true.
pub(crate) fn padded(flags: u8, id: u32, bytes: &[u8], padding: &[u8], padding_bytes: u8) -> Vec<u8> {
    frame(DATA, flags | PADDED, id, &[&[padding_bytes], bytes, padding].concat())
}

/// A whole call of `/t/{method}`.
pub(crate) fn call(id: u32, method: &str, message: &[u8]) -> Vec<u8> {
    [request(id, method), data(END_STREAM, id, &grpc(message))].concat()
}

pub(crate) fn reset(id: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, id, &CANCEL.to_be_bytes())
}

pub(crate) fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        entries.iter().flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

pub(crate) fn window_update(id: u32, bytes: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, id, &bytes.to_be_bytes())
}

pub(crate) fn ping(flags: u8, payload: &[u8; 8]) -> Vec<u8> {
    frame(PING, flags, 0, payload)
}
