//! Loom models: the store's own readers and writers, in every interleaving that loom can tell apart.
//!
//! Reclamation is the counting one, which loom sees into; rows are watched, so that a model fails when
//! a row is written while it is read or when nothing orders the one before the other. Run them with
//!
//! ```text
//! RUSTFLAGS="--cfg aif_loom" cargo test --release -p aif-core --lib models
//! ```
//!
//! # What is explored
//! | step of the protocol | models |
//! |---|---|
//! | a row is taken, filled without the lock, and published | all; several at a time: [`small_batches_are_published_together`] |
//! | insert of a new key by two writers at once | [`two_writers_of_a_new_key_leave_one_row`] |
//! | update: one slot, from the old row to the new | [`an_update_is_seen_whole_or_not_at_all`], [`two_writers_of_one_key_are_seen_in_one_order`] |
//! | delete | [`a_reused_row_is_never_taken_for_another_keys`], [`a_key_that_comes_back_does_not_come_back_old`], [`what_stays_is_found_beside_and_behind_a_deleted_key`] |
//! | a slot gets its key | [`key_0_is_never_taken_for_a_slot_without_a_key`] |
//! | delete by one writer beside the same key's upsert by another | [`a_delete_beside_an_upsert_is_before_or_after_it`] |
//! | a retired row comes back and is written again | all in which a writer writes more than it adds |
//! | the table grows | [`growth_hides_nothing`], [`one_guard_lasts_over_growth_and_reuse`], [`two_writers_may_both_find_the_table_full`] |
//! | the table is rebuilt without deleted keys, without expired ones | [`a_rebuild_without_deleted_keys_hides_nothing`], [`an_expired_row_never_comes_back_as_another`] |
//! | a full cache evicts | [`an_evicted_row_stays_whole_for_its_readers`], [`two_writers_of_a_full_cache_keep_its_bound`] |
//! | the whole table is replaced by an empty one | [`a_cleared_cache_is_full_or_empty`] |
//!
//! # What is not
//! - Models with one writer beside one reader are explored without a limit. Those with three threads are
//!   explored up to [`PREEMPTIONS`] preemptions, which is where every fault that was planted to try
//!   them showed.
//! - Epochs, and crossbeam's memory orderings: loom cannot see into them. The counting reclaimer stands
//!   for the contract of [`Reclaim`]; threads and the sanitizers try the real one (`make stress`).
//! - Loom takes sequential consistency for acquire and release; nothing here relies on more than these.
//! - Marks and the counts of [`Stats`](super::Stats): relaxed hints and sums that order nothing. Marks take
//!   part (a reader sets them, a victim loses them); the counts are those of `std` and not explored.
//! - Rows that are filled under the lock, which is simpler: in the models every batch is filled without it,
//!   but for the second writer of a full cache.
//! - The clock stands still in each model, and a writer's wait for readers is cut to nothing.
//! - Snapshots.
//! - Reads of a row's bytes are watched as a whole: that no byte is read outside the watch is for the
//!   thread sanitizer to say.

use super::clock::Clock;
use super::hash::unspread;
use super::reclaim::Reclaim;
use super::reclaim::counted::Counted;
use super::store::Store;
use super::{Bound, DType, ManualClock, RowLayout, Sizes, TICK_MS};
use crate::sync::Arc;
use loom::thread::{self, JoinHandle};
use std::time::Duration;

/// One column, whose bytes are all the version.
const BYTES: usize = 8;

/// How often a thread may be interrupted in the models of three threads.
const PREEMPTIONS: usize = 3;

type Shared = Arc<Store<Counted>>;

fn store(slots: usize, bound: Option<Bound>) -> Shared {
    aging_store(slots, bound, None, ManualClock::default())
}

fn aging_store(slots: usize, bound: Option<Bound>, ttl: Option<u32>, clock: ManualClock) -> Shared {
    let layout = RowLayout::new([("x", DType::UInt8, vec![BYTES])]).unwrap();
    let clock = Clock::Manual(clock);
    let sizes = Sizes {
        bound,
        slots,
        ..Sizes::default()
    };
    Arc::new(Store::new(layout, sizes, clock, ttl, Counted::new()).unwrap())
}

/// Writes one version of all `keys` in one batch.
fn write_all<const N: usize>(store: &Store<impl Reclaim>, keys: [u64; N], version: u8) {
    let rows = [[version; BYTES]; N];
    // SAFETY: one column of `BYTES` bytes for each of `N` keys.
    unsafe { store.upsert(&keys, &[rows.as_ptr().cast()]) }.unwrap();
}

fn write(store: &Store<impl Reclaim>, key: u64, version: u8) {
    write_all(store, [key], version);
}

/// The versions of `keys`, looked up under one guard; each is checked to be one version in all bytes.
fn read_all<const N: usize>(store: &Store<impl Reclaim>, keys: [u64; N]) -> [Option<u8>; N] {
    let (mut rows, mut found) = ([[0xaa; BYTES]; N], [9; N]);
    // SAFETY: one column of `BYTES` bytes for each of `N` keys.
    let hits = unsafe { store.gather(&keys, &[rows.as_mut_ptr().cast()], &mut found) };
    assert_eq!(hits, found.iter().filter(|&&found| found == 1).count());
    std::array::from_fn(|i| {
        let row = rows[i];
        assert!(row.iter().all(|&byte| byte == row[0]), "torn: {row:?}");
        (found[i] == 1).then_some(row[0])
    })
}

fn read(store: &Store<impl Reclaim>, key: u64) -> Option<u8> {
    read_all(store, [key])[0]
}

/// Runs `work` on a thread of its own.
fn beside<T: 'static>(
    store: &Shared,
    work: impl FnOnce(&Store<Counted>) -> T + 'static,
) -> JoinHandle<T> {
    let store = Arc::clone(store);
    thread::spawn(move || work(&store))
}

/// Explores a model of three threads up to [`PREEMPTIONS`], or as far as `LOOM_MAX_PREEMPTIONS` says.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.check(model);
}

/// Updates reuse the rows they replaced, as soon as that is allowed: a reader sees one of the versions
/// whole, never older ones after newer ones, and never nothing.
///
/// Explores publish, update, retire, reuse. Not: growth, absence, a second writer.
#[test]
fn an_update_is_seen_whole_or_not_at_all() {
    loom::model(|| {
        let store = store(4, None);
        write(&store, 7, 1);
        let reader = beside(&store, |store| {
            let first = read(store, 7).expect("the key is never absent");
            let second = read(store, 7).expect("the key is never absent");
            assert!(
                (1..=3).contains(&first) && first <= second && second <= 3,
                "{first}, {second}"
            );
        });
        write(&store, 7, 2);
        write(&store, 7, 3);
        reader.join().unwrap();
        assert_eq!(read(&store, 7), Some(3));
    });
}

/// Two writers of one key and a reader of it: all agree on one order of the three versions, in which the
/// reader does not go back. A row that one writer has filled, or is filling, is never the other's.
///
/// Explores writers against each other at every step of an upsert, with returned rows for both, and publish,
/// update, retire and reuse beside a reader. Not: the key's insert (it is there from the start), growth.
#[test]
fn two_writers_of_one_key_are_seen_in_one_order() {
    explore(|| {
        let store = store(4, None);
        write_all(&store, [7, 8, 9], 1);
        assert_eq!(store.delete(&[8, 9]), Ok(2));
        let writers = [2, 3].map(|version| beside(&store, move |store| write(store, 7, version)));
        let seen = [7, 7].map(|key| read(&store, key).expect("the key is never absent"));
        for writer in writers {
            writer.join().unwrap();
        }
        let last = read(&store, 7).unwrap();
        assert!(last == 2 || last == 3, "{last}");
        let order = [1, 5 - last, last];
        let [first, second] = seen.map(|version| order.iter().position(|&known| known == version));
        assert!(
            first.is_some() && first <= second,
            "{seen:?}, then {last} was last"
        );
    });
}

/// Two writers write the same two keys, each in one batch: a reader sees neither key go back, and at the
/// end both keys are of the same batch, since the rows of a batch as small as this are published together.
///
/// Explores several rows taken at a time, filled side by side and published in turn. Not: a batch of more
/// than one chunk.
#[test]
fn small_batches_are_published_together() {
    explore(|| {
        let store = store(4, None);
        write_all(&store, [7, 8], 1);
        let writers = [(2, [7, 8]), (3, [8, 7])]
            .map(|(version, keys)| beside(&store, move |store| write_all(store, keys, version)));
        let seen = [(); 2].map(|()| read_all(&store, [7, 8]));
        for writer in writers {
            writer.join().unwrap();
        }
        let [last, other] = read_all(&store, [7, 8]);
        assert!(last == other && (last == Some(2) || last == Some(3)));
        let order = [Some(1), last.map(|last| 5 - last), last];
        let place = |version| order.iter().position(|&known| known == version).unwrap();
        for key in 0..2 {
            assert!(
                place(seen[0][key]) <= place(seen[1][key]),
                "{seen:?}, {last:?}"
            );
        }
    });
}

/// Two writers bring the same new key: one of them inserts it and the other updates it, and it has one row.
///
/// Explores two inserts that meet in one slot, before a reader. Not: a key that was there.
#[test]
fn two_writers_of_a_new_key_leave_one_row() {
    explore(|| {
        let store = store(4, None);
        let writers = [2, 3].map(|version| beside(&store, move |store| write(store, 7, version)));
        let (first, second) = (read(&store, 7), read(&store, 7));
        for writer in writers {
            writer.join().unwrap();
        }
        let last = read(&store, 7);
        assert!(last == Some(2) || last == Some(3), "{last:?}");
        let order = [None, last.map(|last| 5 - last), last];
        let place = |version| order.iter().position(|&known| known == version).unwrap();
        assert!(
            place(first) <= place(second),
            "{first:?}, {second:?}, {last:?}"
        );
        assert_eq!((store.live(), store.keys()), (1, Ok(vec![7])));
        assert_eq!(store.delete(&[7]), Ok(1));
        assert_eq!(read(&store, 7), None, "no second row was left behind");
    });
}

/// A deleted key's row goes to another key of the same bucket: a reader of either never gets the other's
/// row.
///
/// Explores delete, insert of another key, reuse of the row. Not: the slot, which stays the deleted key's.
#[test]
fn a_reused_row_is_never_taken_for_another_keys() {
    loom::model(|| {
        let (one, two) = (unspread(5), unspread(6));
        let store = store(4, None);
        write(&store, one, 11);
        let reader = beside(&store, move |store| {
            assert!(matches!(read(store, two), None | Some(22)));
            assert!(matches!(read(store, one), None | Some(11)));
        });
        store.delete(&[one]).unwrap();
        write(&store, two, 22);
        reader.join().unwrap();
        assert_eq!((read(&store, one), read(&store, two)), (None, Some(22)));
    });
}

/// A key that is deleted and written again: a reader sees the old row, nothing, or the new row, in this
/// order.
///
/// Explores delete and insert of the same key in its slot. Not: a rebuild between the two.
#[test]
fn a_key_that_comes_back_does_not_come_back_old() {
    loom::model(|| {
        let store = store(4, None);
        write(&store, 7, 1);
        let reader = beside(&store, |store| {
            let order = [Some(1), None, Some(2)];
            let [first, second] = [7, 7].map(|key| {
                let seen = read(store, key);
                order.iter().position(|&known| known == seen).unwrap()
            });
            assert!(first <= second);
        });
        assert_eq!(store.delete(&[7]), Ok(1));
        write(&store, 7, 2);
        reader.join().unwrap();
        assert_eq!(read(&store, 7), Some(2));
    });
}

/// Three keys whose probes start at the same bucket, which two of them fill, in a table of `slots` slots.
fn crowd(slots: usize) -> (Shared, [u64; 3]) {
    let store = store(slots, None);
    let keys = [1, 2, 3].map(unspread);
    for (key, version) in keys.into_iter().zip(1..) {
        write(&store, key, version);
    }
    (store, keys)
}

/// In a full bucket a key is deleted, and a new key of this bucket goes to the next: what stands beside it
/// and what stands in the next bucket are found throughout.
///
/// Explores probes that pass a deleted key's slot. Not: a probe round the end of the table.
#[test]
fn what_stays_is_found_beside_and_behind_a_deleted_key() {
    loom::model(|| {
        let (store, [kept, deleted, behind]) = crowd(8);
        let other = unspread(4);
        let reader = beside(&store, move |store| {
            assert_eq!(read(store, behind), Some(3));
            assert!(matches!(read(store, deleted), None | Some(2)));
            assert!(matches!(read(store, other), None | Some(4)));
        });
        assert_eq!(store.delete(&[deleted]), Ok(1));
        write(&store, other, 4);
        reader.join().unwrap();
        assert_eq!(
            read_all(&store, [kept, deleted, behind, other]),
            [Some(1), None, Some(3), Some(4)]
        );
    });
}

/// The table is full of slots, one of them a deleted key's, and is rebuilt without it: keys change their
/// slots, and what stays is found throughout, in the old table or in the new one.
///
/// Explores a rebuild that gives slots to other keys. Not: growth in size.
#[test]
fn a_rebuild_without_deleted_keys_hides_nothing() {
    loom::model(|| {
        let (store, [kept, deleted, moved]) = crowd(4);
        let other = unspread(4);
        let reader = beside(&store, move |store| {
            assert_eq!(read(store, moved), Some(3));
            assert!(matches!(read(store, deleted), None | Some(2)));
            assert_eq!(read(store, kept), Some(1));
        });
        assert_eq!(store.delete(&[deleted]), Ok(1));
        write(&store, other, 4);
        reader.join().unwrap();
        assert_eq!(
            read_all(&store, [kept, deleted, moved, other]),
            [Some(1), None, Some(3), Some(4)]
        );
    });
}

/// Key 0 comes and goes in a bucket where other keys come: slots without a key look as if they had key 0,
/// and a reader never takes another key's row for it, nor none for one.
///
/// Explores a slot that gets its key while it is looked at. Not: key 0 behind a full bucket.
#[test]
fn key_0_is_never_taken_for_a_slot_without_a_key() {
    explore(|| {
        let (store, other) = (store(4, None), unspread(1));
        let reader = beside(&store, move |store| {
            let order = [None, Some(1), None];
            let first = read(store, 0);
            assert!(order.contains(&first), "{first:?}");
            assert!(matches!(read(store, other), None | Some(2)));
            let second = read(store, 0);
            assert!(order.contains(&second), "{second:?}");
        });
        write(&store, other, 2);
        write(&store, 0, 1);
        assert_eq!(store.delete(&[0]), Ok(1));
        reader.join().unwrap();
        assert_eq!(read_all(&store, [0, other]), [None, Some(2)]);
    });
}

/// One writer deletes a key, another updates it: the key ends with the new row or with none, the reader
/// sees no other order than that, and nothing is lost count of.
///
/// Explores a delete at every step of another thread's upsert. Not: growth.
#[test]
fn a_delete_beside_an_upsert_is_before_or_after_it() {
    explore(|| {
        let store = store(4, None);
        write(&store, 7, 1);
        let deleting = beside(&store, |store| assert_eq!(store.delete(&[7]), Ok(1)));
        let writing = beside(&store, |store| write(store, 7, 2));
        let seen = [read(&store, 7), read(&store, 7)];
        deleting.join().unwrap();
        writing.join().unwrap();
        let last = read(&store, 7);
        let order = match last {
            Some(2) => [Some(1), None, Some(2)], // deleted, then inserted
            None => [Some(1), Some(2), None],    // updated, then deleted
            other => panic!("{other:?}"),
        };
        let [first, second] =
            seen.map(|version| order.iter().position(|&known| known == version).unwrap());
        assert!(first <= second, "{seen:?}, {last:?}");
        assert_eq!(store.live(), usize::from(last.is_some()));
    });
}

/// The table grows while a reader looks: what was there before is found throughout.
///
/// Explores growth beside single look-ups. Not: an update meanwhile.
#[test]
fn growth_hides_nothing() {
    loom::model(|| {
        let store = store(4, None);
        for key in 0..3 {
            write(&store, key, key as u8);
        }
        let reader = beside(&store, |store| {
            assert_eq!(read(store, 0), Some(0));
            assert!(matches!(read(store, 3), None | Some(3)));
        });
        write(&store, 3, 3); // the fourth key does not fit a table of four
        reader.join().unwrap();
        assert_eq!(
            read_all(&store, [0, 1, 2, 3]),
            [0, 1, 2, 3].map(Some),
            "growth lost a key"
        );
    });
}

/// A reader keeps one guard over several keys while one of them is updated, the table grows and retired
/// rows are wanted again: each of its rows is whole and of its key, and the replaced table is not freed
/// under it.
///
/// Explores a guard that outlasts update, growth and attempts at reuse. Not: two tables in succession.
#[test]
fn one_guard_lasts_over_growth_and_reuse() {
    loom::model(|| {
        let store = store(4, None);
        for key in 0..3 {
            write(&store, key, key as u8);
        }
        let reader = beside(&store, |store| {
            let [updated, kept] = read_all(store, [0, 2]);
            assert!(matches!(updated, Some(0 | 10)), "{updated:?}");
            assert_eq!(kept, Some(2));
        });
        write(&store, 0, 10);
        write(&store, 3, 3); // grows, and takes the row of version 0 if it is back
        reader.join().unwrap();
        assert_eq!(read_all(&store, [0, 1, 2, 3]), [10, 1, 2, 3].map(Some));
    });
}

/// Two writers bring one new key each to a table with room for one: whoever comes second grows it, and
/// neither key is lost; a reader finds what was there throughout.
///
/// Explores an upsert at every step of another thread's growth. Not: writers of the same key.
#[test]
fn two_writers_may_both_find_the_table_full() {
    explore(|| {
        let store = store(4, None);
        write(&store, 0, 10);
        write(&store, 1, 11);
        let writers =
            [2, 3].map(|key| beside(&store, move |store| write(store, key, key as u8 + 10)));
        assert_eq!(read(&store, 0), Some(10));
        for writer in writers {
            writer.join().unwrap();
        }
        assert_eq!(read_all(&store, [0, 1, 2, 3]), [10, 11, 12, 13].map(Some));
        assert_eq!(store.live(), 4);
    });
}

/// An expired row is dropped when the table is rebuilt, and the next key gets it: a reader of the expired
/// key finds nothing throughout, since it judges key and stamp of the same row.
///
/// Explores rebuilding that retires a row and a table together, and the row's reuse. Not: a clock that
/// moves meanwhile.
#[test]
fn an_expired_row_never_comes_back_as_another() {
    loom::model(|| {
        let clock = ManualClock::default();
        let store = aging_store(4, None, Some(1), clock.clone());
        write(&store, 0, 10);
        clock.advance(Duration::from_millis(5 * TICK_MS));
        write(&store, 1, 11);
        write(&store, 2, 12);
        let reader = beside(&store, |store| {
            assert_eq!(read_all(store, [0, 1]), [None, Some(11)]);
        });
        write(&store, 3, 13); // rebuilds without key 0
        write(&store, 3, 23); // takes its row, if it is back
        reader.join().unwrap();
        assert_eq!(
            read_all(&store, [0, 1, 2, 3]),
            [None, Some(11), Some(12), Some(23)]
        );
        assert_eq!(store.live(), 3);
    });
}

/// Three rows, of which one may be under a key: what a full cache is in the models.
const SMALL: Bound = Bound {
    rows: 3,
    live_rows: 1,
};

/// A full cache gives up a row while it is read, and uses it again.
///
/// Explores evict, retire, reuse, and a mark that a reader sets meanwhile. Not: two writers.
#[test]
fn an_evicted_row_stays_whole_for_its_readers() {
    loom::model(|| {
        let store = store(4, Some(SMALL));
        write(&store, 1, 11);
        let reader = beside(&store, |store| {
            assert!(matches!(read(store, 1), None | Some(11)));
        });
        write(&store, 2, 22);
        write(&store, 3, 33);
        reader.join().unwrap();
        assert_eq!(read_all(&store, [1, 2, 3]), [None, None, Some(33)]);
    });
}

/// Two writers bring a key each to a cache that holds one: one of the two stays, whole, and the cache
/// never holds both.
///
/// Explores eviction at every step of another thread's upsert. Not: which of several rows a policy takes.
#[test]
fn two_writers_of_a_full_cache_keep_its_bound() {
    explore(|| {
        let store = store(4, Some(SMALL));
        write(&store, 1, 11);
        let writers =
            [2, 3].map(|key| beside(&store, move |store| write(store, key, key as u8 * 11)));
        assert!(matches!(read(&store, 1), None | Some(11)));
        for writer in writers {
            writer.join().unwrap();
        }
        let left = read_all(&store, [1, 2, 3]);
        assert!(
            left == [None, Some(22), None] || left == [None, None, Some(33)],
            "{left:?}"
        );
        assert_eq!(store.live(), 1);
    });
}

/// The cache is cleared and filled anew while a reader looks for two keys under one guard: it finds both
/// or, in the new table, neither; never a new key's row under an old key.
///
/// Explores a table replaced at a stroke, all its rows retired, one of them reused. Not: growth.
#[test]
fn a_cleared_cache_is_full_or_empty() {
    loom::model(|| {
        let store = store(4, None);
        write(&store, 0, 10);
        write(&store, 1, 11);
        let reader = beside(&store, |store| {
            let seen = read_all(store, [0, 1]);
            assert!(
                seen == [Some(10), Some(11)] || seen == [None, None],
                "{seen:?}"
            );
        });
        store.clear().unwrap();
        write(&store, 2, 12);
        reader.join().unwrap();
        assert_eq!(read_all(&store, [0, 1, 2]), [None, None, Some(12)]);
    });
}
