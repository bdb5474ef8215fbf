//! Memory that is kept between calls and grows when a call needs more.

use crate::buffer::AlignedBuffer;
use crate::dense::Bf16;
use crate::error::Result;
use std::marker::PhantomData;

/// Numbers of which any bytes are one.
///
/// # Safety
/// All bit patterns must be values, and none may need more than a cache line's alignment.
pub(super) unsafe trait Number: Copy {}

// SAFETY: floats have no invalid bits.
unsafe impl Number for f32 {}
// SAFETY: an integer inside.
unsafe impl Number for Bf16 {}

/// Numbers from the start of a cache line on.
#[derive(Debug)]
pub(super) struct Aligned<T> {
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
    /// `len` numbers: zeros, or what was left there.
    pub fn of(&mut self, len: usize) -> Result<&mut [T]> {
        let bytes = len * size_of::<T>();
        if self.buffer.len() < bytes {
            self.buffer = AlignedBuffer::new(bytes, "a block of candidates")?;
        }
        // SAFETY: the buffer has the bytes, aligned, initialised (zeroed, then only written as `T`), and
        // lends them by `&mut self` only; any bits are a `T`.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.buffer.as_ptr().cast(), len) })
    }
}
