//! Sums of rows on wide vectors.

use super::rows::Sums;
use crate::simd::{AHEAD, Simd, prefetch_far, put_up_to, simd_fn};
use crate::stream;

/// Most rows whose sum passes through registers.
const TOGETHER: usize = 8;

simd_fn! {
    /// All rows of a task: a call for each would keep the next row's lines from being asked for while the last ones of a row arrive.
    ///
    /// Callers uphold: `out` has a row of `d` for each of the sums, and so has `base` unless it is null, for zeros; it may be `out`.
    /// If `past`, which stores past the caches, rows of `out` begin at whole lines.
    pub(super) fn sums<S>(s, past: bool, sums: &Sums<'_>, base: *const f32, out: &mut [f32]) {
        let &Sums { d, start, order, src } = sums;
        let (lead, out) = (stream::rows_ahead(d), out.as_mut_ptr());
        let row = |place: usize| src[order[place] as usize * d..][..d].as_ptr();
        for (at, ends) in start.windows(2).enumerate() {
            let (first, end) = (ends[0] as usize, ends[1] as usize);
            // SAFETY: rows are those of the operands.
            unsafe {
                let out = out.add(at * d);
                let mut base = if base.is_null() { base } else { base.add(at * d) };
                if end == first + 1 && first + lead < order.len() {
                    // What most rows have.
                    if past {
                        sum::<S, true>(s, base, [row(first)], [row(first + lead)], d, out);
                    } else {
                        sum::<S, false>(s, base, [row(first)], [row(first + lead)], d, out);
                    }
                } else if end > first || base != out {
                    let past = past && end - first <= TOGETHER;
                    let mut place = first;
                    loop {
                        let next = end.min(place + TOGETHER);
                        let ahead = (place + lead).min(order.len())..(next + lead).min(order.len());
                        let (rows, ahead) = ((place..next).map(row), ahead.map(row));
                        if past {
                            sum::<S, true>(s, base, rows, ahead, d, out);
                        } else {
                            sum::<S, false>(s, base, rows, ahead, d, out);
                        }
                        (base, place) = (out, next);
                        if place == end {
                            break;
                        }
                    }
                }
            }
        }
    }
}

/// `out = base`, zeros if it is null, then `out += row` for `rows` in order. Fetches what lies behind `base`, and the rows `ahead`,
/// meanwhile.
///
/// # Safety
/// Rows and `base` are readable and `out` is writable for `d` floats. If `PAST`, the result goes past the caches; then `d` is whole lines, and
/// `out` begins with one.
#[inline(always)]
unsafe fn sum<S: Simd, const PAST: bool>(
    s: S,
    base: *const f32,
    rows: impl IntoIterator<Item = *const f32> + Clone,
    ahead: impl IntoIterator<Item = *const f32> + Clone,
    d: usize,
    out: *mut f32,
) {
    for i in (0..d).step_by(S::LANES) {
        let n = if PAST { S::LANES } else { d - i };
        for row in ahead.clone() {
            prefetch_far(row.wrapping_add(i));
        }
        // SAFETY: below `d` in every row.
        unsafe {
            let mut sum = if base.is_null() {
                s.zero()
            } else {
                prefetch_far(base.wrapping_add(i + AHEAD));
                s.load_up_to(base.add(i), n)
            };
            for row in rows.clone() {
                sum = s.add(sum, s.load_up_to(row.add(i), n));
            }
            put_up_to(s, PAST, out.add(i), n, sum);
        }
    }
}
