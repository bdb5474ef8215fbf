//! Buffers that are lent out and come back.

use crate::buffer::AlignedBuffer;
use crate::error::Result;
use crate::sync::plain::{Arc, Mutex, PoisonError};
use std::sync::MutexGuard;

/// Buffers are made in multiples of this many bytes, so that batches of nearly one size share them.
const GRANULE: usize = 4 << 10;

/// Keeps returned buffers for whoever needs one next.
///
/// New memory comes as pages that the system zeroes when they are first written, which for a batch of rows
/// takes as long as the copying itself; a buffer that comes back has its pages.
#[derive(Debug)]
pub struct BufferPool {
    free: Mutex<Vec<AlignedBuffer>>,
    limit_bytes: usize,
}

/// A buffer on loan. It is the holder's alone until it is dropped, and goes back to its pool then.
#[derive(Debug)]
pub struct Lease {
    buffer: AlignedBuffer,
    pool: Arc<BufferPool>,
}

impl BufferPool {
    /// A pool that keeps at most `limit_bytes` of returned buffers and frees what exceeds them.
    #[must_use]
    pub fn new(limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Mutex::default(),
            limit_bytes,
        })
    }

    /// A buffer of at least `bytes` bytes. Its contents are whatever was there before.
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

    /// Bytes of buffers that are here and on loan to nobody.
    #[must_use]
    pub fn free_bytes(&self) -> usize {
        self.lock().iter().map(AlignedBuffer::len).sum()
    }

    /// The smallest returned buffer that is long enough and not twice too long.
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
        // A poisoned list is whole: nothing panics while it is changed.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Where the memory starts; valid for [`len`](Self::len) bytes while the lease lives.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.buffer.as_ptr()
    }

    /// Its size in bytes: at least what was asked for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        let mut free = self.pool.lock();
        let kept: usize = free.iter().map(AlignedBuffer::len).sum();
        let fits = kept + buffer.len() <= self.pool.limit_bytes;
        // Without memory for the list, the buffer is freed like any other: dropped below, unlocked.
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
