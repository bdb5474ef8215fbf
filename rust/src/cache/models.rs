//! Loom models: the store's readers and writers, in every interleaving that loom distinguishes.
//!
//! Reclamation is the counting one, which loom can explore; rows are watched, so that a model fails when a
//! row is written while it is read, or when no ordering separates the two. Run them with
//!
//! ```text
//! RUSTFLAGS="--cfg aif_loom" cargo test --release -p aif-core --lib models
//! ```
//!
//! # What is explored
//! - *Allocate a row, fill it without the lock, publish it*: all models; several rows at a time:
//!   `small_batches_are_published_together`.
//! - *Insert one new key by two writers*: `two_writers_of_a_new_key_leave_one_row`.
//! - *Update a slot from the old row to the new*: `an_update_is_seen_whole_or_not_at_all`,
//!   `two_writers_of_one_key_are_seen_in_one_order`.
//! - *Delete*: `a_reused_row_is_never_taken_for_another_keys`,
//!   `a_key_that_comes_back_does_not_come_back_old`, `what_stays_is_found_beside_and_behind_a_deleted_key`;
//!   concurrent with the same key's upsert: `a_delete_beside_an_upsert_is_before_or_after_it`.
//! - *Reuse a retired row*: all in which a writer writes more than it adds.
//! - *Assign a key to a slot*: `key_0_is_never_taken_for_a_slot_without_a_key`.
//! - *Grow the table*: `growth_hides_nothing`, `one_guard_lasts_over_growth_and_reuse`,
//!   `two_writers_may_both_find_the_table_full`.
//! - *Rebuild the table without tombstones, without expired rows*:
//!   `a_rebuild_without_deleted_keys_hides_nothing`, `an_expired_row_never_comes_back_as_another`.
//! - *Rebuild the table in steps*: `writes_between_the_steps_of_a_rebuild_are_in_the_new_table`.
//! - *Wait for readers*: all of a full cache; beside other writes:
//!   `a_writer_that_waits_for_a_reader_lets_others_write`.
//! - *Evict from a full cache*: `an_evicted_row_stays_whole_for_its_readers`,
//!   `two_writers_of_a_full_cache_keep_its_bound`.
//! - *Replace the table by an empty one*: `a_cleared_cache_is_full_or_empty`.
//!
//! # What is not
//! - Models of one writer and one reader are explored without a limit. Those of three threads, and that of
//!   key 0, are explored up to [`PREEMPTIONS`] preemptions, with which every fault planted in the protocol
//!   was found. `LOOM_MAX_PREEMPTIONS` limits all models, for a short run.
//! - Epochs, and crossbeam's memory orderings: loom cannot see into them. The counting reclaimer stands for
//!   the contract of [`Reclaim`]; stress tests and sanitizers exercise the real one (`make stress`).
//! - Loom treats sequential consistency as acquire and release; nothing here relies on more than these.
//! - Frequencies and the counts of [`Stats`](super::Stats): relaxed hints and sums that order nothing.
//!   Frequencies take part (a reader increments them, eviction resets them); the counts are those of `std`
//!   and not explored.
//! - Rows that are filled under the lock, which is simpler: in the models every batch is filled without it,
//!   except for the second writer of a full cache.
//! - The clock does not advance in a model, and a writer waits for readers once.
//! - Snapshots.
//! - Reads of a row's bytes are watched as a whole; the thread sanitizer checks that no byte is read
//!   outside the watch.

mod rows;
mod tables;

use super::clock::Clock;
use super::reclaim::Reclaim;
use super::reclaim::counted::Counted;
use super::store::Store;
use super::{Bound, DType, ManualClock, RowLayout, Sizes};
use crate::sync::Arc;
use loom::thread::{self, JoinHandle};

/// Layout with one column, whose bytes all hold the version.
const BYTES: usize = 8;

/// Preemption bound of the larger models.
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

/// Returns the versions of `keys`, looked up under one guard; each is checked to be one version in all
/// bytes.
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

/// Explores a larger model up to [`PREEMPTIONS`], or up to `LOOM_MAX_PREEMPTIONS` if set.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.check(model);
}
