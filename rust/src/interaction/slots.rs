//! SIM-hard: lookup of an item's categories among the user's.

use super::model::SlotFactors;
use crate::dense::RowKernels;

/// Categories of the user in a small hash table, with the contribution of each.
#[derive(Debug)]
pub(super) struct Slots {
    /// Category and slot, or the empty entry; a power of two of them, at least eight times as many as
    /// slots, so that most look-ups see one entry.
    entries: Vec<(i32, u32)>,
    first_category: i32,
    /// Contribution of each slot, `[C, width]`.
    rows: Vec<f32>,
    width: usize,
}

/// Entry without a category. No category is negative.
const EMPTY: (i32, u32) = (-1, 0);

impl Slots {
    /// Packs slots for rows of `hidden` numbers, `width` apart.
    pub fn new(slots: &SlotFactors<'_>, hidden: usize, width: usize) -> Self {
        let mut rows = vec![0.0; slots.category.len() * width];
        for (slot, row) in rows.chunks_exact_mut(width).enumerate() {
            for (column, value) in row[..hidden].iter_mut().enumerate() {
                *value = slots.rows.at(slot * hidden + column);
            }
        }
        let mut made = Self {
            entries: vec![EMPTY; (slots.category.len() * 8).next_power_of_two()],
            first_category: slots.first_category.max(0),
            rows,
            width,
        };
        for (slot, &category) in slots.category.iter().enumerate() {
            if category >= made.first_category {
                let mut at = made.start(category);
                // A repeated category adds both contributions.
                while made.entries[at] != EMPTY {
                    at = (at + 1) % made.entries.len();
                }
                made.entries[at] = (category, slot as u32);
            }
        }
        made
    }

    fn start(&self, category: i32) -> usize {
        (category.cast_unsigned().wrapping_mul(0x9e37_79b9) >> 7) as usize
            & (self.entries.len() - 1)
    }

    /// Adds the mean over an item's categories of the contributions of their slots; those without a slot
    /// contribute nothing.
    pub fn add(&self, kernels: RowKernels, categories: &[i32], first: &mut [f32]) {
        let mut known = 0;
        for &category in categories {
            known += usize::from(category >= self.first_category);
        }
        let weight = 1.0 / known.max(1) as f32;
        for &category in categories {
            let mut at = self.start(category);
            // A category below the first has no entry, so it needs no separate check.
            while self.entries[at] != EMPTY {
                let (found, slot) = self.entries[at];
                if found == category {
                    let row = &self.rows[slot as usize * self.width..][..self.width];
                    kernels.add_scaled(first, weight, row);
                }
                at = (at + 1) & (self.entries.len() - 1);
            }
        }
    }
}
