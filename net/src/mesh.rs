//! Mailboxes: how cores talk to each other, and how helper threads answer them.
//!
//! A mailbox is a bounded queue with a doorbell. Any thread may put a message in; one task takes them out. The bell
//! rings only when that task sleeps, so a burst of messages costs one wake-up (a system call) and not one each.
//!
//! ```text
//!   sender ──┐ push        ┌───────────────┐  pop
//!   sender ──┼────────────▶│ ▒▒▒▒▒         │──────────▶ receiver, on one task
//!   sender ──┘             └───────────────┘
//!            then, if Asleep: Awake, and wake        finds it empty: Asleep, then looks once more
//!
//!              found nothing, twice
//!     Awake ───────────────────────▶ Asleep          Gone: the receiver was dropped; what is or comes in is dropped
//!       ▲                              │
//!       └──────────────────────────────┘
//!         the first sender that sees it
//! ```
//! Both sides write one thing, pass a full fence and read what the other wrote (the pattern of Dekker's algorithm), so
//! never do both miss the other: a sender that finds `Awake` has pushed before the receiver's second look.
//!
//! A full mailbox is news, not a place to wait: nothing here blocks or waits for room. These are the only atomics of
//! our own, and the only thing that cores share and change.

use std::{
    fmt,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{
            AtomicU8, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
            fence,
        },
    },
    task::{Context, Poll},
};

use crossbeam::{queue::ArrayQueue, utils::CachePadded};
use futures::task::AtomicWaker;

/// Makes a mailbox that holds up to `capacity` messages, all of whose room is allocated now.
///
/// # Panics
/// When `capacity` is 0.
#[must_use]
pub fn mailbox<M: Send>(capacity: usize) -> (Sender<M>, Receiver<M>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity),
        bell: CachePadded::new(Bell { state: AtomicU8::new(AWAKE), waker: AtomicWaker::new() }),
        sender_count: AtomicUsize::new(1),
    });
    (Sender { shared: Arc::clone(&shared) }, Receiver { shared })
}

/// Puts messages in. Cheap to clone; every clone counts as a sender.
pub struct Sender<M: Send> {
    shared: Arc<Shared<M>>,
}

/// Takes messages out, in the order in which they were put in. Dropping it drops the messages that are left.
pub struct Receiver<M: Send> {
    shared: Arc<Shared<M>>,
}

/// Why a message was not taken; the message comes back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Refused<M> {
    /// There is no room now.
    Full(M),
    /// The receiver was dropped: there will never be anybody to read it.
    Gone(M),
}

struct Shared<M> {
    queue: ArrayQueue<M>,
    /// On a cache line of its own, only for speed: the receiver writes it, and senders read it after each push.
    bell: CachePadded<Bell>,
    sender_count: AtomicUsize,
}

struct Bell {
    state: AtomicU8,
    waker: AtomicWaker,
}

/// The receiver runs, or has been woken, or was never asked: it will look before it sleeps.
const AWAKE: u8 = 0;
/// The receiver found nothing and left its waker.
const ASLEEP: u8 = 1;
/// The receiver was dropped.
const GONE: u8 = 2;

impl<M: Send> Sender<M> {
    /// Puts `message` in and wakes the receiver if it sleeps. Never waits; callable from any thread.
    ///
    /// `Ok` promises that the message is in the mailbox, not that it will be read: the receiver may be dropped later.
    ///
    /// # Errors
    /// [`Refused`], with the message, when the mailbox is full or its receiver gone.
    pub fn try_send(&self, message: M) -> Result<(), Refused<M>> {
        if self.shared.bell.state.load(Relaxed) == GONE {
            return Err(Refused::Gone(message));
        }
        self.shared.queue.push(message).map_err(Refused::Full)?;
        self.shared.ring();
        Ok(())
    }

    /// Whether the receiver was dropped. When it is not, that may change at any time.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.shared.bell.state.load(Relaxed) == GONE
    }
}

impl<M> Shared<M> {
    /// Tells the receiver about what the caller has just changed (a message, or one sender less).
    fn ring(&self) {
        fence(SeqCst);
        // Reading first is only for speed: in a burst, all senders but one leave the line as it is.
        let mut state = self.bell.state.load(Relaxed);
        if state == ASLEEP {
            match self.bell.state.compare_exchange(ASLEEP, AWAKE, AcqRel, Relaxed) {
                Ok(_) => return self.bell.waker.wake(),
                Err(found) => state = found,
            }
        }
        if state == GONE {
            // The receiver emptied the queue when it left, perhaps just before our push.
            self.empty();
        }
    }

    fn empty(&self) {
        while self.queue.pop().is_some() {}
    }
}

impl<M: Send> Receiver<M> {
    /// The next message; `None` when the mailbox is empty and every sender was dropped.
    ///
    /// `Pending` leaves the waker of `cx` behind, in the place of any earlier one: one task receives. That waker is
    /// called from other threads, so let it be one of a task that lives as long as its executor.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<M>> {
        if let Some(message) = self.shared.queue.pop() {
            return Poll::Ready(Some(message));
        }
        let bell = &self.shared.bell;
        bell.waker.register(cx.waker());
        bell.state.store(ASLEEP, Release);
        fence(SeqCst);
        // The order matters: a sender pushes before it leaves, so who sees it gone and then nothing has seen all.
        let senders_are_gone = self.shared.sender_count.load(Acquire) == 0;
        let found = self.shared.queue.pop();
        if found.is_none() && !senders_are_gone {
            return Poll::Pending;
        }
        // Only for speed: without it, the next sender would wake a task that runs.
        bell.state.store(AWAKE, Relaxed);
        Poll::Ready(found)
    }

    /// Waits for the next message; `None` when the mailbox is empty and every sender was dropped.
    ///
    /// Dropping the future loses no message.
    pub async fn recv(&mut self) -> Option<M> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The next message if there is one. `None` says nothing about the senders.
    pub fn try_recv(&mut self) -> Option<M> {
        self.shared.queue.pop()
    }
}

impl<M: Send> Clone for Sender<M> {
    fn clone(&self) -> Self {
        self.shared.sender_count.fetch_add(1, Relaxed);
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<M: Send> Drop for Sender<M> {
    fn drop(&mut self) {
        if self.shared.sender_count.fetch_sub(1, AcqRel) == 1 {
            self.shared.ring();
        }
    }
}

impl<M: Send> Drop for Receiver<M> {
    fn drop(&mut self) {
        self.shared.bell.state.store(GONE, Relaxed);
        fence(SeqCst);
        self.shared.empty();
        // So that the waker dies on its own core, and not with the last sender.
        drop(self.shared.bell.waker.take());
    }
}

impl<M: Send> fmt::Debug for Sender<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("waiting", &self.shared.queue.len()).finish_non_exhaustive()
    }
}

impl<M: Send> fmt::Debug for Receiver<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("waiting", &self.shared.queue.len()).finish_non_exhaustive()
    }
}

impl<M> Refused<M> {
    /// The message that was not taken.
    pub fn into_message(self) -> M {
        match self {
            Self::Full(message) | Self::Gone(message) => message,
        }
    }
}

impl<M> fmt::Debug for Refused<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<M> fmt::Display for Refused<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "the mailbox is full",
            Self::Gone(_) => "the receiver of the mailbox is gone",
        })
    }
}

impl<M> std::error::Error for Refused<M> {}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Barrier, Weak, mpsc},
        task::{Wake, Waker},
        thread,
    };

    use super::*;

    /// Counts how often it is woken, and tells a parked thread.
    struct Bells {
        rung: AtomicUsize,
        thread: thread::Thread,
    }

    impl Wake for Bells {
        fn wake(self: Arc<Self>) {
            self.rung.fetch_add(1, SeqCst);
            self.thread.unpark();
        }
    }

    impl Bells {
        fn new() -> (Arc<Self>, Waker) {
            let bells = Arc::new(Self { rung: AtomicUsize::new(0), thread: thread::current() });
            (Arc::clone(&bells), Waker::from(bells))
        }

        fn rung(&self) -> usize {
            self.rung.load(SeqCst)
        }
    }

    fn poll<M: Send>(receiver: &mut Receiver<M>, waker: &Waker) -> Poll<Option<M>> {
        receiver.poll_recv(&mut Context::from_waker(waker))
    }

    /// Receives until every sender is gone, sleeping in between as an executor would: until a wake that came after the
    /// poll *began*. (One that comes during the poll may have consumed the waker that the poll left.)
    fn drain<M: Send>(receiver: &mut Receiver<M>, mut each: impl FnMut(M)) -> usize {
        let (bells, waker) = Bells::new();
        loop {
            let before = bells.rung();
            match poll(receiver, &waker) {
                Poll::Ready(Some(message)) => each(message),
                Poll::Ready(None) => return bells.rung(),
                Poll::Pending => {
                    while bells.rung() == before {
                        thread::park();
                    }
                }
            }
        }
    }

    #[test]
    fn messages_come_out_in_the_order_they_went_in() {
        let (sender, mut receiver) = mailbox(4);
        let (_, waker) = Bells::new();
        for round in 0..10 {
            for message in 0..4 {
                sender.try_send(round * 4 + message).unwrap();
            }
            for message in 0..4 {
                assert_eq!(poll(&mut receiver, &waker), Poll::Ready(Some(round * 4 + message)));
            }
        }
        assert_eq!(poll(&mut receiver, &waker), Poll::Pending);
    }

    #[test]
    fn a_full_mailbox_gives_the_message_back_and_has_room_after_one_is_taken() {
        let (sender, mut receiver) = mailbox(2);
        sender.try_send("a").unwrap();
        sender.try_send("b").unwrap();
        assert_eq!(sender.try_send("c"), Err(Refused::Full("c")));
        assert_eq!(receiver.try_recv(), Some("a"));
        sender.try_send("c").unwrap();
        assert_eq!(Refused::Full("d").to_string(), "the mailbox is full");
        assert_eq!(sender.try_send("d").unwrap_err().into_message(), "d");
    }

    #[test]
    fn a_burst_wakes_a_sleeping_receiver_once() {
        let (sender, mut receiver) = mailbox(1000);
        let (bells, waker) = Bells::new();
        assert_eq!(poll(&mut receiver, &waker), Poll::Pending);
        for message in 0..1000 {
            sender.try_send(message).unwrap();
        }
        assert_eq!(bells.rung(), 1);
        for message in 0..1000 {
            assert_eq!(poll(&mut receiver, &waker), Poll::Ready(Some(message)));
        }
        assert_eq!(bells.rung(), 1);
    }

    #[test]
    fn a_receiver_that_runs_is_not_woken() {
        let (sender, mut receiver) = mailbox(4);
        let (bells, waker) = Bells::new();
        sender.try_send(1).unwrap(); // before the first poll: nobody sleeps yet
        sender.try_send(2).unwrap();
        assert_eq!(poll(&mut receiver, &waker), Poll::Ready(Some(1)));
        sender.try_send(3).unwrap(); // between two polls
        assert_eq!(poll(&mut receiver, &waker), Poll::Ready(Some(2)));
        assert_eq!(poll(&mut receiver, &waker), Poll::Ready(Some(3)));
        assert_eq!(bells.rung(), 0);
        assert_eq!(poll(&mut receiver, &waker), Poll::Pending);
        sender.try_send(4).unwrap();
        assert_eq!(bells.rung(), 1);
    }

    #[test]
    fn each_sleep_is_ended_by_one_wake() {
        let (sender, mut receiver) = mailbox(2);
        let (bells, waker) = Bells::new();
        for round in 1..=100 {
            assert_eq!(poll(&mut receiver, &waker), Poll::Pending);
            assert_eq!(poll(&mut receiver, &waker), Poll::Pending); // polled for another reason
            sender.try_send(round).unwrap();
            sender.try_send(round).unwrap();
            assert_eq!(bells.rung(), round);
            assert_eq!(poll(&mut receiver, &waker), Poll::Ready(Some(round)));
            assert_eq!(poll(&mut receiver, &waker), Poll::Ready(Some(round)));
        }
    }

    #[test]
    fn the_waker_of_the_last_poll_is_the_one_that_is_called() {
        let (sender, mut receiver) = mailbox(2);
        let (first, first_waker) = Bells::new();
        let (second, second_waker) = Bells::new();
        assert_eq!(poll(&mut receiver, &first_waker), Poll::Pending);
        assert_eq!(poll(&mut receiver, &second_waker), Poll::Pending);
        sender.try_send(()).unwrap();
        assert_eq!((first.rung(), second.rung()), (0, 1));
    }

    #[test]
    fn the_end_comes_after_the_last_message_and_wakes_a_sleeper() {
        let (sender, mut receiver) = mailbox(4);
        let other = sender.clone();
        let (bells, waker) = Bells::new();
        other.try_send(1).unwrap();
        drop(other);
        assert_eq!(poll(&mut receiver, &waker), Poll::Ready(Some(1)));
        assert_eq!(poll(&mut receiver, &waker), Poll::Pending);
        assert_eq!(bells.rung(), 0);
        drop(sender);
        assert_eq!(bells.rung(), 1);
        assert_eq!(poll(&mut receiver, &waker), Poll::Ready(None));
        assert_eq!(poll(&mut receiver, &waker), Poll::Ready(None)); // and it stays the end
    }

    #[test]
    fn messages_of_senders_that_are_gone_are_still_received() {
        let (sender, mut receiver) = mailbox(4);
        sender.try_send(1).unwrap();
        sender.try_send(2).unwrap();
        drop(sender);
        let mut seen = Vec::new();
        drain(&mut receiver, |message| seen.push(message));
        assert_eq!(seen, [1, 2]);
    }

    #[test]
    fn without_a_receiver_messages_come_back_and_those_inside_are_dropped() {
        let (sender, receiver) = mailbox(4);
        let message = Arc::new(());
        sender.try_send(Arc::clone(&message)).unwrap();
        assert!(!sender.is_gone());
        drop(receiver);
        assert_eq!(Arc::strong_count(&message), 1);
        assert!(sender.is_gone());
        assert_eq!(sender.try_send(Arc::clone(&message)), Err(Refused::Gone(Arc::clone(&message))));
    }

    #[test]
    fn a_receiver_that_goes_takes_its_waker_with_it() {
        let (sender, mut receiver) = mailbox::<()>(1);
        let (bells, waker) = Bells::new();
        assert_eq!(poll(&mut receiver, &waker), Poll::Pending);
        drop((receiver, waker));
        assert_eq!(Arc::strong_count(&bells), 1);
        drop(sender);
        assert_eq!(bells.rung(), 0);
    }

    #[test]
    fn dropping_a_wait_loses_nothing() {
        let (sender, mut receiver) = mailbox(2);
        let (bells, waker) = Bells::new();
        {
            let mut wait = std::pin::pin!(receiver.recv());
            assert!(wait.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            sender.try_send(7).unwrap();
        }
        assert_eq!(bells.rung(), 1);
        let mut wait = std::pin::pin!(receiver.recv());
        assert_eq!(wait.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Ready(Some(7)));
    }

    /// The steps of a send and of a receive that goes to sleep, in every order: never a message and no wake.
    #[test]
    fn no_interleaving_of_send_and_sleep_forgets_the_wake() {
        // A sender does two things (push, ring), a receiver three (look, announce its sleep, look again).
        const SEND: &[fn(&Shared<u8>)] = &[|shared| shared.queue.push(1).unwrap(), Shared::ring];
        let (_, waker) = Bells::new();
        for order in 0_u32..1 << 5 {
            if order.count_ones() != 2 {
                continue; // a bit says whose step it is: 1 = the sender's
            }
            let (sender, mut receiver) = mailbox::<u8>(2);
            let (bells, _) = Bells::new();
            let counted = Waker::from(Arc::clone(&bells));
            let shared = Arc::clone(&sender.shared);
            let (mut sent, mut received, mut taken) = (0, 0, false);
            for step in 0..5 {
                if order >> step & 1 == 1 {
                    SEND[sent](&shared);
                    sent += 1;
                    continue;
                }
                match received {
                    0 => taken |= shared.queue.pop().is_some(),
                    1 if !taken => {
                        shared.bell.waker.register(&counted);
                        shared.bell.state.store(ASLEEP, SeqCst);
                    }
                    2 if !taken => taken |= shared.queue.pop().is_some(),
                    _ => {}
                }
                received += 1;
            }
            assert!(taken || bells.rung() == 1, "order {order:05b}: a message, and nobody was woken");
            if !taken {
                assert_eq!(poll(&mut receiver, &waker), Poll::Ready(Some(1)), "order {order:05b}");
            }
        }
    }

    #[test]
    fn many_producers_lose_nothing_and_each_keeps_its_order() {
        const PRODUCERS: usize = 8;
        const MESSAGES: usize = 20_000;
        let (sender, mut receiver) = mailbox(64);
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let sender = sender.clone();
                thread::spawn(move || {
                    for number in 0..MESSAGES {
                        let mut message = (producer, number);
                        while let Err(refused) = sender.try_send(message) {
                            assert!(matches!(refused, Refused::Full(_)));
                            message = refused.into_message();
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        drop(sender);

        let mut next = [0; PRODUCERS];
        let rung = drain(&mut receiver, |(producer, number)| {
            assert_eq!(number, next[producer], "producer {producer}");
            next[producer] += 1;
        });
        assert_eq!(next, [MESSAGES; PRODUCERS]);
        assert!(rung <= PRODUCERS * MESSAGES);
        for producer in producers {
            producer.join().unwrap();
        }
    }

    #[test]
    fn two_threads_that_take_turns_never_miss_a_wake() {
        // Each message is sent only when the one before was answered, so one lost wake-up would hang here for ever.
        let (ask, mut asked) = mailbox(1);
        let (answer, mut answered) = mailbox(1);
        let other = thread::spawn(move || drain(&mut asked, |number: u32| answer.try_send(number).unwrap()));
        ask.try_send(0).unwrap();
        let mut ask = Some(ask);
        drain(&mut answered, |number| {
            if number == 50_000 {
                ask = None;
            } else {
                ask.as_ref().unwrap().try_send(number + 1).unwrap();
            }
        });
        other.join().unwrap();
    }

    #[test]
    fn no_message_outlives_a_receiver_that_leaves_while_others_send() {
        for _ in 0..2_000 {
            let (sender, receiver) = mailbox::<Arc<()>>(4);
            let (tell, told) = mpsc::channel::<Weak<()>>();
            let start = Arc::new(Barrier::new(2));
            let other = {
                let (sender, start) = (sender.clone(), Arc::clone(&start));
                thread::spawn(move || {
                    start.wait();
                    for _ in 0..4 {
                        let message = Arc::new(());
                        tell.send(Arc::downgrade(&message)).unwrap();
                        let _ = sender.try_send(message);
                    }
                })
            };
            start.wait();
            drop(receiver);
            other.join().unwrap();
            assert!(told.iter().all(|message| message.strong_count() == 0));
            drop(sender); // kept until here: it alone would not have freed them
        }
    }
}
