//! One slice, written by many tasks.

use std::marker::PhantomData;

/// A mutable slice that tasks of one run write in parts that do not overlap.
#[derive(Clone, Copy)]
pub struct Disjoint<'a, T> {
    data: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: access is only through unsafe functions whose callers promise that parts do not overlap.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Borrows `data` for the duration of a run.
    pub fn new(data: &'a mut [T]) -> Disjoint<'a, T> {
        Disjoint { data: data.as_mut_ptr(), len: data.len(), owner: PhantomData }
    }

    /// Elements of the whole slice.
    #[expect(clippy::len_without_is_empty, reason = "a bound for indices, not a collection")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Pointer to the first element, for kernels with strided access.
    ///
    /// Writing through it is sound only where no other task reads or writes.
    pub fn as_mut_ptr(&self) -> *mut T {
        self.data
    }

    /// The part from `start` on.
    ///
    /// # Panics
    /// When `start` is out of bounds.
    #[track_caller]
    pub fn after(&self, start: usize) -> Disjoint<'a, T> {
        assert!(start <= self.len, "part out of bounds");
        // SAFETY: in bounds by the check.
        let data = unsafe { self.data.add(start) };
        Disjoint { data, len: self.len - start, owner: PhantomData }
    }

    /// The part of `len` elements from `start`.
    ///
    /// # Safety
    /// While the result lives, no other part that overlaps it may exist.
    ///
    /// # Panics
    /// When the part is out of bounds.
    #[track_caller]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "part out of bounds");
        // SAFETY: in bounds by the check, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}
