//! Writing rows: taken under the writers' lock, filled without it, published under it.
//!
//! Between taking and publishing, a row is in no list and in no slot: only the call that took it knows it.
//! So writers fill rows side by side, and wait for each other's work on the table only. Small batches are
//! not worth the second turn at the lock and are filled under it.

use super::hash::spread;
use super::reclaim::Reclaim;
use super::store::{Store, prefetch};
use super::writer::after;
use crate::error::{Error, Result};
use std::ptr;

/// Rows that are taken and published at a time.
const CHUNK_ROWS: usize = 256;

/// Bytes of rows that are taken and published at a time, unless one row is longer.
const CHUNK_BYTES: usize = 256 << 10;

/// From this size on, a chunk is filled outside the lock: copying it takes several times as long as a turn
/// at the lock. Under loom always, because that is the way to be explored.
const APART_BYTES: usize = if cfg!(aif_loom) { 0 } else { 4 << 10 };

impl<R: Reclaim> Store<R> {
    /// Writes one row per key; a key that comes twice keeps its last row.
    ///
    /// # Safety
    /// `columns` has one entry per column of the layout, and `columns[c]` is valid for reads of
    /// `keys.len() * layout.columns()[c].bytes()` bytes.
    pub(super) unsafe fn upsert(&self, keys: &[u64], columns: &[*const u8]) -> Result<()> {
        let chunk = (CHUNK_BYTES / self.layout.row_bytes()).clamp(1, CHUNK_ROWS);
        for (number, some) in keys.chunks(chunk).enumerate() {
            let first = number * chunk;
            // SAFETY: the caller's; the chunk is rows `first..` of the columns.
            unsafe { self.upsert_chunk(some, first, columns) }
                .map_err(|(done, error)| after(error, first + done, keys.len()))?;
        }
        Ok(())
    }

    /// Writes the rows of a chunk whose first key is number `first` of the batch; an error comes with the
    /// number of keys that were written before it.
    ///
    /// # Safety
    /// As for [`upsert`](Self::upsert), with `first + keys.len()` rows in every column.
    unsafe fn upsert_chunk(
        &self,
        keys: &[u64],
        first: usize,
        columns: &[*const u8],
    ) -> std::result::Result<(), (usize, Error)> {
        let now = self.clock.ticks();
        let mut writer = self.lock().map_err(|error| (0, error))?;
        let apart = keys.len() * self.layout.row_bytes() >= APART_BYTES
            && writer.reserved + keys.len() <= self.reservable();
        if !apart {
            let mut outcome = Ok(());
            for (i, &key) in keys.iter().enumerate() {
                let written = self.free_row(&mut writer).and_then(|row| {
                    // SAFETY: the caller's; the row was free and is only ours.
                    unsafe { self.fill(row, key, now, first + i, columns) };
                    self.publish(&mut writer, key, row)
                        .inspect_err(|_| Self::put_back(&mut writer, &[row]))
                });
                if let Err(error) = written {
                    outcome = Err((i, error));
                    break;
                }
            }
            self.settle(&mut writer);
            return outcome;
        }

        let mut rows = [0; CHUNK_ROWS];
        let mut taken = 0;
        let mut outcome = Ok(());
        while taken < keys.len() {
            match self.free_row(&mut writer) {
                Ok(row) => rows[taken] = row,
                Err(error) => {
                    outcome = Err((taken, error));
                    break;
                }
            }
            taken += 1;
        }
        let rows = &rows[..taken];
        writer.reserved += taken;
        drop(writer);

        for (i, (&key, &row)) in keys.iter().zip(rows).enumerate() {
            // SAFETY: the caller's; the row was free and is only ours.
            unsafe { self.fill(row, key, now, first + i, columns) };
        }

        let mut writer = self.lock().map_err(|error| (0, error))?;
        writer.reserved -= taken;
        let table = self.writers_table(&writer);
        for &key in &keys[..taken] {
            prefetch(table.first_line(spread(key)));
        }
        for (i, (&key, &row)) in keys.iter().zip(rows).enumerate() {
            if let Err(error) = self.publish(&mut writer, key, row) {
                outcome = Err((i, error));
                Self::put_back(&mut writer, &rows[i..]);
                break;
            }
        }
        self.settle(&mut writer);
        outcome
    }

    /// How many rows calls may hold at a time outside the lock. In a bounded cache, half of the rows kept
    /// for those that wait for readers: the other half is for whoever writes under the lock.
    fn reservable(&self) -> usize {
        self.bound
            .map_or(usize::MAX, |bound| (bound.rows - bound.live_rows) / 2)
    }

    /// Copies row `i` of every column into a row, and notes whose it is.
    ///
    /// # Safety
    /// As for [`upsert`](Self::upsert), with more than `i` rows in every column. Nobody else has the row.
    unsafe fn fill(&self, row: u32, key: u64, now: u32, i: usize, columns: &[*const u8]) {
        let row = self.slab.row(row);
        row.watch().write(|| {
            for (column, &from) in self.layout.columns().iter().zip(columns) {
                // SAFETY: the column lies inside the row, which no reader can reach and this thread
                // alone holds; the source is the caller's.
                unsafe {
                    ptr::copy_nonoverlapping(
                        from.add(i * column.bytes()),
                        row.bytes().add(column.offset()),
                        column.bytes(),
                    );
                }
            }
        });
        row.dedicate(key, now);
    }
}
