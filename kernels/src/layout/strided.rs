//! Copies between strided views of at most [`MAX_RANK`] dimensions.

use crate::pool::{Disjoint, Pool};

/// Most dimensions of a view.
pub const MAX_RANK: usize = 6;

/// Elements that are worth a task of their own.
const GRAIN: usize = 16 * 1024;

/// Side of the square blocks of a transpose: 16 floats fill a cache line.
const BLOCK: usize = 16;

/// Where the elements of a dense index space lie in a slice.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Elements between neighbours along each dimension; zero repeats an input.
    pub strides: &'a [usize],
    /// Position of element zero.
    pub offset: usize,
}

impl View<'_> {
    /// One past the largest position that a view of `dims` touches.
    fn end(&self, dims: &[usize]) -> Option<usize> {
        let mut last = self.offset;
        for (&dim, &stride) in dims.iter().zip(self.strides) {
            last = last.checked_add((dim - 1).checked_mul(stride)?)?;
        }
        last.checked_add(1)
    }
}

/// Sets every element of `out`.
pub fn fill<T: Copy + Send + Sync>(pool: &Pool, value: T, out: &mut [T]) {
    pool.run_pieces(out, 4 * GRAIN, |_, out| out.fill(value));
}

/// `out[i_axes[0], i_axes[1], ..] = x[i_0, i_1, ..]`: dimension `j` of the result is dimension
/// `axes[j]` of `x`. Overwrites `out`.
///
/// # Panics
/// When `axes` is no permutation, the rank exceeds [`MAX_RANK`], or a length is wrong.
#[track_caller]
pub fn permute_copy<T: Copy + Send + Sync>(pool: &Pool, dims: &[usize], axes: &[usize], x: &[T], out: &mut [T]) {
    let rank = dims.len();
    assert!(rank <= MAX_RANK && axes.len() == rank, "rank of a permute");
    let len: usize = dims.iter().product();
    assert!(x.len() == len && out.len() == len, "length of an operand of permute_copy");
    let mut seen = [false; MAX_RANK];
    for &axis in axes {
        assert!(axis < rank && !std::mem::replace(&mut seen[axis], true), "axes must be a permutation");
    }
    let from = dense(dims);
    let (mut out_dims, mut strides) = ([0; MAX_RANK], [0; MAX_RANK]);
    for (j, &axis) in axes.iter().enumerate() {
        out_dims[j] = dims[axis];
        strides[j] = from[axis];
    }
    let to = dense(&out_dims[..rank]);
    copy_strided(
        pool,
        &out_dims[..rank],
        x,
        View { strides: &strides[..rank], offset: 0 },
        out,
        View { strides: &to[..rank], offset: 0 },
    );
}

/// Row-major strides.
fn dense(dims: &[usize]) -> [usize; MAX_RANK] {
    let mut strides = [1; MAX_RANK];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis] * dims[axis];
    }
    strides
}

/// Copies element by element from one view of `dims` to another: a slice is an input offset,
/// an expansion an input stride of zero, concatenation and padding write parts of an output.
/// Elements of `out` outside its view keep their values.
///
/// # Panics
/// When a view leaves its slice, two elements would be written to one position, or ranks differ
/// or exceed [`MAX_RANK`].
#[track_caller]
pub fn copy_strided<T: Copy + Send + Sync>(pool: &Pool, dims: &[usize], x: &[T], from: View<'_>, out: &mut [T], to: View<'_>) {
    let rank = dims.len();
    assert!(rank <= MAX_RANK && from.strides.len() == rank && to.strides.len() == rank, "rank of a strided copy");
    if dims.contains(&0) {
        return;
    }
    assert!(from.end(dims).is_some_and(|end| end <= x.len()), "input view leaves its slice");
    assert!(to.end(dims).is_some_and(|end| end <= out.len()), "output view leaves its slice");
    let axes = merge(dims, from.strides, to.strides);
    let mut extent = 1;
    for axis in axes.iter().rev().filter(|axis| axis.len > 1) {
        assert!(axis.to >= extent, "output positions of a strided copy overlap");
        extent += axis.to * (axis.len - 1);
    }
    let (outer, inner) = axes.split_at(axes.len() - 1);
    let inner = inner[0];
    let out = Disjoint::new(out);
    // A transpose: the input is contiguous along an outer axis. Blocks of both are walked.
    let along = outer.iter().rposition(|axis| axis.from == 1);
    if let (Some(along), true) = (along, inner.from > 1) {
        let second = outer[along];
        let mut rest = [Axis::UNIT; MAX_RANK];
        let others = outer.iter().enumerate().filter(|&(index, _)| index != along);
        let mut rank = 0;
        for (_, axis) in others {
            rest[rank] = *axis;
            rank += 1;
        }
        let rest = &rest[..rank];
        let strips = second.len.div_ceil(BLOCK);
        let count: usize = rest.iter().map(|axis| axis.len).product::<usize>() * strips;
        let per_task = GRAIN.div_ceil(BLOCK * inner.len);
        pool.run(count.div_ceil(per_task), &|task| {
            for item in task * per_task..count.min((task + 1) * per_task) {
                let (base_from, base_to) = offsets(rest, item / strips);
                let strip = item % strips * BLOCK;
                let height = BLOCK.min(second.len - strip);
                for left in (0..inner.len).step_by(BLOCK) {
                    let width = BLOCK.min(inner.len - left);
                    for i in strip..strip + height {
                        let from = from.offset + base_from + i;
                        let to = to.offset + base_to + i * second.to;
                        for j in left..left + width {
                            // SAFETY: inside the views, which were checked against the slices;
                            // output positions are distinct.
                            unsafe {
                                *out.as_mut_ptr().add(to + j * inner.to) = *x.get_unchecked(from + j * inner.from);
                            }
                        }
                    }
                }
            }
        });
        return;
    }
    let count: usize = outer.iter().map(|axis| axis.len).product();
    let per_task = GRAIN.div_ceil(inner.len);
    pool.run(count.div_ceil(per_task), &|task| {
        for item in task * per_task..count.min((task + 1) * per_task) {
            let (base_from, base_to) = offsets(outer, item);
            let (from, to) = (from.offset + base_from, to.offset + base_to);
            if inner.from == 1 && inner.to == 1 {
                // SAFETY: output positions are distinct, so rows do not overlap.
                let out = unsafe { out.slice(to, inner.len) };
                out.copy_from_slice(&x[from..][..inner.len]);
            } else {
                for j in 0..inner.len {
                    // SAFETY: inside the views, and output positions are distinct.
                    unsafe { *out.as_mut_ptr().add(to + j * inner.to) = x[from + j * inner.from] };
                }
            }
        }
    });
}

/// One dimension of a copy.
#[derive(Clone, Copy, Debug)]
struct Axis {
    len: usize,
    from: usize,
    to: usize,
}

impl Axis {
    const UNIT: Axis = Axis { len: 1, from: 1, to: 1 };
}

/// Drops dimensions of one element, orders the rest by falling output stride and merges
/// neighbours that are contiguous on both sides. Never empty.
fn merge(dims: &[usize], from: &[usize], to: &[usize]) -> Vec<Axis> {
    let mut axes: Vec<Axis> = (0..dims.len())
        .filter(|&axis| dims[axis] > 1)
        .map(|axis| Axis { len: dims[axis], from: from[axis], to: to[axis] })
        .collect();
    axes.sort_by_key(|axis| std::cmp::Reverse(axis.to));
    let mut merged: Vec<Axis> = Vec::with_capacity(axes.len() + 1);
    for axis in axes {
        match merged.last_mut() {
            Some(last) if last.from == axis.from * axis.len && last.to == axis.to * axis.len => {
                *last = Axis { len: last.len * axis.len, ..axis };
            }
            _ => merged.push(axis),
        }
    }
    if merged.is_empty() {
        merged.push(Axis::UNIT);
    }
    merged
}

/// Offsets of item `index` of the row-major index space of `axes`.
fn offsets(axes: &[Axis], mut index: usize) -> (usize, usize) {
    let (mut from, mut to) = (0, 0);
    for axis in axes.iter().rev() {
        let i = index % axis.len;
        index /= axis.len;
        from += i * axis.from;
        to += i * axis.to;
    }
    (from, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(dims: &[usize], axes: &[usize], x: &[i32]) -> Vec<i32> {
        let strides = dense(dims);
        let out_dims: Vec<usize> = axes.iter().map(|&axis| dims[axis]).collect();
        (0..x.len())
            .map(|mut index| {
                let mut position = 0;
                for (j, &axis) in axes.iter().enumerate().rev() {
                    position += index % out_dims[j] * strides[axis];
                    index /= out_dims[j];
                }
                x[position]
            })
            .collect()
    }

    #[test]
    fn permutations_match_the_definition() {
        let cases: [(&[usize], &[usize]); 9] = [
            (&[], &[]),
            (&[7], &[0]),
            (&[3, 5], &[1, 0]),
            (&[130, 257], &[1, 0]),
            (&[4, 9, 33], &[1, 0, 2]),
            (&[4, 9, 33], &[2, 1, 0]),
            (&[2, 19, 3, 21], &[0, 3, 2, 1]),
            (&[2, 3, 1, 4, 5, 6], &[5, 0, 4, 1, 3, 2]),
            (&[0, 3], &[1, 0]),
        ];
        for (dims, axes) in cases {
            let len: usize = dims.iter().product();
            let x: Vec<i32> = (0..len as i32).collect();
            for threads in [1, 2] {
                let mut out = vec![-1; len];
                permute_copy(&Pool::new(threads), dims, axes, &x, &mut out);
                assert_eq!(out, naive(dims, axes, &x), "{dims:?} {axes:?}");
            }
        }
    }

    #[test]
    fn slice_expand_and_place() {
        let pool = Pool::new(2);
        let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let mut out = vec![9.0; 16];
        // Columns 1..3 of a [3, 4] matrix into the middle of a [4, 4] one.
        let (from, to) = (View { strides: &[4, 1], offset: 1 }, View { strides: &[4, 1], offset: 5 });
        copy_strided(&pool, &[3, 2], &x, from, &mut out, to);
        assert_eq!(out[4..9], [9.0, 1.0, 2.0, 9.0, 9.0]);
        assert_eq!(out[13..], [9.0, 10.0, 9.0]);
        // A column repeated three times.
        let mut wide = vec![0.0; 9];
        let (from, to) = (View { strides: &[4, 0], offset: 2 }, View { strides: &[3, 1], offset: 0 });
        copy_strided(&pool, &[3, 3], &x, from, &mut wide, to);
        assert_eq!(wide, [2.0, 2.0, 2.0, 6.0, 6.0, 6.0, 10.0, 10.0, 10.0]);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_output_is_refused() {
        let view = |stride| View { strides: stride, offset: 0 };
        let (x, mut out) = ([0u8; 4], [0u8; 4]);
        copy_strided(&Pool::new(1), &[2, 2], &x, view(&[2, 1]), &mut out, view(&[1, 1]));
    }
}
