//! Aligned memory whose allocation can fail without ending the process.

use crate::error::{Error, Result};
use crate::sync::Zeroable;
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::ops::Deref;
use std::ptr::NonNull;

/// Every buffer starts on a cache line, which is also where JAX can take a buffer without copying it.
pub const ALIGN: usize = 64;

/// From this size on, buffers start on a huge page and ask for huge pages: random access to hundreds
/// of megabytes by 4 kB pages spends as long on page tables as on the data.
const HUGE_PAGE: usize = 2 << 20;

/// A fixed piece of memory, aligned to [`ALIGN`].
#[derive(Debug)]
pub struct AlignedBuffer {
    start: NonNull<u8>,
    layout: Layout,
    // Invariant: `start` was allocated with `layout`, or dangles if `layout.size() == 0`.
}

// SAFETY: the buffer owns its memory, and hands out raw pointers only.
unsafe impl Send for AlignedBuffer {}
// SAFETY: as above; whoever uses the pointer answers for the accesses.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// `bytes` bytes of memory that nobody has written yet; `what` names it in the error.
    pub fn new(bytes: usize, what: &str) -> Result<Self> {
        // SAFETY: `allocate` calls it with a layout of non-zero size only.
        Self::allocate(bytes, what, |layout| unsafe { alloc(layout) })
    }

    /// `bytes` bytes of zeros; `what` names it in the error.
    pub fn zeroed(bytes: usize, what: &str) -> Result<Self> {
        // SAFETY: `allocate` calls it with a layout of non-zero size only.
        Self::allocate(bytes, what, |layout| unsafe { alloc_zeroed(layout) })
    }

    fn allocate(bytes: usize, what: &str, get: impl FnOnce(Layout) -> *mut u8) -> Result<Self> {
        let refused = || Error::OutOfMemory {
            what: what.into(),
            bytes,
        };
        let align = if bytes >= 2 * HUGE_PAGE {
            HUGE_PAGE
        } else {
            ALIGN
        };
        let layout = Layout::from_size_align(bytes, align).map_err(|_| refused())?;
        if bytes == 0 {
            return Ok(Self {
                start: NonNull::<u64>::dangling().cast(),
                layout,
            });
        }
        let start = NonNull::new(get(layout)).ok_or_else(refused)?;
        if align == HUGE_PAGE {
            ask_for_huge_pages(start, bytes);
        }
        Ok(Self { start, layout })
    }

    /// Where the memory starts; valid for [`len`](Self::len) bytes while the buffer lives.
    #[must_use]
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Its size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        if self.layout.size() != 0 {
            // SAFETY: by the invariant, allocated with this layout and freed only here.
            unsafe { dealloc(self.start.as_ptr(), self.layout) };
        }
    }
}

#[cfg(target_os = "linux")]
fn ask_for_huge_pages(start: NonNull<u8>, bytes: usize) {
    use std::ffi::{c_int, c_void};
    const MADV_HUGEPAGE: c_int = 14;
    unsafe extern "C" {
        fn madvise(start: *mut c_void, bytes: usize, advice: c_int) -> c_int;
    }
    // SAFETY: the range is one live allocation of ours that starts on a huge page. The advice changes
    // how it is mapped and nothing about its contents; the result is ignored because a kernel without
    // huge pages serves small ones.
    unsafe {
        madvise(start.as_ptr().cast(), bytes, MADV_HUGEPAGE);
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_start: NonNull<u8>, _bytes: usize) {}

/// A fixed array of values that all start as zero, such as atomics.
#[cfg(not(aif_loom))]
#[derive(Debug)]
pub struct ZeroedArray<T> {
    memory: AlignedBuffer,
    len: usize,
    kind: std::marker::PhantomData<T>,
    // Invariant: `memory` holds `len` valid values of `T`.
}

#[cfg(not(aif_loom))]
impl<T: Zeroable> ZeroedArray<T> {
    /// `len` zeros; `what` names it in the error.
    pub fn new(len: usize, what: &str) -> Result<Self> {
        const { assert!(align_of::<T>() <= ALIGN && !std::mem::needs_drop::<T>()) };
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or_else(|| Error::OutOfMemory {
                what: what.into(),
                bytes: usize::MAX,
            })?;
        // Zero bytes are valid values: that is what `Zeroable` promises.
        Ok(Self {
            memory: AlignedBuffer::zeroed(bytes, what)?,
            len,
            kind: std::marker::PhantomData,
        })
    }
}

#[cfg(not(aif_loom))]
impl<T> Deref for ZeroedArray<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: by the invariant; the memory lives as long as `self` and only `&T` is ever given out.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.len) }
    }
}

/// A fixed array of values that all start as zero; loom's atomics are more than their bytes.
#[cfg(aif_loom)]
#[derive(Debug)]
pub struct ZeroedArray<T>(Box<[T]>);

#[cfg(aif_loom)]
impl<T: Zeroable> ZeroedArray<T> {
    /// `len` zeros.
    pub fn new(len: usize, _what: &str) -> Result<Self> {
        Ok(Self((0..len).map(|_| T::zero()).collect()))
    }
}

#[cfg(aif_loom)]
impl<T> Deref for ZeroedArray<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

#[cfg(all(test, not(aif_loom)))]
mod tests {
    use super::*;
    use crate::sync::{AtomicU64, Ordering};

    #[test]
    fn memory_is_aligned_zeroed_and_refused_politely() {
        for bytes in [0, 1, 64, 4096, 5 << 20] {
            let buffer = AlignedBuffer::zeroed(bytes, "a test").unwrap();
            assert_eq!(buffer.len(), bytes);
            if bytes > 0 {
                assert_eq!(buffer.as_ptr() as usize % ALIGN, 0);
                // SAFETY: both bytes are inside the buffer, which is zeroed and not shared.
                let ends = unsafe { (*buffer.as_ptr(), *buffer.as_ptr().add(bytes - 1)) };
                assert_eq!(ends, (0, 0));
            }
        }
        for bytes in [usize::MAX, isize::MAX as usize - 4095] {
            let error = AlignedBuffer::new(bytes, "too much").unwrap_err();
            assert_eq!(
                error,
                Error::OutOfMemory {
                    what: "too much".into(),
                    bytes
                }
            );
        }
        assert!(ZeroedArray::<AtomicU64>::new(usize::MAX / 4, "too much").is_err());
    }

    #[test]
    fn arrays_start_at_zero_and_hold_what_is_stored() {
        let array = ZeroedArray::<AtomicU64>::new(1000, "a test").unwrap();
        assert!(array.iter().all(|value| value.load(Ordering::Relaxed) == 0));
        array[999].store(7, Ordering::Relaxed);
        assert_eq!(
            array
                .iter()
                .map(|value| value.load(Ordering::Relaxed))
                .sum::<u64>(),
            7
        );
    }
}
