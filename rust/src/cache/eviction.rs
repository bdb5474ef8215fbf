//! What an eviction policy is.

use crate::error::Result;

/// Marks of a row are counted up to this.
pub(super) const MOST_MARKS: u8 = 3;

/// What a policy may ask about the rows it knows.
pub(super) trait Rows {
    /// How often the row was read since it was last asked about, up to [`MOST_MARKS`].
    fn take_marks(&mut self, row: u32) -> u8;

    /// The hash of the row's key: no other key has it.
    fn hash(&self, row: u32) -> u64;
}

/// Chooses which row a full cache gives up.
///
/// All methods are called under the writer's lock. Reads never call a policy: a read counts up the row's
/// marks, in a byte beside the row, and the policy asks for them when it looks for a victim.
///
/// An implementer MUST
/// - know exactly the rows that were inserted and neither removed nor given up as victims since;
/// - return from [`victim`](Self::victim) a row it knows, and forget it; `None` only if it knows none;
/// - end `victim` after a number of steps bounded by the rows it knows, although readers may mark rows
///   as fast as it takes their marks;
/// - allocate in [`reserve`](Self::reserve) only, so that nothing else can fail.
///
/// It MUST NOT keep a row number beyond `removed`, `replaced` or `victim`: the number will be another
/// key's.
pub(super) trait Eviction: Send {
    /// Makes room for row numbers below `rows`.
    fn reserve(&mut self, rows: usize) -> Result<()>;

    /// A new key of this hash has `row`.
    fn inserted(&mut self, row: u32, hash: u64);

    /// A key that had row `old` has row `new` now. It keeps its place in the order.
    fn replaced(&mut self, old: u32, new: u32);

    /// The key of `row` was deleted.
    fn removed(&mut self, row: u32);

    /// Gives up a row.
    fn victim(&mut self, rows: &mut dyn Rows) -> Option<u32>;

    /// All keys were deleted.
    fn clear(&mut self);

    /// Bytes the policy keeps for its order.
    fn bytes(&self) -> usize;
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::hash::spread;
    use super::{MOST_MARKS, Rows};
    use std::collections::HashMap;

    /// Marks by row; each row's key is its number.
    #[derive(Default)]
    pub(in super::super) struct Marks(HashMap<u32, u8>);

    impl Marks {
        pub(in super::super) fn read(&mut self, row: u32, times: u8) {
            let marks = self.0.entry(row).or_default();
            *marks = (*marks + times).min(MOST_MARKS);
        }
    }

    impl Rows for Marks {
        fn take_marks(&mut self, row: u32) -> u8 {
            self.0.remove(&row).unwrap_or(0)
        }

        fn hash(&self, row: u32) -> u64 {
            spread(row.into())
        }
    }
}
