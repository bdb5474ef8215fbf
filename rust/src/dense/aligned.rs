//! Memory that is kept between calls and grows when a call needs more.

use crate::bf16::Bf16;
use crate::buffer::AlignedBuffer;
use crate::error::Result;
use std::marker::PhantomData;

/// Numbers of which any bytes are one.
///
/// # Safety
/// All bit patterns must be values, and none may need more than a cache line's alignment.
pub unsafe trait Number: Copy {}

// SAFETY: floats have no invalid bits.
unsafe impl Number for f32 {}
// SAFETY: an integer inside.
unsafe impl Number for Bf16 {}

/// Numbers from the start of a cache line on.
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
    /// The first `len` numbers: zeros, or what was left there.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::error::Error::OutOfMemory) if there are fewer and the system refuses more;
    /// what was there is lost when there are more.
    pub fn of(&mut self, len: usize) -> Result<&mut [T]> {
        let bytes = len * size_of::<T>();
        if self.buffer.len() < bytes {
            self.buffer = AlignedBuffer::new(bytes, "numbers of the interaction")?;
        }
        // SAFETY: the buffer has the bytes, aligned, initialised (zeroed, then only written as `T`), and
        // lends them by `&mut self` only; any bits are a `T`.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.start(), len) })
    }

    /// All numbers that there is room for.
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
