//! Copying rows out: from one row into every column of a batch, row after row.

use super::layout::RowLayout;
use std::ptr;

/// Columns up to this many bytes are copied by a loop in place, which is faster than a call for so few.
const INLINE_BYTES: usize = 64;

/// What one step of that loop copies.
type Piece = [u8; 16];

/// Where the next row of each column goes.
pub(super) struct Copies {
    columns: Vec<ColumnCopy>,
}

struct ColumnCopy {
    /// Where the column stands in a row.
    offset: usize,
    bytes: usize,
    to: *mut u8,
    in_pieces: bool,
}

impl RowLayout {
    /// Copying into `columns`, which has one entry per column of the layout.
    pub(super) fn copies(&self, columns: &[*mut u8]) -> Copies {
        let columns = self.columns().iter().zip(columns);
        Copies {
            columns: columns
                .map(|(column, &to)| ColumnCopy {
                    offset: column.offset(),
                    bytes: column.bytes(),
                    to,
                    in_pieces: column.bytes() <= INLINE_BYTES
                        && column.bytes().is_multiple_of(size_of::<Piece>()),
                })
                .collect(),
        }
    }
}

impl Copies {
    /// Copies a row to the next place of every column.
    ///
    /// # Safety
    /// `row` points to a row of the layout that nobody writes to; every column has another place, which
    /// overlaps nothing else.
    #[inline]
    pub(super) unsafe fn next_row(&mut self, row: *const u8) {
        for column in &mut self.columns {
            // SAFETY: the caller's: the column lies inside the row, and its place inside the column.
            unsafe {
                let from = row.add(column.offset);
                if column.in_pieces {
                    for piece in 0..column.bytes / size_of::<Piece>() {
                        let bytes = from.cast::<Piece>().add(piece).read();
                        column.to.cast::<Piece>().add(piece).write(bytes);
                    }
                } else {
                    ptr::copy_nonoverlapping(from, column.to, column.bytes);
                }
                column.to = column.to.add(column.bytes);
            }
        }
    }

    /// Zeroes the next place of every column.
    ///
    /// # Safety
    /// Every column has another place.
    pub(super) unsafe fn next_zeros(&mut self) {
        for column in &mut self.columns {
            // SAFETY: the caller's.
            unsafe {
                ptr::write_bytes(column.to, 0, column.bytes);
                column.to = column.to.add(column.bytes);
            }
        }
    }
}
