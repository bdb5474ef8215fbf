//! Work sharing with a pool of plain threads in the place of XLA's: under real threads, and as loom models
//! (`RUSTFLAGS="--cfg aif_loom" cargo test --release -p aif-core --lib xla::parallel`).
//!
//! The models cover the caller with up to two helpers and three pieces: pieces are run once each, the
//! caller returns after the last, `body` is never called after that, and a helper that starts late touches
//! nothing of the caller's. Each is explored up to the preemptions that it names, or `LOOM_MAX_PREEMPTIONS`.

use super::super::api::{ApiVersion, Error as XlaError};
use super::*;
use crate::error::Error;
use crate::sync::RaceWatch;
use crate::sync::plain::{AtomicUsize as PlainUsize, Mutex};
use std::ptr::null;

#[cfg(aif_loom)]
use loom::thread;
#[cfg(not(aif_loom))]
use std::thread;

/// Pool with a thread for each task. Its address is the context that XLA would give.
struct Pool {
    /// Answer to the question for the number of threads.
    threads: i64,
    /// Tasks that are accepted; later ones are refused with an error.
    accepts: usize,
    tasks: Mutex<Vec<thread::JoinHandle<()>>>,
    errors: PlainUsize,
}

/// Pointer that a thread may take with it.
struct Sent(*mut c_void);

// SAFETY: the data of a task may be used by the one thread that runs the task.
unsafe impl Send for Sent {}

unsafe extern "C" fn num_threads(args: *mut NumThreadsArgs) -> *mut XlaError {
    // SAFETY: `threads` gives valid arguments, with a `Pool` as the context.
    unsafe {
        let pool = (*args).context.cast::<Pool>();
        *(*args).num_threads = (*pool).threads;
    }
    null_mut()
}

unsafe extern "C" fn start(args: *mut ScheduleArgs) -> *mut XlaError {
    // SAFETY: `schedule` gives valid arguments, with a `Pool` as the context.
    let (pool, task, data) = unsafe {
        let pool = &*(*args).context.cast::<Pool>();
        (pool, (*args).task, Sent((*args).data))
    };
    let mut tasks = pool.tasks.lock().unwrap();
    if tasks.len() == pool.accepts {
        pool.errors.fetch_add(1, Ordering::Relaxed);
        return (&raw const *pool).cast_mut().cast();
    }
    tasks.push(thread::spawn(move || {
        let data = data;
        // SAFETY: called once, with its own data.
        unsafe { task(data.0) };
    }));
    null_mut()
}

unsafe extern "C" fn destroy_error(args: *mut ErrorDestroyArgs) {
    // SAFETY: the errors of `start` are the address of the pool.
    unsafe {
        (*(*args).error.cast::<Pool>())
            .errors
            .fetch_sub(1, Ordering::Relaxed)
    };
}

/// Runs `call` with the pool as XLA's, then waits for all tasks, also those that start after `call` returned.
fn with_pool<T>(threads: i64, accepts: usize, call: impl FnOnce(Runtime) -> T) -> T {
    let pool = Pool {
        threads,
        accepts,
        tasks: Mutex::new(Vec::new()),
        errors: PlainUsize::new(0),
    };
    let api = Api {
        struct_size: size_of::<Api>(),
        extension: null_mut(),
        api_version: ApiVersion {
            struct_size: size_of::<ApiVersion>(),
            extension: null_mut(),
            major: 0,
            minor: 1,
        },
        internal_api: null(),
        error_create: None,
        error_get_message: null(),
        error_destroy: Some(destroy_error),
        handler_register: null(),
        stream_get: null(),
        type_register: null(),
        execution_context_get: null(),
        state_set: null(),
        state_get: null(),
        device_memory_allocate: null(),
        device_memory_free: null(),
        thread_pool_schedule: Some(start),
        thread_pool_num_threads: Some(num_threads),
    };
    let result = call(Runtime {
        api: &raw const api,
        context: (&raw const pool).cast_mut().cast(),
    });
    for task in pool.tasks.lock().unwrap().drain(..) {
        task.join().unwrap();
    }
    let left = pool.errors.load(Ordering::Relaxed);
    assert_eq!(left, 0, "every error is destroyed");
    result
}

/// Memory of the caller, which only a piece may touch: written by `prepare` and by one piece each.
struct Frame {
    prepared: RaceWatch,
    places: Vec<RaceWatch>,
    runs: Vec<PlainUsize>,
}

#[allow(clippy::default_constructed_unit_structs)] // a cell under loom
fn watch() -> RaceWatch {
    RaceWatch::default()
}

impl Frame {
    fn new(pieces: usize) -> Self {
        Self {
            prepared: watch(),
            places: (0..pieces).map(|_| watch()).collect(),
            runs: (0..pieces).map(|_| PlainUsize::new(0)).collect(),
        }
    }

    /// Shares `pieces` pieces; checks that the caller sees the results of all.
    fn run(runtime: Runtime, pieces: usize) {
        let frame = Self::new(pieces);
        let prepare = || {
            frame.prepared.write(|| ());
            Ok(())
        };
        let body = |piece: usize| {
            frame.prepared.read(|| ());
            frame.places[piece].write(|| ());
            frame.runs[piece].fetch_add(1, Ordering::Relaxed);
        };
        for_each_after(runtime, pieces, prepare, &body).unwrap();
        for (place, runs) in frame.places.iter().zip(&frame.runs) {
            place.read(|| ());
            assert_eq!(runs.load(Ordering::Relaxed), 1);
        }
    }

    /// Fails to prepare, by an error or a panic; no piece may run.
    fn fail(runtime: Runtime, pieces: usize, panics: bool) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let prepare = || {
                assert!(!panics, "prepare panics");
                Err(Error::Request("no".into()))
            };
            for_each_after(runtime, pieces, prepare, &|_| unreachable!("not prepared"))
        }));
        match outcome {
            Ok(result) => assert_eq!(result, Err(Error::Request("no".into()))),
            Err(_) => assert!(panics),
        }
    }
}

#[cfg(aif_loom)]
mod models {
    use super::*;

    /// Explores `call` up to `preemptions`. Helpers that spin at the same time have endless interleavings, and
    /// loom ends with more than one preemption only if a single one spins.
    fn explore(
        preemptions: usize,
        (threads, accepts): (i64, usize),
        call: impl Fn(Runtime) + Copy + Send + Sync + 'static,
    ) {
        let mut builder = loom::model::Builder::new();
        let most = builder.preemption_bound.unwrap_or(preemptions);
        builder.preemption_bound = Some(most.min(preemptions));
        builder.max_branches = 20_000;
        builder.check(move || with_pool(threads, accepts, call));
    }

    /// One helper shares two pieces with the caller, and may start at any time, also when all is over.
    #[test]
    fn pieces_are_run_once_and_before_the_caller_returns() {
        explore(4, (2, 9), |runtime| Frame::run(runtime, 2));
    }

    /// Two helpers and three pieces.
    #[test]
    fn two_helpers_and_the_caller_share_three_pieces() {
        explore(1, (3, 9), |runtime| Frame::run(runtime, 3));
    }

    /// The pool accepts one helper of two.
    #[test]
    fn a_refused_helper_is_done_without() {
        explore(3, (3, 1), |runtime| Frame::run(runtime, 3));
    }

    /// `prepare` fails: helpers leave, and `body`, which no longer exists, is not called.
    #[test]
    fn a_failed_preparation_releases_the_helpers() {
        explore(4, (2, 9), |runtime| Frame::fail(runtime, 2, false));
        explore(1, (3, 9), |runtime| Frame::fail(runtime, 3, false));
    }
}

#[cfg(not(aif_loom))]
mod threads {
    use super::*;
    use std::time::{Duration, Instant};

    fn time() -> Duration {
        let seconds = std::env::var("AIF_STRESS_SECONDS").ok();
        Duration::from_secs_f64(seconds.and_then(|text| text.parse().ok()).unwrap_or(0.2))
    }

    #[test]
    fn pieces_are_run_once_each_under_threads() {
        let until = Instant::now() + time();
        let mut round = 0;
        while Instant::now() < until {
            round += 1;
            let (threads, pieces) = (1 + round % 5, round % 41);
            // Every third pool refuses some of the helpers.
            let accepts = if round % 3 == 0 { round % 4 } else { 9 };
            with_pool(threads as i64, accepts, |runtime| {
                let mut sums = vec![0u64; pieces];
                let places = sums.as_mut_ptr() as usize;
                let mut factor = 0u64;
                let factor_at = (&raw mut factor) as usize;
                let prepare = || {
                    // SAFETY: no piece runs before this returns.
                    unsafe { *(factor_at as *mut u64) = round as u64 };
                    Ok(())
                };
                for_each_after(runtime, pieces, prepare, &|piece| {
                    // SAFETY: each piece has a place of its own, and `prepare` has ended.
                    unsafe {
                        *(places as *mut u64).add(piece) +=
                            *(factor_at as *const u64) * piece as u64;
                    }
                })
                .unwrap();
                for (piece, sum) in sums.iter().enumerate() {
                    assert_eq!(*sum, (round * piece) as u64);
                }
            });
            with_pool(threads as i64, accepts, |runtime| {
                Frame::run(runtime, pieces);
                Frame::fail(runtime, pieces.max(2), round % 2 == 0);
            });
        }
    }

    #[test]
    fn a_piece_that_panics_fails_the_call_after_all_others() {
        for threads in [2, 4] {
            let ran = PlainUsize::new(0);
            let outcome = with_pool(threads, 9, |runtime| {
                catch_unwind(AssertUnwindSafe(|| {
                    for_each(runtime, 20, &|piece| {
                        ran.fetch_add(1, Ordering::Relaxed);
                        assert!(piece != 7, "piece 7 panics");
                    });
                }))
            });
            assert!(outcome.is_err());
            assert_eq!(ran.load(Ordering::Relaxed), 20);
        }
    }
}
