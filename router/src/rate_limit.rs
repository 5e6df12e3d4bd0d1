//! How many requests a second are let in: all together, for each client, and for each bucket. Pure.
//!
//! The generic cell rate algorithm (ITU-T I.371, annex A; its "virtual scheduling" form): one number for each counted
//! thing, the *theoretical arrival time* of its next request if they came evenly spaced.
//! ```text
//!   let in        now ≥ theirs - tolerance        theirs = max(theirs, now) + 1 / rate
//!   turned away   otherwise                       nothing changes; come back when it holds
//! ```
//! A batch of n keys is n requests that come at once, and is let in if the last of them would be. One that is larger than a
//! burst, which then never would, is let in when nothing is owed, and all of it is owed from then on.
//!
//! The tolerance is one second, less one interval: a rate of 100 lets a burst of 100 in, and then 100 a second, evenly.
//!
//! Each core has an equal share of every rate and counts alone, so with one core a limit is exact. With several, a client
//! that sends everything over one connection meets one core and thus one share.

use std::{
    borrow::Borrow,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use smallvec::SmallVec;

/// Clients, or buckets, that one core remembers. Whoever was not heard of for longest is forgotten first, and forgotten
/// means let in: the table is a bound on memory, not a defence against a million addresses.
pub const REMEMBERED_MAX: usize = 16_384;

/// Highest rate that can be set, in requests per second.
pub const RATE_MAX: u64 = 1_000_000_000;

const SECOND_NS: u64 = 1_000_000_000;

/// What a core lets in.
#[derive(Debug)]
pub struct RateLimits {
    begin: Instant,
    router: Option<(Rate, TheoreticalArrival)>,
    clients: Option<(Rate, Recent<IpAddr>)>,
    buckets: Option<(Rate, Recent<String>)>,
}

/// The limits as they are set, in requests per second; 0 = none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateSettings {
    /// For all requests together.
    pub router: u64,
    /// For each client address.
    pub client: u64,
    /// For each bucket.
    pub bucket: u64,
}

/// Which limit turned a request away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The one for all requests.
    Router,
    /// The client's.
    Client,
    /// The bucket's.
    Bucket,
}

/// A request that is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    /// By which limit; the first, where it is several.
    pub by: By,
    /// When all of them would let it in, if nothing else comes.
    pub wait: Duration,
}

impl By {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Router, Self::Client, Self::Bucket];

    /// As on the label of a metric.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Client => "client",
            Self::Bucket => "bucket",
        }
    }
}

/// What is asked for: how many requests of which buckets.
pub type Costs<'a> = SmallVec<[(&'a str, u64); 1]>;

/// Nanoseconds since the limits began.
type TheoreticalArrival = u64;

#[derive(Clone, Copy, Debug)]
struct Rate {
    interval_ns: u64,
    tolerance_ns: u64,
}

impl Rate {
    /// One core's share of `per_second`; `None` when that is 0.
    fn share(per_second: u64, core_count: usize) -> Option<Self> {
        assert!(core_count >= 1);
        assert!(per_second <= RATE_MAX);
        let interval_ns = (SECOND_NS * core_count as u64).checked_div(per_second)?;
        Some(Self { interval_ns, tolerance_ns: SECOND_NS.saturating_sub(interval_ns) })
    }

    /// Whether `count` requests are let in at `now`; if not, after how many nanoseconds they will be.
    fn check(self, theirs: TheoreticalArrival, now: u64, count: u64) -> Result<(), u64> {
        let others_ns = count.saturating_sub(1).saturating_mul(self.interval_ns);
        let early = theirs.saturating_sub(now) + others_ns.min(self.tolerance_ns);
        if early <= self.tolerance_ns { Ok(()) } else { Err(early - self.tolerance_ns) }
    }

    fn next(self, theirs: TheoreticalArrival, now: u64, count: u64) -> TheoreticalArrival {
        theirs.max(now).saturating_add(count.saturating_mul(self.interval_ns))
    }
}

impl RateLimits {
    /// One core's share of the limits.
    #[must_use]
    pub fn new(settings: RateSettings, core_count: usize, now: Instant) -> Self {
        let rate = |per_second| Rate::share(per_second, core_count);
        Self {
            begin: now,
            router: rate(settings.router).map(|rate| (rate, 0)),
            clients: rate(settings.client).map(|rate| (rate, Recent::new())),
            buckets: rate(settings.bucket).map(|rate| (rate, Recent::new())),
        }
    }

    /// Counts what `client` asks for, if every limit lets all of it in; otherwise it costs nothing. O(buckets), and nothing
    /// at all where no limit is set.
    ///
    /// # Errors
    /// Which limit does not, and how long it will not.
    pub fn admit<'a>(
        &mut self,
        client: IpAddr,
        costs: impl FnOnce() -> Costs<'a>,
        now: Instant,
    ) -> Result<(), Limited> {
        if let Self { router: None, clients: None, buckets: None, .. } = self {
            return Ok(());
        }
        let costs = costs();
        let count = costs.iter().map(|(_, count)| count).sum();
        let now = u64::try_from(now.saturating_duration_since(self.begin).as_nanos()).unwrap_or(u64::MAX);
        let client = network(client);

        // All are asked before any is charged.
        let mut refused: Option<(By, u64)> = None;
        let mut ask = |by: By, verdict: Result<(), u64>| {
            if let Err(wait) = verdict {
                let (first, longest) = refused.unwrap_or((by, 0));
                refused = Some((first, longest.max(wait)));
            }
        };
        if let Some((rate, theirs)) = &self.router {
            ask(By::Router, rate.check(*theirs, now, count));
        }
        if let Some((rate, clients)) = &mut self.clients {
            ask(By::Client, rate.check(clients.get(&client), now, count));
        }
        if let Some((rate, buckets)) = &mut self.buckets {
            for (bucket, count) in &costs {
                ask(By::Bucket, rate.check(buckets.get(*bucket), now, *count));
            }
        }
        if let Some((by, wait)) = refused {
            return Err(Limited { by, wait: Duration::from_nanos(wait) });
        }

        if let Some((rate, theirs)) = &mut self.router {
            *theirs = rate.next(*theirs, now, count);
        }
        if let Some((rate, clients)) = &mut self.clients {
            let theirs = clients.get(&client);
            clients.set(&client, rate.next(theirs, now, count));
        }
        if let Some((rate, buckets)) = &mut self.buckets {
            for (bucket, count) in costs {
                let theirs = buckets.get(bucket);
                buckets.set(bucket, rate.next(theirs, now, count));
            }
        }
        Ok(())
    }
}

/// Who counts as one client: an IPv4 address, or an IPv6 network of 64 bits, because who has one address of it has all.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// A bounded table that forgets what was not used for long, in two generations: what is used moves to the young one, and
/// when that is full, it becomes the old one and the old one is gone.
#[derive(Debug)]
struct Recent<K> {
    young: ahash::HashMap<K, TheoreticalArrival>,
    old: ahash::HashMap<K, TheoreticalArrival>,
}

impl<K: Hash + Eq> Recent<K> {
    fn new() -> Self {
        Self { young: ahash::HashMap::default(), old: ahash::HashMap::default() }
    }

    /// What is known of `key`, which counts as a use; 0, which is long ago, for nothing.
    fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> TheoreticalArrival
    where
        K: Borrow<Q>,
    {
        if let Some(theirs) = self.young.get(key) {
            return *theirs;
        }
        let Some((key, theirs)) = self.old.remove_entry(key) else { return 0 };
        self.insert(key, theirs);
        theirs
    }

    fn set<Q: Hash + Eq + ToOwned<Owned = K> + ?Sized>(&mut self, key: &Q, theirs: TheoreticalArrival)
    where
        K: Borrow<Q>,
    {
        match self.young.get_mut(key) {
            Some(known) => *known = theirs,
            None => self.insert(key.to_owned(), theirs),
        }
    }

    fn insert(&mut self, key: K, theirs: TheoreticalArrival) {
        if self.young.len() >= REMEMBERED_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, theirs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Requests are asked for at milliseconds since the begin.
    struct Gate {
        limits: RateLimits,
        begin: Instant,
    }

    fn gate(settings: RateSettings, core_count: usize) -> Gate {
        let begin = Instant::now();
        Gate { limits: RateLimits::new(settings, core_count, begin), begin }
    }

    impl Gate {
        fn ask(&mut self, client: IpAddr, bucket: &str, ms: u64) -> Result<(), Limited> {
            self.ask_many(client, &[(bucket, 1)], ms)
        }

        fn ask_many(&mut self, client: IpAddr, costs: &[(&str, u64)], ms: u64) -> Result<(), Limited> {
            self.limits.admit(client, || costs.iter().copied().collect(), self.begin + Duration::from_millis(ms))
        }

        /// How many of a thousand at once are let in.
        fn burst(&mut self, ms: u64) -> usize {
            (0..1000).filter(|_| self.ask(HERE, "b", ms).is_ok()).count()
        }
    }

    #[test]
    fn a_burst_of_one_second_is_let_in_and_then_the_rate() {
        let mut gate = gate(RateSettings { router: 100, ..Default::default() }, 1);
        assert_eq!(gate.burst(0), 100);
        assert_eq!(gate.burst(10), 1);
        assert_eq!(gate.burst(510), 50);
        assert_eq!(gate.burst(60_000), 100, "a quiet minute saves up one second, not sixty");
    }

    #[test]
    fn over_any_time_no_more_than_the_rate_and_one_burst_come_in() {
        let mut gate = gate(RateSettings { router: 7, ..Default::default() }, 1);
        let let_in = (0..10_000).filter(|ms| gate.ask(HERE, "b", *ms).is_ok()).count();
        assert!((70..=77).contains(&let_in), "{let_in} in ten seconds");
    }

    #[test]
    fn a_rate_below_one_a_second_for_a_core_still_lets_one_in() {
        let mut gate = gate(RateSettings { router: 1, ..Default::default() }, 4);
        assert_eq!(gate.burst(0), 1);
        assert_eq!(gate.burst(3_999), 0);
        assert_eq!(gate.burst(4_000), 1);
    }

    #[test]
    fn cores_share_a_rate() {
        let mut gate = gate(RateSettings { router: 100, ..Default::default() }, 4);
        assert_eq!(gate.burst(0), 25);
    }

    #[test]
    fn who_is_turned_away_is_told_when_to_come_back_and_then_let_in() {
        let mut gate = gate(RateSettings { router: 10, ..Default::default() }, 1);
        gate.burst(0);
        let limited = gate.ask(HERE, "b", 30).unwrap_err();
        assert_eq!(limited, Limited { by: By::Router, wait: Duration::from_millis(70) });
        assert!(gate.ask(HERE, "b", 99).is_err());
        assert!(gate.ask(HERE, "b", 100).is_ok());
    }

    #[test]
    fn clients_and_buckets_are_counted_apart() {
        let other = IpAddr::from([10, 0, 0, 1]);
        let mut clients = gate(RateSettings { client: 5, ..Default::default() }, 1);
        assert_eq!(clients.burst(0), 5);
        assert!(clients.ask(other, "b", 0).is_ok());
        assert_eq!(clients.ask(HERE, "other", 0).unwrap_err().by, By::Client);

        let mut buckets = gate(RateSettings { bucket: 5, ..Default::default() }, 1);
        assert_eq!(buckets.burst(0), 5);
        assert!(buckets.ask(HERE, "other", 0).is_ok());
        assert_eq!(buckets.ask(other, "b", 0).unwrap_err().by, By::Bucket);
    }

    #[test]
    fn what_one_limit_turns_away_costs_nothing_at_the_others() {
        let mut gate = gate(RateSettings { router: 10, client: 0, bucket: 1 }, 1);
        assert_eq!(gate.burst(0), 1);
        for bucket in 0..9 {
            assert!(gate.ask(HERE, &format!("b{bucket}"), 0).is_ok());
        }
        assert_eq!(gate.ask(HERE, "b", 0).unwrap_err().by, By::Router);
    }

    #[test]
    fn one_network_of_ipv6_is_one_client_and_a_mapped_address_is_its_ipv4() {
        let mut gate = gate(RateSettings { client: 1, ..Default::default() }, 1);
        assert!(gate.ask("2001:db8::1".parse().unwrap(), "b", 0).is_ok());
        assert!(gate.ask("2001:db8::2".parse().unwrap(), "b", 0).is_err());
        assert!(gate.ask("2001:db8:0:1::2".parse().unwrap(), "b", 0).is_ok());
        assert!(gate.ask("::ffff:10.0.0.1".parse().unwrap(), "b", 0).is_ok());
        assert!(gate.ask("10.0.0.1".parse().unwrap(), "b", 0).is_err());
    }

    #[test]
    fn a_flood_of_clients_is_forgotten_and_one_that_keeps_asking_is_not() {
        let mut gate = gate(RateSettings { client: 1, ..Default::default() }, 1);
        gate.ask(HERE, "b", 0).unwrap();
        for client in 0..200_000_u32 {
            assert!(gate.ask(HERE, "b", 0).is_err());
            gate.ask(IpAddr::from(client.to_be_bytes()), "b", 0).unwrap();
        }
        let (_, clients) = gate.limits.clients.as_ref().unwrap();
        assert!(clients.young.len() + clients.old.len() <= REMEMBERED_MAX);
    }

    #[test]
    fn a_batch_costs_as_much_as_its_keys_would_one_by_one() {
        let mut gate = gate(RateSettings { router: 100, ..Default::default() }, 1);
        assert!(gate.ask_many(HERE, &[("b", 60)], 0).is_ok());
        let limited = gate.ask_many(HERE, &[("b", 60)], 0).unwrap_err();
        assert_eq!(limited.wait, Duration::from_millis(200));
        assert_eq!(gate.burst(0), 40, "what was turned away cost nothing");
    }

    #[test]
    fn a_batch_larger_than_a_burst_waits_until_nothing_is_owed_and_then_owes_all_of_it() {
        let mut gate = gate(RateSettings { router: 10, ..Default::default() }, 1);
        gate.ask(HERE, "b", 0).unwrap();
        assert_eq!(gate.ask_many(HERE, &[("b", 50)], 0).unwrap_err().wait, Duration::from_millis(100));
        gate.ask_many(HERE, &[("b", 50)], 100).unwrap();
        assert_eq!(gate.ask(HERE, "b", 100).unwrap_err().wait, Duration::from_millis(4_100));
    }

    #[test]
    fn a_batch_of_several_buckets_costs_each_its_own() {
        let mut gate = gate(RateSettings { bucket: 10, ..Default::default() }, 1);
        gate.ask_many(HERE, &[("a", 9), ("b", 2)], 0).unwrap();
        assert_eq!(gate.ask_many(HERE, &[("a", 2), ("b", 1)], 0).unwrap_err().by, By::Bucket);
        gate.ask_many(HERE, &[("a", 1), ("b", 8)], 0).unwrap();
    }

    #[test]
    fn without_limits_everything_is_let_in() {
        assert_eq!(gate(RateSettings::default(), 3).burst(0), 1000);
    }
}
