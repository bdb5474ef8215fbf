//! Memory reclamation: a replaced row or table is reused only after every reader that could see it has
//! left.

use super::table::Table;
use crate::sync::plain::{Arc, Weak};
use crate::sync::{AtomicPtr, Ordering};
use crossbeam_epoch::{Collector, Guard, LocalHandle};
use std::cell::RefCell;
use std::ptr::{self, NonNull};

/// Object that readers can no longer find.
pub(super) enum Retired {
    /// Numbers of rows that no slot names any more.
    Rows(Vec<u32>),
    /// Table that has been replaced.
    Table(RetiredTable),
}

/// Replaced table that readers may still reference; not a `Box`, which would assert unique access. Freed on
/// drop.
pub(super) struct RetiredTable(NonNull<Table>);

impl RetiredTable {
    /// # Safety
    /// `table` came from `Box::into_raw`, no other code frees it, and no reference to it is left when this
    /// is dropped.
    pub(super) unsafe fn new(table: NonNull<Table>) -> Self {
        Self(table)
    }

    pub(super) fn table(&self) -> &Table {
        // SAFETY: `self` owns the table, and all others only read it.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for RetiredTable {
    fn drop(&mut self) {
        // SAFETY: by the contract of `new`.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

// SAFETY: a table is `Send`, and this owns one.
unsafe impl Send for RetiredTable {}

/// Holder of retired objects until no reader can reference them.
///
/// # Safety
/// An implementer MUST NOT release an object by [`collect`](Self::collect) while a guard lives that was
/// made before the object was passed to [`retire`](Self::retire). A guard made after `collect` released an
/// object MUST see every store that preceded its `retire`. `pin` MUST NOT wait for another thread.
pub(super) unsafe trait Reclaim: Send + Sync {
    /// Guard of a reader: while it lives, no object its thread can reach is reused.
    type Guard<'a>
    where
        Self: 'a;

    /// Enters as a reader.
    fn pin(&self) -> Self::Guard<'_>;

    /// Retires objects that no new reader can find. May be called while guards live. Writer only.
    fn retire(&self, what: Retired);

    /// Passes released objects to `take`, without waiting. Writer only.
    fn collect(&self, take: &mut dyn FnMut(Retired));

    /// Tries to advance towards the release of retired objects. Writer only.
    fn try_advance(&self);
}

/// Epoch-based reclamation by crossbeam with a collector per cache: a long read in another cache, or in
/// other code that uses crossbeam, delays nothing here.
///
/// Deferred functions may run inside any thread's `pin`, including a reader's. So they only push one node
/// onto a lock-free stack; sorting and freeing is left to the writer.
pub(super) struct Epochs {
    collector: Arc<Collector>,
    returned: Arc<Stack>,
}

thread_local! {
    /// Registrations of this thread with the collectors of the caches it has used, the latest first.
    static REGISTRATIONS: RefCell<Vec<Registration>> = const { RefCell::new(Vec::new()) };
}

/// Registration of a thread with one collector.
struct Registration {
    collector: Weak<Collector>,
    handle: LocalHandle,
}

impl Epochs {
    pub(super) fn new() -> Self {
        Self {
            collector: Arc::new(Collector::new()),
            returned: Arc::new(Stack {
                top: AtomicPtr::new(ptr::null_mut()),
            }),
        }
    }

    /// Registers this thread on its first use of the cache, or moves its registration to the front. The
    /// first use allocates, and may free what caches that are gone have left.
    #[cold]
    fn pin_slow(&self, registrations: &mut Vec<Registration>) -> Guard {
        let ours = |registration: &Registration| {
            ptr::eq(
                registration.collector.as_ptr(),
                Arc::as_ptr(&self.collector),
            )
        };
        if let Some(at) = registrations.iter().position(ours) {
            registrations[..=at].rotate_right(1);
        } else {
            // Drops the registrations with caches that are gone.
            registrations.retain(|registration| registration.collector.strong_count() > 0);
            let registration = Registration {
                collector: Arc::downgrade(&self.collector),
                handle: self.collector.register(),
            };
            registrations.insert(0, registration);
        }
        registrations[0].handle.pin()
    }
}

// SAFETY: crossbeam runs a deferred function only after every guard of the collector has gone that was
// pinned when it was deferred, and orders what preceded `defer` before any guard of a later epoch. Objects
// reach the stack, and so `collect`, through such functions only. `pin` waits for no thread.
unsafe impl Reclaim for Epochs {
    type Guard<'a> = Guard;

    #[inline]
    fn pin(&self) -> Guard {
        let pinned = REGISTRATIONS.try_with(|registrations| {
            let mut registrations = registrations.try_borrow_mut().ok()?;
            Some(match registrations.first() {
                // The address is not reused while the registration's `Weak` lives.
                Some(registration)
                    if ptr::eq(
                        registration.collector.as_ptr(),
                        Arc::as_ptr(&self.collector),
                    ) =>
                {
                    registration.handle.pin()
                }
                _ => self.pin_slow(&mut registrations),
            })
        });
        // While a thread exits, its registrations may be gone already: it makes one for this guard only.
        pinned
            .ok()
            .flatten()
            .unwrap_or_else(|| self.collector.register().pin())
    }

    fn retire(&self, what: Retired) {
        let returned = Arc::clone(&self.returned);
        let node = Box::new(Node {
            what,
            next: ptr::null_mut(),
        });
        let guard = self.pin();
        guard.defer(move || returned.push(node));
        // Otherwise it would stay in this thread's bag until the thread retires more, perhaps for ever.
        guard.flush();
    }

    fn collect(&self, take: &mut dyn FnMut(Retired)) {
        self.returned.take_all(take);
    }

    fn try_advance(&self) {
        // An epoch may advance once per pin; an object is safe two epochs after it was retired.
        for _ in 0..3 {
            self.pin().flush();
        }
    }
}

struct Node {
    what: Retired,
    next: *mut Node,
}

// SAFETY: a node has one owner at a time; `next` is followed only by the thread that took the whole stack.
unsafe impl Send for Node {}

/// Stack with many pushers, emptied as a whole. No single node is popped, so there is no ABA problem.
struct Stack {
    // Invariant: null, or the head of a chain of leaked boxes that the stack owns.
    top: AtomicPtr<Node>,
}

impl Stack {
    fn push(&self, mut node: Box<Node>) {
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            node.next = top;
            let raw = Box::into_raw(node);
            // Release: the node's contents precede its address.
            match self
                .top
                .compare_exchange_weak(top, raw, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(seen) => {
                    top = seen;
                    // SAFETY: the exchange failed, so this thread still owns `raw`.
                    node = unsafe { Box::from_raw(raw) };
                }
            }
        }
    }

    fn take_all(&self, take: &mut dyn FnMut(Retired)) {
        // Acquire pairs with the Release of every push in the chain: each push on top of another is a
        // read-modify-write and so continues its release sequence.
        let mut next = self.top.swap(ptr::null_mut(), Ordering::Acquire);
        while !next.is_null() {
            // SAFETY: the swap transferred the whole chain to this thread.
            let node = unsafe { Box::from_raw(next) };
            next = node.next;
            take(node.what);
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.take_all(&mut drop);
    }
}

/// Reclamation that loom can explore: objects are released at a moment without readers.
///
/// A reader increments one counter by a read-modify-write. `collect` reads the counter by one too: if it is
/// zero, the exits of all earlier readers happened before, and the entry of every later reader happens
/// after and so sees what the writer had stored.
#[cfg(aif_loom)]
pub(super) mod counted {
    use super::{Reclaim, Retired};
    use crate::sync::{AtomicUsize, Mutex, Ordering};

    pub(in super::super) struct Counted {
        readers: AtomicUsize,
        waiting: Mutex<Vec<Retired>>,
    }

    impl Counted {
        pub(in super::super) fn new() -> Self {
            Self {
                readers: AtomicUsize::new(0),
                waiting: Mutex::new(Vec::new()),
            }
        }
    }

    pub(in super::super) struct Guard<'a>(&'a AtomicUsize);

    impl Drop for Guard<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::AcqRel);
        }
    }

    // SAFETY: as argued above; only writers take the lock.
    unsafe impl Reclaim for Counted {
        type Guard<'a> = Guard<'a>;

        fn pin(&self) -> Guard<'_> {
            self.readers.fetch_add(1, Ordering::AcqRel);
            Guard(&self.readers)
        }

        fn retire(&self, what: Retired) {
            self.waiting.lock().unwrap().push(what);
        }

        fn collect(&self, take: &mut dyn FnMut(Retired)) {
            if self.readers.fetch_add(0, Ordering::AcqRel) == 0 {
                self.waiting.lock().unwrap().drain(..).for_each(take);
            }
        }

        fn try_advance(&self) {}
    }
}
