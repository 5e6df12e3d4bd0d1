//! A value that changes, and those who want to see it change: the state behind every stream that a server sends.
//!
//! ```text
//!   sender ── send(c) ──▶ │ c │ version 3 │        receiver A  has seen 3: waits
//!                                                  receiver B  has seen 1: gets c next, never b
//! ```
//! Only the latest value is kept, so a slow reader costs one value and not a queue. One thread only: each core has its
//! own. Values are whole messages, encoded once for all who watch.

use std::{
    cell::RefCell,
    fmt,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use slab::Slab;

/// Makes a cell that holds `first`, with its first reader.
#[must_use]
pub fn channel(first: Bytes) -> (Sender, Receiver) {
    let cell = RefCell::new(Cell { latest: first, version: 1, is_final: false, sleepers: Slab::new() });
    let sender = Sender { cell: Rc::new(cell) };
    let receiver = sender.subscribe();
    (sender, receiver)
}

/// Changes the value. When it is dropped, every receiver sees the last value and then the end.
pub struct Sender {
    cell: Rc<RefCell<Cell>>,
}

/// Sees the value that is there now, and then each newer one, as far as it keeps up.
pub struct Receiver {
    cell: Rc<RefCell<Cell>>,
    /// The version that was seen last; 0 = none yet.
    seen: u64,
    index: usize,
}

struct Cell {
    latest: Bytes,
    version: u64,
    is_final: bool,
    /// One place per receiver, filled while it waits.
    sleepers: Slab<Option<Waker>>,
}

impl Sender {
    /// Replaces the value and wakes everybody who waits. Linear in the number of receivers.
    pub fn send(&self, value: Bytes) {
        self.change(|cell| {
            cell.latest = value;
            cell.version += 1;
        });
    }

    /// A further receiver; it sees the value that is there now at once.
    #[must_use]
    pub fn subscribe(&self) -> Receiver {
        let index = self.cell.borrow_mut().sleepers.insert(None);
        Receiver { cell: Rc::clone(&self.cell), seen: 0, index }
    }

    /// The value that is there now.
    #[must_use]
    pub fn latest(&self) -> Bytes {
        self.cell.borrow().latest.clone()
    }

    fn change(&self, change: impl FnOnce(&mut Cell)) {
        // Wakers are foreign code, so they are called when nothing is borrowed.
        let woken: Vec<Waker> = {
            let mut cell = self.cell.borrow_mut();
            change(&mut cell);
            cell.sleepers.iter_mut().filter_map(|(_, sleeper)| sleeper.take()).collect()
        };
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Receiver {
    /// The latest value, if it is newer than the one this returned before; `None` after the last one.
    pub fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut cell = self.cell.borrow_mut();
        if self.seen < cell.version {
            self.seen = cell.version;
            return Poll::Ready(Some(cell.latest.clone()));
        }
        if cell.is_final {
            return Poll::Ready(None);
        }
        match &mut cell.sleepers[self.index] {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Waits for [`Receiver::poll_changed`]. Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Option<Bytes> {
        poll_fn(|cx| self.poll_changed(cx)).await
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.change(|cell| cell.is_final = true);
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let sleeper = self.cell.borrow_mut().sleepers.remove(self.index);
        drop(sleeper); // A waker is foreign code too.
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell = self.cell.borrow();
        f.debug_struct("Sender").field("version", &cell.version).field("receivers", &cell.sleepers.len()).finish()
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("seen", &self.seen).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    fn poll(receiver: &mut Receiver, bell: &Arc<Bell>) -> Poll<Option<&'static str>> {
        let waker = Waker::from(Arc::clone(bell));
        let polled = receiver.poll_changed(&mut Context::from_waker(&waker));
        polled.map(|value| value.map(|bytes| &*String::from_utf8(bytes.to_vec()).unwrap().leak()))
    }

    fn value(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn the_value_of_now_comes_at_once_and_then_each_newer_one() {
        let bell = Arc::default();
        let (sender, mut receiver) = channel(value("a"));
        assert_eq!(poll(&mut receiver, &bell), Poll::Ready(Some("a")));
        assert_eq!(poll(&mut receiver, &bell), Poll::Pending);
        sender.send(value("b"));
        assert_eq!(bell.0.load(SeqCst), 1);
        assert_eq!(poll(&mut receiver, &bell), Poll::Ready(Some("b")));
        assert_eq!(poll(&mut receiver, &bell), Poll::Pending);
    }

    #[test]
    fn a_slow_reader_gets_only_the_latest_and_is_woken_once() {
        let bell = Arc::default();
        let (sender, mut receiver) = channel(value("a"));
        assert_eq!(poll(&mut receiver, &bell), Poll::Ready(Some("a")));
        assert_eq!(poll(&mut receiver, &bell), Poll::Pending);
        for text in ["b", "c", "d"] {
            sender.send(value(text));
        }
        assert_eq!(bell.0.load(SeqCst), 1);
        assert_eq!(poll(&mut receiver, &bell), Poll::Ready(Some("d")));
        assert_eq!(poll(&mut receiver, &bell), Poll::Pending);
    }

    #[test]
    fn the_end_comes_after_the_last_value() {
        let bell = Arc::default();
        let (sender, mut receiver) = channel(value("a"));
        let mut waiting = sender.subscribe();
        assert_eq!(poll(&mut waiting, &bell), Poll::Ready(Some("a")));
        assert_eq!(poll(&mut waiting, &bell), Poll::Pending);
        drop(sender);
        assert_eq!(bell.0.load(SeqCst), 1);
        assert_eq!(poll(&mut waiting, &bell), Poll::Ready(None));
        assert_eq!(poll(&mut receiver, &bell), Poll::Ready(Some("a")));
        assert_eq!(poll(&mut receiver, &bell), Poll::Ready(None));
        assert_eq!(poll(&mut receiver, &bell), Poll::Ready(None));
    }

    #[test]
    fn every_receiver_sees_every_change_and_one_that_left_is_forgotten() {
        let bells: [Arc<Bell>; 3] = Default::default();
        let (sender, first) = channel(value("a"));
        let mut receivers = vec![first, sender.subscribe(), sender.subscribe()];
        for (receiver, bell) in receivers.iter_mut().zip(&bells) {
            assert_eq!(poll(receiver, bell), Poll::Ready(Some("a")));
            assert_eq!(poll(receiver, bell), Poll::Pending);
        }
        drop(receivers.remove(1));
        assert_eq!(Arc::strong_count(&bells[1]), 1);
        sender.send(value("b"));
        assert_eq!(bells.each_ref().map(|bell| bell.0.load(SeqCst)), [1, 0, 1]);

        let mut late = sender.subscribe(); // in the place of the one that left
        assert_eq!(poll(&mut late, &bells[1]), Poll::Ready(Some("b")));
        assert_eq!(poll(&mut late, &bells[1]), Poll::Pending);
        assert_eq!(sender.latest(), value("b"));
    }

    #[test]
    fn a_waker_may_use_the_channel_it_is_woken_by() {
        struct Reader(std::sync::Mutex<Option<Sending>>);
        struct Sending(Rc<Sender>);
        // SAFETY: only this thread has the waker.
        unsafe impl Send for Sending {}
        impl Wake for Reader {
            fn wake(self: Arc<Self>) {
                if let Some(sending) = self.0.lock().unwrap().take() {
                    sending.0.send(Bytes::from_static(b"again"));
                }
            }
        }
        let (sender, mut receiver) = channel(value("a"));
        let sender = Rc::new(sender);
        let waker = Waker::from(Arc::new(Reader(std::sync::Mutex::new(Some(Sending(Rc::clone(&sender)))))));
        let _ = receiver.poll_changed(&mut Context::from_waker(&waker));
        assert!(receiver.poll_changed(&mut Context::from_waker(&waker)).is_pending());
        sender.send(value("b"));
        assert_eq!(sender.latest(), value("again"));
    }
}
