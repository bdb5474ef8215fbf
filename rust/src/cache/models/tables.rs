//! Models of tables and slots: taken, grown, rebuilt, replaced.

use super::super::ManualClock;
use super::super::clock::TICK_MS;
use super::super::hash::unmix64;
use super::{Shared, aging_store, beside, explore, read, read_all, store, write};
use loom::thread::JoinHandle;
use std::time::Duration;

/// Three keys whose probes start at the same bucket, which two of them fill, in a table of `slots` slots.
fn crowd(slots: usize) -> (Shared, [u64; 3]) {
    let store = store(slots, None);
    let keys = [1, 2, 3].map(unmix64);
    for (key, version) in keys.into_iter().zip(1..) {
        write(&store, key, version);
    }
    (store, keys)
}

/// Keys 0 to 2 in a table of four slots.
fn three_keys() -> Shared {
    let store = store(4, None);
    for key in 0..3 {
        write(&store, key, key as u8);
    }
    store
}

/// Deletes the second key of a crowd and writes another beside the reader, and checks the outcome.
fn replace_key(store: &Shared, crowd: [u64; 3], other: u64, reader: JoinHandle<()>) {
    assert_eq!(store.delete(&[crowd[1]]), Ok(1));
    write(store, other, 4);
    reader.join().unwrap();
    let [kept, deleted, third] = crowd;
    assert_eq!(
        read_all(store, [kept, deleted, third, other]),
        [Some(1), None, Some(3), Some(4)]
    );
}

/// In a full bucket a key is deleted, and a new key of this bucket goes to the next: the keys beside it and
/// in the next bucket are found throughout.
///
/// Explores probes that pass a tombstone. Does not cover a probe round the end of the table.
#[test]
fn what_stays_is_found_beside_and_behind_a_deleted_key() {
    loom::model(|| {
        let (store, [kept, deleted, behind]) = crowd(8);
        let other = unmix64(4);
        let reader = beside(&store, move |store| {
            assert_eq!(read(store, behind), Some(3));
            for (key, version) in [(deleted, 2), (other, 4)] {
                let seen = read(store, key);
                assert!(seen.is_none_or(|seen| seen == version), "{seen:?}");
            }
        });
        replace_key(&store, [kept, deleted, behind], other, reader);
    });
}

/// The table is full of slots, one of them a tombstone, and is rebuilt without it: keys change their slots,
/// and the remaining ones are found throughout, in the old table or in the new one.
///
/// Explores a rebuild that gives slots to other keys. Does not cover growth in size.
#[test]
fn a_rebuild_without_deleted_keys_hides_nothing() {
    loom::model(|| {
        let (store, [kept, deleted, moved]) = crowd(4);
        let other = unmix64(4);
        let reader = beside(&store, move |store| {
            assert_eq!(read(store, moved), Some(3));
            assert!(matches!(read(store, deleted), None | Some(2)));
            assert_eq!(read(store, kept), Some(1));
        });
        replace_key(&store, [kept, deleted, moved], other, reader);
    });
}

/// Key 0 comes and goes in a bucket where other keys come: slots without a key look as if they had key 0,
/// and a reader never takes another key's row for it, nor none for one.
///
/// Explores a slot that gets its key while it is read. Does not cover key 0 behind a full bucket.
#[test]
fn key_0_is_never_taken_for_a_slot_without_a_key() {
    explore(|| {
        let (store, other) = (store(4, None), unmix64(1));
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

/// The table grows during a look-up: existing keys are found throughout.
///
/// Explores growth beside single look-ups. Does not cover a concurrent update.
#[test]
fn growth_hides_nothing() {
    loom::model(|| {
        let store = three_keys();
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
/// rows are requested again: each of its rows is whole and of its key, and the replaced table is not freed
/// under it.
///
/// Explores a guard that outlasts update, growth and attempts at reuse. Does not cover two tables in
/// succession.
#[test]
fn one_guard_lasts_over_growth_and_reuse() {
    loom::model(|| {
        let store = three_keys();
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

/// A table grows in two steps. Between them one copied key is updated and another deleted, and a key is added:
/// a reader sees each of them in order, and the remaining keys throughout.
///
/// Explores writes that go to both tables, and the store that replaces the old one. Does not cover two
/// writers.
#[test]
fn writes_between_the_steps_of_a_rebuild_are_in_the_new_table() {
    explore(|| {
        let store = store(8, None);
        // One key per bucket but for the last two: 0 to 3 are in the buckets of the first step.
        let keys = [0u64, 1, 4, 5, 6, 7].map(|part| unmix64(part << 61 | part));
        for (key, version) in keys[..5].iter().zip(1..) {
            write(&store, *key, version);
        }
        let reader = beside(&store, move |store| {
            assert!(matches!(read(store, keys[0]), Some(1 | 11)));
            assert!(matches!(read(store, keys[1]), Some(2) | None));
            assert_eq!(read(store, keys[4]), Some(5));
            assert!(matches!(read(store, keys[5]), Some(6) | None));
        });
        write(&store, keys[5], 6); // begins the rebuild
        assert!(store.is_rebuilding());
        write(&store, keys[0], 11);
        assert_eq!(store.delete(&[keys[1]]), Ok(1));
        assert!(!store.is_rebuilding());
        reader.join().unwrap();
        assert_eq!(
            read_all(&store, keys),
            [Some(11), None, Some(3), Some(4), Some(5), Some(6)]
        );
        assert_eq!(store.live(), 5);
    });
}

/// Two writers add one new key each to a table with room for one: the second grows it, and neither key is
/// lost; a reader finds the existing keys throughout.
///
/// Explores an upsert at every step of another thread's growth. Does not cover writers of the same key.
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
/// key finds nothing throughout, since it checks key and stamp of the same row.
///
/// Explores rebuilding that retires a row and a table together, and the row's reuse. Does not cover a clock
/// that advances meanwhile.
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

/// The cache is cleared and refilled while a reader looks up two keys under one guard: it finds both or, in
/// the new table, neither; never a new key's row under an old key.
///
/// Explores replacing the table, retiring all its rows, reusing one of them. Does not cover growth.
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
