//! Products with one small side (LoRA factors, decoding): the large operand is read
//! once, in place, and only the small one is packed.
//!
//! * The large operand is contiguous along `k`: sets of dot products.
//! * It is contiguous across `k`: outer products, with its rows as unpacked panels.
//!
//! Both are formulated with the small side as `m`; `Side` says how to read that back.

use super::MatRef;
use super::blocked::{Sizes, run};
use super::kernel::{DOTS, Epilogue, Tile, kernels};
use super::pack::pack_a;
use super::scratch::with_scratch;
use crate::pool::{Disjoint, Pool};

/// Largest small side.
pub(crate) const THIN: usize = 16;

/// A product whose side `m` is at most [`THIN`].
#[derive(Clone, Copy)]
pub(crate) struct Thin<'a> {
    pub(crate) sizes: Sizes,
    /// The small operand, `[m, k]`.
    pub(crate) small: MatRef<'a>,
    /// The large operand, `[k, n]`.
    pub(crate) large: MatRef<'a>,
    /// Strides of the output as `[m, n]`; one of them is 1.
    pub(crate) strides: (usize, usize),
}

/// Sets of dot products; the large operand has `row_stride == 1`.
pub(crate) fn dots(pool: &Pool, thin: Thin<'_>, c: Disjoint<'_, f32>, epilogue: Epilogue<'_>) {
    /// Columns of the large operand per task.
    const COLUMNS: usize = 32;
    let kernels = kernels(pool.isa());
    let Thin { sizes, small, large, strides } = thin;
    let Sizes { m, n, k } = sizes;
    with_scratch(m * k, |packed| {
        let contiguous = small.col_stride == 1;
        if !contiguous {
            for (i, row) in packed.chunks_exact_mut(k).enumerate() {
                for (p, value) in row.iter_mut().enumerate() {
                    *value = small.data[i * small.row_stride + p * small.col_stride];
                }
            }
        }
        let packed = &*packed;
        let row = |i: usize| if contiguous { &small.data[i * small.row_stride..][..k] } else { &packed[i * k..][..k] };
        run(pool, sizes.is_small(), n.div_ceil(COLUMNS), &|task| {
            let end = n.min((task + 1) * COLUMNS);
            for j in (task * COLUMNS..end).step_by(DOTS) {
                // Past the edge the last column or row is repeated and its result dropped.
                let x: [*const f32; DOTS] =
                    std::array::from_fn(|s| large.data[(j + s).min(end - 1) * large.col_stride..][..k].as_ptr());
                for i in (0..m).step_by(DOTS) {
                    let y = std::array::from_fn(|s| row((i + s).min(m - 1)).as_ptr());
                    let mut out = [0f32; DOTS * DOTS];
                    // SAFETY: every pointer comes from a slice of `k` values.
                    unsafe { (kernels.dots)(k, &x, &y, &mut out) };
                    for (index, &value) in out.iter().enumerate() {
                        let (j, i) = (j + index / DOTS, i + index % DOTS);
                        if j < end && i < m {
                            // SAFETY: `c` was checked to hold the product; this task
                            // alone has column `j`.
                            unsafe {
                                let c = c.as_mut_ptr().add(i * strides.0 + j * strides.1);
                                let value = epilogue.alpha * value;
                                *c = if epilogue.beta == 0.0 { value } else { epilogue.beta * *c + value };
                            }
                        }
                    }
                }
            }
        });
    });
}

/// Outer products; the large operand has `col_stride == 1`.
pub(crate) fn outer(pool: &Pool, thin: Thin<'_>, c: Disjoint<'_, f32>, epilogue: Epilogue<'_>) {
    /// Columns per task.
    const COLUMNS: usize = 128;
    let Thin { sizes, small, large, strides } = thin;
    let Sizes { m, n, k } = sizes;
    let kernels = kernels(pool.isa());
    let tiles = m.div_ceil(kernels.mr);
    let tile_rows = m.div_ceil(tiles);
    let pass = OUTER_K.min(k);
    // An output that is to be transposed is computed row-major first.
    let staged = strides.1 != 1;
    with_scratch(m * k + if staged { m * n } else { 0 }, |scratch| {
        let (packed, stage) = scratch.split_at_mut(m * k);
        for k0 in (0..k).step_by(pass) {
            let len = pass.min(k - k0);
            for i in (0..m).step_by(tile_rows) {
                let rows = tile_rows.min(m - i);
                let out = &mut packed[k0 * m + i * len..][..rows * len];
                pack_a(kernels, &small, (i, rows), (k0, len), out);
            }
        }
        let packed = &*packed;
        let stage = Disjoint::new(stage);
        let (out, ldc) = if staged { (stage, n) } else { (c, strides.0) };
        let inner = if staged { Epilogue { beta: 0.0, ..epilogue } } else { epilogue };
        run(pool, sizes.is_small(), n.div_ceil(COLUMNS), &|task| {
            let end = n.min((task + 1) * COLUMNS);
            for k0 in (0..k).step_by(pass) {
                let len = pass.min(k - k0);
                for j in (task * COLUMNS..end).step_by(kernels.nr) {
                    for i in (0..m).step_by(tile_rows) {
                        let rows = tile_rows.min(m - i);
                        // SAFETY: the panel of the small operand was packed above; the
                        // large one and `out` were checked, and this task alone has
                        // these columns.
                        unsafe {
                            (kernels.tile)(&Tile {
                                rows,
                                cols: kernels.nr.min(end - j),
                                k: len,
                                a: packed[k0 * m + i * len..].as_ptr(),
                                a_stride: 0,
                                b: large.data[k0 * large.row_stride + j..].as_ptr(),
                                b_stride: large.row_stride,
                                copy: std::ptr::null_mut(),
                                c: out.as_mut_ptr().add(i * ldc + j),
                                ldc,
                                alpha: inner.alpha,
                                beta: if k0 == 0 { inner.beta } else { 1.0 },
                                d: out.as_mut_ptr().add(i * ldc + j),
                                ldd: ldc,
                                bias: std::ptr::null(),
                            });
                        }
                    }
                }
            }
            if !staged {
                return;
            }
            for j in task * COLUMNS..end {
                for i in 0..m {
                    // SAFETY: this task alone has these columns of both.
                    unsafe {
                        let value = *stage.as_mut_ptr().add(i * n + j);
                        let c = c.as_mut_ptr().add(i * strides.0 + j * strides.1);
                        *c = if epilogue.beta == 0.0 { value } else { epilogue.beta * *c + value };
                    }
                }
            }
        });
    });
}

/// Values of `k` per pass of the outer products: 128 columns of them fill half an L1.
const OUTER_K: usize = 64;
