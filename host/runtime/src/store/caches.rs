//! Keys and values of attention, and who wrote them last.

use std::sync::atomic::{AtomicU64, Ordering};

use swift_graph::DType;

use super::{Revision, Store};
use crate::buffer::Buffer;
use crate::cpu::cache_words;
use crate::{Error, Result};

/// Keys or values of attention, in the device's own layout.
pub(super) struct Cache {
    dtype: DType,
    shape: Vec<usize>,
    pub(super) buffer: Buffer,
}

/// Names somebody who writes to the caches of stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant(u64);

impl Tenant {
    /// Another one than all before.
    #[expect(clippy::new_without_default, reason = "no two are equal, which a default would suggest")]
    pub fn new() -> Tenant {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Tenant(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Store {
    /// Makes a cache of attention, `[pages, page, heads, size]` stored as f32, f16 or s8, unless it exists. Its content is the
    /// device's own: it cannot be read, and checkpoints do not keep it.
    ///
    /// # Errors
    /// When it exists with another shape or type, the shape is no cache's, or memory is short.
    pub fn ensure_cache(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Result<()> {
        match self.caches.get(name) {
            Some(cache) if cache.shape == shape && cache.dtype == dtype => Ok(()),
            Some(cache) => {
                let is = format!("{}{:?}", cache.dtype.name(), cache.shape);
                Err(Error::tensor("cache", name, format!("is {is}, the run takes {}{shape:?}; remove it first", dtype.name())))
            }
            None => {
                let words = cache_words(dtype, shape);
                let words = words.ok_or_else(|| Error::tensor("cache", name, format!("cannot have the shape {shape:?}")))?;
                let buffer = Buffer::zeroed(words.saturating_mul(4), "a cache")?;
                self.revision = Revision::default();
                self.caches.insert(name.to_string(), Cache { dtype, shape: shape.to_vec(), buffer });
                Ok(())
            }
        }
    }

    /// As [`Store::ensure_cache`], but a cache of another shape or type is thrown away first.
    ///
    /// # Errors
    /// When the shape is no cache's, or memory is short.
    pub fn replace_cache(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Result<()> {
        if self.caches.get(name).is_some_and(|cache| cache.shape != shape || cache.dtype != dtype) {
            self.remove_cache(name);
        }
        self.ensure_cache(name, dtype, shape)
    }

    /// Notes that `to` is going to write to caches, and says whether it was the last to do so: then they hold what it left there.
    pub fn lend_caches(&mut self, to: Tenant) -> bool {
        self.tenant.replace(to) == Some(to)
    }

    /// Forgets a cache.
    pub fn remove_cache(&mut self, name: &str) -> bool {
        self.revision = Revision::default();
        self.tenant = None;
        self.caches.remove(name).is_some()
    }

    pub(crate) fn cache_mut(&mut self, name: &str) -> Result<&mut Buffer> {
        self.caches.get_mut(name).map(|cache| &mut cache.buffer).ok_or_else(|| Error::missing("cache", name))
    }
}
