//! Copying of rows into the columns of a batch.

use super::layout::RowLayout;
use std::ptr;

/// Maximum bytes of a column that is copied by an inline loop, which is faster than a call for so few.
const INLINE_BYTES: usize = 64;

/// Unit of that loop.
type Piece = [u8; 16];

/// Copier of rows, with the destination of the next row in each column.
pub(super) struct RowCopier {
    columns: Vec<ColumnCopy>,
}

struct ColumnCopy {
    /// Offset of the column in a row.
    offset: usize,
    bytes: usize,
    to: *mut u8,
    in_pieces: bool,
}

impl RowLayout {
    /// Makes a copier into `columns`, which has one entry per column of the layout.
    pub(super) fn copier(&self, columns: &[*mut u8]) -> RowCopier {
        let columns = self.columns().iter().zip(columns);
        RowCopier {
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

impl RowCopier {
    /// Copies a row to the next position of every column.
    ///
    /// # Safety
    /// `row` points to a row of the layout that no thread writes to; every column has another position,
    /// which overlaps nothing else.
    #[inline]
    pub(super) unsafe fn copy_row(&mut self, row: *const u8) {
        for column in &mut self.columns {
            // SAFETY: by the caller's contract the column lies inside the row, and its destination inside
            // the output.
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

    /// Zeroes the next position of every column.
    ///
    /// # Safety
    /// Every column has another position.
    pub(super) unsafe fn zero_row(&mut self) {
        for column in &mut self.columns {
            // SAFETY: by the caller's contract.
            unsafe {
                ptr::write_bytes(column.to, 0, column.bytes);
                column.to = column.to.add(column.bytes);
            }
        }
    }
}
