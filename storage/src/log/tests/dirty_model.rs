//! A node in write mode `back`, as far as a log knows: it changes the log, uploads to a store, writes through where
//! nothing waits, and is killed. What it answers is never older than what it has acknowledged, and when all is uploaded the
//! store has exactly that.
//!
//! ```text
//!   World   keys: what each was changed to, from what surely survives on      log ── given ──▶ store
//!           answer: the log's if the store does not have it or the copy is believed, else the store's
//! ```

use super::{dirty::bytes_of_dirty_records, *};
use crate::log::{Change, Debt, DebtError};

/// Uploads at the same time.
const GIVEN_MAX: usize = 4;

/// A value, or that there is none.
type Value = Option<Bytes>;

/// What a key was changed to, oldest first. The first survives any crash.
struct Changes(Vec<(Option<Position>, Value)>);

struct Upload {
    debt: Debt,
    name: String,
    value: Value,
}

struct World {
    bench: Bench,
    keys: HashMap<String, Changes>,
    store: HashMap<String, Bytes>,
    given: Vec<Upload>,
    count: u64,
    with_faults: bool,
    context: String,
}

impl World {
    fn new(bench: Bench, key_count: u64, with_faults: bool) -> Self {
        let keys = (0..key_count).map(|n| (format!("k{n}"), Changes(vec![(None, None)]))).collect();
        let (store, given) = (HashMap::new(), Vec::new());
        Self { bench, keys, store, given, count: 0, with_faults, context: String::new() }
    }

    fn new_value(&mut self, len: u64) -> Bytes {
        self.count += 1;
        let mut value = format!("{:x}.", self.count).into_bytes();
        value.resize(value.len() + len as usize, self.count as u8);
        value.into()
    }

    fn newest(&self, name: &str) -> Value {
        self.keys[name].0.last().expect("never empty").1.clone()
    }

    /// Changes a key in the log alone. What is refused has changed nothing.
    fn change(&mut self, name: &str, value: Value) -> Option<Position> {
        let (log, now) = (Rc::clone(&self.bench.log), self.bench.now);
        let done = match value.clone() {
            Some(value) => {
                let entry = Entry { value, ..entry(b"", "v") };
                self.bench.finish(log.put_dirty(key(name), entry, None, now))
            }
            None => self.bench.finish(log.delete_dirty(key(name), now)),
        };
        match done {
            Ok(position) => {
                self.keys.get_mut(name).unwrap().0.push((Some(position), value));
                Some(position)
            }
            Err(LogError::DirtyFull) => None,
            Err(LogError::Full | LogError::Offline | LogError::Unreadable) if self.with_faults => None,
            Err(error) => panic!("{}: {name}: {error:?}", self.context),
        }
    }

    fn wait_until_durable(&mut self, position: Position) {
        match self.bench.durable(position) {
            Ok(()) => self.keys.values_mut().for_each(|changes| changes.durable(position)),
            Err(_) if self.with_faults => {}
            Err(error) => panic!("{}: {error}", self.context),
        }
    }

    /// Writes to the store, and then tells the log; only where nothing waits.
    fn write_through(&mut self, name: &str, value: Value) {
        if self.bench.log.has_debt(key(name).hash()) {
            return;
        }
        let done = match value.clone() {
            Some(value) => {
                self.store.insert(name.to_owned(), value.clone());
                self.bench.put(name, &value)
            }
            None => {
                self.store.remove(name);
                self.bench.delete(name)
            }
        };
        if done.is_err() {
            assert!(self.with_faults, "{}: {done:?}", self.context);
            self.bench.log.forget(key(name).as_ref());
        }
        self.keys.get_mut(name).unwrap().0 = vec![(None, value)];
    }

    fn give(&mut self) {
        if self.given.len() == GIVEN_MAX {
            return;
        }
        let Some(debt) = self.bench.log.next_debt() else { return };
        let log = Rc::clone(&self.bench.log);
        let read = self.bench.finish(log.read_debt(&debt));
        match read {
            Ok((key, change)) => {
                let name = String::from_utf8(key.name().to_vec()).unwrap();
                let value = match change {
                    Change::Put(entry) => Some(entry.value),
                    Change::Delete => None,
                };
                assert_eq!(value, self.newest(&name), "{}: {name} is given out", self.context);
                self.given.push(Upload { debt, name, value });
            }
            Err(DebtError::Device(_) | DebtError::Corrupt) if self.with_faults => self.bench.log.debt_failed(debt),
            Err(error) => panic!("{}: {error}", self.context),
        }
    }

    /// The upload arrives.
    fn arrive(&mut self, index: usize) {
        let Upload { name, value, .. } = &self.given[index];
        match value {
            Some(value) => drop(self.store.insert(name.clone(), value.clone())),
            None => drop(self.store.remove(name)),
        }
    }

    fn done(&mut self, index: usize) {
        self.arrive(index);
        let Upload { debt, name, value } = self.given.swap_remove(index);
        let position = debt.position();
        match self.bench.finish(Rc::clone(&self.bench.log).debt_done(debt)) {
            Ok(()) if self.newest(&name) == value => self.keys.get_mut(&name).unwrap().durable(position),
            Ok(()) => {}
            Err(LogError::Full | LogError::Offline) if self.with_faults => {}
            Err(error) => panic!("{}: {error}", self.context),
        }
    }

    fn failed(&mut self, index: usize) {
        self.bench.log.debt_failed(self.given.swap_remove(index).debt);
    }

    /// What the node would say; `None` if it could not.
    fn answer(&mut self, name: &str) -> Option<Value> {
        match self.bench.known(name) {
            Known::Copy(copy) if copy.is_dirty || copy.believed_until.is_none() => Some(Some(copy.entry.value)),
            Known::Deleted => Some(None),
            Known::Unreadable => {
                assert!(self.with_faults, "{}: {name} cannot be read", self.context);
                None
            }
            Known::Copy(_) | Known::Nothing => Some(self.store.get(name).cloned()),
        }
    }

    fn check(&mut self, name: &str) {
        let answer = self.answer(name);
        let is_right = answer.as_ref().is_none_or(|value| *value == self.newest(name));
        assert!(is_right, "{}: {name} is {answer:?}, and should be {:?}", self.context, self.newest(name));
    }

    fn check_counts(&self) {
        check_counts(&self.bench, &self.context);
        let figures = self.bench.log.figures();
        assert!(figures.dirty_bytes <= figures.dirty_bytes_max, "{}: {figures:?}", self.context);
        assert_eq!(bytes_of_dirty_records(&self.bench), figures.dirty_bytes, "{}", self.context);
    }

    /// A new process on what is left. What it finds of each key is from now on what the key is.
    fn restart(mut self, restart: impl FnOnce(Bench) -> Bench) -> Self {
        self.given.clear();
        self.bench.device.fail_no_more();
        self.bench = restart(self.bench);
        self.bench.log.doubt_all();
        self.check_counts();
        let names: Vec<String> = self.keys.keys().cloned().collect();
        for name in names {
            let answer = self.answer(&name).expect("no fault");
            let changes = self.keys.get_mut(&name).unwrap();
            let is_any = changes.0.iter().any(|(_, value)| *value == answer);
            assert!(is_any, "{}: {name} is {answer:?}, and was {:?}", self.context, changes.0);
            changes.0 = vec![(None, answer)];
        }
        self
    }

    /// Uploads everything, after which the store is all there is.
    fn drain(&mut self) {
        while !self.given.is_empty() {
            self.done(0);
        }
        loop {
            self.give();
            if self.given.is_empty() {
                break;
            }
            self.done(0);
        }
        assert_eq!(self.bench.log.figures().dirty_records, 0, "{}", self.context);
        for (name, changes) in &self.keys {
            let newest = &changes.0.last().unwrap().1;
            assert_eq!(self.store.get(name), newest.as_ref(), "{}: {name} in the store", self.context);
        }
        self.check_counts();
    }
}

impl Changes {
    fn durable(&mut self, upto: Position) {
        let is_durable = |(position, _): &(Option<Position>, _)| position.is_some_and(|position| position <= upto);
        if let Some(index) = self.0.iter().rposition(is_durable) {
            self.0.drain(..index);
        }
    }
}

fn model_run(seed: u64, steps: u64, with_faults: bool) {
    const KEYS: u64 = 60;
    let mut random = Random(seed ^ 0xD1127);
    let segment_count = 16 + random.below(12) as usize;
    let mut world = World::new(Bench::with_seed(segment_count, seed), KEYS, with_faults);
    let mut last = None;
    for step in 0..steps {
        world.context = format!("MILENA_SEED={seed} step {step}");
        if step % 100 == 0 {
            world.check_counts();
        }
        let name = format!("k{}", random.below(KEYS));
        let len = if random.below(8) == 0 { random.below(7000) } else { random.below(400) };
        let value = (random.below(4) > 0).then(|| world.new_value(len));
        let picked = random.below(world.given.len().max(1) as u64) as usize;
        match random.below(1000) {
            0..250 => last = world.change(&name, value).or(last),
            250..350 => {
                // What makes room go round: nobody asks for it again.
                let filler = world.new_value(random.below(3000));
                let done = world.bench.put(&format!("filler{step}"), &filler);
                assert!(with_faults || done.is_ok(), "{}: {done:?}", world.context);
            }
            350..400 => world.write_through(&name, value),
            400..700 => world.check(&name),
            700..820 => world.give(),
            820..830 if !world.given.is_empty() => world.arrive(picked),
            830..930 if !world.given.is_empty() => world.done(picked),
            930..950 if !world.given.is_empty() => world.failed(picked),
            950..970 => last.into_iter().for_each(|last| world.wait_until_durable(last)),
            970..975 => world.bench.log.forget(key(&name).as_ref()),
            975..980 => world.bench.log.doubt_all(),
            980..985 if with_faults => {
                let fault = [Fault::Error, Fault::NoSpace, Fault::Short][random.below(3) as usize];
                let device = &world.bench.device;
                device.fail(device.calls() + random.below(20), 1 + random.below(3), fault);
            }
            985..988 => {
                world.bench.device.set_resident(random.below(2) == 0);
                world.bench.device.set_delay_max(random.below(8));
            }
            988..990 => (world, last) = (world.restart(Bench::restarted), None),
            990..992 => {
                world.bench.device.lose_power();
                (world, last) = (world.restart(Bench::restarted), None);
            }
            992 => {
                world.bench.device.fail_no_more();
                world.bench.stop();
                if !world.bench.log.state.borrow().is_offline() {
                    world.keys.values_mut().for_each(|changes| drop(changes.0.drain(..changes.0.len() - 1)));
                }
                (world, last) = (
                    world.restart(|bench| {
                        let segment_count = bench.segment_count();
                        bench.restarted_from_index(segment_count)
                    }),
                    None,
                );
            }
            _ => {}
        }
    }
    world.context = format!("MILENA_SEED={seed} at the end");
    if with_faults {
        world = world.restart(Bench::restarted);
    }
    world.drain();
    let mut world = world.restart(Bench::restarted);
    world.drain();
}

#[test]
fn a_node_that_uploads_later_and_is_killed_agrees_with_the_model() {
    for seed in seeds(20) {
        model_run(seed, 4_000, false);
    }
}

#[test]
fn a_node_that_uploads_later_on_a_disk_with_faults_agrees_with_the_model() {
    for seed in seeds(20) {
        model_run(seed, 4_000, true);
    }
}

/// A fixed course, with `fault` at call `number`. Answers how many calls there were.
fn course_with_fault(number: u64, fault: Fault) -> u64 {
    let mut world = World::new(Bench::new(10), 12, true);
    world.bench.device.fail(number, 1, fault);
    for step in 0..110 {
        world.context = format!("{fault:?} at call {number}, step {step}");
        let name = format!("k{}", step * 5 % 12);
        let value = (step % 4 > 0).then(|| world.new_value(1500 + step));
        let position = world.change(&name, value).filter(|_| step % 3 == 0);
        position.into_iter().for_each(|position| world.wait_until_durable(position));
        let filler = world.new_value(6000);
        let _ = world.bench.put(&format!("filler{step}"), &filler);
        if step % 5 == 0 {
            world.give();
        } else if step % 5 == 3 && !world.given.is_empty() {
            world.done(0);
        }
        world.check(&name);
    }
    let calls = world.bench.device.calls();
    world.bench.device.lose_power();
    let mut world = world.restart(Bench::restarted);
    world.drain();
    calls
}

#[test]
fn a_fault_at_any_call_loses_no_change_that_was_acknowledged() {
    let calls = course_with_fault(u64::MAX, Fault::Error);
    assert!(calls > 150, "{calls}");
    for fault in [Fault::Error, Fault::NoSpace, Fault::Short] {
        for number in 0..calls {
            course_with_fault(number, fault);
        }
    }
}
