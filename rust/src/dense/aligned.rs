//! Scratch memory that is reused between calls and grows on demand.

use crate::bf16::Bf16;
use crate::buffer::AlignedBuffer;
use crate::error::{Error, Result};
use std::marker::PhantomData;

/// Numbers for which all bit patterns are valid.
///
/// # Safety
/// All bit patterns must be valid values, and none may need more than a cache line's alignment.
pub unsafe trait Number: Copy {}

// SAFETY: floats have no invalid bits.
unsafe impl Number for f32 {}
// SAFETY: an integer inside.
unsafe impl Number for Bf16 {}

/// Growable array of numbers, aligned to a cache line.
#[derive(Debug)]
pub struct Aligned<T> {
    buffer: AlignedBuffer,
    kind: PhantomData<T>,
}

impl<T> Default for Aligned<T> {
    fn default() -> Self {
        Self {
            buffer: AlignedBuffer::default(),
            kind: PhantomData,
        }
    }
}

impl<T: Number> Aligned<T> {
    /// Returns the first `len` numbers, with arbitrary contents, growing the array if it is shorter.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if it must grow and the system refuses; growing loses the contents.
    pub fn get_mut(&mut self, len: usize) -> Result<&mut [T]> {
        const WHAT: &str = "numbers of the interaction";
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or_else(|| Error::OutOfMemory {
                what: WHAT.into(),
                bytes: usize::MAX,
            })?;
        if self.buffer.len() < bytes {
            self.buffer = AlignedBuffer::new(bytes, WHAT)?;
        }
        // SAFETY: the buffer has the bytes, aligned, initialised (zeroed, then only written as `T`), and
        // lends them by `&mut self` only; any bits are a `T`.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.start(), len) })
    }

    /// Returns the whole array.
    #[must_use]
    pub fn all(&self) -> &[T] {
        // SAFETY: as above, lent by `&self`.
        unsafe { std::slice::from_raw_parts(self.start(), self.buffer.len() / size_of::<T>()) }
    }

    #[allow(clippy::cast_ptr_alignment)] // the buffer starts on a cache line
    fn start(&self) -> *mut T {
        self.buffer.as_ptr().cast()
    }
}
