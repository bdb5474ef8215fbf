//! The memory of rows: segments that never move, and beside the rows their time stamps and, if rows are
//! evicted, keys and marks.
//!
//! Segments grow with the slab, eight of each size before the size doubles, so that at most an eighth
//! of the slab is memory not yet used, and a fixed directory of 256 reaches all 2^32 rows. If the number of
//! rows is known beforehand, the first eight segments hold them: the fewer and larger, the more of the
//! slab lies on huge pages. What is not touched takes address space and no memory.

use super::eviction::MOST_MARKS;
use super::layout::RowLayout;
use crate::buffer::{AlignedBuffer, Pages, ZeroedArray};
use crate::error::{Error, Result};
use crate::mapping::Mapping;
use crate::sync::plain::Arc;
use crate::sync::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering, RaceWatch};
use std::ptr;

/// Segments of one size.
const PER_SIZE: usize = 8;
const LOG_PER_SIZE: u32 = PER_SIZE.trailing_zeros();

/// Entries of the directory: eight for each of the 30 sizes that 2^32 rows can take, and spare ones.
const DIRECTORY: usize = if cfg!(aif_loom) { 8 } else { 256 };

/// The least bytes of the first segments.
const FIRST_SEGMENT_BYTES: usize = 64 << 10;

/// Bytes beside each row: its time stamp.
const SIDE_BYTES: usize = size_of::<u32>();

/// Bytes beside each row that can be evicted: also its key and its mark.
pub(super) const EVICTING_SIDE_BYTES: usize = SIDE_BYTES + size_of::<u64>() + size_of::<u8>();

/// A run of rows and what is kept beside them.
struct Segment {
    rows: AlignedBuffer,
    stamps: ZeroedArray<AtomicU32>,
    /// For the eviction policy, which gives up rows and not keys; empty if nobody evicts.
    keys: ZeroedArray<AtomicU64>,
    /// One byte a row, set by readers; empty if nobody evicts.
    marks: ZeroedArray<AtomicU8>,
    watches: Box<[RaceWatch]>,
}

/// A row's place: its segment and its number in it.
#[derive(Clone, Copy)]
pub(super) struct RowRef<'a> {
    segment: &'a Segment,
    at: usize,
    bytes: *mut u8,
}

impl RowRef<'_> {
    /// Writer only, of a row that can be evicted: the key that it was written for.
    pub(super) fn key(&self) -> u64 {
        self.segment.keys[self.at].load(Ordering::Relaxed)
    }

    /// The tick at which the row was written.
    #[inline]
    pub(super) fn stamp(&self) -> u32 {
        // Relaxed: whoever got the row number from a slot got this stamp with it, and while its guard
        // lives nobody writes another.
        self.segment.stamps[self.at].load(Ordering::Relaxed)
    }

    /// Notes that the row was used. A hint to eviction, ordered with nothing, of which some are lost when
    /// two readers meet; stored only a few times, so that popular rows do not pass a cache line between
    /// cores.
    #[inline]
    pub(super) fn mark(&self) {
        if let Some(mark) = self.segment.marks.get(self.at) {
            let marks = mark.load(Ordering::Relaxed);
            if marks < MOST_MARKS {
                mark.store(marks + 1, Ordering::Relaxed);
            }
        }
    }

    /// How often the row was used since this was last asked, up to [`MOST_MARKS`].
    pub(super) fn take_marks(&self) -> u8 {
        self.segment
            .marks
            .get(self.at)
            .map_or(0, |mark| mark.swap(0, Ordering::Relaxed))
    }

    /// Takes the marks of the row that this one replaces.
    pub(super) fn inherit_marks(&self, old: &RowRef<'_>) {
        if let Some(mark) = self.segment.marks.get(self.at) {
            mark.store(old.take_marks(), Ordering::Relaxed);
        }
    }

    /// Where the row's bytes are.
    #[inline]
    pub(super) fn bytes(&self) -> *mut u8 {
        self.bytes
    }

    /// Shows `see` what stands beside the row and will be needed: its stamp if `stamps`, its mark if there
    /// are marks. For prefetching.
    #[inline]
    pub(super) fn side_lines(&self, stamps: bool, see: impl Fn(*const u8)) {
        if stamps {
            see((&raw const self.segment.stamps[self.at]).cast());
        }
        if let Some(mark) = self.segment.marks.get(self.at) {
            see((&raw const *mark).cast());
        }
    }

    /// Stands guard over a read or write of the bytes when loom watches.
    #[inline]
    pub(super) fn watch(&self) -> &RaceWatch {
        &self.segment.watches[self.at]
    }

    /// Writer only, on a row that no reader can reach: whose row it is and since when.
    pub(super) fn dedicate(&self, key: u64, stamp: u32) {
        // Relaxed: the slot's Release store publishes both.
        self.segment.stamps[self.at].store(stamp, Ordering::Relaxed);
        if let Some(place) = self.segment.keys.get(self.at) {
            place.store(key, Ordering::Relaxed);
        }
        if let Some(mark) = self.segment.marks.get(self.at) {
            mark.store(0, Ordering::Relaxed);
        }
    }
}

/// All rows of a cache, used and unused.
pub(super) struct Slab {
    // Invariant: an entry is null or points to a leaked box that only `Drop` frees; entries go from
    // null to a segment once and never change again.
    directory: [AtomicPtr<Segment>; DIRECTORY],
    row_bytes: usize,
    /// log2 of the rows in the smallest segment.
    log_base: u32,
    /// Rows that may ever be made.
    limit: usize,
    evicting: bool,
    pages: Pages,
    /// What the first segments are parts of, if they are.
    mapping: Option<Arc<Mapping>>,
}

impl Slab {
    /// A slab of at most `limit` rows of this layout, of which `expected` will come; `evicting` keeps
    /// beside each row what eviction needs.
    pub(super) fn new(
        layout: &RowLayout,
        limit: usize,
        expected: usize,
        evicting: bool,
        pages: Pages,
    ) -> Self {
        let log_base = if cfg!(aif_loom) {
            1
        } else {
            let least = (FIRST_SEGMENT_BYTES / layout.row_bytes()).max(1).ilog2();
            let share = expected.min(limit).div_ceil(PER_SIZE);
            least.max(share.next_power_of_two().ilog2())
        };
        Self {
            directory: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            row_bytes: layout.row_bytes(),
            log_base,
            limit,
            evicting,
            pages,
            mapping: None,
        }
    }

    /// Bytes of the segments of the smallest size together, which can be parts of a mapping.
    pub(super) fn first_bytes(&self) -> Option<usize> {
        (PER_SIZE << self.log_base).checked_mul(self.row_bytes)
    }

    /// Before the first segment is made: has the first ones be parts of `mapping`, as far as it goes.
    pub(super) fn lie_in(&mut self, mapping: Mapping) {
        self.mapping = Some(Arc::new(mapping));
    }

    /// Bytes beside each row.
    pub(super) fn side_bytes(&self) -> usize {
        if self.evicting {
            EVICTING_SIDE_BYTES
        } else {
            SIDE_BYTES
        }
    }

    /// The segment that a row is in, and the row's number in it.
    #[inline]
    fn split(&self, row: u32) -> (usize, usize) {
        let block = (row >> self.log_base) as usize;
        let in_block = row as usize & ((1 << self.log_base) - 1);
        if block < PER_SIZE {
            return (block, in_block);
        }
        let block = block + PER_SIZE;
        let log_size = block.ilog2() - LOG_PER_SIZE;
        let segment = log_size as usize * PER_SIZE + (block >> log_size) - PER_SIZE;
        let block_in_segment = block & ((1 << log_size) - 1);
        (segment, (block_in_segment << self.log_base) | in_block)
    }

    /// The row of this number, which a slot named or which the writer holds.
    #[inline]
    pub(super) fn row(&self, row: u32) -> RowRef<'_> {
        let (segment, at) = self.split(row);
        // Acquire pairs with `grow`. (The slot's own ordering would do; on x86 it costs nothing.)
        let segment = self.directory[segment].load(Ordering::Acquire);
        assert!(!segment.is_null(), "row {row} was never made");
        // SAFETY: by the directory's invariant, valid until the slab is dropped, which `&self` prevents.
        let segment = unsafe { &*segment };
        debug_assert!(at < segment.stamps.len());
        // SAFETY: `rows` holds `stamps.len()` rows of `row_bytes`, and `at` is one of them.
        let bytes = unsafe { segment.rows.as_ptr().add(at * self.row_bytes) };
        RowRef { segment, at, bytes }
    }

    /// Rows in the segment that starts at row number `made`.
    pub(super) fn next_rows(&self, made: usize) -> usize {
        let (number, _) = self.split(made as u32);
        (1usize << (number / PER_SIZE) << self.log_base).min(self.limit.saturating_sub(made))
    }

    /// Writer only: adds the segment that starts at row number `made`; returns its rows.
    pub(super) fn grow(&self, made: usize) -> Result<usize> {
        let rows = self.next_rows(made);
        let what = || format!("rows {made} to {} of the cache", made + rows);
        let refused = || Error::OutOfMemory {
            what: what(),
            bytes: rows.saturating_mul(self.row_bytes),
        };
        let (number, at) = self.split(made as u32);
        if rows == 0 || number >= DIRECTORY {
            return Err(refused());
        }
        assert_eq!(at, 0, "a slab grows by whole segments");
        let bytes = rows.checked_mul(self.row_bytes).ok_or_else(refused)?;
        let mut watches = Vec::new();
        watches.try_reserve_exact(rows).map_err(|_| refused())?;
        watches.resize_with(rows, RaceWatch::default);
        let evicted = if self.evicting { rows } else { 0 };
        let segment = Box::new(Segment {
            rows: self.memory(made, bytes, &what())?,
            stamps: ZeroedArray::new(rows, self.pages, "the time stamps of rows")?,
            keys: ZeroedArray::new(evicted, self.pages, "the keys of rows")?,
            marks: ZeroedArray::new(evicted, self.pages, "the eviction marks of rows")?,
            watches: watches.into_boxed_slice(),
        });
        // Release: the segment's contents come before its address.
        self.directory[number].store(Box::into_raw(segment), Ordering::Release);
        Ok(rows)
    }
}

impl Slab {
    /// Memory for the rows of the segment that starts at row number `made`.
    fn memory(&self, made: usize, bytes: usize, what: &str) -> Result<AlignedBuffer> {
        let start = made.saturating_mul(self.row_bytes);
        match &self.mapping {
            Some(mapping) if start.saturating_add(bytes) <= mapping.len() => {
                Ok(AlignedBuffer::part_of(mapping, start, bytes))
            }
            _ => AlignedBuffer::on(self.pages, bytes, what),
        }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        for entry in &self.directory {
            let segment = entry.load(Ordering::Acquire);
            if !segment.is_null() {
                // SAFETY: by the directory's invariant; `&mut self` says that no reader is left.
                drop(unsafe { Box::from_raw(segment) });
            }
        }
    }
}

#[cfg(all(test, not(aif_loom)))]
mod tests {
    use super::super::layout::DType;
    use super::super::table::MAX_ROWS;
    use super::*;

    fn layout(floats: usize) -> RowLayout {
        RowLayout::new([("x", DType::Float32, vec![floats])]).unwrap()
    }

    #[test]
    fn rows_are_apart_aligned_and_stay_where_they_are() {
        let layout = layout(24);
        let slab = Slab::new(&layout, 5000, 0, true, Pages::default());
        let (mut made, mut places) = (0, Vec::new());
        while made < 5000 {
            let rows = slab.grow(made).unwrap();
            for row in made..made + rows {
                slab.row(row as u32).dedicate(row as u64 * 3, row as u32);
                places.push(slab.row(row as u32).bytes() as usize);
            }
            made += rows;
        }
        assert_eq!(made, 5000, "the last segment ends at the limit");
        assert!(slab.grow(made).is_err());
        for (row, &place) in places.iter().enumerate() {
            let found = slab.row(row as u32);
            assert_eq!((found.key(), found.stamp()), (row as u64 * 3, row as u32));
            assert_eq!(found.bytes() as usize, place);
            assert_eq!(place % 64, 0);
        }
        places.sort_unstable();
        assert!(
            places
                .windows(2)
                .all(|pair| pair[1] - pair[0] >= layout.row_bytes())
        );
    }

    #[test]
    fn every_row_number_has_a_place_in_the_directory() {
        for (floats, expected) in [
            (1, 0),
            (1000, 0),
            (1 << 20, 0),
            (1, 1_000_000),
            (1, MAX_ROWS),
        ] {
            let slab = Slab::new(
                &layout(floats),
                usize::MAX,
                expected,
                false,
                Pages::default(),
            );
            if expected > 0 {
                assert!(slab.split(expected as u32 - 1).0 < PER_SIZE);
            }
            let (segment, _) = slab.split(MAX_ROWS as u32);
            assert!(segment < DIRECTORY, "{segment}");
            let mut next = (0, 0);
            for row in 0..100_000 {
                assert_eq!(slab.split(row), next, "row {row}");
                let size = (1 << (next.0 / PER_SIZE)) << slab.log_base;
                next = if next.1 + 1 == size {
                    (next.0 + 1, 0)
                } else {
                    (next.0, next.1 + 1)
                };
            }
        }
    }

    #[test]
    fn marks_are_counted_and_taken_once() {
        let slab = Slab::new(&layout(1), 10, 0, true, Pages::default());
        slab.grow(0).unwrap();
        slab.row(3).mark();
        slab.row(3).mark();
        slab.row(4).inherit_marks(&slab.row(3));
        assert_eq!(slab.row(3).take_marks(), 0);
        assert_eq!(slab.row(4).take_marks(), 2);
        assert_eq!(slab.row(4).take_marks(), 0);
        (0..9).for_each(|_| slab.row(4).mark());
        assert_eq!(slab.row(4).take_marks(), MOST_MARKS);
        let unmarked = Slab::new(&layout(1), 10, 0, false, Pages::default());
        unmarked.grow(0).unwrap();
        unmarked.row(3).mark();
        assert_eq!(unmarked.row(3).take_marks(), 0);
    }
}
