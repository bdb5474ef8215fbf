//! Reading of rows in the cache into the inputs of the first layer.

use super::model::Model;
use crate::bf16::Bf16;
use crate::cache::{Column, DType, RowLayout};
use crate::error::{Error, Result};

/// Status bit of a candidate that has a row.
pub const FOUND: u8 = 1;
/// Status bit of a candidate that may be ranked.
pub const RANKABLE: u8 = 2;

/// Offset of a float column in a row, and its number format.
#[derive(Clone, Copy, Debug)]
struct Floats {
    offset: usize,
    width: usize,
    dtype: DType,
    /// Offset of the column's scale, if its numbers are quantised.
    scale: usize,
}

/// Offset and number of elements of another column.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: usize,
    width: usize,
}

/// Finds the columns of a layout that a model reads.
#[derive(Debug)]
pub(super) struct RowReader {
    layout: RowLayout,
    hidden: Option<Floats>,
    factored: Vec<Floats>,
    factored_width: usize,
    has_content: Option<Place>,
    signature: Option<Place>,
    category: Option<Place>,
    rankable: Option<Place>,
}

/// Destinations of the numbers of one row.
pub(super) struct Outs<'a> {
    /// Sums of the first layer.
    pub first: &'a mut [f32],
    /// Inputs that are multiplied as `bfloat16`; empty if none are.
    pub bf16: &'a mut [Bf16],
    /// Other inputs, the factored columns first if they are not above.
    pub f32: &'a mut [f32],
}

/// Data of a block's rows besides the inputs: column after column, row after row.
#[derive(Debug, Default)]
pub struct Blocks {
    signatures: Vec<u8>,
    signature_bytes: usize,
    has_content: Vec<f32>,
    categories: Vec<i32>,
    categories_each: usize,
}

impl Blocks {
    /// Makes room for `rows` rows.
    pub(super) fn prepare(&mut self, reader: &RowReader, rows: usize) {
        self.signature_bytes = reader.signature.map_or(0, |place| place.width);
        self.categories_each = reader.category.map_or(0, |place| place.width);
        self.signatures.resize(rows * self.signature_bytes, 0);
        self.categories.resize(rows * self.categories_each, 0);
        self.has_content.resize(rows, 0.0);
    }

    /// Returns the bytes of a signature, and the signatures of the first `n` rows.
    pub(super) fn signatures(&self, n: usize) -> (usize, &[u8]) {
        (
            self.signature_bytes,
            &self.signatures[..n * self.signature_bytes],
        )
    }

    /// Returns 1 for each of the first `n` rows that has content, 0 for the others.
    pub(super) fn has_content(&self, n: usize) -> &[f32] {
        &self.has_content[..n]
    }

    /// Returns the categories of the first `n` rows.
    pub(super) fn categories(&self, n: usize) -> impl Iterator<Item = &[i32]> {
        (0..n).map(|row| &self.categories[row * self.categories_each..][..self.categories_each])
    }
}

impl RowReader {
    /// Makes a reader of the columns that `model` needs.
    pub fn new(layout: &RowLayout, model: &Model<'_>) -> Result<Self> {
        let scales = layout
            .columns()
            .iter()
            .find(|column| column.name() == "scale");
        let mut quantised = 0;
        let mut floats = |name: &str| -> Result<Option<Floats>> {
            let Some(column) = layout.columns().iter().find(|column| column.name() == name) else {
                return Ok(None);
            };
            let fits = matches!(
                column.dtype(),
                DType::Float32 | DType::BFloat16 | DType::Int8
            ) && column.shape().len() == 1;
            if !fits {
                return Err(wrong(layout, name, "a vector of float32, bfloat16 or int8"));
            }
            let mut scale = 0;
            if column.dtype() == DType::Int8 {
                scale = scales
                    .filter(|scales| scales.dtype() == DType::Float32)
                    .filter(|scales| quantised < scales.bytes() / 4)
                    .map(|scales| scales.offset() + 4 * quantised)
                    .ok_or_else(|| {
                        wrong(
                            layout,
                            "scale",
                            "float32, one for each int8 column in the order h, factors",
                        )
                    })?;
                quantised += 1;
            }
            Ok(Some(Floats {
                offset: column.offset(),
                width: column.shape()[0],
                dtype: column.dtype(),
                scale,
            }))
        };
        let hidden = floats("h")?;
        if hidden.is_some_and(|column| column.width != model.hidden) {
            return Err(wrong(
                layout,
                "h",
                &format!("{} numbers wide", model.hidden),
            ));
        }
        let mut factored = Vec::new();
        for name in &model.factored {
            factored.push(floats(name)?.ok_or_else(|| wrong(layout, name, "there"))?);
        }
        let signed = model.tiers.is_some() || model.table.is_some();
        let other = |name: &str, dtype: DType, wanted: bool| -> Result<Option<Place>> {
            if !wanted {
                return Ok(None);
            }
            let column = layout.columns().iter().find(|column| column.name() == name);
            let place = column
                .filter(|column| column.dtype() == dtype)
                .map(|column| Place {
                    offset: column.offset(),
                    width: column.bytes() / dtype.size(),
                });
            place
                .map(Some)
                .ok_or_else(|| wrong(layout, name, &format!("{} numbers", dtype.name())))
        };
        let signature = other("signature", DType::UInt8, signed)?;
        if let (Some(place), Some(tiers)) = (signature, &model.tiers)
            && place.width != tiers.sequence.width
        {
            let wanted = format!(
                "{} bytes wide, as those of the sequence",
                tiers.sequence.width
            );
            return Err(wrong(layout, "signature", &wanted));
        }
        let has_rankable = layout
            .columns()
            .iter()
            .any(|column| column.name() == "rankable");
        Ok(Self {
            hidden,
            factored_width: factored.iter().map(|column| column.width).sum(),
            factored,
            has_content: other("has_content", DType::Float32, signed)?,
            signature,
            category: other("category", DType::Int32, model.slots.is_some())?,
            rankable: other("rankable", DType::UInt8, has_rankable)?,
            layout: layout.clone(),
        })
    }

    /// Returns the number of values of a row that are multiplied with factors.
    pub fn factored(&self) -> usize {
        self.factored_width
    }

    /// Returns whether these are stored in less than 32 bits, and so are `bfloat16` once they are read.
    pub fn reduced(&self) -> bool {
        self.factored
            .iter()
            .all(|column| column.dtype != DType::Float32)
    }

    /// Checks that rows of a cache, and the row in place of missing ones, have the layout read here.
    pub fn fits(&self, layout: &RowLayout, missing: Option<&[u8]>) -> Result<()> {
        if *layout != self.layout {
            return Err(Error::Layout(format!(
                "the cache has {layout:?}, and the interaction reads {:?}",
                self.layout
            )));
        }
        match missing {
            Some(row) if row.len() != self.layout.row_bytes() => Err(Error::Layout(format!(
                "the row in place of missing ones has {} bytes, expected {}",
                row.len(),
                self.layout.row_bytes()
            ))),
            _ => Ok(()),
        }
    }

    /// Reads a row into position `place` of the block. Returns [`RANKABLE`] if it may be ranked, else 0.
    #[inline]
    pub fn read(
        &self,
        row: &[u8],
        shared: &[f32],
        outs: &mut Outs<'_>,
        place: usize,
        blocks: &mut Blocks,
    ) -> u8 {
        outs.first.copy_from_slice(shared);
        if let Some(column) = &self.hidden {
            column.each(row, outs.first, |sum, value| *sum += value);
        }
        let mut at = 0;
        for column in &self.factored {
            let places = at..at + column.width;
            if outs.bf16.is_empty() {
                let f32 = &mut outs.f32[places];
                match column.dtype {
                    // Products of quantised numbers and their scale are rounded, as they are where products
                    // take them in 16 bits.
                    DType::Int8 => column.each(row, f32, |single, value| {
                        *single = Bf16::round(value).widen();
                    }),
                    _ => column.each(row, f32, |single, value| *single = value),
                }
            } else {
                let bf16 = &mut outs.bf16[places];
                if column.dtype == DType::BFloat16 {
                    let numbers = bytes(row, column.offset, 2 * column.width).as_chunks().0;
                    for (half, &number) in bf16.iter_mut().zip(numbers) {
                        *half = Bf16(u16::from_ne_bytes(number));
                    }
                } else {
                    column.each(row, bf16, |half, value| *half = Bf16::round(value));
                }
            }
            at += column.width;
        }
        if let Some(last) = outs.bf16.get_mut(at) {
            *last = Bf16::default();
        }
        if let Some(column) = &self.signature {
            let signature = bytes(row, column.offset, column.width);
            blocks.signatures[place * column.width..][..column.width].copy_from_slice(signature);
        }
        if let Some(column) = &self.has_content {
            blocks.has_content[place] = f32_at(row, column.offset);
        }
        if let Some(column) = &self.category {
            let categories = bytes(row, column.offset, 4 * column.width).as_chunks().0;
            let out = &mut blocks.categories[place * column.width..][..column.width];
            for (out, &category) in out.iter_mut().zip(categories) {
                *out = i32::from_ne_bytes(category);
            }
        }
        self.rankable.map_or(RANKABLE, |column| {
            u8::from(row[column.offset] != 0) * RANKABLE
        })
    }

    /// Fills the position of a missing row with harmless numbers.
    pub fn read_nothing(shared: &[f32], outs: &mut Outs<'_>, place: usize, blocks: &mut Blocks) {
        outs.first.copy_from_slice(shared);
        outs.bf16.fill(Bf16::default());
        outs.f32.fill(0.0);
        let (each, categories) = (blocks.signature_bytes, blocks.categories_each);
        blocks.signatures[place * each..][..each].fill(0);
        blocks.categories[place * categories..][..categories].fill(0);
        blocks.has_content[place] = 0.0;
    }
}

impl Floats {
    /// Calls `visit` with the numbers of a row's column, widened, each with its destination in `outs`.
    #[inline]
    fn each<T>(&self, row: &[u8], outs: &mut [T], mut visit: impl FnMut(&mut T, f32)) {
        let numbers = bytes(row, self.offset, self.width * self.dtype.size());
        // By iterators instead of indices, so that the loops are vectorised.
        match self.dtype {
            DType::BFloat16 => {
                for (out, &number) in outs.iter_mut().zip(numbers.as_chunks().0) {
                    visit(out, Bf16(u16::from_ne_bytes(number)).widen());
                }
            }
            DType::Int8 => {
                let scale = f32_at(row, self.scale);
                for (out, &number) in outs.iter_mut().zip(numbers) {
                    visit(out, f32::from(number.cast_signed()) * scale);
                }
            }
            _ => {
                for (out, &number) in outs.iter_mut().zip(numbers.as_chunks().0) {
                    visit(out, f32::from_ne_bytes(number));
                }
            }
        }
    }
}

#[inline]
fn bytes(row: &[u8], offset: usize, len: usize) -> &[u8] {
    &row[offset..offset + len]
}

#[inline]
fn f32_at(row: &[u8], offset: usize) -> f32 {
    let number = row[offset..]
        .first_chunk()
        .expect("a column lies inside its row");
    f32::from_ne_bytes(*number)
}

fn wrong(layout: &RowLayout, name: &str, wanted: &str) -> Error {
    let found = layout.columns().iter().find(|column| column.name() == name);
    let found = found.map_or("no such column".into(), |column: &Column| {
        format!("{}{:?}", column.dtype().name(), column.shape())
    });
    Error::Layout(format!(
        "interaction: column {name:?} of item rows must be {wanted}, and {layout:?} has {found}; export the \
         model and build its item index with one release"
    ))
}
