//! Memory of the rows: segments that never move, with the metadata of each row: its time stamp and, if rows
//! are evicted, its key and frequency.
//!
//! Segments grow with the slab, eight of each size before the size doubles, so that at most an eighth of
//! the slab is unused memory, and a fixed directory of 256 entries covers all 2^32 rows. If the number of
//! rows is known beforehand, the first eight segments hold them: larger segments put more of the slab on
//! huge pages. Untouched pages take address space and no memory.

use super::layout::RowLayout;
use super::s3_fifo::MAX_FREQUENCY;
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

/// Minimum bytes of the first segments.
const FIRST_SEGMENT_BYTES: usize = 64 << 10;

/// Metadata bytes of each row: its time stamp.
const SIDE_BYTES: usize = size_of::<u32>();

/// Metadata bytes of each row that can be evicted: time stamp, key and frequency.
pub(super) const EVICTING_SIDE_BYTES: usize = SIDE_BYTES + size_of::<u64>() + size_of::<u8>();

/// Run of rows with their metadata.
struct Segment {
    rows: AlignedBuffer,
    stamps: ZeroedArray<AtomicU32>,
    /// Keys by row, for the eviction order, which returns rows; empty without eviction.
    keys: ZeroedArray<AtomicU64>,
    /// Use count by row, incremented by readers; empty without eviction.
    frequencies: ZeroedArray<AtomicU8>,
    watches: Box<[RaceWatch]>,
}

/// Reference to a row: its segment and its index in it.
#[derive(Clone, Copy)]
pub(super) struct RowRef<'a> {
    segment: &'a Segment,
    at: usize,
    bytes: *mut u8,
}

impl RowRef<'_> {
    /// Returns the key of a row that can be evicted. Writer only.
    pub(super) fn key(&self) -> u64 {
        self.segment.keys[self.at].load(Ordering::Relaxed)
    }

    /// Returns the tick at which the row was written.
    #[inline]
    pub(super) fn stamp(&self) -> u32 {
        // Relaxed: a thread that read the row number from a slot read this stamp with it, and no other is
        // written while its guard lives.
        self.segment.stamps[self.at].load(Ordering::Relaxed)
    }

    /// Counts a use of the row. A hint for eviction with relaxed ordering: increments are lost when two
    /// readers race. A saturated counter is not stored to, so that popular rows do not bounce a cache line
    /// between cores.
    #[inline]
    pub(super) fn touch(&self) {
        if let Some(mark) = self.segment.frequencies.get(self.at) {
            let marks = mark.load(Ordering::Relaxed);
            if marks < MAX_FREQUENCY {
                mark.store(marks + 1, Ordering::Relaxed);
            }
        }
    }

    /// Returns and resets the number of uses since the last call, up to [`MAX_FREQUENCY`].
    pub(super) fn take_frequency(&self) -> u8 {
        self.segment
            .frequencies
            .get(self.at)
            .map_or(0, |mark| mark.swap(0, Ordering::Relaxed))
    }

    /// Takes over the frequency of the row that this one replaces.
    pub(super) fn inherit_frequency(&self, old: &RowRef<'_>) {
        if let Some(mark) = self.segment.frequencies.get(self.at) {
            mark.store(old.take_frequency(), Ordering::Relaxed);
        }
    }

    /// Returns the address of the row's bytes.
    #[inline]
    pub(super) fn bytes(&self) -> *mut u8 {
        self.bytes
    }

    /// Calls `visit` with the addresses of the metadata that a look-up needs, for prefetching: the stamp if
    /// `stamps`, and the frequency if there is one.
    #[inline]
    pub(super) fn metadata_lines(&self, stamps: bool, visit: impl Fn(*const u8)) {
        if stamps {
            visit((&raw const self.segment.stamps[self.at]).cast());
        }
        if let Some(mark) = self.segment.frequencies.get(self.at) {
            visit((&raw const *mark).cast());
        }
    }

    /// Returns the guard under which loom checks reads and writes of the bytes.
    #[inline]
    pub(super) fn watch(&self) -> &RaceWatch {
        &self.segment.watches[self.at]
    }

    /// Sets the key and the time stamp of a row that no reader can reach. Writer only.
    pub(super) fn init_header(&self, key: u64, stamp: u32) {
        // Relaxed: the Release store of the slot publishes both.
        self.segment.stamps[self.at].store(stamp, Ordering::Relaxed);
        if let Some(place) = self.segment.keys.get(self.at) {
            place.store(key, Ordering::Relaxed);
        }
        if let Some(mark) = self.segment.frequencies.get(self.at) {
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
    /// Maximum number of rows.
    limit: usize,
    evicting: bool,
    pages: Pages,
    /// Mapping that backs the first segments, if any.
    mapping: Option<Arc<Mapping>>,
}

impl Slab {
    /// Makes a slab of at most `limit` rows of this layout, sized for `expected` rows; `evicting` adds the
    /// metadata that eviction needs.
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

    /// Returns the total bytes of the smallest segments, which a mapping can back.
    pub(super) fn first_bytes(&self) -> Option<usize> {
        (PER_SIZE << self.log_base).checked_mul(self.row_bytes)
    }

    /// Backs the first segments with `mapping`, as far as it reaches. Called before the first segment is
    /// made.
    pub(super) fn back_with(&mut self, mapping: Mapping) {
        self.mapping = Some(Arc::new(mapping));
    }

    /// Returns the metadata bytes of each row.
    pub(super) fn side_bytes(&self) -> usize {
        if self.evicting {
            EVICTING_SIDE_BYTES
        } else {
            SIDE_BYTES
        }
    }

    /// Splits a row number into its segment and its index in the segment.
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

    /// Returns the row of this number, which was read from a slot or belongs to the writer.
    #[inline]
    pub(super) fn row(&self, row: u32) -> RowRef<'_> {
        let (segment, at) = self.split(row);
        // Acquire pairs with `grow`. (The slot's own ordering would suffice; on x86 it costs nothing.)
        let segment = self.directory[segment].load(Ordering::Acquire);
        assert!(!segment.is_null(), "row {row} was never made");
        // SAFETY: by the directory's invariant, valid until the slab is dropped, which `&self` prevents.
        let segment = unsafe { &*segment };
        debug_assert!(at < segment.stamps.len());
        // SAFETY: `rows` holds `stamps.len()` rows of `row_bytes`, and `at` is one of them.
        let bytes = unsafe { segment.rows.as_ptr().add(at * self.row_bytes) };
        RowRef { segment, at, bytes }
    }

    /// Returns the number of rows in the segment that starts at row number `made`.
    pub(super) fn next_rows(&self, made: usize) -> usize {
        let (number, _) = self.split(made as u32);
        (1usize << (number / PER_SIZE) << self.log_base).min(self.limit.saturating_sub(made))
    }

    /// Adds the segment that starts at row number `made`; returns its number of rows. Writer only.
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
            frequencies: ZeroedArray::new(evicted, self.pages, "the eviction marks of rows")?,
            watches: watches.into_boxed_slice(),
        });
        // Release: the segment's contents precede its address.
        self.directory[number].store(Box::into_raw(segment), Ordering::Release);
        Ok(rows)
    }
}

impl Slab {
    /// Allocates memory for the rows of the segment that starts at row number `made`.
    fn memory(&self, made: usize, bytes: usize, what: &str) -> Result<AlignedBuffer> {
        let start = made.saturating_mul(self.row_bytes);
        match &self.mapping {
            Some(mapping) if start.saturating_add(bytes) <= mapping.len() => {
                Ok(AlignedBuffer::from_mapping(mapping, start, bytes))
            }
            _ => AlignedBuffer::with_pages(self.pages, bytes, what),
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
                slab.row(row as u32).init_header(row as u64 * 3, row as u32);
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
        slab.row(3).touch();
        slab.row(3).touch();
        slab.row(4).inherit_frequency(&slab.row(3));
        assert_eq!(slab.row(3).take_frequency(), 0);
        assert_eq!(slab.row(4).take_frequency(), 2);
        assert_eq!(slab.row(4).take_frequency(), 0);
        (0..9).for_each(|_| slab.row(4).touch());
        assert_eq!(slab.row(4).take_frequency(), MAX_FREQUENCY);
        let unmarked = Slab::new(&layout(1), 10, 0, false, Pages::default());
        unmarked.grow(0).unwrap();
        unmarked.row(3).touch();
        assert_eq!(unmarked.row(3).take_frequency(), 0);
    }
}
