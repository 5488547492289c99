//! Rows picked and accumulated by index.

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
    copy_rows(pool, d, |at| usize::try_from(idx[at]).ok(), src, dst);
}

/// Fills row `at` of `dst` with row `source(at)` of `src`, or zeros; rows are of `d`.
pub(crate) fn copy_rows<T: Copy + Default + Send + Sync>(
    pool: &Pool,
    d: usize,
    source: impl Fn(usize) -> Option<usize> + Sync,
    src: &[T],
    dst: &mut [T],
) {
    let isa = pool.isa();
    let past = size_of::<T>() == 4 && d.is_multiple_of(16) && stream::is_large(isa, dst.len(), dst.as_ptr().cast(), &[]);
    let per_task = (stream::grain(GRAIN, dst.len()) / d).max(1);
    pool.run_pieces(dst, per_task * d, |task, dst| {
        let row = |at: usize| source(task * per_task + at).map(|row| &src[row * d..][..d]);
        #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
        if past {
            let sources: Vec<_> =
                (0..dst.len() / d).map(|at| row(at).map_or(std::ptr::null(), |row| row.as_ptr().cast())).collect();
            // SAFETY: rows of as many elements of four bytes, which are moved as such.
            unsafe { stream::copy_rows(isa, &sources, dst.as_mut_ptr().cast(), d) };
            stream::fence();
            return;
        }
        for (at, dst) in dst.chunks_exact_mut(d).enumerate() {
            match row(at) {
                Some(src) => dst.copy_from_slice(src),
                None => dst.fill(T::default()),
            }
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
    let isa = pool.isa();
    let past = !matches!(base, Base::InPlace) && d.is_multiple_of(16) && stream::is_large(isa, dst.len(), dst.as_ptr(), &[]);
    let per_task = (stream::grain(GRAIN, dst.len()) / d).max(1);
    pool.run_pieces(dst, per_task * d, |task, dst| {
        let first = task * per_task;
        let sums = Sums { d, start: &start[first..=first + dst.len() / d], order: &order, src };
        let base = match base {
            Base::Other(base) => Base::Other(&base[first * d..][..dst.len()]),
            same => same,
        };
        match isa {
            #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
            _ if isa.is_wide() => {
                let from = match base {
                    Base::Zero => std::ptr::null(),
                    Base::InPlace => dst.as_ptr(),
                    Base::Other(base) => base.as_ptr(),
                };
                super::vector::sums(isa, past, &sums, from, dst);
                if past {
                    stream::fence();
                }
            }
            _ => sums.plain(base, dst),
        }
    });
}

/// Rows that are sums of others.
pub(super) struct Sums<'a> {
    /// Elements of a row.
    pub(super) d: usize,
    /// Where the places of each sum's rows begin in `order`, and where those of the last one end.
    pub(super) start: &'a [u32],
    /// Places of rows in `src`.
    pub(super) order: &'a [u32],
    /// The rows.
    pub(super) src: &'a [f32],
}

impl Sums<'_> {
    /// The specification: `out = base`, then `out += src[row]` for all rows of each sum.
    fn plain(&self, base: Base<'_>, out: &mut [f32]) {
        for (at, (out, ends)) in out.chunks_exact_mut(self.d).zip(self.start.windows(2)).enumerate() {
            let base = match base {
                Base::Other(base) => Base::Other(&base[at * self.d..][..self.d]),
                same => same,
            };
            let rows = &self.order[ends[0] as usize..ends[1] as usize];
            plain_sum(base, rows.iter().map(|&row| &self.src[row as usize * self.d..][..self.d]), out);
        }
    }
}

/// `out = base`, then `out += row` for all that are added.
fn plain_sum<'a>(base: Base<'_>, mut added: impl Iterator<Item = &'a [f32]>, out: &mut [f32]) {
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
    use crate::isa::Isa;

    /// Rows that many are added to, past the caches and not, against sums in order.
    #[test]
    fn many_rows_added_to_few() {
        let (rows, d, n) = (60, 80, 300);
        let [base, src] = [rows * d, n * d].map(|len| {
            let mut x = vec![0.0; len];
            crate::random::normal(&Pool::new(1), len as u64, 0, 0, &mut x);
            x
        });
        let idx: Vec<i32> = (0..n as i32).map(|i| if i % 3 == 0 { 7 } else { i * i % 61 - 1 }).collect();
        for isa in Isa::available() {
            let pool = Pool::with_isa(2, isa);
            for (kind, with) in [(Base::InPlace, &base), (Base::Other(&base), &base), (Base::Zero, &vec![0.0; rows * d])] {
                let mut want = with.clone();
                for (i, &at) in idx.iter().enumerate().filter(|(_, at)| **at >= 0) {
                    let to = &mut want[at as usize * d..][..d];
                    to.iter_mut().zip(&src[i * d..]).for_each(|(to, x)| *to += x);
                }
                let mut got = base.clone();
                scatter_add_rows(&pool, rows, d, kind, &idx, &src, &mut got);
                assert_eq!(got, want, "{isa}");
            }
        }
    }

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
