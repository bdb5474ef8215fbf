//! Packing of a behaviour sequence for the vector units: grouped by channel, lanes adjacent.

use super::arch::planes::Segment;
use crate::buffer::AlignedBuffer;
use crate::error::Result;

/// Behaviours of one block, which belong to one channel.
pub(super) const LANES: usize = 64;

/// Marker of a lane without a behaviour.
pub(super) const EMPTY: u32 = u32::MAX;

/// Blocks of one channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// First block.
    pub first: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Behaviours in them; the remaining lanes are empty.
    pub behaviours: usize,
}

/// Behaviours in blocks of [`LANES`], each block of one channel.
#[derive(Debug)]
pub(super) struct Grouped {
    /// One span per channel.
    pub spans: Vec<Span>,
    /// Behaviour in each lane, or [`EMPTY`].
    pub lanes: Vec<u32>,
}

impl Grouped {
    /// Groups behaviours by channel and drops those whose channel is outside `0..channels`.
    pub fn new(channel: &[i32], channels: usize) -> Self {
        let known = |c: i32| usize::try_from(c).ok().filter(|&c| c < channels);
        let mut spans = vec![
            Span {
                first: 0,
                blocks: 0,
                behaviours: 0
            };
            channels
        ];
        for c in channel.iter().filter_map(|&c| known(c)) {
            spans[c].behaviours += 1;
        }
        let mut blocks = 0;
        for span in &mut spans {
            span.first = blocks;
            span.blocks = span.behaviours.div_ceil(LANES);
            blocks += span.blocks;
        }
        let mut lanes = vec![EMPTY; blocks * LANES];
        let mut next: Vec<usize> = spans.iter().map(|span| span.first * LANES).collect();
        for (behaviour, &c) in channel.iter().enumerate() {
            if let Some(c) = known(c) {
                lanes[next[c]] = behaviour as u32;
                next[c] += 1;
            }
        }
        Self { spans, lanes }
    }

    /// Returns, for every `words` blocks, the segments that belong to each channel; a candidate has `tiers`
    /// counts for each.
    pub fn segments(&self, words: usize, tiers: usize) -> Vec<Vec<Segment>> {
        let blocks = self.lanes.len() / LANES;
        let mut segments = vec![Vec::new(); blocks.div_ceil(words)];
        for (channel, span) in self.spans.iter().enumerate() {
            let mut block = span.first;
            let end = span.first + span.blocks;
            while block < end {
                let first = block % words;
                let taken = (words - first).min(end - block);
                segments[block / words].push(Segment {
                    first,
                    end: first + taken,
                    at: channel * tiers,
                });
                block += taken;
            }
        }
        segments
    }

    /// Returns `value` of the behaviour in each lane; `empty` where there is none.
    pub fn map<T: Copy>(&self, empty: T, value: impl Fn(usize) -> T) -> Vec<T> {
        self.lanes
            .iter()
            .map(|&lane| {
                if lane == EMPTY {
                    empty
                } else {
                    value(lane as usize)
                }
            })
            .collect()
    }

    /// Packs rows of `width` bytes as `[block][width / group][LANES][group]`; empty lanes are zero.
    pub fn transpose(&self, rows: &[u8], width: usize, group: usize) -> Result<Packed> {
        match group {
            1 => self.transpose_by::<1>(rows, width),
            2 => self.transpose_by::<2>(rows, width),
            4 => self.transpose_by::<4>(rows, width),
            _ => unreachable!("no kernel reads groups of {group} bytes"),
        }
    }

    fn transpose_by<const GROUP: usize>(&self, rows: &[u8], width: usize) -> Result<Packed> {
        let mut packed = Packed::zeroed(self.lanes.len() * width)?;
        let blocks = packed.bytes_mut().chunks_exact_mut(LANES * width);
        for (lanes, block) in self.lanes.as_chunks::<LANES>().0.iter().zip(blocks) {
            let groups = block.as_chunks_mut::<GROUP>().0;
            for (lane, &row) in lanes.iter().enumerate().filter(|&(_, &row)| row != EMPTY) {
                let row = &rows[row as usize * width..][..width];
                for (place, bytes) in groups[lane..]
                    .iter_mut()
                    .step_by(LANES)
                    .zip(row.as_chunks().0)
                {
                    *place = *bytes;
                }
            }
        }
        Ok(packed)
    }
}

/// Bytes aligned to a cache line, so that no vector load crosses one.
#[derive(Debug)]
pub(super) struct Packed(AlignedBuffer);

impl Packed {
    pub fn zeroed(bytes: usize) -> Result<Self> {
        AlignedBuffer::new(bytes, "a behaviour sequence laid out for the vector units").map(Self)
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the buffer owns `len` bytes, all written (zeroed), and lends them out by `self` only.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), self.0.len()) }
    }

    /// Returns the bytes as words.
    pub fn words(&self) -> &[u64] {
        // SAFETY: as above; buffers start on a cache line.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() / 8) }
    }

    /// Returns the words, mutable.
    pub fn words_mut(&mut self) -> &mut [u64] {
        // SAFETY: as above, and `&mut self` excludes every other view.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr().cast(), self.0.len() / 8) }
    }

    /// Returns the bytes, mutable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` excludes every other view.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr(), self.0.len()) }
    }
}
