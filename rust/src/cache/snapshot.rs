//! Snapshot of all rows of a cache, readable while writers continue.

use super::clock::TICK_MS;
use super::reclaim::{Epochs, Reclaim};
use super::store::Store;
use super::writer::no_memory;
use crate::error::Result;
use std::slice;
use std::time::Duration;

/// Rows of one moment, kept from reuse by the guard.
pub(super) struct Rows<'a, R: Reclaim + 'a> {
    store: &'a Store<R>,
    entries: Vec<(u64, u32)>,
    /// Tick of that moment.
    now: u32,
    _guard: R::Guard<'a>,
}

impl<R: Reclaim> Store<R> {
    /// Returns the rows that have not expired, as of one moment between writes.
    pub(super) fn snapshot(&self) -> Result<Rows<'_, R>> {
        let writer = self.lock_to_list();
        let now = self.clock.ticks();
        let mut entries = Vec::new();
        entries
            .try_reserve_exact(self.live())
            .map_err(|_| no_memory("the list of rows"))?;
        let living = self
            .writers_table(&writer)
            .entries()
            .filter(|&(_, row)| !self.expired(&self.slab.row(row), now));
        entries.extend(living);
        // Before the lock is released: no row of the table has been retired yet.
        let guard = self.reclaim.pin();
        Ok(Rows {
            store: self,
            entries,
            now,
            _guard: guard,
        })
    }
}

/// Rows of a cache as of one moment; see [`EmbeddingCache::snapshot`](super::EmbeddingCache::snapshot).
pub struct Snapshot<'a>(Rows<'a, Epochs>);

/// Row of a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct RowView<'a> {
    /// Key of the row.
    pub key: u64,
    /// Age of the row at the moment of the snapshot, to one [tick](TICK_MS).
    pub age: Duration,
    /// Bytes of the whole row, in the layout's format.
    pub bytes: &'a [u8],
}

impl<'a> Snapshot<'a> {
    pub(super) fn new(rows: Rows<'a, Epochs>) -> Self {
        Self(rows)
    }

    /// Returns the number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.entries.len()
    }

    /// Returns whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.entries.is_empty()
    }

    /// Sorts the rows by key.
    pub fn sort_by_key(&mut self) {
        self.0.entries.sort_unstable_by_key(|&(key, _)| key);
    }

    /// Returns the rows, in no order unless they were sorted, but in the same one each time.
    #[must_use]
    pub fn rows(&self) -> impl ExactSizeIterator<Item = RowView<'_>> {
        let Rows {
            store,
            entries,
            now,
            ..
        } = &self.0;
        entries.iter().map(move |&(key, row)| {
            let row = store.slab.row(row);
            RowView {
                key,
                age: Duration::from_millis(u64::from(now.saturating_sub(row.stamp())) * TICK_MS),
                // SAFETY: a row of the layout's length, which no thread writes to while the guard lives.
                bytes: unsafe { slice::from_raw_parts(row.bytes(), store.layout.row_bytes()) },
            }
        })
    }
}
