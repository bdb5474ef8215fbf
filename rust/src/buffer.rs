//! Aligned memory with fallible allocation.

use crate::error::{Error, Result};
use crate::mapping::Mapping;
use crate::sync::Zeroable;
use crate::sync::plain::Arc;
use std::ops::Deref;
use std::ptr::NonNull;

/// Alignment of buffers: a cache line, at which JAX can also take a buffer without copying it.
pub const ALIGN: usize = 64;

/// Minimum size of buffers that are mapped from the system, start on a huge page and can consist of huge
/// pages: random access to hundreds of megabytes in 4 kB pages spends as long on page tables as on the
/// data.
pub const HUGE_PAGE: usize = 2 << 20;

/// Page settings of large buffers. Small ones come from the allocator and ignore them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Request huge pages (advice: a system without them serves small ones).
    pub huge: bool,
    /// Back the whole buffer with memory at once, so that no later access faults and a lack of memory is
    /// reported here.
    pub prefault: bool,
}

impl Default for Pages {
    /// Huge pages, backed on first use.
    fn default() -> Self {
        Self {
            huge: true,
            prefault: false,
        }
    }
}

/// Fixed memory aligned to [`ALIGN`]: zero at first, or a part of a mapped file.
#[derive(Debug)]
pub struct AlignedBuffer {
    start: NonNull<u8>,
    bytes: usize,
    /// Owner of the memory, if it is not the buffer itself.
    owner: Option<Arc<Mapping>>,
    // Invariant: `start` lies `bytes` bytes before the end of the owner's memory or further; without a
    // owner it came from `memory::get(bytes, ..)`, or dangles if `bytes == 0`.
}

// SAFETY: the buffer owns its memory, and hands out raw pointers only.
unsafe impl Send for AlignedBuffer {}
// SAFETY: as above; the user of the pointer is responsible for the accesses.
unsafe impl Sync for AlignedBuffer {}

impl Default for AlignedBuffer {
    /// Makes an empty buffer.
    fn default() -> Self {
        Self {
            start: NonNull::<u64>::dangling().cast(),
            bytes: 0,
            owner: None,
        }
    }
}

impl AlignedBuffer {
    /// Allocates `bytes` zero bytes with the default page settings; `what` names them in the error.
    pub fn new(bytes: usize, what: &str) -> Result<Self> {
        Self::with_pages(Pages::default(), bytes, what)
    }

    /// Allocates `bytes` zero bytes; `what` names them in the error.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the system refuses.
    pub fn with_pages(pages: Pages, bytes: usize, what: &str) -> Result<Self> {
        if bytes == 0 {
            return Ok(Self::default());
        }
        let start = memory::get(bytes, pages).ok_or_else(|| Error::OutOfMemory {
            what: what.into(),
            bytes,
        })?;
        Ok(Self {
            start,
            bytes,
            owner: None,
        })
    }

    /// Makes a buffer of `bytes` bytes of a mapped file from `offset` on. Buffers of one mapping must not
    /// overlap where any of them is written to.
    ///
    /// # Panics
    /// If the mapping does not hold them, or `offset` is not aligned.
    #[must_use]
    pub fn from_mapping(mapping: &Arc<Mapping>, offset: usize, bytes: usize) -> Self {
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= mapping.len()) && offset.is_multiple_of(ALIGN));
        // SAFETY: inside the mapping.
        let start = unsafe { mapping.as_ptr().add(offset) };
        Self {
            start: NonNull::new(start).expect("an address inside a mapping"),
            bytes,
            owner: Some(Arc::clone(mapping)),
        }
    }

    /// Returns the start of the memory, valid for [`len`](Self::len) bytes while the buffer lives.
    #[must_use]
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Returns the size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Returns whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        if self.bytes != 0 && self.owner.is_none() {
            // SAFETY: by the invariant; freed only here.
            unsafe { memory::give_back(self.start, self.bytes) };
        }
    }
}

/// Allocator of buffers.
mod memory {
    use super::{ALIGN, Pages};
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::ptr::NonNull;

    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes, ALIGN).ok()
    }

    /// Allocates `bytes` zero bytes, which are not 0; `None` if the system refuses.
    pub(super) fn get(bytes: usize, pages: Pages) -> Option<NonNull<u8>> {
        #[cfg(target_os = "linux")]
        if bytes >= super::HUGE_PAGE {
            return mapped::get(bytes, pages);
        }
        let _ = pages;
        // SAFETY: `bytes` is not 0.
        NonNull::new(unsafe { alloc_zeroed(layout(bytes)?) })
    }

    /// # Safety
    /// `start` came from `get(bytes, ..)` and is not used afterwards.
    pub(super) unsafe fn give_back(start: NonNull<u8>, bytes: usize) {
        #[cfg(target_os = "linux")]
        if bytes >= super::HUGE_PAGE {
            // SAFETY: by the caller's contract.
            return unsafe { mapped::give_back(start, bytes) };
        }
        let layout = layout(bytes).expect("get accepted these bytes");
        // SAFETY: by the caller's contract; `get` allocated with the same layout.
        unsafe { dealloc(start.as_ptr(), layout) };
    }

    /// Memory mapped from the system: zero without being touched, and aligned to huge pages.
    #[cfg(target_os = "linux")]
    mod mapped {
        use super::super::{HUGE_PAGE, Pages};
        use std::ptr::{self, NonNull};

        pub(super) fn get(bytes: usize, pages: Pages) -> Option<NonNull<u8>> {
            let whole = bytes.checked_add(HUGE_PAGE)?;
            // SAFETY: a new private mapping without a file at an address that the system chooses.
            let base = unsafe {
                libc::mmap(
                    ptr::null_mut(),
                    whole,
                    libc::PROT_READ | libc::PROT_WRITE,
                    // Not reserved: untouched memory shall not count as used.
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            if base == libc::MAP_FAILED {
                return None;
            }
            let base = base.cast::<u8>();
            let before = base.align_offset(HUGE_PAGE);
            // The system maps whole pages, so the part cut off at the end starts at a page.
            let kept = bytes.next_multiple_of(page());
            let behind = whole.next_multiple_of(page()) - before - kept;
            // SAFETY: both ends lie in the new mapping and outside the part that is kept.
            unsafe {
                if before > 0 {
                    libc::munmap(base.cast(), before);
                }
                if behind > 0 {
                    libc::munmap(base.add(before + kept).cast(), behind);
                }
            }
            // SAFETY: inside the mapping.
            let start = unsafe { base.add(before) };
            // SAFETY: this thread owns the range; advice changes how it is backed, not its contents. The
            // results for huge pages are ignored because they are advice.
            unsafe {
                if pages.huge {
                    libc::madvise(start.cast(), kept, libc::MADV_HUGEPAGE);
                } else {
                    libc::madvise(start.cast(), kept, libc::MADV_NOHUGEPAGE);
                }
                if pages.prefault
                    && libc::madvise(start.cast(), kept, libc::MADV_POPULATE_WRITE) != 0
                {
                    // Kernels before 5.14 do not know the advice; later ones report a lack of memory here.
                    if std::io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
                        libc::munmap(start.cast(), kept);
                        return None;
                    }
                    for offset in (0..kept).step_by(page()) {
                        start.add(offset).write_volatile(0);
                    }
                }
            }
            NonNull::new(start)
        }

        /// # Safety
        /// `start` came from `get(bytes, ..)` and is not used afterwards.
        pub(super) unsafe fn give_back(start: NonNull<u8>, bytes: usize) {
            // SAFETY: `get` kept exactly this range.
            unsafe { libc::munmap(start.as_ptr().cast(), bytes.next_multiple_of(page())) };
        }

        /// Returns the size of a small page.
        fn page() -> usize {
            // SAFETY: queries a constant of the system.
            unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
        }
    }
}

/// Fixed array of values that all start as zero, such as atomics.
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
    /// Allocates `len` zeros; `what` names them in the error.
    pub fn new(len: usize, pages: Pages, what: &str) -> Result<Self> {
        const { assert!(align_of::<T>() <= ALIGN && !std::mem::needs_drop::<T>()) };
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or_else(|| Error::OutOfMemory {
                what: what.into(),
                bytes: usize::MAX,
            })?;
        // Zero bytes are valid values by the contract of `Zeroable`.
        Ok(Self {
            memory: AlignedBuffer::with_pages(pages, bytes, what)?,
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

/// Fixed array of values that all start as zero; loom's atomics are more than their bytes.
#[cfg(aif_loom)]
#[derive(Debug)]
pub struct ZeroedArray<T>(Box<[T]>);

#[cfg(aif_loom)]
impl<T: Zeroable> ZeroedArray<T> {
    /// Makes `len` zeros.
    pub fn new(len: usize, _pages: Pages, _what: &str) -> Result<Self> {
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
        let sizes = [
            0,
            1,
            64,
            4096,
            HUGE_PAGE - 1,
            HUGE_PAGE,
            5 << 20,
            (5 << 20) + 1,
        ];
        let choices = [(true, false), (true, true), (false, false), (false, true)];
        for (bytes, (huge, prefault)) in sizes.into_iter().flat_map(|b| choices.map(|c| (b, c))) {
            let buffer =
                AlignedBuffer::with_pages(Pages { huge, prefault }, bytes, "a test").unwrap();
            assert_eq!(buffer.len(), bytes);
            if bytes > 0 {
                let align = if bytes < HUGE_PAGE { ALIGN } else { HUGE_PAGE };
                assert_eq!(buffer.as_ptr() as usize % align, 0);
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
        assert!(
            ZeroedArray::<AtomicU64>::new(usize::MAX / 4, Pages::default(), "too much").is_err()
        );
    }

    #[test]
    fn arrays_start_at_zero_and_hold_what_is_stored() {
        let array = ZeroedArray::<AtomicU64>::new(1000, Pages::default(), "a test").unwrap();
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
