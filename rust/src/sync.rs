//! Atomics and locks: those of `std`, or those of loom under `--cfg aif_loom`. No other file names them.
//!
//! [`plain`] holds those that are `std`'s in both: counters and registries that order nothing, which would
//! only slow loom down.

#[cfg(not(aif_loom))]
pub use std::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};

#[cfg(aif_loom)]
pub use loom::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};

/// Types of `std` even under loom, because no reader or writer synchronises through them.
pub mod plain {
    pub use std::sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
    };
}

#[cfg(not(aif_loom))]
pub use std::thread::yield_now;

#[cfg(aif_loom)]
pub use loom::thread::yield_now;

/// Suspends the thread for this time, so that others run. Under loom, which has no time, only yields.
pub fn pause(time: std::time::Duration) {
    #[cfg(not(aif_loom))]
    std::thread::sleep(time);
    #[cfg(aif_loom)]
    {
        let _ = time;
        yield_now();
    }
}

/// Checks that the plain memory it guards is never written while it is read.
///
/// Does nothing outside loom; under loom a cell whose accesses must be ordered by happens-before, so that a
/// model fails on a data race and not only on the wrong bytes it may lead to.
#[cfg(not(aif_loom))]
#[derive(Debug, Default)]
pub struct RaceWatch;

#[cfg(not(aif_loom))]
impl RaceWatch {
    /// Runs `access`, which reads the watched memory.
    #[inline]
    pub fn read<T>(&self, access: impl FnOnce() -> T) -> T {
        access()
    }

    /// Runs `access`, which writes the watched memory.
    #[inline]
    pub fn write<T>(&self, access: impl FnOnce() -> T) -> T {
        access()
    }
}

/// Checks that the plain memory it guards is never written while it is read.
#[cfg(aif_loom)]
#[derive(Debug, Default)]
pub struct RaceWatch(loom::cell::UnsafeCell<()>);

#[cfg(aif_loom)]
impl RaceWatch {
    /// Runs `access`, which reads the watched memory.
    pub fn read<T>(&self, access: impl FnOnce() -> T) -> T {
        self.0.with(|_| access())
    }

    /// Runs `access`, which writes the watched memory.
    pub fn write<T>(&self, access: impl FnOnce() -> T) -> T {
        self.0.with_mut(|_| access())
    }
}

// SAFETY: the cell is empty; loom itself reports accesses that are not ordered.
#[cfg(aif_loom)]
unsafe impl Sync for RaceWatch {}

/// Types with a zero value.
///
/// # Safety
/// Outside loom, a value whose bytes are all zero must be valid and equal to [`zero`](Self::zero).
pub unsafe trait Zeroable {
    /// Returns zero.
    fn zero() -> Self;
}

macro_rules! zeroable {
    ($($atomic:ty),*) => {$(
        // SAFETY: std's atomics have the same representation as the integer inside.
        unsafe impl Zeroable for $atomic {
            fn zero() -> Self {
                Self::new(0)
            }
        }
    )*};
}

zeroable!(AtomicU8, AtomicU32, AtomicU64);
