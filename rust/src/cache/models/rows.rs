//! Models of rows: written, replaced, deleted, evicted, reused.

use super::super::Bound;
use super::super::hash::unmix64;
use super::{Shared, beside, explore, read, read_all, store, write, write_all};
use loom::thread::JoinHandle;

/// Version 1 of key 7 in a table of four slots.
fn one_key() -> Shared {
    let store = store(4, None);
    write(&store, 7, 1);
    store
}

/// Writes versions of key 7 while `reader` reads it; the last one stays.
fn write_beside<const N: usize>(store: &Shared, versions: [u8; N], reader: JoinHandle<()>) {
    for version in versions {
        write(store, 7, version);
    }
    reader.join().unwrap();
    assert_eq!(read(store, 7), versions.last().copied());
}

/// Updates reuse the rows they replaced as soon as that is allowed: a reader sees one whole version, never
/// an older one after a newer one, and never nothing.
///
/// Explores publish, update, retire, reuse. Does not cover growth, absence, a second writer.
#[test]
fn an_update_is_seen_whole_or_not_at_all() {
    loom::model(|| {
        let store = one_key();
        let reader = beside(&store, |store| {
            let first = read(store, 7).expect("the key is never absent");
            let second = read(store, 7).expect("the key is never absent");
            assert!(
                (1..=3).contains(&first) && first <= second && second <= 3,
                "{first}, {second}"
            );
        });
        write_beside(&store, [2, 3], reader);
    });
}

/// Two writers of one key and a reader of it: all agree on one order of the three versions, in which the
/// reader never goes back. A row that one writer fills is never the other's.
///
/// Explores writers against each other at every step of an upsert, with returned rows for both, and
/// publish, update, retire and reuse beside a reader. Does not cover the key's insert (it exists from the
/// start), growth.
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
/// end both keys are of the same batch, since the rows of so small a batch are published together.
///
/// Explores several rows taken at a time, filled in parallel and published in turn. Does not cover a batch
/// of more than one chunk.
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

/// Two writers write the same new key: one of them inserts it and the other updates it, and it has one row.
///
/// Explores two inserts that meet in one slot, before a reader. Does not cover an existing key.
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

/// A deleted key's row is reused by another key of the same bucket: a reader of either never gets the
/// other's row.
///
/// Explores delete, insert of another key, reuse of the row. Does not cover reuse of the slot, which stays
/// the deleted key's.
#[test]
fn a_reused_row_is_never_taken_for_another_keys() {
    loom::model(|| {
        let (one, two) = (unmix64(5), unmix64(6));
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

/// A key is deleted and written again: a reader sees the old row, nothing, or the new row, in this order.
///
/// Explores delete and insert of the same key in its slot. Does not cover a rebuild between the two.
#[test]
fn a_key_that_comes_back_does_not_come_back_old() {
    loom::model(|| {
        let store = one_key();
        let reader = beside(&store, |store| {
            let order = [Some(1), None, Some(2)];
            let [first, second] = [7, 7].map(|key| {
                let seen = read(store, key);
                order.iter().position(|&known| known == seen).unwrap()
            });
            assert!(first <= second);
        });
        assert_eq!(store.delete(&[7]), Ok(1));
        write_beside(&store, [2], reader);
    });
}

/// One writer deletes a key, another updates it: the key ends with the new row or with none, the reader
/// sees no other order than that, and all counts add up.
///
/// Explores a delete at every step of another thread's upsert. Does not cover growth.
#[test]
fn a_delete_beside_an_upsert_is_before_or_after_it() {
    explore(|| {
        let store = one_key();
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

/// Three rows, of which one may be under a key: the smallest full cache.
const SMALL: Bound = Bound {
    rows: 3,
    live_rows: 1,
};

/// A full cache evicts a row while it is read, and reuses it.
///
/// Explores evict, retire, reuse, and a frequency that a reader increments meanwhile. Does not cover two
/// writers.
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

/// Two writers add a key each to a cache that holds one: one of the two stays, whole, and the cache never
/// holds both.
///
/// Explores eviction at every step of another thread's upsert. Does not cover the choice among several
/// rows.
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

/// A full cache has a row left for one of two writers: the other waits for the reader, without the lock, or
/// exceeds the bound. Meanwhile a key is deleted, and nobody waits for a writer that waits.
///
/// Explores other writes at every step of a wait. Does not cover a wait that is refused.
#[test]
fn a_writer_that_waits_for_a_reader_lets_others_write() {
    explore(|| {
        let store = store(4, Some(SMALL));
        write(&store, 1, 11);
        let reader = beside(&store, |store| {
            assert!(matches!(read(store, 1), None | Some(11 | 12 | 13 | 14)));
        });
        let writer = beside(&store, |store| {
            for version in 12..15 {
                write(store, 1, version);
            }
        });
        let deleted = store.delete(&[1]).unwrap();
        assert!(deleted <= 1);
        reader.join().unwrap();
        writer.join().unwrap();
        let last = read(&store, 1);
        assert!(matches!(last, None | Some(14)), "{last:?}");
        assert_eq!(store.live(), usize::from(last.is_some()));
    });
}
