//! Pages of memory: a hint to the system that large ones serve better.

/// A large page where they exist; smaller stretches are left alone.
const HUGE: usize = 2 << 20;

/// Asks for large pages behind `data`: streaming through them misses translations five hundred times less often, and first touches
/// fault as rarely. A hint that changes no content and may be ignored, best given before the first touch.
pub fn prefer_huge<T>(data: &mut [T]) {
    let first = data.as_ptr().expose_provenance();
    let start = first.next_multiple_of(HUGE);
    let end = (first + size_of_val(data)) / HUGE * HUGE;
    if end > start {
        advise(start, end - start);
    }
}

#[cfg(target_os = "linux")]
fn advise(start: usize, bytes: usize) {
    use std::ffi::{c_int, c_void};

    // SAFETY: `madvise` of the C library that `std` is linked with, as POSIX declares it.
    unsafe extern "C" {
        fn madvise(start: *mut c_void, bytes: usize, advice: c_int) -> c_int;
    }
    const MADV_HUGEPAGE: c_int = 14;
    // SAFETY: the pages lie inside an object of the caller's, and the advice changes no content. Refusal is no failure.
    unsafe { madvise(std::ptr::with_exposed_provenance_mut(start), bytes, MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise(_: usize, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_stays() {
        let mut data = vec![7u8; 3 * HUGE + 5];
        prefer_huge(&mut data);
        prefer_huge(&mut data[..100]);
        prefer_huge::<u8>(&mut []);
        assert!(data.iter().all(|&x| x == 7));
    }
}
