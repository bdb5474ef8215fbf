//! Helpers of the stress tests: run time, random choices, and a ledger against which readers are checked.

use crate::common::{Rows, mix, unmix};
use aif_core::cache::{CacheConfig, EmbeddingCache, Stats};
use aif_core::error::{Error, Result};
use aif_core::sync::{AtomicBool, AtomicU64, Ordering};
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// More threads than cores, so that they are preempted anywhere.
pub const WRITERS: u64 = 3;
pub const READERS: u64 = 4;

/// Returns a number that is unique to `writer`.
pub fn own(number: u64, writer: u64) -> u64 {
    number / WRITERS * WRITERS + writer
}

/// Returns keys that start at eight buckets of any table only, and of which every second pair shares one
/// tag: long runs, full of tombstones, in which slots look alike.
pub fn crowded(number: u64) -> u64 {
    unmix((number & 7) << 61 | number << 33 | number & 1)
}

/// Returns the time for which a stress test runs: `AIF_STRESS_SECONDS`, else a fraction of a second.
pub fn time() -> Duration {
    std::env::var("AIF_STRESS_SECONDS").map_or(Duration::from_millis(300), |text| {
        let seconds = text.parse::<f64>().ok().filter(|seconds| *seconds > 0.0);
        Duration::from_secs_f64(seconds.unwrap_or_else(|| {
            panic!("AIF_STRESS_SECONDS is {text:?}; give a number of seconds above 0")
        }))
    })
}

/// Returns whether a test continues: for its time, and on a busy machine up to a minute longer, until
/// `enough` has happened for its checks to be meaningful.
pub fn lasts(until: Instant, enough: impl Fn() -> bool) -> bool {
    let now = Instant::now();
    now < until || (now < until + Duration::from_secs(60) && !enough())
}

/// Reproducible random numbers of a thread.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x9e37_79b9_7f4a_7c15))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Returns between one and `most` numbers below `end`.
    pub fn some_below(&mut self, end: u64, most: u64) -> Vec<u64> {
        (0..=self.below(most)).map(|_| self.below(end)).collect()
    }
}

/// Last write of a key's only writer: the version, or the one that marks a deletion.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State(u64);

impl State {
    fn written(version: u64) -> Self {
        Self(version << 1 | 1)
    }

    fn deleted(version: u64) -> Self {
        Self(version << 1)
    }

    fn version(self) -> u64 {
        self.0 >> 1
    }

    fn is_written(self) -> bool {
        self.0 & 1 == 1
    }
}

/// Role of each of several threads, by its number.
type Work<'a> = &'a (dyn Fn(u64) + Sync);

/// Cache, its rows, and for each key the last write that its only writer began and finished. A reader of a
/// key may not see less than was finished before its look-up, nor more than was begun after it.
///
/// Keys are numbered: `name` gives the key of a number.
pub struct Stage {
    pub cache: EmbeddingCache,
    pub rows: Rows,
    pub name: fn(u64) -> u64,
    begun: Vec<AtomicU64>,
    finished: Vec<AtomicU64>,
    until: Instant,
    enough: fn(&Stats) -> bool,
    stopped: AtomicBool,
    /// Rows that readers found.
    seen: AtomicU64,
}

impl Stage {
    pub fn new(
        rows: Rows,
        config: CacheConfig,
        keys: u64,
        name: fn(u64) -> u64,
        until: Instant,
        enough: fn(&Stats) -> bool,
    ) -> Self {
        // Known, so that `unmix` makes keys that collide.
        let config = CacheConfig {
            hash_seed: Some(0),
            ..config
        };
        let states = || (0..keys).map(|_| AtomicU64::new(0)).collect();
        Self {
            cache: EmbeddingCache::new(rows.layout(), config).unwrap(),
            rows,
            name,
            begun: states(),
            finished: states(),
            until,
            enough,
            stopped: AtomicBool::new(false),
            seen: AtomicU64::new(0),
        }
    }

    pub fn keys(&self) -> u64 {
        self.begun.len() as u64
    }

    pub fn goes_on(&self) -> bool {
        !self.stopped.load(Ordering::Relaxed)
            && lasts(self.until, || {
                self.readers_met_rows() && (self.enough)(&self.cache.stats())
            })
    }

    pub fn readers_met_rows(&self) -> bool {
        self.seen.load(Ordering::Relaxed) > 1000
    }

    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Starts the threads together, each with its number, and waits for them. A panic in one stops all.
    pub fn run(&self, threads: &[(&str, u64, Work<'_>)]) {
        struct StopOnPanic<'a>(&'a Stage);
        impl Drop for StopOnPanic<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.stop();
                }
            }
        }
        let count = threads.iter().map(|(_, count, _)| *count).sum::<u64>();
        let barrier = Barrier::new(count as usize);
        std::thread::scope(|scope| {
            for &(name, count, work) in threads {
                for number in 0..count {
                    let barrier = &barrier;
                    std::thread::Builder::new()
                        .name(format!("{name} {number}"))
                        .spawn_scoped(scope, move || {
                            let _stop = StopOnPanic(self);
                            barrier.wait();
                            work(number);
                        })
                        .unwrap();
                }
            }
        });
    }

    /// Only writer of some keys.
    pub fn writer(&self) -> Writer<'_> {
        Writer {
            stage: self,
            version: 0,
        }
    }

    /// Reader of all keys. One without the ledger shares nothing with the writers but the cache, so that
    /// nothing else orders the two.
    pub fn reader(&self, looks: bool) -> Reader<'_> {
        Reader {
            stage: self,
            looks,
            latest: vec![0; self.begun.len()],
        }
    }

    /// Returns the range of versions that a row of this number may have.
    fn state(states: &[AtomicU64], number: u64) -> State {
        State(states[number as usize].load(Ordering::SeqCst))
    }

    /// Checks, with all threads gone, that every listed key has the row that was written last, and no other
    /// key has one.
    pub fn check_rows(&self) {
        let numbers: Vec<u64> = (0..self.keys()).collect();
        let names: Vec<u64> = numbers.iter().map(|&number| (self.name)(number)).collect();
        let listed = self.cache.keys().unwrap();
        let mut found = 0;
        for (&number, version) in numbers.iter().zip(self.rows.gather(&self.cache, &names)) {
            let Some(version) = version else { continue };
            found += 1;
            let (least, most) = (
                Self::state(&self.finished, number),
                Self::state(&self.begun, number),
            );
            assert!(
                (least.version()..=most.version()).contains(&version)
                    && (least != most || least.is_written()),
                "number {number} has version {version}, not one of {}..={}",
                least.version(),
                most.version()
            );
        }
        assert_eq!(
            listed.len(),
            found,
            "keys that are listed have rows, and no others"
        );
    }
}

/// Writer of keys that no other thread writes; it keeps the ledger.
pub struct Writer<'a> {
    stage: &'a Stage,
    /// Version written last.
    pub version: u64,
}

impl Writer<'_> {
    /// Writes a version of its own under each number, in order. After an error the ledger leaves open which
    /// of them were written.
    pub fn upsert(&mut self, numbers: &[u64]) -> Result<()> {
        let stage = self.stage;
        let rows: Vec<(u64, u64)> = numbers
            .iter()
            .map(|&number| {
                self.version += 1;
                stage.begun[number as usize]
                    .store(State::written(self.version).0, Ordering::SeqCst);
                ((stage.name)(number), self.version)
            })
            .collect();
        stage.rows.upsert(&stage.cache, &rows)?;
        for (&number, row) in numbers.iter().zip(rows) {
            stage.finished[number as usize].store(State::written(row.1).0, Ordering::SeqCst);
        }
        Ok(())
    }

    pub fn delete(&mut self, numbers: &[u64]) -> usize {
        let stage = self.stage;
        self.version += 1;
        let gone = State::deleted(self.version).0;
        let set = |states: &[AtomicU64]| {
            for &number in numbers {
                states[number as usize].store(gone, Ordering::SeqCst);
            }
        };
        set(&stage.begun);
        let names: Vec<u64> = numbers.iter().map(|&number| (stage.name)(number)).collect();
        let deleted = stage.cache.delete(&names).unwrap();
        set(&stage.finished);
        deleted
    }
}

/// Reader that remembers the latest version it saw of each key.
pub struct Reader<'a> {
    stage: &'a Stage,
    looks: bool,
    latest: Vec<u64>,
}

impl Reader<'_> {
    /// Gathers keys in one batch and checks each as a read of an atomic register. If `lasting`, only their
    /// writers remove rows. `number` and version of each row found are passed to `visit`.
    pub fn gather(&mut self, numbers: &[u64], lasting: bool, mut visit: impl FnMut(u64, u64)) {
        let stage = self.stage;
        let look = |states: &[AtomicU64]| -> Vec<State> {
            let looked = numbers.iter().filter(|_| self.looks);
            looked.map(|&number| Stage::state(states, number)).collect()
        };
        let before = look(&stage.finished);
        let names: Vec<u64> = numbers.iter().map(|&number| (stage.name)(number)).collect();
        let found = stage.rows.gather(&stage.cache, &names);
        let after = look(&stage.begun);
        let mut seen = 0;
        for (i, (&number, version)) in numbers.iter().zip(found).enumerate() {
            let interval = self.looks.then(|| (before[i], after[i]));
            let Some(version) = version else {
                let kept = lasting
                    && interval
                        .is_some_and(|(before, after)| before == after && before.is_written());
                assert!(!kept, "number {number} was there throughout and not found");
                continue;
            };
            if let Some((before, after)) = interval {
                assert!(
                    (before.version()..=after.version()).contains(&version)
                        && (before != after || before.is_written()),
                    "number {number}: {version} is not one of {}..={}",
                    before.version(),
                    after.version()
                );
            }
            let latest = &mut self.latest[number as usize];
            assert!(
                *latest <= version,
                "number {number}: {version} after {latest}"
            );
            *latest = version;
            visit(number, version);
            seen += 1;
        }
        stage.seen.fetch_add(seen, Ordering::Relaxed);
    }
}

/// Checks the balance with all other threads gone: every insert is present, or was removed and counted;
/// every replaced row is released; no byte is counted twice or not at all.
pub fn check_conservation(cache: &EmbeddingCache) {
    let stats = cache.stats();
    assert_eq!(
        stats.inserts,
        stats.live_rows + stats.deletes + stats.evictions + stats.expired_removed,
        "{stats:?}"
    );
    drain(cache);
    let memory = cache.memory_usage();
    assert_eq!(memory.retired_bytes, 0);
    assert_eq!(
        memory.total_bytes,
        memory.payload_bytes
            + memory.padding_bytes
            + memory.free_bytes
            + memory.table_bytes
            + memory.retired_table_bytes
            + memory.new_table_bytes
            + memory.side_bytes
            + memory.order_bytes,
        "{memory:?}"
    );
}

/// Waits until every replaced row is released.
pub fn drain(cache: &EmbeddingCache) {
    // Without readers, epochs advance with every few hundred pins, and some retired rows are released each
    // time. A thread's registration is dropped with its thread-locals, which on a busy machine may be a
    // while after it was joined. So the bound is time without progress, not rounds.
    let (mut least, mut since) = (u64::MAX, Instant::now());
    loop {
        for _ in 0..1000 {
            cache.contains(&[1], |_, _| {});
        }
        cache.delete(&[]).unwrap();
        let waiting = cache.stats().retired_rows;
        if waiting == 0 {
            break;
        }
        if waiting < least {
            (least, since) = (waiting, Instant::now());
        }
        assert!(
            since.elapsed() < Duration::from_secs(60),
            "{waiting} rows do not come back"
        );
        std::thread::yield_now();
    }
}

/// Returns the rows that the cache has allocated, used and unused.
pub fn rows_taken(cache: &EmbeddingCache) -> u64 {
    let memory = cache.memory_usage();
    let bytes =
        memory.payload_bytes + memory.padding_bytes + memory.retired_bytes + memory.free_bytes;
    bytes / cache.layout().row_bytes() as u64
}

/// Returns whether a write was refused because readers held all rows; other errors are failures.
pub fn was_held_up(written: Result<()>) -> bool {
    match written {
        Ok(()) => false,
        Err(Error::RowsHeld { .. }) => true,
        Err(error) => panic!("{error}"),
    }
}

/// Beyond the end of a test whose stalled reader ends it: it waits for others, which must not stop first.
pub const LATER: Duration = Duration::from_secs(3600);

/// Waits until `count` has grown by `by`, which shows that another thread makes progress.
pub fn wait_for(count: &dyn Fn() -> u64, by: u64, who: &str) {
    let (start, patience) = (count(), Instant::now() + Duration::from_secs(60));
    while count() < start + by {
        assert!(
            Instant::now() < patience,
            "{who} stood still beside a stalled reader"
        );
        std::thread::sleep(Duration::from_micros(100));
    }
}
