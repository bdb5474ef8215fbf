//! SIM-hard: what an item's categories find among the user's.

use super::model::SlotFactors;

/// The user's categories in a small hash table, and what each adds.
#[derive(Debug)]
pub(super) struct Slots {
    /// Category and slot, or the empty entry; a power of two of them, at least twice as many as slots.
    entries: Vec<(i32, u32)>,
    first_category: i32,
    /// What each slot adds, `[C, width]`.
    rows: Vec<f32>,
    width: usize,
}

/// An entry without a category. No category is negative.
const EMPTY: (i32, u32) = (-1, 0);

impl Slots {
    /// Lays slots out for rows of `hidden` numbers, `width` apart.
    pub fn new(slots: &SlotFactors<'_>, hidden: usize, width: usize) -> Self {
        let mut rows = vec![0.0; slots.category.len() * width];
        for (slot, row) in rows.chunks_exact_mut(width).enumerate() {
            for (column, value) in row[..hidden].iter_mut().enumerate() {
                *value = slots.rows.at(slot * hidden + column);
            }
        }
        let mut made = Self {
            entries: vec![EMPTY; (slots.category.len() * 2).next_power_of_two()],
            first_category: slots.first_category.max(0),
            rows,
            width,
        };
        for (slot, &category) in slots.category.iter().enumerate() {
            if category >= made.first_category {
                let mut at = made.start(category);
                // A category that stands there twice adds both.
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

    /// Adds the mean over an item's categories of what their slots add; those without a slot add nothing.
    pub fn add(&self, categories: &[i32], first: &mut [f32]) {
        let known = |&category: &i32| category >= self.first_category;
        let n = categories
            .iter()
            .filter(|&category| known(category))
            .count();
        let weight = 1.0 / n.max(1) as f32;
        for &category in categories.iter().filter(|&category| known(category)) {
            let mut at = self.start(category);
            while self.entries[at] != EMPTY {
                let (found, slot) = self.entries[at];
                if found == category {
                    let row = &self.rows[slot as usize * self.width..][..self.width];
                    for (first, &value) in first.iter_mut().zip(row) {
                        *first += weight * value;
                    }
                }
                at = (at + 1) % self.entries.len();
            }
        }
    }
}
