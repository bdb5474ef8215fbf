//! Work sharing with XLA's own threads, without ever waiting for a task that has not started.
//!
//! A handler may itself run on a thread of the pool, so a task that it schedules may not start before it
//! returns, and waiting for it could deadlock. Hence pieces of work are claimed from one counter; the
//! caller claims too, until none is left, and then waits only for claimed pieces, which are running. A
//! helper that starts late finds nothing to claim and touches nothing but the counter, of which it is a
//! shared owner. One that starts early waits for the caller, which is running its preparation.

use super::api::{Api, ErrorDestroyArgs, ExecutionContext, NumThreadsArgs, ScheduleArgs, Task};
use super::call::Runtime;
use crate::error::Result;
use crate::sync::{Arc, AtomicBool, AtomicUsize, Ordering, yield_now};
use std::ffi::c_void;
use std::mem::offset_of;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

/// State shared by caller and helpers.
struct Job {
    /// State of the job: one of the three values below.
    state: AtomicUsize,
    /// Next piece to claim.
    next: AtomicUsize,
    /// Finished pieces.
    done: AtomicUsize,
    /// Total number of pieces.
    pieces: usize,
    /// True if a piece panicked.
    panicked: AtomicBool,
    /// Invariant: valid until `done == pieces`; called only for a claimed piece.
    body: *const Borrowed<'static>,
}

/// The caller is still preparing, and runs: a helper may wait for it.
const PREPARING: usize = 0;
/// Pieces may be claimed.
const READY: usize = 1;
/// There is nothing to do: the preparation failed.
const VOID: usize = 2;

/// Function that runs one piece.
type Borrowed<'a> = dyn Fn(usize) + Sync + 'a;

// SAFETY: `body` is `Sync` and only called, under the invariant; all else is atomic.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

impl Job {
    /// Waits until the caller is ready, then claims and runs pieces until none is left.
    fn work(&self) {
        // Acquire: pairs with the caller's release; its preparation is then visible.
        match spin_until(|| match self.state.load(Ordering::Acquire) {
            PREPARING => None,
            state => Some(state),
        }) {
            READY => {}
            _ => return,
        }
        loop {
            // Relaxed: the counter only divides the pieces; their inputs were written before the job was
            // scheduled, which orders them.
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= self.pieces {
                return;
            }
            let run = AssertUnwindSafe(|| {
                // SAFETY: this piece is claimed and not done, so the caller of `for_each` is still there.
                unsafe { (*self.body)(piece) }
            });
            if catch_unwind(run).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            // Release: a thread that sees this piece done also sees its results.
            self.done.fetch_add(1, Ordering::Release);
        }
    }
}

/// Calls `body` once for each of `0..pieces`, on this thread and, if XLA has idle ones, on others.
///
/// # Panics
/// If `body` panicked, after all pieces are done.
pub(super) fn for_each(runtime: Runtime, pieces: usize, body: &(dyn Fn(usize) + Sync)) {
    let ready: Result<()> = for_each_after(runtime, pieces, || Ok(()), body);
    debug_assert!(ready.is_ok(), "nothing was prepared");
}

/// Runs `prepare` on this thread while the helpers wake up, then `for_each`. If `prepare` fails, its error
/// is returned and `body` is not called.
///
/// # Errors
/// Those of `prepare`.
///
/// # Panics
/// If `prepare` or `body` panicked.
pub(super) fn for_each_after(
    runtime: Runtime,
    pieces: usize,
    prepare: impl FnOnce() -> Result<()>,
    body: &(dyn Fn(usize) + Sync),
) -> Result<()> {
    let helpers = threads(runtime)
        .saturating_sub(1)
        .min(pieces.saturating_sub(1));
    if helpers == 0 {
        prepare()?;
        (0..pieces).for_each(body);
        return Ok(());
    }
    #[allow(clippy::transmute_ptr_to_ptr)] // a cast may not lengthen a lifetime
    // SAFETY: only the lifetime changes. The job outlives this call when a helper starts late, and then
    // does not call `body`: this function returns only when all pieces are done, or without ever having
    // allowed claims.
    let body =
        unsafe { std::mem::transmute::<*const Borrowed<'_>, *const Borrowed<'static>>(body) };
    let job = Arc::new(Job {
        state: AtomicUsize::new(PREPARING),
        next: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
        pieces,
        panicked: AtomicBool::new(false),
        body,
    });
    for _ in 0..helpers {
        let share = Arc::into_raw(Arc::clone(&job)).cast_mut().cast();
        // SAFETY: `help` takes over the share, once.
        if !unsafe { schedule(runtime, help, share) } {
            // SAFETY: the pool did not take it over.
            drop(unsafe { Arc::from_raw(share.cast_const().cast::<Job>()) });
            break;
        }
    }
    // Releases the helpers on every exit.
    let mut announce = Announce {
        job: &job,
        state: VOID,
    };
    prepare()?;
    announce.state = READY;
    drop(announce);
    job.work();
    // The missing pieces are running; they are short. Acquire: pairs with the release of each piece.
    spin_until(|| (job.done.load(Ordering::Acquire) >= pieces).then_some(()));
    assert!(
        !job.panicked.load(Ordering::Relaxed),
        "a piece of the work panicked"
    );
    Ok(())
}

/// Guard that reports the outcome of the preparation to the helpers, also on a panic.
struct Announce<'a> {
    job: &'a Job,
    state: usize,
}

impl Drop for Announce<'_> {
    fn drop(&mut self) {
        // Release: pairs with the acquire of the helpers.
        self.job.state.store(self.state, Ordering::Release);
    }
}

/// Looks before the thread yields. Under loom it always does, since no other thread runs meanwhile.
const SPINS: u32 = if cfg!(aif_loom) { 0 } else { 1000 };

/// Spins until another running thread has reached a state, some microseconds later.
fn spin_until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let mut spins = 0u32;
    loop {
        if let Some(found) = look() {
            return found;
        }
        if spins < SPINS {
            std::hint::spin_loop();
            spins += 1;
        } else {
            yield_now();
        }
    }
}

/// Helper: XLA's thread pool calls it with a share of a job.
unsafe extern "C" fn help(share: *mut c_void) {
    // SAFETY: `for_each` made the pointer by `Arc::into_raw` for this one call.
    unsafe { Arc::from_raw(share.cast_const().cast::<Job>()) }.work();
}

/// Returns the number of threads of XLA's pool; 1 if there is none.
fn threads(runtime: Runtime) -> usize {
    let mut threads = 0i64;
    let mut args = NumThreadsArgs {
        struct_size: size_of::<NumThreadsArgs>(),
        extension: null_mut(),
        context: runtime.context,
        num_threads: &raw mut threads,
    };
    // SAFETY: XLA's functions live as long as the process, and one is called only if it is covered.
    unsafe {
        let end = offset_of!(Api, thread_pool_num_threads) + size_of::<usize>();
        let Some(ask) = (*runtime.api)
            .thread_pool_num_threads
            .filter(|_| (*runtime.api).struct_size >= end)
        else {
            return 1;
        };
        let error = ask(&raw mut args);
        if !error.is_null() {
            destroy(runtime, error);
            return 1;
        }
    }
    usize::try_from(threads).unwrap_or(1)
}

/// Schedules a task on XLA's pool; returns whether it was accepted.
///
/// # Safety
/// `task` may be called with `data`, once, on any thread, at any later time.
unsafe fn schedule(runtime: Runtime, task: Task, data: *mut c_void) -> bool {
    let context: *mut ExecutionContext = runtime.context;
    let mut args = ScheduleArgs {
        struct_size: size_of::<ScheduleArgs>(),
        extension: null_mut(),
        context,
        task,
        data,
    };
    // SAFETY: `threads` found the pool through a later function of the same list.
    unsafe {
        let Some(schedule) = (*runtime.api).thread_pool_schedule else {
            return false;
        };
        let error = schedule(&raw mut args);
        if !error.is_null() {
            destroy(runtime, error);
            return false;
        }
    }
    true
}

/// Destroys an error that XLA returned.
///
/// # Safety
/// `error` is such an error, not destroyed yet.
unsafe fn destroy(runtime: Runtime, error: *mut super::api::Error) {
    let mut args = ErrorDestroyArgs {
        struct_size: size_of::<ErrorDestroyArgs>(),
        extension: null_mut(),
        error,
    };
    // SAFETY: by the caller's contract; the function exists in every version.
    unsafe {
        if let Some(destroy) = (*runtime.api).error_destroy {
            destroy(&raw mut args);
        }
    }
}

#[cfg(test)]
mod tests;
