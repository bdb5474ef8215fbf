//! Loom models: the store's own readers and writer, in every interleaving that loom can tell apart.
//!
//! Reclamation is the counting one, which loom sees into; rows are watched, so that a model fails when
//! a row is written while it is read or when nothing orders the one before the other. Run them with
//!
//! ```text
//! RUSTFLAGS="--cfg aif_loom" cargo test --release -p aif-core --lib models
//! ```

use super::clock::Clock;
use super::hash::unspread;
use super::reclaim::Reclaim;
use super::reclaim::counted::Counted;
use super::store::Store;
use super::{Bound, DType, ManualClock, RowLayout, Sizes};
use crate::sync::Arc;
use loom::thread;

/// One column, whose bytes are all the version.
const BYTES: usize = 8;

fn store(slots: usize, bound: Option<Bound>) -> Arc<Store<Counted>> {
    let layout = RowLayout::new([("x", DType::UInt8, vec![BYTES])]).unwrap();
    let clock = Clock::Manual(ManualClock::default());
    let sizes = Sizes {
        bound,
        slots,
        ..Sizes::default()
    };
    Arc::new(Store::new(layout, sizes, clock, None, Counted::new()).unwrap())
}

fn write(store: &Store<impl Reclaim>, key: u64, version: u8) {
    // SAFETY: one column of `BYTES` bytes for one key.
    unsafe { store.upsert(&[key], &[[version; BYTES].as_ptr()]) }.unwrap();
}

/// The version of `key`, checked to be one version in all bytes.
fn read(store: &Store<impl Reclaim>, key: u64) -> Option<u8> {
    let (mut row, mut found) = ([0xaa; BYTES], [9]);
    // SAFETY: one column of `BYTES` bytes for one key.
    let hits = unsafe { store.gather(&[key], &[row.as_mut_ptr()], &mut found) };
    assert_eq!(hits, usize::from(found[0] == 1));
    assert!(row.iter().all(|&byte| byte == row[0]), "torn: {row:?}");
    (hits == 1).then_some(row[0])
}

/// Updates reuse the rows they replaced, as soon as that is allowed: a reader sees one of the versions
/// whole, never older ones after newer ones, and never nothing.
#[test]
fn an_update_is_seen_whole_or_not_at_all() {
    loom::model(|| {
        let store = store(4, None);
        write(&store, 7, 1);
        let reader = {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                let first = read(&store, 7).expect("the key is never absent");
                let second = read(&store, 7).expect("the key is never absent");
                assert!(
                    (1..=3).contains(&first) && first <= second && second <= 3,
                    "{first}, {second}"
                );
            })
        };
        write(&store, 7, 2);
        write(&store, 7, 3);
        reader.join().unwrap();
        assert_eq!(read(&store, 7), Some(3));
    });
}

/// A deleted key's slot and row go to another key whose slot looks just the same (it starts at the same
/// place and has the same tag): a reader of either never gets the other's row.
#[test]
fn a_reused_slot_is_never_taken_for_another_key() {
    loom::model(|| {
        let (one, two) = (unspread(5), unspread(5 | 1 << 40));
        let store = store(4, None);
        write(&store, one, 11);
        let reader = {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                assert!(matches!(read(&store, two), None | Some(22)));
                assert!(matches!(read(&store, one), None | Some(11)));
            })
        };
        store.delete(&[one]).unwrap();
        write(&store, two, 22);
        reader.join().unwrap();
        assert_eq!((read(&store, one), read(&store, two)), (None, Some(22)));
    });
}

/// The table grows while a reader looks: what was there before is found throughout.
#[test]
fn growth_hides_nothing() {
    loom::model(|| {
        let store = store(4, None);
        for key in 0..3 {
            write(&store, key, key as u8);
        }
        let reader = {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                assert_eq!(read(&store, 0), Some(0));
                assert!(matches!(read(&store, 3), None | Some(3)));
            })
        };
        write(&store, 3, 3); // the fourth key does not fit a table of four
        reader.join().unwrap();
        assert_eq!(
            (0..4)
                .map(|key| read(&store, key).unwrap())
                .collect::<Vec<_>>(),
            [0, 1, 2, 3]
        );
    });
}

/// A full cache gives up a row while it is read, and uses it again.
#[test]
fn an_evicted_row_stays_whole_for_its_readers() {
    loom::model(|| {
        let store = store(
            4,
            Some(Bound {
                rows: 3,
                live_rows: 1,
            }),
        );
        write(&store, 1, 11);
        let reader = {
            let store = Arc::clone(&store);
            thread::spawn(move || assert!(matches!(read(&store, 1), None | Some(11))))
        };
        write(&store, 2, 22);
        write(&store, 3, 33);
        reader.join().unwrap();
        assert_eq!(
            (1..=3).map(|key| read(&store, key)).collect::<Vec<_>>(),
            [None, None, Some(33)]
        );
    });
}
