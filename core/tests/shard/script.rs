//! A store that does what the test says, and futures that are polled by hand: only when they were woken, so that a
//! forgotten wake-up shows.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use futures::channel::oneshot;
use milena_proto::key::{Key, KeyRef};
use milena_storage::{Cause, Condition, Entry, Error, Found, Operation, Put, Tier, Timestamp, Version};

/// The store. Answers at once unless told to hold.
#[derive(Clone, Default)]
pub(crate) struct Script(Rc<RefCell<Scene>>);

#[derive(Default)]
struct Scene {
    objects: HashMap<Key, Entry>,
    held_gets: HashSet<Key>,
    held_writes: HashSet<Key>,
    holds_all: bool,
    in_the_air: Vec<Call>,
    get_count: usize,
    write_count: usize,
}

/// A request that the store has not answered.
struct Call {
    key: Key,
    asked: Asked,
    /// What the store will say, once it has done the work.
    done: Option<Told>,
    answer: oneshot::Sender<Told>,
}

#[derive(Clone)]
enum Asked {
    Get { known: Option<Version>, now: Timestamp },
    Put(Put),
    Delete { condition: Condition },
}

#[derive(Clone)]
enum Told {
    Found(Result<Found, Error>),
    Written(Result<Version, Error>),
}

pub(crate) fn key(name: &str) -> Key {
    KeyRef::parse(b"default", name.as_bytes()).unwrap().to_key()
}

/// Every value has its own version, which follows from it.
pub(crate) fn version_of(value: &[u8]) -> Version {
    let shown = &value[..value.len().min(16)];
    Version::new(Bytes::from(format!("v{}-{}", value.len(), shown.escape_ascii()))).unwrap()
}

pub(crate) fn entry(value: &str) -> Entry {
    let value = Bytes::copy_from_slice(value.as_bytes());
    Entry { version: version_of(&value), value, expires: None }
}

impl Scene {
    fn work(&mut self, key: &Key, asked: &Asked) -> Told {
        let current = self.objects.get(key).cloned();
        match asked {
            Asked::Get { known, now } => Told::Found(Ok(match current {
                Some(entry) if entry.is_expired(*now) => Found::Absent,
                Some(entry) if Some(&entry.version) == known.as_ref() => Found::Unchanged,
                Some(entry) => Found::Entry(entry),
                None => Found::Absent,
            })),
            Asked::Put(Put { value, expires, condition }) => {
                if let Some(error) = broken(condition, current.as_ref(), Operation::Put) {
                    return Told::Written(Err(error));
                }
                let entry = Entry { value: value.clone(), version: version_of(value), expires: *expires };
                self.objects.insert(key.clone(), entry.clone());
                Told::Written(Ok(entry.version))
            }
            Asked::Delete { condition } => {
                if let Some(error) = broken(condition, current.as_ref(), Operation::Delete) {
                    return Told::Written(Err(error));
                }
                self.objects.remove(key);
                Told::Written(Ok(version_of(b"deleted")))
            }
        }
    }

    fn is_held(&self, key: &Key, asked: &Asked) -> bool {
        self.holds_all
            || match asked {
                Asked::Get { .. } => self.held_gets.contains(key),
                Asked::Put(_) | Asked::Delete { .. } => self.held_writes.contains(key),
            }
    }
}

fn broken(condition: &Condition, current: Option<&Entry>, operation: Operation) -> Option<Error> {
    let cause = match condition {
        Condition::IfVersion(version) if current.map(|entry| &entry.version) != Some(version) => Cause::VersionMismatch,
        Condition::IfAbsent if current.is_some() => Cause::AlreadyExists,
        Condition::Always | Condition::IfVersion(_) | Condition::IfAbsent => return None,
    };
    Some(Error { operation, cause })
}

impl Script {
    fn call(&self, key: &Key, asked: Asked) -> impl Future<Output = Told> + 'static {
        let mut scene = self.0.borrow_mut();
        match asked {
            Asked::Get { .. } => scene.get_count += 1,
            Asked::Put(_) | Asked::Delete { .. } => scene.write_count += 1,
        }
        let (answer, told) = oneshot::channel();
        if scene.is_held(key, &asked) {
            scene.in_the_air.push(Call { key: key.clone(), asked, done: None, answer });
        } else {
            let _ = answer.send(scene.work(key, &asked));
        }
        async move { told.await.expect("the script answers every call") }
    }

    pub(crate) fn set(&self, name: &str, value: &str) {
        self.set_entry(name, entry(value));
    }

    pub(crate) fn set_entry(&self, name: &str, entry: Entry) {
        self.0.borrow_mut().objects.insert(key(name), entry);
    }

    pub(crate) fn remove(&self, name: &str) {
        self.0.borrow_mut().objects.remove(&key(name));
    }

    pub(crate) fn has(&self, name: &str) -> Option<Bytes> {
        self.0.borrow().objects.get(&key(name)).map(|entry| entry.value.clone())
    }

    /// GETs of this key hang in the air from now on.
    pub(crate) fn hold_get(&self, name: &str) {
        self.0.borrow_mut().held_gets.insert(key(name));
    }

    /// PUTs and DELETEs of this key hang in the air from now on.
    pub(crate) fn hold_write(&self, name: &str) {
        self.0.borrow_mut().held_writes.insert(key(name));
    }

    /// Everything hangs in the air from now on.
    pub(crate) fn hold_all(&self) {
        self.0.borrow_mut().holds_all = true;
    }

    fn take(&self, name: &str, is_get: bool) -> Call {
        let mut scene = self.0.borrow_mut();
        let name = key(name);
        let matches = |call: &Call| call.key == name && matches!(call.asked, Asked::Get { .. }) == is_get;
        let index = scene.in_the_air.iter().position(matches).expect("nothing of that kind is in the air");
        scene.in_the_air.remove(index)
    }

    /// Answers the oldest GET with this value, whatever the store has.
    pub(crate) fn release_get(&self, name: &str, value: Option<&str>) {
        let found = value.map_or(Found::Absent, |value| Found::Entry(entry(value)));
        let _ = self.take(name, true).answer.send(Told::Found(Ok(found)));
    }

    /// Answers the oldest GET with what the store has now.
    pub(crate) fn release_get_as_it_is(&self, name: &str) {
        let call = self.take(name, true);
        let told = self.0.borrow_mut().work(&call.key, &call.asked);
        let _ = call.answer.send(told);
    }

    pub(crate) fn fail_get(&self, name: &str, cause: Cause) {
        let _ = self.take(name, true).answer.send(Told::Found(Err(Error { operation: Operation::Get, cause })));
    }

    /// Does the oldest write and says so.
    pub(crate) fn release_write(&self, name: &str) {
        let call = self.take(name, false);
        let told = self.0.borrow_mut().work(&call.key, &call.asked);
        let _ = call.answer.send(told);
    }

    /// Does not do the oldest write, and says why.
    pub(crate) fn fail_write(&self, name: &str, cause: Cause) {
        let _ = self.take(name, false).answer.send(Told::Written(Err(Error { operation: Operation::Put, cause })));
    }

    /// Does the oldest write, and its answer is lost.
    pub(crate) fn lose_write(&self, name: &str) {
        let call = self.take(name, false);
        self.0.borrow_mut().work(&call.key, &call.asked);
        let cause = Cause::OutcomeUnknown("the answer was lost".into());
        let _ = call.answer.send(Told::Written(Err(Error { operation: Operation::Put, cause })));
    }

    pub(crate) fn get_count(&self) -> usize {
        self.0.borrow().get_count
    }

    pub(crate) fn write_count(&self) -> usize {
        self.0.borrow().write_count
    }

    /// Requests that nobody has answered.
    pub(crate) fn in_the_air_count(&self) -> usize {
        self.0.borrow().in_the_air.len()
    }

    /// Lets the store do the work of one request of those in the air, without answering. `false` if it was done before.
    pub(crate) fn work_on(&self, index: usize) -> bool {
        let mut scene = self.0.borrow_mut();
        let Call { key, asked, done: None, .. } = &scene.in_the_air[index] else { return false };
        let (key, asked) = (key.clone(), asked.clone());
        let told = scene.work(&key, &asked);
        scene.in_the_air[index].done = Some(told);
        true
    }

    /// Answers one request of those in the air: with what was done, or that nothing was done.
    pub(crate) fn answer(&self, index: usize, is_lost: bool) {
        let mut call = self.0.borrow_mut().in_the_air.remove(index);
        let is_get = matches!(call.asked, Asked::Get { .. });
        let operation = if is_get { Operation::Get } else { Operation::Put };
        let told = match call.done.take() {
            Some(Told::Written(Ok(_))) if is_lost => {
                Told::Written(Err(Error { operation, cause: Cause::OutcomeUnknown("the answer was lost".into()) }))
            }
            Some(told) => told,
            None => {
                let error = Error { operation, cause: Cause::Unavailable("the store is away".into()) };
                if is_get { Told::Found(Err(error)) } else { Told::Written(Err(error)) }
            }
        };
        let _ = call.answer.send(told);
    }

    /// Holds nothing any more, and answers what is in the air.
    pub(crate) fn answer_all(&self) {
        self.0.borrow_mut().holds_all = false;
        while self.in_the_air_count() > 0 {
            self.work_on(0);
            self.answer(0, false);
        }
    }

    /// Forgets the requests whose callers have gone: they are not going to happen later.
    pub(crate) fn drop_abandoned(&self) {
        self.0.borrow_mut().in_the_air.retain(|call| !call.answer.is_canceled());
    }
}

impl Tier for Script {
    fn get(
        &self,
        key: &Key,
        known: Option<&Version>,
        now: Timestamp,
    ) -> impl Future<Output = Result<Found, Error>> + 'static {
        let call = self.call(key, Asked::Get { known: known.cloned(), now });
        async move {
            match call.await {
                Told::Found(found) => found,
                Told::Written(_) => unreachable!(),
            }
        }
    }

    fn put(&self, key: &Key, put: Put) -> impl Future<Output = Result<Version, Error>> + 'static {
        let call = self.call(key, Asked::Put(put));
        async move {
            match call.await {
                Told::Written(written) => written,
                Told::Found(_) => unreachable!(),
            }
        }
    }

    fn delete(&self, key: &Key, condition: Condition) -> impl Future<Output = Result<(), Error>> + 'static {
        let call = self.call(key, Asked::Delete { condition });
        async move {
            match call.await {
                Told::Written(written) => written.map(|_| ()),
                Told::Found(_) => unreachable!(),
            }
        }
    }
}

/// A future that was started: polled once then, and afterwards only when it was woken.
pub(crate) struct Started<A> {
    future: Pin<Box<dyn Future<Output = A>>>,
    bell: Arc<Bell>,
    answer: Option<A>,
}

#[derive(Default)]
struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

impl<A> Started<A> {
    pub(crate) fn new(future: impl Future<Output = A> + 'static) -> Self {
        let bell = Arc::new(Bell(AtomicBool::new(true)));
        let mut started = Self { future: Box::pin(future), bell, answer: None };
        started.is_done();
        started
    }

    /// Whether there is an answer by now.
    pub(crate) fn is_done(&mut self) -> bool {
        while self.answer.is_none() && self.bell.0.swap(false, SeqCst) {
            let waker = Waker::from(Arc::clone(&self.bell));
            if let Poll::Ready(answer) = self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
                self.answer = Some(answer);
            }
        }
        self.answer.is_some()
    }

    /// The answer, which must be there.
    pub(crate) fn finish(mut self) -> A {
        assert!(self.is_done(), "it waits for something that nobody does");
        self.answer.unwrap()
    }
}

/// splitmix64: enough for tests, and the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        milena_proto::placement::mix64(self.0)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}
