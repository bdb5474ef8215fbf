//! Process-wide handles of caches, for compiled programs.
//!
//! A program holds a number, not a pointer: using a dropped cache is an error and never a crash. So is using,
//! in the child of a fork, a cache of the parent.

use super::EmbeddingCache;
use crate::process::PerProcess;
use crate::sync::plain::{Arc, AtomicU64, Ordering, PoisonError, RwLock, Weak};
use std::collections::BTreeMap;

/// Caches of this process by handle.
static CACHES: PerProcess<RwLock<BTreeMap<u64, Weak<EmbeddingCache>>>> = PerProcess::new();

/// Returns the handle of `cache`: constant for the cache's lifetime, never 0, never reused.
pub fn register(cache: &Arc<EmbeddingCache>) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    *cache.handle.get_or_init(|| {
        let handle = NEXT.fetch_add(1, Ordering::Relaxed);
        // A poisoned map is consistent: nothing in here panics between two changes.
        let mut caches = CACHES.get().write().unwrap_or_else(PoisonError::into_inner);
        caches.retain(|_, cache| cache.strong_count() > 0);
        caches.insert(handle, Arc::downgrade(cache));
        handle
    })
}

/// Returns the cache of `handle`, kept alive by the result; `None` if it was dropped or never existed (see
/// [`Error::StaleHandle`](crate::error::Error::StaleHandle)).
#[must_use]
pub fn resolve(handle: u64) -> Option<Arc<EmbeddingCache>> {
    CACHES
        .get()
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .get(&handle)
        .and_then(Weak::upgrade)
}

#[cfg(all(test, not(aif_loom)))]
mod tests {
    use super::super::{CacheConfig, DType, RowLayout};
    use super::*;

    fn cache() -> Arc<EmbeddingCache> {
        let layout = RowLayout::new([("x", DType::Float32, vec![2])]).unwrap();
        Arc::new(EmbeddingCache::new(layout, CacheConfig::default()).unwrap())
    }

    #[test]
    fn a_handle_lives_as_long_as_its_cache() {
        let (first, second) = (cache(), cache());
        let (a, b) = (register(&first), register(&second));
        assert_eq!(a, register(&first));
        assert!(a != b && a != 0 && b != 0);
        assert!(Arc::ptr_eq(&resolve(a).unwrap(), &first));
        drop(first);
        assert!(resolve(a).is_none());
        assert!(register(&cache()) > b);
        assert!(Arc::ptr_eq(&resolve(b).unwrap(), &second));
        assert!(resolve(0).is_none());
    }
}
