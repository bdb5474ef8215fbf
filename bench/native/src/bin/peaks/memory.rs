//! Reading memory: rows in random order, and from end to end.

use aif_bench::keys::{Popularity, draw};
use aif_core::buffer::{AlignedBuffer, Pages};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows of a request.
const BATCH: usize = 4096;
/// Rows that are fetched ahead.
const AHEAD: usize = 6;
const LINE: usize = 64;
/// Batches that take turns, so that none finds its rows in the processor's cache.
const BATCHES: usize = 64;
/// Pieces that streams take in turn, larger than the caches together.
const PARTS: usize = 8;

/// As many rows as a catalogue has, on huge pages.
pub struct Table {
    memory: AlignedBuffer,
    rows: usize,
    row_bytes: usize,
    batches: Vec<Vec<usize>>,
    turn: AtomicUsize,
}

impl Table {
    /// A table of `rows` rows.
    ///
    /// # Panics
    /// If rows are not whole cache lines, or there is no memory for them.
    pub fn new(rows: usize, row_bytes: usize) -> Self {
        assert!(
            row_bytes > 0 && row_bytes.is_multiple_of(LINE),
            "ROW_BYTES {row_bytes}: expected a multiple of {LINE}"
        );
        let pages = Pages {
            huge: true,
            prefault: true,
        };
        let memory = AlignedBuffer::with_pages(pages, rows * row_bytes, "the table")
            .expect("memory for the table");
        let batches = (0..BATCHES)
            .map(|seed| draw(rows, BATCH, Popularity::Uniform, seed as u64))
            .collect();
        Self {
            memory,
            rows,
            row_bytes,
            batches,
            turn: AtomicUsize::new(0),
        }
    }

    /// Bytes of one batch of rows.
    pub fn batch_bytes(&self) -> f64 {
        (BATCH * self.row_bytes) as f64
    }

    /// Bytes of one part of a stream.
    pub fn part_bytes(&self) -> f64 {
        (self.words().len() / PARTS * size_of::<u64>()) as f64
    }

    /// Reads `times` batches of rows.
    pub fn random_rows(&self, times: u64) {
        let (words, width) = (self.words(), self.row_bytes / size_of::<u64>());
        let row = |number: usize| &words[number * width..(number + 1) * width];
        for _ in 0..times {
            let batch = &self.batches[self.next() % BATCHES];
            let mut total = 0;
            for (place, &number) in batch.iter().enumerate() {
                if let Some(&later) = batch.get(place + AHEAD) {
                    fetch(row(later));
                }
                total ^= xor(row(number));
            }
            black_box(total);
        }
    }

    /// Reads `times` parts from end to end.
    pub fn streaming(&self, times: u64) {
        let words = self.words();
        let part = words.len() / PARTS;
        for _ in 0..times {
            let start = self.next() % PARTS * part;
            black_box(xor(&words[start..start + part]));
        }
    }

    fn next(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    fn words(&self) -> &[u64] {
        let count = self.rows * self.row_bytes / size_of::<u64>();
        // SAFETY: the buffer is that large, aligned to a line, zero at first, and never written to.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), count) }
    }
}

/// All words of a slice, so that each is read.
fn xor(words: &[u64]) -> u64 {
    let mut lanes = [0; 32];
    let (chunks, rest) = words.as_chunks::<32>();
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane ^= word;
        }
    }
    lanes.iter().chain(rest).fold(0, |all, word| all ^ word)
}

#[cfg(target_arch = "x86_64")]
fn fetch(row: &[u64]) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    for line in row.chunks(LINE / size_of::<u64>()) {
        // SAFETY: a hint about memory that the slice covers; every x86-64 processor knows it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn fetch(_: &[u64]) {}
