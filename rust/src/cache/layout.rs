//! Row layout: named columns, each with an element type and a shape, at fixed offsets.

use crate::error::{Error, Result};
use std::fmt;

/// Alignment of rows: a cache line, so that two rows never share one.
pub const ROW_ALIGN: usize = 64;

/// Alignment of columns, sufficient for every element type.
const COLUMN_ALIGN: usize = 4;

/// Maximum size of a row: 1 GiB; a larger one is taken for a mistake in a shape.
const MAX_ROW_BYTES: usize = 1 << 30;

/// Element type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    Float32,
    /// Upper half of a binary32.
    BFloat16,
    /// IEEE 754 binary16.
    Float16,
    /// Signed byte.
    Int8,
    /// Unsigned byte; packed signature bits.
    UInt8,
    /// Signed 32-bit integer.
    Int32,
    /// Unsigned 32-bit integer.
    UInt32,
}

impl DType {
    /// All element types, in the order in which error messages list them.
    pub const ALL: [Self; 7] = [
        Self::Float32,
        Self::BFloat16,
        Self::Float16,
        Self::Int8,
        Self::UInt8,
        Self::Int32,
        Self::UInt32,
    ];

    /// Returns the bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Float32 | Self::Int32 | Self::UInt32 => 4,
            Self::BFloat16 | Self::Float16 => 2,
            Self::Int8 | Self::UInt8 => 1,
        }
    }

    /// Returns the name of the type in `NumPy` (with `ml_dtypes`).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::BFloat16 => "bfloat16",
            Self::Float16 => "float16",
            Self::Int8 => "int8",
            Self::UInt8 => "uint8",
            Self::Int32 => "int32",
            Self::UInt32 => "uint32",
        }
    }

    /// Parses the name of a type.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|dtype| dtype.name() == name)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::name).join(", ");
                Error::Layout(format!(
                    "dtype {name:?} is not one a row can hold; use one of {known}"
                ))
            })
    }
}

/// Named column of a row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Column {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    offset: usize,
    bytes: usize,
}

impl Column {
    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns the shape within one row; empty for a scalar.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Returns the offset within a row, in bytes.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Returns the bytes of the column in one row.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Columns of a row and their offsets.
///
/// Columns keep the order in which they were given; each starts at a multiple of 4 bytes, and a row is
/// rounded up to whole cache lines.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RowLayout {
    columns: Vec<Column>,
    payload_bytes: usize,
    row_bytes: usize,
}

impl RowLayout {
    /// Makes a layout of `columns`, each a name, an element type and a shape within one row.
    ///
    /// # Errors
    /// [`Error::Layout`] if there is no column, a name is empty or repeated, a dimension is zero,
    /// or a row would exceed 1 GiB.
    pub fn new<N, S>(columns: impl IntoIterator<Item = (N, DType, S)>) -> Result<Self>
    where
        N: Into<String>,
        S: Into<Vec<usize>>,
    {
        let mut built: Vec<Column> = Vec::new();
        let mut payload_bytes = 0usize;
        let mut end = 0usize;
        for (name, dtype, shape) in columns {
            let (name, shape) = (name.into(), shape.into());
            if name.is_empty() {
                return Err(Error::Layout(format!(
                    "column {} has an empty name; name every column",
                    built.len()
                )));
            }
            if built.iter().any(|other| other.name == name) {
                return Err(Error::Layout(format!(
                    "column {name:?} is given twice; names must differ"
                )));
            }
            if shape.contains(&0) {
                return Err(Error::Layout(format!(
                    "column {name:?} has shape {shape:?} with a dimension of 0; leave the column out instead"
                )));
            }
            let offset = end.next_multiple_of(COLUMN_ALIGN);
            let bytes = shape
                .iter()
                .try_fold(dtype.size(), |bytes, &dim| bytes.checked_mul(dim))
                .filter(|bytes| bytes.saturating_add(offset) <= MAX_ROW_BYTES)
                .ok_or_else(|| {
                    Error::Layout(format!(
                        "column {name:?} of shape {shape:?} makes the row longer than {MAX_ROW_BYTES} bytes; \
                         a row is one item or one user state, not a table"
                    ))
                })?;
            end = offset + bytes;
            payload_bytes += bytes;
            built.push(Column {
                name,
                dtype,
                shape,
                offset,
                bytes,
            });
        }
        if built.is_empty() {
            return Err(Error::Layout(
                "a row layout needs at least one column; none was given".into(),
            ));
        }
        Ok(Self {
            columns: built,
            payload_bytes,
            row_bytes: end.next_multiple_of(ROW_ALIGN),
        })
    }

    /// Returns the columns, in order.
    #[must_use]
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Returns the bytes of the columns of one row, without padding.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Returns the bytes from one row to the next: a multiple of [`ROW_ALIGN`].
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }
}

impl fmt::Debug for RowLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RowLayout(")?;
        for (i, column) in self.columns.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(
                f,
                "{comma}{}: {}{:?}",
                column.name,
                column.dtype.name(),
                column.shape
            )?;
        }
        write!(f, "; {} bytes)", self.row_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_rows_fill_whole_lines() {
        let layout = RowLayout::new([
            ("signature", DType::UInt8, vec![5]),
            ("h", DType::Float32, vec![3, 2]),
            ("flag", DType::BFloat16, vec![]),
        ])
        .unwrap();
        let offsets: Vec<_> = layout
            .columns()
            .iter()
            .map(|c| (c.offset(), c.bytes()))
            .collect();
        assert_eq!(offsets, [(0, 5), (8, 24), (32, 2)]);
        assert_eq!(layout.payload_bytes(), 5 + 24 + 2);
        assert_eq!(layout.row_bytes(), 64);
    }

    #[test]
    fn contradictions_are_refused() {
        type Columns = Vec<(&'static str, DType, Vec<usize>)>;
        let bad: [(&str, Columns); 5] = [
            ("at least one column", vec![]),
            (
                "twice",
                vec![("a", DType::Int8, vec![1]), ("a", DType::Int8, vec![1])],
            ),
            ("empty name", vec![("", DType::Int8, vec![1])]),
            ("dimension of 0", vec![("a", DType::Int8, vec![4, 0])]),
            (
                "longer than",
                vec![("a", DType::Float32, vec![usize::MAX, 2])],
            ),
        ];
        for (expected, columns) in bad {
            let error = RowLayout::new(columns).unwrap_err();
            assert!(
                matches!(&error, Error::Layout(text) if text.contains(expected)),
                "{error}"
            );
        }
        assert!(
            DType::from_name("float64")
                .unwrap_err()
                .to_string()
                .contains("bfloat16")
        );
        for dtype in DType::ALL {
            assert_eq!(DType::from_name(dtype.name()), Ok(dtype));
        }
    }
}
