//! Portable kernels: the specification of a tile, a transposition and a set of dots.

use super::kernel::{DOTS, Kernels, Tile, Transpose};

pub(crate) static KERNELS: Kernels = Kernels { mr: MR, nr: NR, kc: 384, strip: 1 << 16, tile, split: None, transpose, dots };

const MR: usize = 4;
const NR: usize = 8;

/// # Safety
/// See [`Kernels`].
unsafe fn tile(t: &Tile) {
    let mut acc = [[0f32; NR]; MR];
    for p in 0..t.k {
        let mut b = [0f32; NR];
        // SAFETY: `b` has `k` rows of `cols` values.
        b[..t.cols].copy_from_slice(unsafe { std::slice::from_raw_parts(t.b.add(p * t.b_stride), t.cols) });
        if !t.copy.is_null() {
            // SAFETY: a copy has room for `k` rows of `NR` values.
            unsafe { std::slice::from_raw_parts_mut(t.copy.add(p * NR), NR) }.copy_from_slice(&b);
        }
        for (r, acc) in acc.iter_mut().take(t.rows).enumerate() {
            let at = if t.a_stride == 0 { p * t.rows + r } else { r * t.a_stride + p };
            // SAFETY: `a` has `k` values for each of `rows`.
            let a = unsafe { *t.a.add(at) };
            for (acc, &b) in acc.iter_mut().zip(&b) {
                *acc += a * b;
            }
        }
    }
    for (r, acc) in acc.iter().take(t.rows).enumerate() {
        for (j, acc) in acc.iter().take(t.cols).enumerate() {
            // SAFETY: `c` and `d` have `rows` rows of `cols` values; a bias has `cols`.
            unsafe {
                let c = t.c.add(r * t.ldc + j);
                let mut value = t.alpha * acc;
                if !t.bias.is_null() {
                    value += *t.bias.add(j);
                }
                if t.beta != 0.0 {
                    value += t.beta * *t.d.add(r * t.ldd + j);
                }
                *c = value;
            }
        }
    }
}

/// # Safety
/// See [`Kernels`].
pub(super) unsafe fn transpose(t: Transpose) {
    for r in 0..t.rows {
        for i in 0..t.len {
            // SAFETY: within the extents promised by the caller.
            unsafe { *t.dst.add(i * t.dst_stride + r) = *t.src.add(r * t.src_stride + i) };
        }
    }
}

/// # Safety
/// See [`Kernels`].
unsafe fn dots(k: usize, x: &[*const f32; DOTS], y: &[*const f32; DOTS], out: &mut [f32; DOTS * DOTS]) {
    for (index, out) in out.iter_mut().enumerate() {
        let (x, y) = (x[index / DOTS], y[index % DOTS]);
        // SAFETY: every operand has `k` values.
        *out = (0..k).map(|p| unsafe { *x.add(p) * *y.add(p) }).sum();
    }
}
