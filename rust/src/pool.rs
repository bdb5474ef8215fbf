//! Pool of reusable buffers.

use crate::buffer::AlignedBuffer;
use crate::error::Result;
use crate::process::Process;
use crate::sync::plain::{Arc, Mutex, PoisonError};
use std::sync::MutexGuard;

/// Granularity of buffer sizes in bytes, so that batches of similar size share buffers.
const GRANULE: usize = 4 << 10;

/// Pool of returned buffers.
///
/// The system zeroes the pages of new memory on the first write, which for a batch of rows takes as long as
/// the copying itself; a returned buffer keeps its pages.
#[derive(Debug)]
pub struct BufferPool {
    free: Mutex<Vec<AlignedBuffer>>,
    limit_bytes: usize,
    process: Process,
}

/// Buffer on loan. The holder has exclusive access until it is dropped and returns to its pool.
#[derive(Debug)]
pub struct Lease {
    buffer: AlignedBuffer,
    pool: Arc<BufferPool>,
}

impl BufferPool {
    /// Makes a pool that keeps at most `limit_bytes` of returned buffers and frees the excess.
    #[must_use]
    pub fn new(limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Mutex::default(),
            limit_bytes,
            process: Process::current(),
        })
    }

    /// Lends a buffer of at least `bytes` bytes with arbitrary contents.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::error::Error::OutOfMemory) if a new one is needed and refused.
    pub fn lease(self: &Arc<Self>, bytes: usize) -> Result<Lease> {
        let buffer = self.returned(bytes).map_or_else(
            || AlignedBuffer::new(bytes.next_multiple_of(GRANULE), "a batch of rows"),
            Ok,
        )?;
        Ok(Lease {
            buffer,
            pool: Arc::clone(self),
        })
    }

    /// Returns the bytes of buffers that are not on loan.
    #[must_use]
    pub fn free_bytes(&self) -> usize {
        self.lock().iter().map(AlignedBuffer::len).sum()
    }

    /// Takes the smallest returned buffer that is long enough and not twice too long.
    fn returned(&self, bytes: usize) -> Option<AlignedBuffer> {
        let mut free = self.lock();
        let fits = |buffer: &AlignedBuffer| {
            buffer.len() >= bytes && buffer.len() / 2 <= bytes.max(GRANULE)
        };
        let candidates = free.iter().enumerate().filter(|(_, buffer)| fits(buffer));
        let (best, _) = candidates.min_by_key(|(_, buffer)| buffer.len())?;
        Some(free.swap_remove(best))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<AlignedBuffer>> {
        // A poisoned list is consistent: nothing panics while it is changed.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Returns the start of the memory, valid for [`len`](Self::len) bytes while the lease lives.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.buffer.as_ptr()
    }

    /// Returns the size in bytes, at least the requested one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Returns whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        if !self.pool.process.is_current() {
            // In the child of a fork the pool may be locked for ever. The child keeps the memory.
            std::mem::forget(buffer);
            return;
        }
        let mut free = self.pool.lock();
        let kept: usize = free.iter().map(AlignedBuffer::len).sum();
        let fits = kept + buffer.len() <= self.pool.limit_bytes;
        // Without memory for the list, the buffer is freed: dropped below, without the lock.
        if fits && free.try_reserve(1).is_ok() {
            free.push(buffer);
        } else {
            drop(free);
            drop(buffer);
        }
    }
}

#[cfg(all(test, not(aif_loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_lent_again_and_never_twice() {
        let pool = BufferPool::new(1 << 20);
        let first = pool.lease(10_000).unwrap();
        let second = pool.lease(10_000).unwrap();
        assert_ne!(first.as_ptr(), second.as_ptr());
        assert!(first.len() >= 10_000 && !first.is_empty());
        let place = first.as_ptr();
        drop(first);
        assert_eq!(pool.free_bytes(), 12_288);
        assert_ne!(
            pool.lease(100).unwrap().as_ptr(),
            place,
            "far too long for this"
        );
        let again = pool.lease(9_000).unwrap();
        assert_eq!(again.as_ptr(), place);
    }

    #[test]
    fn the_pool_keeps_no_more_than_it_may() {
        let pool = BufferPool::new(10 << 10);
        let leases: Vec<_> = (0..4).map(|_| pool.lease(4096).unwrap()).collect();
        drop(leases);
        assert_eq!(pool.free_bytes(), 8192);
        drop(pool.lease(1 << 20).unwrap());
        assert_eq!(pool.free_bytes(), 8192);
        assert!(pool.lease(usize::MAX / 2).is_err());
    }
}
