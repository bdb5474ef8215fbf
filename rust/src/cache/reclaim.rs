//! When a replaced row, or a replaced table, may be used again: after every reader that could see it left.

use super::table::Table;
use crate::sync::plain::{Arc, Weak};
use crate::sync::{AtomicPtr, Ordering};
use crossbeam_epoch::{Collector, Guard, LocalHandle};
use std::cell::RefCell;
use std::ptr::{self, NonNull};

/// What was taken out of readers' sight.
pub(super) enum Retired {
    /// Numbers of rows that no slot names any more.
    Rows(Vec<u32>),
    /// A table that has been replaced.
    Table(OldTable),
}

/// A replaced table that readers may still hold references to: so not a `Box`, which would claim to be
/// the only way to it. Freed on drop.
pub(super) struct OldTable(NonNull<Table>);

impl OldTable {
    /// # Safety
    /// `table` came from `Box::into_raw`, nobody else frees it, and no reference to it is left when
    /// this is dropped.
    pub(super) unsafe fn new(table: NonNull<Table>) -> Self {
        Self(table)
    }

    pub(super) fn table(&self) -> &Table {
        // SAFETY: `self` owns the table, and everybody else only reads it.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for OldTable {
    fn drop(&mut self) {
        // SAFETY: by the promise made to `new`.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

// SAFETY: a table is `Send`, and this owns one.
unsafe impl Send for OldTable {}

/// Keeps what was retired until no reader can hold it.
///
/// # Safety
/// An implementer MUST not give anything back by [`collect`](Self::collect) while a guard lives that
/// was made before the thing was handed to [`retire`](Self::retire). A guard made after `collect` gave
/// a thing back MUST see every store that preceded its `retire`. `pin` MUST not wait for anybody, and
/// nothing that happens inside `pin`, or when a guard is dropped, may take a lock.
pub(super) unsafe trait Reclaim: Send + Sync {
    /// While it lives, nothing its thread can reach is reused.
    type Guard<'a>
    where
        Self: 'a;

    /// Enters as a reader.
    fn pin(&self) -> Self::Guard<'_>;

    /// Writer only: hands over what no new reader can find. May be called while guards live.
    fn retire(&self, what: Retired);

    /// Writer only: passes on what may be used again by now, without waiting.
    fn collect(&self, take: &mut dyn FnMut(Retired));

    /// Writer only: tries to bring the moment nearer at which things can be collected.
    fn nudge(&self);
}

/// Reclamation by crossbeam's epochs, those of this cache alone: whoever stays long inside another cache,
/// or in anything else that uses crossbeam, holds up nothing here.
///
/// Deferred work may run inside any thread's `pin`, a reader's too. So all it does is to push one node
/// onto a stack, without a lock; sorting out and freeing is left to the writer.
pub(super) struct Epochs {
    collector: Arc<Collector>,
    returned: Arc<Stack>,
}

thread_local! {
    /// This thread's place in the epochs of the caches it has used, the latest first.
    static SEATS: RefCell<Vec<Seat>> = const { RefCell::new(Vec::new()) };
}

/// A thread's registration with one cache's epochs.
struct Seat {
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

    /// Enters the epochs for the first time on this thread, or again after another cache.
    #[cold]
    fn pin_at(&self, seats: &mut Vec<Seat>) -> Guard {
        let ours = |seat: &Seat| ptr::eq(seat.collector.as_ptr(), Arc::as_ptr(&self.collector));
        if let Some(at) = seats.iter().position(ours) {
            seats[..=at].rotate_right(1);
        } else {
            // The moment to give up the seats in caches that are gone.
            seats.retain(|seat| seat.collector.strong_count() > 0);
            let seat = Seat {
                collector: Arc::downgrade(&self.collector),
                handle: self.collector.register(),
            };
            seats.insert(0, seat);
        }
        seats[0].handle.pin()
    }
}

// SAFETY: crossbeam runs a deferred function only after every guard of the collector has gone that was
// pinned when it was deferred, and orders what preceded `defer` before any guard of a later epoch.
// Things reach the stack, and so `collect`, through such functions only. `pin` and the functions take no
// lock.
unsafe impl Reclaim for Epochs {
    type Guard<'a> = Guard;

    #[inline]
    fn pin(&self) -> Guard {
        let pinned = SEATS.try_with(|seats| {
            let mut seats = seats.try_borrow_mut().ok()?;
            Some(match seats.first() {
                // The address is not reused while a seat's `Weak` lives.
                Some(seat) if ptr::eq(seat.collector.as_ptr(), Arc::as_ptr(&self.collector)) => {
                    seat.handle.pin()
                }
                _ => self.pin_at(&mut seats),
            })
        });
        // While a thread ends, its seats may be gone already: it takes one for this guard only.
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
        // Else it would lie in this thread's bag until the thread retires more, perhaps never.
        guard.flush();
    }

    fn collect(&self, take: &mut dyn FnMut(Retired)) {
        self.returned.take_all(take);
    }

    fn nudge(&self) {
        // An epoch may advance once per pin; a thing is safe two epochs after it was retired.
        for _ in 0..3 {
            self.pin().flush();
        }
    }
}

struct Node {
    what: Retired,
    next: *mut Node,
}

// SAFETY: a node has one owner at a time; `next` is only followed by the one who took the whole stack.
unsafe impl Send for Node {}

/// A stack that many threads push to and one empties at a stroke. As nothing is popped singly, a node
/// that comes back at the same address cannot be mistaken for the old one.
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
            // Release: the node's contents come before its address.
            match self
                .top
                .compare_exchange_weak(top, raw, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(seen) => {
                    top = seen;
                    // SAFETY: the exchange failed, so `raw` is still only ours.
                    node = unsafe { Box::from_raw(raw) };
                }
            }
        }
    }

    fn take_all(&self, take: &mut dyn FnMut(Retired)) {
        // Acquire pairs with the Release of every push in the chain: each push that went on top of
        // another is a read-modify-write and so continues its release sequence.
        let mut next = self.top.swap(ptr::null_mut(), Ordering::Acquire);
        while !next.is_null() {
            // SAFETY: the swap made the whole chain ours.
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

/// Reclamation that loom can see through: things wait until a moment without readers.
///
/// A reader announces itself by a read-modify-write of one counter. `collect` reads the counter by one
/// too: if it finds zero, all earlier readers' exits happened before it, and every later reader's
/// entry happens after it and so sees what the writer had stored.
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

    // SAFETY: as argued above; the lock is taken by writers only.
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

        fn nudge(&self) {}
    }
}
