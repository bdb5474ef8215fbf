//! Writing of rows: allocated under the writers' lock, filled without it, published under it.
//!
//! Between allocation and publication, a row is in no list and in no slot: only the call that took it knows
//! it. So writers fill rows in parallel and serialise on the table only. Small batches do not justify the
//! second lock acquisition and are filled under the lock.

use super::reclaim::Reclaim;
use super::store::{Store, prefetch};
use super::writer::with_progress;
use crate::error::{Error, Result};
use std::ptr;

/// Rows taken and published at a time.
const CHUNK_ROWS: usize = 256;

/// Bytes of rows taken and published at a time, unless one row is longer.
const CHUNK_BYTES: usize = 256 << 10;

/// Minimum chunk size to fill outside the lock: copying it takes several times as long as acquiring the
/// lock. Zero under loom, which explores that path.
const APART_BYTES: usize = if cfg!(aif_loom) { 0 } else { 4 << 10 };

impl<R: Reclaim> Store<R> {
    /// Writes one row per key; for a repeated key the last row stays.
    ///
    /// # Safety
    /// `columns` has one entry per column of the layout, and `columns[c]` is valid for reads of
    /// `keys.len() * layout.columns()[c].bytes()` bytes.
    pub(super) unsafe fn upsert(&self, keys: &[u64], columns: &[*const u8]) -> Result<()> {
        let chunk = (CHUNK_BYTES / self.layout.row_bytes()).clamp(1, CHUNK_ROWS);
        for (number, some) in keys.chunks(chunk).enumerate() {
            let first = number * chunk;
            // SAFETY: by the caller's contract; the chunk is rows `first..` of the columns.
            unsafe { self.upsert_chunk(some, first, columns) }
                .map_err(|(done, error)| with_progress(error, first + done, keys.len()))?;
        }
        Ok(())
    }

    /// Writes the rows of a chunk whose first key has index `first` in the batch. An error comes with the
    /// number of keys written before it.
    ///
    /// # Safety
    /// As for [`upsert`](Self::upsert), with `first + keys.len()` rows in every column.
    unsafe fn upsert_chunk(
        &self,
        keys: &[u64],
        first: usize,
        columns: &[*const u8],
    ) -> std::result::Result<(), (usize, Error)> {
        let mut writer = self.lock().map_err(|error| (0, error))?;
        // Under the lock: the time that a writer waits for its turn does not count as age of its rows.
        let mut now = self.clock.ticks();
        let apart = keys.len() * self.layout.row_bytes() >= APART_BYTES
            && writer.reserved + keys.len() <= self.reservable();
        if !apart {
            let mut outcome = Ok(());
            for (i, &key) in keys.iter().enumerate() {
                let row;
                (writer, row) = self
                    .take_row(writer, &mut now)
                    .map_err(|error| (i, error))?;
                let written = row.and_then(|row| {
                    // SAFETY: by the caller's contract; the row was free and is owned by this call.
                    unsafe { self.fill(row, key, now, first + i, columns) };
                    self.publish(&mut writer, key, row)
                        .inspect_err(|_| Self::put_back(&mut writer, &[row]))
                });
                if let Err(error) = written {
                    outcome = Err((i, error));
                    break;
                }
            }
            self.finish_write(writer);
            return outcome;
        }

        let mut rows = [0; CHUNK_ROWS];
        let mut taken = 0;
        let mut outcome = Ok(());
        // Beforehand, since others may take rows while this call waits for one.
        writer.reserved += keys.len();
        while taken < keys.len() {
            let row;
            (writer, row) = self
                .take_row(writer, &mut now)
                .map_err(|error| (taken, error))?;
            match row {
                Ok(row) => rows[taken] = row,
                Err(error) => {
                    outcome = Err((taken, error));
                    break;
                }
            }
            taken += 1;
        }
        let rows = &rows[..taken];
        writer.reserved -= keys.len() - taken;
        drop(writer);

        for (i, (&key, &row)) in keys.iter().zip(rows).enumerate() {
            // SAFETY: by the caller's contract; the row was free and is owned by this call.
            unsafe { self.fill(row, key, now, first + i, columns) };
        }

        let mut writer = self.lock().map_err(|error| (0, error))?;
        writer.reserved -= taken;
        let table = self.writers_table(&writer);
        for &key in &keys[..taken] {
            prefetch(table.first_line(self.hash(key)));
        }
        for (i, (&key, &row)) in keys.iter().zip(rows).enumerate() {
            if let Err(error) = self.publish(&mut writer, key, row) {
                outcome = Err((i, error));
                Self::put_back(&mut writer, &rows[i..]);
                break;
            }
        }
        self.finish_write(writer);
        outcome
    }

    /// Returns the maximum number of rows that calls may hold outside the lock. In a bounded cache, half of
    /// the slack: the other half serves writers under the lock.
    fn reservable(&self) -> usize {
        self.bound
            .map_or(usize::MAX, |bound| (bound.rows - bound.live_rows) / 2)
    }

    /// Copies row `i` of every column into a row and sets its metadata.
    ///
    /// # Safety
    /// As for [`upsert`](Self::upsert), with more than `i` rows in every column. The caller owns the row.
    unsafe fn fill(&self, row: u32, key: u64, now: u32, i: usize, columns: &[*const u8]) {
        let row = self.slab.row(row);
        row.watch().write(|| {
            for (column, &from) in self.layout.columns().iter().zip(columns) {
                // SAFETY: the column lies inside the row, which no reader can reach and this thread owns;
                // the source is valid by the caller's contract.
                unsafe {
                    ptr::copy_nonoverlapping(
                        from.add(i * column.bytes()),
                        row.bytes().add(column.offset()),
                        column.bytes(),
                    );
                }
            }
        });
        row.init_header(key, now);
    }
}
