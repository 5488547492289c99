//! Sums of rows on wide vectors.

use crate::simd::{prefetch, put_up_to, simd_fn};

simd_fn! {
    /// `out = base`, zeros if it is null, then `out += src[row]` for `rows` in order. Fetches what lies behind `base`, and the row at
    /// `next`, meanwhile.
    ///
    /// Callers uphold: `base` is null or readable for a row and may be `out`; if `past`, which stores past the caches, `out` begins at
    /// a whole line.
    pub(super) fn sum<S>(s, past: bool, base: *const f32, rows: &[u32], src: &[f32], next: *const f32, out: &mut [f32]) {
        let d = out.len();
        assert!(rows.iter().all(|&row| (row as usize + 1) * d <= src.len()));
        let (out, src) = (out.as_mut_ptr(), src.as_ptr());
        for i in (0..d).step_by(S::LANES) {
            let n = d - i;
            prefetch(next.wrapping_add(i));
            prefetch(base.wrapping_add(d + i));
            // SAFETY: below `d` in every row, each of which `src` has.
            unsafe {
                let mut sum = if base.is_null() { s.zero() } else { s.load_up_to(base.add(i), n) };
                for &row in rows {
                    sum = s.add(sum, s.load_up_to(src.add(row as usize * d + i), n));
                }
                put_up_to(s, past, out.add(i), n, sum);
            }
        }
    }
}
