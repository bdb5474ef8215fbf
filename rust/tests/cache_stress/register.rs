//! Histories of keys that many threads write.

use crate::common::Rows;
use crate::history::{Event, fault};
use crate::stage::{READERS, Random, WRITERS, check_conservation, time};
use aif_core::cache::{CacheConfig, EmbeddingCache};
use aif_core::sync::{AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::Instant;

const KEYS: u64 = 6;

/// Cache whose operations are recorded.
struct Recorded {
    cache: EmbeddingCache,
    rows: Rows,
    /// Returns the next moment, which all threads share.
    moments: AtomicU64,
}

/// Operations by key.
type Events = Vec<(u64, Event)>;

impl Recorded {
    fn timed<T>(&self, operate: impl FnOnce() -> T) -> (u64, T, u64) {
        let start = self.moments.fetch_add(1, Ordering::SeqCst);
        let result = operate();
        (start, result, self.moments.fetch_add(1, Ordering::SeqCst))
    }

    /// Writes `value` under distinct keys: a value that another replaces at once may stay unseen.
    fn write(&self, keys: &[u64], value: u64, events: &mut Events) {
        let batch: Vec<(u64, u64)> = keys.iter().map(|&key| (key, value)).collect();
        let (start, written, end) = self.timed(|| self.rows.upsert(&self.cache, &batch));
        written.unwrap();
        let event = Event {
            value,
            writes: true,
            start,
            end,
        };
        events.extend(keys.iter().map(|&key| (key, event)));
    }

    fn read(&self, keys: &[u64], events: &mut Events) {
        let (start, found, end) = self.timed(|| self.rows.gather(&self.cache, keys));
        for (&key, value) in keys.iter().zip(found) {
            let event = Event {
                value: value.expect("the keys are never absent"),
                writes: false,
                start,
                end,
            };
            events.push((key, event));
        }
    }
}

/// Many writers write the same few keys, in rows of two kilobytes. For each key, one order of all writes
/// and reads that respects time explains what all threads saw, while other keys are inserted and the table
/// grows.
#[test]
fn a_key_is_an_atomic_register_for_any_number_of_writers() {
    let until = Instant::now() + time();
    for round in 0.. {
        let rows = Rows::new(1000);
        let recorded = Recorded {
            cache: EmbeddingCache::new(rows.layout(), CacheConfig::default()).unwrap(),
            rows,
            moments: AtomicU64::new(0),
        };
        let mut first = Events::new();
        recorded.write(&(0..KEYS).collect::<Vec<_>>(), 0, &mut first);
        let history = Mutex::new(first);
        let barrier = Barrier::new((WRITERS + READERS + 1) as usize);
        std::thread::scope(|scope| {
            let (recorded, history, barrier) = (&recorded, &history, &barrier);
            for writer in 0..WRITERS {
                scope.spawn(move || {
                    let (mut random, mut events) =
                        (Random::new(round << 8 | writer), Events::new());
                    barrier.wait();
                    for version in 1..500 {
                        let mut keys = random.some_below(KEYS, KEYS);
                        keys.sort_unstable();
                        keys.dedup();
                        recorded.write(&keys, version << 8 | writer, &mut events);
                    }
                    history.lock().unwrap().extend(events);
                });
            }
            for reader in 0..READERS {
                scope.spawn(move || {
                    let (mut random, mut events) =
                        (Random::new(round << 8 | 128 | reader), Events::new());
                    barrier.wait();
                    for _ in 0..1000 {
                        recorded.read(&random.some_below(KEYS, 2 * KEYS), &mut events);
                    }
                    history.lock().unwrap().extend(events);
                });
            }
            barrier.wait();
            for key in 1000..2000 {
                recorded.rows.upsert(&recorded.cache, &[(key, 0)]).unwrap();
            }
        });
        let history = history.into_inner().unwrap();
        for key in 0..KEYS {
            let of_key = history.iter().filter(|event| event.0 == key);
            let of_key: Vec<Event> = of_key.map(|event| event.1).collect();
            assert_eq!(fault(&of_key), None, "key {key}");
        }
        check_conservation(&recorded.cache);
        if Instant::now() >= until {
            break;
        }
    }
}
