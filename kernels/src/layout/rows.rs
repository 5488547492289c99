//! Rows picked and accumulated by index.

use crate::pool::{Disjoint, Pool};

/// Elements that are worth a task of their own.
const GRAIN: usize = 16 * 1024;

/// Columns of one task of a scatter: a cache line's multiple.
const COLUMNS: usize = 64;

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
    pool.run_pieces(dst, per_task * d, |task, dst| {
        for (dst, &row) in dst.chunks_exact_mut(d).zip(&idx[task * per_task..]) {
            match usize::try_from(row) {
                Ok(row) => dst.copy_from_slice(&src[row * d..][..d]),
                Err(_) => dst.fill(T::default()),
            }
        }
    });
}

/// `dst[idx[i]] += src[i]` for rows of `d`, in the order of `i`; `dst` is `[rows, d]` and is
/// added to. A negative index is skipped. Tasks own columns, so the order never changes.
///
/// # Panics
/// When an index is not below `rows`, or a length is wrong.
#[track_caller]
pub fn scatter_add_rows(pool: &Pool, rows: usize, d: usize, idx: &[i32], src: &[f32], dst: &mut [f32]) {
    assert!(src.len() == idx.len() * d && dst.len() == rows * d, "length of an operand of scatter_add_rows");
    let dst = Disjoint::new(dst);
    pool.run(d.div_ceil(COLUMNS), &|task| {
        let start = task * COLUMNS;
        let width = COLUMNS.min(d - start);
        for (i, &row) in idx.iter().enumerate() {
            let Ok(row) = usize::try_from(row) else {
                continue;
            };
            // SAFETY: a task is alone in its columns.
            let dst = unsafe { dst.slice(row * d + start, width) };
            for (dst, src) in dst.iter_mut().zip(&src[i * d + start..][..width]) {
                *dst += src;
            }
        }
    });
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
            let mut sums = vec![1.0; rows * d];
            scatter_add_rows(&pool, rows, d, &idx, &picked, &mut sums);
            for i in 0..d {
                assert_eq!(sums[i], 1.0 + src[i]);
                assert_eq!(sums[d + i], 1.0);
                assert_eq!(sums[3 * d + i], 1.0 + 2.0 * src[3 * d + i]);
            }
        }
    }
}
