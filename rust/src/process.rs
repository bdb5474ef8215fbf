//! Process that an object belongs to. A fork copies objects to a child, but not the threads, which may hold
//! their locks for ever: who notes the process can refuse in the child instead of waiting.

use crate::sync::plain::{AtomicPtr, Ordering};
use std::ptr;

/// Process in which this value was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    id: u32,
    forks: usize,
}

impl Process {
    /// Returns this process.
    #[must_use]
    pub fn current() -> Self {
        Self {
            id: std::process::id(),
            forks: forks::count(),
        }
    }

    /// Returns whether this process is that one, and not a fork of it. Takes no system call on Unix.
    #[inline]
    #[must_use]
    pub fn is_current(self) -> bool {
        self.forks == forks::count()
    }

    /// Returns the number that the system gave the process.
    #[must_use]
    pub fn id(self) -> u32 {
        self.id
    }
}

#[cfg(target_os = "linux")]
mod forks {
    use crate::sync::plain::{AtomicUsize, OnceLock, Ordering};

    /// Forks between the first process and this one.
    static FORKS: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn count_fork() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of forks since the first call of this function in the first process.
    #[inline]
    pub(super) fn count() -> usize {
        static COUNTED: OnceLock<()> = OnceLock::new();
        COUNTED.get_or_init(|| {
            // SAFETY: the handler only adds to an atomic, which a child may do between fork and exec.
            let code = unsafe { libc::pthread_atfork(None, None, Some(count_fork)) };
            assert_eq!(code, 0, "no memory for a fork handler");
        });
        // Relaxed: the child has one thread, which has run the handler.
        FORKS.load(Ordering::Relaxed)
    }
}

#[cfg(not(target_os = "linux"))]
mod forks {
    /// Returns a number that differs between a process and its forks.
    pub(super) fn count() -> usize {
        std::process::id() as usize
    }
}

/// Static value of which each process has its own: the child of a fork begins with a new one, since the
/// inherited one may be locked by a thread that does not exist. What the parent had in it stays allocated.
#[derive(Debug)]
pub struct PerProcess<T>(AtomicPtr<(Process, T)>);

impl<T: Default + Sync> PerProcess<T> {
    /// Makes a value that is `T::default()` at its first use in each process.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Returns the value of this process.
    pub fn get(&'static self) -> &'static T {
        // Acquire pairs with the exchange: the value precedes its address.
        let mut seen = self.0.load(Ordering::Acquire);
        loop {
            // SAFETY: null or a leaked box, which is never freed.
            match unsafe { seen.as_ref() } {
                Some((process, value)) if process.is_current() => return value,
                _ => {}
            }
            let new = Box::into_raw(Box::new((Process::current(), T::default())));
            match self
                .0
                .compare_exchange(seen, new, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => seen = new,
                Err(other) => {
                    // SAFETY: made above, and no other thread has seen it.
                    drop(unsafe { Box::from_raw(new) });
                    seen = other;
                }
            }
        }
    }
}

impl<T: Default + Sync> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, target_os = "linux", not(aif_loom), not(miri)))]
mod tests {
    use super::*;
    use crate::sync::plain::Mutex;

    #[test]
    fn a_child_is_another_process_with_its_own_locks() {
        static LOCK: PerProcess<Mutex<u32>> = PerProcess::new();
        let here = Process::current();
        // Held at the fork: the child could never take it.
        let mut held = LOCK.get().lock().unwrap();
        *held = 7;
        // SAFETY: the child calls nothing that takes a lock of the parent, and ends by `_exit`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let fresh = !here.is_current() && Process::current() != here;
            let own = LOCK.get().try_lock().is_ok_and(|value| *value == 0);
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(i32::from(!(fresh && own))) };
        }
        let mut status = -1;
        // SAFETY: `child` is a child of this process, and `status` a place for its status.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
        assert!(here.is_current());
        drop(held);
        assert_eq!(*LOCK.get().lock().unwrap(), 7);
    }
}
