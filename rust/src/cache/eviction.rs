//! What an eviction policy is.

use crate::error::Result;

/// Chooses which row a full cache gives up.
///
/// All methods are called under the writer's lock. Reads never call a policy: a read sets the row's
/// mark, one byte beside the row, and the policy asks for it when it looks for a victim.
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

    /// A new key has `row`.
    fn inserted(&mut self, row: u32);

    /// A key that had row `old` has row `new` now. It keeps its place in the order.
    fn replaced(&mut self, old: u32, new: u32);

    /// The key of `row` was deleted.
    fn removed(&mut self, row: u32);

    /// Gives up a row. `take_mark` says whether a row was read since it was last asked about that row.
    fn victim(&mut self, take_mark: &mut dyn FnMut(u32) -> bool) -> Option<u32>;

    /// All keys were deleted.
    fn clear(&mut self);

    /// Bytes the policy keeps for its order.
    fn bytes(&self) -> usize;
}
