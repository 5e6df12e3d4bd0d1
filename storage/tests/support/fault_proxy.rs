//! A proxy in front of a real HTTP server that breaks what it is told to break. For tests; include it with `#[path]`.
//!
//! ```text
//!   client ──▶ FaultProxy ──▶ server
//!               │ a fault that waits for this method: use it up
//!               └ none: request and answer pass as they are
//! ```

#![allow(dead_code, unreachable_pub)] // each test program uses another part

use std::{
    io::{self, Read, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
};

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answer this status with S3's error document of this code (none where it is empty); the server sees nothing.
    Status(u16, &'static str),
    /// Answer this text as it is, and close where it tells no `content-length`; the server sees nothing.
    Raw(&'static str),
    /// Keep the request until [`FaultProxy::release`], then pass it on.
    Hold,
    /// Close the connection so that it is reset; the server sees nothing.
    Reset,
    /// Pass it on, and never answer: the connection is closed.
    Unanswered,
    /// Pass it on, and answer so much of the body only.
    Truncate(usize),
    /// Pass it on, and answer with a length that is off by so much.
    Lie(i64),
    /// Pass it on, and answer with one bit of the body wrong.
    Flip,
}

/// A proxy that listens on the loopback until it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Method, what to do, how many times more.
    faults: Vec<(&'static str, Fault, usize)>,
    /// The first lines of all requests.
    seen: Vec<String>,
    held: usize,
    released: usize,
    connections: usize,
    is_over: bool,
}

/// A request or an answer: lines of its head, first of all the first, and its body.
struct Message {
    head: Vec<String>,
    body: Vec<u8>,
}

impl FaultProxy {
    /// Starts one in front of `server`.
    pub fn start(server: SocketAddr) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), server)
    }

    /// Starts one at a given address.
    pub fn start_at(address: SocketAddr, server: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { server, state: Mutex::default(), changed: Condvar::new() });
        let proxy = Self { address, shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.state().is_over {
                    return;
                }
                shared.state().connections += 1;
                let shared = Arc::clone(&shared);
                // An error here is the other side's going away.
                thread::spawn(move || client.and_then(|client| shared.serve(client)));
            }
        });
        proxy
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Breaks the next `times` requests of this method, after the faults that were asked for before.
    pub fn fail(&self, method: &'static str, times: usize, fault: Fault) {
        self.shared.state().faults.push((method, fault, times));
    }

    /// Breaks nothing more.
    pub fn heal(&self) {
        self.shared.state().faults.clear();
    }

    /// How many requests of this method came in.
    pub fn seen(&self, method: &str) -> usize {
        self.shared.state().seen.iter().filter(|line| line.starts_with(&format!("{method} "))).count()
    }

    /// The first lines of all requests.
    pub fn lines(&self) -> Vec<String> {
        self.shared.state().seen.clone()
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.shared.state().connections
    }

    /// Waits until so many requests have been held in all.
    pub fn await_held(&self, count: usize) {
        let mut state = self.shared.state();
        while state.held < count {
            state = self.shared.changed.wait(state).unwrap();
        }
    }

    /// Lets go what is held, and what will be.
    pub fn release(&self) {
        self.shared.state().released = usize::MAX;
        self.shared.changed.notify_all();
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.state().is_over = true;
        self.release();
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The requests of one connection, one after the other.
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        while let Some(line) = peek_first_line(&client)? {
            let fault = self.take_fault(&line);
            if fault == Some(Fault::Reset) {
                return Ok(()); // with bytes unread, closing resets
            }
            let request = Message::read(&mut client, false)?;
            match fault {
                Some(Fault::Status(status, code)) => {
                    error_answer(status, code).write(&mut client)?;
                    continue;
                }
                Some(Fault::Raw(text)) => {
                    client.write_all(text.as_bytes())?;
                    if !text.contains("content-length:") {
                        return client.shutdown(Shutdown::Both); // which ends the body
                    }
                    continue;
                }
                Some(Fault::Hold) => self.hold(),
                _ => {}
            }
            let mut answer = self.pass_on(request)?;
            match fault {
                Some(Fault::Unanswered) => return client.shutdown(Shutdown::Both),
                Some(Fault::Truncate(bytes)) => {
                    answer.body.truncate(bytes);
                    answer.write(&mut client)?;
                    return client.shutdown(Shutdown::Both);
                }
                Some(Fault::Lie(by)) => {
                    let length = i64::try_from(answer.body.len()).unwrap() + by;
                    answer.replace_header("content-length", &length.to_string());
                }
                Some(Fault::Flip) => answer.body[0] ^= 1,
                _ => {}
            }
            answer.write(&mut client)?;
        }
        Ok(())
    }

    fn take_fault(&self, line: &str) -> Option<Fault> {
        let mut state = self.state();
        state.seen.push(line.to_owned());
        let method = line.split(' ').next()?;
        let index = state.faults.iter().position(|(wanted, _, _)| *wanted == method)?;
        let fault = state.faults[index].1;
        state.faults[index].2 -= 1;
        if state.faults[index].2 == 0 {
            state.faults.remove(index);
        }
        Some(fault)
    }

    fn hold(&self) {
        let mut state = self.state();
        state.held += 1;
        let number = state.held;
        self.changed.notify_all();
        while state.released < number {
            state = self.changed.wait(state).unwrap();
        }
    }

    fn pass_on(&self, mut request: Message) -> io::Result<Message> {
        let is_head = request.head[0].starts_with("HEAD ");
        request.replace_header("connection", "close");
        let mut server = TcpStream::connect(self.server)?;
        request.write(&mut server)?;
        let mut answer = Message::read(&mut server, is_head)?;
        answer.remove_header("connection");
        Ok(answer)
    }
}

impl Message {
    /// Reads one. Only lengths are understood, not chunks: S3 needs no more.
    fn read(stream: &mut TcpStream, has_no_body: bool) -> io::Result<Self> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let text = String::from_utf8(head).map_err(io::Error::other)?;
        let mut message = Self { head: text.trim_end().lines().map(Into::into).collect(), body: Vec::new() };
        let length = message.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        if !has_no_body {
            message.body.resize(length, 0);
            stream.read_exact(&mut message.body)?;
        }
        Ok(message)
    }

    fn write(&self, stream: &mut TcpStream) -> io::Result<()> {
        let mut bytes = self.head.join("\r\n").into_bytes();
        bytes.extend_from_slice(b"\r\n\r\n");
        bytes.extend_from_slice(&self.body);
        stream.write_all(&bytes)
    }

    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head[1..].iter().filter_map(|line| line.split_once(':'));
        lines.into_iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    fn remove_header(&mut self, name: &str) {
        let mut index = 0;
        self.head.retain(|line| {
            index += 1;
            index == 1 || line.split_once(':').is_none_or(|(other, _)| !other.eq_ignore_ascii_case(name))
        });
    }

    fn replace_header(&mut self, name: &str, value: &str) {
        self.remove_header(name);
        self.head.push(format!("{name}: {value}"));
    }
}

fn error_answer(status: u16, code: &str) -> Message {
    let document = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>A fault.</Message></Error>");
    let body = if code.is_empty() { Vec::new() } else { document.into_bytes() };
    let head = vec![format!("HTTP/1.1 {status} Fault"), format!("Content-Length: {}", body.len())];
    Message { head, body }
}

/// The first line of the next request, which stays unread; `None` when the client has gone.
fn peek_first_line(client: &TcpStream) -> io::Result<Option<String>> {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let count = client.peek(&mut bytes)?;
        if count == 0 {
            return Ok(None);
        }
        if let Some(end) = bytes[..count].windows(2).position(|pair| pair == b"\r\n") {
            return Ok(Some(String::from_utf8_lossy(&bytes[..end]).into_owned()));
        }
        thread::yield_now();
    }
}
