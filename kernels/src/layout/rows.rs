//! Rows picked and accumulated by index.

use crate::gemm::scratch::with_scratch;
use crate::pool::Pool;
use crate::reduce::sort_by_number;
use crate::stream;

/// Elements that are worth a task of their own.
const GRAIN: usize = 16 * 1024;

/// `dst[i] = src[idx[i]]` for rows of `d`; `src` is `[rows, d]`. A negative index gives zeros.
///
/// # Panics
/// When an index is not below `rows`, or a length is wrong.
#[track_caller]
pub fn gather_rows<T: Copy + Default + Send + Sync>(pool: &Pool, rows: usize, d: usize, idx: &[i32], src: &[T], dst: &mut [T]) {
    assert!(src.len() == rows * d && dst.len() == idx.len() * d, "length of an operand of gather_rows");
    if d == 0 {
        return;
    }
    let per_task = (GRAIN / d).max(1);
    let isa = pool.isa();
    let past = size_of::<T>() == 4 && d.is_multiple_of(16) && stream::is_large(isa, dst.len(), dst.as_ptr().cast(), &[]);
    pool.run_pieces(dst, per_task * d, |task, dst| {
        let idx = &idx[task * per_task..];
        for (at, dst) in dst.chunks_exact_mut(d).enumerate() {
            let row = |at: usize| idx.get(at).and_then(|&row| usize::try_from(row).ok()).map(|row| &src[row * d..][..d]);
            if let Some(next) = row(at + 1) {
                stream::fetch(next);
            }
            match row(at) {
                // SAFETY: rows of as many elements of four bytes, which are moved as such.
                Some(src) if past => unsafe { stream::copy(isa, src.as_ptr().cast(), dst.as_mut_ptr().cast(), d) },
                Some(src) => dst.copy_from_slice(src),
                None => dst.fill(T::default()),
            }
        }
        if past {
            stream::fence();
        }
    });
}

/// What rows are added to.
#[derive(Clone, Copy, Debug)]
pub enum Base<'a> {
    /// Zeros.
    Zero,
    /// What the destination holds.
    InPlace,
    /// A matrix of the destination's size.
    Other(&'a [f32]),
}

/// `dst = base`, then `dst[idx[i]] += src[i]` for rows of `d`, in the order of `i`; `dst` is `[rows, d]`. A negative index is skipped.
///
/// A task owns rows of the destination and passes over each once, adding all that belongs to it, so the order never changes.
///
/// # Panics
/// When an index is not below `rows`, or a length is wrong.
#[track_caller]
pub fn scatter_add_rows(pool: &Pool, rows: usize, d: usize, base: Base<'_>, idx: &[i32], src: &[f32], dst: &mut [f32]) {
    assert!(src.len() == idx.len() * d && dst.len() == rows * d, "length of an operand of scatter_add_rows");
    assert!(if let Base::Other(base) = base { base.len() == dst.len() } else { true }, "length of the base of scatter_add_rows");
    if d == 0 || rows == 0 {
        return;
    }
    let (start, order) = sort_by_number(rows, idx);
    let per_task = (GRAIN / d).max(1);
    let isa = pool.isa();
    let past = !matches!(base, Base::InPlace) && d.is_multiple_of(16) && stream::is_large(isa, dst.len(), dst.as_ptr(), &[]);
    pool.run_pieces(dst, per_task * d, |task, dst| {
        with_scratch(if past { d } else { 0 }, |scratch| {
            for (at, dst) in dst.chunks_exact_mut(d).enumerate() {
                let row = task * per_task + at;
                let added = order[start[row]..start[row + 1]].iter().map(|&i| &src[i as usize * d..][..d]);
                if let Some(&next) = order.get(start[row + 1]) {
                    stream::fetch(&src[next as usize * d..][..d]);
                }
                let base = match base {
                    Base::Other(base) => Base::Other(&base[row * d..][..d]),
                    same => same,
                };
                if past {
                    sum(base, added, scratch);
                    // SAFETY: a row each.
                    unsafe { stream::copy(isa, scratch.as_ptr(), dst.as_mut_ptr(), d) };
                } else {
                    sum(base, added, dst);
                }
            }
        });
        if past {
            stream::fence();
        }
    });
}

/// `out = base`, then `out += x` for all rows `x` that are added.
fn sum<'a>(base: Base<'_>, mut added: impl Iterator<Item = &'a [f32]>, out: &mut [f32]) {
    match base {
        Base::InPlace => {}
        Base::Zero => match added.next() {
            // As a sum that begins with zero: a negative zero becomes zero.
            Some(first) => out.iter_mut().zip(first).for_each(|(out, x)| *out = 0.0 + x),
            None => out.fill(0.0),
        },
        Base::Other(base) => match added.next() {
            Some(first) => out.iter_mut().zip(base).zip(first).for_each(|((out, base), x)| *out = base + x),
            None => out.copy_from_slice(base),
        },
    }
    added.for_each(|x| out.iter_mut().zip(x).for_each(|(out, x)| *out += x));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gather_then_scatter() {
        let (rows, d) = (5, 70);
        let src: Vec<f32> = (0..rows * d).map(|i| i as f32).collect();
        let idx = [3, -1, 0, 3, 4];
        for threads in [1, 2] {
            let pool = Pool::new(threads);
            let mut picked = vec![1.0; idx.len() * d];
            gather_rows(&pool, rows, d, &idx, &src, &mut picked);
            assert_eq!(picked[..d], src[3 * d..4 * d]);
            assert!(picked[d..2 * d].iter().all(|&x| x == 0.0));
            let ones = vec![1.0; rows * d];
            for (base, zero) in [(Base::InPlace, 1.0), (Base::Other(&ones), 1.0), (Base::Zero, 0.0)] {
                let mut sums = if matches!(base, Base::InPlace) { ones.clone() } else { vec![f32::NAN; rows * d] };
                scatter_add_rows(&pool, rows, d, base, &idx, &picked, &mut sums);
                for i in 0..d {
                    assert_eq!(sums[i], zero + src[i]);
                    assert_eq!(sums[d + i], zero);
                    assert_eq!(sums[3 * d + i], zero + 2.0 * src[3 * d + i]);
                }
            }
        }
    }
}
